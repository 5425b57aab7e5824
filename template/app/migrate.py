"""Migrate: bring the database to the newest revision (`python -m app.migrate`)."""

import sys
from dataclasses import dataclass

import structlog
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from app import logs
from app.db import ALEMBIC_INI, DbSettings
from app.settings import AppSettings, load_or_exit

log = structlog.get_logger("app.migrate")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a migration reads; it runs also where the application itself could not start."""

    app: AppSettings
    db: DbSettings


def main() -> int:
    """Upgrade to head; return the exit status. What went wrong is the last line of the log."""
    logs.begin()
    settings = load_or_exit(Settings)
    logs.configure(level=settings.app.log_level, json=settings.app.log_json)
    try:
        command.upgrade(Config(ALEMBIC_INI), "head")
    except CommandError as error:
        log.critical("migration_failed", error=str(error))
        return 1
    except Exception:
        log.critical("migration_failed", exc_info=True)
        return 1
    log.info("migrated")
    return 0


if __name__ == "__main__":
    sys.exit(main())
