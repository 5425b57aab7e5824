"""Limits: who is counted as whom, what a refusal says, and that memory stays bounded."""

import re

import httpx2
import pytest
from fastapi import FastAPI, Request
from limits.aio.storage import MemoryStorage
from limits.errors import StorageError
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from app import limits
from app.limits import Counters, Limiter, LimitSettings, limit, network, parse, refusal
from app.main import Settings, create_app
from app.settings import SettingsError, load
from tests.conftest import LogLines, client_of


@pytest.fixture
def app(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The application, with few requests allowed."""
    monkeypatch.setenv("APP_RATE_LIMIT", "3/hour")
    monkeypatch.setenv("APP_CORS_ORIGINS", "https://app.test")
    app = create_app(load(Settings))

    @app.get("/here")
    async def here() -> None: ...

    @app.websocket("/socket")
    async def socket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    return app


def asking_from(app: FastAPI, address: str | None) -> httpx2.AsyncClient:
    """Return a client with an address, or one that comes over the unix socket itself."""
    # A unix socket has no client, which the transport's type does not foresee.
    transport = httpx2.ASGITransport(app, client=(address, 1) if address else None)  # type: ignore[arg-type]
    return httpx2.AsyncClient(transport=transport, base_url="http://localhost")


async def test_a_refusal_says_when_to_come_back_and_is_an_answer_like_any_other(
    app: FastAPI, log_lines: LogLines
) -> None:
    async with client_of(app) as client:
        for _ in range(3):
            assert (await client.get("/here")).status_code == 200
        refused = await client.get("/here", headers={"Origin": "https://app.test"})
        preflight = await client.options(
            "/here", headers={"Origin": "https://app.test", "Access-Control-Request-Method": "GET"}
        )
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["detail"] == "No more than 3 per 1 hour."
    wait_s = int(refused.headers["retry-after"])
    assert 0 < wait_s <= 3600
    assert refused.headers["ratelimit-policy"] == '"address";q=3;w=3600'
    assert refused.headers["ratelimit"] == f'"address";r=0;t={wait_s}'
    assert refused.headers["x-content-type-options"] == "nosniff"
    assert refused.headers["access-control-allow-origin"] == "https://app.test"
    assert preflight.status_code == 200
    (line,) = [line for line in log_lines() if line.get("status") == 429]
    assert line["request_id"] == refused.headers["x-request-id"]


async def test_each_address_is_counted_by_itself_and_the_socket_not_at_all(app: FastAPI) -> None:
    for address, times in (("192.0.2.1", 3), ("192.0.2.2", 3), (None, 9)):
        async with asking_from(app, address) as client:
            answers = [(await client.get("/health")).status_code for _ in range(times)]
            assert answers == [200] * times, address
    async with asking_from(app, "192.0.2.1") as client:
        spoofed = {
            "X-Forwarded-For": "203.0.113.9",
            "X-Real-IP": "203.0.113.9",
            "Forwarded": "for=203.0.113.9",
        }
        assert (await client.get("/here", headers=spoofed)).status_code == 429


async def test_an_ipv6_client_is_its_network(app: FastAPI) -> None:
    answers = []
    for address in ("2001:db8::1", "2001:db8::2:3", "2001:db8:0:0:ffff::", "2001:db8::9", "2001:db8:0:1::1"):
        async with asking_from(app, address) as client:
            answers.append((await client.get("/here")).status_code)
    assert answers == [200, 200, 200, 429, 200]


@pytest.mark.parametrize(
    ("address", "counted_as"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unknown", "unknown"),
        ("no:address", "no:address"),
    ],
)
def test_an_address_is_counted_as_one_client(address: str, counted_as: str) -> None:
    assert network(address) == counted_as


def test_a_websocket_is_counted_too(app: FastAPI) -> None:
    with TestClient(app) as client:
        for _ in range(3):
            with client.websocket_connect("ws://localhost/socket"):
                pass
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("ws://localhost/socket"):
            pass


async def test_a_route_may_have_a_limit_of_its_own_by_address_or_by_key(settings: Settings) -> None:
    app = create_app(settings)

    @app.post("/login", dependencies=[limit("2/hour")])
    async def login() -> None: ...

    def user(request: Request) -> str | None:
        return request.headers.get("authorization")

    @app.post("/reports/{number}", dependencies=[limit("2/hour", key=user)])
    async def report(number: int) -> None: ...

    async with client_of(app) as client:
        assert [(await client.post("/login")).status_code for _ in range(3)] == [200, 200, 429]
        refused = await client.post("/login")
        assert refused.headers["ratelimit-policy"] == '"POST /login";q=2;w=3600'
        for name in ("a", "b"):
            headers = {"Authorization": name}
            answers = [(await client.post(f"/reports/{n}", headers=headers)).status_code for n in range(3)]
            assert answers == [200, 200, 429]
        assert [(await client.post("/reports/1")).status_code for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("rate", ["100/second", "100 per minute", "10/second; 1000/hour", "5/15 minutes"])
def test_a_rate_is_read(rate: str) -> None:
    assert parse(rate)
    assert parse(rate)[0].amount in {5, 10, 100}


@pytest.mark.parametrize(
    "rate", ["hunter2", "100", "0/second", "100/second; hunter2", "100/fortnight", "-1/second"]
)
def test_what_is_no_rate_is_refused(monkeypatch: pytest.MonkeyPatch, rate: str) -> None:
    monkeypatch.setenv("APP_RATE_LIMIT", rate)
    with pytest.raises(SettingsError, match="must be `off` or a rate, such as 100/second") as caught:
        LimitSettings.load()
    assert "hunter2" not in str(caught.value)


async def test_off_is_any_number(settings: Settings) -> None:
    assert settings.limits.rates == ()
    async with client_of(create_app(settings)) as client:
        assert {(await client.get("/docs")).status_code for _ in range(200)} == {200}


async def test_a_client_that_keeps_to_the_rate_is_never_refused_and_a_greedy_one_gets_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    limiter = Limiter()
    rates = parse("10/second")
    served = {"fair": 0, "greedy": 0}
    for step in range(60_000):
        now += 0.01
        for client, every in (("fair", 11), ("greedy", 1)):
            if step % every == 0 and await limiter.refusal(rates, "address", client) is None:
                served[client] += 1
    assert served["fair"] == 60_000 // 11 + 1
    assert served["greedy"] <= 10 * 600 + 10


async def test_memory_is_bounded_whatever_number_of_addresses_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_COUNTERS", 1000)
    now = 1_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    counters = Counters()
    limiter = Limiter()
    limiter.own.storage = counters
    rates = parse("5/second")
    for number in range(5000):
        await limiter.refusal(rates, "address", f"192.0.2.{number}")
        assert len(counters.storage) == len(counters.expirations) <= 1000
    now += 10
    assert await limiter.refusal(rates, "address", "192.0.2.1") is None
    assert len(counters.storage) == len(counters.expirations) == 1
    assert not counters.locks


class Broken(MemoryStorage):
    """A shared store that can be away."""

    away = True
    asked = 0

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Fail, or count."""
        self.asked += 1
        if self.away:
            raise StorageError(ConnectionError("away"))
        return await super().acquire_sliding_window_entry(key, limit, expiry, amount)


@pytest.mark.parametrize(("fail_open", "statuses"), [(True, [None, None, 429]), (False, [503, 503, 503])])
async def test_a_store_that_is_away_is_one_warning_and_is_asked_again_later(
    app: FastAPI,
    log_lines: LogLines,
    monkeypatch: pytest.MonkeyPatch,
    fail_open: bool,
    statuses: list[int | None],
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    store = Broken()
    limiter = Limiter()
    limiter.share(store, fail_open=fail_open)

    async def ask() -> int | None:
        refused = await limiter.refusal(parse("2/hour"), "address", "192.0.2.1")
        return refused.status_code if refused else None

    assert [await ask() for _ in range(3)] == statuses
    assert store.asked == 1
    now += limits.RETRY_S
    assert await ask() == statuses[-1]
    store.away = False
    assert await ask() == statuses[-1], "it was asked again too early"
    now += limits.RETRY_S
    assert [await ask() for _ in range(3)] == [None, None, 429]
    found = [(line["event"], line["level"]) for line in log_lines()]
    assert found == [("rate_limit_store_away", "warning"), ("rate_limit_store_back", "info")]


async def test_a_refusal_names_the_rate_that_was_broken() -> None:
    rates = parse("100/second; 2/minute")
    limiter = Limiter()
    for _ in range(2):
        assert await refusal(limiter.own, rates, ("address", "192.0.2.1")) is None
    refused = await refusal(limiter.own, rates, ("address", "192.0.2.1"))
    assert refused is not None
    assert refused.headers is not None
    assert re.fullmatch(r'"address";q=2;w=60', refused.headers["RateLimit-Policy"])
