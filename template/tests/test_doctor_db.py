"""What the doctor finds out about the database and its schema."""

import asyncio

from alembic import command
from alembic.config import Config
from sqlalchemy import text

from app.db import ALEMBIC_INI, DbSettings, open_db
from app.main import Settings
from tests.test_doctor import Found, found

__all__ = ["found"]


async def execute(statement: str) -> None:
    """Execute one statement."""
    async with open_db(DbSettings.load()) as db, db.writer.begin() as connection:
        await connection.execute(text(statement))


def test_a_database_that_is_away_fails_and_its_schema_is_not_asked_for(
    settings: Settings, unreachable_database: None, found: Found
) -> None:
    lines = found()
    assert lines["database"].level == "fail"
    assert lines["database"].mend
    assert "schema" not in lines


def test_a_schema_behind_the_code_fails_and_a_newer_one_is_warned_of(
    settings: Settings, empty_database: str, found: Found
) -> None:
    asyncio.run(execute("CREATE TABLE other (id INTEGER)"))
    behind = found()["schema"]
    assert behind.level == "fail"
    assert behind.found.startswith("it is behind the code: at nothing, and revision ")
    assert behind.mend == "deploy/deploy.sh run python -m app.migrate"
    command.upgrade(Config(ALEMBIC_INI), "head")
    assert found()["schema"].level == "ok"
    asyncio.run(execute("UPDATE alembic_version SET version_num = 'from_a_newer_one'"))
    newer = found()["schema"]
    assert newer.level == "warn"
    assert "from_a_newer_one" in newer.found
