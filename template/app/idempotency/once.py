"""Requests that are done once: `WritingOnce` is a transaction like `Writing`, and `OnceRoute` keeps what it answers.

The key is inserted first, in the transaction of the work. So the database makes a second request with the same key wait
for the first, in whatever worker; it then gets the same answer, or does the work itself where the first has failed.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, Header, HTTPException, Request, Response
from fastapi.routing import APIRoute
from sqlalchemy import BigInteger, bindparam, delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Writing
from app.idempotency.models import IdempotencyKey
from app.limits import client_of, nobody

KEPT_S = 24 * 60 * 60
# A key that has just expired is left to whom is reading it.
SWEEP_AFTER_S = 60
MOST_SWEPT = 10

VALID = re.compile(r"[!-~]{1,255}")
# Said anew for each answer, or a secret that is given out once.
NOT_KEPT = frozenset({"content-length", "set-cookie"})
# Where in a request's scope the transaction is whose answer is to be kept.
CLAIM = "app.idempotency"

# A key that has expired is free, whether it was swept or not.
INSERT = text(
    "INSERT INTO idempotency_keys (id, request, expires_at) VALUES (:id, :request, :expires_at)"
    " ON CONFLICT (id) DO UPDATE SET request = excluded.request, expires_at = excluded.expires_at,"
    " status = NULL, headers = NULL, body = NULL"
    " WHERE idempotency_keys.expires_at <= :now RETURNING id"
).bindparams(bindparam("expires_at", type_=BigInteger), bindparam("now", type_=BigInteger))


class Replay(Exception):  # noqa: N818 - no error
    """The request was done before."""

    def __init__(self, done: IdempotencyKey) -> None:
        """Make the same answer again."""
        super().__init__()
        self.response = Response(done.body, done.status or HTTPStatus.OK)
        for name, value in done.headers or ():
            self.response.headers.append(name, value)
        self.response.headers["Idempotency-Replayed"] = "true"


class OnceRoute(APIRoute):
    """A route that keeps its answer with the key that `WritingOnce` claimed, in the same transaction."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        answer = super().get_route_handler()

        async def answer_once(request: Request) -> Response:
            request.scope[CLAIM] = None
            if "idempotency-key" in request.headers:
                # A form would be read, and gone, before there is a hash of it.
                await request.body()
            try:
                response = await answer(request)
            except Replay as replay:
                return replay.response
            if claim := request.scope.pop(CLAIM):
                session, key = claim
                await keep(session, key, response)
            return response

        return answer_once


async def keep(session: AsyncSession, key: str, response: Response) -> None:
    """Keep an answer for whoever asks again.

    Raises:
        TypeError: it is a stream, which nobody can send twice.
    """
    if not hasattr(response, "body"):
        raise TypeError("the answer of a route with WritingOnce must not be a stream")
    kept = {
        "status": response.status_code,
        "headers": [[name, value] for name, value in response.headers.items() if name not in NOT_KEPT],
        "body": bytes(response.body),
    }
    await session.execute(update(IdempotencyKey).where(IdempotencyKey.id == key).values(kept))


def key_of(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="Send the same key again with the same request, and it is done only once; choose it at random."
            " It is kept for 24 hours.",
            json_schema_extra={"minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        ),
    ] = None,
) -> str | None:
    """Return the key that a request names."""
    if idempotency_key is None:
        return None
    if not VALID.fullmatch(idempotency_key) or len(request.headers.getlist("idempotency-key")) > 1:
        detail = "Idempotency-Key must be one value of 1 to 255 visible ASCII characters."
        raise HTTPException(HTTPStatus.BAD_REQUEST, detail)
    return idempotency_key


def once(by: Callable[..., Any] = nobody) -> Any:
    """Return a dependency like `Writing` that does a request with an `Idempotency-Key` once.

    A key belongs to who sent it, so that nobody is shown another's answer: to whom `by` returns, a dependency that has
    verified it, else to the address.
    """

    async def claim(
        request: Request,
        key: Annotated[str | None, Depends(key_of)],
        who: Annotated[str | None, Depends(by)],
        session: Writing,
    ) -> AsyncSession:
        if key is None:
            return session
        if CLAIM not in request.scope:
            raise RuntimeError("WritingOnce needs a router with route_class=OnceRoute")
        row_id = digest([client_of(request.scope, who), key])
        kind = request.headers.get("content-type")
        asked = [request.method, request.scope["path"], request.url.query, kind]
        asked_hash = digest(asked, await request.body())
        now = int(time.time())
        values = {"id": row_id, "request": asked_hash, "expires_at": now + KEPT_S, "now": now}
        if (await session.execute(INSERT, values)).first() is None:
            done = await session.get_one(IdempotencyKey, row_id)
            if done.request == asked_hash:
                raise Replay(done)
            detail = "This Idempotency-Key was sent with another request."
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, detail)
        await sweep(session, now)
        request.scope[CLAIM] = session, row_id
        return session

    return Depends(claim, scope="function")


async def sweep(session: AsyncSession, now: int) -> None:
    """Delete a few expired keys; as every new key does, they never become many."""
    expired = (
        select(IdempotencyKey.id)
        .where(IdempotencyKey.expires_at <= now - SWEEP_AFTER_S)
        .order_by(IdempotencyKey.expires_at)
        .limit(MOST_SWEPT)
        .with_for_update(skip_locked=True)
    )
    await session.execute(delete(IdempotencyKey).where(IdempotencyKey.id.in_(expired)))


def digest(parts: list[str | None], body: bytes = b"") -> str:
    """Return the hash of what cannot be read in two ways."""
    return hashlib.sha256(json.dumps(parts).encode() + body).hexdigest()


WritingOnce = Annotated[AsyncSession, once()]
