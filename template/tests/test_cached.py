"""Values that all workers share."""

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pydantic import BaseModel

from app import cached
from app.cache import CacheSettings, open_cache
from app.cached import LOCK_S, TIMEOUT_S, WRITE_S, Values
from tests.fixtures.redis import OwnRedis

SLOW_S = 0.2


class Price(BaseModel):
    """A value."""

    cents: int


class Shop:
    """A price in a store, asked for and changed by two workers."""

    def __init__(self, workers: list[Values], group: str) -> None:
        """Begin with a price of 1."""
        self.workers = workers
        self.group = group
        self.cents = 1
        self.reads = 0
        self.took_s = 0.0
        self.has_read = asyncio.Event()

    async def read(self) -> Price:
        """Read the store, at once."""
        self.reads += 1
        return Price(cents=self.cents)

    async def read_slowly(self) -> Price:
        """Read the store, and be slow after that."""
        price = await self.read()
        await asyncio.sleep(SLOW_S)
        return price

    def read_until(self, may_end: asyncio.Event) -> Callable[[], Awaitable[Price]]:
        """Read the store, which sets `has_read`, and give what was read when `may_end` is set."""

        async def read() -> Price:
            price = await self.read()
            self.has_read.set()
            await may_end.wait()
            return price

        return read

    async def ask(
        self, worker: int = 0, read: Callable[[], Awaitable[Price]] | None = None, **more: Any
    ) -> int:
        """Ask one worker for the price, in cents; `took_s` says how long that took."""
        started = time.monotonic()
        price = await self.workers[worker](self.group, "a", Price, read or self.read, **more)
        self.took_s = time.monotonic() - started
        return price.cents

    async def change(self, cents: int, worker: int = 0) -> None:
        """Change the price."""
        async with self.workers[worker].changing(self.group):
            self.cents = cents

    def counted(self, result: str) -> float:
        """How often the answer of Redis was `result`."""
        labels = {"cache": self.group, "result": result}
        return REGISTRY.get_sample_value("cache_requests_total", labels) or 0.0


@pytest.fixture
async def shop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Shop]:
    """A shop with a group of its own."""
    monkeypatch.setattr(cached, "RETRY_S", 0.1)
    if "own_redis" not in request.fixturenames:
        # On a busy machine a sound Redis may be slow, too.
        monkeypatch.setattr(cached, "TIMEOUT_S", 30)
        monkeypatch.setenv("REDIS_TIMEOUT_S", "30")
        monkeypatch.setenv("REDIS_CONNECT_TIMEOUT_S", "30")
    async with AsyncExitStack() as stack:
        caches = [await stack.enter_async_context(open_cache(CacheSettings.load())) for _ in range(2)]
        yield Shop([cache.values("test", 30.0) for cache in caches], secrets.token_hex(8))


async def test_of_many_that_ask_at_once_one_computes(shop: Shop) -> None:
    answers = await asyncio.gather(*(shop.ask(number % 2, shop.read_slowly) for number in range(50)))
    assert (set(answers), shop.reads) == ({1}, 1)
    assert shop.counted("miss") == 50
    assert await shop.ask(1) == 1
    assert (shop.reads, shop.counted("hit")) == (1, 1)


async def test_what_takes_too_long_is_computed_by_those_that_wait(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = asyncio.Event()
    first = asyncio.create_task(shop.ask(0, shop.read_until(may_end)))
    await shop.has_read.wait()
    monkeypatch.setattr(cached, "LOCK_S", SLOW_S)
    assert await shop.ask(1) == 1
    assert shop.took_s < LOCK_S / 2, "it waited until the lock ran out"
    assert shop.reads == 2
    may_end.set()
    assert await first == 1


async def test_an_error_is_raised_and_the_next_computes(shop: Shop) -> None:
    begun = asyncio.Event()

    async def fail() -> Price:
        begun.set()
        await asyncio.sleep(SLOW_S)
        raise LookupError

    first = asyncio.create_task(shop.ask(0, fail))
    await begun.wait()
    assert await shop.ask(1) == 1
    assert shop.took_s < LOCK_S, "the lock was not opened"
    with pytest.raises(LookupError):
        await first


@pytest.mark.parametrize("writer", [0, 1])
async def test_what_was_read_before_a_write_is_never_given_after_it(shop: Shop, writer: int) -> None:
    may_end = asyncio.Event()
    reader = asyncio.create_task(shop.ask(0, shop.read_until(may_end)))
    await shop.has_read.wait()
    await shop.change(2, writer)
    may_end.set()
    assert await reader == 1
    assert await shop.ask(0) == 2
    assert await shop.ask(1) == 2


async def test_a_write_ends_what_was_kept_also_where_it_fails(shop: Shop) -> None:
    assert await shop.ask() == 1
    await shop.change(2, 1)
    assert (await shop.ask(), shop.counted("stale")) == (2, 1)
    with suppress(LookupError):
        async with shop.workers[0].changing(shop.group):
            # The commit may have been done, and its answer lost.
            shop.cents = 3
            raise LookupError
    assert await shop.ask(1) == 3


async def test_while_a_write_goes_on_nothing_is_kept(shop: Shop) -> None:
    assert await shop.ask() == 1
    async with shop.workers[0].changing(shop.group):
        assert [await shop.ask(1), await shop.ask(1)] == [1, 1]
        assert shop.reads == 3
        shop.cents = 2
    assert [await shop.ask(1), await shop.ask(0)] == [2, 2]
    assert shop.reads == 4


async def test_a_worker_that_died_while_it_wrote_leaves_nothing_stale(shop: Shop) -> None:
    assert await shop.ask() == 1
    died = shop.workers[0].changing(shop.group)
    await died.__aenter__()
    shop.cents = 2
    assert [await shop.ask(1), await shop.ask(1)] == [2, 2]
    client = shop.workers[1].client
    (name,) = [key async for key in client.scan_iter(f"*{shop.group}") if b":generation:" in key]
    assert 0 < await client.ttl(name) <= WRITE_S, "nothing is kept for ever after"
    await client.delete(name)
    assert [await shop.ask(1), await shop.ask(1)] == [2, 2]
    assert shop.reads == 4
    await died.__aexit__(None, None, None)


async def test_a_value_is_kept_for_its_time(shop: Shop) -> None:
    client = shop.workers[0].client

    async def left_s() -> list[int]:
        return [await client.ttl(key) async for key in client.scan_iter(f"*:value:{shop.group}:*")]

    assert await shop.ask(ttl_s=0.01) == 1
    await asyncio.sleep(0.1)
    shop.cents = 2
    assert await shop.ask(ttl_s=3600) == 2
    (left,) = await left_s()
    assert 0 < left <= 30
    await shop.change(3)
    assert await shop.ask(ttl_s=10) == 3
    (left,) = await left_s()
    assert 0 < left <= 10


async def test_a_time_of_0_keeps_nothing(shop: Shop) -> None:
    shop.workers[0].ttl_s = 0
    assert [await shop.ask(), await shop.ask()] == [1, 1]
    assert shop.reads == 2


async def test_values_are_json_of_their_shape(shop: Shop) -> None:
    class Priced(BaseModel):
        cents: int
        currency: str = "EUR"

    async def read() -> Priced:
        return Priced(cents=1, currency="SEK")

    await shop.ask()
    client = shop.workers[0].client
    (name,) = [key async for key in client.scan_iter(f"*:value:{shop.group}:*")]
    kept = await client.get(name)
    assert isinstance(kept, bytes)
    assert kept[2 * cached.TOKEN_BYTES :] == b'{"cents":1}'
    assert (await shop.workers[0](shop.group, "a", Priced, read)).currency == "SEK"
    assert (await shop.workers[0](shop.group, "b", tuple[int, ...], lambda: answer((1, 2)))) == (1, 2)

    await client.set(name, kept[: 2 * cached.TOKEN_BYTES] + b"{}")
    assert await shop.ask() == 1


async def answer(value: tuple[int, ...]) -> tuple[int, ...]:
    """Compute nothing."""
    return value


async def test_without_redis_everything_is_computed_and_nobody_waits(own_redis: OwnRedis, shop: Shop) -> None:
    assert [await shop.ask(), await shop.ask()] == [1, 1]
    assert shop.reads == 1
    own_redis.kill()
    assert [await shop.ask(), await shop.ask(), shop.reads] == [1, 1, 3]
    assert shop.took_s < TIMEOUT_S
    await shop.change(2)
    assert [await shop.ask(0), await shop.ask(1)] == [2, 2]
    assert shop.counted("error") == 4
    own_redis.start()
    await asyncio.sleep(2 * cached.RETRY_S)
    before = shop.reads
    assert [await shop.ask(), await shop.ask(), shop.reads] == [2, 2, before + 1]


async def test_redis_may_go_while_a_value_is_computed(own_redis: OwnRedis, shop: Shop) -> None:
    async def read() -> Price:
        own_redis.kill()
        return await shop.read()

    assert await shop.ask(0, read) == 1
    assert shop.took_s < 2 * TIMEOUT_S


async def test_a_redis_that_hangs_is_waited_for_once(own_redis: OwnRedis, shop: Shop) -> None:
    await shop.ask()
    own_redis.signal(signal.SIGSTOP)
    started = time.monotonic()
    answers = await asyncio.gather(*(shop.ask() for _ in range(20)))
    assert time.monotonic() - started < len(answers) * TIMEOUT_S / 2, "each waited for the one before"
    assert set(answers) == {1}
    assert await shop.ask() == 1
    assert shop.took_s < TIMEOUT_S


async def test_a_write_that_redis_did_not_hear_of_is_told_before_it_is_believed_again(
    own_redis: OwnRedis, shop: Shop
) -> None:
    assert [await shop.ask(0), await shop.ask(1)] == [1, 1]
    own_redis.signal(signal.SIGSTOP)
    await shop.change(2)
    assert shop.workers[0].pending
    own_redis.signal(signal.SIGCONT)
    # Of the other worker nothing can be said yet; this one does not believe what Redis still has.
    assert await shop.ask(0) == 2
    await asyncio.sleep(2 * cached.RETRY_S)
    assert await shop.ask(0) == 2
    assert not shop.workers[0].pending
    assert await shop.ask(1) == 2


async def test_a_value_that_reaches_redis_late_does_not_live_longer(
    own_redis: OwnRedis, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "LOCK_S", TIMEOUT_S)

    async def read() -> Price:
        price = await shop.read()
        own_redis.signal(signal.SIGSTOP)
        return price

    assert await shop.ask(0, read, ttl_s=2 * TIMEOUT_S) == 1
    await asyncio.sleep(2 * TIMEOUT_S)
    own_redis.signal(signal.SIGCONT)
    shop.cents = 2
    assert await shop.ask(1) == 2


async def test_a_worker_that_is_late_itself_does_not_blame_redis(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "TIMEOUT_S", TIMEOUT_S)

    async def be_busy() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
            time.sleep(0.6 * TIMEOUT_S)  # noqa: ASYNC251 - it shall block the event loop

    await shop.ask()
    answers = await asyncio.gather(shop.ask(), be_busy(), shop.ask(1))
    assert (answers[0], answers[2], shop.reads) == (1, 1, 1)
    assert not shop.counted("error")


async def test_a_write_that_ends_while_another_is_told_stays_pending(shop: Shop) -> None:
    values = shop.workers[0]
    told = values._ask

    async def tell(*commands: tuple[Any, ...]) -> list[Any]:
        values.pending[shop.group] = next(values.writes)
        return await told(*commands)

    values.pending[shop.group] = next(values.writes)
    values._ask = tell  # type: ignore[method-assign]
    await values._tell()
    assert shop.group in values.pending
