"""Tracing by OpenTelemetry: on where `OTEL_EXPORTER_OTLP_ENDPOINT` says where spans go; else nothing of it is imported."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from threading import Thread
from typing import TYPE_CHECKING

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from app.exchange import PROBES
from app.settings import AppSettings, EnvSettings

if TYPE_CHECKING:
    from structlog.typing import EventDict, WrappedLogger

# A part of the time that a worker has to stop; what has not been sent by then is lost.
FLUSH_S = 3.0


class TracingSettings(EnvSettings):
    """Tracing."""

    model_config = SettingsConfigDict(env_prefix="TRACING_")

    endpoint: str | None = Field(
        None,
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="Where spans go, by OTLP over HTTP: `http://collector:4318`. Unset: there are none.",
    )
    headers: SecretStr = Field(
        SecretStr(""),
        validation_alias="OTEL_EXPORTER_OTLP_HEADERS",
        description="Headers that the collector asks for, as `name=value`, with commas between.",
    )
    sample_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of the requests that are traced: 0.1 is one in ten."
    )
    trust_clients: bool = Field(
        False,
        description="Go on with the trace that a request says it belongs to, and with its sender's choice whether to"
        " record it. Only where all clients are services of your own.",
    )

    @field_validator("endpoint")
    @classmethod
    def check_endpoint(cls, value: str | None) -> str | None:
        """Refuse what is no address, and any as long as nothing is installed that could send to it."""
        if value is None:
            return None
        if not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        need_group("tracing", "opentelemetry.exporter.otlp.proto.http")
        return value.rstrip("/")

    @field_validator("headers")
    @classmethod
    def check_headers(cls, value: SecretStr) -> SecretStr:
        """Refuse what is no list of headers."""
        if not all("=" in header for header in filter(str.strip, value.get_secret_value().split(","))):
            raise ValueError("must be like name=value,name=value")
        return value


def need_group(group: str, module: str) -> None:
    """See that the optional dependencies `group`, which bring `module`, are installed.

    Raises:
        ValueError: they are not; it says how to mend that.
    """
    with suppress(ModuleNotFoundError):
        if find_spec(module):
            return
    raise ValueError(
        f"is set, but the dependencies `{group}` are not installed: write EXTRAS := {group} in the Makefile,"
        " run `make pins` and install them; or unset it"
    )


def telemetry(settings: TracingSettings) -> TelemetryConfig:
    """Return what FastAPI is to do: a span for each request but the probes of supervisors, or nothing."""
    if settings.endpoint:
        # Before workers are forked, so that they share its memory.
        import_module("app.spans")
    return {
        "tracing": settings.endpoint is not None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope["path"] in PROBES,
    }


def add_trace_ids(_logger: "WrappedLogger", _method: str, event: "EventDict") -> "EventDict":
    """Say in a log line which span it belongs to."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event


@asynccontextmanager
async def exported(settings: TracingSettings, service: str, app: AppSettings) -> AsyncGenerator[None]:
    """Send spans as long as the worker serves. Its thread is made here, for none survives the fork of a worker."""
    if settings.endpoint is None:
        yield
        return
    from app import spans

    resource = {
        "service.name": service,
        "deployment.environment": app.environment.value,
        # The newer name of the same.
        "deployment.environment.name": app.environment.value,
    }
    if app.release:
        resource["service.version"] = app.release
    close = spans.begin(settings.endpoint, settings, resource)
    try:
        yield
    finally:
        await within(FLUSH_S, close)


async def within(seconds: float, close: Callable[[], None]) -> None:
    """Wait for `close`, but not longer; a thread that hangs on the network would hold up the end of the process."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        close()
        # Nobody waits any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(done.set)

    Thread(target=run, daemon=True).start()
    with suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), seconds)
