"""Counters in Redis: exact over all workers, and the same as in one process."""

import asyncio
import json
import os
import random
import sys
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from redis.asyncio import BlockingConnectionPool, Redis

from app.counters import SCRIPT, RedisCounters
from app.limits import Bucket, Counters, CountersAway, Rate, Window

ROOT = Path(__file__).parents[1]

# Another worker: so many requests at once, each by the same client.
WORKER = """
import asyncio, json, sys
from redis.asyncio import BlockingConnectionPool, Redis
from app.counters import RedisCounters
from app.limits import Rate

async def main(url, client):
    counters = RedisCounters(Redis.from_pool(BlockingConnectionPool.from_url(url, max_connections=20)), "test")
    await counters.count((Rate(1, 1),), "ready", exact=False)
    print("ready", flush=True)
    sys.stdin.readline()
    for exact in (True, False):
        found = await asyncio.gather(
            *(counters.count((Rate(100, 36_000),), client, exact=exact) for _ in range(150))
        )
        print(json.dumps([one.left for one in found if not one.over]))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    """A client of the Redis of the tests."""
    async with Redis.from_pool(BlockingConnectionPool.from_url(redis_url, max_connections=20)) as client:
        yield client


async def test_of_many_at_once_in_two_processes_exactly_so_many_are_let_through(
    redis: Redis, redis_url: str
) -> None:
    client = uuid.uuid4().hex
    other = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, redis_url, client),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert other.stdout is not None
    assert other.stdin is not None
    assert await other.stdout.readline() == b"ready\n"
    other.stdin.write(b"go\n")
    counters = RedisCounters(redis, "test")
    for exact in (True, False):
        ours = await asyncio.gather(
            *(counters.count((Rate(100, 36_000),), client, exact=exact) for _ in range(150))
        )
        theirs = json.loads(await other.stdout.readline())
        # Each that was let through has seen another number.
        assert sorted(theirs + [one.left for one in ours if not one.over]) == list(range(100))
    await other.communicate()


@pytest.mark.parametrize(("exact", "make"), [(True, Window), (False, Bucket)])
async def test_redis_counts_as_a_worker_does(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, exact: bool, make: type[Counters[object]]
) -> None:
    now_us = 1_700_000_000_123_456
    asks_the_time = "redis.call('TIME')"
    assert SCRIPT.count(asks_the_time) == 1
    script = redis.register_script(SCRIPT.replace(asks_the_time, "{ARGV[#ARGV - 1], ARGV[#ARGV]}"))

    async def at_this_time(keys: list[str], numbers: list[int]) -> object:
        return await script(keys, [*numbers, *divmod(now_us, 1_000_000)])

    shared = RedisCounters(redis, "test")
    own = make()
    monkeypatch.setattr(shared, "script", at_this_time)
    monkeypatch.setattr("time.monotonic_ns", lambda: now_us * 1000)
    client = uuid.uuid4().hex
    rates = (Rate(7, 60), Rate(11, 119))
    draw = random.Random(7)  # noqa: S311 - no secret
    over = 0
    for _ in range(300):
        found = await shared.count(rates, client, exact=exact)
        assert found == own.count(rates, client)
        over += found.over
        now_us += draw.choice(
            [0, 1, 8_571_428, 10_000_000, 59_999_999, found.more_us, draw.randrange(20_000_000)]
        )
    assert 0 < over < 300


@pytest.mark.parametrize("exact", [True, False])
async def test_a_client_is_let_through_again_when_it_was_told_to_come_and_is_forgotten_after(
    redis: Redis, exact: bool
) -> None:
    client = uuid.uuid4().hex
    counters = RedisCounters(redis, "test")
    rates = (Rate(5, 1),)
    found = [await counters.count(rates, client, exact=exact) for _ in range(6)]
    assert [one.over for one in found] == [False] * 5 + [True]
    await asyncio.sleep(found[-1].more_us / 1_000_000)
    assert not (await counters.count(rates, client, exact=exact)).over
    left_ms = [await redis.pttl(key) async for key in redis.scan_iter(f"test:*{client}")]
    assert len(left_ms) == 1
    assert 0 < left_ms[0] <= 1000


async def test_what_one_rate_refuses_counts_against_no_other(redis: Redis) -> None:
    counters = RedisCounters(redis, "test")
    for exact in (True, False):
        client = uuid.uuid4().hex
        rates = (Rate(10, 3600), Rate(2, 3600))
        found = [await counters.count(rates, client, exact=exact) for _ in range(5)]
        assert [one.over for one in found] == [False, False, True, True, True]
        assert (await counters.count((Rate(10, 3600),), client, exact=exact)).left == 7


async def test_a_redis_that_refuses_is_away(redis: Redis) -> None:
    client = uuid.uuid4().hex
    await redis.set(f"test:window:5/1:{client}", "not a list")
    with pytest.raises(CountersAway):
        await RedisCounters(redis, "test").count((Rate(5, 1),), client, exact=True)
