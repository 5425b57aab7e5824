"""How SQLite is backed up: a snapshot of the file, compressed."""

import gzip
import os
import shutil
import sqlite3
import zlib
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import make_url

from app.sqlite import DbSettings

SUFFIX = ".db.gz"
UNREADABLE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class BackupError(Exception):
    """A backup cannot be made, used or restored: what is wrong, and the mend."""

    def __init__(self, problem: str, mend: str) -> None:
        """Keep both."""
        super().__init__(problem)
        self.problem = problem
        self.mend = mend


def create(settings: DbSettings, path: Path) -> None:
    """Write a whole backup to `path`, which must be in a folder of its own; writers go on meanwhile.

    Raises:
        BackupError: there is none.
    """
    database = file_of(settings)
    snapshot = path.with_name("snapshot")
    try:
        with (
            closing(opened(database, "mode=rw", settings.busy_timeout_s)) as source,
            closing(sqlite3.connect(snapshot)) as target,
        ):
            # The read lock is waited for here, for a limited time; `backup` would wait for ever.
            source.execute("BEGIN").execute("SELECT 1 FROM sqlite_master").fetchone()
            target.execute("PRAGMA journal_mode = OFF")
            # In one step: a write of the service between two steps would start it over.
            source.backup(target)
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
            raise BackupError(f"{path.parent.parent}: {error}", "free some space there") from error
        raise BackupError(f"{database}: {error}", "see whether that is the service's database") from error
    verify(snapshot, database)
    with snapshot.open("rb") as plain, gzip.open(path, "wb", compresslevel=1) as packed:
        shutil.copyfileobj(plain, packed, 1 << 20)
    snapshot.unlink()
    for _ in pieces(path):
        pass


def check(settings: DbSettings, path: Path) -> None:
    """Unpack a backup beside the database, where `restore` would, and look at every page of it.

    Raises:
        BackupError: it is damaged, or no backup.
    """
    with unpacked(settings, path):
        pass


def restore(settings: DbSettings, path: Path) -> None:
    """Replace the database by a backup; owner and mode stay. Nothing may have it open.

    Raises:
        BackupError: the data are what they were.
    """
    database = file_of(settings)
    for killed in database.parent.glob(f"{scratch_prefix(database)}*"):
        shutil.rmtree(killed, ignore_errors=True)
    with unpacked(settings, path) as copy:
        fold(database, settings.busy_timeout_s)
        model = (database if database.exists() else database.parent).stat()
        if database.exists():
            copy.chmod(model.st_mode & 0o7777)
        if (model.st_uid, model.st_gid) != (copy.stat().st_uid, copy.stat().st_gid):
            os.chown(copy, model.st_uid, model.st_gid)
        # What an unreadable database left would be taken for a part of the new one.
        for suffix in ("-wal", "-shm", "-journal"):
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        copy.rename(database)
        folder = os.open(database.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def file_of(settings: DbSettings) -> Path:
    """Return the database file itself, also behind a link."""
    return Path(str(make_url(settings.url.get_secret_value()).database)).resolve()


def scratch_prefix(database: Path) -> str:
    """Return how the folders beside a database are called in which backups are unpacked."""
    return f".{database.name}.restore-"


def opened(path: Path, mode: str, timeout_s: float = 0) -> sqlite3.Connection:
    """Open a file that exists."""
    return sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, timeout=timeout_s, isolation_level=None)


def fold(database: Path, timeout_s: float) -> None:
    """Bring what lies beside the database into the file, which only works while nobody else has it open."""
    if not database.exists():
        return
    try:
        with closing(opened(database, "mode=rw", timeout_s)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF not in UNREADABLE:
            raise BackupError(f"{database}: {error}", "stop whatever has the database open") from error


@contextmanager
def unpacked(settings: DbSettings, path: Path) -> Generator[Path]:
    """Give the database of a backup as a file that has been looked at; it is gone at the end."""
    database = file_of(settings)
    prefix = scratch_prefix(database)
    with TemporaryDirectory(prefix=prefix, dir=database.parent, ignore_cleanup_errors=True) as folder:
        copy = Path(folder, database.name)
        try:
            with copy.open("xb") as plain:
                copy.chmod(0o600)
                for piece in pieces(path):
                    plain.write(piece)
                plain.flush()
                os.fsync(plain.fileno())
        except OSError as error:
            # A full disk is this one, not that of the backup.
            raise OSError(error.errno, error.strerror, str(database.parent)) from error
        verify(copy, path)
        yield copy


def pieces(path: Path) -> Generator[bytes]:
    """Yield what a backup holds; its checksum is compared at the end."""
    try:
        with gzip.open(path) as packed:
            while piece := packed.read(1 << 20):
                yield piece
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BackupError(f"{path}: {error}", "take another backup") from error


def verify(file: Path, named: Path) -> None:
    """Look at every page of a database that nobody has open; `named` is what the error calls it."""
    try:
        # immutable: no files appear beside it.
        with closing(opened(file, "immutable=1")) as connection:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as error:
        raise BackupError(f"{named}: {error}", "take another backup") from error
    if not pages or found != "ok":
        raise BackupError(f"{named}: {found if pages else 'the database is empty'}", "take another backup")
