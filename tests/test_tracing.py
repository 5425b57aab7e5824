"""Tracing and Sentry, switched on as the README says: by a line in the Makefile and a variable."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.combinations import render

pytestmark = pytest.mark.slow

OBSERVERS = Path(__file__).parent / "scenarios" / "observers.py"
CANARIES = [f"canary-{place}" for place in ("header", "body", "local", "query", "password")]
# A collector that is a package.
ROTEL = "rotel==0.0.1a15"
# Its routes make every kind of span; the parts of a canary meet only while it runs.
TRIAL = """
import asyncio
import os

import httpx2
import structlog
from fastapi import Request
from sqlalchemy import text

from app.cache import CacheClient
from app.db import Reading
from app.main import create_app

log = structlog.get_logger(__name__)


def create():
    app = create_app()

    @app.get("/api/v1/everything/{number}")
    async def everything(number: int, session: Reading, cache: CacheClient):
        log.info("worked", number=number)
        await session.execute(text("SELECT 42"))
        await cache.get("a-key")
        async with httpx2.AsyncClient() as client:
            answer = await client.get(os.environ["SECOND"] + "/seen?token=canary-" + "query")
        return answer.json()

    @app.post("/api/v1/crash/{number}")
    async def crash(number: int, request: Request):
        body = await request.json()
        local = "canary-" + "local"
        size = len(body) + len(local)
        raise RuntimeError(f"a crash at https://user:{'canary-' + 'password'}@host/ of {size}")

    @app.get("/api/v1/slow")
    async def slow():
        await asyncio.sleep(1)

    return app
"""


@dataclass
class Switched:
    """A project with both groups: its folder, and the interpreter of a deployment."""

    project: Path
    python: Path


def make(project: Path, *words: str) -> str:
    """Make a target with this Python, and with uv at hand."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--silent", *words, f"PYTHON={Path(sys.executable).resolve()}"],
        cwd=project,
        env=environment | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def uv(project: Path, *words: object) -> str:
    """Run uv in a project."""
    command = [str(Path(sys.executable).with_name("uv")), *map(str, words)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def switched(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Switched:
    """A project whose owner switched both on; a deployment's environment is made of its pins."""
    project = render(template, tmp_path_factory.mktemp("tracing") / "project", cache="redis")
    before = (project / "requirements.txt").read_text()
    assert not re.search(r"^(opentelemetry-sdk|sentry-sdk)==", before, re.MULTILINE)
    readme = (project / "README.md").read_text()
    (line,) = re.findall(r"^EXTRAS := tracing sentry$", readme, re.MULTILINE)
    makefile = project / "Makefile"
    makefile.write_text(re.sub(r"^EXTRAS :=$", line, makefile.read_text(), flags=re.MULTILINE))
    make(project, "pins")
    pins = (project / "requirements.txt").read_text()
    for package in ("opentelemetry-sdk", "opentelemetry-instrumentation-asyncpg", "sentry-sdk"):
        assert re.search(rf"^{package}==\S+ \\\n    --hash=", pins, re.MULTILINE), package
    make(project, "install", "pins-check")
    # As deploy/systemd.sh builds a release, in the project's folder.
    uv(project, "venv", "--quiet", "--python", Path(sys.executable).resolve(), ".release")
    wheels = ("--require-hashes", "--only-binary", ":all:", "--python", ".release/bin/python")
    uv(project, "pip", "sync", "--quiet", *wheels, "requirements.txt")
    (project / "trial.py").write_text(TRIAL)
    return Switched(project, project / ".release/bin/python")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Whether somebody listens on a port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def program(port: int, *command: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A server that listens on a port, for as long as it is needed."""
    with subprocess.Popen(
        [str(word) for word in command],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            wait_for(lambda: listens(port), f"{command} listens")
            yield process
        finally:
            process.kill()


@dataclass
class Observers:
    """The second service, Sentry and what keeps spans, on one port."""

    port: int
    folder: Path

    @property
    def address(self) -> str:
        """Where they are."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def dsn(self) -> str:
        """The DSN of the project in Sentry."""
        return f"http://0123456789abcdef0123456789abcdef@127.0.0.1:{self.port}/7"

    def told(self, name: str) -> list[Any]:
        """Everything that came so far."""
        file = self.folder / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def spans(self) -> list[dict[str, Any]]:
        """The spans that came so far."""
        return self.told("spans")

    def events(self) -> list[dict[str, Any]]:
        """The crashes that came so far."""
        lines = "\n".join(self.told("envelopes")).splitlines()
        return [event for event in map(json.loads, filter(None, lines)) if "exception" in event]


@pytest.fixture
def observers(switched: Switched, tmp_path: Path) -> Iterator[Observers]:
    """Those who are told."""
    port = free_port()
    with program(port, switched.python, OBSERVERS, port, tmp_path):
        yield Observers(port, tmp_path)


class Service:
    """gunicorn with two workers in production, beside a PostgreSQL and a Redis."""

    def __init__(self, switched: Switched, folder: Path, **environment: str) -> None:
        """Start it."""
        self.socket, self.log = folder / "app.sock", folder / "log"
        own = {name: text for name, text in os.environ.items() if not name.endswith("_URL")} | {
            "APP_ENVIRONMENT": "production",
            "APP_ALLOWED_HOSTS": "api.test",
            "APP_RELEASE": "release-7",
            "SERVER_BIND": f"unix:{self.socket}",
            "WEB_CONCURRENCY": "2",
        }
        beside = [".venv/bin/python -m scripts.postgresql", ".venv/bin/python -m scripts.redis"]
        command = f"{switched.python} -m gunicorn -c gunicorn_conf.py trial:create()"
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                " ".join([*beside, command]).split(),
                cwd=switched.project,
                env=own | environment,
                stdout=output,
                stderr=output,
            )

    def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """Ask once, on a connection of its own."""
        transport = httpx2.HTTPTransport(uds=str(self.socket))
        with httpx2.Client(transport=transport, base_url="http://api.test", timeout=30) as client:
            return client.request(method, path, **more)

    def lines(self) -> list[dict[str, Any]]:
        """What it logged; every line must be one JSON object."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def ready(self) -> bool:
        """Whether it serves."""
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        if not self.socket.exists():
            return False
        try:
            return self.ask("GET", "/health").status_code == 200
        except httpx2.TransportError:
            return False

    def stop(self) -> float:
        """Stop it; return how many seconds that took."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=60) == 0
        return time.monotonic() - started


@pytest.fixture
def start(switched: Switched, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start the service; it is stopped at the end whatever happened."""
    with ExitStack() as stack:

        def start(**environment: str) -> Service:
            service = Service(switched, tmp_path, **environment)
            stack.callback(service.process.wait, 60)
            stack.callback(service.process.terminate)
            wait_for(service.ready, "the service serves", 90)
            return service

        yield start


@contextmanager
def collector(project: Path, sink: str) -> Iterator[str]:
    """A real collector, which passes on what it gets; its address."""
    environment = project / ".collector"
    if not environment.exists():
        uv(project, "venv", "--quiet", "--python", Path(sys.executable).resolve(), environment)
        uv(project, "pip", "install", "--quiet", "--no-deps", "--python", environment, ROTEL)
    (agent,) = environment.rglob("rotel-agent")
    http, grpc = free_port(), free_port()
    options = {
        "otlp-http-endpoint": f"127.0.0.1:{http}",
        "otlp-grpc-endpoint": f"127.0.0.1:{grpc}",
        "exporter": "otlp",
        "otlp-exporter-endpoint": sink,
        "otlp-exporter-protocol": "http",
        "batch-timeout": "100ms",
    }
    words = [word for name, text in options.items() for word in (f"--{name}", text)]
    # It brings a Python processor, and so wants libpython.
    library = str(sysconfig.get_config_var("LIBDIR"))
    with program(http, agent, "start", *words, LD_LIBRARY_PATH=library):
        yield f"http://127.0.0.1:{http}"


def sampled(traceparent: str, *ids: str) -> bool:
    """Whether a traceparent says that its trace is recorded; it has these ids."""
    _, *found, flags = traceparent.split("-")
    assert found[: len(ids)] == list(ids)
    return bool(int(flags, 16) & 1)


def leaks(text: str) -> list[str]:
    """The canaries in a text."""
    return [canary for canary in CANARIES if canary in text]


def test_one_trace_leads_from_the_route_through_everything_it_asks(
    switched: Switched, observers: Observers, start: Callable[..., Service]
) -> None:
    with collector(switched.project, observers.address) as address:
        service = start(OTEL_EXPORTER_OTLP_ENDPOINT=address, SECOND=observers.address)
        foreign = f"00-{'ab' * 16}-{'cd' * 8}-01"
        headers = {"traceparent": foreign, "baggage": "who=canary-header", "x-a": "canary-header"}
        answer = service.ask("GET", "/api/v1/everything/7?token=canary-query", headers=headers)
        assert answer.status_code == 200, service.log.read_text()[-3000:]
        assert "baggage" not in answer.json(), "what a client says goes on to others"
        took = service.stop()
        wait_for(lambda: len(observers.spans()) >= 4, "the spans")
    assert took < 20
    spans = observers.spans()
    (route,) = [span for span in spans if span["name"] == "GET /api/v1/everything/{number}"]
    assert route["parent"] == "", "a client chose the trace"
    assert route["trace"] != "ab" * 16
    assert {span["trace"] for span in spans if span["parent"]} == {route["trace"]}
    assert not [span for span in spans if "/health" in span["whole"]], "a probe is traced"
    mine = [span for span in spans if span["trace"] == route["trace"]]
    scopes = {span["scope"].rpartition(".")[2] for span in mine}
    assert scopes == {"fastapi", "asyncpg", "redis", "httpx"}, scopes
    assert any("SELECT 42" in span["whole"] for span in mine)
    (outgoing,) = [span for span in mine if span["scope"].endswith("httpx")]
    assert sampled(answer.json()["traceparent"], route["trace"], outgoing["span"])
    assert outgoing["parent"] == route["span"]
    resource = route["resource"]
    assert resource["service.name"] == "my-api"
    assert resource["service.version"] == "release-7"
    assert resource["deployment.environment"] == "production"
    lines = {line["event"]: line for line in service.lines()}
    for event in ("worked", "request"):
        said = lines[event]
        assert (said["trace_id"], said["span_id"]) == (route["trace"], route["span"])
    assert "trace_id" not in lines["Application startup complete."]
    assert not leaks(json.dumps(spans))


def test_a_client_is_believed_where_the_owner_says_so_and_few_are_traced(
    observers: Observers, start: Callable[..., Service]
) -> None:
    service = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=observers.address,
        SECOND=observers.address,
        TRACING_TRUST_CLIENTS="true",
        TRACING_SAMPLE_RATIO="0",
    )
    foreign = f"00-{'ab' * 16}-{'cd' * 8}-01"
    asked = service.ask("GET", "/api/v1/everything/7", headers={"traceparent": foreign})
    unasked = service.ask("GET", "/api/v1/everything/8")
    service.stop()
    assert asked.json()["traceparent"].startswith(f"00-{'ab' * 16}-")
    assert not sampled(unasked.json()["traceparent"])
    assert {span["trace"] for span in observers.spans()} == {"ab" * 16}


def test_a_crash_is_told_once_and_nothing_of_what_a_client_sent(
    observers: Observers, start: Callable[..., Service]
) -> None:
    service = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=observers.address,
        SENTRY_DSN=observers.dsn,
        SENTRY_TRACES_SAMPLE_RATE="1",
        SECOND=observers.address,
    )
    answer = service.ask(
        "POST",
        "/api/v1/crash/7?token=canary-query",
        json={"secret": "canary-body"},
        headers={"x-anything": "canary-header", "authorization": "canary-header"},
    )
    assert answer.status_code == 500
    calling = service.ask("GET", "/api/v1/everything/8")
    assert not {"sentry-trace", "baggage"} & set(calling.json()), "others are told of Sentry"
    service.stop()
    wait_for(observers.events, "the crash")
    (event,) = observers.events()
    (error,) = event["exception"]["values"]
    assert error["type"] == "RuntimeError"
    assert error["value"] == "a crash at https://user:[redacted]@host/ of 13"
    assert error["stacktrace"]["frames"][-1]["function"] == "crash"
    assert not [frame for frame in error["stacktrace"]["frames"] if frame.get("vars")]
    assert event["transaction"] == "/api/v1/crash/{number}"
    assert (event["release"], event["environment"]) == ("release-7", "production")
    assert event["tags"]["request_id"] == answer.headers["x-request-id"]
    said = "\n".join(observers.told("envelopes"))
    assert '"transaction":"/api/v1/everything/{number}"' in said, "no trace came"
    assert "SELECT 42" in said
    assert not leaks(said), leaks(said)
    assert not leaks(json.dumps(observers.spans()))


def test_a_collector_and_a_sentry_that_are_away_cost_requests_nothing(
    observers: Observers, start: Callable[..., Service]
) -> None:
    # It takes connections and never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        service = start(
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{address}",
            SENTRY_DSN=f"http://0123456789abcdef0123456789abcdef@{address}/7",
            SECOND=observers.address,
            WEB_CONCURRENCY="1",
        )
        started = time.monotonic()
        with ThreadPoolExecutor(4) as threads:
            paths = [f"/api/v1/everything/{number}" for number in range(100)]
            answers = list(threads.map(lambda path: service.ask("GET", path), paths))
        assert [answer.status_code for answer in answers] == [200] * 100
        # Four at a time; an attempt to send takes five seconds.
        assert time.monotonic() - started < 100 * 5 / 4
        assert service.ask("POST", "/api/v1/crash/1", json={}).status_code == 500
        wait_for(lambda: "spans_not_sent" in service.log.read_text(), "the loss is told")
        time.sleep(6)
        service.ask("GET", "/api/v1/everything/101")
        took = service.stop()
    events = [line["event"] for line in service.lines()]
    assert events.count("spans_not_sent") == 1
    loggers = {line["logger"].partition(".")[0] for line in service.lines()}
    assert not loggers & {"opentelemetry", "requests", "sentry_sdk", "urllib3"}
    assert "Application shutdown complete." in events
    assert took < 15, took


def test_what_is_not_installed_is_named_with_its_mend(template: Path, tmp_path: Path) -> None:
    project = render(template, tmp_path / "project", database="none")
    uv(project, "venv", "--quiet", "--python", Path(sys.executable).resolve(), ".release")
    wheels = ("--require-hashes", "--only-binary", ":all:", "--python", ".release/bin/python")
    uv(project, "pip", "sync", "--quiet", *wheels, "requirements.txt")
    listed = uv(project, "pip", "list", "--python", ".release/bin/python")
    assert not re.search("opentelemetry-sdk|sentry|opentelemetry-instrumentation", listed)
    for variable, text, group in (
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318", "tracing"),
        ("SENTRY_DSN", "https://key@127.0.0.1/7", "sentry"),
    ):
        own = {"APP_ALLOWED_HOSTS": "api.test", "SERVER_BIND": f"unix:{tmp_path}/app.sock"}
        done = subprocess.run(
            [project / ".release/bin/python", "-m", "gunicorn", "-c", "gunicorn_conf.py"],
            cwd=project,
            env=own | {variable: text},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        *_, refused, last = [json.loads(line) for line in done.stdout.splitlines()]
        assert (refused["event"], refused["variable"]) == ("setting_refused", variable)
        assert f"EXTRAS := {group}" in refused["problem"]
        assert last["event"] == "start_failed"
        assert last["problem"].startswith(f"{variable} is set, but the dependencies `{group}`")


def test_the_code_that_the_groups_bring_to_life_is_clean(switched: Switched) -> None:
    done = subprocess.run(
        [".venv/bin/mypy", "app"], cwd=switched.project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
