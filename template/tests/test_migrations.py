"""Migrations: one line of them, in step with the models, and safe to run at any time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from app import migrate
from app.db import ALEMBIC_INI

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config(empty_database: str) -> Config:
    """Alembic's configuration for an empty database."""
    return Config(ALEMBIC_INI)


def test_there_is_one_head() -> None:
    assert len(ScriptDirectory.from_config(Config(ALEMBIC_INI)).get_heads()) == 1


def test_up_down_and_up_again(config: Config) -> None:
    command.upgrade(config, "head")
    command.downgrade(config, "base")
    command.upgrade(config, "head")


def test_the_models_and_the_migrations_say_the_same(config: Config) -> None:
    command.upgrade(config, "head")
    command.check(config)


def test_sql_without_a_connection_is_refused_clearly(config: Config) -> None:
    with pytest.raises(CommandError, match="not supported"):
        command.upgrade(config, "head", sql=True)


def test_several_at_once_and_one_on_a_current_database_all_succeed(
    empty_database: str, tmp_path: Path
) -> None:
    environment = os.environ | {"APP_LOG_FORMAT": "json", "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "app.migrate"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outputs
    lines = [json.loads(line) for output in outputs for line in output.splitlines()]
    upgrades = [line["event"] for line in lines if line["event"].startswith("Running upgrade")]
    assert len(upgrades) == len(set(upgrades))
    assert migrate.main() == 0


def test_a_failure_ends_with_a_line_that_says_why(
    empty_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APP_LOG_FORMAT", "json")
    monkeypatch.setattr(migrate, "ALEMBIC_INI", Path("nowhere.ini"))
    assert migrate.main() == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["event"] == "migration_failed"
    assert last["error"]


def test_an_unreachable_database_ends_with_a_line_that_says_why(
    unreachable_database: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("APP_LOG_FORMAT", "json")
    assert migrate.main() == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["event"] == "migration_failed"
    assert last["exception"]
