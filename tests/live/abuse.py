"""Abuse of the edge: what comes of it is what docs/edge.md says, and nobody else notices."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.live import abuse_crowds, abuse_http1, abuse_http2, abuse_tls
from tests.live.abuse_http1 import PLANTED
from tests.live.edge_routes import EDGE
from tests.live.project import SLUG
from tests.live.site import Site

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/edge.md"
# How long somebody else waits at most for an answer, however busy this computer is.
PATIENCE_S = 20
# No line that is written down may hold one of these.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
PROXIES = ("nginx", "caddy")
VERSIONED = re.compile(r"^(\d+(?:\.\d+)*): (.*)$")


# ------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Abuse:
    """A line of the table: what comes of it, by proxy."""

    name: str
    nginx: str
    caddy: str
    why: str

    def outcome(self, proxy: str, version: str) -> str:
        """What is to come of it; `400; 1.22: 200` is 200 with 1.22 and else 400."""
        usual, *others = (self.nginx if proxy == "nginx" else self.caddy).split("; ")
        for other in others:
            match = VERSIONED.match(other)
            assert match, f"{self.name}: {other!r} names no version"
            if f"{version}.".startswith(f"{match[1]}."):
                return match[2]
        return usual


def table(text: str) -> list[Abuse]:
    """The lines of every table of abuses in the document."""
    rows: list[Abuse] = []
    within = False
    for line in text.splitlines():
        if line.startswith("| Abuse | nginx | Caddy |"):
            within = True
        elif not line.startswith("|"):
            within = False
        elif within and not line.startswith("|---"):
            cells = [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" | ")]
            assert len(cells) == 4, f"four cells are expected: {line}"
            rows.append(Abuse(*cells))
    return rows


def compare(rows: list[Abuse], outcomes: dict[str, str], proxy: str, version: str) -> list[str]:
    """Where the table and what happened differ."""
    expected = {row.name: row.outcome(proxy, version) for row in rows}
    return [
        f"{name}: {expected.get(name, 'not in the table')} is expected,"
        f" {outcomes.get(name, 'not tried')} happened"
        for name in sorted({*expected, *outcomes})
        if outcomes.get(name) not in expected.get(name, "").split(" or ")
    ]


def version(site: Site) -> str:
    """The version of the site's proxy."""
    program = "nginx -v" if site.row.proxy == "nginx" else "caddy version"
    if site.row.deployment == "docker":
        program = f"docker exec {SLUG}-proxy-1 {program}"
    match = re.search(r"(\d+\.\d+(\.\d+)?)", site.machine.run(f"{program} 2>&1"))
    assert match, "the proxy does not say its version"
    return match[1]


# ------------------------------------------------------------- somebody else


@dataclass
class Bystander:
    """A client with an address of its own, who wants nothing but answers."""

    site: Site
    failures: list[str] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.threads = [
            threading.Thread(target=self.ask, args=(http2,), daemon=True) for http2 in (False, True)
        ]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def ask(self, http2: bool) -> None:
        """Ask again and again."""
        path = f"{EDGE}/see"
        source = self.site.clients[0]
        while not self.stopped.wait(0.4):
            began = time.monotonic()
            try:
                answer = self.site.ask("GET", path, http2=http2, source=source, timeout=PATIENCE_S)
                fine = answer.status == 200 and answer.json()["client"] == source
                failure = "" if fine else str(answer)
            except OSError as error:
                failure = repr(error)
            took = time.monotonic() - began
            self.took.append(took)
            if failure or took > PATIENCE_S:
                self.failures.append(f"HTTP/{1 + http2} after {took:.1f} s: {failure}")


# --------------------------------------------------------------------- logs


def objects(lines: list[str], whose: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of a log, and what is wrong with them."""
    found, wrong = [], []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict) or UNPRINTABLE.search(line):
            wrong.append(f"{whose} wrote {line[:300]!r}")
        else:
            found.append(value)
    return found, wrong


def in_logs(access: list[str], app: list[str]) -> list[str]:
    """What is wrong in the lines that were written meanwhile."""
    proxied, wrong = objects(access, "the proxy")
    logged, more = objects(app, "the app")
    wrong += more
    wrong += [
        f"the app failed: {json.dumps(one)[:1000]}"
        for one in logged
        if one.get("level") in {"error", "critical"}
        or "exception" in one
        or int(one.get("status", 0)) >= 500
    ]
    # A hidden request that the proxy saw, too, did not get past it.
    seen = json.dumps(proxied)
    wrong += [
        f"a request was smuggled: {one}"
        for one in logged
        if one.get("path") == PLANTED and one["request_id"] not in seen
    ]
    wrong += [
        f"the app was asked for {one['path']!r}"
        for one in logged
        if one.get("path") == "/metrics" or "/." in str(one.get("path", "")).replace("/..", "")
    ]
    wrong += [
        f"a line was forged: {one}" for one in logged + proxied if one.get("event") == "forged"
    ]
    return wrong


# --------------------------------------------------------------- real tools


def try_api(site: Site, folder: Path) -> list[str]:
    """Have schemathesis try the whole API; return what it found."""
    schema = site.ask("GET", f"{EDGE}/schema", source=site.clients[-1]).json()
    schema["paths"] = {
        path: operations
        for path, operations in schema["paths"].items()
        if not path.startswith((f"{EDGE}/", "/trial/", "/metrics"))
    }
    assert schema["paths"], "the API has no routes"
    described = folder / "openapi.json"
    described.write_text(json.dumps(schema))
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{site.address} {site.domain}\n")
    checks = (
        "not_a_server_error,response_schema_conformance,"
        "status_code_conformance,content_type_conformance"
    )
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", str(described)),
        *(f"--url=https://{site.domain}", f"--tls-verify={site.ca}", f"--checks={checks}"),
        # Below what one address may ask.
        *("--rate-limit=80/s", "--max-examples=30", "--phases=fuzzing"),
        *("--generation-database=none", "--seed=1", "--no-color", "--suppress-health-check=all"),
    ]
    # The name leads to the machine for this process alone.
    inside = 'mount --bind "$0" /etc/hosts && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", inside, str(hosts), *command],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return [f"schemathesis: {(done.stdout + done.stderr)[-3000:]}"] if done.returncode else []


# -------------------------------------------------------------------- check


def check(site: Site, note: Callable[[str, object], None], folder: Path) -> None:
    """Try every abuse at once, and check what came of it."""
    began = time.monotonic()
    access, app, workers = len(site.access_lines()), len(site.app_lines()), site.workers()
    kinds: dict[str, tuple[Callable[[Site, list[str]], dict[str, str]], list[str]]] = {
        "crowds": (abuse_crowds.attack, site.clients[1:7]),
        "HTTP/1.1": (abuse_http1.attack, site.clients[7:14]),
        "HTTP/2": (abuse_http2.attack, site.clients[14:20]),
        "TLS": (abuse_tls.attack, site.clients[20:22]),
    }
    with Bystander(site) as bystander, ThreadPoolExecutor() as pool:
        jobs: dict[str, Future[dict[str, str]]] = {
            kind: pool.submit(attack, site, sources) for kind, (attack, sources) in kinds.items()
        }
        # Once for each proxy.
        wrong = try_api(site, folder) if site.row.number < len(PROXIES) else []
        outcomes = {
            name: outcome for job in jobs.values() for name, outcome in job.result().items()
        }
    # What was cut off may still be on its way into a log.
    time.sleep(1)
    wrong += [f"somebody else: {failure}" for failure in bystander.failures]
    if site.workers() != workers:
        wrong.append(f"workers were lost: {workers} before, {site.workers()} after")
    wrong += in_logs(site.access_lines()[access:], site.app_lines()[app:])
    wrong += compare(table(DOCUMENT.read_text()), outcomes, site.row.proxy, version(site))
    took = sorted(bystander.took)
    note("abuses", len(outcomes))
    note("somebody else's requests meanwhile", len(took))
    note("their median and longest, s", [round(took[len(took) // 2], 3), round(took[-1], 2)])
    note("abuse, s", round(time.monotonic() - began, 1))
    assert not wrong, f"{len(wrong)} things are wrong:\n" + "\n".join(wrong[:60])
