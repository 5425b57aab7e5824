"""PostgreSQL: its settings, engines, connection budget and migration lock."""

import asyncio
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import asyncpg
import structlog
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from app.settings import EnvSettings, Seconds

log = structlog.get_logger(__name__)

# asyncpg raises its own errors, and the socket's, until a connection stands.
CONNECT_ERRORS = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ssl.SSLError)

# SQLSTATE classes and codes of errors that pass: connection, resources, operator, statement timeout.
PASSING = ("08", "53", "57", "55P03")

# While a new release starts, the old one still has its connections.
RELEASES_AT_ONCE = 2

MIGRATION_LOCK = 7_243_392_001
MIGRATION_LOCK_WAIT = "10min"
DDL_LOCK_WAIT = "5s"
MIGRATION_OPTIONS: dict[str, Any] = {"transaction_per_migration": True}


class DbSettings(EnvSettings):
    """PostgreSQL."""

    model_config = SettingsConfigDict(env_prefix="DATABASE_")

    url: SecretStr = Field(
        description="Where the database is: `postgresql://user:password@host:5432/name`, or by unix socket"
        " `postgresql://user@/name?host=/run/postgresql`."
    )
    pool_size: int = Field(5, ge=1, description="Connections that a worker keeps open.")
    pool_overflow: int = Field(5, ge=0, description="Connections that a worker opens beyond that under load.")
    checkout_timeout_s: Seconds = Field(
        2.0, description="Seconds that a request waits for a free connection before it gets 503."
    )
    connect_timeout_s: Seconds = Field(3.0, description="Seconds to make a connection.")
    statement_timeout_s: Seconds = Field(10.0, description="Seconds after which the server ends a statement.")
    connection_limit: int = Field(
        80,
        ge=1,
        description="Connections that all workers of two releases side by side may open;"
        " caps the number of workers. PostgreSQL allows 100 by default, for all its clients.",
    )

    @field_validator("url")
    @classmethod
    def use_asyncpg(cls, value: SecretStr) -> SecretStr:
        """Accept the usual forms of a PostgreSQL URL; the driver is always asyncpg."""
        try:
            url = make_url(value.get_secret_value())
        except (ArgumentError, ValueError):
            raise ValueError("is no URL; write postgresql://user:password@host:5432/name") from None
        if url.drivername not in {"postgresql", "postgres", "postgresql+asyncpg"} or not url.database:
            raise ValueError("must look like postgresql://user:password@host:5432/name")
        query = dict(url.query)
        if sslmode := query.pop("sslmode", None):
            query["ssl"] = sslmode
        url = url.set(drivername="postgresql+asyncpg", query=query)
        return SecretStr(url.render_as_string(hide_password=False))

    @property
    def connections_per_worker(self) -> int:
        """The most connections that one worker opens."""
        return self.pool_size + self.pool_overflow


def create_engines(settings: DbSettings) -> tuple[AsyncEngine, AsyncEngine]:
    """Return an engine for reading and one for writing; they share one pool."""
    writer = create_async_engine(
        settings.url.get_secret_value(),
        pool_size=settings.pool_size,
        max_overflow=settings.pool_overflow,
        pool_timeout=settings.checkout_timeout_s,
        # Notices a connection that died while it lay in the pool.
        pool_pre_ping=True,
        connect_args={
            "timeout": settings.connect_timeout_s,
            "server_settings": {
                "statement_timeout": str(round(settings.statement_timeout_s * 1000)),
                "idle_in_transaction_session_timeout": "60s",
            },
        },
    )
    return writer.execution_options(postgresql_readonly=True), writer


def is_unavailable(error: DBAPIError) -> bool:
    """Return whether trying again later may help."""
    state = str(getattr(error.orig, "sqlstate", None) or "")
    return error.connection_invalidated or state.startswith(PASSING)


def workers_within_budget(settings: DbSettings) -> int:
    """Return how many workers may run so that two releases stay within `DATABASE_CONNECTION_LIMIT`."""
    return settings.connection_limit // (RELEASES_AT_ONCE * settings.connections_per_worker)


def budget_mistake(settings: DbSettings, workers: int) -> dict[str, Any] | None:
    """Return the figures when two releases could ask for more connections than the server allows, else None.

    Raises:
        CONNECT_ERRORS: the server cannot be asked.
    """
    allowed = asyncio.run(connections_allowed(settings))
    needed = RELEASES_AT_ONCE * workers * settings.connections_per_worker
    if needed <= allowed:
        return None
    return {
        "needed": needed,
        "allowed": allowed,
        "workers": workers,
        "connections_per_worker": settings.connections_per_worker,
        "releases": RELEASES_AT_ONCE,
        "mend": "lower WEB_CONCURRENCY or DATABASE_POOL_SIZE, or raise the server's max_connections",
    }


def warn_if_over_budget(settings: DbSettings, workers: int) -> None:
    """Warn when two releases could ask for more connections than the server allows."""
    try:
        mistake = budget_mistake(settings, workers)
    except CONNECT_ERRORS as error:
        log.warning("connection_budget_unknown", error=repr(error))
        return
    if mistake:
        log.warning("connection_budget_exceeded", **mistake)


async def connections_allowed(settings: DbSettings) -> int:
    """Ask the server how many connections it grants to all who are no superuser."""
    engine = create_async_engine(
        settings.url.get_secret_value(),
        poolclass=NullPool,
        connect_args={"timeout": settings.connect_timeout_s},
    )
    try:
        async with engine.connect() as connection:
            query = text(
                "SELECT current_setting('max_connections')::int"
                " - current_setting('superuser_reserved_connections')::int"
            )
            return int((await connection.execute(query)).scalar_one())
    finally:
        await engine.dispose()


def migration_engine(settings: DbSettings) -> AsyncEngine:
    """Return an engine for migrations: one connection, no limit on a statement's time."""
    return create_async_engine(
        settings.url.get_secret_value(),
        poolclass=NullPool,
        connect_args={"timeout": settings.connect_timeout_s},
    )


@contextmanager
def migration_lock(connection: Connection) -> Generator[None]:
    """Let one migration run at a time; the lock is the session's, so it outlives each transaction.

    DDL gives up after `DDL_LOCK_WAIT` rather than queue behind a long query, for everybody would queue behind it.
    """
    connection.execute(text(f"SET lock_timeout = '{MIGRATION_LOCK_WAIT}'"))
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
    connection.execute(text(f"SET lock_timeout = '{DDL_LOCK_WAIT}'"))
    connection.commit()
    # Closing the connection frees the lock, also when a migration fails.
    yield
