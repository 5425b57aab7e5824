"""A rendered project with routes for the load, its releases, sound and broken, and its operator."""

import json
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPSConnection
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.combinations import commit, git, render
from tests.live.machine import Machine

SLUG = "live-api"
DOMAIN = "api.live.test"
PREFIX = "/trial"
# What must not be found where no secret belongs.
CANARY = "canary-5f0c6f1e9b"
STEPS = (
    *("lock", "check", "build", "settings", "migrate", "stop"),
    *("start", "ready", "smoke", "switch", "watch", "done"),
)
STEP = re.compile(r"\s*(\d+\.\d)s\s+(\w+)\b")

ROUTES = '''\
"""Routes that are slow, large or fatal, and what is wrong with this release."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse, StreamingResponse

from app.health import NotReady, Readiness

RELEASE = "@RELEASE@"
FAULT = "@FAULT@"
HEADERS = {"X-Release": RELEASE}

if FAULT == "import":
    import no_such_module

hog: list[bytes] = []
public: list[str] = []


async def notice(request: Request) -> None:
    """Whoever comes through the proxy is announced by it."""
    public.extend(request.headers.getlist("x-forwarded-for"))
    del public[1:]


router = APIRouter(prefix="/trial", dependencies=[Depends(notice)])


def text(content: object) -> PlainTextResponse:
    return PlainTextResponse(str(content), headers=HEADERS)


@router.get("/get")
async def get() -> PlainTextResponse:
    return text("get")


@router.post("/echo")
async def echo(request: Request) -> PlainTextResponse:
    return text((await request.body()).decode())


@router.get("/slow")
async def slow() -> PlainTextResponse:
    await asyncio.sleep(2)
    return text("slow")


@router.get("/events")
async def events() -> StreamingResponse:
    async def generate() -> AsyncGenerator[str]:
        for number in range(80):
            yield f"data: {number}\\n\\n"
            await asyncio.sleep(0.1)

    headers = HEADERS | {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
    return StreamingResponse(generate(), media_type="text/event-stream", headers=headers)


@router.get("/block")
async def block() -> None:
    time.sleep(60)  # the line that blocks


@router.get("/hog")
async def take(mb: int) -> PlainTextResponse:
    hog.append(b"x" * (mb << 20))
    return text(mb)


@router.get("/pid")
async def pid() -> PlainTextResponse:
    return text(os.getpid())


async def opening(readiness: Readiness) -> None:
    """What goes wrong while the service starts, or is found out later."""

    async def unready() -> None:
        if FAULT == "unready" or public:
            raise NotReady("this release is broken")

    if FAULT == "lifespan":
        raise RuntimeError("the lifespan fails")
    if FAULT == "slow":
        await asyncio.sleep(60)
    if FAULT in {"unready", "later"}:
        readiness.add("trial", unready)
'''
MIGRATION = '''\
"""Notes."""

import sqlalchemy as sa
from alembic import op

revision: str = "{revision}"
down_revision: str | None = "{below}"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Make a table."""
    op.create_table("notes_{revision}", sa.Column("id", sa.Integer(), nullable=False))
    {after}


def downgrade() -> None:
    """Drop it."""
    op.drop_table("notes_{revision}")
'''
# What a broken release is called, and which of deploy.sh's steps must notice it.
FAULTS = {
    "import": {"settings", "migrate", "start", "ready"},
    "setting": {"settings"},
    "lifespan": {"start", "ready"},
    "slow": {"start", "ready"},
    "migration": {"migrate"},
    "unready": {"start", "ready"},
    "later": {"watch"},
}


class Project:
    """A project in a repository of its own; every release says its name with every answer."""

    def __init__(self, template: Path, folder: Path, *, deployment: str, **answers: str) -> None:
        self.folder = render(
            template,
            folder,
            project_name="Live API",
            project_slug=SLUG,
            domain=DOMAIN,
            email=f"ops@{DOMAIN}",
            deployment=deployment,
            **answers,
        )
        # The last sound release.
        self.newest = ""
        commit(self.folder)
        self._edit(
            "app/main.py",
            "    app.include_router(health.router)\n",
            after="    app.include_router(trial.router)\n",
        )
        self._edit(
            "app/main.py", "from app.settings import AppSettings", before="from app import trial\n"
        )
        self._edit(
            "app/main.py",
            "        readiness.serve()\n",
            before="        await trial.opening(readiness)\n",
        )
        # A secret that setup makes on the server; its value must appear nowhere.
        self._setting("payment_token: SecretStr")
        self._setting("signing_salt: SecretStr | None = None")
        with (self.folder / ".env.example").open("a") as example:
            example.write("PAYMENT_TOKEN=generate-me\n")

    def _edit(self, name: str, anchor: str, *, before: str = "", after: str = "") -> None:
        path = self.folder / name
        text = path.read_text()
        assert text.count(anchor) == 1, f"{name}: {anchor!r} is there {text.count(anchor)} times"
        path.write_text(text.replace(anchor, f"{before}{anchor}{after}"))

    def _setting(self, declared: str) -> None:
        anchor = "    # Add fields here, then run `make settings`;"
        self._edit("app/settings.py", anchor, before=f"    {declared}\n")

    def unlimited(self) -> None:
        """Have the proxy bear more from one address than it would."""
        path = self.folder / "deploy/nginx-https.conf"
        if path.exists():
            path.write_text(path.read_text().replace("rate=100r/s", "rate=10000r/s"))
            commit(self.folder)

    def first_commands(self) -> list[list[str]]:
        """What the README says to type for a bare server: arguments of deploy.sh."""
        chapter = (self.folder / "README.md").read_text().partition("### The server\n")[2]
        block = chapter.partition("```console\n")[2].partition("```")[0]
        lines = [line for line in block.splitlines() if line.startswith("deploy/deploy.sh ")]
        return [shlex.split(line)[1:] for line in lines]

    def release(self, name: str, fault: str = "", *, migration: bool = False) -> str:
        """Commit a release and return its commit; a broken one on a branch of its own."""
        if fault:
            git(self.folder, "checkout", "--quiet", "-B", f"broken-{fault}")
        routes = ROUTES.replace("@RELEASE@", name).replace("@FAULT@", fault)
        (self.folder / "app/trial.py").write_text(routes)
        if fault == "setting":
            self._setting("signing_key: str")
        if migration or fault == "migration":
            versions = self.folder / "migrations/versions"
            below = max(path.name[:4] for path in versions.glob("[0-9]*.py"))
            revision = f"{int(below) + 1:04}"
            after = 'raise RuntimeError("the migration fails half-way")' if fault else "pass"
            text = MIGRATION.format(revision=revision, below=below, after=after)
            (versions / f"{revision}_notes.py").write_text(text)
        commit(self.folder)
        made = git(self.folder, "rev-parse", "HEAD").strip()
        if fault:
            git(self.folder, "checkout", "--quiet", "main")
        else:
            self.newest = name
        return made


@dataclass
class Outcome:
    """How a run of deploy.sh went."""

    arguments: tuple[str, ...]
    code: int = 0
    out: str = ""
    err: str = ""
    seconds: float = 0.0
    # When the line of each step was seen, and the seconds that it names.
    began: dict[str, float] = field(default_factory=dict)
    named: dict[str, float] = field(default_factory=dict)

    @property
    def last(self) -> str:
        """The step that began last."""
        return next(reversed(self.began), "")

    def __str__(self) -> str:
        """All that it said."""
        return f"deploy.sh {' '.join(self.arguments)}: status {self.code}\n{self.out}{self.err}"


class Operator:
    """Somebody who deploys a project to a machine from another one."""

    def __init__(self, project: Project, machine: Machine, **environment: str) -> None:
        self.project, self.machine = project, machine
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            **{name: value for name, value in os.environ.items() if name.startswith("GIT_")},
            "DEPLOY_HOST": machine.host,
            "DEPLOY_SSH": machine.ssh_command(),
            "DEPLOY_WATCH_S": "2",
            **environment,
        }
        self.said: list[str] = []

    def begin(
        self, *arguments: str, stdin: str, environment: Mapping[str, str]
    ) -> "subprocess.Popen[str]":
        """Start deploy.sh, whose output comes line by line."""
        process = subprocess.Popen(
            ["deploy/deploy.sh", *arguments],
            cwd=self.project.folder,
            env={**self.environment, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        return process

    def deploy(
        self,
        *arguments: str,
        code: int | None = 0,
        at: str = "",
        then: Callable[[], object] | None = None,
        cut_off: bool = False,
        stdin: str = "",
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Outcome:
        """Run deploy.sh and check its status; `then` is done when the step `at` begins.

        `cut_off` cuts the connection then.
        """
        outcome = Outcome(arguments)
        started = time.monotonic()
        process = self.begin(*arguments, stdin=stdin, environment=environment)
        lines = []
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                for line in process.stdout:
                    lines.append(line)
                    if match := STEP.match(line):
                        outcome.began.setdefault(match[2], time.time())
                        outcome.named[match[2]] = float(match[1])
                        if match[2] == at and then:
                            then()
                        if match[2] == at and cut_off:
                            cut(process)
                outcome.err = process.stderr.read()
                outcome.code = process.wait(timeout=60)
            finally:
                cut(process)
        outcome.out, outcome.seconds = "".join(lines), time.monotonic() - started
        self.said.append(str(outcome))
        if code is not None:
            assert outcome.code == code, f"status {code} was expected\n{outcome}"
        return outcome

    def kill(self) -> None:
        """Kill everything on the server that those who deploy have started."""
        self.machine.run("systemctl kill --signal=KILL user-$(id -u deploy).slice", check=False)

    def active(self) -> tuple[str, str]:
        """The slot and the release that `status` says are active."""
        first = self.deploy("status").out.splitlines()[0].replace(",", "").split()
        assert first[0] == "active", first
        return first[1], first[2]


def cut(process: "subprocess.Popen[str]") -> None:
    """End the caller's side at once, as if the network was cut."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class Public:
    """Single requests by the public way, beside the load."""

    def __init__(self, address: str, ca: Path, domain: str = DOMAIN) -> None:
        self.address, self.domain = address, domain
        self.tls = ssl.create_default_context(cafile=str(ca))
        # The release that answered last.
        self.release = ""

    def ask(
        self, method: str, path: str, body: object = None, timeout: float = 20
    ) -> tuple[int, Any]:
        """Make one request on a connection of its own; status 0 means that there was no answer."""
        connection = HTTPSConnection(self.domain, timeout=timeout, context=self.tls)
        # The name is for TLS and the Host header only.
        connection._create_connection = self._connect  # type: ignore[attr-defined]
        headers = {"Content-Type": "application/json", "Connection": "close"}
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()
        self.release = answer.headers.get("x-release", self.release)
        kind = answer.headers.get("content-type", "")
        return answer.status, json.loads(text) if kind.endswith("json") else text

    def _connect(self, _address: object, *arguments: Any, **options: Any) -> Any:
        return socket.create_connection((self.address, 443), *arguments, **options)

    def certificate(self) -> str:
        """The serial number of the certificate that is served."""
        with (
            socket.create_connection((self.address, 443), timeout=5) as plain,
            self.tls.wrap_socket(plain, server_hostname=self.domain) as wrapped,
        ):
            found = wrapped.getpeercert() or {}
        return str(found["serialNumber"])

    def items(self) -> list[dict[str, Any]]:
        """Every item."""
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            status, page = self.ask("GET", f"/api/v1/items?limit=20{after}")
            assert status == 200, page
            found += page["items"]
            if page["next"] is None:
                return found
            after = f"&after={page['next']}"
