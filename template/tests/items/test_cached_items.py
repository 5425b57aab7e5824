"""Items that are kept in Redis."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import pytest
from prometheus_client import REGISTRY
from sqlalchemy.ext.asyncio import AsyncSession

from app import cached
from app.items import queries
from app.items.models import Item
from app.main import Settings, create_app
from app.settings import load
from tests.conftest import client_of
from tests.fixtures.redis import OwnRedis
from tests.items.test_routes import URL, create

NEW = {"name": "table", "price_cents": 9900}


@pytest.fixture
async def workers(client: httpx2.AsyncClient) -> AsyncGenerator[list[httpx2.AsyncClient]]:
    """Clients of two workers."""
    async with client_of(create_app(load(Settings))) as other:
        yield [client, other]


def counted(result: str) -> float:
    """How often the answer of Redis was `result`."""
    labels = {"cache": "items", "result": result}
    return REGISTRY.get_sample_value("cache_requests_total", labels) or 0.0


async def answer(client: httpx2.AsyncClient, url: str) -> tuple[int, dict[str, str], bytes]:
    """All of an answer but its id."""
    got = await client.get(url)
    headers = {name: value for name, value in got.headers.items() if name != "x-request-id"}
    return got.status_code, headers, got.content


async def test_an_answer_is_the_same_with_and_without_redis(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{URL}/{(await create(client, 'Stühle 🪑'))['id']}"
    hits = counted("hit")
    first = await answer(client, url)
    kept = await answer(client, url)
    assert counted("hit") == hits + 1
    monkeypatch.setenv("REDIS_TTL_S", "0")
    async with client_of(create_app(load(Settings))) as other:
        read = await answer(other, url)
    assert counted("hit") == hits + 1
    assert first == kept == read
    assert (read[0], read[1]["etag"]) == (200, '"1"')


async def test_what_one_worker_writes_all_give_at_once(workers: list[httpx2.AsyncClient]) -> None:
    url = f"{URL}/{(await create(workers[0]))['id']}"
    for number in range(4):
        writer, reader = workers[number % 2], workers[1 - number % 2]
        assert (await reader.get(url)).headers["etag"] == f'"{number + 1}"'
        new = {"name": f"chair {number}", "price_cents": number}
        assert (await writer.put(url, json=new, headers={"If-Match": "*"})).status_code == 200
        read = [(await worker.get(url)).json()["price_cents"] for worker in (reader, writer)]
        assert read == [number, number]
    refused = await workers[0].put(url, json=NEW, headers={"If-Match": '"1"'})
    assert refused.status_code == 412
    assert (await workers[1].get(url)).json()["name"] == "chair 3"
    assert (await workers[0].delete(url)).status_code == 204
    assert [(await worker.get(url)).status_code for worker in workers] == [404, 404]


async def test_a_slow_reader_leaves_nothing_behind_for_those_after_a_write(
    workers: list[httpx2.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{URL}/{(await create(workers[0]))['id']}"
    has_read, may_end = asyncio.Event(), asyncio.Event()
    get = queries.get

    async def read(session: AsyncSession, item_id: uuid.UUID) -> Item | None:
        item = await get(session, item_id)
        has_read.set()
        await may_end.wait()
        return item

    with monkeypatch.context() as patch:
        patch.setattr(queries, "get", read)
        slow = asyncio.create_task(workers[0].get(url))
        await has_read.wait()
    await workers[1].put(url, json=NEW, headers={"If-Match": "*"})
    may_end.set()
    assert (await slow).json()["name"] == "chair"
    assert [(await worker.get(url)).json()["name"] for worker in workers] == ["table", "table"]


async def test_many_readers_of_one_item_ask_the_database_once(
    workers: list[httpx2.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{URL}/{(await create(workers[0]))['id']}"
    reads = []
    get = queries.get

    async def read(session: AsyncSession, item_id: uuid.UUID) -> Any:
        reads.append(item_id)
        await asyncio.sleep(0.1)
        return await get(session, item_id)

    monkeypatch.setattr(queries, "get", read)
    answers = await asyncio.gather(*(workers[number % 2].get(url) for number in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(reads) == 1


async def test_redis_may_be_killed_and_come_back(
    own_redis: OwnRedis, workers: list[httpx2.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached, "RETRY_S", 0.1)
    url = f"{URL}/{(await create(workers[0]))['id']}"
    await workers[1].get(url)
    own_redis.kill()
    assert (await workers[0].put(url, json=NEW, headers={"If-Match": '"1"'})).status_code == 200
    assert [(await worker.get(url)).json()["name"] for worker in workers] == ["table", "table"]
    own_redis.start()
    await asyncio.sleep(2 * cached.RETRY_S)
    hits = counted("hit")
    assert [(await worker.get(url)).json()["name"] for worker in workers * 2] == ["table"] * 4
    assert counted("hit") > hits
