"""Uploads are streamed: what a worker holds of them grows with neither size nor number."""

import hashlib
import http.client
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.combinations import render

pytestmark = pytest.mark.slow

MB = 1_000_000
AT_ONCE = 20
# Of one whole body, and of a form, whose parser in Python is slower.
BODY_PIECES = 100
FORM_PIECES = 20
MORE_AT_MOST_BYTES = 20 * MB
BOUNDARY = b"a-boundary-that-comes-nowhere-else"
FORM_ROUTE = """

@router.post("/forms")
async def receive_form(file: UploadFile) -> str:
    digest = hashlib.sha256()
    while piece := await file.read(65536):
        digest.update(piece)
    return digest.hexdigest()
"""


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the route that its README shows, and with one that takes a form."""
    folder = tmp_path_factory.mktemp("uploads") / "project"
    project = render(template, folder, database="none", cache="none")
    readme = (project / "README.md").read_text()
    (section,) = re.findall(r"^## Uploads$(.*?)(?=^## )", readme, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    shown = "\n\n".join(blocks).replace("import APIRouter,", "import APIRouter, UploadFile,")
    (project / "app/uploads.py").write_text(shown + FORM_ROUTE)
    main = project / "app/main.py"
    text = main.read_text()
    include = '    app.include_router(ibans, prefix="/api/v1")\n'
    assert include in text
    text = text.replace(include, f"{include}    app.include_router(uploads)\n")
    imports = "from app.ibans.routes import router as ibans\n"
    main.write_text(text.replace(imports, f"{imports}from app.uploads import router as uploads\n"))
    for command in (
        ["make", "--silent", "install", f"PYTHON={sys.executable}"],
        ["uv", "pip", "install", "--quiet", "--python", ".venv/bin/python", "python-multipart"],
    ):
        subprocess.run(command, cwd=project, check=True)
    return project


class Worker:
    """The one worker of a gunicorn on a unix socket."""

    def __init__(self, folder: Path, master: psutil.Process) -> None:
        self.socket = folder / "app.sock"
        self.master = master
        self.spool = folder / "spool"

    def memory_bytes(self) -> int:
        """What it holds in memory now, without what the kernel keeps of files for it."""
        (worker,) = self.master.children()
        return int(worker.memory_info().rss)

    def ask(self, method: str, path: str, **options: object) -> tuple[int, str]:
        """Make one request; return status and body."""
        with connected(self.socket) as connection:
            connection.request(method, path, **options)  # type: ignore[arg-type]
            answer = connection.getresponse()
            return answer.status, answer.read().decode()


@contextmanager
def connected(path: Path) -> Iterator[http.client.HTTPConnection]:
    """A connection over a unix socket."""
    connection = http.client.HTTPConnection("localhost", timeout=120)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(120)
        connection.sock.connect(str(path))
        yield connection
    finally:
        connection.close()


@pytest.fixture
def worker(project: Path, tmp_path: Path) -> Iterator[Worker]:
    """A worker that takes bodies of 200 MB, and spools to a folder of its own."""
    (tmp_path / "spool").mkdir()
    own = {
        "APP_BODY_LIMIT_BYTES": str(200 * MB),
        # However busy this machine is.
        "APP_BODY_TIMEOUT_S": "300",
        "APP_ENVIRONMENT": "development",
        "APP_RATE_LIMIT": "off",
        "APP_LOG_LEVEL": "WARNING",
        "SERVER_BIND": f"unix:{tmp_path / 'app.sock'}",
        "TMPDIR": str(tmp_path / "spool"),
        "WEB_CONCURRENCY": "1",
    }
    command = [str(project / ".venv/bin/python"), "-m", "gunicorn", "-c", "gunicorn_conf.py"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=project, env=os.environ | own, stdout=log, stderr=log
        )
    try:
        worker = Worker(tmp_path, psutil.Process(process.pid))
        deadline = time.monotonic() + 60
        while not answers(worker):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        yield worker
    finally:
        process.terminate()
        process.wait(timeout=60)
        shutil.rmtree(tmp_path / "spool")


def answers(worker: Worker) -> bool:
    """Whether it is ready."""
    try:
        return worker.ask("GET", "/ready")[0] == 200
    except OSError:
        return False


class Body:
    """Pieces of 1 MB, of which no two are alike, also not in two bodies."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.noise = random.Random(1).randbytes(MB - 16)
        self.common = hashlib.sha256()
        for number in range(pieces - 1):
            self.common.update(self.piece(number, 0))

    def piece(self, number: int, body: int) -> bytes:
        """One piece; the last is the one in which bodies differ."""
        whose = body if number == self.pieces - 1 else 0
        return number.to_bytes(8) + whose.to_bytes(8) + self.noise

    def sent(self, body: int) -> Iterator[bytes]:
        """All pieces."""
        return (self.piece(number, body) for number in range(self.pieces))

    def digest(self, body: int) -> str:
        """What it hashes to."""
        digest = self.common.copy()
        digest.update(self.piece(self.pieces - 1, body))
        return digest.hexdigest()

    def upload(self, worker: Worker, body: int) -> None:
        """Send it as it is."""
        headers = {"content-length": str(self.pieces * MB)}
        said = worker.ask("POST", "/uploads", body=self.sent(body), headers=headers)
        assert said == (200, f'"{self.digest(body)}"')

    def upload_in_form(self, worker: Worker, body: int) -> None:
        """Send it as a file in a form."""
        begin = b'--%s\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        begin %= BOUNDARY
        end = b"\r\n--%s--\r\n" % BOUNDARY

        def form() -> Iterator[bytes]:
            yield begin
            yield from self.sent(body)
            yield end

        headers = {
            "content-length": str(len(begin) + self.pieces * MB + len(end)),
            "content-type": f"multipart/form-data; boundary={BOUNDARY.decode()}",
        }
        said = worker.ask("POST", "/forms", body=form(), headers=headers)
        assert said == (200, f'"{self.digest(body)}"')


@contextmanager
def sampled(worker: Worker, seen: list[int]) -> Iterator[None]:
    """Note its memory all the time."""
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.05):
            seen.append(worker.memory_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(("form", "pieces"), [(False, BODY_PIECES), (True, FORM_PIECES)])
def test_many_large_uploads_at_once_leave_a_workers_memory_flat(
    worker: Worker,
    form: bool,
    pieces: int,
    record_property: Callable[[str, object], None],
) -> None:
    def upload(body: Body, number: int) -> None:
        (body.upload_in_form if form else body.upload)(worker, number)

    with ThreadPoolExecutor(AT_ONCE + 1) as threads:
        # Its own threads run then, and what it allocates once is allocated.
        small = Body(2)
        list(threads.map(lambda number: upload(small, number), range(2 * AT_ONCE)))
        before = worker.memory_bytes()
        large = Body(pieces)
        seen: list[int] = []
        with sampled(worker, seen):
            uploads = [threads.submit(upload, large, number) for number in range(AT_ONCE)]
            beside = 0
            slowest_s = 0.0
            while not all(one.done() for one in uploads):
                started = time.monotonic()
                assert worker.ask("GET", "/health") == (200, "ok")
                slowest_s = max(slowest_s, time.monotonic() - started)
                beside += 1
                time.sleep(0.1)
            for one in uploads:
                one.result()
    assert len(seen) > 10
    assert beside > 5
    more = max(seen) - before
    assert more < MORE_AT_MOST_BYTES, f"{more / MB:.1f} MB more than {before / MB:.0f}"
    assert not list(worker.spool.iterdir()), "a spooled upload was left"
    what = f"{AT_ONCE} uploads of {pieces} MB at once, {'forms' if form else 'bodies'}"
    record_property(
        what,
        f"{more / MB:.1f} MB more than {before / MB:.0f}; beside them {beside} requests,"
        f" the slowest {slowest_s:.2f} s",
    )
