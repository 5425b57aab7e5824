"""How long an answer may take to begin, and how many requests are answered at a time."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from itertools import cycle

import httpx2
import pytest
from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from app.exchange import budget
from app.main import Settings, create_app
from app.settings import SettingsError, load
from tests.conftest import LogLines, client_of

BUDGET_S = 0.3
SLOW_S = 0.9
MOST = 100


class Dependency:
    """What routes wait for."""

    def __init__(self) -> None:
        """Let nobody through yet."""
        self.back = asyncio.Event()
        self.waiting = 0
        self.cancelled = 0

    async def use(self) -> None:
        """Wait until it is back."""
        self.waiting += 1
        try:
            await self.back.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1


class Addresses:
    """Gives each request the address that its `From` names, or one of many."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self.app = app
        self.others = cycle(f"198.51.100.{number}" for number in range(MOST))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "lifespan":
            named = dict(scope["headers"]).get(b"from", b"").decode()
            scope["client"] = (named or next(self.others), 0)
        await self.app(scope, receive, send)


@pytest.fixture
def dependency() -> Dependency:
    """A dependency that does not answer."""
    return Dependency()


@pytest.fixture
def app(settings: Settings, dependency: Dependency, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The application with routes that take long, a small budget and few places."""
    monkeypatch.setenv("APP_REQUEST_BUDGET_S", str(BUDGET_S))
    monkeypatch.setenv("APP_MAX_IN_FLIGHT", str(MOST))
    app = create_app(load(Settings))
    app.add_middleware(Addresses)

    for name in ("one", "two", "three"):

        @app.get("/stuck/" + name + "/{number}", dependencies=[budget(None)])
        async def stuck(number: int) -> int:
            await dependency.use()
            return number

    @app.get("/cut")
    async def cut() -> None:
        await dependency.use()

    @app.get("/quick")
    async def quick() -> str:
        return "quick"

    @app.post("/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.get("/longer", dependencies=[budget(SLOW_S + 5)])
    @app.get("/shorter", dependencies=[budget(0.01)])
    async def longer() -> str:
        await asyncio.sleep(SLOW_S)
        return "longer"

    @app.get("/after")
    async def after(tasks: BackgroundTasks) -> str:
        async def work() -> None:
            await asyncio.sleep(SLOW_S)
            dependency.back.set()

        tasks.add_task(work)
        return "answered"

    @app.get("/stream")
    async def stream(first_s: float = 0) -> StreamingResponse:
        async def parts() -> AsyncGenerator[str]:
            await asyncio.sleep(first_s)
            yield "first "
            await asyncio.sleep(SLOW_S)
            yield "last"

        return StreamingResponse(parts())

    @app.get("/download")
    async def download() -> StreamingResponse:
        async def parts() -> AsyncGenerator[bytes]:
            yield b"x"
            await dependency.use()
            yield b"x"

        return StreamingResponse(parts(), headers={"Content-Length": "2"})

    @app.websocket("/echo")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await asyncio.sleep(SLOW_S)
        await socket.send_text(await socket.receive_text())

    return app


async def until(condition: Callable[[], object]) -> None:
    """Wait until it is true."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_an_answer_that_does_not_begin_in_time_is_504_and_its_work_is_cancelled(
    client: httpx2.AsyncClient, dependency: Dependency, log_lines: LogLines
) -> None:
    started = time.monotonic()
    answer = await client.get("/cut")
    assert BUDGET_S <= time.monotonic() - started < 2
    assert answer.status_code == 504
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == "The answer did not begin within 0.3 seconds."
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert (dependency.cancelled, dependency.waiting) == (1, 0)
    cut, access = [line for line in log_lines() if line["logger"].startswith("app.")]
    assert (cut["event"], cut["route"], cut["budget_s"]) == ("budget_exceeded", "/cut", BUDGET_S)
    assert (access["status"], access["request_id"]) == (504, cut["request_id"])


@pytest.mark.parametrize("path", ["/stream", f"/stream?first_s={SLOW_S}"])
async def test_a_stream_that_has_begun_is_not_cut(client: httpx2.AsyncClient, path: str) -> None:
    assert (await client.get(path)).text == "first last"


async def test_a_slow_upload_costs_nothing_of_the_budget_and_takes_no_place(
    client: httpx2.AsyncClient, dependency: Dependency
) -> None:
    sent = 0

    async def parts() -> AsyncGenerator[bytes]:
        nonlocal sent
        for _ in range(3):
            sent += 1
            yield b"x"
            await asyncio.sleep(SLOW_S / 2)

    uploads = [asyncio.create_task(client.post("/length", content=parts())) for _ in range(MOST + 2)]
    await until(lambda: sent >= MOST + 2)
    assert (await client.get("/quick")).status_code == 200
    assert {(await upload).text for upload in uploads} == {"3"}


async def test_a_route_may_have_a_budget_of_its_own(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/longer")).json() == "longer"
    answer = await client.get("/shorter")
    assert answer.json()["detail"] == "The answer did not begin within 0.01 seconds."


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_budget_of_nothing_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="more than 0 seconds, or None"):
        budget(seconds)


def test_a_websocket_has_no_budget(app: FastAPI) -> None:
    with TestClient(app) as client, client.websocket_connect("ws://localhost/echo") as socket:
        socket.send_text("still here")
        assert socket.receive_text() == "still here"


async def test_what_a_stopping_worker_cuts_is_no_matter_of_the_budget(
    app: FastAPI, dependency: Dependency
) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/cut",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    task = asyncio.create_task(app(scope, receive, send))
    await until(lambda: dependency.waiting)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sent == []


def test_a_budget_that_outlasts_a_stopping_worker_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_DRAIN_S", "20")
    with pytest.raises(SettingsError) as caught:
        load(Settings)
    assert caught.value.mistakes == {
        "APP_REQUEST_BUDGET_S": "is 20 s, and must be less than SERVER_DRAIN_S, which is 20 s:"
        " lower APP_REQUEST_BUDGET_S, or raise SERVER_DRAIN_S"
    }
    monkeypatch.setenv("APP_REQUEST_BUDGET_S", "19.9")
    load(Settings)


async def test_a_slow_dependency_leaves_room_for_what_does_not_use_it(
    client: httpx2.AsyncClient, dependency: Dependency
) -> None:
    async def fill(name: str) -> list[asyncio.Task[httpx2.Response]]:
        tasks = [asyncio.create_task(client.get(f"/stuck/{name}/{number}")) for number in range(MOST)]
        settled = [*held, *tasks]
        await until(lambda: dependency.waiting + sum(task.done() for task in settled) == len(settled))
        return tasks

    held: list[asyncio.Task[httpx2.Response]] = []
    waiting = []
    for name in ("one", "two", "three"):
        held += await fill(name)
        waiting.append(dependency.waiting)
        # Whoever does not use it is served, however many routes are stuck.
        for path, status in (("/quick", 200), ("/health", 200), ("/nowhere", 404)):
            assert (await client.get(path)).status_code == status
    assert waiting[0] == MOST * 3 // 4
    assert waiting == sorted(waiting)
    assert waiting[-1] < MOST

    refused = [task.result() for task in held if task.done()]
    assert {answer.status_code for answer in refused} == {503}
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].json()["request_id"] == refused[0].headers["x-request-id"]
    dependency.back.set()
    answered = [(await task).status_code for task in held]
    assert answered.count(200) == waiting[-1]
    assert (await client.get("/stuck/one/1")).status_code == 200


@pytest.mark.parametrize(
    ("addresses", "other"),
    [
        pytest.param(["192.0.2.1"], "192.0.2.2", id="IPv4"),
        pytest.param(["2001:db8::1", "2001:db8::ffff:2"], "2001:db8:0:1::1", id="IPv6"),
    ],
)
async def test_one_address_leaves_half_of_the_places_to_the_others(
    client: httpx2.AsyncClient, dependency: Dependency, addresses: list[str], other: str
) -> None:
    def ask(path: str, address: str) -> asyncio.Task[httpx2.Response]:
        # What a client may write changes nothing.
        return asyncio.create_task(client.get(path, headers={"From": address, "X-Forwarded-For": path}))

    froms = cycle(addresses)
    tasks = [ask(f"/stuck/one/{number}", next(froms)) for number in range(MOST)]
    await until(lambda: dependency.waiting + sum(task.done() for task in tasks) == MOST)
    assert dependency.waiting == MOST // 2
    refused = [task.result() for task in tasks if task.done()]
    assert {(answer.status_code, answer.headers["retry-after"]) for answer in refused} == {(429, "1")}
    assert refused[0].json()["detail"] == "No more than 50 requests of one address are answered at a time."
    # It is refused whatever it asks for, and nobody else is, not even where it waits.
    assert (await ask("/quick", addresses[0])).status_code == 429
    assert (await ask("/quick", other)).status_code == 200
    elsewhere = ask("/stuck/one/1", other)
    await until(lambda: dependency.waiting == MOST // 2 + 1)
    dependency.back.set()
    assert (await elsewhere).status_code == 200
    assert [(await task).status_code for task in tasks].count(200) == MOST // 2
    assert (await ask("/quick", addresses[0])).status_code == 200


async def test_when_every_place_is_taken_only_probes_are_answered(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, dependency: Dependency
) -> None:
    monkeypatch.setenv("APP_MAX_IN_FLIGHT", "1")
    app = create_app(load(Settings))
    app.add_api_route("/stuck", dependency.use)
    app.add_api_route("/quick", dependency.use)

    @app.websocket("/echo")
    async def echo(socket: WebSocket) -> None:
        await socket.accept()

    async with client_of(app) as client:
        stuck = asyncio.create_task(client.get("/stuck"))
        await until(lambda: dependency.waiting)
        started = time.monotonic()
        for method in ("GET", "POST"):
            assert (await client.request(method, "/quick", content=b"{}")).status_code == 503
        assert time.monotonic() - started < 3
        for probe in ("/health", "/ready"):
            assert (await client.get(probe)).status_code in {200, 503}
            assert "retry-after" not in (await client.get(probe)).headers
        with (
            pytest.raises(WebSocketDisconnect) as refused,
            TestClient(app).websocket_connect("ws://localhost/echo"),
        ):
            pass
        assert refused.value.code == 1013
        dependency.back.set()
        assert (await stuck).status_code == 200
        assert (await client.get("/quick")).status_code == 200


@pytest.mark.parametrize("path", [f"/stream?first_s={SLOW_S}", "/download"])
async def test_what_streams_takes_no_place(
    client: httpx2.AsyncClient, dependency: Dependency, path: str
) -> None:
    streams = [asyncio.create_task(client.get(path)) for _ in range(MOST // 2)]
    await asyncio.sleep(0.1)
    streams += [asyncio.create_task(client.get(path)) for _ in range(MOST // 2)]
    await asyncio.sleep(0.1)
    streams += [asyncio.create_task(client.get(path)) for _ in range(MOST // 2)]
    await asyncio.sleep(0.1)
    assert (await client.get("/quick")).status_code == 200
    dependency.back.set()
    assert {(await stream).status_code for stream in streams} == {200}


async def test_what_is_done_after_the_answer_has_no_budget(
    client: httpx2.AsyncClient, dependency: Dependency
) -> None:
    answer = await client.get("/after")
    assert answer.json() == "answered"
    assert dependency.back.is_set()
