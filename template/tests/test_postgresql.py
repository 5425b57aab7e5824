"""What is particular to PostgreSQL."""

import asyncio

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import Connection, func, select, text

from app.db import Db, Reading
from app.exchange import budget
from app.main import Settings, create_app
from app.postgresql import (
    MIGRATION_LOCK,
    DbSettings,
    migration_engine,
    migration_lock,
    warn_if_over_budget,
    workers_within_budget,
)
from app.settings import SettingsError, load
from tests.conftest import LogLines, client_of
from tests.fixtures.postgresql import execute


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """The application with a slow route."""
    app = create_app(settings)

    @app.get("/sleep")
    async def sleep(session: Reading, seconds: float) -> None:
        await session.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})

    @app.get("/sleep-over-budget", dependencies=[budget(0.2)])
    async def sleep_over_budget(session: Reading) -> None:
        await session.execute(text("SELECT pg_sleep(9)"))

    return app


async def test_a_statement_over_the_budget_is_ended_on_the_server_too(
    client: httpx2.AsyncClient, app: FastAPI
) -> None:
    answers = await asyncio.gather(*(client.get("/sleep-over-budget") for _ in range(10)))
    assert [answer.status_code for answer in answers] == [504] * 10
    db: Db = app.state.db
    asleep = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    async with asyncio.timeout(2), db.reader.connect() as connection:
        while (await connection.execute(asleep)).scalar_one():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)
    # As many as there are connections, all of which are free again.
    answers = await asyncio.gather(*(client.get("/sleep?seconds=0.1") for _ in range(10)))
    assert [answer.status_code for answer in answers] == [200] * 10


async def test_connections_that_died_in_the_pool_are_noticed(
    client: httpx2.AsyncClient, database: str, database_server: str
) -> None:
    await client.get("/api/v1/items")
    name = database.partition("?")[0].rpartition("/")[2]
    await execute(
        database_server,
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",  # noqa: S608 - a name that the tests made
    )
    assert (await client.get("/api/v1/items")).status_code == 200


async def test_a_statement_over_its_time_is_ended_by_the_server(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setenv("DATABASE_STATEMENT_TIMEOUT_S", "0.1")
    app = create_app(load(Settings))

    @app.get("/sleep")
    async def sleep(session: Reading) -> None:
        await session.execute(text("SELECT pg_sleep(60)"))

    async with client_of(app) as client:
        assert (await client.get("/sleep")).status_code == 503


async def test_an_abandoned_transaction_is_ended_by_the_server(
    client: httpx2.AsyncClient, app: FastAPI
) -> None:
    db: Db = app.state.db
    async with db.reader.connect() as connection:
        limit = await connection.execute(text("SHOW idle_in_transaction_session_timeout"))
        assert limit.scalar_one() == "1min"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://me@host/name", "postgresql+asyncpg://me@host/name"),
        ("postgresql://me:p%40ss@host:5433/name", "postgresql+asyncpg://me:p%40ss@host:5433/name"),
        ("postgresql+asyncpg://me@host/name", "postgresql+asyncpg://me@host/name"),
        ("postgresql://host/name?sslmode=require", "postgresql+asyncpg://host/name?ssl=require"),
    ],
)
def test_the_usual_forms_of_a_url_are_accepted(
    monkeypatch: pytest.MonkeyPatch, given: str, used: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", given)
    assert DbSettings.load().url.get_secret_value() == used


@pytest.mark.parametrize("url", ["mysql://hunter2@host/name", "postgresql://hunter2@host", "hunter2"])
def test_a_wrong_url_is_explained_and_not_told(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(SettingsError) as caught:
        DbSettings.load()
    assert "postgresql://user:password@host:5432/name" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_workers_share_the_connections_of_two_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_CONNECTION_LIMIT", "80")
    monkeypatch.setenv("DATABASE_POOL_SIZE", "6")
    monkeypatch.setenv("DATABASE_POOL_OVERFLOW", "4")
    assert workers_within_budget(DbSettings.load()) == 4


def test_too_many_connections_are_warned_of_with_the_figures(settings: Settings, log_lines: LogLines) -> None:
    warn_if_over_budget(settings.db, workers=1)
    assert log_lines() == []
    warn_if_over_budget(settings.db, workers=1000)
    (line,) = log_lines()
    assert (line["event"], line["level"]) == ("connection_budget_exceeded", "warning")
    assert (line["needed"], line["workers"], line["connections_per_worker"]) == (20_000, 1000, 10)
    assert 0 < line["allowed"] < line["needed"]


def test_a_database_that_is_away_at_the_start_only_warns(
    unreachable_database: None, log_lines: LogLines
) -> None:
    warn_if_over_budget(DbSettings.load(), workers=1)
    assert [line["event"] for line in log_lines()] == ["connection_budget_unknown"]


async def test_one_migration_at_a_time_and_none_that_blocks_everybody(settings: Settings) -> None:
    def work(connection: Connection) -> tuple[str, str]:
        with migration_lock(connection):
            lock_timeout = connection.execute(text("SHOW lock_timeout")).scalar_one()
            statement_timeout = connection.execute(text("SHOW statement_timeout")).scalar_one()
            connection.commit()
            return lock_timeout, statement_timeout

    engine = migration_engine(settings.db)
    async with engine.connect() as first, engine.connect() as second:
        assert await first.run_sync(work) == ("5s", "0")
        free = select(func.pg_try_advisory_lock(MIGRATION_LOCK))
        assert not (await second.execute(free)).scalar_one()
        await first.close()
        assert (await second.execute(free)).scalar_one()
    await engine.dispose()
