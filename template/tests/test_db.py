"""Transactions, readiness, and a database that is away."""

import asyncio
import time
from dataclasses import replace

import httpx2
import pytest
from alembic import command
from alembic.config import Config
from anyio import to_thread
from fastapi import FastAPI
from sqlalchemy import QueuePool, text

from app.db import ALEMBIC_INI, Db, Reading, Writing, uuid7
from app.exchange import budget
from app.main import Settings, create_app
from app.metrics import POOL_TIMEOUTS
from app.settings import load
from tests.conftest import client_of


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """The application with routes that use the database in unusual ways."""
    app = create_app(settings)

    @app.post("/fails-at-the-end")
    async def fails_at_the_end(session: Writing) -> None:
        await session.execute(text("DELETE FROM items"))
        raise RuntimeError("after the work")

    @app.post("/writes-while-reading")
    async def writes_while_reading(session: Reading) -> None:
        await session.execute(text("DELETE FROM items"))

    @app.post("/never-ends", dependencies=[budget(0.2)])
    async def never_ends(session: Writing) -> None:
        await session.execute(text("DELETE FROM items"))
        await asyncio.sleep(60)

    return app


async def test_a_route_over_its_budget_is_rolled_back_and_gives_its_connection_back(
    client: httpx2.AsyncClient, app: FastAPI
) -> None:
    await client.post("/api/v1/items", json={"name": "chair", "price_cents": 1})
    for _ in range(2):
        assert (await client.post("/never-ends")).status_code == 504
    assert len((await client.get("/api/v1/items")).json()["items"]) == 1
    db: Db = app.state.db
    for engine in (db.reader, db.writer):
        assert isinstance(engine.pool, QueuePool)
        assert engine.pool.checkedout() == 0
    assert (await client.post("/api/v1/items", json={"name": "table", "price_cents": 1})).status_code == 201


async def test_an_error_in_the_route_rolls_its_transaction_back(client: httpx2.AsyncClient) -> None:
    await client.post("/api/v1/items", json={"name": "chair", "price_cents": 1})
    assert (await client.post("/fails-at-the-end")).status_code == 500
    assert len((await client.get("/api/v1/items")).json()["items"]) == 1


async def test_what_only_reads_cannot_write(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/writes-while-reading")).status_code == 500


async def test_a_database_that_is_away_makes_503_and_leaves_the_service_alive(
    unreachable_database: None,
) -> None:
    async with client_of(create_app(load(Settings))) as client:
        assert (await client.get("/health")).status_code == 200
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()["failed"]) == (503, {"db": "unavailable"})
        for answer in (
            await client.get("/api/v1/items"),
            await client.post("/api/v1/items", json={"name": "chair", "price_cents": 1}),
        ):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "5"
            assert answer.json()["detail"] == "The database is not available."


async def test_a_full_pool_makes_503_in_time_and_leaves_routes_without_the_database_alone(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setenv("DATABASE_POOL_SIZE", "2")
    monkeypatch.setenv("DATABASE_POOL_OVERFLOW", "0")
    monkeypatch.setenv("DATABASE_CHECKOUT_TIMEOUT_S", "0.5")
    app = create_app(load(Settings))
    holding = asyncio.Semaphore(0)
    end = asyncio.Event()

    @app.get("/holds")
    async def holds(session: Reading) -> None:
        holding.release()
        await end.wait()

    timeouts = POOL_TIMEOUTS._value.get()
    async with client_of(app) as client:
        slow = [asyncio.create_task(client.get("/holds")) for _ in range(2)]
        for _ in slow:
            await holding.acquire()
        waiting = [asyncio.create_task(client.get("/api/v1/items")) for _ in range(3)]
        for _ in range(5):
            assert (await client.get("/health")).status_code == 200
        assert not any(request.done() for request in waiting)
        started = time.monotonic()
        for answer in await asyncio.gather(*waiting):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        # SQLAlchemy's own default is 30.
        assert time.monotonic() - started < 15
        assert not any(request.done() for request in slow)
        assert POOL_TIMEOUTS._value.get() == timeouts + 3
        end.set()
        assert [answer.status_code for answer in await asyncio.gather(*slow)] == [200, 200]
        assert (await client.get("/api/v1/items")).status_code == 200


def test_a_request_waits_two_seconds_for_a_connection_and_no_longer(settings: Settings) -> None:
    assert settings.db.checkout_timeout_s == 2


async def test_not_ready_until_the_schema_has_what_the_code_needs(empty_database: str) -> None:
    async with client_of(create_app(load(Settings))) as client:
        answer = await client.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["failed"]["db"].startswith("the schema lacks revision")


async def test_ready_with_a_newer_schema_but_not_with_an_older(
    empty_database: str,
) -> None:
    await to_thread.run_sync(command.upgrade, Config(ALEMBIC_INI), "head")
    app = create_app(load(Settings))
    async with client_of(app) as client:
        assert (await client.get("/ready")).status_code == 200
        db: Db = app.state.db
        async with db.writer.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = 'from_a_newer_one'"))
        assert (await client.get("/ready")).status_code == 200
        older = replace(db, revisions=db.revisions | {"from_a_newer_one"}, head="the_newest")
        with pytest.raises(Exception, match="lacks revision the_newest"):
            await older.check()


def test_ids_sort_by_the_time_of_their_creation() -> None:
    ids = [uuid7() for _ in range(3)]
    assert all(made.version == 7 and made.variant == "specified in RFC 4122" for made in ids)
    assert len(set(ids)) == 3
