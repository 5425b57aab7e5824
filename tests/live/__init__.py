"""Rehearsals on the real thing: booted machines, an ACME authority, requests that never stop."""
