"""What the supervisor's question says of a service in any state."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from scripts import healthcheck

PROJECT = Path(__file__).resolve().parents[1]
READY = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nready"
NOT_READY = b"HTTP/1.1 503 Service Unavailable\r\n\r\nNot ready:\n the disk"

Serve = Callable[..., str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Answer the next connection with these bytes, one part every so many seconds; gives the address."""
    listening: list[socket.socket] = []

    def start(*parts: bytes, pause_s: float = 0, address: str = "") -> str:
        path = str(tmp_path / "app.sock")
        if address:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            server = socket.create_server((address, 0), family=family)
        else:
            server = socket.socket(socket.AF_UNIX)
            server.bind(path)
            server.listen()
        listening.append(server)

        def answer() -> None:
            with suppress(OSError), server.accept()[0] as connection:
                connection.recv(4096)
                for part in parts:
                    connection.sendall(part)
                    time.sleep(pause_s)

        Thread(target=answer, daemon=True).start()
        if not address:
            return f"unix:{path}"
        host = f"[{address}]" if ":" in address else address
        return f"{host}:{server.getsockname()[1]}"

    yield start
    for server in listening:
        server.close()


def check(bind: str) -> tuple[int, str]:
    """Ask as the supervisor does; return the exit status and what was printed."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.healthcheck"],
        cwd=PROJECT,
        env=os.environ | {"SERVER_BIND": bind},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize("address", ["", "127.0.0.1", "::1"])
def test_only_a_ready_service_is_healthy(serve: Serve, address: str) -> None:
    assert check(serve(READY, address=address)) == (0, "")


def test_who_is_not_ready_says_why_in_one_line(serve: Serve) -> None:
    bind = serve(NOT_READY)
    assert check(bind) == (1, f"{bind}: HTTP/1.1 503 Service Unavailable Not ready: the disk\n")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "no answer"),
        (b"\x00\xff\r\n\r\n\n\x1b[0m", r"\x00\xff \x1b[0m"),
        (b"HTTP/1.1\r\n\r\n", "HTTP/1.1"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 2000 OK"),
        (b"SSH-2.0 200\r\n", "SSH-2.0 200"),
        (b"x" * 100_000, "x" * 4096),
    ],
)
def test_garbage_is_not_health(serve: Serve, answer: bytes, says: str) -> None:
    status, said = check(bind := serve(answer))
    assert status == 1
    assert said.startswith(f"{bind}: ")
    assert says in said.encode("unicode_escape").decode().replace("\\\\", "\\")
    assert said.count("\n") == 1


def test_an_answer_may_come_in_parts(serve: Serve) -> None:
    assert check(serve(READY[:7], READY[7:20], READY[20:], pause_s=0.1)) == (0, "")


@pytest.mark.parametrize("parts", [[b""], [READY[:1]] * 100])
def test_a_slow_service_is_given_up(
    serve: Serve,
    parts: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(healthcheck, "TIMEOUT_S", 0.3)
    monkeypatch.setenv("SERVER_BIND", serve(*parts, pause_s=0.2 if len(parts) > 1 else 5))
    began = time.monotonic()
    assert healthcheck.main() == 1
    assert time.monotonic() - began < 2
    assert capsys.readouterr().out.endswith(": timed out\n")


@pytest.mark.parametrize("bind", ["unix:/nowhere/app.sock", "127.0.0.1:1", "nonsense", "localhost:http"])
def test_nobody_there_is_not_health(bind: str) -> None:
    status, said = check(bind)
    assert status == 1
    assert said.startswith(f"{bind}: ")
    assert said.count("\n") == 1
