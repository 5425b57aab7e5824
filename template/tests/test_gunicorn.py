"""The service as it runs in production: gunicorn, its workers, their signals and their logs."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.static import static_path

ROOT = Path(__file__).parents[1]


class Gunicorn:
    """A gunicorn that serves the slow application on a unix socket; everything it writes is kept."""

    def __init__(self, folder: Path, **environment: str) -> None:
        """Start it and wait until it is ready."""
        self.socket = folder / "app.sock"
        self.log = folder / "log"
        bind = environment.pop("SERVER_BIND", f"unix:{self.socket}")
        own = {"APP_LOG_FORMAT": "json", "WEB_CONCURRENCY": "1", "SERVER_BIND": bind, "PYTHONPATH": str(ROOT)}
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "gunicorn",
                    "-c",
                    ROOT / "gunicorn_conf.py",
                    "tests.slow_app:create()",
                ],
                cwd=folder,
                env=os.environ | own | environment,
                stdout=output,
                stderr=output,
            )

    def client(self) -> httpx2.Client:
        """Return a client that speaks over the socket."""
        transport = httpx2.HTTPTransport(uds=str(self.socket))
        return httpx2.Client(transport=transport, base_url="http://localhost", timeout=30)

    def scrape(self) -> dict[str, float]:
        """Return the series that it shows Prometheus, by name and labels."""
        transport = httpx2.HTTPTransport(uds=str(self.socket.with_name("metrics.sock")))
        with httpx2.Client(transport=transport, base_url="http://localhost", timeout=30) as client:
            answer = client.get("/metrics")
        assert answer.status_code == 200
        lines = (line.rpartition(" ") for line in answer.text.splitlines() if not line.startswith("#"))
        return {name: float(figure) for name, _, figure in lines}

    def get(self, path: str, **headers: str) -> httpx2.Response:
        """Ask once, on a connection of its own."""
        with self.client() as client:
            return client.get(path, headers=headers)

    def lines(self) -> list[dict[str, Any]]:
        """Parse everything that it wrote; every line must be one JSON object."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def events(self) -> list[str]:
        """Return what was logged."""
        return [line["event"] for line in self.lines()]

    def last(self) -> dict[str, Any]:
        """Return the last line, which says why it did not start."""
        last = self.lines()[-1]
        assert last["event"] == "start_failed", last
        assert last["level"] == "critical"
        return last

    def workers(self) -> list[int]:
        """Return the workers that were started, the oldest first."""
        started = (re.fullmatch(r"Booting worker with pid: (\d+)", event) for event in self.events())
        return [int(match[1]) for match in started if match]

    def ready(self) -> bool:
        """Return whether it is ready."""
        assert self.process.poll() is None, self.log.read_text()
        # The client leaves its own socket open where there is none to connect to.
        if not self.socket.exists():
            return False
        try:
            return self.get("/ready").status_code == 200
        except httpx2.TransportError:
            return False


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    """Return whether a process has ended; one that nobody waited for counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Gunicorn]]:
    """Start gunicorn; it is stopped at the end whatever happened."""
    running: list[Gunicorn] = []

    def start(folder: str = ".", **environment: str) -> Gunicorn:
        running.append(Gunicorn(tmp_path / folder, **environment))
        return running[-1]

    yield start
    for gunicorn in running:
        gunicorn.process.terminate()
        gunicorn.process.wait(timeout=30)


def test_a_whole_run_from_the_first_line_to_the_last(tmp_path: Path, start: Callable[..., Gunicorn]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(30)
        manager.bind(str(tmp_path / "notify"))
        gunicorn = start(NOTIFY_SOCKET=str(tmp_path / "notify"), HOME=str(tmp_path), XDG_RUNTIME_DIR="")
        told = manager.recv(1000).decode()
        assert gunicorn.ready(), "the service manager was told too early"
    assert told == f"READY=1\nSTATUS=worker {gunicorn.workers()[0]} serves"

    assert stat.S_IMODE(gunicorn.socket.stat().st_mode) == 0o770, "others may connect"
    sockets = [path for path in tmp_path.rglob("*") if path.is_socket()]
    assert {path.name for path in sockets} == {"app.sock", "metrics.sock", "notify"}, (
        "gunicorn takes commands"
    )
    assert {stat.S_IMODE(path.stat().st_mode) for path in sockets if path.suffix} == {0o770}
    believed = gunicorn.get("/seen", **{"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"})
    assert believed.json() == {"client": "203.0.113.7", "scheme": "https"}
    several = gunicorn.get("/seen", **{"X-Forwarded-For": "6.6.6.6, 203.0.113.7"})
    assert several.json()["client"] == "203.0.113.7", "a client may say who it is"
    spoofed = {"X-Real-IP": "6.6.6.6", "Forwarded": "for=6.6.6.6", "X_Forwarded_For": "6.6.6.6"}
    assert gunicorn.get("/seen", **spoofed).json() == {"client": None, "scheme": "http"}

    with ThreadPoolExecutor() as threads:
        slow = threads.submit(gunicorn.get, "/sleep?seconds=2")
        time.sleep(0.5)
        gunicorn.process.terminate()
        assert slow.result().json() == "slept", "a request in flight was cut"
    assert gunicorn.process.wait(timeout=30) == 0
    events = gunicorn.events()
    assert events[-1] == "Shutting down: Master"
    assert {"request", "Application shutdown complete."} <= set(events)
    assert not any(line["logger"] == "uvicorn.access" for line in gunicorn.lines())


def test_a_request_that_takes_too_long_to_drain_is_cut_and_the_rest_closes(
    start: Callable[..., Gunicorn],
) -> None:
    gunicorn = start(SERVER_DRAIN_S="1", APP_REQUEST_BUDGET_S="0.5")
    wait_for(gunicorn.ready)
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(gunicorn.get, "/sleep?seconds=60")
        time.sleep(0.5)
        gunicorn.process.terminate()
        assert slow.result().status_code == 500
    assert gunicorn.process.wait(timeout=30) == 0
    assert "Application shutdown complete." in gunicorn.events()


def test_an_interrupt_cuts_requests_but_closes_what_is_open(start: Callable[..., Gunicorn]) -> None:
    gunicorn = start()
    wait_for(gunicorn.ready)
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(gunicorn.get, "/sleep?seconds=60")
        time.sleep(0.5)
        gunicorn.process.send_signal(signal.SIGINT)
        assert gunicorn.process.wait(timeout=15) == 0
        assert slow.exception() or slow.result().status_code == 500
    assert "Application shutdown complete." in gunicorn.events()


def test_a_slow_request_is_no_blocked_event_loop_also_while_draining(start: Callable[..., Gunicorn]) -> None:
    gunicorn = start(SERVER_WORKER_TIMEOUT_S="4")
    wait_for(gunicorn.ready)
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(gunicorn.get, "/sleep?seconds=9")
        time.sleep(2)
        gunicorn.process.terminate()
        assert slow.result().json() == "slept"
    assert not any("TIMEOUT" in event for event in gunicorn.events())


def test_a_worker_that_is_stuck_or_killed_is_replaced_and_none_outlives_the_master(
    start: Callable[..., Gunicorn],
) -> None:
    gunicorn = start(SERVER_WORKER_TIMEOUT_S="4")
    wait_for(gunicorn.ready)
    with pytest.raises(httpx2.TransportError):
        gunicorn.get("/block")
    wait_for(lambda: "worker_stuck" in gunicorn.events())
    (stuck,) = [line for line in gunicorn.lines() if line["event"] == "worker_stuck"]
    assert re.search(r'tests/slow_app.py", line \d+ in block', "\n".join(stuck["stack"]))

    wait_for(gunicorn.ready)
    os.kill(gunicorn.workers()[1], signal.SIGKILL)
    wait_for(lambda: len(gunicorn.workers()) == 3)
    wait_for(gunicorn.ready)

    gunicorn.process.kill()
    wait_for(lambda: gone(gunicorn.workers()[2]))
    assert {"master_died", "Application shutdown complete."} <= set(gunicorn.events())


def test_the_service_manager_hears_nothing_when_the_application_cannot_start(
    tmp_path: Path, start: Callable[..., Gunicorn]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(0.5)
        manager.bind(str(tmp_path / "notify"))
        gunicorn = start(NOTIFY_SOCKET=str(tmp_path / "notify"), FAIL_LIFESPAN="1")
        assert gunicorn.process.wait(timeout=30) == 3
        with pytest.raises(TimeoutError):
            manager.recv(1000)
    assert gunicorn.last()["problem"] == "RuntimeError: the lifespan fails"


def test_middleware_that_breaks_the_lifespan_is_a_failed_start(start: Callable[..., Gunicorn]) -> None:
    gunicorn = start(BREAK_LIFESPAN="1")
    assert gunicorn.process.wait(timeout=30) == 3
    assert "KeyError: 'headers'" in gunicorn.last()["problem"]


def test_an_address_that_cannot_be_had_is_named_on_the_last_line(
    tmp_path: Path, start: Callable[..., Gunicorn]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        port = start(SERVER_BIND=address)
        (tmp_path / "other").mkdir()
        folder = start("other", SERVER_BIND="unix:/proc/app.sock")
        assert port.process.wait(timeout=30) == 1
        assert folder.process.wait(timeout=30) == 1
    assert "Connection in use" in port.last()["problem"]
    assert "SERVER_BIND" in port.last()["mend"]
    assert folder.last()["problem"].startswith("connection to /proc/app.sock failed")
    assert "belongs to the service's user" in folder.last()["mend"]


def test_nobody_is_believed_over_tcp(start: Callable[..., Gunicorn]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start(SERVER_BIND=address)

    def seen() -> httpx2.Response | None:
        try:
            headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
            return httpx2.get(f"http://{address}/seen", headers=headers)
        except httpx2.TransportError:
            return None

    wait_for(seen)
    answer = seen()
    assert answer is not None
    assert answer.json() == {"client": "127.0.0.1", "scheme": "http"}


def test_a_client_is_limited_whatever_it_says_about_itself(start: Callable[..., Gunicorn]) -> None:
    gunicorn = start(APP_RATE_LIMIT="2/hour")
    wait_for(gunicorn.ready)

    def ask(forwarded_for: str) -> int:
        return gunicorn.get("/seen", **{"X-Forwarded-For": forwarded_for}).status_code

    assert [ask(f"6.6.6.{number}, 203.0.113.7") for number in range(3)] == [200, 200, 429]
    assert ask("203.0.113.8") == 200


def test_what_workers_counted_stays_when_they_die_and_their_files_do_not(
    tmp_path: Path, start: Callable[..., Gunicorn]
) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    gunicorn = start(
        PROMETHEUS_MULTIPROC_DIR=str(folder),
        WEB_CONCURRENCY="2",
        APP_SLOT="blue",
        APP_ENVIRONMENT="production",
        APP_ALLOWED_HOSTS="localhost",
    )
    seen = 'http_request_duration_seconds_count{method="GET",route="/seen",slot="blue",status="200"}'
    workers, in_flight = 'workers{slot="blue"}', 'http_requests_in_flight{slot="blue"}'
    wait_for(gunicorn.ready)
    wait_for(lambda: gunicorn.scrape()[workers] == 2)
    for _ in range(20):
        assert gunicorn.get("/seen").status_code == 200
    wait_for(lambda: gunicorn.scrape()[seen] == 20)
    assert [gunicorn.scrape()[seen] for _ in range(3)] == [20, 20, 20]
    assert gunicorn.get("/metrics").status_code == 404

    with ThreadPoolExecutor() as threads:
        slow = [threads.submit(gunicorn.get, "/sleep?seconds=60") for _ in range(4)]
        wait_for(lambda: gunicorn.scrape()[in_flight] == 4)
        for _ in range(2):
            known = gunicorn.workers()
            for worker in known[-2:]:
                os.kill(worker, signal.SIGKILL)
            wait_for(lambda: len(gunicorn.workers()) == len(known) + 2)  # noqa: B023 - called at once
            wait_for(gunicorn.ready)
        assert all(isinstance(request.exception(), httpx2.TransportError) for request in slow)
    wait_for(lambda: gunicorn.scrape()[workers] == 2)
    assert gunicorn.scrape()[in_flight] == 0
    assert gunicorn.scrape()[seen] == 20
    assert gunicorn.get("/seen").status_code == 200
    wait_for(lambda: gunicorn.scrape()[seen] == 21)
    assert [gunicorn.scrape()[seen] for _ in range(3)] == [21, 21, 21]
    owners = {path.stem.rpartition("_")[2] for path in folder.iterdir()}
    assert owners == {"ended", str(gunicorn.process.pid), *map(str, gunicorn.workers()[-2:])}
    assert "metrics_not_kept" not in gunicorn.events()


def the_level_changes_while_it_serves(gunicorn: Gunicorn) -> None:
    """Tell the master to have its workers log from another level on."""
    # One that starts later reads the file by itself.
    wait_for(lambda: gunicorn.events().count("Application startup complete.") == 2)
    file = gunicorn.socket.with_name("log-level")
    for number, (level, event) in enumerate(
        [("LOUD", "log_level_refused"), ("DEBUG", "log_level_changed"), ("INFO", "log_level_changed")]
    ):
        file.write_text(f"{level}\n")
        gunicorn.process.send_signal(signal.SIGUSR1)
        # Both workers.
        said = 2 * max(1, number)
        wait_for(lambda event=event, said=said: gunicorn.events().count(event) == said)  # type: ignore[misc]
        gunicorn.get("/health")
    probes = [line for line in gunicorn.lines() if line.get("path") == "/health"]
    assert [line["level"] for line in probes] == ["debug"]
    assert len(gunicorn.workers()) == 2, "a worker was replaced"


def test_static_files_are_published_before_there_are_workers(
    tmp_path: Path, start: Callable[..., Gunicorn]
) -> None:
    gunicorn = start(APP_STATIC_DIR=str(tmp_path / "published"), WEB_CONCURRENCY="2")
    wait_for(gunicorn.ready)
    the_level_changes_while_it_serves(gunicorn)
    published = [path for path in tmp_path.glob("published/*/*") if path.is_file()]
    assert [f"/static/{path.parent.name}/{path.name}" for path in published] == [static_path("favicon.svg")]
    assert gunicorn.get(static_path("favicon.svg")).content == published[0].read_bytes()


def test_a_folder_that_takes_no_files_stops_nothing(start: Callable[..., Gunicorn]) -> None:
    gunicorn = start(APP_STATIC_DIR="/proc/nowhere/static", WEB_CONCURRENCY="2")
    wait_for(gunicorn.ready)
    assert gunicorn.events().count("static_not_published") == 1
    assert gunicorn.get(static_path("favicon.svg")).status_code == 200


def test_an_application_that_cannot_be_imported_ends_with_json_too(tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise ImportError('no such module')\n")
    environment = {"APP_LOG_FORMAT": "json", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", ROOT / "gunicorn_conf.py"],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0
    lines = [json.loads(line) for line in (ended.stdout + ended.stderr).splitlines()]
    assert any("no such module" in str(line.get("text")) for line in lines)
    assert (lines[-1]["event"], lines[-1]["problem"]) == ("start_failed", "ImportError: no such module")
