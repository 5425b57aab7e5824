"""Request ids, access lines, host names and the body limit."""

from collections.abc import AsyncGenerator

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Request, WebSocket
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from app.main import Settings, create_app
from app.settings import load
from tests.conftest import LogLines, client_of


@pytest.fixture
def app(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The application with a few routes to call, and a limit that is quickly reached."""
    monkeypatch.setenv("APP_BODY_LIMIT_BYTES", "1000000")
    app = create_app(load(Settings))
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

    app.include_router(router, prefix="/api")
    return app


@pytest.mark.parametrize("good", ["0123456789abcdef0123456789abcdef", "12345678", "a_-B" * 16])
async def test_a_good_request_id_is_kept(client: httpx2.AsyncClient, good: str) -> None:
    answer = await client.get("/health", headers={"X-Request-ID": good})
    assert answer.headers.get_list("x-request-id") == [good]


@pytest.mark.parametrize("bad", ["", "short", 'evil"identifier', "a" * 65, "new line\\n", "äöüäöüäöü"])
async def test_a_bad_request_id_is_replaced(client: httpx2.AsyncClient, bad: str) -> None:
    answer = await client.get("/health", headers=[(b"X-Request-ID", bad.encode())])
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.headers["x-request-id"] != bad


async def test_the_access_line_says_everything_once(app: FastAPI, log_lines: LogLines) -> None:
    async with client_of(app) as client:
        answer = await client.get("/api/things/7?token=hunter2", headers={"User-Agent": "tester"})
    (line,) = [line for line in log_lines() if line["logger"] == "app.access"]
    duration = line.pop("duration_ms")
    timestamp = line.pop("timestamp")
    assert 0 < duration < 60_000
    assert timestamp
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
        "request_id": answer.headers["x-request-id"],
    }


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


async def test_a_body_at_the_limit_is_accepted(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/length", content=b"x" * 1_000_000)).json() == 1_000_000
