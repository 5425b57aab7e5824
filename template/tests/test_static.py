"""Static files: their addresses, what is never served, and the copies for the proxy."""

import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from fastapi import FastAPI

from app import main, static
from app.main import Settings, create_app
from tests.conftest import LogLines, client_of

ODD = [
    ".env",
    ".git/config",
    "css/.hidden",
    "site.css~",
    "site.css.bak",
    "site.css.orig",
    "site.css.rej",
    ".site.css.swp",
    "site.css.old",
    "site.css.OLD",
    "#site.css#",
    "css.bak/site.css",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of static files, in place of the project's own."""
    folder = tmp_path / "static"
    for name in ["site.css", "css/print.css", *ODD]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"/* {name} */")
    (tmp_path / "outside.css").write_text("/* outside */")
    (folder / "out.css").symlink_to(tmp_path / "outside.css")
    (folder / "in.css").symlink_to("site.css")
    monkeypatch.setattr(static, "STATIC", folder)
    monkeypatch.setattr(main, "STATIC", folder)
    return folder


@pytest.fixture
def app(folder: Path, settings: Settings) -> FastAPI:
    """The application with these files."""
    return create_app(settings)


@pytest.fixture(autouse=True)
def root_path() -> Iterator[None]:
    """Let no other test's path be remembered."""
    static.root_path.cache_clear()
    yield
    static.root_path.cache_clear()


async def test_a_file_is_kept_for_ever_at_an_address_of_its_content(
    client: httpx2.AsyncClient, folder: Path
) -> None:
    first = static.static_url("css/print.css")
    assert re.fullmatch(r"/static/[0-9a-f]{12}/css/print\.css", first)
    answer = await client.get(first)
    assert (answer.status_code, answer.text) == (200, "/* css/print.css */")
    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = await client.get(first, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert (await client.head(first)).headers["content-length"] == str(len(answer.content))

    (folder / "css/print.css").write_text("/* changed */")
    second = static.static_url("css/print.css")
    assert second != first
    assert (await client.get(second)).text == "/* changed */"
    assert (await client.get(first)).status_code == 404


async def test_the_files_of_the_project_are_served(settings: Settings) -> None:
    assert static.STATIC.is_dir()
    assert sorted(static.served_names(static.STATIC))


@pytest.mark.parametrize("name", [*ODD, "out.css", "nothing.css", "css", "../outside.css"])
async def test_what_nobody_means_to_publish_is_not_found(
    client: httpx2.AsyncClient, folder: Path, name: str
) -> None:
    path = folder / name
    digest = static.file_hash(path) if path.is_file() else "0" * 12
    plain = f"/static/{digest}/{quote(name)}"
    for address in (plain, plain.replace(".", "%2e")):
        answer = await client.get(address)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
    with pytest.raises(FileNotFoundError, match="is no file that is served"):
        static.static_url(name)


@pytest.mark.parametrize(
    "path", ["", "/", "/site.css", "/000000000000/site.css", "/%00/site.css", "//etc/passwd"]
)
async def test_an_address_without_the_right_hash_is_not_found(client: httpx2.AsyncClient, path: str) -> None:
    assert (await client.get(f"/static{path}")).status_code in {307, 404}
    assert (await client.get(f"/static{path}", follow_redirects=True)).status_code == 404


async def test_a_link_that_stays_inside_is_followed(client: httpx2.AsyncClient) -> None:
    assert (await client.get(static.static_url("in.css"))).text == "/* site.css */"


async def test_a_file_is_only_read(client: httpx2.AsyncClient) -> None:
    answer = await client.post(static.static_url("site.css"))
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_an_address_has_the_root_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_ROOT_PATH", "/myapi")
    assert static.static_url("site.css") == f"/myapi{static.static_path('site.css')}"


async def test_a_project_may_have_no_static_files(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "STATIC", tmp_path / "nowhere")
    monkeypatch.setattr(static, "STATIC", tmp_path / "nowhere")
    async with client_of(create_app(settings)) as client:
        assert (await client.get("/static/000000000000/site.css")).status_code == 404
        assert (await client.get("/docs")).status_code == 200
    static.publish(tmp_path / "published", tmp_path / "nowhere")
    assert not (tmp_path / "published").exists()


def mode(path: Path) -> int:
    """Return who may do what."""
    return stat.S_IMODE(path.stat().st_mode)


def test_published_files_can_be_read_by_everybody_whatever_the_umask(folder: Path, tmp_path: Path) -> None:
    published = tmp_path / "published"
    before = os.umask(0o077)
    try:
        static.publish(published, folder)
    finally:
        os.umask(before)
    files = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    names = ["site.css", "css/print.css", "in.css"]
    assert files == {f"{static.file_hash(folder / name)}/{name}" for name in names}
    for path in [published, *published.rglob("*")]:
        assert mode(path) == (0o755 if path.is_dir() else 0o644), path
    copy = published / static.file_hash(folder / "site.css") / "site.css"
    assert copy.read_bytes() == (folder / "site.css").read_bytes()


def test_what_is_published_stays_and_what_is_long_unused_goes(folder: Path, tmp_path: Path) -> None:
    published = tmp_path / "published"
    static.publish(published, folder)
    long_ago = time.time() - static.KEEP_S - 60
    used = published / static.file_hash(folder / "site.css")
    written = (used / "site.css").stat().st_ino
    cut = published / static.file_hash(folder / "css/print.css") / "css/print.css"
    cut.write_text("")
    unused, recent, foreign = published / ("a" * 12), published / ("b" * 12), published / "certificates"
    for other in (unused, recent, foreign):
        other.mkdir()
        (other / "x.css").write_text("")
    for old in (used, unused, foreign):
        os.utime(old, (long_ago, long_ago))
    static.publish(published, folder)
    assert (used / "site.css").stat().st_ino == written, "it was written again"
    assert cut.read_bytes() == (folder / "css/print.css").read_bytes()
    assert not unused.exists()
    assert recent.exists()
    assert foreign.exists()


@pytest.mark.parametrize("failing", ["mkdir", "fsync"])
def test_a_disk_that_takes_nothing_is_one_warning_and_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines, failing: str
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path if failing == "mkdir" else os, failing, fail)
    static.publish(tmp_path / "published", folder)
    (line,) = log_lines()
    assert (line["event"], line["level"]) == ("static_not_published", "warning")
    assert "No space left" in line["error"]
    assert not [path for path in tmp_path.glob("published/**/*") if path.is_file()]
