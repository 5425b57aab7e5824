"""How PostgreSQL is backed up: by its own pg_dump, pg_restore and psql, from PATH."""

import math
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
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

LOCK_WAIT = "10s"
# Everything of the role's own, in an order in which nothing is still needed by what comes later. Members of
# extensions go with these. DROP OWNED would also revoke rights that the restored data need.
EMPTY = rf"""
BEGIN;
SET client_min_messages = warning;
SET statement_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET lock_timeout = '{LOCK_WAIT}';
SELECT pg_advisory_xact_lock({MIGRATION_LOCK});
SELECT lo_unlink(oid) FROM pg_largeobject_metadata WHERE lomowner = current_user::regrole;
SELECT format('DROP %s IF EXISTS %s CASCADE', type, identity)
FROM (
    SELECT 1, 'pg_namespace'::regclass, oid, nspowner FROM pg_namespace WHERE nspname <> 'public'
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
-- Below 16384 are those that every database is born with.
WHERE thing.oid >= 16384 AND owner = current_user::regrole AND schema IS DISTINCT FROM 'pg_toast'
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

# The server's affairs, or another owner's: a role of an application may not set them.
NOT_RESTORED = re.compile(r"^\d+; \d+ \d+ COMMENT - (EXTENSION|SCHEMA public) ")
RESTORE = [
    *("pg_restore", "--no-owner", "--no-privileges", "--no-tablespaces"),
    *("--no-publications", "--no-subscriptions", "--file=-"),
]
PSQL = ["psql", "--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"]


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
    options = ["--format=custom", "--no-password", f"--lock-wait-timeout={LOCK_WAIT}", f"--file={path}"]
    run("pg_dump", *options, settings=settings)
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
    with NamedTemporaryFile("w") as wanted, TemporaryFile() as read_errors, TemporaryFile() as load_errors:
        contents = run("pg_restore", "--list", str(path), settings=settings).splitlines(keepends=True)
        wanted.writelines(line for line in contents if not NOT_RESTORED.match(line))
        wanted.flush()
        reader = started([*RESTORE, f"--use-list={wanted.name}", str(path)], settings, read_errors)
        loader = started(PSQL, settings, load_errors)
        script, into = reader.stdout, loader.stdin
        ...
