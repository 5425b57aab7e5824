"""Rates over HTTP, with a stand-in for the service that they come from."""

from collections.abc import AsyncGenerator

import httpx2
import pytest

from app.main import Settings, create_app
from app.settings import load
from tests.conftest import client_of
from tests.peer import Peer, open_peer, reply

URL = "/api/v1/rates"
LATEST = b'{"amount":1.0,"base":"EUR","date":"2026-11-20","rates":{"USD":1.0837}}'


@pytest.fixture
async def source() -> AsyncGenerator[Peer]:
    """The service that rates come from."""
    async with open_peer(reply(200, LATEST)) as peer:
        yield peer


@pytest.fixture
async def rates(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, source: Peer
) -> AsyncGenerator[httpx2.AsyncClient]:
    """A client of the application that knows where rates come from."""
    monkeypatch.setenv("RATES_URL", f"{source.url}/v1")
    async with client_of(create_app(load(Settings))) as client:
        yield client


async def test_a_rate_is_what_the_other_service_says(rates: httpx2.AsyncClient, source: Peer) -> None:
    answer = await rates.get(f"{URL}/USD", headers={"X-Request-ID": "0123456789abcdef"})
    assert answer.json() == {"currency": "USD", "date": "2026-11-20", "rate": "1.0837"}
    (seen,) = source.seen
    assert seen.target == "/v1/latest?base=EUR&symbols=USD"
    assert seen.headers["x-request-id"] == "0123456789abcdef"


async def test_what_the_other_service_does_not_know_is_not_there(
    rates: httpx2.AsyncClient, source: Peer
) -> None:
    source.answers = [reply(404, b'{"message":"not found"}')]
    answer = await rates.get(f"{URL}/XXX")
    assert (answer.status_code, answer.json()["detail"]) == (404, "There is no rate for this currency.")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"date":"2026-11-20","rates":{}}', b"\xff"])
async def test_an_answer_that_makes_no_sense_is_no_crash(
    rates: httpx2.AsyncClient, source: Peer, body: bytes
) -> None:
    source.answers = [reply(200, body)]
    answer = await rates.get(f"{URL}/USD")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["detail"] == "The service rates is not available."


@pytest.mark.parametrize("currency", ["usd", "USDT", "US", "U%2F.", "%C3%84%C3%84%C3%84"])
async def test_only_a_currency_is_asked_for(rates: httpx2.AsyncClient, source: Peer, currency: str) -> None:
    assert (await rates.get(f"{URL}/{currency}")).status_code in {404, 422}
    assert not source.seen


async def test_without_an_address_there_are_no_rates(client: httpx2.AsyncClient) -> None:
    assert (await client.get(f"{URL}/USD")).status_code == 404
    assert not [path for path in (await client.get("/openapi.json")).json()["paths"] if "rates" in path]
