"""Static files: at addresses that hold their content's hash, so that every cache may keep them for ever."""

import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from urllib.parse import quote

import structlog
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.settings import AppSettings

log = structlog.get_logger(__name__)

STATIC = Path(__file__).parents[1] / "static"
# Hidden files, and what editors and merges leave behind; nobody means to publish them.
UNSERVED = re.compile(r"(^|/)(\.|#)|(~|\.(bak|orig|rej|swp|swo|old|tmp|save))(/|$)", re.IGNORECASE)
IMMUTABLE = "public, max-age=31536000, immutable"
# Pages of older releases may still be open; none is for as long.
KEEP_S = 90 * 24 * 3600
PUBLISHED = re.compile(r"[0-9a-f]{12}")


class HashedFiles(StaticFiles):
    """Serves `/<hash>/<name>`; a wrong hash, an unserved name or a link that leads out is not found."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Find a file; this runs in a thread."""
        digest, _, name = path.partition("/")
        if UNSERVED.search(name):
            return "", None
        full_path, found = super().lookup_path(name)
        if found is None or not stat.S_ISREG(found.st_mode) or _hash(full_path, found) != digest:
            return "", None
        return full_path, found

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Answer with the file, or with 304."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = IMMUTABLE
        return response


def static_url(name: str) -> str:
    """Return the address of `static/<name>`, with `APP_ROOT_PATH`.

    Raises:
        FileNotFoundError: there is no such file, or it is one that is not served.
    """
    return root_path() + static_path(name)


def static_path(name: str) -> str:
    """Return the same address without `APP_ROOT_PATH`."""
    path = STATIC / name
    if UNSERVED.search(name) or not path.resolve().is_relative_to(STATIC.resolve()) or not path.is_file():
        raise FileNotFoundError(f"static/{name} is no file that is served")
    return f"/static/{file_hash(path)}/{quote(name)}"


@cache
def root_path() -> str:
    """Return `APP_ROOT_PATH`, read once."""
    return AppSettings.load().root_path


def file_hash(path: str | Path) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of a file's content."""
    return _hash(str(path), Path(path).stat())


def _hash(path: str, found: os.stat_result) -> str:
    return _hash_of(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=4096)
def _hash_of(path: str, _changed_ns: int, _size: int) -> str:
    with open(path, "rb") as file:  # noqa: PTH123 - it is no Path
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def publish(directory: Path, source: Path = STATIC) -> None:
    """Copy the files to `directory/<hash>/<name>` for the proxy, and remove what no release had for 90 days.

    Without them the application serves every file itself, so a failure is only logged.
    """
    try:
        for name in served_names(source):
            _publish_file(source / name, directory / file_hash(source / name) / name, directory)
        for folder in directory.iterdir() if directory.is_dir() else ():
            if PUBLISHED.fullmatch(folder.name) and time.time() - folder.stat().st_mtime > KEEP_S:
                shutil.rmtree(folder)
    except OSError as error:
        log.warning("static_not_published", directory=str(directory), error=repr(error))


def served_names(source: Path) -> Iterator[str]:
    """Yield the names of the files below `source` that are served."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and path.resolve().is_relative_to(source.resolve()) and not UNSERVED.search(name):
            yield name


def _publish_file(source: Path, target: Path, directory: Path) -> None:
    for folder in reversed([target.parent, *target.parent.parents]):
        if folder.is_relative_to(directory):
            folder.mkdir(exist_ok=True)
            # Whatever the umask is: the proxy runs as another user.
            folder.chmod(0o755)
    if not target.exists() or target.stat().st_size != source.stat().st_size:
        handle, temporary = tempfile.mkstemp(prefix=".", dir=target.parent)
        try:
            with open(handle, "wb") as copy, source.open("rb") as original:  # noqa: PTH123 - it is a descriptor
                shutil.copyfileobj(original, copy)
                copy.flush()
                os.fsync(copy.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    os.utime(directory / target.relative_to(directory).parts[0])
