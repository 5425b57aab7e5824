"""Rates: the worked example of calling another service; off until `RATES_URL` is set."""
