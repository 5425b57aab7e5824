"""Metrics: what is counted, how many series that can be, and where they are served."""

import asyncio
import random
import string
import threading
from collections.abc import Iterable
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message

from app import metrics
from app.exchange import TICK_S
from app.main import Settings, create_app
from app.settings import ServerSettings, SettingsError, load
from tests.conftest import client_of

COUNT = "http_request_duration_seconds_count"
CLOSED = {"type": "http.request", "body": b"", "more_body": False}


def series(text: str) -> dict[str, list[dict[str, str]]]:
    """Return the labels of all series, by name."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def value(name: str, **labels: str) -> float:
    """Return what this process has counted so far."""
    metrics.settle()
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def ask(
    app: FastAPI, path: str, server: tuple[str, int | None] | None, *, kind: str = "http", method: str = "GET"
) -> list[Message]:
    """Ask as uvicorn does for what came over a socket; return what the application sends."""
    sent: list[Message] = []

    async def receive() -> Message:
        return CLOSED

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": kind,
        "asgi": {"version": "3.0"},
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"api.test" if server is None or server[1] is None else b"localhost")],
        "scheme": "http",
        "server": server,
        "client": None,
    }
    await app(scope, receive, send)
    return sent


async def statuses(app: FastAPI, paths: Iterable[str], server: tuple[str, int | None] | None) -> list[int]:
    """Return the status of the answer to each path."""
    return [(await ask(app, path, server))[0]["status"] for path in paths]


async def test_what_is_shown_has_the_names_that_others_rely_on(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/health")).status_code == 200
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=1.0.0")
    shown = series(answer.text)
    assert {"method": "GET", "route": "/health", "status": "200"} in shown[COUNT]
    reasons = {labels["reason"] for labels in shown["http_requests_refused_total"]}
    assert reasons == {"overload", "concurrency", "budget", "rate_limit", "body", "host"}
    assert set(shown["app_build_info"][0]) == {"release", "slot", "python"}
    for name in ("http_requests_in_flight", "worker_resident_memory_bytes", "workers"):
        assert shown[name] == [{}]
    assert "event_loop_lag_seconds_bucket" in shown
    assert not any(name.endswith("_created") for name in shown)


async def test_a_request_is_counted_by_its_route_and_is_in_flight_no_more(client: httpx2.AsyncClient) -> None:
    labels = {"method": "GET", "route": "unmatched", "status": "404"}
    before = value(COUNT, **labels)
    assert (await client.get("/no/such/path")).status_code == 404
    assert value(COUNT, **labels) == before + 1
    await asyncio.sleep(2 * TICK_S)
    assert value("http_requests_in_flight") == 0


def test_many_at_once_are_counted_as_the_library_counts_one() -> None:
    registry = CollectorRegistry()
    name = "one_by_one_seconds"
    one_by_one = Histogram(name, name, buckets=metrics._SECONDS, registry=registry)
    for seconds in (0, 0.005, 0.0051, 0.3, 0.3, 60, 61):
        metrics.observe_request("GET", "/counted", 200, seconds)
        one_by_one.observe(seconds)
    labels = {"method": "GET", "route": "/counted", "status": "200"}
    samples = [sample for family in registry.collect() for sample in family.samples]
    assert len(samples) > len(metrics._SECONDS)
    for sample in samples:
        counted = sample.name.replace(name, "http_request_duration_seconds")
        assert value(counted, **labels, **sample.labels) == pytest.approx(sample.value)


async def test_what_was_counted_last_is_kept_when_the_service_stops(app: FastAPI) -> None:
    metrics.settle()
    labels = {"method": "GET", "route": "unmatched", "status": "404"}
    before = REGISTRY.get_sample_value(COUNT, labels) or 0.0
    async with client_of(app) as client:
        assert (await client.get("/no/such/path")).status_code == 404
    assert REGISTRY.get_sample_value(COUNT, labels) == before + 1


async def test_clients_cannot_make_more_series_whatever_they_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_LOG_LEVEL", "ERROR")
    app = create_app(load(Settings))
    letters = string.ascii_letters + string.digits + "-_~/%."
    chance = random.Random(1)  # noqa: S311 - the same each time

    def word(length: int) -> str:
        return "".join(chance.choices(letters, k=length))

    async with client_of(app) as client:
        before = series((await client.get("/metrics")).text).get(COUNT, [])
        for _ in range(10_000):
            start = chance.choice(["/", "/api/v1/", "/api/v1/things/", "/static/", "/health/", "/docs/"])
            method = chance.choice([*metrics.METHODS, word(4)])
            await ask(app, start + word(chance.randint(1, 12)), ("127.0.0.1", 8000), method=method)
        shown = series((await client.get("/metrics")).text)[COUNT]
    assert {labels["method"] for labels in shown} == metrics.METHODS | {"other"}
    declared = {route.path for route in iter_route_contexts(app.routes)}
    new = [labels for labels in shown if labels not in before]
    assert {labels["route"] for labels in new} <= declared | {"unmatched"}
    unmatched = [labels for labels in new if labels["route"] == "unmatched"]
    assert len(unmatched) <= 10 * len({"400", "404", "405"})


def test_the_socket_of_the_service_cannot_be_the_one_of_its_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_BIND", "unix:/run/trial/metrics.sock")
    with pytest.raises(SettingsError, match="SERVER_BIND: must have another name"):
        ServerSettings.load()
    monkeypatch.setenv("SERVER_BIND", "unix:app.sock")
    assert ServerSettings.load().metrics_socket == Path("metrics.sock")
    monkeypatch.setenv("SERVER_BIND", "127.0.0.1:8000")
    assert ServerSettings.load().metrics_socket is None


@pytest.mark.usefixtures("production")
async def test_in_production_only_the_socket_of_the_metrics_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_BIND", "unix:/run/trial/app.sock")
    monkeypatch.setenv("APP_SLOT", "blue")
    app = create_app(load(Settings))
    own, other = ("/run/trial/metrics.sock", None), ("/run/trial/app.sock", None)
    assert await statuses(app, ["/metrics"], own) == [200]
    assert await statuses(app, ["/", "/health", "/metrics/", "//metrics", "/x/../metrics"], own) == [404] * 5
    assert await statuses(app, ["/metrics"], other) == [404]
    assert await statuses(app, ["/metrics"], None) == [404]
    assert await statuses(app, ["/health"], other) == [200]
    closed = await ask(app, "/metrics", own, kind="websocket")
    assert closed == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.usefixtures("production")
async def test_every_series_says_its_slot_and_the_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_BIND", "unix:/run/trial/app.sock")
    monkeypatch.setenv("APP_SLOT", "green")
    monkeypatch.setenv("APP_RELEASE", "20260102-030405-abcdef12")
    app = create_app(load(Settings))
    async with client_of(app):
        await ask(app, "/health", ("/run/trial/app.sock", None))
        start, body = await ask(app, "/metrics", ("/run/trial/metrics.sock", None))
    assert (b"connection", b"close") in start["headers"], "a kept connection stays with the slot of yesterday"
    shown = series(body["body"].decode())
    assert all(labels.get("slot") == "green" for name in (COUNT, "workers") for labels in shown[name])
    assert "20260102-030405-abcdef12" in {labels["release"] for labels in shown["app_build_info"]}


async def test_a_scrape_is_not_counted_and_does_not_stop_the_event_loop(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.get("/health")
    before = {tuple(labels.values()) for labels in series((await client.get("/metrics")).text)[COUNT]}
    turned = threading.Event()
    monkeypatch.setattr(metrics, "render", lambda _slot: b"turned" if turned.wait(5) else b"stood still")
    asyncio.get_running_loop().call_later(0.1, turned.set)
    assert (await client.get("/metrics")).text == "turned"
    monkeypatch.undo()
    after = {tuple(labels.values()) for labels in series((await client.get("/metrics")).text)[COUNT]}
    assert after == before
