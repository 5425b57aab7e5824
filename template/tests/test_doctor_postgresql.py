"""What the doctor finds out about PostgreSQL."""

import asyncpg
import pytest
from sqlalchemy import make_url

from app.main import Settings
from app.postgresql import DbSettings
from scripts.doctor_postgresql import explained
from tests.test_doctor import Found, found

__all__ = ["found"]


@pytest.mark.parametrize(
    ("change", "says", "mend"),
    [
        ({"database": "elsewhere"}, "it has no database elsewhere", "create it, or mend DATABASE_URL"),
        ({"username": "nobody"}, "it does not let nobody in: ", "create the role, or mend DATABASE_URL"),
        ({"query": {"host": "/nowhere"}}, "nobody answers at /nowhere", "start it, or mend DATABASE_URL"),
        ({"host": "127.0.0.1", "port": 1, "query": {}}, "nobody answers at 127.0.0.1, port 1", "start it,"),
    ],
)
def test_why_it_cannot_be_asked_is_said(
    settings: Settings,
    database: str,
    found: Found,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    says: str,
    mend: str,
) -> None:
    url = make_url(database).set(**change)  # type: ignore[arg-type] # of several types
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    line = found()["database"]
    assert line.level == "fail"
    assert line.found.startswith(says)
    assert line.mend.startswith(mend)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (asyncpg.InvalidPasswordError("no"), "it refuses the password of me"),
        (asyncpg.TooManyConnectionsError("no"), "all its connections are taken"),
        (asyncpg.CannotConnectNowError("starting up"), "it starts, stops or recovers: starting up"),
        (asyncpg.UndefinedTableError("no table"), "it cannot be used at db.test, port 5433: no table"),
    ],
)
def test_each_refusal_of_the_server_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@db.test:5433/name")
    said, mend = explained(DbSettings.load(), error)
    assert said == says
    assert mend
    assert "hunter2" not in said + mend


def test_more_connections_than_the_server_allows_fail(
    settings: Settings, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "1000")
    line = found()["connections"]
    assert line.level == "fail"
    assert "20000 are wanted" in line.found
    assert "WEB_CONCURRENCY" in line.mend
