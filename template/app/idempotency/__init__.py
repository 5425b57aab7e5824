"""Idempotency keys: a request that creates something may be sent again, and is done once."""
