"""What the doctor knows of PostgreSQL: why it does not answer, and how many connections it grants."""

from collections.abc import Iterator

import asyncpg
from sqlalchemy import make_url

from app.postgresql import CONNECT_ERRORS, DbSettings, budget_mistake, workers_within_budget
from app.server import worker_count
from app.settings import ServerSettings
from scripts.findings import Finding

__all__ = ["CONNECT_ERRORS", "examine_limits", "explained", "mistake_before"]


def mistake_before(_settings: DbSettings) -> tuple[str, str] | None:
    """Nothing can be wrong before it is asked."""
    return None


def explained(settings: DbSettings, error: BaseException) -> tuple[str, str]:
    """Return why it could not be asked, and the mend; no password is in it."""
    url = make_url(settings.url.get_secret_value())
    place = f"{url.host or url.query.get('host') or 'localhost'}, port {url.port or 5432}"
    said = str(error) or type(error).__name__
    # The one that the driver raised may be wrapped.
    origin = getattr(error, "orig", None) or error
    match getattr(origin, "sqlstate", None):
        case asyncpg.InvalidPasswordError.sqlstate:
            mend = f"mend the password in DATABASE_URL, or give it to {url.username}"
            return f"it refuses the password of {url.username}", mend
        case asyncpg.InvalidAuthorizationSpecificationError.sqlstate:
            return f"it does not let {url.username} in: {said}", "create the role, or mend DATABASE_URL"
        case asyncpg.InvalidCatalogNameError.sqlstate:
            return f"it has no database {url.database}", "create it, or mend DATABASE_URL"
        case asyncpg.TooManyConnectionsError.sqlstate:
            mend = "lower WEB_CONCURRENCY or DATABASE_POOL_SIZE, or raise its max_connections"
            return "all its connections are taken", mend
        case asyncpg.CannotConnectNowError.sqlstate:
            return f"it starts, stops or recovers: {said}", "wait until it has"
        case None if isinstance(error, OSError):
            return f"nobody answers at {place}: {said}", "start it, or mend DATABASE_URL"
    return f"it cannot be used at {place}: {said}", "mend what the error names, or DATABASE_URL"


def examine_limits(settings: DbSettings) -> Iterator[Finding]:
    """Yield whether two releases side by side have connections enough.

    Raises:
        SettingsError: the server's variables are wrong.
    """
    asked = ServerSettings.load().workers
    workers = worker_count(asked=asked, connection_limit=workers_within_budget(settings))
    mistake = budget_mistake(settings, workers)
    each = f"{workers} workers with {settings.connections_per_worker} connections each, two releases at once"
    if mistake is None:
        yield Finding("ok", "connections", f"{each}: the server allows as many")
    else:
        wanted = f"{mistake['needed']} are wanted, {mistake['allowed']} allowed"
        yield Finding("fail", "connections", f"{each}: {wanted}", mistake["mend"])
