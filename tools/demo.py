"""Renders the default project from the working tree and serves it, or tries it out."""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests.combinations import ROOT, render, snapshot

START_S = 60
STOP_S = 30


class DemoError(Exception):
    """The demo did not do what it should; the text says what."""


def render_demo(project: Path) -> None:
    """Render the default project; of all folders only ./demo is ever replaced."""
    if project == ROOT / "demo":
        shutil.rmtree(project, ignore_errors=True)
    elif project.exists():
        raise DemoError(f"{project} exists; name a folder that does not: make demo DEMO=/tmp/myapi")
    with tempfile.TemporaryDirectory() as template:
        render(snapshot(Path(template)), project)
    print(f"The default project is in {project}.", flush=True)


def make(project: Path, *arguments: str) -> list[str]:
    """The command that makes a target of the project, with the Python that runs this."""
    python = Path(sys.executable).resolve()
    return ["make", "--no-print-directory", "-C", str(project), f"PYTHON={python}", *arguments]


def environment() -> dict[str, str]:
    """The caller's environment, without what would lead the project elsewhere."""
    elsewhere = ("APP_", "DATABASE_", "REDIS_", "SERVER_", "MAKE", "MFLAGS", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(elsewhere)}


def serve(project: Path, port: int) -> None:
    """Become the project's server."""
    print(
        "\nOnce it logs that it listens, look at\n\n"
        f"  http://127.0.0.1:{port}/docs           its routes, to try out\n"
        f"  http://127.0.0.1:{port}/ready          whether it can be used\n"
        f"  http://127.0.0.1:{port}/api/v1/items   its example\n\n"
        "Ctrl-C stops it.\n",
        flush=True,
    )
    command = make(project, "run", f"PORT={port}")
    os.execvpe(command[0], command, environment())


@contextmanager
def running(project: Path) -> Iterator[str]:
    """The address of the project's server while it is ready; in the end Ctrl-C stops it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    since = time.time()
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            make(project, "run", f"PORT={port}"),
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until_ready(address, server)
            yield address
            os.killpg(server.pid, signal.SIGINT)
            server.wait(STOP_S)
            wait_until_gone(project, since)
        except Exception as error:
            log.seek(0)
            raise DemoError(
                f"{error}\nThe end of its log:\n{''.join(log.readlines()[-20:])}"
            ) from error
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)


def wait_until_gone(project: Path, since: float) -> None:
    """Wait until no process that was started in the project since then is left."""
    deadline = time.monotonic() + STOP_S
    while left := [
        process
        for process in psutil.process_iter(["cwd", "create_time", "cmdline"])
        if process.info["create_time"] >= since and str(project) in (process.info["cwd"] or "")
    ]:
        if time.monotonic() > deadline:
            raise DemoError(f"still running: {[process.info['cmdline'] for process in left]}")
        time.sleep(0.1)


def wait_until_ready(address: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers that it can be used."""
    deadline = time.monotonic() + START_S
    problem = "it has not started to listen"
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise DemoError(f"the server ended with status {server.returncode}")
        try:
            answer = httpx2.get(f"{address}/ready")
        except httpx2.TransportError:
            time.sleep(0.1)
            continue
        if answer.status_code == HTTPStatus.OK:
            return
        problem = f"/ready answers {answer.status_code} {answer.text}"
        time.sleep(0.1)
    raise DemoError(f"not ready within {START_S} s: {problem}")


def ask(client: httpx2.Client, method: str, path: str, expected: HTTPStatus, **body: Any) -> Any:
    """Ask, print the answer, and refuse another status than the one expected."""
    answer = client.request(method, path, **body)
    print(f"{method:5}{path:16}{answer.status_code}  {answer.text}", flush=True)
    if answer.status_code != expected:
        raise DemoError(f"{method} {path} answered {answer.status_code}, not {expected.value}")
    if answer.status_code < HTTPStatus.BAD_REQUEST:
        return answer.json() if "json" in answer.headers["content-type"] else answer.text
    if answer.headers["content-type"] != "application/problem+json":
        raise DemoError(f"{method} {path} answered {answer.headers['content-type']}, no problem")
    return answer.json()


def check(project: Path) -> None:
    """Serve the project on a free port and ask it the main questions."""
    with running(project) as address, httpx2.Client(base_url=address, timeout=10) as client:
        ask(client, "GET", "/health", HTTPStatus.OK)
        ask(client, "GET", "/ready", HTTPStatus.OK)
        tea = {"name": "Tea", "price_cents": 350}
        created = ask(client, "POST", "/api/v1/items", HTTPStatus.CREATED, json=tea)
        ask(client, "POST", "/api/v1/items", HTTPStatus.CONFLICT, json=tea)
        listed = ask(client, "GET", "/api/v1/items", HTTPStatus.OK)
        if listed["items"] != [created] or not tea.items() <= created.items():
            raise DemoError("the item that was created is not the one that is listed")
        missing = ask(client, "GET", "/nowhere", HTTPStatus.NOT_FOUND)
        if missing["status"] != HTTPStatus.NOT_FOUND or not missing["title"]:
            raise DemoError("a 404 does not have the shape of a problem")
    print("All is well; the server is stopped.")


def main() -> None:
    """Render the default project and serve it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("project", type=Path, help="where to render it")
    parser.add_argument("--port", type=int, default=8000, help="where to serve it")
    parser.add_argument("--check", action="store_true", help="ask the main questions, then stop")
    options = parser.parse_args()
    project = options.project.absolute()
    try:
        render_demo(project)
        subprocess.run(make(project, "install"), env=environment(), check=True)
        if options.check:
            check(project)
        else:
            serve(project, options.port)
    except (DemoError, subprocess.CalledProcessError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
