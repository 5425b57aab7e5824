"""The log's level comes from a file that only the service's user, or root, may have written."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import levels, logs
from tests.conftest import LogLines


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """Put the level back."""
    yield
    logs.set_level("INFO")


def test_the_file_lies_beside_the_socket() -> None:
    assert levels.file_beside("unix:/run/service/app.sock") == Path("/run/service/log-level")
    assert levels.file_beside("127.0.0.1:8000") is None


def test_the_level_in_the_file_counts_from_then_on(tmp_path: Path, log_lines: LogLines) -> None:
    file = tmp_path / "log-level"
    levels.take(None)
    levels.take(file)
    for level in ("ERROR", "DEBUG"):
        file.write_text(f"{level}\n")
        levels.take(file)
        assert {logging.getLogger(name).level for name in (None, "gunicorn.error", "uvicorn.error")} == {
            getattr(logging, level)
        }
    changed = [(line["event"], line["level_from_now_on"]) for line in log_lines()]
    assert changed == [("log_level_changed", "ERROR"), ("log_level_changed", "DEBUG")]


@pytest.mark.parametrize("text", ["LOUD", "debug", "", "DEBUG\nINFO", "x" * 100_000, "\xff"])
def test_an_unknown_level_is_refused_with_those_that_exist(
    text: str, tmp_path: Path, log_lines: LogLines
) -> None:
    file = tmp_path / "log-level"
    file.write_bytes(text.encode("latin-1"))
    levels.take(file)
    (line,) = log_lines()
    assert line["event"] == "log_level_refused"
    assert "DEBUG, INFO, WARNING, ERROR" in line["problem"]
    assert logging.getLogger().level == logging.INFO


def test_what_others_may_have_written_is_refused(tmp_path: Path, log_lines: LogLines) -> None:
    own, shared, link, pipe = (tmp_path / name for name in ("own", "shared", "link", "pipe"))
    own.write_text("DEBUG")
    shared.write_text("DEBUG")
    shared.chmod(0o666)
    link.symlink_to(own)
    os.mkfifo(pipe)
    for file in (shared, link, pipe, tmp_path):
        levels.take(file)
    lines = log_lines()
    assert [line["event"] for line in lines] == ["log_level_refused"] * 4
    assert "chmod" in lines[0]["problem"]
    assert logging.getLogger().level == logging.INFO
