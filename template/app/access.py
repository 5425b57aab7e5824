"""The access line: what is written of each request when it has ended."""

import json
import logging
import time
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted

import structlog

from app import logs
from app.exchange import PROBES, Exchange

LOGGER = logging.getLogger("app.access")
log = structlog.stdlib.get_logger("app.access")

# Three digits are found faster than they are formatted.
DIGITS = tuple(f"{number:03}" for number in range(1000))
LEVELS = {logging.DEBUG: "debug", logging.INFO: "info"}
# What a route binds under one of these names is not written.
FIELDS = frozenset({"request_id", "method", "route", "path", "status", "client", "event", "level"})


def write(exchange: Exchange, method: str, route: str | None, status: int, duration_s: float) -> None:
    """Write the line of a request that took `duration_s` seconds.

    As JSON it is put together by `line`, for the processors, which would write the same, take as long as all of the framework.
    """
    scope = exchange.scope
    client = scope.get("client")
    user_agent = exchange.headers.get(b"user-agent")
    if not logs.Handler.json or logs.added:
        log.log(
            logging.DEBUG if scope["path"] in PROBES else logging.INFO,
            "request",
            method=method,
            route=route,
            path=scope["path"],
            status=int(status),
            duration_ms=round(duration_s * 1000, 3),
            bytes=exchange.sent_bytes,
            client=client[0] if client else None,
            user_agent=None if user_agent is None else user_agent.decode("latin-1"),
        )
        return
    logs.write_later(
        line,
        method,
        route,
        scope["path"],
        status,
        duration_s,
        exchange.sent_bytes,
        client,
        user_agent,
        exchange.request_id,
        # The context is looked through only where somebody has ever bound something.
        others() if structlog.contextvars._CONTEXT_VARS else "",
        time.time(),
    )


def line(
    method: str,
    route: str | None,
    path: str,
    status: int,
    duration_s: float,
    sent_bytes: int,
    client: tuple[str, int] | None,
    user_agent: bytes | None,
    request_id: str,
    bound: str,
    ended_s: float,
) -> str:
    """Return the line of a request that ended at `ended_s`, as a Unix time; `bound` are more members of its JSON."""
    level = logging.DEBUG if path in PROBES else logging.INFO
    if not LOGGER.isEnabledFor(level):
        return ""
    took_us = int(duration_s * 1e6)
    second = int(ended_s)
    past_us = int((ended_s - second) * 1e6)
    text = (
        f'{beginning(method, route, status)}, "path": {quoted(path)},'
        f' "duration_ms": {took_us // 1000}.{DIGITS[took_us % 1000]}, "bytes": {sent_bytes},'
        f'{asker(client and client[0], user_agent)}, "event": "request", "request_id": "{request_id}"{bound},'
        f' "logger": "app.access", "level": "{LEVELS[level]}",'
        f' "timestamp": "{written(second)}.{DIGITS[past_us // 1000]}{DIGITS[past_us % 1000]}Z"'
        "}\n"
    )
    # Few lines have that character, which every URL with a password has.
    return logs.redact_urls(None, "", text) if "@" in text else text


@lru_cache(maxsize=1024)
def beginning(method: str, route: str | None, status: int) -> str:
    """Return how the lines of a route begin."""
    named = quoted(route) if route else "null"
    return '{"method": ' + f'{quoted(method)}, "route": {named}, "status": {status}'


@lru_cache(maxsize=1024)
def asker(client: str | None, user_agent: bytes | None) -> str:
    """Return what a line says of who asked."""
    program = "null" if user_agent is None else quoted(user_agent.decode("latin-1"))
    return f' "client": {quoted(client) if client else "null"}, "user_agent": {program}'


@lru_cache(maxsize=8)
def written(second: int) -> str:
    """Return a second in ISO 8601."""
    return datetime.fromtimestamp(second, UTC).isoformat()[:-6]


def others() -> str:
    """Return what was bound to the lines of a request, beside its id, as members of their JSON."""
    bound = structlog.contextvars.get_contextvars()
    more = {key: value for key, value in bound.items() if key not in FIELDS}
    return f", {json.dumps(logs.redact(None, '', more), default=repr)[1:-1]}" if more else ""
