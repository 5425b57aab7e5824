"""Exchanges: each request that a worker is answering, with its place among the others and its budget of time."""

import asyncio
import math
import time
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any

from fastapi import Depends, HTTPException, Request
from fastapi.routing import iter_route_contexts
from starlette.routing import Match
from starlette.types import Message, Scope, Send

from app.errors import route_template
from app.limits import FIELDS, client_of
from app.metrics import IN_FLIGHT, REFUSED

# Where a scope keeps its exchange.
EXCHANGE = "app.exchange"
# What supervisors ask for: in no place, and in the log for debugging only.
PROBES = frozenset({"/health", "/ready"})
# How often the budgets are looked at, and the gauge is set: a timer for every request would cost more.
TICK_S = 0.25
NEVER = float("inf")
RETRY_AFTER = {"Retry-After": "1"}

# What every answer says unless its route says otherwise. HSTS is the proxy's to send, which has the certificate.
SECURITY_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
NOT_STORED = (b"cache-control", b"no-store")
# With an ETag a client may keep an answer, and ask each time whether it still holds.
REVALIDATED = (b"cache-control", b"private, no-cache")
USUAL = (*SECURITY_HEADERS, NOT_STORED)
# A route that has one of these decides more than its content.
OWN = frozenset({*(name for name, _ in USUAL), b"etag"})
# Every event goes to the client at once; a proxy that understands this takes it out.
UNBUFFERED = (b"x-accel-buffering", b"no")


class Exchange:
    """One request and its answer, which it sends; until that begins, the request has a place and a budget of time."""

    # What most of them do not change costs none of them anything here.
    has_body = False
    sent_bytes = 0
    # 0 until the answer begins. All times are those of the performance counter.
    status = 0
    began_at = 0.0
    deadline = NEVER
    # None until somebody asks for it, and where there is none.
    route: str | None = None
    _places: "Places | None" = None
    _task: "asyncio.Task[Any] | None" = None
    _budget_s: float | None = None
    _complete_at = 0.0
    _expired = False

    def __init__(self, scope: Scope, send: Send, headers: dict[bytes, bytes], request_id: str) -> None:
        """Answer the request of `scope` by `send`; of a header that is there more than once, `headers` has the last."""
        self.scope = scope
        self.headers = headers
        self.request_id = request_id
        self._send = send

    def send(self, message: Message) -> Awaitable[None]:
        """Send a part of the answer."""
        kind = message["type"]
        if kind == "http.response.body":
            self.sent_bytes += len(message.get("body", b""))
        elif kind == "http.response.start":
            self._begin_answer(message)
        elif kind == "websocket.accept":
            self.status = HTTPStatus.SWITCHING_PROTOCOLS
            self.began_at = time.perf_counter()
            self.leave()
        elif kind == "websocket.http.response.start":
            self._begin_answer(message)
        elif kind == "websocket.close" and not self.status:
            self.status = HTTPStatus.FORBIDDEN
        return self._send(message)

    def _begin_answer(self, message: Message) -> None:
        self.status = message["status"]
        self.began_at = time.perf_counter()
        if self._places is not None:
            # From now on it waits for the client, which may read slowly.
            self._places.taken.discard(self)
        headers = message.get("headers", ())
        given = dict(headers)
        more: tuple[tuple[bytes, bytes], ...] = USUAL if OWN.isdisjoint(given) else usual_beside(given)
        if given.get(b"content-type", b"").startswith(b"text/event-stream"):
            more += (UNBUFFERED,)
        if fields := self.scope.get(FIELDS):
            more += fields
        message["headers"] = [*headers, *more, (b"x-request-id", self.request_id.encode())]

    def enter(self, places: "Places", now: float, budget_s: float | None) -> HTTPException | None:
        """Take a place, and have `budget_s` seconds from `now` until the answer begins; return why there is no place."""
        # A loop that is named needs not be looked for, which on Python 3.11 is a system call.
        self._task = asyncio.current_task(places.loop)
        self._places = places
        self._complete_at = now
        self._budget_s = budget_s
        if budget_s is not None:
            self.deadline = now + budget_s
        # Mostly there is room, and somebody looks after it: then there is nothing to ask for.
        if len(places.taken) < places.most_of_one and places.loop is not None:
            places.taken.add(self)
            return None
        return places.take(self)

    def allow(self, budget_s: float | None) -> None:
        """Have another budget, in seconds, or none; it counts from when the request was complete."""
        self._budget_s = budget_s
        if not self.status:
            self.deadline = NEVER if budget_s is None else self._complete_at + budget_s

    def pause(self) -> None:
        """Wait for the client: in no place, and with the whole budget still to come."""
        self.leave()

    def resume(self, *, complete: bool) -> HTTPException | None:
        """Go on with what has come; return why there is no place to answer a request that is `complete`."""
        if self._places is None or self.status:
            return None
        self._complete_at = time.perf_counter()
        self.allow(self._budget_s)
        return self._places.take(self, anyway=not complete)

    def leave(self) -> None:
        """Give the place back."""
        if self._places is not None:
            self._places.taken.discard(self)

    def expire(self) -> None:
        """Cancel what is being done for the request."""
        self.deadline = NEVER
        if self._task is not None:
            self._expired = True
            self._task.cancel()

    def is_over_budget(self) -> float | None:
        """Return the budget, if it is why the request was cancelled, and the only reason: it may go on to answer."""
        if not self._expired or self._task is None or self._task.uncancel():
            return None
        return self._budget_s


class Places:
    """The requests that a worker answers at a time: never too many, and none for longer than its budget."""

    def __init__(self, most: int) -> None:
        """Have `most` places."""
        self.most = most
        # Of one address: what it asks for, others can still have.
        self.most_of_one = math.ceil(most / 2)
        self.taken: set[Exchange] = set()
        # While it ticks, for there is somebody to look after.
        self.loop: asyncio.AbstractEventLoop | None = None

    def take(self, exchange: Exchange, *, anyway: bool = False) -> HTTPException | None:
        """Give a place to a request, `anyway` also where it may have none; return what to answer it instead."""
        if len(self.taken) >= self.most_of_one and not anyway and (refusal := self.refusal(exchange)):
            return refusal
        self.taken.add(exchange)
        if self.loop is None:
            self.loop = asyncio.get_running_loop()
            self.loop.call_later(TICK_S, self.tick)
        return None

    def refusal(self, exchange: Exchange) -> HTTPException | None:
        """Return what to answer a request that may have no place."""
        free = self.most - len(self.taken)
        if free > 0 and self.held_by(client_of(exchange.scope)) >= self.most_of_one:
            REFUSED.labels(reason="concurrency").inc()
            detail = f"No more than {self.most_of_one} requests of one address are answered at a time."
            return HTTPException(HTTPStatus.TOO_MANY_REQUESTS, detail, RETRY_AFTER)
        # A route may hold three times as many places as are free. That is 3/4 of all where one route is slow, and less for
        # each where several are: who waits for a slow dependency always leaves room for those who do not.
        if free <= 0 or (len(self.taken) >= 3 * free and self.held_on(exchange) >= 3 * free):
            REFUSED.labels(reason="overload").inc()
            detail = "The service has all the requests that it can answer at a time."
            return HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, detail, RETRY_AFTER)
        return None

    def held_by(self, client: str | None) -> int:
        """Return how many places a client holds; none that comes over the socket itself."""
        return sum(client_of(other.scope) == client for other in self.taken) if client else 0

    def held_on(self, exchange: Exchange) -> int:
        """Return how many places the route of a request holds."""
        route = route_ahead(exchange.scope)
        for other in self.taken:
            other.route = other.route or route_template(other.scope)
        return sum(other.route == route for other in self.taken)

    def tick(self) -> None:
        """End what is over its budget, and say how many there are; go on as long as there are some."""
        now = time.perf_counter()
        for exchange in [one for one in self.taken if one.deadline <= now]:
            exchange.expire()
        IN_FLIGHT.set(len(self.taken))
        if not self.taken:
            self.loop = None
        elif self.loop is not None:
            self.loop.call_later(TICK_S, self.tick)


def usual_beside(given: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """Return what every answer says, but for what the route has said itself."""
    caching = REVALIDATED if b"etag" in given else NOT_STORED
    return tuple(header for header in (*SECURITY_HEADERS, caching) if header[0] not in given)


def route_ahead(scope: Scope) -> str | None:
    """Return the template of the route that a request is going to take."""
    for route in iter_route_contexts(scope["app"].routes):
        if route.matches(scope)[0] is Match.FULL:
            return route.path
    return None


def budget(seconds: float | None) -> Any:
    """Return a dependency that gives a route a budget of its own, in seconds; None: its answer may take any time to begin.

    Raises:
        ValueError: the budget is not more than 0.
    """
    if seconds is not None and not seconds > 0:
        raise ValueError("A budget is more than 0 seconds, or None.")

    async def allow(request: Request) -> None:
        exchange: Exchange = request.scope[EXCHANGE]
        exchange.allow(seconds)

    return Depends(allow)
