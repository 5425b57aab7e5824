"""Redis: a client that gives up in time, for what all workers share."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.cached import Values
from app.counters import RedisCounters
from app.settings import DEVELOPMENT_ONLY, EnvSettings, Seconds

SCHEMES = ("redis://", "rediss://", "unix://")


class CacheSettings(EnvSettings):
    """Redis."""

    model_config = SettingsConfigDict(env_prefix="REDIS_")

    url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        json_schema_extra=DEVELOPMENT_ONLY,
        description="Where Redis is: `redis://:password@host:6379/0`, `rediss://` with TLS,"
        " or `unix:///run/redis/redis.sock`.",
    )
    connect_timeout_s: Seconds = Field(1.0, description="Seconds to make a connection.")
    timeout_s: Seconds = Field(1.0, description="Seconds that a command may take.")
    max_connections: int = Field(20, ge=1, description="Connections that a worker opens at most.")
    limit_fail_open: bool = Field(
        True,
        description="While Redis is away, count requests against `APP_RATE_LIMIT` in each worker; `false`: refuse them"
        " with 503.",
    )

    ttl_s: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that a value which was read may be kept at most; 0: none is kept.",
    )

    @field_validator("url")
    @classmethod
    def check_scheme(cls, value: SecretStr) -> SecretStr:
        """Refuse what is no address of a Redis."""
        if not value.get_secret_value().startswith(SCHEMES):
            raise ValueError(f"must begin with one of {', '.join(SCHEMES)}")
        return value


@dataclass(frozen=True, slots=True)
class Cache:
    """The open cache."""

    client: Redis

    async def check(self) -> None:
        """Raise unless Redis answers."""
        await self.client.ping()

    def counters(self, name: str) -> RedisCounters:
        """Return counters for limits that all workers share; their keys begin with `name`."""
        return RedisCounters(self.client, name)

    def values(self, name: str, ttl_s: float) -> Values:
        """Return values that all workers share, each for at most `ttl_s` seconds; their keys begin with `name`."""
        return Values(self.client, name, ttl_s)


@asynccontextmanager
async def open_cache(settings: CacheSettings) -> AsyncGenerator[Cache]:
    """Open a client; connections are made when they are first needed."""
    pool = BlockingConnectionPool.from_url(
        settings.url.get_secret_value(),
        max_connections=settings.max_connections,
        timeout=settings.timeout_s,
        socket_timeout=settings.timeout_s,
        socket_connect_timeout=settings.connect_timeout_s,
        # The client's own retries would multiply these times.
        retry=Retry(NoBackoff(), 0),
    )
    client = Redis.from_pool(pool)
    try:
        yield Cache(client)
    finally:
        await client.aclose()


def cache(request: Request) -> Redis:
    """Give a route the client."""
    opened: Cache = request.app.state.cache
    return opened.client


CacheClient = Annotated[Redis, Depends(cache)]
