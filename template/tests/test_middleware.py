"""Request ids, access lines, who the client is, the root path, headers, host names and the limits of a body."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any
from unittest.mock import AsyncMock, Mock

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from app import access
from app.exchange import Exchange
from app.main import Settings, create_app
from app.middleware import take_forwarded
from app.settings import load
from tests.conftest import LogLines, client_of


@pytest.fixture
def app(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The application with a few routes to call, and a limit that is quickly reached."""
    monkeypatch.setenv("APP_BODY_LIMIT_BYTES", "1000000")
    monkeypatch.setenv("APP_BODY_TIMEOUT_S", "0.5")
    return extended(create_app(load(Settings)))


def extended(app: FastAPI) -> FastAPI:
    """Add the routes."""
    router = APIRouter(prefix="/things")

    @router.get("/{number}")
    async def read_thing(number: int) -> dict[str, int]:
        return {"number": number}

    @app.post("/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.post("/json")
    async def echo(body: dict[str, str]) -> dict[str, str]:
        return body

    @app.websocket("/echo")
    async def echo_socket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    @app.websocket("/crash")
    async def crash(socket: WebSocket) -> None:
        await socket.accept()
        raise ValueError

    @app.get("/seen")
    async def seen(request: Request) -> dict[str, str | None]:
        client = request.client.host if request.client else None
        return {
            "client": client,
            "url": str(request.url),
            "there": str(request.url_for("read_thing", number=1)),
        }

    @app.get("/slash/")
    async def slash() -> None: ...

    @app.get("/slow-parts")
    async def slow_parts() -> StreamingResponse:
        async def parts() -> AsyncGenerator[str]:
            yield "first "
            await asyncio.sleep(0.8)
            yield "last"

        return StreamingResponse(parts())

    @app.get("/events")
    async def events() -> StreamingResponse:
        return StreamingResponse(iter(["data: 1"]), media_type="text/event-stream")

    @app.get("/tagged")
    async def tagged(response: Response) -> None:
        response.headers["ETag"] = '"1"'

    @app.get("/own")
    async def own(response: Response) -> None:
        response.headers["Cache-Control"] = "public, max-age=60, s-maxage=600"
        response.headers["Content-Security-Policy"] = "default-src 'self'"
        response.headers["Referrer-Policy"] = "origin"

    @app.get("/crash")
    async def crash_at_once() -> None:
        raise ValueError

    app.include_router(router, prefix="/api")
    return app


SECURITY = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@pytest.mark.parametrize(
    ("path", "status"),
    [("/api/things/7", 200), ("/nowhere", 404), ("/api/things/x", 422), ("/crash", 500), ("/health", 200)],
)
async def test_every_answer_has_the_security_headers_once(
    client: httpx2.AsyncClient, path: str, status: int
) -> None:
    answer = await client.get(path)
    assert answer.status_code == status
    for name, value in SECURITY.items():
        assert answer.headers.get_list(name) == [value]


async def test_a_refusal_has_the_security_headers_too(client: httpx2.AsyncClient) -> None:
    for answer in (
        await client.get("/seen", headers={"Host": "evil.test"}),
        await client.post("/length", content=b"x" * 1_100_000),
        await client.put("/seen"),
    ):
        assert answer.status_code in {400, 405, 413}
        assert SECURITY.items() <= dict(answer.headers).items()


async def test_a_route_may_say_otherwise(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/own")
    assert answer.headers.get_list("cache-control") == ["public, max-age=60, s-maxage=600"]
    assert answer.headers.get_list("content-security-policy") == ["default-src 'self'"]
    assert answer.headers.get_list("referrer-policy") == ["origin"]
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


async def test_an_answer_with_an_etag_may_be_kept_by_its_client_and_revalidated(
    client: httpx2.AsyncClient,
) -> None:
    assert (await client.get("/tagged")).headers["cache-control"] == "private, no-cache"


SPOOFED = {
    "Forwarded": "for=6.6.6.6;host=evil.test;proto=http",
    "X_Forwarded_For": "6.6.6.6",
    "X-Client-IP": "6.6.6.6",
    "X-Forwarded-Host": "evil.test",
    "X-Forwarded-Port": "666",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Server": "evil.test",
    "X-Original-URL": "/evil",
    "X-Real-IP": "6.6.6.6",
    "X-Rewrite-URL": "/evil",
    "X-Script-Name": "/evil",
    "X-User-ID": "6",
    "True-Client-IP": "6.6.6.6",
}


async def test_nobody_can_say_who_they_are_or_what_they_asked_for(client: httpx2.AsyncClient) -> None:
    believed_from_the_proxy = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https"}
    answer = await client.get("/seen", headers=SPOOFED | believed_from_the_proxy)
    assert answer.json() == {
        "client": "127.0.0.1",
        "url": "http://localhost/seen",
        "there": "http://localhost/api/things/1",
    }


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("headers", "client", "scheme"),
    [
        ([], None, "http"),
        ([("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "https")], "192.0.2.1", "https"),
        ([("x-forwarded-for", "6.6.6.6, 192.0.2.1")], "192.0.2.1", "http"),
        ([("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "2001:db8::1")], "2001:db8::1", "http"),
        ([("x-forwarded-for", "6.6.6.6,")], None, "http"),
        ([("x-forwarded-proto", "javascript")], None, "http"),
        ([("x-forwarded-proto", "https"), ("x-forwarded-proto", "http")], None, "http"),
        ([(name.lower(), value) for name, value in SPOOFED.items()], None, "http"),
    ],
)
def test_over_the_unix_socket_only_the_proxys_own_words_are_believed(
    kind: str, headers: list[tuple[str, str]], client: str | None, scheme: str
) -> None:
    given = {name.encode(): value.encode() for name, value in headers}
    begun = "http" if kind == "http" else "ws"
    seen: dict[str, Any] = {"type": kind, "server": ("/run/app.sock", None), "client": None, "scheme": begun}
    take_forwarded(seen, given)
    assert seen["client"] == ((client, 0) if client else None)
    assert seen["scheme"] == (scheme if kind == "http" else scheme.replace("http", "ws"))


@pytest.mark.parametrize("in_front", ["", "/my/api"])
async def test_a_path_in_front_may_be_kept_by_the_proxy_or_stripped(
    monkeypatch: pytest.MonkeyPatch, log_lines: LogLines, in_front: str
) -> None:
    monkeypatch.setenv("APP_ROOT_PATH", "/my/api")
    monkeypatch.setenv("APP_LOG_FORMAT", "json")
    async with client_of(extended(create_app(load(Settings)))) as client:
        seen = (await client.get(f"{in_front}/seen?a=1")).json()
        assert seen["url"] == "http://localhost/my/api/seen?a=1"
        assert seen["there"] == "http://localhost/my/api/api/things/1"
        redirect = await client.get(f"{in_front}/slash?a=1")
        assert redirect.headers["location"] == "http://localhost/my/api/slash/?a=1"
        assert (await client.get(f"{in_front}/openapi.json")).json()["servers"] == [{"url": "/my/api"}]
        assert (await client.get(f"{in_front}/nowhere")).status_code == 404
        # Supervisors ask on the socket, where there is no path in front and no name.
        for probe in ("/health", "/ready"):
            assert (await client.get(probe, headers={"Host": "10.0.0.1"})).status_code == 200
            assert (await client.get(f"/my/api{probe}")).status_code == 200
    paths = {line["path"] for line in log_lines() if line["logger"] == "app.access"}
    assert all(path.startswith("/my/api/") for path in paths)


async def test_a_path_that_only_begins_alike_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setenv("APP_ROOT_PATH", "/my")
    app = create_app(load(Settings))

    @app.get("/my-own")
    async def own(request: Request) -> str:
        return request.url.path

    async with client_of(app) as client:
        assert (await client.get("/my-own")).json() == "/my/my-own"
        assert (await client.get("/my/docs")).status_code == 200
        assert (await client.get("/mydocs")).status_code == 404
        assert (await client.get("/my")).status_code == 404


@pytest.mark.parametrize("good", ["0123456789abcdef0123456789abcdef", "12345678", "a_-B" * 16])
async def test_a_good_request_id_is_kept(client: httpx2.AsyncClient, good: str) -> None:
    answer = await client.get("/health", headers={"X-Request-ID": good})
    assert answer.headers.get_list("x-request-id") == [good]


@pytest.mark.parametrize("bad", ["", "short", 'evil"identifier', "a" * 65, "new line\\n", "äöüäöüäöü"])
async def test_a_bad_request_id_is_replaced(client: httpx2.AsyncClient, bad: str) -> None:
    answer = await client.get("/health", headers=[(b"X-Request-ID", bad.encode())])
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.headers["x-request-id"] != bad


async def test_the_access_line_says_everything_once(
    app: FastAPI, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fraction that floating point has exactly.
    monkeypatch.setattr(access, "time", Mock(time=lambda: 1_795_324_607.0625))
    async with client_of(app) as client:
        answer = await client.get("/api/things/7?token=hunter2", headers={"User-Agent": "tester"})
    (line,) = [line for line in log_lines() if line["logger"] == "app.access"]
    duration = line.pop("duration_ms")
    assert 0 < duration < 60_000
    assert line == {
        "event": "request",
        "logger": "app.access",
        "level": "info",
        "method": "GET",
        "route": "/api/things/{number}",
        "path": "/api/things/7",
        "status": 200,
        "bytes": len(answer.content),
        "client": "127.0.0.1",
        "user_agent": "tester",
        "timestamp": "2026-11-22T05:16:47.062500Z",
        "request_id": answer.headers["x-request-id"],
    }


async def test_the_access_line_has_the_time_also_when_the_clock_goes_on_or_back(
    log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = Exchange({"path": "/", "client": None}, AsyncMock(), {}, "0123456789")
    times = {
        1_795_324_607.9375: "2026-11-22T05:16:47.937500Z",
        1_795_324_608.0: "2026-11-22T05:16:48.000000Z",
        1_795_324_608.03125: "2026-11-22T05:16:48.031250Z",
        1_795_324_606.5: "2026-11-22T05:16:46.500000Z",
    }
    for now_s in times:
        monkeypatch.setattr(access, "time", Mock(time=Mock(return_value=now_s)))
        access.write(exchange, "GET", None, 200, 0.1)
    assert [line["timestamp"] for line in log_lines()] == list(times.values())


@pytest.mark.parametrize(("took_s", "written"), [(0.000_0415, 0.041), (1.0625, 1062.5), (61.25, 61_250.0)])
async def test_the_access_line_has_the_time_in_milliseconds(
    took_s: float, written: float, log_lines: LogLines
) -> None:
    exchange = Exchange({"path": "/", "client": None}, AsyncMock(), {}, "0123456789")
    access.write(exchange, "GET", None, 200, took_s)
    (line,) = log_lines()
    assert line["duration_ms"] == written
    assert (line["route"], line["client"], line["user_agent"]) == (None, None, None)


async def test_probes_write_no_line_unless_debugging(app: FastAPI, log_lines: LogLines) -> None:
    async with client_of(app) as client:
        await client.get("/health")
        await client.get("/ready")
    assert [line for line in log_lines() if line["logger"] == "app.access"] == []


def test_a_websocket_gets_its_line_too(app: FastAPI, log_lines: LogLines) -> None:
    with TestClient(app) as client, client.websocket_connect("ws://localhost/echo") as socket:
        socket.send_text("hello")
        assert socket.receive_text() == "hello"
    (line,) = [line for line in log_lines() if line["logger"] == "app.access"]
    assert (line["method"], line["route"], line["status"]) == ("WEBSOCKET", "/echo", 101)


def test_a_websocket_that_crashes_is_closed_and_logged_once(app: FastAPI, log_lines: LogLines) -> None:
    with TestClient(app) as client, client.websocket_connect("ws://localhost/crash") as socket:
        with pytest.raises(WebSocketDisconnect) as ended:
            socket.receive_text()
        assert ended.value.code == 1011
    (crash,) = [line for line in log_lines() if "exception" in line]
    assert (crash["event"], crash["route"]) == ("crash", "/crash")
    assert crash["request_id"]


def test_a_websocket_of_another_host_is_refused(app: FastAPI, log_lines: LogLines) -> None:
    with (
        TestClient(app) as client,
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("ws://evil.test/echo"),
    ):
        pass
    (line,) = [line for line in log_lines() if line["logger"] == "app.access"]
    assert line["status"] == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("api.test", 200),
        ("API.TEST:8443", 200),
        ("a.wild.test", 200),
        ("wild.test", 400),
        ("evil.test", 400),
        ("api.test.evil.test", 400),
        ("api.test@evil.test", 400),
        ("[::1]", 400),
        ("", 400),
    ],
)
async def test_only_our_own_names_are_answered(
    production: None, monkeypatch: pytest.MonkeyPatch, host: str, status: int
) -> None:
    monkeypatch.setenv("APP_ALLOWED_HOSTS", "api.test, *.wild.test")
    app = create_app()

    @app.get("/here")
    async def here() -> None: ...

    async with client_of(app) as client:
        answer = await client.get("/here", headers={"Host": host})
        assert answer.status_code == status
        assert (await client.get("/health", headers={"Host": host})).status_code == 200


async def test_two_host_headers_are_refused(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/api/things/1", headers=[("Host", "localhost"), ("Host", "localhost")])
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("route", ["/length", "/json"])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_refused(
    client: httpx2.AsyncClient, route: str, announced: bool
) -> None:
    async def parts() -> AsyncGenerator[bytes]:
        for _ in range(11):
            yield b"x" * 100_000

    content = b"x" * 1_100_000 if announced else parts()
    answer = await client.post(route, content=content)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == "The request body is larger than 1000000 bytes."


@pytest.mark.parametrize(
    ("path", "status", "options"),
    [
        ("/crash", 500, {}),
        ("/length", 413, {"content": b"x" * 1_000_001}),
        ("/length", 400, {"headers": {"Host": "other.test"}}),
    ],
)
async def test_a_page_of_another_origin_may_read_why_it_is_refused(
    path: str, status: int, options: dict[str, Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_BODY_LIMIT_BYTES", "1000000")
    monkeypatch.setenv("APP_CORS_ORIGINS", "https://app.test")
    async with client_of(extended(create_app(load(Settings)))) as client:
        client.headers["Origin"] = "https://app.test"
        method = "GET" if path == "/crash" else "POST"
        answer = await client.request(method, path, **options)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == "https://app.test"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_a_body_at_the_limit_is_accepted(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/length", content=b"x" * 1_000_000)).json() == 1_000_000


@pytest.mark.parametrize("pause_s", [0.0, 30.0])
async def test_a_body_that_comes_too_slowly_is_refused(pause_s: float, client: httpx2.AsyncClient) -> None:
    async def parts() -> AsyncGenerator[bytes]:
        yield b"x"
        await asyncio.sleep(pause_s)
        yield b"x"

    started = time.monotonic()
    answer = await client.post("/length", content=parts())
    assert answer.status_code == (408 if pause_s else 200)
    if pause_s:
        assert answer.json()["detail"] == "The request body did not come within 0.5 seconds."
        assert time.monotonic() - started < pause_s


async def test_an_answer_may_take_longer_than_a_body(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/slow-parts")).text == "first last"


async def test_no_proxy_holds_events_back(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/events")).headers["x-accel-buffering"] == "no"
    assert "x-accel-buffering" not in (await client.get("/slow-parts")).headers


async def test_a_client_that_goes_while_it_sends_is_no_crash(app: FastAPI, log_lines: LogLines) -> None:
    messages = [{"type": "http.request", "body": b"x", "more_body": True}, {"type": "http.disconnect"}]
    sent = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/length", "headers": [(b"host", b"localhost")]}
    await app(scope | {"query_string": b"", "server": None, "client": None}, receive, send)
    assert sent[0]["status"] == 400
    assert [line["event"] for line in log_lines()] == ["request"]
