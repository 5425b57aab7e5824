"""The access line: what is written of each request when it has ended."""

import json
import logging
import time
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted

import structlog

from app import logs
from app.exchange import Exchange

LOGGER = logging.getLogger("app.access")
log = structlog.stdlib.get_logger("app.access")

# Three digits are found faster than they are formatted.
DIGITS = tuple(f"{number:03}" for number in range(1000))
LEVELS = {logging.DEBUG: "debug", logging.INFO: "info"}
# What a route binds under one of these names is not written.
FIELDS = frozenset({"request_id", "method", "route", "path", "status", "client", "event", "level"})


class Clock:
    """Tells the time in ISO 8601; what only changes with the second is written once in it."""

    def __init__(self) -> None:
        """Begin with no second."""
        self.second = 0
        self.written = ""

    def now(self) -> str:
        """Return the time, to the microsecond."""
        now_s = time.time()
        past_us = int((now_s - self.second) * 1e6)
        if not 0 <= past_us < 1_000_000:
            self.second = int(now_s)
            self.written = datetime.fromtimestamp(self.second, UTC).isoformat()[:-6]
            past_us = int((now_s - self.second) * 1e6)
        return f"{self.written}.{DIGITS[past_us // 1000]}{DIGITS[past_us % 1000]}Z"


clock = Clock()


def write(
    exchange: Exchange, level: int, method: str, route: str | None, status: int, duration_s: float
) -> None:
    """Write the line of a request that took `duration_s` seconds.

    As JSON it is put together here, for the processors, which would write the same, take as long as all of the framework.
    """
    if not LOGGER.isEnabledFor(level):
        return
    path = exchange.scope["path"]
    address = exchange.scope.get("client")
    client = address[0] if address else None
    name = exchange.headers.get(b"user-agent")
    user_agent = None if name is None else name.decode("latin-1")
    if not logs.Handler.json or logs.added:
        log.log(
            level,
            "request",
            method=method,
            route=route,
            path=path,
            status=status,
            duration_ms=round(duration_s * 1000, 3),
            bytes=exchange.sent_bytes,
            client=client,
            user_agent=user_agent,
        )
        return
    # The context is looked through only where somebody has ever bound something.
    bound = others() if structlog.contextvars._CONTEXT_VARS else ""
    took_us = int(duration_s * 1e6)
    line = (
        f'{beginning(method, route, status)}, "path": {quoted(path)},'
        f' "duration_ms": {took_us // 1000}.{DIGITS[took_us % 1000]}, "bytes": {exchange.sent_bytes},'
        f' "client": {quoted(client) if client else "null"},'
        f' "user_agent": {"null" if user_agent is None else quoted(user_agent)},'
        f' "event": "request", "request_id": "{exchange.request_id}"{bound},'
        f' "logger": "app.access", "level": "{LEVELS[level]}",'
        f' "timestamp": "{clock.now()}"'
        "}\n"
    )
    # Few lines have that character, which every URL with a password has.
    logs.write_later(logs.redact_urls(None, "", line) if "@" in line else line)


@lru_cache(maxsize=1024)
def beginning(method: str, route: str | None, status: int) -> str:
    """Return how the lines of a route begin."""
    named = quoted(route) if route else "null"
    return '{"method": ' + f'{quoted(method)}, "route": {named}, "status": {status}'


def others() -> str:
    """Return what was bound to the lines of a request, beside its id, as members of their JSON."""
    bound = structlog.contextvars.get_contextvars()
    more = {key: value for key, value in bound.items() if key not in FIELDS}
    return f", {json.dumps(logs.redact(None, '', more), default=repr)[1:-1]}" if more else ""
