"""What the doctor knows of SQLite: what can be wrong with its file."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sqlalchemy import make_url

from app.sqlite import CONNECT_ERRORS, DbSettings
from scripts.findings import Finding

__all__ = ["CONNECT_ERRORS", "examine_limits", "explained", "mistake_before"]


def file_of(settings: DbSettings) -> Path:
    """Return the database file."""
    return Path(str(make_url(settings.url.get_secret_value()).database))


def mistake_before(settings: DbSettings) -> tuple[str, str] | None:
    """Return what is wrong with the file, and the mend; opening one that is not there would make it."""
    file = file_of(settings)
    if not file.exists():
        return f"there is no {file}", "deploy/deploy.sh restore BACKUP; a release makes an empty one"
    for path, what in ((file, "read and write"), (file.parent, "make files in")):
        if not os.access(path, os.R_OK | os.W_OK):
            return f"the service may not {what} {path}", "give it back to the service's user, with mode u+rwX"
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as connection:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        return explained(settings, error)
    return None


def explained(settings: DbSettings, error: BaseException) -> tuple[str, str]:
    """Return why it could not be asked, and the mend."""
    said = str(getattr(error, "orig", None) or error) or type(error).__name__
    mend = "mend what the error names; if the file is damaged: deploy/deploy.sh restore BACKUP"
    return f"{file_of(settings)} cannot be used: {said}", mend


def examine_limits(_settings: DbSettings) -> Iterator[Finding]:
    """A file has no limit on connections."""
    yield from ()
