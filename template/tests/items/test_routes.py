"""Items over HTTP."""

import asyncio
import uuid
from typing import Any

import httpx2
import pytest

URL = "/api/v1/items"


async def create(client: httpx2.AsyncClient, name: str = "chair", price_cents: int = 4900) -> dict[str, Any]:
    """Create an item."""
    answer = await client.post(URL, json={"name": name, "price_cents": price_cents})
    assert answer.status_code == 201
    created: dict[str, Any] = answer.json()
    return created


async def test_what_was_created_can_be_read(client: httpx2.AsyncClient) -> None:
    answer = await client.post(URL, json={"name": "  chair ", "price_cents": 4900})
    assert answer.status_code == 201
    assert answer.headers["etag"] == '"1"'
    item = answer.json()
    assert item == {"id": item["id"], "name": "chair", "price_cents": 4900, "version": 1}
    read = await client.get(answer.headers["location"])
    assert (read.json(), read.headers["etag"]) == (item, '"1"')


async def test_a_name_can_be_taken_only_once_also_at_the_same_time(client: httpx2.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(client.post(URL, json={"name": "chair", "price_cents": 1}) for _ in range(4))
    )
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert len((await client.get(URL)).json()["items"]) == 1


@pytest.mark.parametrize(
    ("name", "price_cents"),
    [("", 1), ("   ", 1), ("a" * 201, 1), ("nul\x00", 1), ("chair", -1), ("chair", 1.5), ("chair", 2**31)],
)
async def test_bad_items_are_refused(client: httpx2.AsyncClient, name: str, price_cents: float) -> None:
    answer = await client.post(URL, json={"name": name, "price_cents": price_cents})
    assert answer.status_code == 422


async def test_pages_neither_repeat_nor_skip_while_items_come_and_go(client: httpx2.AsyncClient) -> None:
    ids = [(await create(client, f"chair {number}"))["id"] for number in range(7)]
    first = (await client.get(URL, params={"limit": 3})).json()
    assert [item["id"] for item in first["items"]] == ids[:3]
    await client.delete(f"{URL}/{ids[0]}")
    await client.delete(f"{URL}/{ids[2]}")
    new = (await create(client, "new"))["id"]
    second = (await client.get(URL, params={"limit": 3, "after": first["next"]})).json()
    third = (await client.get(URL, params={"limit": 3, "after": second["next"]})).json()
    assert [item["id"] for item in second["items"]] == ids[3:6]
    assert [item["id"] for item in third["items"]] == [ids[6], new]
    assert third["next"] is None


@pytest.mark.parametrize("limit", ["0", "101", "many"])
async def test_a_page_has_a_sensible_size(client: httpx2.AsyncClient, limit: str) -> None:
    assert (await client.get(URL, params={"limit": limit})).status_code == 422


async def test_an_update_must_name_the_version_it_was_made_from(client: httpx2.AsyncClient) -> None:
    url = f"{URL}/{(await create(client))['id']}"
    new = {"name": "table", "price_cents": 9900}
    assert (await client.put(url, json=new)).status_code == 428
    first = await client.put(url, json=new, headers={"If-Match": '"1"'})
    assert (first.status_code, first.headers["etag"]) == (200, '"2"')
    second = await client.put(url, json={"name": "bed", "price_cents": 1}, headers={"If-Match": '"1"'})
    assert second.status_code == 412
    assert (await client.get(url)).json()["name"] == "table"


async def test_of_two_updates_at_once_one_wins(client: httpx2.AsyncClient) -> None:
    url = f"{URL}/{(await create(client))['id']}"
    answers = await asyncio.gather(
        *(
            client.put(url, json={"name": f"chair {number}", "price_cents": 1}, headers={"If-Match": '"1"'})
            for number in range(4)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200, 412, 412, 412]


@pytest.mark.parametrize(("if_match", "status"), [("*", 200), ('W/"1"', 412), ("1", 412), ('"x"', 412)])
async def test_if_match_is_read_strictly(client: httpx2.AsyncClient, if_match: str, status: int) -> None:
    url = f"{URL}/{(await create(client))['id']}"
    answer = await client.put(url, json={"name": "table", "price_cents": 1}, headers={"If-Match": if_match})
    assert answer.status_code == status


async def test_an_update_cannot_take_the_name_of_another(client: httpx2.AsyncClient) -> None:
    await create(client, "chair")
    url = f"{URL}/{(await create(client, 'table'))['id']}"
    answer = await client.put(url, json={"name": "chair", "price_cents": 1}, headers={"If-Match": '"1"'})
    assert answer.status_code == 409
    assert (await client.get(url)).json()["name"] == "table"


async def test_a_deleted_item_is_gone(client: httpx2.AsyncClient) -> None:
    url = f"{URL}/{(await create(client))['id']}"
    assert (await client.delete(url)).status_code == 204
    assert (await client.get(url)).status_code == 404


async def test_an_item_that_never_was(client: httpx2.AsyncClient) -> None:
    url = f"{URL}/{uuid.uuid4()}"
    new = {"name": "chair", "price_cents": 1}
    assert (await client.get(url)).status_code == 404
    assert (await client.put(url, json=new, headers={"If-Match": "*"})).status_code == 404
    assert (await client.delete(url)).status_code == 404
