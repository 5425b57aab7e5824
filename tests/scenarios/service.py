"""A service's whole life in production settings, as its operator would see it.

Runs with a rendered project's own interpreter, in the project's folder: `python service.py`.
What the answers were it finds in the project: items or none, a PostgreSQL, an SQLite file, a Redis.
"""

import contextlib
import importlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2

CANARY = "hunter2-canary"
PROJECT = Path.cwd()
sys.path.insert(0, str(PROJECT))


def service_module(name: str) -> Any:
    """Return the project's script that starts a service, None where the answers need none."""
    if not (PROJECT / "scripts" / f"{name}.py").exists():
        return None
    return importlib.import_module(f"scripts.{name}")


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30) -> float:
    """Wait until something is true; return how many seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - started


def expect(answer: httpx2.Response, status: int) -> Any:
    """Check a status, and the one shape of every error."""
    assert answer.status_code == status, (answer.request.url, answer.status_code, answer.text)
    assert answer.headers["x-request-id"]
    if status >= 400:
        assert answer.headers["content-type"] == "application/problem+json", answer.headers
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
    if answer.headers.get("content-type", "").endswith("json"):
        return answer.json()
    return answer.text


class Service:
    """gunicorn on a unix socket, in production settings."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.socket = folder / "app.sock"
        self.log = folder / "log"
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "PYTHONPATH": str(PROJECT),
            "APP_ENVIRONMENT": "production",
            "APP_ALLOWED_HOSTS": "api.test",
            "APP_BODY_LIMIT_BYTES": "1000000",
            "WEB_CONCURRENCY": "2",
            "SERVER_BIND": f"unix:{self.socket}",
            **environment,
        }

    def command(self, *arguments: str) -> list[dict[str, Any]]:
        """Run one of the project's modules to its end; return its log."""
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout
        assert CANARY not in done.stdout
        return [json.loads(line) for line in done.stdout.splitlines()]

    @contextlib.contextmanager
    def running(self) -> Iterator[httpx2.Client]:
        """Serve; what is still running at the end is killed."""
        conf = ["-c", str(PROJECT / "gunicorn_conf.py"), "tests.slow_app:create()"]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", *conf],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
            )
        transport = httpx2.HTTPTransport(uds=str(self.socket))
        try:
            with httpx2.Client(transport=transport, base_url="http://api.test") as client:
                yield client
        except BaseException:
            print(self.log.read_text())
            raise
        finally:
            self.process.kill()
            self.process.wait()

    def status(self, client: httpx2.Client, path: str) -> int:
        """Return the status of a path, 0 where nobody listens."""
        assert self.process.poll() is None, "gunicorn ended"
        try:
            return client.get(path).status_code
        except httpx2.TransportError:
            return 0

    def ready(self, client: httpx2.Client) -> bool:
        """Return whether the service is ready, as every worker sees it."""
        return all(self.status(client, "/ready") == 200 for _ in range(4))


def exercise(client: httpx2.Client) -> None:
    """Use the worked example and meet every kind of error."""
    assert expect(client.get("/health"), 200) == "ok"
    assert expect(client.get("/ready"), 200) == "ready"
    expect(client.get("/nowhere"), 404)
    expect(client.get("/docs"), 404)
    expect(client.get("/openapi.json"), 404)
    expect(client.get("/sleep", headers={"Host": "evil.test"}), 400)
    expect(client.get("/sleep?seconds=never"), 422)
    expect(client.post("/sleep"), 405)
    if not (PROJECT / "app/items").exists():
        expect(client.post("/api/v1/ibans/check", content=b"x" * 2_000_000), 413)
        good = client.post("/api/v1/ibans/check", json={"iban": "DE89 3704 0044 0532 0130 00"})
        assert expect(good, 200)["country"] == "DE"
        bad = client.post("/api/v1/ibans/check", json={"iban": "DE88 3704 0044 0532 0130 00"})
        expect(bad, 422)
        return
    items = "/api/v1/items"
    expect(client.post(items, content=b"x" * 2_000_000), 413)
    ids = []
    for number in range(5):
        created = client.post(items, json={"name": f"chair {number}", "price_cents": number})
        ids.append(expect(created, 201)["id"])
    expect(client.post(items, json={"name": "chair 0", "price_cents": 1}), 409)
    first = expect(client.get(items, params={"limit": 3}), 200)
    rest = expect(client.get(items, params={"limit": 3, "after": first["next"]}), 200)
    assert [item["id"] for item in first["items"] + rest["items"]] == ids
    assert rest["next"] is None
    new = {"name": "table", "price_cents": 1}
    expect(client.put(f"{items}/{ids[0]}", json=new), 428)
    changed = client.put(f"{items}/{ids[0]}", json=new, headers={"If-Match": '"1"'})
    assert expect(changed, 200)["version"] == 2
    expect(client.put(f"{items}/{ids[0]}", json=new, headers={"If-Match": '"1"'}), 412)
    assert client.delete(f"{items}/{ids[1]}").status_code == 204
    expect(client.get(f"{items}/{ids[1]}"), 404)


def lose_and_regain(service: Service, client: httpx2.Client, name: str, server: Any) -> float:
    """Stop a server, see that the service says so and lives on; start it, and see it recover."""
    server.stop()
    for _ in range(4):
        problem = expect(client.get("/ready"), 503)
        assert problem["failed"] == {name: "unavailable"}, problem
    expect(client.get("/health"), 200)
    if name == "db":
        for _ in range(4):
            assert "retry-after" in client.get("/api/v1/items").headers
        expect(client.post("/api/v1/items", json={"name": "lost", "price_cents": 1}), 503)
    server.start()
    return wait_for(lambda: service.ready(client), f"ready after {name} came back", 5)


def lock_and_release(client: httpx2.Client, database: Path) -> None:
    """Keep the only writer's place, see who waits and who does not; give it back."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        expect(client.get("/api/v1/items"), 200)
        expect(client.get("/ready"), 200)
        expect(client.post("/api/v1/items", json={"name": "late", "price_cents": 1}), 503)
        other.execute("ROLLBACK")
    expect(client.post("/api/v1/items", json={"name": "late", "price_cents": 1}), 201)


def drain(service: Service, client: httpx2.Client) -> None:
    """Stop the service while a request is in flight; the request is finished."""
    answers: list[httpx2.Response] = []
    slow = threading.Thread(target=lambda: answers.append(client.get("/sleep?seconds=3")))
    slow.start()
    time.sleep(0.5)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(timeout=20) == 0
    slow.join()
    assert expect(answers[0], 200) == "slept"


def main() -> None:
    """Live through it; print the figures."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="service-")))
        environment = {}
        servers = {}
        if postgresql := service_module("postgresql"):
            (folder / "pg").mkdir(mode=0o700)
            servers["db"] = stack.enter_context(postgresql.start(folder / "pg"))
            url = servers["db"].url_of("app").replace("postgres@", f"postgres:{CANARY}@")
            environment["DATABASE_URL"] = url
        elif (PROJECT / "app/sqlite.py").exists():
            environment |= {"DATABASE_URL": f"sqlite:///{folder}/app.db"}
            environment |= {"DATABASE_BUSY_TIMEOUT_S": "0.5"}
        if redis := service_module("redis"):
            (folder / "redis").mkdir(mode=0o700)
            servers["cache"] = stack.enter_context(redis.start(folder / "redis"))
            environment["REDIS_URL"] = servers["cache"].url

        service = Service(folder, environment)
        lines = []
        if (PROJECT / "app/migrate.py").exists():
            with service.running() as client:
                wait_for(lambda: service.status(client, "/health") == 200, "alive")
                problem = expect(client.get("/ready"), 503)
                assert "lacks revision" in problem["failed"]["db"]
            lines += [json.loads(line) for line in service.log.read_text().splitlines()]
            lines += service.command("app.migrate")
            lines += service.command("app.migrate")
        with service.running() as client:
            started = wait_for(lambda: service.ready(client), "ready")
            print(f"ready after {started:.1f} s")
            exercise(client)
            for name, server in servers.items():
                back = lose_and_regain(service, client, name, server)
                print(f"{name}: ready {back:.1f} s after it came back")
            if "sqlite" in environment.get("DATABASE_URL", ""):
                lock_and_release(client, folder / "app.db")
            drain(service, client)
        lines += [json.loads(line) for line in service.log.read_text().splitlines()]
        assert CANARY not in service.log.read_text()
        for line in lines:
            assert {"event", "level", "logger", "timestamp"} <= set(line), line
        print(f"{len(lines)} lines of log, every one a JSON object")


if __name__ == "__main__":
    main()
