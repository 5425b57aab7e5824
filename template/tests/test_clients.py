"""Other services: none of their troubles becomes more of ours than it must."""

import asyncio
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import FastAPI
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from app import logs
from app.clients import (
    ClientSettings,
    Service,
    ServiceUnavailable,
    authorities,
    open_services,
    retry_after_s,
    service,
)
from app.main import Settings, create_app
from app.metrics import BREAKER, CLIENT_SECONDS
from app.rates.client import RatesSettings
from app.settings import SettingsError
from tests.conftest import LogLines, client_of
from tests.peer import Answer, Peer, answer_and_close, close, drip, hang, open_peer, reply, reset

QUICK: dict[str, Any] = {
    "read_timeout_s": 0.2,
    "pool_timeout_s": 0.1,
    "backoff_s": 0.005,
    "breaker_open_s": 0.1,
}
CANARY = "hunter2canary"

Open = Callable[..., Any]


@pytest.fixture
async def peer() -> AsyncGenerator[Peer]:
    """The other service."""
    async with open_peer() as peer:
        yield peer


@pytest.fixture
async def opened(settings: Settings) -> AsyncGenerator[Open]:
    """Open services of this test's own, which wait for little; settings may be given by their names."""
    async with AsyncExitStack() as stack:

        async def open_one(url: str, *, name: str = "peer", **changed: Any) -> Service:
            own = ClientSettings(**QUICK | changed)
            return (await stack.enter_async_context(open_services(own, **{name: url})))[name]

        yield open_one


def samples(metric: Any, suffix: str = "") -> dict[tuple[str, ...], float]:
    """Return a metric's values by their labels."""
    (family,) = metric.collect()
    return {
        tuple(sample.labels.values()): sample.value
        for sample in family.samples
        if sample.name == family.name + suffix
    }


def count(name: str, outcome: str) -> float:
    """Return how many attempts ended so."""
    return samples(CLIENT_SECONDS, "_count").get((name, outcome), 0)


def state(name: str) -> float:
    """Return the state of a breaker as it is measured."""
    return samples(BREAKER)[(name,)]


async def fail(asked: Service, times: int, method: str = "POST") -> list[ServiceUnavailable]:
    """Call a number of times, one after another, and return the errors."""
    errors = []
    for _ in range(times):
        with pytest.raises(ServiceUnavailable) as caught:
            await asked.request(method, "/")
        errors.append(caught.value)
    return errors


TROUBLES = [
    pytest.param(reply(502), id="502"),
    pytest.param(reply(503), id="503"),
    pytest.param(reply(503, retry_after="0"), id="503-with-retry-after"),
    pytest.param(reply(504), id="504"),
    pytest.param(reply(429), id="429"),
    pytest.param(hang, id="slow"),
    pytest.param(close, id="closed"),
    pytest.param(reset, id="reset"),
]


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_what_passes_is_tried_again(peer: Peer, opened: Open, trouble: Answer) -> None:
    peer.answers = [trouble, reply(200, b"[1]")]
    asked = await opened(peer.url)
    answer = await asked.request("PUT", "/thing", json={"a": 1})
    assert answer.json() == [1]
    assert [(seen.method, seen.target, seen.body) for seen in peer.seen] == [
        ("PUT", "/thing", b'{"a":1}')
    ] * 2


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_what_may_do_something_twice_is_sent_once(
    peer: Peer, opened: Open, trouble: Answer, method: str
) -> None:
    peer.answers = [trouble, reply(200)]
    asked = await opened(peer.url)
    await fail(asked, 1, method)
    assert len(peer.seen) == 1


async def test_a_key_makes_a_post_repeatable(peer: Peer, opened: Open) -> None:
    peer.answers = [reset, reply(503), reply(201)]
    asked = await opened(peer.url)
    answer = await asked.request("POST", "/", headers={"idempotency-key": "k1"}, content=b"paid")
    assert answer.status_code == 201
    assert [(seen.headers["idempotency-key"], seen.body) for seen in peer.seen] == [("k1", b"paid")] * 3


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
async def test_attempts_end(peer: Peer, opened: Open, method: str, log_lines: LogLines) -> None:
    peer.answers = [reply(503, b"")]
    asked = await opened(peer.url)
    (error,) = await fail(asked, 1, method)
    assert (error.status_code, error.headers) == (503, {"Retry-After": "5"})
    assert len(peer.seen) == 3
    lines = log_lines()
    assert [(line["event"], line["service"], line["reason"]) for line in lines] == [
        ("retry", "peer", "status_503"),
        ("retry", "peer", "status_503"),
        ("service_failed", "peer", "status_503"),
    ]
    assert [line["attempt"] for line in lines[:2]] == [1, 2]
    # Twice as long before the third attempt, and up to once as much at random before each.
    assert 0.005 <= lines[0]["wait_s"] <= 0.01 <= lines[1]["wait_s"] <= 0.015


async def test_no_two_wait_alike(peer: Peer, opened: Open, log_lines: LogLines) -> None:
    peer.answers = [reply(503)]
    asked = await opened(peer.url, backoff_s=0.02, attempts=2, breaker_failures=100)
    await fail(asked, 6, "GET")
    waits = [line["wait_s"] for line in log_lines() if line["event"] == "retry"]
    assert len(waits) == 6
    assert len(set(waits)) > 1


async def test_who_refuses_connections_is_tried_again(opened: Open, log_lines: LogLines) -> None:
    async with open_peer() as gone:
        url = gone.url
    asked = await opened(url)
    await fail(asked, 1, "GET")
    assert [line["reason"] for line in log_lines()] == ["ConnectError"] * 3


@pytest.mark.parametrize("status", [200, 204, 301, 302, 307, 400, 401, 404, 409, 422])
async def test_what_a_service_says_is_for_the_caller(peer: Peer, opened: Open, status: int) -> None:
    peer.answers = [reply(status, b"", location="/elsewhere")]
    asked = await opened(peer.url, name=f"says_{status}", breaker_failures=1)
    for _ in range(3):
        assert (await asked.request("GET", "/")).status_code == status
    assert [seen.target for seen in peer.seen] == ["/"] * 3
    assert count(f"says_{status}", "ok") == 3


@pytest.mark.parametrize("status", [500, 501, 505])
async def test_a_crash_elsewhere_is_not_asked_for_again(peer: Peer, opened: Open, status: int) -> None:
    peer.answers = [reply(status)]
    asked = await opened(peer.url, name=f"crash_{status}")
    await fail(asked, 1, "GET")
    assert len(peer.seen) == 1
    assert count(f"crash_{status}", "error") == 1


async def test_the_time_that_a_service_asks_for_is_given(opened: Open) -> None:
    async with open_peer() as first, open_peer() as second:
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        first.answers = [reply(429, retry_after="1"), reply(200)]
        second.answers = [reply(503, retry_after=later), reply(200)]
        asked = [await opened(first.url), await opened(second.url)]

        async def timed(one: Service) -> float:
            started = time.monotonic()
            await one.request("GET", "/")
            return time.monotonic() - started

        taken = await asyncio.gather(*(timed(one) for one in asked))
    assert taken[0] >= 1
    # A date has whole seconds.
    assert taken[1] >= 0.9


async def test_a_service_that_asks_for_more_time_than_there_is_is_not_waited_for(
    peer: Peer, opened: Open
) -> None:
    peer.answers = [reply(503, retry_after="120")]
    asked = await opened(peer.url)
    started = time.monotonic()
    (error,) = await fail(asked, 1, "GET")
    assert time.monotonic() - started < 5
    assert error.headers == {"Retry-After": "120"}
    assert len(peer.seen) == 1


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("0", 0),
        ("120", 120),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("9" * 5000, None),
        ("Thu, 01 Jan 99999 00:00:00 GMT", None),
        ("Thu, 01 Jan 2026 00:00:00 +99999999999999999999", None),
    ],
)
def test_retry_after_is_read_or_passed_over(value: str, wait_s: float | None) -> None:
    assert retry_after_s(value) == wait_s


def test_no_date_makes_a_client_wait_for_ever() -> None:
    assert ServiceUnavailable("peer", retry_after_s("999999999")).headers == {"Retry-After": "3600"}


@pytest.mark.parametrize("trouble", [drip, hang])
async def test_a_call_has_so_much_time_in_all(peer: Peer, opened: Open, trouble: Answer) -> None:
    peer.answers = [trouble]
    name = f"total_{trouble.__name__}"
    asked = await opened(
        peer.url, name=name, total_timeout_s=0.4, attempts=10, read_timeout_s=0.3, breaker_failures=1
    )
    started = time.monotonic()
    await fail(asked, 1, "GET")
    assert 0.25 < time.monotonic() - started < 5
    assert count(name, "timeout") == 1
    assert state(name) == 2


async def test_a_wait_ends_with_the_time(peer: Peer, opened: Open) -> None:
    peer.answers = [reply(503)]
    asked = await opened(peer.url, total_timeout_s=0.3, backoff_s=30)
    started = time.monotonic()
    await fail(asked, 1, "GET")
    assert time.monotonic() - started < 1.5
    assert len(peer.seen) == 1


async def test_a_call_that_is_cancelled_ends_at_once_and_leaves_nothing_behind(
    peer: Peer, opened: Open
) -> None:
    peer.answers = [hang, hang, reply(200)]
    asked = await opened(peer.url, name="cut", read_timeout_s=30, pool_size=1, breaker_failures=1)
    for n in range(2):
        call = asyncio.create_task(asked.request("GET", "/"))
        await peer.asked(n + 1)
        started = time.monotonic()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert time.monotonic() - started < 3
    assert (await asked.request("GET", "/")).status_code == 200
    assert (state("cut"), count("cut", "ok"), count("cut", "timeout")) == (0, 1, 0)


async def test_a_wait_that_is_cancelled_ends_at_once(peer: Peer, opened: Open) -> None:
    peer.answers = [reply(503, retry_after="5")]
    asked = await opened(peer.url)
    call = asyncio.create_task(asked.request("GET", "/"))
    await peer.asked(1)
    await asyncio.sleep(0.02)
    started = time.monotonic()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert time.monotonic() - started < 3


async def test_a_service_that_goes_on_failing_is_left_alone(
    peer: Peer, opened: Open, log_lines: LogLines
) -> None:
    peer.answers = [reply(500)]
    asked = await opened(peer.url, name="alone", breaker_failures=3, breaker_open_s=30)
    errors = await fail(asked, 5)
    assert len(peer.seen) == 3
    assert [error.headers for error in errors[3:]] == [{"Retry-After": "30"}] * 2
    assert (count("alone", "error"), count("alone", "refused"), state("alone")) == (3, 2, 2)
    events = [line["event"] for line in log_lines()]
    assert events == ["service_failed", "service_failed", "breaker_opened", "service_failed"]


async def test_failures_count_only_in_a_row(peer: Peer, opened: Open) -> None:
    peer.answers = [reply(500), reply(500), reply(404), reply(500), reply(500), reply(429), reply(200)]
    asked = await opened(peer.url, name="row", breaker_failures=3)
    for _ in range(7):
        with suppress(ServiceUnavailable):
            await asked.request("POST", "/")
    assert len(peer.seen) == 7
    assert state("row") == 0


@pytest.mark.parametrize(("answer", "after"), [(reply(200), 0), (reply(404), 0), (reply(500), 2), (hang, 2)])
async def test_one_call_of_twenty_tries_whether_a_service_is_back(
    peer: Peer, opened: Open, answer: Answer, after: int
) -> None:
    states = []

    async def slowly(writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(0.05)
        states.append(state("back"))
        return await answer(writer)

    peer.answers = [reply(500)]
    asked = await opened(peer.url, name="back", breaker_failures=2, attempts=1)
    await fail(asked, 3)
    assert len(peer.seen) == 2
    await asyncio.sleep(0.11)
    peer.answers = [slowly]
    ended = await asyncio.gather(*(asked.request("GET", "/") for _ in range(20)), return_exceptions=True)
    assert (len(peer.seen), states) == (3, [1])
    refused = [error for error in ended if isinstance(error, ServiceUnavailable)]
    assert len(refused) == (20 if after else 19)
    assert {int(error.headers["Retry-After"]) for error in refused if error.headers} <= {1, 5}
    assert state("back") == after
    if not after:
        peer.answers = [reply(200)]
        ended = await asyncio.gather(*(asked.request("GET", "/") for _ in range(5)))
        assert {answer.status_code for answer in ended} == {200}


async def test_a_try_that_is_cancelled_leaves_its_place_to_the_next(peer: Peer, opened: Open) -> None:
    peer.answers = [reply(500)]
    asked = await opened(peer.url, name="place", breaker_failures=1, read_timeout_s=30)
    await fail(asked, 1)
    await asyncio.sleep(0.11)
    peer.answers = [hang, reply(200)]
    probe = asyncio.create_task(asked.request("GET", "/"))
    await peer.asked(2)
    assert state("place") == 1
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert state("place") == 2
    assert (await asked.request("GET", "/")).status_code == 200
    assert state("place") == 0


async def test_what_began_before_a_service_was_left_alone_says_nothing_of_it_after(
    peer: Peer, opened: Open
) -> None:
    arrived = asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> bool:
        await arrived.wait()
        return await reply(200)(writer)

    peer.answers = [late, reply(500)]
    asked = await opened(peer.url, name="before", breaker_failures=1, breaker_open_s=30, read_timeout_s=30)
    call = asyncio.create_task(asked.request("GET", "/"))
    await peer.asked(1)
    await fail(asked, 1)
    assert state("before") == 2
    arrived.set()
    assert (await call).status_code == 200
    assert state("before") == 2
    await fail(asked, 1)
    assert len(peer.seen) == 2


async def test_one_slow_service_takes_no_connections_from_another(peer: Peer, opened: Open) -> None:
    async with open_peer(hang) as slow:
        busy = await opened(slow.url, name="busy", pool_size=2, read_timeout_s=30, breaker_failures=1)
        free = await opened(peer.url, name="free", pool_size=2)
        calls = [asyncio.create_task(busy.request("GET", "/")) for _ in range(2)]
        await slow.asked(2)
        await fail(busy, 1, "GET")
        assert len(slow.seen) == 2
        assert (await free.request("GET", "/")).status_code == 200
        assert state("busy") == 0
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_connections_are_kept_and_one_that_was_closed_meanwhile_is_not_used(
    peer: Peer, opened: Open
) -> None:
    asked = await opened(peer.url)
    ports = []

    async def note_port(writer: asyncio.StreamWriter) -> bool:
        ports.append(writer.get_extra_info("peername")[1])
        return await (answer_and_close if len(ports) == 2 else reply(200))(writer)

    peer.answers = [note_port]
    for _ in range(3):
        assert (await asked.request("POST", "/")).status_code == 200
        await asyncio.sleep(0.02)
    assert ports[0] == ports[1] != ports[2]


async def test_the_other_service_learns_request_and_trace(peer: Peer, settings: Settings) -> None:
    app = create_app(settings)

    @app.get("/ask")
    async def ask() -> int:
        (asked,) = app.state.services.values()
        span = NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1)))
        with use_span(span):
            await asked.request("GET", "/traced")
        return int((await asked.request("GET", "/untraced")).status_code)

    async with open_services(ClientSettings(), peer=peer.url) as services, client_of(app) as client:
        app.state.services = services
        answer = await client.get("/ask", headers={"X-Request-ID": "0123456789abcdef", "baggage": "a=b"})
    assert answer.json() == 200
    assert {seen.headers["x-request-id"] for seen in peer.seen} == {"0123456789abcdef"}
    traced, untraced = peer.seen
    assert traced.headers["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert "traceparent" not in untraced.headers
    assert not [seen for seen in peer.seen if "baggage" in seen.headers]


async def test_a_route_asks_a_service_and_its_client_learns_when_to_come_again(
    peer: Peer, settings: Settings
) -> None:
    app = create_app(settings)

    @app.get("/ask")
    async def ask(asked: Annotated[Service, service("peer")]) -> str:
        return (await asked.request("GET", "/")).text

    peer.answers = [reply(200, b"hello"), reply(503, retry_after="60")]
    async with open_services(ClientSettings(), peer=peer.url) as services, client_of(app) as client:
        app.state.services = services
        assert (await client.get("/ask")).json() == "hello"
        answer = await client.get("/ask")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == "The service peer is not available."


@pytest.mark.parametrize("trouble", [reply(503), reply(500, CANARY.encode()), reset, close, hang, reply(200)])
async def test_no_secret_reaches_the_log(
    peer: Peer, opened: Open, log_lines: LogLines, trouble: Answer
) -> None:
    logs.configure(level="DEBUG", json=True)
    peer.answers = [trouble]
    asked = await opened(f"{peer.url}/{CANARY}", breaker_failures=2)
    with suppress(ServiceUnavailable):
        await asked.request(
            "PUT",
            f"/{CANARY}",
            params={"key": CANARY},
            headers={"Authorization": f"Bearer {CANARY}", "X-Other": CANARY},
            json={"some": CANARY},
        )
    lines = log_lines()
    assert CANARY in peer.seen[0].target
    assert CANARY not in str(lines)
    assert {line["event"] for line in lines} <= {"retry", "breaker_opened", "service_failed"}
    for line in lines:
        if line["event"] == "retry":
            assert line.keys() == {
                *("event", "service", "attempt", "wait_s", "reason"),
                *("level", "logger", "timestamp"),
            }


async def test_a_secret_that_makes_a_request_malformed_is_not_told(
    app: FastAPI, peer: Peer, opened: Open, log_lines: LogLines
) -> None:
    asked = await opened(peer.url, name="malformed", breaker_failures=1)

    @app.get("/ask")
    async def ask() -> None:
        await asked.request("GET", "/", headers={"Authorization": f"{CANARY}\n"})

    async with client_of(app) as client:
        logs.configure(level="DEBUG", json=True)
        assert (await client.get("/ask")).status_code == 500
    written = str(log_lines())
    assert "the request to the service malformed is malformed" in written
    assert CANARY not in written
    assert (peer.seen, state("malformed")) == ([], 0)


@pytest.mark.parametrize(
    "path", ["/../admin", "/a/../../admin", "http://127.0.0.1:1/v1/", "https://evil.test/"]
)
async def test_a_path_leads_nowhere_else(peer: Peer, opened: Open, path: str) -> None:
    asked = await opened(f"{peer.url}/v1")
    with pytest.raises(ValueError, match="leads away from the service peer"):
        await asked.request("GET", path)
    assert not peer.seen
    await asked.request("GET", "//evil.test/a")
    assert peer.seen[0].target.startswith("/v1/")


async def test_no_cookie_goes_from_one_request_to_the_next(peer: Peer, opened: Open) -> None:
    peer.answers = [reply(200, set_cookie=f"session={CANARY}; Path=/")]
    asked = await opened(peer.url)
    for _ in range(2):
        assert CANARY in (await asked.request("GET", "/")).headers["set-cookie"]
    assert not [seen for seen in peer.seen if "cookie" in seen.headers]


@pytest.mark.parametrize(("trust", "target"), [(False, "/x"), (True, "http://localhost:{port}/x")])
async def test_proxies_of_the_environment_are_used_only_when_asked_for(
    peer: Peer, opened: Open, monkeypatch: pytest.MonkeyPatch, trust: bool, target: str
) -> None:
    async with open_peer() as proxy:
        for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        port = peer.url.rpartition(":")[2]
        asked = await opened(f"http://localhost:{port}", trust_env=trust)
        await asked.request("GET", "/x")
        asked_of = proxy if trust else peer
        assert [seen.target for seen in asked_of.seen] == [target.format(port=port)]
        assert len(proxy.seen) + len(peer.seen) == 1


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for localhost that nobody vouches for, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("lacks openssl")
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    options += " -addext subjectAltName=DNS:localhost -keyout peer.pem -out certificate.pem"
    subprocess.run([openssl, "req", *options.split()], cwd=tmp_path, check=True, capture_output=True)
    with (tmp_path / "peer.pem").open("a") as file:
        file.write((tmp_path / "certificate.pem").read_text())
    return tmp_path / "peer.pem"


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    opened: Open, certificate: Path, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    peer = Peer()
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0, ssl=tls)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    authorities.cache_clear()
    await fail(await opened(url, attempts=1), 1, "GET")
    assert [line["reason"] for line in log_lines()] == ["ConnectError"]
    assert not peer.seen
    trusting = await opened(url, trust_env=True)
    assert (await trusting.request("GET", "/")).status_code == 200
    authorities.cache_clear()
    server.close()


@pytest.mark.parametrize(
    "url",
    [
        "rates.test",
        "ftp://rates.test",
        "http://",
        "https://user:hunter2@rates.test",
        "https://rates.test/?key=hunter2",
        "https://rates.test/#x",
        "http://[",
        "http://rates test/",
        "http://rates.test:many",
    ],
)
def test_a_wrong_address_is_explained_and_not_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("RATES_URL", url)
    with pytest.raises(SettingsError, match="RATES_URL: must be like https://host/path") as caught:
        RatesSettings.load()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://rates", "http://my_rates:8000", "https://rates.test/v1/", "http://[::1]:80", "http://192.0.2.1"],
)
def test_an_address_is_accepted(settings: Settings, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("RATES_URL", url)
    assert RatesSettings.load().url == url


async def test_a_service_without_an_address_is_not_there(settings: Settings) -> None:
    async with open_services(ClientSettings(), absent=None, empty="") as services:
        assert services == {}
