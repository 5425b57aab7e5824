"""Every error has one shape, and none tells what only the log should know."""

import asyncio
import json
from collections.abc import AsyncGenerator

import httpx2
import pytest
from fastapi import FastAPI, HTTPException, Request, Response, WebSocketException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from app.errors import problem
from app.main import Settings, create_app
from tests.conftest import LogLines, client_of


class Order(BaseModel, extra="forbid"):
    """A body."""

    number: int


class SoldOutError(Exception):
    """An error that has a handler of its own."""


async def sold_out(request: Request, _error: Exception) -> Response:
    """Answer it, and name what was ordered."""
    return problem(409, f"sold out: {(await request.body()).decode()}")


async def mounted(scope: Scope, _receive: Receive, send: Send) -> None:
    """Fail outside all routes."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        raise WebSocketException(1003)
    if scope["path"].endswith("/late"):
        await send({"type": "http.response.start", "status": 200, "headers": []})
    raise SoldOutError if scope["path"].endswith("/sold-out") else HTTPException(418)


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """The application with routes that fail."""
    app = create_app(settings)

    @app.post("/orders")
    async def create_order(order: Order) -> None:
        raise SoldOutError

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "I am a teapot", headers={"X-Tea": "none"})

    @app.patch("/teapot")
    async def fill() -> None: ...

    @app.get("/unchanged")
    async def unchanged() -> None:
        raise HTTPException(304)

    @app.get("/crash")
    async def crash() -> None:
        password = "hunter2"
        raise ValueError(f"crashed with {len(password)} letters")

    @app.get("/crash-late")
    async def crash_late() -> StreamingResponse:
        async def parts() -> AsyncGenerator[bytes]:
            yield b"first"
            raise ValueError("after the first byte")

        return StreamingResponse(parts())

    app.mount("/mounted", mounted)
    app.add_exception_handler(SoldOutError, sold_out)
    return app


def assert_problem(answer: httpx2.Response, status: int) -> dict[str, object]:
    """Check the shape that all errors share."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, object] = answer.json()
    assert problem["type"] == "about:blank"
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    return problem


async def sent_for(app: FastAPI, path: str) -> list[Message]:
    """Return what a server gets to send for a request, also where it then has to cut the connection."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(60)
        raise AssertionError("nobody waits that long")

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    return sent


async def test_an_unknown_route_and_a_wrong_method(client: httpx2.AsyncClient) -> None:
    assert assert_problem(await client.get("/nowhere"), 404)["title"] == "Not Found"
    wrong_method = await client.put("/teapot")
    assert_problem(wrong_method, 405)
    assert wrong_method.headers["allow"] == "GET, PATCH"


async def test_an_http_error_keeps_its_detail_and_headers(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/teapot")
    assert assert_problem(answer, 418)["detail"] == "I am a teapot"
    assert answer.headers["x-tea"] == "none"
    assert (await client.get("/unchanged")).content == b""


async def test_a_handler_may_read_the_body_again(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/orders", json={"number": 1})
    assert assert_problem(answer, 409)["detail"] == 'sold out: {"number":1}'


async def test_errors_outside_the_routes_have_their_handlers_too(app: FastAPI, log_lines: LogLines) -> None:
    async with client_of(app) as client:
        assert_problem(await client.get("/mounted/teapot"), 418)
        assert assert_problem(await client.get("/mounted/sold-out"), 409)["detail"] == "sold out: "
    with TestClient(app) as sockets, sockets.websocket_connect("ws://localhost/mounted/here") as socket:
        with pytest.raises(WebSocketDisconnect) as ended:
            socket.receive_text()
        assert ended.value.code == 1003
    assert [line for line in log_lines() if line["event"] == "crash"] == []


async def test_no_handler_answers_what_has_begun(app: FastAPI, log_lines: LogLines) -> None:
    sent = await sent_for(app, "/mounted/late")
    assert [message["type"] for message in sent] == ["http.response.start"]
    crash, access = log_lines()
    assert (crash["event"], crash["exception"][0]["exc_type"]) == ("crash", "HTTPException")
    assert (access["event"], access["status"]) == ("request", 200)


async def test_a_validation_error_names_the_field_but_never_its_value(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/orders", json={"number": "hunter2"})
    errors = assert_problem(answer, 422)["errors"]
    assert errors == [
        {
            "location": ["body", "number"],
            "message": "Input should be a valid integer, unable to parse string as an integer",
            "type": "int_parsing",
        }
    ]
    assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    "body", [b"{", b'{"number": 1, "\\ud800": 2}', b"\xff", b'{"number": "\\ud800"}', b"[" * 100_000]
)
async def test_a_broken_body_is_the_clients_error(client: httpx2.AsyncClient, body: bytes) -> None:
    answer = await client.post("/orders", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    assert_problem(answer, answer.status_code)


async def test_a_crash_is_logged_once_and_tells_the_client_only_its_id(
    app: FastAPI, log_lines: LogLines
) -> None:
    async with client_of(app) as client:
        answer = await client.get("/crash")
    problem = assert_problem(answer, 500)
    assert set(problem) == {"type", "title", "status", "request_id"}
    lines = log_lines()
    crashes = [line for line in lines if "exception" in line]
    assert [line["event"] for line in crashes] == ["crash"]
    assert crashes[0]["request_id"] == problem["request_id"]
    assert crashes[0]["exception"][0]["exc_value"] == "crashed with 7 letters"
    assert "hunter2" not in json.dumps(lines)


@pytest.mark.parametrize("kind", [Exception, 500])
async def test_a_crash_may_have_a_handler_and_is_logged_all_the_same(
    app: FastAPI, log_lines: LogLines, kind: type[Exception] | int
) -> None:
    async def apologize(request: Request, error: Exception) -> Response:
        return problem(500, f"{request.url.path}: {error}")

    app.add_exception_handler(kind, apologize)
    async with client_of(app) as client:
        answer = await client.get("/crash")
    assert assert_problem(answer, 500)["detail"] == "/crash: crashed with 7 letters"
    assert [line["event"] for line in log_lines() if "exception" in line] == ["crash"]


async def test_a_handler_of_crashes_that_crashes_takes_nothing_away(
    app: FastAPI, log_lines: LogLines
) -> None:
    def crash_again(_request: Request, _error: Exception) -> Response:
        raise RuntimeError("again")

    app.add_exception_handler(Exception, crash_again)
    async with client_of(app) as client:
        assert_problem(await client.get("/crash"), 500)
    crash, again = (line["exception"][0]["exc_value"] for line in log_lines() if "exception" in line)
    assert (crash, again) == ("crashed with 7 letters", "again")


async def test_a_crash_after_the_first_byte_cuts_the_answer(app: FastAPI, log_lines: LogLines) -> None:
    sent = await sent_for(app, "/crash-late")
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[-1]["more_body"]
    assert [line["event"] for line in log_lines() if "exception" in line] == ["crash"]
