"""A project on a bare server: from nothing to HTTPS, every release, all that goes wrong."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.live import authority, machine
from tests.live.authority import Authority
from tests.live.doctor import doctor
from tests.live.load import Load, Request, added, failures, worst
from tests.live.machine import Machine, until
from tests.live.project import (
    CANARY,
    DOMAIN,
    FAULTS,
    PREFIX,
    SLUG,
    STEPS,
    Operator,
    Outcome,
    Project,
    Public,
)
from tests.live.target import Row, Target

REQUESTS = int(os.environ.get("LIVE_REQUESTS", "1500"))
# A short test spreads over the rows what a long one does on each.
SOAK = REQUESTS > 10_000
RATE = 100 if SOAK else 10
# How near to a switch a request is that may have felt it.
AROUND_S = 0.5
CA = "/etc/ssl/acme-ca.pem"


def selected(rows: Sequence[Row]) -> list[Row]:
    """The rows whose names hold one of the words in LIVE_ROWS; without any those that are usual."""
    words = os.environ.get("LIVE_ROWS", "").split()
    if not words:
        return [row for row in rows if row.usual or SOAK]
    return [row for row in rows if any(word in row.name for word in words)]


@dataclass
class Scenario:
    """A stretch of time under load, and which failures it may have."""

    name: str
    begin: float
    end: float = float("inf")
    allows: Callable[[Request], bool] = lambda _one: False


@dataclass
class Rehearsal:
    """One row on its way through the scenarios."""

    row: Row
    project: Project
    machine: Machine
    target: Target
    operator: Operator
    public: Public
    load: Load
    record: Callable[[str, object], None]
    scenarios: list[Scenario] = field(default_factory=list)
    switches: list[float] = field(default_factory=list)

    def mine(self, number: int) -> bool:
        """Whether this row tries what has this number: a short test deals such things out."""
        return SOAK or number % 2 == self.row.number % 2

    def note(self, name: str, figure: object) -> None:
        """Record a figure."""
        self.record(f"{self.row.name} {name}", figure)

    @contextmanager
    def scenario(self, name: str) -> Iterator[Scenario]:
        """Do something under load; at once or at the end, its failures are named with it."""
        scenario = Scenario(name, time.time())
        self.scenarios.append(scenario)
        yield scenario
        scenario.end = time.time()
        self.check_load()

    def check_load(self) -> None:
        """Fail if a request failed that nothing excuses."""
        requests = self.load.requests()
        bad = []
        for one in requests:
            if one.failure:
                near = [s for s in self.scenarios if s.begin <= one.end and one.start <= s.end]
                if not any(s.allows(one) for s in near):
                    bad += [f"in {[s.name for s in near]}: {failures([one])[0]}"]
        said = "\n".join(bad[:20])
        assert not bad, f"{self.row.name}: {len(bad)} of {len(requests)} failed\n{said}"

    def release(self, verb: str = "release") -> Outcome:
        """Make a release that succeeds, or what is like one."""
        outcome = self.operator.deploy(verb)
        self.switches.append(outcome.began["switch"])
        return outcome

    def serves(self, name: str) -> None:
        """Check that a release serves, by name, and that the others do not."""
        status, answer = self.public.ask("GET", f"{PREFIX}/get")
        assert (status, answer) == (200, "get"), f"{name} is to serve: {status} {answer}"
        assert self.public.release == name, f"{self.public.release} serves instead of {name}"


def open_at(begin: float, end: float) -> Callable[[Request], bool]:
    """Excuse requests that were open at some time between two moments."""
    return lambda one: one.start <= end + 0.2 and one.end >= begin - 0.2


# ------------------------------------------- 1. from a bare server to HTTPS


def bring_up(r: Rehearsal) -> None:
    """Set up, set up again, and make the first release."""
    other = r.row.kind == "full" and r.target.shared
    if other:
        start_other_site(r)
    if SOAK:
        r.project.unlimited()
    outcome = r.operator.deploy("--dry-run", "setup")
    assert "would" in outcome.out, f"a dry run says what is missing\n{outcome}"
    assert not (r.machine.root / "srv" / SLUG / "deploy").exists(), "a dry run changed something"
    set_up, first_release = r.project.first_commands()
    outcome = r.operator.deploy(*set_up)
    r.note("setup of the server, s", round(outcome.seconds, 1))
    before = r.target.fingerprint()
    outcome = r.operator.deploy("setup")
    assert r.target.fingerprint() == before, f"setup, the second time, changed something\n{outcome}"
    r.note("setup again, s", round(outcome.seconds, 1))
    if r.row.proxy == "caddy":
        r.target.quicken_caddy()
    r.project.release("first")
    if r.mine(0):
        r.target.forget_builds()
    outcome = r.operator.deploy(*first_release)
    r.note("first release, s", round(outcome.seconds, 1))
    r.serves("first")
    if other:
        assert other_site(r) == "other", "the site that was there before is gone"
    secrets = r.target.first_secrets()
    r.operator.deploy("config", "-", stdin=f"{secrets}SIGNING_SALT={CANARY}\n")
    # Long enough for the stream, and no longer.
    # All of the load comes from one address.
    r.operator.deploy(
        *("config", "SERVER_WORKER_TIMEOUT_S=6", "SERVER_DRAIN_S=10", "APP_REQUEST_BUDGET_S=9"),
        "APP_RATE_LIMIT=off",
        *r.target.settings,
    )
    r.operator.deploy("restart")


def start_other_site(r: Rehearsal) -> None:
    """Have a site of its own on the server before."""
    if r.row.proxy == "nginx":
        path, site = "/etc/nginx/conf.d/other.conf", 'listen 80; return 200 "other";'
        site = f"server {{ server_name other.live.test; {site} }}\n"
    else:
        path, site = "/etc/caddy/Caddyfile", 'http://other.live.test {\n\trespond "other"\n}\n'
    r.machine.run(f"cat >{path}", text=site)
    r.machine.run(f"systemctl enable --now {r.row.proxy}")
    assert other_site(r) == "other"


def other_site(r: Rehearsal) -> str:
    """What the other site answers."""
    return r.machine.run("curl -s --resolve other.live.test:80:127.0.0.1 http://other.live.test/")


def hardened(r: Rehearsal) -> None:
    """The service is shielded as promised."""
    slot = r.operator.active()[0]
    for name, figure in r.target.hardened(slot).items():
        r.note(name, figure)
    sizes = []
    for process in r.target.workers(slot):
        rollup = r.machine.run(f"grep ^Pss: /proc/{process}/smaps_rollup")
        sizes.append(round(int(rollup.split()[1]) / 1024))
    r.note("memory per worker, MB (PSS)", sizes)
    metrics = r.public.ask("GET", "/metrics")[0]
    assert metrics == 404, f"/metrics is reachable: {metrics}"


def verbs(r: Rehearsal) -> None:
    """What only looks."""
    for line in r.operator.deploy("logs", "-n", "20").out.splitlines():
        assert json.loads(line), line
    said = r.operator.deploy("run", "python", "-c", "import app.trial; print(app.trial.RELEASE)")
    assert said.out.strip() == r.public.release, said
    for verb in (["release"], ["rollback"], ["restart"], ["backup"], ["run", "false"]):
        said = r.operator.deploy("--dry-run", *verb)
        assert "\nwould " in f"\n{said.out}", f"a dry run only says what it would\n{said}"
    assert r.machine.run(f"ls /var/backups/{SLUG}") == "", "a dry run made a backup"
    r.serves(r.public.release)
    outcome = r.operator.deploy("config", "WEB_CONCURRENCY=none", code=1)
    assert "WEB_CONCURRENCY" in outcome.err, f"config refuses a bad value by name\n{outcome}"
    r.operator.deploy("release", "no-such-ref", code=1)
    r.operator.deploy("no-such-verb", code=64)
    levels(r)


def levels(r: Rehearsal) -> None:
    """The level of the log changes while the same workers serve."""
    slot = r.operator.active()[0]
    before = r.target.workers(slot)
    r.operator.deploy("log-level", "LOUD", code=64)
    r.operator.deploy("log-level", "DEBUG")

    def probed() -> bool:
        assert r.public.ask("GET", "/health")[0] == 200
        return '"/health"' in r.operator.deploy("logs", "-n", "200").out

    # Probes are logged at that level alone.
    until(probed, "a probe's line", 20)
    r.operator.deploy("log-level", "INFO")
    assert r.target.workers(slot) == before, "workers were replaced"
    assert "INFO" in r.machine.run(f"grep ^APP_LOG_LEVEL= /etc/{SLUG}/env")


def shown(r: Rehearsal) -> str:
    """The slot whose metrics a Prometheus on the server sees; the verb prints the same one's."""
    workers = re.compile(r'^workers{slot="(blue|green)"} [1-9]', re.MULTILINE)
    asked = workers.findall(r.machine.run("curl -sf http://127.0.0.1:9464/metrics"))
    assert asked == workers.findall(r.operator.deploy("metrics").out)
    return str(*asked)


# --------------------------------------------- 2. releases without a failure


def releases(r: Rehearsal) -> None:
    """Release, go back, release, restart, reload the proxy, renew the certificate."""
    # The steady time that the first switch is compared with.
    time.sleep(6)
    with r.scenario("release"):
        r.project.release("second", migration=True)
        outcome = r.release()
        r.note("release, s", round(outcome.named["done"], 1))
        r.serves("second")
        slot = r.operator.active()[0]
        assert shown(r) == slot, "the metrics are not those of the slot that serves"
    with r.scenario("rollback"):
        outcome = r.release("rollback")
        r.note("rollback, s", outcome.named["done"])
        assert outcome.named["done"] < 1.5, f"rollback takes too long\n{outcome}"
        r.serves("first")
        assert shown(r) == r.operator.active()[0] != slot, "the metrics stayed where they were"
    with r.scenario("release again"):
        r.project.release("third")
        r.release()
        r.serves("third")
    with r.scenario("setup under load"):
        r.operator.deploy("setup")
    with r.scenario("reload of the proxy") as scenario:
        # A proxy that reloads closes what is idle, and a request may just be on its way there.
        # Caddy has closed a connection so that was just made.
        caddy = r.row.proxy == "caddy"
        scenario.allows = lambda one: one.unanswered if caddy else one.lost_idle
        r.target.reload_proxy()
        time.sleep(1)
    with r.scenario("restart"):
        r.release("restart")
        r.serves("third")
    if r.row.proxy == "nginx":
        with r.scenario("renewal of the certificate") as scenario:
            scenario.allows = lambda one: one.lost_idle
            before = r.public.certificate()
            r.target.renew()
            took = until(lambda: r.public.certificate() != before, "the new certificate", 30)
            r.note("certificate renewed: served after, s", round(took, 1))
    if not SOAK:
        return
    with r.scenario("soak"):
        while len(r.load.requests()) < REQUESTS:
            for verb in ("release", "rollback", "restart"):
                r.release(verb)
                time.sleep(6)


# ------------------------------------------------------- 3. broken releases


def broken_releases(r: Rehearsal) -> None:
    """Whatever is wrong with a release, the one before it serves on."""
    r.serves("third")
    for number, (fault, noticed) in enumerate(FAULTS.items()):
        if not r.mine(number):
            continue
        with r.scenario(f"broken release: {fault}"):
            # One that is noticed later has to start first, and may need all of its time.
            starts = SOAK or "start" not in noticed
            with nullcontext({}) if starts else r.target.hastened() as sooner:
                # Until requests of the load have come to its workers.
                watched = {"DEPLOY_WATCH_S": "30"} if "watch" in noticed else {}
                fails(r, r.project.release(f"broken-{fault}", fault), noticed, **sooner, **watched)
    tables = r.operator.deploy("run", "python", "-c", TABLES).out.split()
    assert "notes_0002" in tables, tables
    assert "notes_0003" not in tables, f"a migration that failed left a table: {tables}"
    with r.scenario("broken release: no database"):
        if r.row.database == "postgresql":
            r.target.stop("postgresql")
            fails(r, "HEAD", {"settings", "migrate"})
            r.target.start("postgresql")
        else:
            r.machine.run(f"chmod 000 /var/lib/{SLUG}/app.db")
            fails(r, "HEAD", {"settings", "migrate", "ready", "start"})
            r.machine.run(f"chmod 600 /var/lib/{SLUG}/app.db")


TABLES = """
import asyncio
from sqlalchemy import inspect
from app.db import DbSettings, create_engines

async def main():
    reader, _ = create_engines(DbSettings.load())
    async with reader.connect() as connection:
        print(*await connection.run_sync(lambda sync: inspect(sync).get_table_names()))

asyncio.run(main())
"""


def fails(r: Rehearsal, ref: str, noticed: set[str], **environment: str) -> Outcome:
    """Try a release that fails in one of the steps `noticed`; nothing else changes."""
    slot, name = r.operator.active()
    outcome = r.operator.deploy("release", ref, code=1, environment=environment)
    assert outcome.last in noticed, f"it was to be noticed in {noticed}\n{outcome}"
    for word in ("deploy.sh: ", "next: "):
        assert f"\n{word}" in f"\n{outcome.err}", f"{word!r} is not said\n{outcome}"
    assert r.operator.active() == (slot, name), f"something else is active now\n{outcome}"
    if STEPS.index(outcome.last) >= STEPS.index("stop"):
        other = "green" if slot == "blue" else "blue"
        assert other not in r.target.up(), f"the broken slot is up\n{outcome}"
    return outcome


# ----------------------------------------- 4. deployments that are cut short


def cut_short(r: Rehearsal) -> None:
    """Killed at every step, cut off, two at once, no room: what served serves on."""
    for step in (step for number, step in enumerate(STEPS) if r.mine(number)):
        with r.scenario(f"killed at {step}"):
            outcome = r.operator.deploy("release", at=step, then=r.operator.kill, code=None)
            assert step in outcome.began, f"it never came to {step}\n{outcome}"
            assert outcome.code != 0 or step == "done", f"it was not killed\n{outcome}"
            # The next one does what this one left undone, and is killed at a later step.
            r.serves("third")
    for number, part in enumerate((cut_off, at_once, no_room)):
        if r.mine(number + 1):
            part(r)
    with r.scenario("release after all that"):
        r.project.release("fourth")
        r.release()
        r.serves("fourth")
        left = r.machine.run(f"ls /srv/{SLUG}/releases").split()
        assert len(left) <= 6, f"releases pile up: {left}"


def cut_off(r: Rehearsal) -> None:
    """Whoever deploys loses the connection."""
    with r.scenario("the connection is cut"):
        before = r.operator.active()
        r.operator.deploy("release", at="ready", cut_off=True, code=None)
        idle = f"flock --nonblock /srv/{SLUG}/deploy.lock echo free"
        until(lambda: r.machine.run(idle, check=False), "the deployment gives up", 40)
        assert r.operator.active() == before, "a deployment went on without who started it"
        r.serves("third")


def at_once(r: Rehearsal) -> None:
    """Two deploy at the same time."""
    with r.scenario("two at once"):
        said: list[Outcome] = []

        def second() -> None:
            said.append(r.operator.deploy("release", code=75))

        outcome = r.operator.deploy("release", at="build", then=second)
        r.switches.append(outcome.began["switch"])
        assert "process" in said[0].err, f"who holds the lock is not said\n{said[0]}"


def no_room(r: Rehearsal) -> None:
    """There is no room for another release."""
    with r.scenario("no room"):
        fails(r, "HEAD", {"lock", "check"}, DEPLOY_MIN_FREE_MB="99999999")
    if r.target.fillable:
        full_disk(r)


def full_disk(r: Rehearsal) -> None:
    """The disk is full in the middle of a build."""
    with r.scenario("disk full"):
        # In a small file system in its place, with what the slots hold and hardly more.
        releases, small = f"/srv/{SLUG}/releases", f"/srv/{SLUG}/.small"
        r.machine.run(
            f"mkdir {small}; cd {releases}; kept=$(basename -a $(readlink ../slots/*));"
            " size=$(($(du -scm $kept | tail -1 | cut -f1) + 25))m;"
            f" mount -t tmpfs -o size=$size,mode=755 tmpfs {small} && cp -a $kept {small} &&"
            f" mount --bind {small} {releases} && cd {releases} &&"
            " head -c $(($(df --output=avail --block-size=1 . | tail -1) - 65536)) /dev/zero >.full"
        )
        outcome = fails(r, "HEAD", {"build"}, DEPLOY_MIN_FREE_MB="1")
        assert "space" in outcome.err, f"the full disk is not named\n{outcome}"
        r.machine.run(f"umount {releases} {small} && rmdir {small}")
        r.serves("third")


# ------------------------------------------------------------------ 5. faults


def faults(r: Rehearsal) -> None:
    """Workers, the master, memory, the event loop, the database and the machine fail."""
    slot = r.operator.active()[0]
    master = r.target.master(slot)
    count = len(r.target.workers(slot))
    assert count >= 2, f"{count} workers"

    def replaced(before: list[int]) -> None:
        """Wait until one worker was replaced, and no other."""
        until(lambda: r.target.workers(slot) != before, "a worker ends", 20)
        until(lambda: len(r.target.workers(slot)) == count, "another worker", 20)
        lost = set(before) - set(r.target.workers(slot))
        assert len(lost) == 1, f"workers that were replaced: {lost}"

    with r.scenario("worker killed") as scenario:
        before = r.target.workers(slot)
        moment = time.time()
        r.machine.run(f"kill -9 {before[0]}")
        scenario.allows = open_at(moment, time.time())
        replaced(before)
        time.sleep(1)

    with r.scenario("memory cap hit") as scenario:
        before = r.target.workers(slot)
        r.target.limit_memory(slot, 150)
        moment = time.time()
        scenario.allows = open_at(moment, moment + 0.5)
        r.public.ask("GET", f"{PREFIX}/hog?mb=400")
        replaced(before)
        r.target.limit_memory(slot, None)
        time.sleep(1)

    with r.scenario("event loop blocked") as scenario:
        before = r.target.workers(slot)
        moment = time.time()
        scenario.allows = open_at(moment, moment + 0.5)
        r.public.ask("GET", f"{PREFIX}/block", timeout=40)
        r.note("blocked worker replaced, s", round(time.time() - moment, 1))
        replaced(before)
        logged = r.operator.deploy("logs", "--since", r.target.moment(moment)).out
        stuck = [line for line in logged.splitlines() if '"worker_stuck"' in line]
        assert len(stuck) == 1, logged
        assert "app/trial.py" in stuck[0], f"the line is not named: {stuck[0]}"
        time.sleep(1)
    assert r.target.master(slot) == master, "the master was replaced, too"

    with r.scenario("master killed") as scenario, r.machine.first():
        moment = time.time()
        r.machine.run(f"kill -9 {master}")
        until(lambda: r.target.master(slot) not in {master, 0}, "another master", 20)
        until(lambda: len(r.target.workers(slot)) == count, "its workers", 20)
        time.sleep(1)
        # As long as they take to start, and no longer.
        scenario.allows = open_at(moment, time.time())
        time.sleep(1)
        family = {r.target.master(slot), *r.target.workers(slot)}
        other = "green" if slot == "blue" else "blue"
        others = {r.target.master(other), *r.target.workers(other)} - {0}
        running = r.target.running()
        assert running == family | others, f"orphans: {running - family - others}"
    down = [one.end for one in r.load.requests() if one.failure and one.end >= moment]
    r.note("master killed: down for, s", round(max(down, default=moment) - moment, 2))

    services_down(r)

    with r.scenario("reboot") as scenario:
        name = r.operator.active()
        moment = time.time()
        scenario.allows = open_at(moment, moment + 60)
        r.machine.reboot()
        until(lambda: r.public.ask("GET", f"{PREFIX}/get", timeout=2)[0] == 200, "an answer", 90)
        r.note("reboot: back after, s", round(time.time() - moment, 1))
        scenario.allows = open_at(moment, time.time())
        r.machine.wait(120)
        r.note("reboot: everything done after, s", round(time.time() - moment, 1))
        assert r.operator.active() == name, "another release came up"
        assert r.target.up() == {name[0]}, f"slots that came up: {r.target.up()}"
        time.sleep(2)


def services_down(r: Rehearsal) -> None:
    """Without its database the service says so, and serves again when that is back."""
    for service in r.row.services:
        with r.scenario(f"{service} stopped and started"):
            r.target.stop(service)
            until(lambda: r.public.ask("GET", "/ready")[0] == 503, "/ready says 503", 10)
            if service == "postgresql":
                status, said = r.public.ask("GET", "/api/v1/items")
                assert status == 503, f"without a database: {status} {said}"
            r.target.start(service)
            took = until(lambda: r.public.ask("GET", "/ready")[0] == 200, "/ready says 200", 10)
            r.note(f"{service} started: ready after, s", round(took, 1))
            assert took < 5


# ------------------------------------------- 6. backup, destroy and restore


def back_up(r: Rehearsal, folder: Path) -> tuple[Path, list[object]]:
    """Make a backup under load, and return it with what it must hold."""
    with r.scenario("backup"):
        for number in range(30):
            body = {"name": f"item {number}", "price_cents": number}
            assert r.public.ask("POST", "/api/v1/items", body)[0] == 201
        items = r.public.items()
        path = r.operator.deploy("backup").out.splitlines()[0].strip()
        # It must not be there after the restore.
        r.public.ask("POST", "/api/v1/items", {"name": "later", "price_cents": 1})
        kept = folder / Path(path).name
        shutil.copy(r.machine.root / path.lstrip("/"), kept)
    return kept, [*items]


def prepare(r: Rehearsal) -> None:
    """Set up another machine, which does not look like one that can be at first."""
    release = "/usr/lib/os-release"
    r.machine.run(f"cp {release} {release}.own; sed -i 's/^VERSION_ID=.*/VERSION_ID=11/' {release}")
    outcome = r.operator.deploy("setup", code=1)
    assert "this server runs debian 11" in outcome.err, outcome
    r.machine.run(f"mv {release}.own {release}")
    for begin, said, end in r.target.refusals:
        r.machine.run(begin)
        outcome = r.operator.deploy("setup", code=1)
        assert said in outcome.err, outcome
        r.machine.run(end)
    assert not (r.machine.root / "srv" / SLUG / "releases").exists(), "a refusal changed something"
    r.operator.deploy("setup")
    if r.row.proxy == "caddy":
        r.target.quicken_caddy()


def restore(r: Rehearsal, backup: Path, items: list[object]) -> None:
    """Bring everything up on a new machine, which is set up already."""
    r.operator.deploy("release")
    r.serves(r.project.newest)
    assert r.public.items() == [], "a new server has no items"
    damaged = backup.with_name("damaged")
    damaged.write_bytes(backup.read_bytes()[: backup.stat().st_size // 2])
    outcome = r.operator.deploy("restore", str(damaged), code=1)
    assert "next: " in outcome.err, outcome
    r.serves(r.project.newest)
    outcome = r.operator.deploy("restore", str(backup))
    r.note("restore, s", round(outcome.named["done"], 1))
    assert r.public.items() == items, "rows are missing, or there are too many"


SEARCH = """
import sys

secrets = open("/root/secrets", "rb").read().split(b"\\n")
size, before, found = 0, b"", []
while read := sys.stdin.buffer.read(1 << 20):
    size += len(read)
    both = before + read
    found += [both[: both.index(secret)][-100:] for secret in secrets if secret in both]
    before = both[-100:]
print(size, *found, sep="\\n")
"""


def no_secret(r: Rehearsal) -> None:
    """No secret is in anything that was printed or logged."""
    secrets = {CANARY, *r.target.secrets()}
    assert all(len(secret) >= 16 for secret in secrets), "setup made no secret worth the name"
    r.machine.run("umask 077; cat >/root/secrets", text="\n".join(secrets))
    r.machine.run("cat >/root/search.py", text=SEARCH)
    for where, command in r.target.traces().items():
        found = r.machine.run(f"({command}) | python3 /root/search.py", timeout=300).splitlines()
        assert found[1:] == [], f"a secret is in {where}, after: {found[1:4]}"
        assert int(found[0]) > 0, f"there is no {where}"
    for secret in secrets:
        said = [text for text in r.operator.said if secret in text]
        assert not said, f"deploy.sh printed a secret: {said[:1]}"


def rehearse(
    row: Row,
    kind: type[Target],
    template: Path,
    folder: Path,
    record: Callable[[str, object], None],
    besides: Sequence[Callable[[Rehearsal], None]] = (),
) -> None:
    """Take a row through everything; `besides` is what only its deployment has, under load."""
    lacking = [*machine.missing(), *authority.missing()]
    home = interpreter() if row.suite == "bookworm" else None
    if row.suite == "bookworm" and home is None:
        lacking.append("a Python 3.13 below ~/.pyenv/versions")
    if lacking:
        pytest.skip(f"not here: {', '.join(lacking)}")
    answers = {"database": row.database, "proxy": row.proxy, "cache": row.cache, "ci": "none"}
    project = Project(template, folder / "project", deployment=row.deployment, **answers)
    started = time.monotonic()
    with ExitStack() as stack, ThreadPoolExecutor() as aside:

        def rehearsal(until: ExitStack, kind_of_server: str) -> Rehearsal:
            place = until.enter_context(
                Machine(
                    row.suite,
                    kind_of_server,
                    python=home,
                    domain=DOMAIN,
                    engine=row.deployment == "docker",
                )
            )
            own = folder / place.name
            own.mkdir()
            # Caddy renews when a third is left.
            valid_s = 180 if row.proxy == "caddy" else 86_400
            acme = until.enter_context(Authority(own, place.gateway, place.host, valid_s=valid_s))
            place.put(acme.ca, CA)
            return Rehearsal(
                row,
                project,
                place,
                kind(row, place),
                Operator(project, place, ACME_DIRECTORY=acme.directory, ACME_CA=CA),
                Public(place.host, acme.ca),
                Load(own / "requests", place.host, DOMAIN, PREFIX, acme.ca, RATE),
                record,
            )

        first = stack.enter_context(ExitStack())
        r = rehearsal(first, row.kind)
        bring_up(r)
        hardened(r)
        with r.load:
            releases(r)
            verbs(r)
            again = rehearsal(stack, r.target.other_kind)
            prepared = aside.submit(prepare, again)
            for part in (broken_releases, cut_short):
                part(r)
            backup, items = back_up(r, folder)
            faults(r)
            for extra in besides:
                extra(r)
            while len(r.load.requests()) < REQUESTS:
                time.sleep(1)
            r.load.settle()
        r.check_load()
        doctor(r)
        summarize(r)
        no_secret(r)
        first.close()
        prepared.result()
        restore(again, backup, items)
        no_secret(again)
    r.note("whole row, s", round(time.monotonic() - started))


def summarize(r: Rehearsal) -> None:
    """Record the figures of the whole load."""
    requests = r.load.requests()
    r.note("requests", len(requests))
    r.note("failed, all of them allowed", len(failures(requests)))
    for scenario in r.scenarios:
        there = [one for one in requests if scenario.begin <= one.end < scenario.end]
        took = round(scenario.end - scenario.begin, 1)
        figure = f"{len(there)}, {len(failures(there))}, {took}"
        r.note(f"{scenario.name}: requests, failed, s", figure)
    around = [round(worst(requests, moment, AROUND_S) * 1000) for moment in r.switches]
    r.note("worst latency around each switch, ms", around)
    more = [round(added(requests, moment, AROUND_S) * 1000) for moment in r.switches]
    r.note("latency added by each switch, ms", more)
    assert min(more) < 100, f"every switch adds latency, in ms: {more}"
    seen = json.loads(r.load.summary)
    r.note("load", r.load.summary.strip())
    assert seen["certificates"] > 1, "the certificate was not renewed under load"


def interpreter() -> Path | None:
    """A Python 3.13 that can be put on a system that has none."""
    found = sorted(Path.home().glob(".pyenv/versions/3.13.*"), key=lambda path: path.name)
    return found[-1] if found else None
