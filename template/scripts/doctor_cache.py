"""What the doctor asks Redis: whether it answers."""

import asyncio
import re
from collections.abc import Iterator

from redis.exceptions import BusyLoadingError, RedisError, ResponseError

from app.cache import CacheSettings, open_cache
from scripts.findings import Finding

TIMEOUT_S = 5
# The client makes an error of connection of it.
REFUSED = re.compile(r"password|authenticat", re.IGNORECASE)


def examine() -> Iterator[Finding]:
    """Yield how Redis is.

    Raises:
        SettingsError: its variables are wrong.
    """
    yield asyncio.run(look(CacheSettings.load()))


async def look(settings: CacheSettings) -> Finding:
    """Ask once, as `/ready` does."""
    try:
        async with asyncio.timeout(TIMEOUT_S), open_cache(settings) as cache:
            await cache.check()
    except BusyLoadingError:
        return Finding("fail", "redis", "it still loads its data", "wait until it has")
    except (RedisError, OSError) as error:
        said = str(error) or type(error).__name__
        if isinstance(error, ResponseError) or REFUSED.search(said):
            mend = "mend user and password in REDIS_URL"
            return Finding("fail", "redis", f"it answers and refuses: {said}", mend)
        return Finding("fail", "redis", f"it cannot be reached: {said}", "start it, or mend REDIS_URL")
    return Finding("ok", "redis", "it answers where REDIS_URL says")
