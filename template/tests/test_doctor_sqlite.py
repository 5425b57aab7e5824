"""What the doctor finds out about SQLite."""

from pathlib import Path

import pytest

from app.main import Settings
from tests.test_doctor import Found, found

__all__ = ["found"]


def test_a_file_that_is_not_there_is_not_made(
    settings: Settings, found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gone.db"
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{file}")
    line = found()["database"]
    assert (line.level, line.found) == ("fail", f"there is no {file}")
    assert not file.exists()


def test_a_file_that_is_no_database_is_to_be_restored(
    settings: Settings, found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "app.db"
    file.write_bytes(b"no database".ljust(8192))
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{file}")
    line = found()["database"]
    assert (line.level, line.found) == ("fail", f"{file} cannot be used: file is not a database")
    assert "restore" in line.mend
