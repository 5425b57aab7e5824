"""What is particular to the backups of SQLite."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url

from scripts.backup import main
from tests.test_backup import Failing, add, backup, data, failing, folder, logged_as_json, names

__all__ = ["backup", "data", "failing", "folder", "logged_as_json"]


@pytest.fixture
def file(data: str) -> Path:
    """The file of the database."""
    return Path(str(make_url(data).database))


@pytest.fixture
def other(file: Path) -> Iterator[sqlite3.Connection]:
    """Another process's connection."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("SELECT 1 FROM items").fetchone()
        yield connection


def test_nothing_is_restored_below_a_service_that_runs(
    backup: Path, other: sqlite3.Connection, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_BUSY_TIMEOUT_S", "0.1")
    add("lamp")
    assert "locked" in failing("restore", backup)
    assert names() == {"chair", "table", "lamp"}


@pytest.mark.parametrize("rest", [b"no database".ljust(8192), None])
def test_a_log_that_a_killed_process_left_is_not_applied_to_what_was_restored(
    backup: Path, file: Path, other: sqlite3.Connection, tmp_path: Path, rest: bytes | None
) -> None:
    add("lamp")
    for suffix in ("", "-wal", "-shm"):
        shutil.copy(f"{file}{suffix}", tmp_path / f"left{suffix}")
    other.close()
    for suffix in ("", "-wal", "-shm"):
        shutil.copy(tmp_path / f"left{suffix}", f"{file}{suffix}")
    if rest is None:
        file.unlink()
    else:
        file.write_bytes(rest)
    assert main(["restore", str(backup)]) == 0
    assert names() == {"chair", "table"}


def test_a_database_that_another_process_keeps_to_itself_is_not_waited_for_without_end(
    folder: Path, other: sqlite3.Connection, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_BUSY_TIMEOUT_S", "0.1")
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("DELETE FROM items")
    assert "locked" in failing("create", folder)


def test_what_a_killed_process_left_is_backed_up(
    file: Path, other: sqlite3.Connection, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("lamp")
    for suffix in ("", "-wal"):
        shutil.copy(f"{file}{suffix}", tmp_path / f"left.db{suffix}")
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'left.db'}")
    assert main(["create", str(folder)]) == 0
    assert main(["restore", str(*folder.iterdir())]) == 0
    assert names() == {"chair", "table", "lamp"}


def test_owner_and_mode_stay_and_nothing_is_left_beside_the_file(backup: Path, file: Path) -> None:
    file.chmod(0o640)
    before = file.stat()
    (file.parent / f".{file.name}.restore-killed").mkdir()
    assert main(["restore", str(backup)]) == 0
    after = file.stat()
    assert (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid)
    assert before.st_ino != after.st_ino
    assert list(file.parent.iterdir()) == [file]


def test_a_damaged_database_is_not_backed_up(file: Path, folder: Path, failing: Failing) -> None:
    add(*(f"{number} {'x' * 100}" for number in range(1000)))
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = file.read_bytes()
    file.write_bytes(whole[:8192] + b"x" * 4096 + whole[12288:])
    assert str(file) in failing("create", folder)
    assert not list(folder.iterdir())


def test_a_changed_byte_is_noticed(backup: Path, failing: Failing) -> None:
    whole = backup.read_bytes()
    middle = len(whole) // 2
    backup.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert failing("check", backup)


def test_a_database_that_is_not_there_is_not_made(
    folder: Path, tmp_path: Path, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'nowhere.db'}")
    assert str(tmp_path / "nowhere.db") in failing("create", folder)
    assert not (tmp_path / "nowhere.db").exists()
