"""Middleware: pure ASGI, so that a request costs no task, queue or copy more than it must."""

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import metrics
from app.errors import problem, route_template

log = structlog.get_logger(__name__)
access_log = structlog.get_logger("app.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
HOST = re.compile(r"(?P<name>[a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d+)?", re.IGNORECASE)
PROBES = frozenset({"/health", "/ready"})

# What every answer says unless its route says otherwise. HSTS is the proxy's to send, which has the certificate.
SECURITY_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
NOT_STORED = (b"cache-control", b"no-store")
# With an ETag a client may keep an answer, and ask each time whether it still holds.
REVALIDATED = (b"cache-control", b"private, no-cache")
# Every event goes to the client at once; a proxy that understands this takes it out.
UNBUFFERED = (b"x-accel-buffering", b"no")


class Forwarded:
    """Takes address and scheme of the client from the proxy, and only from it: it alone may open the unix socket."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "lifespan" and over_unix_socket(scope):
            for name, value in scope["headers"]:
                # Of several the last counts: the proxy's own, where it added to what a client sent.
                if name == b"x-forwarded-for":
                    address = value.rpartition(b",")[2].strip().decode("latin-1")
                    scope["client"] = (address, 0) if address else None
                elif name == b"x-forwarded-proto" and value in {b"http", b"https"}:
                    scheme = value.decode()
                    scope["scheme"] = scheme.replace("http", "ws") if scope["type"] == "websocket" else scheme
        await self.app(scope, receive, send)


def over_unix_socket(scope: Scope) -> bool:
    """Return whether a request came over a unix socket, which has neither a port nor an address at its other end."""
    server = scope.get("server")
    return scope.get("client") is None and server is not None and server[1] is None


class RootPath:
    """Serves below a path, whether the proxy leaves it in front of what it asks for or has taken it away."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        """Wrap `app`; `root_path` is like `/myapi`."""
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "lifespan":
            scope["root_path"] = self.root_path
            path = scope["path"]
            # Probes come over the socket from supervisors that know no path of ours.
            if path not in PROBES and path != self.root_path and not path.startswith(f"{self.root_path}/"):
                scope["path"] = self.root_path + path
                scope["raw_path"] = self.root_path.encode() + scope.get("raw_path", path.encode())
        await self.app(scope, receive, send)


class RequestContext:
    """Gives every request an id, and writes one access line when it ends."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(16)
        status = 0
        sent_bytes = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status, sent_bytes
            kind = message["type"]
            if kind in {"http.response.start", "websocket.http.response.start"}:
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            elif kind == "http.response.body":
                sent_bytes += len(message.get("body", b""))
            elif kind == "websocket.accept":
                status = HTTPStatus.SWITCHING_PROTOCOLS
            elif kind == "websocket.close" and not status:
                status = HTTPStatus.FORBIDDEN
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            metrics.IN_FLIGHT.inc()
            try:
                await self.app(scope, receive, send_with_id)
            finally:
                metrics.IN_FLIGHT.dec()
                if scope["type"] == "http":
                    seconds = time.perf_counter() - started
                    metrics.observe_request(scope["method"], route_template(scope), status or 500, seconds)
                probe = scope["path"] in PROBES
                client = scope.get("client")
                (access_log.debug if probe else access_log.info)(
                    "request",
                    method=scope.get("method", "WEBSOCKET"),
                    route=route_template(scope),
                    path=scope["path"],
                    # Nothing was sent for a request that was cut while the worker drained; the server says 500.
                    status=int(status or HTTPStatus.INTERNAL_SERVER_ERROR),
                    duration_ms=round((time.perf_counter() - started) * 1000, 2),
                    bytes=sent_bytes,
                    client=client[0] if client else None,
                    user_agent=headers.get("user-agent"),
                )


class SecurityHeaders:
    """Adds to every answer what protects whoever opens it in a browser, and keeps it out of caches."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = dict(message.get("headers", ()))
                caching = REVALIDATED if b"etag" in given else NOT_STORED
                more = [header for header in (*SECURITY_HEADERS, caching) if header[0] not in given]
                if given.get(b"content-type", b"").startswith(b"text/event-stream"):
                    more.append(UNBUFFERED)
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        await self.app(scope, receive, send_with_headers)


class ErrorBoundary:
    """Turns a crash into a problem: the log gets the traceback, the client the request id."""

    def __init__(self, app: ASGIApp, report: Callable[[Exception], object] | None = None) -> None:
        """Wrap `app`; `report` is told of each crash, once."""
        self.app = app
        self.report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        response_started = False

        async def watch(message: Message) -> None:
            nonlocal response_started
            response_started = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except ClientDisconnect:
            # Nobody is there to read it, but the access line has a status.
            if not response_started:
                await problem(HTTPStatus.BAD_REQUEST)(scope, receive, send)
        except Exception as error:
            log.exception("crash", route=route_template(scope))
            if self.report:
                self.report(error)
            # After the first byte all that is left is to cut the connection, which the server does.
            if scope["type"] == "websocket":
                # The client may be gone already.
                with suppress(RuntimeError):
                    await send({"type": "websocket.close", "code": 1011})
            elif not response_started:
                await problem(HTTPStatus.INTERNAL_SERVER_ERROR)(scope, receive, send)


class TrustedHosts:
    """Answers only to its own names, so that no client can choose what absolute URLs say."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        """Wrap `app`; `*.domain` in `hosts` matches every subdomain, `*` anything."""
        self.app = app
        self.any = "*" in hosts
        self.names = frozenset(host.lower() for host in hosts if not host.startswith("*."))
        self.suffixes = tuple(host[1:].lower() for host in hosts if host.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        # Probes come over the socket from supervisors that know no name of ours.
        if scope["type"] == "lifespan" or scope["path"] in PROBES or self.trusts(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            response = problem(HTTPStatus.BAD_REQUEST, "This host name is not served here.")
            await response(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def trusts(self, scope: Scope) -> bool:
        """Return whether the request names exactly one host, and one of ours."""
        hosts = Headers(scope=scope).getlist("host")
        match = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None:
            return False
        name = match["name"].lower()
        return self.any or name in self.names or name.endswith(self.suffixes)


class BodyLimit:
    """Refuses a request body that is too large with 413, at once where its length is announced, and a slow one with 408."""

    def __init__(self, app: ASGIApp, limit_bytes: int, timeout_s: float) -> None:
        """Wrap `app`; a body has `timeout_s` seconds to come, counted from when it is first asked for."""
        self.app = app
        self.limit_bytes = limit_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.limit_bytes:
            error = self.refusal()
            await problem(error.status_code, error.detail, headers=error.headers)(scope, receive, send)
            return
        received_bytes = 0
        deadline: float | None = None
        complete = False

        async def receive_within_limit() -> Message:
            nonlocal complete, deadline, received_bytes
            if complete:
                # Who waits on waits for the client to go.
                return await receive()
            deadline = deadline or asyncio.get_running_loop().time() + self.timeout_s
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise self.too_slow() from None
            complete = not message.get("more_body", False)
            received_bytes += len(message.get("body", b""))
            if received_bytes > self.limit_bytes:
                raise self.refusal()
            return message

        await self.app(scope, receive_within_limit, send)

    def refusal(self) -> HTTPException:
        """Return the error for a body over the limit; what was not read of it ends with the connection."""
        detail = f"The request body is larger than {self.limit_bytes} bytes."
        return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, {"connection": "close"})

    def too_slow(self) -> HTTPException:
        """Return the error for a body that has not come in time."""
        detail = f"The request body did not come within {self.timeout_s:g} seconds."
        return HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail, {"connection": "close"})
