"""SQLite: its settings, its engines and its one writer."""

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict
from sqlalchemy import Connection, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from app.settings import DEVELOPMENT_ONLY, EnvSettings, Seconds

CONNECT_ERRORS = (SQLAlchemyError, OSError)

# The primary result codes of errors that pass: another writer, a full disk, a file that is away.
PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
}

MIGRATION_LOCK_WAIT_S = 600
# All of a migration in one transaction; a table is changed by copying it, as SQLite's ALTER TABLE can little.
MIGRATION_OPTIONS: dict[str, Any] = {"transactional_ddl": True, "render_as_batch": True}


class DbSettings(EnvSettings):
    """SQLite."""

    model_config = SettingsConfigDict(env_prefix="DATABASE_")

    url: SecretStr = Field(
        SecretStr("sqlite+aiosqlite:///dev.db"),
        json_schema_extra=DEVELOPMENT_ONLY,
        description="Where the database file is: `sqlite:////var/lib/service/app.db` (four slashes: absolute).",
    )
    pool_size: int = Field(5, ge=1, description="Connections that a worker keeps open for reading.")
    checkout_timeout_s: Seconds = Field(
        2.0, description="Seconds that a request waits for a free connection before it gets 503."
    )
    busy_timeout_s: Seconds = Field(
        5.0, description="Seconds to wait for another process that writes, before the request gets 503."
    )

    @field_validator("url")
    @classmethod
    def use_aiosqlite(cls, value: SecretStr) -> SecretStr:
        """Accept the usual forms of an SQLite URL; the driver is always aiosqlite."""
        try:
            url = make_url(value.get_secret_value())
        except (ArgumentError, ValueError):
            raise ValueError("is no URL; write sqlite:////var/lib/service/app.db") from None
        if url.drivername not in {"sqlite", "sqlite+aiosqlite"} or url.database in {None, "", ":memory:"}:
            raise ValueError("must name a file, as in sqlite:////var/lib/service/app.db")
        if not Path(str(url.database)).absolute().parent.is_dir():
            raise ValueError("names a file in a folder that does not exist")
        return SecretStr(url.set(drivername="sqlite+aiosqlite").render_as_string())

    @property
    def connections_per_worker(self) -> int:
        """The most connections that one worker opens: those for reading, and the one for writing."""
        return self.pool_size + 1


def create_engines(settings: DbSettings) -> tuple[AsyncEngine, AsyncEngine]:
    """Return an engine for reading and one, of a single connection, for writing."""
    url = settings.url.get_secret_value()
    timeout = {"pool_timeout": settings.checkout_timeout_s}
    reader = create_async_engine(url, pool_size=settings.pool_size, max_overflow=0, **timeout)
    writer = create_async_engine(url, pool_size=1, max_overflow=0, **timeout)
    busy_timeout_s = settings.busy_timeout_s
    _configure(reader, begin="BEGIN", busy_timeout_s=busy_timeout_s, more=("query_only = ON",))
    _configure(writer, begin="BEGIN IMMEDIATE", busy_timeout_s=busy_timeout_s)
    return reader, writer


def is_unavailable(error: DBAPIError) -> bool:
    """Return whether trying again later may help."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in PASSING


def migration_engine(settings: DbSettings) -> AsyncEngine:
    """Return an engine for migrations: it waits long for other writers, and lets tables be replaced."""
    engine = create_async_engine(settings.url.get_secret_value(), poolclass=NullPool)
    _configure(
        engine,
        begin="BEGIN IMMEDIATE",
        busy_timeout_s=MIGRATION_LOCK_WAIT_S,
        more=("foreign_keys = OFF",),
    )
    return engine


@contextmanager
def migration_lock(connection: Connection) -> Generator[None]:
    """Let one migration run at a time, and refuse its outcome when it breaks a foreign key.

    The transaction itself is the lock: it began as the only writer.

    Raises:
        RuntimeError: rows refer to rows that are gone; everything is rolled back.
    """
    with connection.begin():
        yield
        if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall():
            tables = sorted({row[0] for row in broken})
            raise RuntimeError(f"The migration leaves broken foreign keys in {', '.join(tables)}")


def _configure(engine: AsyncEngine, *, begin: str, busy_timeout_s: float, more: tuple[str, ...] = ()) -> None:
    pragmas = (
        f"busy_timeout = {round(busy_timeout_s * 1000)}",
        "journal_mode = WAL",
        "synchronous = NORMAL",
        "foreign_keys = ON",
        *more,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def connect(dbapi_connection: Any, _record: object) -> None:
        # The driver would begin transactions by itself, and too late for reads that a write relies on.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)
