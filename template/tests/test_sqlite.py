"""What is particular to SQLite."""

import asyncio

import httpx2
import pytest
from alembic import command
from alembic.config import Config
from fastapi import FastAPI
from sqlalchemy import Connection, text

from app.db import ALEMBIC_INI, Db
from app.main import Settings, create_app
from app.settings import SettingsError, load
from app.sqlite import DbSettings, migration_engine, migration_lock
from tests.conftest import client_of


async def test_every_connection_is_configured(client: httpx2.AsyncClient, app: FastAPI) -> None:
    db: Db = app.state.db
    for engine in (db.reader, db.writer):
        async with engine.connect() as connection:
            for pragma, value in (("journal_mode", "wal"), ("foreign_keys", 1), ("busy_timeout", 5000)):
                assert (await connection.execute(text(f"PRAGMA {pragma}"))).scalar_one() == value


async def test_reading_goes_on_while_somebody_writes(client: httpx2.AsyncClient, app: FastAPI) -> None:
    db: Db = app.state.db
    async with db.writer.begin() as connection:
        await connection.execute(text("DELETE FROM items"))
        assert (await client.get("/api/v1/items")).status_code == 200


async def test_many_writers_take_turns(client: httpx2.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(client.post("/api/v1/items", json={"name": f"chair {n}", "price_cents": n}) for n in range(50))
    )
    assert {answer.status_code for answer in answers} == {201}


async def test_a_writer_that_waits_too_long_gets_503(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_BUSY_TIMEOUT_S", "0.1")
    other = create_app(settings)
    hasty = create_app(load(Settings))
    async with client_of(other), client_of(hasty) as client, other.state.db.writer.begin():
        answer = await client.post("/api/v1/items", json={"name": "chair", "price_cents": 1})
    assert answer.status_code == 503


def test_a_migration_that_breaks_a_foreign_key_is_rolled_back(empty_database: str) -> None:
    command.upgrade(Config(ALEMBIC_INI), "head")

    async def break_it() -> None:
        engine = migration_engine(DbSettings.load())
        async with engine.connect() as connection:
            await connection.run_sync(work)
        await engine.dispose()

    def work(connection: Connection) -> None:
        with migration_lock(connection):
            connection.exec_driver_sql("CREATE TABLE child (item TEXT REFERENCES items (id))")
            connection.exec_driver_sql("INSERT INTO child VALUES ('nobody')")

    with pytest.raises(RuntimeError, match="broken foreign keys in child"):
        asyncio.run(break_it())


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("mysql://host/name", "must name a file"),
        ("nonsense", "is no URL"),
        ("sqlite:////nowhere/at/all.db", "names a file in a folder that does not exist"),
    ],
)
def test_a_wrong_url_is_explained(monkeypatch: pytest.MonkeyPatch, url: str, wrong: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(SettingsError) as caught:
        DbSettings.load()
    assert caught.value.mistakes["DATABASE_URL"].startswith(wrong)
