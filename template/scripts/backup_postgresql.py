"""How PostgreSQL is backed up: by its own pg_dump, pg_restore and psql, from PATH."""

import math
import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile
from typing import IO

from sqlalchemy import make_url

from app.postgresql import MIGRATION_LOCK, DbSettings

SUFFIX = ".dump"

# What asyncpg is told, as libpq's environment variables; a command line could be read by everybody.
LIBPQ = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "database": "PGDATABASE",
    "ssl": "PGSSLMODE",
    "passfile": "PGPASSFILE",
    "krbsrvname": "PGKRBSRVNAME",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}

MENDS = {
    r"server version mismatch": "install the client programs (postgresql-client) of the server's version",
    r"unsupported version": "install the client programs (postgresql-client) of the version that made the backup",
    r"No space left": "free some space in the folder of the backups",
    r"connection to server|could not translate host name": "start the database, or mend DATABASE_URL",
    r"lock timeout|due to lock": "stop whatever uses the tables, or try again later",
    r"already exists": "remove what belongs to other roles, or restore into an empty database",
    r"permission denied|must be (owner|superuser)": "give the role of DATABASE_URL the right, or do that as a superuser",
    r"archive|end of file|read from input|compress|magic string": "take another backup",
}

# Waiting for the end of a migration holds nobody up; waiting to drop tables does.
BACKUP_LOCK_WAIT = "10min"
RESTORE_LOCK_WAIT = "10s"
BEGIN = f"""
BEGIN;
SET client_min_messages = warning;
SET statement_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET lock_timeout = '{RESTORE_LOCK_WAIT}';
SELECT pg_advisory_xact_lock({MIGRATION_LOCK});
"""

# Drops what the role owns, what needs others first. DROP OWNED would also revoke rights that the data need again.
EMPTY = r"""
SELECT lo_unlink(oid) FROM pg_largeobject_metadata
WHERE lomowner = (SELECT oid FROM pg_roles WHERE rolname = current_user);
SELECT format('DROP %s IF EXISTS %s CASCADE', type, identity)
FROM (
    SELECT 1, 'pg_namespace'::regclass, oid, nspowner FROM pg_namespace
        WHERE nspname <> 'public' AND nspname NOT LIKE 'pg\_%'
    UNION ALL SELECT 2, 'pg_extension'::regclass, oid, extowner FROM pg_extension
    UNION ALL SELECT 3, 'pg_class'::regclass, oid, relowner FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f')
    UNION ALL SELECT 4, 'pg_type'::regclass, oid, typowner FROM pg_type
        WHERE typtype IN ('b', 'c', 'd', 'e', 'r') AND typcategory <> 'A'
        AND (typrelid = 0 OR (SELECT relkind FROM pg_class WHERE pg_class.oid = typrelid) = 'c')
    UNION ALL SELECT 5, 'pg_class'::regclass, oid, relowner FROM pg_class WHERE relkind = 'S'
    UNION ALL SELECT 6, 'pg_proc'::regclass, oid, proowner FROM pg_proc
    UNION ALL SELECT 7, 'pg_ts_config'::regclass, oid, cfgowner FROM pg_ts_config
    UNION ALL SELECT 8, 'pg_ts_dict'::regclass, oid, dictowner FROM pg_ts_dict
    UNION ALL SELECT 9, 'pg_collation'::regclass, oid, collowner FROM pg_collation
) AS thing (rank, catalog, oid, owner), pg_identify_object(catalog, thing.oid, 0)
-- Below 16384 are the objects that every database is born with; members of an extension go with it.
WHERE thing.oid >= 16384 AND owner = (SELECT oid FROM pg_roles WHERE rolname = current_user)
    AND coalesce(schema, '') NOT LIKE 'pg\_%'
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = catalog AND objid = thing.oid AND deptype = 'e')
ORDER BY rank
\gexec
"""
# Without statistics of the new rows the first queries would be slow.
FINISH = """
SET client_min_messages = error;
ANALYZE;
COMMIT;
"""

# The server's affairs, or another owner's: an application's role may not set them.
NOT_RESTORED = re.compile(r"\d+; \d+ \d+ COMMENT - (EXTENSION |SCHEMA public )")
DUMP = ["--format=custom", "--no-password", f"--lock-wait-timeout={BACKUP_LOCK_WAIT}"]
RESTORE = [
    *("--no-owner", "--no-privileges", "--no-tablespaces", "--no-publications", "--no-subscriptions"),
    "--file=-",
]
LOAD = ["--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"]
# Client programs from 17 on set this; an older server does not know it.
NEWER_SETTING = b"SET transaction_timeout = 0;\n"
LAST_SETTING = b"SELECT pg_catalog.set_config('search_path'"

COMPLAINT = re.compile(r"(error|Error|ERROR|FATAL|detail): ")


class BackupError(Exception):
    """A backup cannot be made, used or restored: what is wrong, and the mend."""

    def __init__(self, problem: str, mend: str) -> None:
        """Keep both."""
        super().__init__(problem)
        self.problem = problem
        self.mend = mend


def create(settings: DbSettings, path: Path) -> None:
    """Write a whole backup to `path`; what was committed before it began is in it, and writers go on meanwhile.

    Raises:
        BackupError: there is none.
    """
    run("pg_dump", *DUMP, f"--file={path}", settings=settings)
    check(settings, path)


def check(settings: DbSettings, path: Path) -> None:
    """Read a backup to its end; the list of its contents alone would not miss rows.

    Raises:
        BackupError: it is damaged, or no backup.
    """
    run("pg_restore", f"--file={os.devnull}", str(path), settings=settings)


def restore(settings: DbSettings, path: Path) -> None:
    """Replace everything that the role owns in the database by a backup, in one transaction.

    Rights granted to other roles are not restored.

    Raises:
        BackupError: the data are what they were.
    """
    check(settings, path)
    contents = run("pg_restore", "--list", str(path), settings=settings).splitlines(keepends=True)
    with NamedTemporaryFile("w") as wanted, TemporaryFile() as problems:
        wanted.writelines(line for line in contents if not NOT_RESTORED.match(line))
        wanted.flush()
        options = [*RESTORE, f"--use-list={wanted.name}", str(path)]
        with (
            started("pg_restore", *options, settings=settings, problems=problems) as reader,
            started("psql", *LOAD, settings=settings, problems=problems) as loader,
        ):
            fed = feed(reader, loader)
        if not fed or loader.returncode != 0:
            problems.seek(0)
            raise explained(problems.read().decode(errors="replace"))


def feed(reader: subprocess.Popen[bytes], loader: subprocess.Popen[bytes]) -> bool:
    """Hand one program's script to the other, in a transaction that is committed if there was a whole script."""
    script, into = reader.stdout, loader.stdin
    if script is None or into is None:
        return False
    # Whoever leaves first says why on stderr; without COMMIT the end of the input rolls back.
    with suppress(BrokenPipeError), script, into:
        into.write((BEGIN + EMPTY).encode())
        for line in script:
            if line != NEWER_SETTING:
                into.write(line)
            if line.startswith(LAST_SETTING):
                break
        shutil.copyfileobj(script, into, 1 << 20)
        if reader.wait() == 0:
            into.write(FINISH.encode())
            into.flush()
            return True
    return False


def started(
    program: str, *options: str, settings: DbSettings, problems: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start one of PostgreSQL's programs between two pipes; what it complains of goes to a file."""
    output = subprocess.DEVNULL if program == "psql" else subprocess.PIPE
    try:
        return subprocess.Popen(  # noqa: S603 - program and options are ours
            [program, *options],
            env=environment(settings),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=problems,
        )
    except FileNotFoundError as error:
        raise missing(program) from error


def run(program: str, *options: str, settings: DbSettings) -> str:
    """Run one of PostgreSQL's programs to its end and return what it printed."""
    try:
        done = subprocess.run(  # noqa: S603 - program and options are ours
            [program, *options],
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise missing(program) from error
    if done.returncode != 0:
        raise explained(done.stderr or f"{program} ended with status {done.returncode}")
    return done.stdout


def environment(settings: DbSettings) -> dict[str, str]:
    """Return the environment in which PostgreSQL's programs connect as the application does."""
    url = make_url(settings.url.get_secret_value())
    _, given = url.get_dialect()().create_connect_args(url)
    told = {
        variable: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, variable in LIBPQ.items()
        if (value := given.get(name)) is not None
    }
    seconds = str(math.ceil(settings.connect_timeout_s))
    return os.environ | told | {"LC_ALL": "C", "PGCONNECT_TIMEOUT": seconds, "PGAPPNAME": "backup"}


def missing(program: str) -> BackupError:
    """Return the error for a program that is not there."""
    mend = "install PostgreSQL's client programs (package postgresql-client), in the server's version"
    return BackupError(f"{program} is not installed", mend)


def explained(complaint: str) -> BackupError:
    """Return the error for what a program complained of; values of rows are left out."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    telling = [line for line in lines if COMPLAINT.search(line)] or lines[-1:] or ["it gave no reason"]
    problem = " ".join([telling[0], *(line for line in telling[1:2] if "version" in line)])[:500]
    mends = [mend for pattern, mend in MENDS.items() if re.search(pattern, problem)]
    return BackupError(problem, mends[0] if mends else "mend what the error names")
