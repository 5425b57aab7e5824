"""Limits: who is counted as whom, what a refusal says, and that memory stays bounded."""

import random
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import httpx2
import pytest
from fastapi import FastAPI, HTTPException, Request
from starlette.testclient import TestClient
from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketDisconnect

from app import limits
from app.limits import (
    FIELDS,
    AddressLimit,
    Bucket,
    Count,
    Counters,
    CountersAway,
    Limiter,
    LimitSettings,
    Rate,
    Window,
    interval_us,
    limit,
    network,
    parse,
)
from app.main import Settings, create_app
from app.metrics import REFUSED
from app.settings import SettingsError, load
from tests.conftest import LogLines, client_of


@pytest.fixture
def app(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The application, with few requests allowed."""
    # A busy machine may take its time.
    monkeypatch.setattr(limits, "SHARED_TIMEOUT_S", 30)
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


def counted_refusals() -> float:
    """Return how many refusals the metrics know of."""
    return float(REFUSED.labels("rate_limit")._value.get())


async def test_a_refusal_says_when_to_come_back_and_is_an_answer_like_any_other(
    app: FastAPI, log_lines: LogLines
) -> None:
    async with client_of(app) as client:
        for left in (2, 1, 0):
            answer = await client.get("/here")
            assert answer.status_code == 200
            assert answer.headers["ratelimit-policy"] == '"address";q=3;w=3600'
            assert answer.headers["ratelimit"].startswith(f'"address";r={left};t=')
            assert "retry-after" not in answer.headers
        refusals = counted_refusals()
        refused = await client.get("/here", headers={"Origin": "https://app.test"})
        assert counted_refusals() == refusals + 1
        preflight = await client.options(
            "/here", headers={"Origin": "https://app.test", "Access-Control-Request-Method": "GET"}
        )
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["detail"] == "No more than 3 requests in 3600 seconds."
    wait_s = int(refused.headers["retry-after"])
    assert 0 < wait_s <= 3600
    assert refused.headers["ratelimit-policy"] == '"address";q=3;w=3600'
    assert refused.headers["ratelimit"] == f'"address";r=0;t={wait_s}'
    assert refused.headers["x-content-type-options"] == "nosniff"
    assert refused.headers["access-control-allow-origin"] == "https://app.test"
    assert preflight.status_code == 200
    (line,) = [line for line in log_lines() if line.get("status") == 429]
    assert line["request_id"] == refused.headers["x-request-id"]


async def test_a_preflight_costs_nothing_of_the_limit_and_other_options_do(app: FastAPI) -> None:
    preflight = {"Origin": "https://app.test", "Access-Control-Request-Method": "GET"}
    async with asking_from(app, "192.0.2.1") as client:
        assert {(await client.options("/here", headers=preflight)).status_code for _ in range(9)} == {200}
        assert (await client.get("/here")).headers["ratelimit"].startswith('"address";r=2;')
        await client.options("/here", headers={"Origin": "https://app.test"})
        assert (await client.get("/here")).headers["ratelimit"].startswith('"address";r=0;')


async def test_each_address_is_counted_by_itself_and_the_socket_not_at_all(app: FastAPI) -> None:
    for address, times in (("192.0.2.1", 3), ("192.0.2.2", 3), (None, 9)):
        async with asking_from(app, address) as client:
            answers = [(await client.get("/health")).status_code for _ in range(times)]
            assert answers == [200] * times, address
    async with asking_from(app, "192.0.2.1") as client:
        assert (await client.get("/health")).status_code == 429
    async with asking_from(app, None) as client:
        assert "ratelimit" not in (await client.get("/health")).headers


async def test_no_header_makes_another_client_of_one(app: FastAPI) -> None:
    @app.get("/limited", dependencies=[limit("2/hour")])
    async def limited() -> None: ...

    names = (
        *("X-Forwarded-For", "X-Real-IP", "Forwarded", "CF-Connecting-IP", "True-Client-IP", "X-Client-IP"),
        *(
            "User-Agent",
            "Authorization",
            "X-API-Key",
            "X-User-ID",
            "Cookie",
            "X-Request-ID",
            "Idempotency-Key",
        ),
    )
    for number, name in enumerate(names):
        values = [f"for=203.0.113.{n}" if name == "Forwarded" else f"203.0.113.{n}" for n in range(4)]
        async with asking_from(app, f"192.0.2.{number}") as client:
            answers = [(await client.get("/limited", headers={name: value})).status_code for value in values]
        assert answers == [200, 200, 429, 429], name


async def test_of_what_the_proxy_passes_on_only_its_own_address_counts(app: FastAPI) -> None:
    # The last is what the proxy added itself.
    async with asking_from(app, None) as client:
        answers = [
            (await client.get("/here", headers={"X-Forwarded-For": f"203.0.113.{n}, 192.0.2.1"})).status_code
            for n in range(5)
        ]
    assert answers == [200, 200, 200, 429, 429]


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

    async def user(request: Request) -> str | None:
        return {"secret-a": "a", "secret-b": "127.0.0.1"}.get(request.headers.get("authorization", ""))

    @app.post("/reports/{number}", dependencies=[limit("2/hour", key=user)])
    async def report(number: int) -> None: ...

    @app.post("/fails", dependencies=[limit("2/hour")])
    async def fails() -> None:
        raise HTTPException(418)

    async with client_of(app) as client:
        assert [(await client.post("/login")).status_code for _ in range(3)] == [200, 200, 429]
        refused = await client.post("/login")
        assert refused.headers["ratelimit-policy"] == '"POST /login";q=2;w=3600'
        assert refused.headers["ratelimit"] == f'"POST /login";r=0;t={refused.headers["retry-after"]}'
        assert (await client.post("/fails")).headers["ratelimit"].startswith('"POST /fails";r=1;t=')
        # Who names no key that was verified, or one that was not, counts by the address.
        for names in (["secret-a"] * 3, ["secret-b"] * 3, ["", "made up", "another"]):
            answers = [
                (await client.post(f"/reports/{n}", headers={"Authorization": name})).status_code
                for n, name in enumerate(names)
            ]
            assert answers == [200, 200, 429], names


async def test_an_answer_tells_of_every_limit_that_it_met(app: FastAPI) -> None:
    @app.get("/both", dependencies=[limit("100/minute")])
    async def both() -> None: ...

    async with asking_from(app, "192.0.2.1") as client:
        answer = await client.get("/both")
    assert answer.headers.get_list("ratelimit-policy") == [
        '"address";q=3;w=3600',
        '"GET /both";q=100;w=60',
    ]
    assert [field.partition(";t=")[0] for field in answer.headers.get_list("ratelimit")] == [
        '"address";r=2',
        '"GET /both";r=99',
    ]


@pytest.mark.parametrize("rate", ["hunter2", "10001/hour"])
def test_a_route_whose_limit_is_none_is_refused_at_the_start(rate: str) -> None:
    with pytest.raises(ValueError, match=r"must be `off` or a rate|at most 10000"):
        limit(rate)


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


class Clock:
    """Time as the counters see it, in microseconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Begin somewhere within a window."""
        self.now_us = 1_000_000_123_457
        monkeypatch.setattr("time.monotonic_ns", lambda: self.now_us * 1000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time."""
    return Clock(monkeypatch)


TEN_MINUTES_US = 600_000_000


def schedule(seed: int, rate: Rate, *, keen: bool) -> Iterator[int]:
    """Yield when a client asks in ten minutes; one that is not keen never asks too often in any window."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    allowed: deque[int] = deque(maxlen=rate.amount)
    at_us = draw.randrange(rate.window_us)
    pauses: dict[str, Callable[[], int]] = {
        "steady": lambda: interval_us(rate) + 1,
        "bursts": lambda: 0 if draw.random() < 0.9 else draw.randrange(2 * rate.window_us),
        "borders": lambda: draw.choice([0, 0, 0, rate.window_us - 1, rate.window_us, rate.window_us + 1]),
        "any": lambda: int(draw.expovariate(1 / interval_us(rate))),
    }
    pause = pauses[draw.choice(sorted(pauses))]
    while at_us < TEN_MINUTES_US:
        yield at_us
        allowed.append(at_us)
        at_us += pause()
        if not keen and len(allowed) == rate.amount:
            at_us = max(at_us, allowed[0] + rate.window_us)


@pytest.mark.parametrize("make", [Bucket, Window])
@pytest.mark.parametrize(
    "rate", [Rate(10, 1), Rate(3, 7), Rate(7, 1), Rate(60, 60), Rate(1, 1), Rate(250, 3600)]
)
def test_in_ten_minutes_who_keeps_to_the_rate_is_never_refused_and_nobody_gets_more(
    clock: Clock, make: type[Counters[object]], rate: Rate
) -> None:
    counters = make()
    begin_us = clock.now_us
    asked = [
        (at_us, seed, seed % 3 == 0)
        for seed in range(12)
        for at_us in islice(schedule(seed, rate, keen=seed % 3 == 0), 2000)
    ]
    served: dict[int, list[int]] = {seed: [] for seed in range(12)}
    for at_us, seed, keen in sorted(asked):
        clock.now_us = begin_us + at_us
        found = counters.count((rate,), f"client {seed}")
        assert keen or not found.over, f"client {seed} was refused after {at_us} us"
        if found.over:
            continue
        served[seed].append(at_us)
    for times in served.values():
        for first, at_us in enumerate(times):
            if make is Window:
                beyond = times[first + rate.amount : first + rate.amount + 1]
                assert all(other - at_us >= rate.window_us for other in beyond), (
                    "more than the rate in a window"
                )
            else:
                span_us = times[-1] - at_us
                assert len(times) - first <= rate.amount + span_us // interval_us(rate) + 1


@pytest.mark.parametrize("rate", ["10/second", "3/7 seconds", "1/second", "250/hour", "10/second; 50/minute"])
async def test_an_address_is_counted_as_its_bucket_counts(clock: Clock, rate: str) -> None:
    rates = parse(rate)
    counted = Limiter()
    limit = AddressLimit(Limiter(), rates)
    draw = random.Random(7)  # noqa: S311 - no secret
    each_us = interval_us(rates[0])
    refusals = 0
    for _ in range(2000):
        clock.now_us += draw.choice([0, 1, each_us // 2, each_us - 1, each_us, each_us + 1, 3 * each_us])
        expected: Scope = {}
        told: Scope = {"client": ("192.0.2.1", 1)}
        refused = await counted.refusal(expected, rates, "address", "192.0.2.1")
        assert repr(await limit.refusal(told)) == repr(refused)
        assert told[FIELDS] == expected[FIELDS]
        refusals += refused is not None
    assert 0 < refusals < 2000


@pytest.mark.parametrize("make", [Bucket, Window])
def test_who_comes_back_when_told_is_let_through_and_not_before(
    clock: Clock, make: type[Counters[object]]
) -> None:
    counters = make()
    rates = (Rate(3, 1), Rate(5, 60))
    for _ in range(50):
        found = counters.count(rates, "client")
        if found.over:
            clock.now_us += found.more_us - 1
            assert counters.count(rates, "client").over
            clock.now_us += 1
            assert not counters.count(rates, "client").over


@pytest.mark.parametrize("make", [Bucket, Window])
def test_what_one_rate_refuses_counts_against_no_other(clock: Clock, make: type[Counters[object]]) -> None:
    counters = make()
    rates = (Rate(10, 60), Rate(2, 1))
    found = [counters.count(rates, "client") for _ in range(5)]
    assert [one.over for one in found] == [False, False, True, True, True]
    assert {one.rate for one in found} == {Rate(2, 1)}
    clock.now_us += 1_000_000
    assert [counters.count((Rate(10, 60),), "client").left for _ in range(2)] == [7, 6]


@pytest.mark.parametrize("make", [Bucket, Window])
def test_memory_is_bounded_whatever_number_of_clients_come(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, make: type[Counters[object]]
) -> None:
    monkeypatch.setattr(limits, "MOST_MARKS", 1000)
    counters = make()
    for number in range(5000):
        counters.count((Rate(5, 1),), f"client {number // 2}")
        assert len(counters.marks) <= counters.size <= 1000
    clock.now_us += 10_000_000
    assert not counters.count((Rate(5, 1),), "client").over
    assert len(counters.marks) == counters.size == 1


class Broken:
    """Shared counters that can be away."""

    def __init__(self) -> None:
        """Be away."""
        self.window = Window()
        self.bucket = Bucket()
        self.away = True
        self.asked = 0

    async def count(self, rates: tuple[Rate, ...], client: str, *, exact: bool) -> Count:
        """Fail, or count."""
        self.asked += 1
        if self.away:
            raise CountersAway
        return (self.window if exact else self.bucket).count(rates, client)


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
        refused = await limiter.refusal({}, parse("2/hour"), "address", "192.0.2.1")
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


async def test_a_refusal_names_the_rate_that_was_broken(settings: Settings) -> None:
    app = create_app(settings)

    @app.get("/two", dependencies=[limit("100/second; 2/minute")])
    async def two() -> None: ...

    async with client_of(app) as client:
        answers = [await client.get("/two") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[-1].headers["ratelimit-policy"] == '"GET /two";q=2;w=60'
