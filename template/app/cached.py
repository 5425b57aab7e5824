"""Cached: what is slow to read is computed once for all workers, and kept in Redis until a write or its age ends it.

A value counts only under the generation of its group that was there before it was computed. A write takes that
generation away before it begins and again after it was committed, and in between nothing is kept: what was computed
before a write is never given to who asks after it, also where the worker dies in the middle.

Without Redis everything is computed. A write that could not tell Redis does so when Redis is back, and until then its
worker believes nothing about the group. Other workers may still give what was true before that write, where Redis did
not lose it: until they hear of it, or it is `REDIS_TTL_S` old. So nothing is kept that decides who may do what.
"""

import asyncio
import hashlib
import itertools
import json
import math
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, NamedTuple, TypeVar

import structlog
from fastapi import Depends, Request
from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.metrics import CACHE

log = structlog.get_logger(__name__)

T = TypeVar("T")

# A Redis that does not answer delays one request in RETRY_S by TIMEOUT_S, and the others not at all.
TIMEOUT_S = 0.25
TURNS = 10
RETRY_S = 5.0
# So long one request computes for all; then those that wait for it compute, too.
LOCK_S = 3.0
# Those that wait look again after the first pause, then after twice that, up to the longest.
FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 0.1
# Longer than a request may take. Where a worker died while it wrote, nothing of the group is kept for so long.
WRITE_S = 60.0
GENERATION_S = 86_400.0

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
TOKEN_BYTES = 16
ADAPTERS: dict[type, tuple[TypeAdapter[Any], str]] = {}
WRITING = "writing"
# Only who took a lock may open it: it may have run out, and be another's.
UNLOCK = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end"


class Away(Exception):  # noqa: N818 - the name says what is the case
    """Redis does not answer, or is not to be believed."""


class Look(NamedTuple):
    """What Redis knows of a value; without a generation it may not be kept."""

    result: str
    generation: bytes = b""
    body: bytes = b""


class Values:
    """Values in Redis, each in a group that a write ends as a whole."""

    def __init__(self, client: Redis, name: str, ttl_s: float) -> None:
        """Keep values for at most `ttl_s` seconds, 0: none, under keys that begin with `name`."""
        self.client = client
        self.name = name
        self.ttl_s = ttl_s
        self.away = False
        self.retry_at = 0.0
        # Groups whose end Redis may not have heard of, with the number of the write that wants it.
        self.pending: dict[str, int] = {}
        self.writes = itertools.count()

    async def __call__(
        self,
        group: str,
        key: object,
        kind: type[T],
        compute: Callable[[], Awaitable[T]],
        *,
        ttl_s: float = math.inf,
    ) -> T:
        """Return the value of `key` in `group`, of the type `kind`; `compute` makes it where none is kept.

        Of many that ask at once one computes; the others wait for it up to `LOCK_S` seconds. A value is kept for `ttl_s`
        seconds, but no longer than `REDIS_TTL_S`. Also the one that computed gets what JSON made of it, so that what JSON
        cannot carry is noticed at once. What `compute` raises is raised, and not kept.
        """
        adapter, shape = adapter_of(kind)
        name = f"{self.name}:value:{group}:{shape}:{key}"
        token = secrets.token_hex(TOKEN_BYTES)
        look, lock = await self._find(group, name, token) if self.ttl_s else (Look("off"), "")
        try:
            if look.result == "hit":
                with suppress(ValidationError):
                    return adapter.validate_json(look.body)
            # Of the clock, so that a command which Redis executes late keeps nothing longer.
            ends_at = time.time() + min(ttl_s, self.ttl_s)
            body = adapter.dump_json(await compute(), by_alias=True, round_trip=True)
            if look.generation:
                with suppress(Away):
                    await self._ask(("SET", name, look.generation + body, "PXAT", milliseconds(ends_at)))
        finally:
            if lock:
                with suppress(Away):
                    await self._ask(("EVAL", UNLOCK, 1, lock, token))
        return adapter.validate_json(body)

    @asynccontextmanager
    async def changing(self, group: str) -> AsyncGenerator[None]:
        """End what is kept of `group`, and keep nothing of it meanwhile; the transaction and its commit go inside."""
        marker = WRITING + secrets.token_hex(TOKEN_BYTES)
        try:
            with suppress(Away):
                ends_at = milliseconds(time.time() + WRITE_S)
                await self._ask(("SET", self._generation(group), marker, "PXAT", ends_at))
            yield
        finally:
            # Also after an error: nobody knows whether a commit that failed was done. And first, for an await may be cut.
            self.pending[group] = next(self.writes)
            await self._tell()

    async def _find(self, group: str, name: str, token: str) -> tuple[Look, str]:
        """Look for a value, and wait while another computes it; return also the lock where it was taken."""
        look = Look("error")
        with suppress(Away):
            look = await self._look(group, name)
        CACHE.labels(group, look.result).inc()
        until = time.monotonic() + LOCK_S
        pause_s = FIRST_PAUSE_S
        while look.generation and look.result != "hit":
            lock = f"{name}:{look.generation.decode()}"
            try:
                taken, kept = await self._ask(
                    ("SET", lock, token, "NX", "PX", milliseconds(LOCK_S)),
                    ("MGET", self._generation(group), name),
                )
            except Away:
                return Look("error"), ""
            look = read(*kept)
            if taken or time.monotonic() >= until:
                return look, lock if taken else ""
            if look.result != "hit":
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return look, ""

    async def _look(self, group: str, name: str) -> Look:
        if group in self.pending:
            await self._tell()
            if group in self.pending:
                raise Away
        generation = self._generation(group)
        (kept,) = await self._ask(("MGET", generation, name))
        if kept[0] is None:
            _, kept = await self._ask(
                ("SET", generation, secrets.token_hex(TOKEN_BYTES), "NX", "PX", milliseconds(GENERATION_S)),
                ("MGET", generation, name),
            )
        return read(*kept)

    async def _tell(self) -> None:
        """Tell Redis which groups have ended; those of which it cannot hear now stay pending."""
        told = dict(self.pending)
        with suppress(Away):
            await self._ask(("DEL", *map(self._generation, told)))
            for group, write in told.items():
                # Another write may have come meanwhile.
                if self.pending.get(group) == write:
                    del self.pending[group]

    async def _ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Have Redis execute commands, all at once.

        Raises:
            Away: it does not answer in time, or did not a moment ago.
        """
        now = time.monotonic()
        if now < self.retry_at:
            raise Away
        if self.away:
            # One request looks whether it is back, those beside it do not wait.
            self.retry_at = now + RETRY_S
        try:
            answers = await in_time(self._execute(commands))
        except (RedisError, OSError) as error:
            if not self.away:
                log.warning("cache_away", error=repr(error))
            self.away = True
            self.retry_at = time.monotonic() + RETRY_S
            raise Away from error
        if self.away:
            log.info("cache_back")
        self.away = False
        self.retry_at = 0.0
        return answers

    async def _execute(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        async with self.client.pipeline() as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute()

    def _generation(self, group: str) -> str:
        return f"{self.name}:generation:{group}"


async def in_time(asked: Coroutine[Any, Any, T]) -> T:
    """Wait for `TIMEOUT_S` seconds of an event loop that turns: where this worker is late itself, Redis is not to blame.

    Raises:
        TimeoutError: it did not answer.
    """
    task = asyncio.create_task(asked)
    try:
        for _ in range(TURNS):
            await asyncio.wait({task}, timeout=TIMEOUT_S / TURNS)
            if task.done():
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()


def read(generation: bytes | None, value: bytes | None) -> Look:
    """Compare a value with the generation of its group."""
    if generation is None or generation.startswith(WRITING.encode()):
        return Look("stale" if value else "miss")
    if value is None:
        return Look("miss", generation)
    if not value.startswith(generation):
        return Look("stale", generation)
    return Look("hit", generation, value[len(generation) :])


def adapter_of(kind: type[T]) -> tuple[TypeAdapter[T], str]:
    """Return what makes JSON of a type, and a name of its shape: two releases with different ones share no values."""
    if kind not in ADAPTERS:
        adapter = TypeAdapter(kind)
        shape = json.dumps(adapter.json_schema(), sort_keys=True)
        ADAPTERS[kind] = (adapter, hashlib.sha256(shape.encode()).hexdigest()[:16])
    return ADAPTERS[kind]


def milliseconds(seconds: float) -> int:
    """Return whole milliseconds, as Redis wants them."""
    return math.ceil(seconds * 1000)


def cached(request: Request) -> Values:
    """Give a route the values that all workers share."""
    values: Values = request.app.state.cached
    return values


Cached = Annotated[Values, Depends(cached)]


def changes(group: str) -> Any:
    """Return a dependency for routes that read and write what is kept in `group`: a request that may write ends it."""

    async def around(request: Request, values: Cached) -> AsyncGenerator[None]:
        if request.method in SAFE:
            yield
        else:
            async with values.changing(group):
                yield

    # "function": as a transaction it ends before the response is sent, and after the transaction, for it began before.
    return Depends(around, scope="function")
