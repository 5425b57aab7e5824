"""Sentry: what is told of a crash, and what never is. Imported only where it is on."""

import logging
from collections.abc import Callable
from typing import Any

import sentry_sdk
import structlog
from sentry_sdk.integrations.argv import ArgvIntegration
from sentry_sdk.integrations.atexit import AtexitIntegration
from sentry_sdk.integrations.excepthook import ExcepthookIntegration
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.integrations.starlette import StarletteIntegration
from sentry_sdk.integrations.threading import ThreadingIntegration

from app.crashes import Report
from app.exchange import PROBES
from app.logs import REDACTED, SECRET_KEY, URL_PASSWORD

# A part of the time that a worker has to stop; what has not been sent by then is lost.
FLUSH_S = 2.0
# Whatever a client sent, and what was asked of others: addresses hold keys and names.
WITHHELD = frozenset({"query_string", "url", "data", "cookies", "headers", "env"})
QUERIES = frozenset({"http.query", "http.fragment", "url.query", "url.fragment", "url", "url.full"})


def begin(dsn: str, *, traces_sample_rate: float, environment: str, release: str | None) -> Report:
    """Switch it on; return what reports a crash. Its threads are made when they are first needed, in a worker."""
    # It would speak of every attempt to reach a Sentry that is away.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    sentry_sdk.init(
        dsn=dsn,
        environment=environment,
        release=release,
        # A sampler, for a rate would give way to what a client's header asks for.
        traces_sampler=sampler(traces_sample_rate) if traces_sample_rate else None,
        # Services that are called learn nothing of it.
        trace_propagation_targets=[],
        send_default_pii=False,
        include_local_variables=False,
        max_request_body_size="never",
        # What happened before a crash is in the log, under the same request id.
        max_breadcrumbs=0,
        shutdown_timeout=FLUSH_S,
        integrations=[StarletteIntegration(failed_request_status_codes=set())],
        # The log has what these would tell, and it tells it without secrets.
        disabled_integrations=[
            ArgvIntegration(),
            AtexitIntegration(),
            ExcepthookIntegration(),
            LoggingIntegration(),
            ThreadingIntegration(),
        ],
        before_send=clean,
        before_send_transaction=clean,
    )
    report: Report = sentry_sdk.capture_exception
    return report


def sampler(rate: float) -> Callable[[dict[str, Any]], float]:
    """Return what decides which requests are traced: never a probe."""
    return lambda context: 0.0 if context.get("asgi_scope", {}).get("path") in PROBES else rate


def flush() -> None:
    """Send what has not been sent; takes `FLUSH_S` seconds at most."""
    sentry_sdk.flush(timeout=FLUSH_S)


def clean(event: Any, _hint: Any) -> Any:
    """Return an event without what a client sent, without queries of addresses, and without secrets."""
    if event.get("transaction_info", {}).get("source") == "url":
        event["transaction"] = "unmatched"
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    if request_id:
        event["tags"] = {**event.get("tags", {}), "request_id": request_id}
    event.pop("_meta", None)
    request = event.get("request", {})
    event["request"] = {name: value for name, value in request.items() if name not in WITHHELD}
    for error in event.get("exception", {}).get("values", []):
        # Further lines quote what was sent, such as rows and parameters.
        error["value"] = (error.get("value") or "").partition("\n")[0]
    return scrubbed(event)


def scrubbed(value: Any) -> Any:
    """Blank what is secret by its name, and passwords in addresses, at any depth."""
    if isinstance(value, dict):
        return {
            key: REDACTED if isinstance(key, str) and secret(key) else scrubbed(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [scrubbed(item) for item in value]
    if isinstance(value, str) and "://" in value:
        return URL_PASSWORD.sub(rf"\g<user>{REDACTED}@", value.partition("?")[0])
    return value


def secret(key: str) -> bool:
    """Return whether what has this name stays here."""
    return key in QUERIES or SECRET_KEY.search(key) is not None
