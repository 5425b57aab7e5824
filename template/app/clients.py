"""Other services: how they are called, so that one that is slow or away takes nothing else with it."""

import asyncio
import math
import random
import re
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Annotated, Any

import httpx2
import stamina
import structlog
from fastapi import Depends, HTTPException, Request
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from app.metrics import BREAKER, CLIENT_SECONDS
from app.settings import EnvSettings, Seconds

log = structlog.get_logger(__name__)

# What may be sent twice to the same end (RFC 9110, 9.2.2); anything else only with a key by which the service knows it again.
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
IDEMPOTENCY_KEY = "Idempotency-Key"
# Answers that may be others in a moment.
PASSING = frozenset({429, 502, 503, 504})
LONGEST_WAIT_S = 2.0
HOST = re.compile(rb"[A-Za-z0-9._:-]+")
SECONDS = re.compile(r"[0-9]{1,9}")
RETRY_AFTER_S = 5.0
MOST_RETRY_AFTER_S = 3600.0

CLOSED, HALF_OPEN, OPEN = 0, 1, 2

# Without baggage, which the client of this service may fill.
TRACE_CONTEXT = TraceContextTextMapPropagator()


class ClientSettings(EnvSettings):
    """Other services."""

    model_config = SettingsConfigDict(env_prefix="CLIENT_")

    connect_timeout_s: Seconds = Field(2.0, description="Seconds to make a connection to another service.")
    read_timeout_s: Seconds = Field(5.0, description="Seconds that another service may send nothing.")
    write_timeout_s: Seconds = Field(5.0, description="Seconds that another service may take nothing.")
    pool_timeout_s: Seconds = Field(
        1.0, description="Seconds that a call waits for a free connection before it fails."
    )
    total_timeout_s: Seconds = Field(
        10.0, description="Seconds for a call in all, with every attempt and the waits between them."
    )
    attempts: int = Field(
        3, ge=1, le=10, description="Attempts for a call that may be repeated; 1: nothing is."
    )
    backoff_s: Seconds = Field(
        0.1,
        description="Least seconds before the second attempt; each further one waits twice as long."
        " As much again is added at random.",
    )
    pool_size: int = Field(20, ge=1, description="Connections that a worker opens to each service at most.")
    breaker_failures: int = Field(
        5, ge=1, description="Failures in a row after which a service is left alone for a while."
    )
    breaker_open_s: Seconds = Field(
        10.0, description="Seconds that it is left alone, before one call tries whether it is back."
    )
    trust_env: bool = Field(
        False,
        description="Go by `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`, `SSL_CERT_FILE` and `SSL_CERT_DIR`.",
    )


def check_url(value: str) -> str:
    """Refuse what is no address of a service, and what must be kept secret."""
    try:
        url = httpx2.URL(value)
    except httpx2.InvalidURL:
        url = httpx2.URL()
    bare = not (url.userinfo or url.query or url.fragment)
    if url.scheme not in {"http", "https"} or not HOST.fullmatch(url.raw_host) or not bare:
        raise ValueError("must be like https://host/path, without a password or a query")
    return value


ServiceUrl = Annotated[str, AfterValidator(check_url)]


class ServiceUnavailable(HTTPException):
    """Another service cannot serve this request now; the client may try again."""

    def __init__(self, service: str, retry_after_s: float | None = None) -> None:
        """Answer 503 with Retry-After."""
        wait_s = RETRY_AFTER_S if retry_after_s is None else min(retry_after_s, MOST_RETRY_AFTER_S)
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"The service {service} is not available.",
            headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
        )


class Failure(Exception):  # noqa: N818 - it is one attempt's, and no caller sees it
    """One attempt that failed."""

    def __init__(
        self, service: str, reason: str, *, passing: bool = True, retry_after_s: float | None = None
    ) -> None:
        """Say what failed, whether another attempt may help, and when the service asks for it."""
        super().__init__(service, reason)
        self.service = service
        self.reason = reason
        self.passing = passing
        self.retry_after_s = retry_after_s


class Breaker:
    """Refuses calls of a service that failed `failures` times in a row; after `open_s` seconds one tries whether it is back."""

    def __init__(self, service: str, failures: int, open_s: float) -> None:
        """Begin closed."""
        self.service = service
        self.most_failures = failures
        self.open_s = open_s
        self.failures = 0
        # How often it opened: what began before says nothing about after.
        self.openings = 0
        self.open_until: float | None = None
        self.probing = False
        self._show(CLOSED)

    @property
    def wait_s(self) -> float:
        """Seconds until a call may try."""
        return max(0.0, (self.open_until or 0.0) - time.monotonic())

    def admit(self) -> int | None:
        """Return a ticket for one attempt, None when it is refused."""
        if self.open_until is not None:
            if self.probing or self.wait_s:
                return None
            self.probing = True
            self._show(HALF_OPEN)
        return self.openings

    def settle(self, ticket: int, *, failed: bool | None) -> None:
        """Take in how the attempt ended; None is for one that was cut, which says nothing of the service."""
        if ticket != self.openings:
            return
        self.probing = False
        if failed is None:
            self._show(CLOSED if self.open_until is None else OPEN)
        elif failed:
            self.failures += 1
            # A try that fails is one more of them.
            if self.failures >= self.most_failures:
                self._open()
        else:
            self.failures = 0
            if self.open_until is not None:
                self.open_until = None
                self._show(CLOSED)
                log.info("breaker_closed", service=self.service)

    def _open(self) -> None:
        self.openings += 1
        self.open_until = time.monotonic() + self.open_s
        self._show(OPEN)
        log.warning("breaker_opened", service=self.service, failures=self.failures, open_s=self.open_s)

    def _show(self, state: int) -> None:
        BREAKER.labels(self.service).set(state)


class Service:
    """Another service: what it is called in logs and metrics, and how it is asked."""

    def __init__(self, name: str, client: httpx2.AsyncClient, settings: ClientSettings) -> None:
        """Ask by `client`, whose base URL is the service's."""
        self.name = name
        self.client = client
        self.settings = settings
        self.breaker = Breaker(name, settings.breaker_failures, settings.breaker_open_s)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | float | bool | None] | None = None,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        content: bytes | str | None = None,
    ) -> httpx2.Response:
        """Return the answer of the service, whose status is below 500 and not 429; a redirect is not followed.

        What fails is repeated where the method allows it or the headers have an `Idempotency-Key`. Quote what
        comes from a client before it goes into `path`, which must stay below the base URL.

        Raises:
            ServiceUnavailable: no such answer in `CLIENT_TOTAL_TIMEOUT_S` seconds, or the service is left alone.
            ValueError: the request cannot be sent to this service.
        """
        request = self.client.build_request(
            method, path, params=params, headers=context() | dict(headers or {}), json=json, content=content
        )
        if not str(request.url).startswith(str(self.client.base_url)):
            raise ValueError(f"the path leads away from the service {self.name}")
        repeatable = request.method in IDEMPOTENT or IDEMPOTENCY_KEY in request.headers
        failure = Failure(self.name, "total_timeout")
        try:
            async with asyncio.timeout(self.settings.total_timeout_s) as limit:
                async for attempt in stamina.retry_context(
                    on=self._repeat(limit),
                    attempts=self.settings.attempts if repeatable else 1,
                    timeout=None,
                    wait_initial=self.settings.backoff_s,
                    wait_jitter=self.settings.backoff_s,
                    wait_max=LONGEST_WAIT_S,
                ):
                    with attempt:
                        return await self._attempt(request, limit)
        except TimeoutError:
            pass
        except Failure as error:
            failure = error
        if failure.reason != "refused":
            log.warning("service_failed", service=self.name, method=request.method, reason=failure.reason)
        raise ServiceUnavailable(self.name, failure.retry_after_s) from failure

    def _repeat(self, limit: asyncio.Timeout) -> Callable[[Exception], bool | float]:
        """Return what decides whether to try again, and when, if the service said so."""

        def repeat(error: Exception) -> bool | float:
            if not isinstance(error, Failure) or not error.passing:
                return False
            if error.retry_after_s is None:
                return True
            # All who were sent away together should not come back together.
            wait_s = error.retry_after_s + random.uniform(0, self.settings.backoff_s)  # noqa: S311 - no secret
            in_time = asyncio.get_running_loop().time() + wait_s < (limit.when() or 0)
            return wait_s if in_time else False

        return repeat

    async def _attempt(self, request: httpx2.Request, limit: asyncio.Timeout) -> httpx2.Response:
        ticket = self.breaker.admit()
        if ticket is None:
            CLIENT_SECONDS.labels(self.name, "refused").observe(0)
            raise Failure(self.name, "refused", passing=False, retry_after_s=self.breaker.wait_s)
        outcome: str | None = None
        started = time.perf_counter()
        try:
            response = await self.client.send(request)
            outcome = "error" if response.is_server_error else "ok"
        except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol):
            # The error's own text has the header that it is about.
            raise ValueError(f"the request to the service {self.name} is malformed") from None
        except httpx2.PoolTimeout:
            # More attempts would wait in the same queue.
            raise Failure(self.name, "PoolTimeout", passing=False) from None
        except httpx2.RequestError as error:
            outcome = "timeout" if isinstance(error, httpx2.TimeoutException) else "error"
            raise Failure(self.name, type(error).__name__) from error
        finally:
            if outcome is None and limit.expired():
                outcome = "timeout"
            self.breaker.settle(ticket, failed=None if outcome is None else outcome != "ok")
            if outcome:
                CLIENT_SECONDS.labels(self.name, outcome).observe(time.perf_counter() - started)
        status = response.status_code
        if status in PASSING or response.is_server_error:
            wait_s = retry_after_s(response.headers.get("Retry-After", ""))
            raise Failure(self.name, f"status_{status}", passing=status in PASSING, retry_after_s=wait_s)
        return response


def context() -> dict[str, str]:
    """Return the headers by which the logs and traces of the other service are found."""
    headers = {}
    if request_id := structlog.contextvars.get_contextvars().get("request_id"):
        headers["X-Request-ID"] = request_id
    TRACE_CONTEXT.inject(headers)
    return headers


def retry_after_s(value: str) -> float | None:
    """Return the seconds that Retry-After asks for, as a number or a date (RFC 9110, 10.2.3), None where it says nothing."""
    if SECONDS.fullmatch(value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - datetime.now(UTC).timestamp())
    except (OverflowError, TypeError, ValueError):
        return None


def log_retry(details: RetryDetails) -> None:
    """Log a retry without its arguments, which may hold secrets."""
    error = details.caused_by
    log.warning(
        "retry",
        service=getattr(error, "service", details.name),
        attempt=details.retry_num,
        wait_s=round(details.wait_for, 3),
        reason=getattr(error, "reason", type(error).__name__),
    )


@asynccontextmanager
async def open_services(settings: ClientSettings, **urls: str | None) -> AsyncGenerator[dict[str, Service]]:
    """Open the services that have a URL, each with connections of its own; they are made when they are first needed."""
    set_on_retry_hooks([log_retry])
    async with AsyncExitStack() as stack:
        services = {}
        for name, url in urls.items():
            if url:
                client = await stack.enter_async_context(open_client(settings, url))
                services[name] = Service(name, client, settings)
        yield services


def open_client(settings: ClientSettings, url: str) -> httpx2.AsyncClient:
    """Return a client that checks certificates, follows no redirects and keeps no cookies."""
    return httpx2.AsyncClient(
        base_url=url,
        # What a service sets for one request must not go along with another's.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        limits=httpx2.Limits(
            max_connections=settings.pool_size, max_keepalive_connections=settings.pool_size
        ),
        timeout=httpx2.Timeout(
            connect=settings.connect_timeout_s,
            read=settings.read_timeout_s,
            write=settings.write_timeout_s,
            pool=settings.pool_timeout_s,
        ),
        trust_env=settings.trust_env,
        verify=authorities(trust_env=settings.trust_env),
    )


@cache
def authorities(*, trust_env: bool) -> ssl.SSLContext:
    """Return what certificates are checked against: it is read once for all services, for it takes time and memory."""
    return httpx2.create_ssl_context(trust_env=trust_env)


def service(name: str) -> Any:
    """Return a dependency that gives a route the service `name`."""

    async def opened(request: Request) -> Service:
        services: dict[str, Service] = request.app.state.services
        return services[name]

    return Depends(opened)
