"""The log's level: changed while the service runs, by a file beside its socket and a signal (SIGUSR1)."""

import os
import stat
from pathlib import Path
from typing import get_args

import structlog

from app import logs
from app.settings import LogLevel

log = structlog.get_logger(__name__)

NAME = "log-level"
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def file_beside(bind: str) -> Path | None:
    """Return the file that holds the level; None where the service does not listen on a unix socket."""
    return Path(bind.removeprefix("unix:")).absolute().with_name(NAME) if bind.startswith("unix:") else None


def take(file: Path | None) -> None:
    """Log from the level on that `file` holds, if there is one; refuse what is no level, or anybody may have written."""
    if file is None or not os.path.lexists(file):
        return
    try:
        level = read(file)
    except (OSError, ValueError) as error:
        log.warning("log_level_refused", file=str(file), problem=str(error))
        return
    # Said whatever the level was, and is.
    logs.set_level("INFO")
    log.info("log_level_changed", level_from_now_on=level)
    logs.set_level(level)


def read(file: Path) -> str:
    """Return the level in `file`.

    Raises:
        OSError: it cannot be read, or is a link.
        ValueError: it is none of the service's own files, or holds no level.
    """
    opened = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in {0, os.geteuid()}:
            raise ValueError("must be a file of root's or of the service's user")
        if found.st_mode & OTHERS_MAY_WRITE:
            raise ValueError("may be written by others: chmod 0644")
        level = os.read(opened, 20).decode(errors="replace").strip()
    finally:
        os.close(opened)
    if level not in get_args(LogLevel):
        raise ValueError(f"is no level; write one of {', '.join(get_args(LogLevel))}")
    return level
