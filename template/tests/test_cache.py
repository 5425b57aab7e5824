"""The Redis client."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import httpx2
import pytest
from fastapi import FastAPI

from app import limits, logs
from app.cache import CacheClient, CacheSettings
from app.limits import SHARED_TIMEOUT_S
from app.main import Settings, create_app
from app.settings import SettingsError, load
from tests.conftest import LogLines, client_of


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """The application with a route that counts in Redis."""
    app = create_app(settings)

    @app.post("/count")
    async def count(client: CacheClient) -> int:
        return int(await client.incr("count"))

    return app


@pytest.fixture
async def silent_redis(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
    """Where REDIS_URL says, somebody listens who never answers."""

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{port}/0")
    yield
    server.close()


async def test_a_route_gets_the_client(client: httpx2.AsyncClient) -> None:
    first = (await client.post("/count")).json()
    assert (await client.post("/count")).json() == first + 1


async def test_a_cache_that_is_away_is_named_and_leaves_the_service_alive(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setenv("REDIS_URL", "unix:///nowhere/redis.sock")
    async with client_of(create_app(load(Settings))) as client:
        assert (await client.get("/health")).status_code == 200
        answer = await client.get("/ready")
    assert (answer.status_code, answer.json()["failed"]) == (503, {"cache": "unavailable"})


async def test_a_cache_that_does_not_answer_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, silent_redis: None
) -> None:
    monkeypatch.setenv("REDIS_TIMEOUT_S", "0.2")
    app = create_app(load(Settings))
    async with client_of(app):
        started = time.monotonic()
        with pytest.raises(Exception, match=r"(?i)timeout"):
            await app.state.cache.check()
        assert time.monotonic() - started < app.state.settings.app.ready_timeout_s


async def test_workers_count_together_and_each_by_itself_while_redis_is_away(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setenv("APP_RATE_LIMIT", "3/hour")
    # A busy machine may take its time.
    monkeypatch.setattr(limits, "SHARED_TIMEOUT_S", 30)
    address = f"192.0.2.{uuid.uuid4()}"
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(2):
            app = create_app(load(Settings))
            await stack.enter_async_context(app.router.lifespan_context(app))
            transport = httpx2.ASGITransport(app, client=(address, 1))
            clients.append(httpx2.AsyncClient(transport=transport, base_url="http://localhost"))
        answers = [(await clients[n % 2].get("/nowhere")).status_code for n in range(5)]
        redis = app.state.cache.client
        left_s = [await redis.ttl(key) async for key in redis.scan_iter(f"*{address}*")]
        assert left_s
        assert min(left_s) > 0, "a counter stays for ever"
    assert answers == [404, 404, 404, 429, 429]


@pytest.mark.parametrize(("fail_open", "status"), [("true", 404), ("false", 503)])
async def test_requests_do_not_wait_for_a_redis_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    log_lines: LogLines,
    silent_redis: None,
    fail_open: str,
    status: int,
) -> None:
    monkeypatch.setenv("REDIS_LIMIT_FAIL_OPEN", fail_open)
    monkeypatch.setenv("APP_RATE_LIMIT", "100/second")
    async with client_of(create_app(load(Settings))) as client:
        logs.configure(json=True)
        started = time.monotonic()
        answers = [await client.get("/nowhere") for _ in range(20)]
        assert time.monotonic() - started < 10 * SHARED_TIMEOUT_S
    assert {answer.status_code for answer in answers} == {status}
    assert ("retry-after" in answers[0].headers) == (status == 503)
    assert [line["event"] for line in log_lines()].count("rate_limit_store_away") == 1


@pytest.mark.parametrize("url", ["hunter2", "http://hunter2@host"])
def test_a_wrong_url_is_explained_and_not_told(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(SettingsError, match="must begin with one of redis://") as caught:
        CacheSettings.load()
    assert "hunter2" not in str(caught.value)
