"""What is particular to the backups of PostgreSQL."""

import asyncio
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

from app import migrate
from app.db import DbSettings
from scripts.backup import main
from scripts.backup_postgresql import environment, run
from scripts.postgresql import programs
from tests.fixtures.db import DatabaseMaker
from tests.test_backup import ROOT, Failing, add, backup, data, failing, folder, logged_as_json, names

__all__ = ["backup", "data", "failing", "folder", "logged_as_json"]

# One object of every kind that an application may own.
OBJECTS = """
CREATE SCHEMA extra; CREATE TABLE extra.thing (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE TYPE pair AS (a integer, b integer);
CREATE DOMAIN cents AS integer CHECK (VALUE >= 0); CREATE TYPE span AS RANGE (subtype = integer);
CREATE SEQUENCE numbers; CREATE TABLE parts (id integer, mood mood, price cents) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE FUNCTION twice(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
CREATE PROCEDURE nothing() LANGUAGE sql AS 'SELECT 1'; CREATE AGGREGATE total(integer) (SFUNC = int4pl, STYPE = integer);
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER keep BEFORE INSERT ON parts FOR EACH ROW EXECUTE FUNCTION keep();
CREATE TABLE computed (id serial, doubled integer GENERATED ALWAYS AS (twice(7)) STORED);
CREATE VIEW seen AS SELECT * FROM parts; CREATE MATERIALIZED VIEW kept AS SELECT twice(id) AS t FROM parts;
CREATE TEXT SEARCH DICTIONARY words (TEMPLATE = simple); CREATE TEXT SEARCH CONFIGURATION search (COPY = simple);
CREATE COLLATION letters FROM "C"; SELECT lo_from_bytea(4242, 'large'); INSERT INTO parts VALUES (1, 'good', 5);
ALTER TABLE parts ENABLE ROW LEVEL SECURITY; CREATE POLICY all_rows ON parts USING (true);
COMMENT ON SCHEMA public IS 'ours'; GRANT SELECT ON parts TO PUBLIC
"""


@pytest.fixture
def roles(database_server: str) -> Iterator[list[str]]:
    """Two roles with names as a slug has them, and no more rights than a service needs."""
    made = [f"test-{secrets.token_hex(4)}" for _ in range(2)]
    for role in made:
        execute(database_server, f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'test'")
    yield made
    for role in made:
        execute(database_server, f'DROP ROLE "{role}"')


@pytest.fixture
def urls(
    roles: list[str], make_database: DatabaseMaker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """Databases of an owner, of a role that may only make things there, and of an administrator.

    In the first, where DATABASE_URL says, there is something of every kind.
    """
    with make_database() as first, make_database() as second, make_database() as third:
        execute(first, f'ALTER DATABASE "{make_url(first).database}" OWNER TO "{roles[0]}"')
        # As many do to empty a database.
        execute(first, f'DROP SCHEMA public; CREATE SCHEMA public AUTHORIZATION "{roles[0]}"')
        execute(second, f'GRANT CREATE ON DATABASE "{make_url(second).database}" TO "{roles[1]}"')
        execute(second, f'GRANT CREATE ON SCHEMA public TO "{roles[1]}"')
        urls = [
            make_url(url).set(username=role, password="test").render_as_string(hide_password=False)
            for url, role in zip((first, second), roles, strict=True)
        ]
        monkeypatch.setenv("DATABASE_URL", urls[0])
        assert migrate.main() == 0
        execute(urls[0], OBJECTS)
        add("chair", "table")
        yield [*urls, third]


def execute(url: str, script: str) -> None:
    """Execute statements one after another."""

    async def work() -> None:
        dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(script)
        finally:
            await connection.close()

    asyncio.run(work())


def schema() -> str:
    """Return what the database that DATABASE_URL names is made of."""
    dumped = run(
        "pg_dump", "--schema-only", *("--no-owner", "--no-acl", "--no-comments"), settings=DbSettings.load()
    )
    # Comments tell who made it; the key of \restrict is another one each time.
    return "\n".join(line for line in dumped.splitlines() if line and not line.startswith(("--", "\\")))


def test_every_kind_of_role_gets_back_all_that_was_owned(
    urls: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = schema()
    assert main(["create", str(folder)]) == 0
    (path,) = map(str, folder.iterdir())
    execute(urls[0], "DROP TABLE computed; DROP SCHEMA extra CASCADE; SELECT lo_unlink(4242)")
    execute(
        urls[0], "CREATE SCHEMA more; CREATE TABLE more.thing (id serial); CREATE TYPE newer AS ENUM ('a')"
    )
    for url in urls:
        monkeypatch.setenv("DATABASE_URL", url)
        for _ in range(2):
            assert main(["restore", path]) == 0
        assert schema() == before
        assert names() == {"chair", "table"}
        execute(url, "SELECT lo_unlink(4242); SELECT * FROM kept; INSERT INTO parts VALUES (2, 'bad', 6)")


def test_a_backup_that_cannot_be_loaded_changes_nothing(
    urls: list[str], database_server: str, folder: Path, failing: Failing
) -> None:
    assert main(["create", str(folder)]) == 0
    add("lamp")
    as_administrator = make_url(database_server).set(database=make_url(urls[0]).database)
    execute(
        as_administrator.render_as_string(hide_password=False), "ALTER TABLE computed OWNER TO CURRENT_USER"
    )
    assert '"computed" already exists' in failing("restore", *folder.iterdir())
    execute(urls[0], "SELECT * FROM extra.thing, parts, kept; SELECT lo_get(4242)")
    assert names() == {"chair", "table", "lamp"}


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="there is no /proc")
def test_no_command_line_and_no_line_of_the_log_has_the_password(data: str, folder: Path) -> None:
    url = make_url(data)
    # A server that trusts everybody takes any.
    secret = url.password or "hunter2-hunter2"
    told = url.set(password=secret).render_as_string(hide_password=False)

    async def work() -> tuple[list[str], str]:
        connection = await asyncpg.connect(url.set(drivername="postgresql").render_as_string(False))
        try:
            # pg_dump waits for this table until the connection is closed.
            await connection.execute("BEGIN; LOCK TABLE items")
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "scripts.backup", "create", str(folder)),
                cwd=ROOT,
                env=os.environ | {"DATABASE_URL": told},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            for _ in range(600):
                if await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    break
                await asyncio.sleep(0.05)
            seen = command_lines()
        finally:
            await connection.close()
        output, _ = await process.communicate()
        return seen, output.decode()

    seen, output = asyncio.run(work())
    assert any("pg_dump" in line for line in seen)
    assert not [line for line in [*seen, output] if secret in line]


def command_lines() -> list[str]:
    """Return the command line of every process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_text(errors="replace"))
    return found


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (
            "postgresql://me:p%40s@host:5433/db",
            "PGHOST=host PGPORT=5433 PGUSER=me PGPASSWORD=p@s PGDATABASE=db",
        ),
        ("postgres://me@/db?host=/run/postgresql", "PGHOST=/run/postgresql PGUSER=me PGDATABASE=db"),
        ("postgresql+asyncpg://host/db?ssl=verify-full", "PGHOST=host PGDATABASE=db PGSSLMODE=verify-full"),
        ("postgresql://host/db?sslmode=require", "PGHOST=host PGDATABASE=db PGSSLMODE=require"),
        ("postgresql:///db?host=a:1&host=b:2", "PGHOST=a,b PGPORT=1,2 PGDATABASE=db"),
    ],
)
def test_the_programs_connect_as_the_application_does(
    url: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    added = environment(DbSettings.load()).items() - os.environ.items()
    assert {f"{name}={value}" for name, value in added if name.startswith("PG")} == {
        *told.split(),
        "PGAPPNAME=backup",
        "PGCONNECT_TIMEOUT=3",
    }


def test_a_program_that_is_missing_is_named(
    data: str, folder: Path, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert failing("create", folder) == "pg_dump is not installed"
    assert not list(folder.iterdir())


def test_a_program_that_is_too_old_is_named(
    data: str, folder: Path, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    oldest = min(programs().parents[1].glob("pginstall*/bin"))
    if oldest == programs() or os.environ.get("TEST_DATABASE_URL"):
        pytest.skip("no pg_dump that is older than the server")
    monkeypatch.setenv("PATH", str(oldest))
    assert "server version mismatch" in failing("create", folder)
    assert not list(folder.iterdir())
