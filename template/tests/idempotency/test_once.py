"""Idempotency keys: what is sent again is done once, and shown to nobody else."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Db, uuid7
from app.idempotency.models import IdempotencyKey
from app.idempotency.once import KEPT_S, MOST_SWEPT, SWEEP_AFTER_S, OnceRoute, WritingOnce, once
from app.items.models import Item
from app.main import Settings, create_app
from app.settings import load

URL = "/api/v1/items"
CHAIR = {"name": "chair", "price_cents": 1}
ROOT = Path(__file__).parents[2]

# Another worker: ten requests at once, all with the same key.
WORKER = """
import asyncio, json, sys
import httpx2
from app.main import create_app

async def main():
    app = create_app()
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
    ):
        await client.get("/ready")
        print("ready", flush=True)
        sys.stdin.readline()
        sent = {"json": {"name": "chair", "price_cents": 1}, "headers": {"Idempotency-Key": "one"}}
        answers = await asyncio.gather(*(client.post("/api/v1/items", **sent) for _ in range(10)))
        print(json.dumps([[answer.status_code, answer.json().get("id")] for answer in answers]))

asyncio.run(main())
"""


async def user(request: Request) -> str | None:
    """Return whom a token stands for."""
    return {"secret-a": "a", "secret-b": "b"}.get(request.headers.get("authorization", ""))


@pytest.fixture
def app(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The application with routes whose every call makes another item."""
    # A busy machine may take its time.
    monkeypatch.setenv("DATABASE_CHECKOUT_TIMEOUT_S", "30")
    app = create_app(load(Settings))
    app.state.calls = 0
    router = APIRouter(route_class=OnceRoute)

    async def add(session: AsyncSession) -> str:
        item = Item(name=str(uuid7()), price_cents=1)
        session.add(item)
        await session.flush()
        return item.name

    @router.post("/slow", status_code=201)
    async def slow(session: WritingOnce) -> str:
        app.state.calls += 1
        name = await add(session)
        await asyncio.sleep(0.2)
        return name

    @router.post("/fails-first", status_code=201)
    async def fails_first(session: WritingOnce) -> str:
        app.state.calls += 1
        failing = app.state.calls == 1
        name = await add(session)
        await asyncio.sleep(0.2)
        if failing:
            raise RuntimeError("after the work")
        return name

    @router.post("/by-user", status_code=201)
    async def by_user(session: Annotated[AsyncSession, once(user)]) -> str:
        return await add(session)

    @router.post("/own-response")
    async def own_response(session: WritingOnce) -> Response:
        response = Response((await add(session)).encode(), 202, {"X-Own": "yes"}, "text/x-own")
        response.set_cookie("session", "secret")
        response.headers.append("Link", "</a>")
        response.headers.append("Link", "</b>")
        return response

    @router.post("/stream")
    async def stream(session: WritingOnce) -> StreamingResponse:
        await add(session)

        async def lines() -> AsyncIterator[bytes]:
            yield b"line"

        return StreamingResponse(lines())

    app.include_router(router)

    @app.post("/without-its-route")
    async def without_its_route(session: WritingOnce) -> str:
        return await add(session)

    return app


def from_address(app: FastAPI, address: str) -> httpx2.AsyncClient:
    """Return a client with an address, of an application that is started."""
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False, client=(address, 1))
    return httpx2.AsyncClient(transport=transport, base_url="http://localhost")


async def rows(app: FastAPI, table: type[Item | IdempotencyKey]) -> int:
    """Return how many rows a table has."""
    db: Db = app.state.db
    async with db.reader.connect() as connection:
        return (await connection.execute(select(func.count()).select_from(table))).scalar_one()


def key(value: str) -> dict[str, str]:
    """Return the header."""
    return {"Idempotency-Key": value}


async def test_the_same_request_again_is_the_same_answer(client: httpx2.AsyncClient, app: FastAPI) -> None:
    first = await client.post(URL, json=CHAIR, headers=key("one"))
    again = await client.post(URL, json=CHAIR, headers=key("one"))
    assert (first.status_code, first.content) == (again.status_code, again.content)
    assert first.status_code == 201
    for name in ("location", "etag", "content-type", "content-length", "cache-control"):
        assert again.headers[name] == first.headers[name]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert (await client.get(again.headers["location"])).json() == again.json()
    assert await rows(app, Item) == 1


async def test_an_answer_of_ones_own_is_kept_but_for_its_cookies(client: httpx2.AsyncClient) -> None:
    first = await client.post("/own-response", headers=key("one"))
    again = await client.post("/own-response", headers=key("one"))
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["x-own"] == "yes"
    assert again.headers.get_list("link") == ["</a>", "</b>"]
    assert "set-cookie" in first.headers
    assert "set-cookie" not in again.headers


async def test_without_a_key_each_request_is_done(client: httpx2.AsyncClient, app: FastAPI) -> None:
    assert (await client.post("/slow")).text != (await client.post("/slow")).text
    assert (await rows(app, Item), await rows(app, IdempotencyKey)) == (2, 0)


async def test_a_key_is_for_one_request(client: httpx2.AsyncClient, app: FastAPI) -> None:
    assert (await client.post(URL, json=CHAIR, headers=key("one"))).status_code == 201
    others = [
        await client.post(URL, json=CHAIR | {"price_cents": 2}, headers=key("one")),
        await client.post(f"{URL}?a=b", json=CHAIR, headers=key("one")),
        await client.post("/slow", json=CHAIR, headers=key("one")),
    ]
    for other in others:
        assert other.status_code == 422
        assert other.json()["detail"] == "This Idempotency-Key was sent with another request."
        assert "chair" not in other.text
    assert await rows(app, Item) == 1


@pytest.mark.parametrize("value", [b"", b"a" * 256, b"a b", b"\xc3\xa9", b"tab\there", b"\x7f"])
async def test_what_is_no_key_is_refused(client: httpx2.AsyncClient, app: FastAPI, value: bytes) -> None:
    answer = await client.post(URL, json=CHAIR, headers={b"Idempotency-Key": value})
    assert answer.status_code == 400
    assert "1 to 255 visible ASCII characters" in answer.json()["detail"]
    assert (await rows(app, Item), await rows(app, IdempotencyKey)) == (0, 0)


async def test_two_keys_are_none_and_every_visible_character_is_one(client: httpx2.AsyncClient) -> None:
    two = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert (await client.post("/slow", headers=two)).status_code == 400
    visible = "".join(map(chr, range(0x21, 0x7F)))
    for value in ("x", visible, "a" * 255, '"8e03978e-40d5-43e8-bc93-6894a57f9324"'):
        assert (await client.post("/slow", headers=key(value))).status_code == 201
        assert (await client.post("/slow", headers=key(value))).headers["idempotency-replayed"]


@pytest.mark.parametrize("number", [2, 20])
async def test_several_at_once_are_done_once(client: httpx2.AsyncClient, app: FastAPI, number: int) -> None:
    answers = await asyncio.gather(*(client.post("/slow", headers=key("one")) for _ in range(number)))
    assert [answer.status_code for answer in answers] == [201] * number
    assert len({answer.text for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == number - 1
    assert (app.state.calls, await rows(app, Item)) == (1, 1)


async def test_requests_with_other_keys_are_done_each(client: httpx2.AsyncClient, app: FastAPI) -> None:
    answers = await asyncio.gather(*(client.post("/by-user", headers=key(str(n))) for n in range(5)))
    assert len({answer.text for answer in answers}) == await rows(app, Item) == 5


async def test_several_processes_do_it_once(client: httpx2.AsyncClient, app: FastAPI, database: str) -> None:
    other = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER),
        env=os.environ | {"PYTHONPATH": str(ROOT), "DATABASE_URL": database, "APP_LOG_LEVEL": "ERROR"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert other.stdout is not None
    assert await other.stdout.readline() == b"ready\n"
    theirs, ours = await asyncio.gather(
        other.communicate(b"go\n"),
        asyncio.gather(*(client.post(URL, json=CHAIR, headers=key("one")) for _ in range(10))),
    )
    answers = json.loads(theirs[0]) + [[answer.status_code, answer.json().get("id")] for answer in ours]
    assert len(answers) == 20
    assert {status for status, _ in answers} == {201}
    assert len({item_id for _, item_id in answers}) == 1
    assert await rows(app, Item) == 1


async def test_who_waited_does_the_work_where_the_first_fails(
    client: httpx2.AsyncClient, app: FastAPI
) -> None:
    answers = await asyncio.gather(*(client.post("/fails-first", headers=key("one")) for _ in range(3)))
    assert sorted(answer.status_code for answer in answers) == [201, 201, 500]
    assert (app.state.calls, await rows(app, Item)) == (2, 1)


async def test_a_failure_leaves_nothing_and_the_key_free(client: httpx2.AsyncClient, app: FastAPI) -> None:
    taken = (await client.post(URL, json=CHAIR)).headers["location"]
    for body, status in ((CHAIR, 409), (CHAIR | {"price_cents": -1}, 422)):
        assert (await client.post(URL, json=body, headers=key("one"))).status_code == status
        assert (await rows(app, Item), await rows(app, IdempotencyKey)) == (1, 0)
    as_json = key("one") | {"Content-Type": "application/json"}
    assert (await client.post(URL, content=b"{", headers=as_json)).status_code == 422
    await client.delete(taken)
    answer = await client.post(URL, json=CHAIR, headers=key("one"))
    assert answer.status_code == 201
    assert "idempotency-replayed" not in answer.headers


@pytest.mark.parametrize("path", ["/stream", "/without-its-route"])
async def test_a_route_that_cannot_keep_its_answer_does_nothing(
    client: httpx2.AsyncClient, app: FastAPI, path: str
) -> None:
    assert (await client.post(path, headers=key("one"))).status_code == 500
    assert (await rows(app, Item), await rows(app, IdempotencyKey)) == (0, 0)
    assert (await client.post(path)).status_code == 200


async def test_a_key_is_kept_for_a_day(
    client: httpx2.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await client.post("/slow", headers=key("one"))
    begin = time.time()
    for seconds, same in ((KEPT_S - 30, True), (KEPT_S + 1, False), (KEPT_S + 2, False)):
        monkeypatch.setattr("time.time", lambda now=begin + seconds: now)
        again = await client.post("/slow", headers=key("one"))
        assert again.status_code == 201
        assert (again.text == first.text) == same, seconds
    assert (app.state.calls, await rows(app, IdempotencyKey)) == (2, 1)


async def test_expired_keys_go_as_new_ones_come(
    client: httpx2.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(MOST_SWEPT + 3):
        await client.post("/by-user", headers=key(str(number)))
    later = time.time() + KEPT_S + SWEEP_AFTER_S + 1
    monkeypatch.setattr("time.time", lambda: later)
    left = []
    for number in range(3):
        await client.post("/by-user", headers=key(f"new {number}".replace(" ", "-")))
        left.append(await rows(app, IdempotencyKey))
    assert left == [4, 2, 3]


async def test_a_key_belongs_to_who_sent_it(client: httpx2.AsyncClient, app: FastAPI) -> None:
    first = await client.post(URL, json=CHAIR, headers=key("guessed"))
    spoofed = key("guessed") | {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1"}
    async with from_address(app, "192.0.2.1") as other:
        for body in (CHAIR, CHAIR | {"price_cents": 2}):
            answer = await other.post(URL, json=body, headers=spoofed)
            # As it would be with a key of one's own.
            assert answer.status_code == 409
            assert first.json()["id"] not in answer.text


async def test_a_key_belongs_to_the_user_wherever_he_is(client: httpx2.AsyncClient, app: FastAPI) -> None:
    texts: dict[str, str] = {}
    for token in ("secret-a", "secret-b", "made up"):
        headers = key("one") | {"Authorization": token}
        texts[token] = (await client.post("/by-user", headers=headers)).text
        async with from_address(app, "192.0.2.1") as elsewhere:
            same = (await elsewhere.post("/by-user", headers=headers)).text == texts[token]
        assert same == (token != "made up")
    assert len(set(texts.values())) == 3


async def test_the_header_is_documented(client: httpx2.AsyncClient) -> None:
    operation: dict[str, Any] = (await client.get("/openapi.json")).json()["paths"][URL]["post"]
    (header,) = operation["parameters"]
    assert (header["name"], header["in"], header["required"]) == ("Idempotency-Key", "header", False)
    assert "24 hours" in header["description"]
