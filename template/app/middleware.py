"""Middleware: pure ASGI, so that a request costs no task, queue or copy more than it must."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.errors import problem, route_template
from app.exchange import EXCHANGE, Exchange, Places
from app.metrics import REFUSED, observe_request

log = structlog.get_logger(__name__)

REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{8,64}")
HOST = re.compile(rb"(?P<name>[a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d+)?", re.IGNORECASE)
PROBES = frozenset({"/health", "/ready"})
# What a Content-Length says of a request without a body, where there is one at all.
NO_LENGTH = frozenset({b"", b"0"})


def take_forwarded(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Take address and scheme of the client from the proxy, and only from it: it alone may open the unix socket."""
    server = scope.get("server")
    # Over a unix socket there is neither a port nor an address at the other end.
    if scope.get("client") is not None or server is None or server[1] is not None:
        return
    # Of several the last counts: the proxy's own, where it added to what a client sent.
    address = headers.get(b"x-forwarded-for", b"").rpartition(b",")[2].strip()
    if address:
        scope["client"] = (address.decode("latin-1"), 0)
    if headers.get(b"x-forwarded-proto") == b"https":
        scope["scheme"] = "https" if scope["type"] == "http" else "wss"


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
    """Gives every request its client and an id, its answer the headers that all have, and writes and counts it when it ends."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        take_forwarded(scope, headers)
        given_id = headers.get(b"x-request-id", b"")
        request_id = given_id.decode() if REQUEST_ID.fullmatch(given_id) else secrets.token_hex(16)
        exchange = scope[EXCHANGE] = Exchange(scope, send, headers, request_id)
        bound = logs.REQUEST_ID.set(request_id)
        try:
            await self.app(scope, receive, exchange.send)
        finally:
            ended = time.perf_counter()
            method = scope.get("method", "WEBSOCKET")
            route = route_template(scope)
            # Nothing was sent for a request that was cut while the worker drained; the server says 500.
            status = int(exchange.status or HTTPStatus.INTERNAL_SERVER_ERROR)
            client = scope.get("client")
            user_agent = headers.get(b"user-agent")
            logs.write_request(
                logging.DEBUG if scope["path"] in PROBES else logging.INFO,
                request_id=request_id,
                method=method,
                route=route,
                path=scope["path"],
                status=status,
                duration_s=ended - started,
                sent_bytes=exchange.sent_bytes,
                client=client[0] if client else None,
                user_agent=user_agent.decode("latin-1") if user_agent is not None else None,
            )
            # A stream that goes on, or a client that reads slowly, is no slow answer.
            observe_request(method, route, status, (exchange.began_at or ended) - started)
            logs.REQUEST_ID.reset(bound)
            # Each holds the other; without this, memory would wait for the garbage collector.
            del scope[EXCHANGE]


class Boundary:
    """Ends what may not go on: a request that finds no place, one over its budget, and a crash.

    The log gets the traceback of a crash, the client the request id.
    """

    def __init__(
        self,
        app: ASGIApp,
        places: Places,
        budget_s: float,
        report: Callable[[Exception], object] | None = None,
    ) -> None:
        """Wrap `app`; an answer has `budget_s` seconds to begin, where its route has no budget of its own.

        `report` is told of each crash, once.
        """
        self.app = app
        self.report = report
        self.places = places
        self.budget_s = budget_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        exchange: Exchange = scope[EXCHANGE]
        http = scope["type"] == "http"
        # Supervisors hear from a worker that is overloaded, too.
        refusal = None
        if scope["path"] not in PROBES:
            refusal = exchange.enter(self.places, self.budget_s if http else None)
        if refusal is not None:
            if http:
                await problem(refusal.status_code, refusal.detail, headers=refusal.headers)(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1013})
            return
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:
            # Nobody is there to read it, but the access line has a status.
            if not exchange.status:
                await problem(HTTPStatus.BAD_REQUEST)(scope, receive, send)
        except asyncio.CancelledError:
            # A worker that stops cancels, too, and then nothing is to be answered.
            budget_s = exchange.is_over_budget()
            if budget_s is None:
                raise
            log.warning("budget_exceeded", route=route_template(scope), budget_s=budget_s)
            REFUSED.labels(reason="budget").inc()
            detail = f"The answer did not begin within {budget_s:g} seconds."
            await problem(HTTPStatus.GATEWAY_TIMEOUT, detail)(scope, receive, send)
        except Exception as error:
            log.exception("crash", route=route_template(scope))
            if self.report:
                self.report(error)
            # After the first byte all that is left is to cut the connection, which the server does.
            if not http:
                # The client may be gone already.
                with suppress(RuntimeError):
                    await send({"type": "websocket.close", "code": 1011})
            elif not exchange.status:
                await problem(HTTPStatus.INTERNAL_SERVER_ERROR)(scope, receive, send)
        finally:
            exchange.leave()


class TrustedHosts:
    """Answers only to its own names, so that no client can choose what absolute URLs say."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        """Wrap `app`; `*.domain` in `hosts` matches every subdomain, `*` anything."""
        self.app = app
        self.any = "*" in hosts
        self.names = frozenset(host.lower().encode() for host in hosts if not host.startswith("*."))
        self.suffixes = tuple(host[1:].lower().encode() for host in hosts if host.startswith("*."))
        # Nearly all requests name the same one.
        self.is_ours = lru_cache(64)(self.look_up)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        # Probes come over the socket from supervisors that know no name of ours.
        if scope["type"] == "lifespan" or scope["path"] in PROBES or self.trusts(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            REFUSED.labels(reason="host").inc()
            response = problem(HTTPStatus.BAD_REQUEST, "This host name is not served here.")
            await response(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def trusts(self, scope: Scope) -> bool:
        """Return whether the request names exactly one host, and one of ours."""
        headers: dict[bytes, bytes] = scope[EXCHANGE].headers
        host = headers.get(b"host")
        if host is None or not self.is_ours(host):
            return False
        # Fewer names than fields: one of them is there twice.
        fields = scope["headers"]
        return len(headers) == len(fields) or [name for name, _ in fields].count(b"host") == 1

    def look_up(self, host: bytes) -> bool:
        """Return whether a Host is one of ours, with or without a port."""
        match = HOST.fullmatch(host)
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
        exchange: Exchange = scope[EXCHANGE]
        headers = exchange.headers
        announced = headers.get(b"content-length", b"")
        if announced in NO_LENGTH and b"transfer-encoding" not in headers:
            await self.app(scope, receive, send)
            return
        if announced.isdigit() and int(announced) > self.limit_bytes:
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
            exchange.pause()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise self.too_slow() from None
            complete = not message.get("more_body", False)
            received_bytes += len(message.get("body", b""))
            if received_bytes > self.limit_bytes:
                raise self.refusal()
            if refusal := exchange.resume(complete=complete):
                raise refusal
            return message

        await self.app(scope, receive_within_limit, send)

    def refusal(self) -> HTTPException:
        """Return the error for a body over the limit; what was not read of it ends with the connection."""
        REFUSED.labels(reason="body").inc()
        detail = f"The request body is larger than {self.limit_bytes} bytes."
        return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, {"connection": "close"})

    def too_slow(self) -> HTTPException:
        """Return the error for a body that has not come in time."""
        REFUSED.labels(reason="body").inc()
        detail = f"The request body did not come within {self.timeout_s:g} seconds."
        return HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail, {"connection": "close"})
