"""Middleware: pure ASGI, so that a request costs no task, queue or copy more than it must."""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send

from app import access, logs
from app.errors import problem, route_template
from app.exchange import EXCHANGE, PROBES, Exchange, Places
from app.limits import AddressLimit
from app.metrics import REFUSED, observe_request

log = structlog.get_logger(__name__)

ID_LENGTH = range(8, 65)
ID_CHARACTERS = re.compile(rb"[A-Za-z0-9_-]+")
HOST = re.compile(rb"(?P<name>[a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d+)?", re.IGNORECASE)
BODY_FIELDS = frozenset({b"content-length", b"transfer-encoding"})
# What a Content-Length says of a request without a body, where there is one at all.
NO_LENGTH = frozenset({b"", b"0"})
# Where a scope keeps what it is answered with, if not by a route.
RESPONSE = "app.response"
# Where a scope keeps the error that its handler is to answer.
ERROR = "app.error"
# Where FastAPI puts the files of a form, to be closed when the request has ended.
FILES = "fastapi_middleware_astack"


def is_request_id(given: bytes) -> bool:
    """Return whether an id that was given may stand in the log and the answer."""
    # Most are letters and digits, which costs less to see than a regular expression.
    return len(given) in ID_LENGTH and (given.isalnum() or ID_CHARACTERS.fullmatch(given) is not None)


def take_forwarded(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Take address and scheme of the client from the proxy, and only from it: it alone may open the unix socket."""
    server = scope.get("server")
    # Over a unix socket there is neither a port nor an address at the other end.
    if scope.get("client") is not None or server is None or server[1] is not None:
        return
    # To look for a comma in bytes takes several times as long.
    address = headers.get(b"x-forwarded-for", b"").decode("latin-1")
    if "," in address:
        # The last counts: the proxy's own, where it added to what a client sent.
        address = address.rpartition(",")[2].strip()
    if address:
        scope["client"] = (address, 0)
    if headers.get(b"x-forwarded-proto") == b"https":
        scope["scheme"] = "https" if scope["type"] == "http" else "wss"


def has_body(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a request has a body, so far as its header says."""
    if BODY_FIELDS.isdisjoint(headers):
        return False
    return b"transfer-encoding" in headers or headers[b"content-length"] not in NO_LENGTH


def is_preflight(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a browser only asks what a page of another origin may send."""
    return (
        scope.get("method") == "OPTIONS"
        and b"origin" in headers
        and b"access-control-request-method" in headers
    )


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


class Front:
    """What every request passes first, and its answer last: one coroutine, since each layer costs by itself.

    A request gets its client and an id; it is refused where it names another host, finds no place, has too large a body or
    comes from an address that asks too often; it is ended when it is over its budget or crashes; and when it ends it is
    written and counted. The log gets the traceback of a crash, the client the request id.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: "TrustedHosts",
        places: Places,
        budget_s: float,
        body_limit: "BodyLimit",
        limit: AddressLimit | None = None,
        report: Callable[[Exception], object] | None = None,
        around: Callable[[ASGIApp], ASGIApp] | None = None,
    ) -> None:
        """Wrap `app`; an answer has `budget_s` seconds to begin, where its route has no budget of its own.

        `report` is told of each crash, once. `around` wraps what answers, be it `app` or this.
        """
        self.app = around(app) if around else app
        self.responder = around(respond) if around else respond
        self.hosts = hosts
        self.places = places
        self.budget_s = budget_s
        self.body_limit = body_limit
        self.limit = limit
        # Preflights are answered by what is around, and cost a client nothing of its limit.
        self.cors = around is not None
        self.report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        http = scope["type"] == "http"
        path = scope["path"]
        headers = dict(scope["headers"])
        take_forwarded(scope, headers)
        given_id = headers.get(b"x-request-id", b"")
        request_id = given_id.decode() if is_request_id(given_id) else secrets.token_hex(16)
        exchange = scope[EXCHANGE] = Exchange(scope, send, headers, request_id)
        bound = logs.REQUEST_ID.set(request_id)
        try:
            refusal = None
            # Supervisors know no name of ours, and hear from a worker that is overloaded, too.
            if path not in PROBES:
                refusal = self.hosts.refusal(scope["headers"], headers) or exchange.enter(
                    self.places, started, self.budget_s if http else None
                )
            if http and has_body(headers):
                exchange.has_body = True
                refusal = refusal or self.body_limit.refusal(headers)
                receive = self.body_limit.limited(exchange, receive)
            if self.limit and refusal is None and not (self.cors and is_preflight(scope, headers)):
                refusal = await self.limit.refusal(scope)
            if refusal is None:
                await self.app(scope, receive, exchange.send)
            elif http:
                await self.respond(
                    exchange, receive, refusal.status_code, refusal.detail, headers=refusal.headers
                )
            else:
                again = refusal.headers and "Retry-After" in refusal.headers
                await exchange.send({"type": "websocket.close", "code": 1013 if again else 1008})
        except ClientDisconnect:
            # Nobody is there to read it, but the access line has a status.
            if not exchange.status:
                await self.respond(exchange, receive, HTTPStatus.BAD_REQUEST)
        except asyncio.CancelledError:
            # A worker that stops cancels, too, and then nothing is to be answered.
            budget_s = exchange.is_over_budget()
            if budget_s is None:
                raise
            log.warning("budget_exceeded", route=route_template(scope), budget_s=budget_s)
            REFUSED.labels(reason="budget").inc()
            detail = f"The answer did not begin within {budget_s:g} seconds."
            await self.respond(exchange, receive, HTTPStatus.GATEWAY_TIMEOUT, detail)
        except Exception as error:
            log.exception("crash", route=route_template(scope))
            if self.report:
                self.report(error)
            # After the first byte all that is left is to cut the connection, which the server does.
            if not http:
                # The client may be gone already.
                with suppress(RuntimeError):
                    await exchange.send({"type": "websocket.close", "code": 1011})
            elif not exchange.status:
                await self.answer_crash(exchange, receive, error)
        finally:
            self.places.taken.discard(exchange)
            ended = time.perf_counter()
            method = scope.get("method", "WEBSOCKET")
            route = route_template(scope)
            # Nothing was sent for a request that was cut while the worker drained; the server says 500.
            status = exchange.status or 500
            access.write(exchange, method, route, status, ended - started)
            # A stream that goes on, or a client that reads slowly, is no slow answer.
            observe_request(method, route, status, (exchange.began_at or ended) - started)
            logs.REQUEST_ID.reset(bound)
            # Each holds the other; without this, memory would wait for the garbage collector.
            del scope[EXCHANGE]

    async def respond(
        self,
        exchange: Exchange,
        receive: Receive,
        status: int,
        detail: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer with a problem."""
        exchange.scope[RESPONSE] = problem(status, detail, headers=headers)
        await self.responder(exchange.scope, receive, exchange.send)

    async def answer_crash(self, exchange: Exchange, receive: Receive, error: Exception) -> None:
        """Answer by the handler that the service has for crashes; with a problem, if it has none or that crashes, too."""
        handlers = exchange.scope["app"].exception_handlers
        handler = handlers.get(Exception) or handlers.get(HTTPStatus.INTERNAL_SERVER_ERROR)
        if handler:
            exchange.scope[ERROR] = error
            exchange.scope[RESPONSE] = ExceptionMiddleware(fail, {Exception: handler})
            try:
                await self.responder(exchange.scope, receive, exchange.send)
            except Exception:
                log.exception("crash_handler_failed", route=route_template(exchange.scope))
        if not exchange.status:
            await self.respond(exchange, receive, HTTPStatus.INTERNAL_SERVER_ERROR)


async def respond(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the response that the scope has."""
    await scope[RESPONSE](scope, receive, send)


class HandledErrors(ExceptionMiddleware):
    """Answers errors by their handlers, as its base does, which for every request makes what only a failed one needs."""

    def __init__(self, app: ASGIApp, handlers: Mapping[Any, ExceptionHandler]) -> None:
        """Wrap `app`; `handlers` are by status and by kind of error."""
        super().__init__(fail, handlers)
        self.routes = app
        self.known = (self._exception_handlers, self._status_handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        # Where routes look for them first.
        scope["starlette.exception_handlers"] = self.known
        # None of the lifespan.
        exchange: Exchange | None = scope.get(EXCHANGE)
        try:
            if exchange is not None and not exchange.has_body:
                scope[FILES] = NO_FILES
                await self.routes(scope, receive, send)
            else:
                async with AsyncExitStack() as scope[FILES]:
                    await self.routes(scope, receive, send)
        except Exception as error:
            unhandled = self._exception_handlers.keys().isdisjoint(type(error).__mro__)
            # After its first byte an answer can only be cut; a WebSocket can still be closed.
            if unhandled or (scope["type"] == "http" and scope[EXCHANGE].status):
                raise
            scope[ERROR] = error
            await super().__call__(scope, receive, send)


class NoFiles(AsyncExitStack):
    """What requests without a body have in common: no file comes that would have to be closed."""

    def push_async_callback(self, callback: Any, /, *_: Any, **__: Any) -> Any:
        """Keep nothing."""
        return callback


NO_FILES = NoFiles()


async def fail(scope: Scope, _receive: Receive, _send: Send) -> None:
    """Raise the error that the scope has."""
    raise scope[ERROR]


class TrustedHosts:
    """The names that are answered to, so that no client can choose what absolute URLs say."""

    def __init__(self, hosts: tuple[str, ...]) -> None:
        """Answer to `hosts`, where `*.domain` matches every subdomain, `*` anything."""
        self.any = "*" in hosts
        self.names = frozenset(host.lower().encode() for host in hosts if not host.startswith("*."))
        self.suffixes = tuple(host[1:].lower().encode() for host in hosts if host.startswith("*."))
        # Nearly all requests name the same one.
        self.is_ours = lru_cache(64)(self.look_up)

    def refusal(
        self, fields: Sequence[tuple[bytes, bytes]], headers: dict[bytes, bytes]
    ) -> HTTPException | None:
        """Return the error for a request that does not name exactly one host, and one of these."""
        host = headers.get(b"host")
        # Fewer names than fields: one of them is there twice.
        if (
            host is not None
            and self.is_ours(host)
            and (len(headers) == len(fields) or [name for name, _ in fields].count(b"host") == 1)
        ):
            return None
        REFUSED.labels(reason="host").inc()
        return HTTPException(HTTPStatus.BAD_REQUEST, "This host name is not served here.")

    def look_up(self, host: bytes) -> bool:
        """Return whether a Host is one of ours, with or without a port."""
        match = HOST.fullmatch(host)
        if match is None:
            return False
        name = match["name"].lower()
        return self.any or name in self.names or name.endswith(self.suffixes)


class BodyLimit:
    """Refuses a request body that is too large with 413, at once where its length is announced, and a slow one with 408."""

    def __init__(self, limit_bytes: int, timeout_s: float) -> None:
        """Take `limit_bytes`; a body has `timeout_s` seconds to come, counted from when it is first asked for."""
        self.limit_bytes = limit_bytes
        self.timeout_s = timeout_s

    def refusal(self, headers: dict[bytes, bytes]) -> HTTPException | None:
        """Return the error for a body that is announced to be over the limit."""
        announced = headers.get(b"content-length", b"")
        return self.too_large() if announced.isdigit() and int(announced) > self.limit_bytes else None

    def limited(self, exchange: Exchange, receive: Receive) -> Receive:
        """Return what receives a body, and raises HTTPException where it is over a limit."""
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
                raise self.too_large()
            if refusal := exchange.resume(complete=complete):
                raise refusal
            return message

        return receive_within_limit

    def too_large(self) -> HTTPException:
        """Return the error for a body over the limit; what was not read of it ends with the connection."""
        REFUSED.labels(reason="body").inc()
        detail = f"The request body is larger than {self.limit_bytes} bytes."
        return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, {"connection": "close"})

    def too_slow(self) -> HTTPException:
        """Return the error for a body that has not come in time."""
        REFUSED.labels(reason="body").inc()
        detail = f"The request body did not come within {self.timeout_s:g} seconds."
        return HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail, {"connection": "close"})
