"""The documentation of a running service, in a real browser."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.browser import check_docs
from tests.combinations import render

pytestmark = pytest.mark.slow

# No address of this machine by name, so that nothing is let pass for being local.
HOST = "docs.test"
RESOLVE = f"MAP {HOST} 127.0.0.1, MAP * ~NOTFOUND"
READY_WITHIN_S = 60


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its environment and its database."""
    project = render(template, tmp_path_factory.mktemp("docs") / "project", database="sqlite")
    for command in (["make", "--silent", "install"], [".venv/bin/python", "-m", "app.migrate"]):
        own = {"PYTHON": sys.executable, "APP_ENVIRONMENT": "development"}
        subprocess.run(command, cwd=project, env=environment() | own, check=True)
    return project


def environment() -> dict[str, str]:
    """The environment of somebody who has set nothing."""
    ours = ("APP_", "DATABASE_", "SERVER_", "MAKE", "VIRTUAL_ENV", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@contextmanager
def serving(project: Path, **settings: str) -> Iterator[str]:
    """Serve the project by gunicorn; give its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {
        "APP_ENVIRONMENT": "development",
        "APP_ALLOWED_HOSTS": HOST,
        "APP_DOCS": "true",
        "SERVER_BIND": f"127.0.0.1:{port}",
        "WEB_CONCURRENCY": "1",
    }
    with (project / "log").open("a") as log:
        service = subprocess.Popen(
            [".venv/bin/gunicorn", "-c", "gunicorn_conf.py"],
            cwd=project,
            env=environment() | own | settings,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while not ready(f"http://127.0.0.1:{port}/ready"):
            assert service.poll() is None, (project / "log").read_text()
            assert time.monotonic() < deadline, "it is not ready"
            time.sleep(0.1)
        yield f"http://{HOST}:{port}"
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(timeout=60)


def ready(url: str) -> bool:
    """Whether a service answers."""
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.parametrize("root_path", ["", "/my/api"])
def test_the_documentation_works_in_a_browser(project: Path, root_path: str) -> None:
    with serving(project, APP_ROOT_PATH=root_path) as address:
        check_docs(f"{address}{root_path}/docs", resolve=RESOLVE)


FAULTS = [
    ("style-src 'self'; ", "", "style-src"),
    ("script-src 'self' {hashes}; ", "script-src 'self'; ", "script-src"),
    ("img-src 'self' data:; ", "img-src 'self'; ", "img-src"),
    ("connect-src 'self';", "", "connect-src"),
    ("swagger_js_url=root_path + script,", "", "cdn.jsdelivr.net"),
    ("swagger_css_url=root_path + style,", "", "cdn.jsdelivr.net"),
    ('openapi_url=f"{root_path}/openapi.json"', 'openapi_url="/open.json"', "there is no .opblock"),
]


@pytest.mark.parametrize(("old", "new", "says"), FAULTS)
def test_a_fault_of_the_documentation_is_found(
    project: Path, old: str, new: str, says: str
) -> None:
    source = project / "app/docs.py"
    sound = source.read_text()
    assert old in sound
    source.write_text(sound.replace(old, new))
    try:
        with (
            serving(project) as address,
            pytest.raises(AssertionError, match=says.replace(".", r"\.")),
        ):
            check_docs(f"{address}/docs", resolve=RESOLVE)
    finally:
        source.write_text(sound)
