"""A server is broken in one way after the other, and `deploy.sh doctor` names each."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.live.machine import until
from tests.live.project import DOMAIN, PREFIX, SLUG
from tests.live.target import Row

if TYPE_CHECKING:
    from tests.live.rehearsal import Rehearsal

LINE = re.compile(r"^(ok|warn|fail) +([a-z ]+): (.*)$", re.MULTILINE)
# What a machine of a rehearsal has: a name that no DNS knows, the host's clock, and its own past.
USUAL = {"dns", "clock", "errors"}


@dataclass(frozen=True)
class Report:
    """What the doctor said: lines by what they are about."""

    text: str
    levels: dict[str, str]
    found: dict[str, str]

    def at(self, level: str) -> set[str]:
        """What is of a level."""
        return {what for what, found in self.levels.items() if found == level}

    def mend(self, what: str) -> str:
        """What is to be done about it."""
        lines = self.text.splitlines()
        number = next(
            n for n, line in enumerate(lines) if LINE.match(line) and f"  {what}: " in line
        )
        return lines[number + 1].strip().removeprefix("mend: ")


@dataclass(frozen=True)
class Fault:
    """A way to break a server, until the end of a `with`."""

    # Which rows have their turn with it, and which can have it at all.
    number: int
    broken: Callable[["Rehearsal"], AbstractContextManager[None]]
    # The lines that fail; the one that names the cause, with these words; and its level.
    fails: set[str]
    cause: str
    words: tuple[str, ...]
    level: str = "fail"
    # Lines that may fail besides, or not, as it happens.
    may: frozenset[str] = frozenset()
    fits: Callable[[Row], bool] = lambda _row: True


def examined(r: "Rehearsal", code: int) -> Report:
    """What the doctor says now."""
    outcome = r.operator.deploy("doctor", code=None)
    found = LINE.findall(outcome.out)
    report = Report(
        str(outcome),
        {what: level for level, what, _ in found},
        {what: text for _, what, text in found},
    )
    assert outcome.code == code, f"status {code} was expected\n{outcome}"
    assert (outcome.code == 1) == bool(report.at("fail")), outcome
    for what in report.at("fail") | report.at("warn"):
        assert report.mend(what), f"no mend for {what}\n{outcome}"
    r.note(f"doctor, s, {'nothing' if not code else 'something'} fails", round(outcome.seconds, 1))
    return report


def doctor(r: "Rehearsal") -> None:
    """On a sound server nothing fails; on a broken one what is broken does, and nothing else."""
    if r.row.proxy == "caddy" and r.row.deployment == "docker":
        # Since the reboot it looks too seldom for certificates that last minutes.
        r.target.quicken_caddy()
    served(r)
    report = examined(r, 0)
    assert report.at("warn") <= USUAL, f"a sound server is warned of\n{report.text}"
    assert r.operator.active()[1] in report.found["slot"], report.text
    for fault in FAULTS:
        if not (r.mine(fault.number) and fault.fits(r.row)):
            continue
        with fault.broken(r):
            report = examined(r, bool(fault.fails))
            name = fault.broken.__name__
            failing = report.at("fail") - fault.may
            assert failing == fault.fails - fault.may, f"{name}: wrong lines fail\n{report.text}"
            assert report.levels[fault.cause] == fault.level, f"{name}\n{report.text}"
            for word in fault.words:
                assert word in report.found[fault.cause], f"{name}: no {word!r}\n{report.text}"
        served(r)


def served(r: "Rehearsal") -> None:
    """Wait until the service is ready, whichever of its workers is asked."""

    def all_ready() -> bool:
        return all(r.public.ask("GET", "/ready", timeout=2)[0] == 200 for _ in range(8))

    until(all_ready, "a sound service", 40)


@contextmanager
def database_stopped(r: "Rehearsal") -> Iterator[None]:
    """Its server is not there."""
    r.target.stop("postgresql")
    yield
    r.target.start("postgresql")


@contextmanager
def database_unreadable(r: "Rehearsal") -> Iterator[None]:
    """Somebody has changed the mode of its file."""
    r.machine.run(f"chmod 000 /var/lib/{SLUG}/app.db")
    yield
    r.machine.run(f"chmod 600 /var/lib/{SLUG}/app.db")


@contextmanager
def redis_stopped(r: "Rehearsal") -> Iterator[None]:
    """The cache is away."""
    r.target.stop("redis")
    yield
    r.target.start("redis")


@contextmanager
def proxy_stopped(r: "Rehearsal") -> Iterator[None]:
    """Nobody listens."""
    r.target.stop("proxy")
    yield
    r.target.start("proxy")


@contextmanager
def port_taken(r: "Rehearsal") -> Iterator[None]:
    """Somebody else was quicker."""
    r.target.stop("proxy")
    r.machine.run(
        "systemd-run --quiet --unit other python3 -m http.server 443;"
        " until ss -Hlt '( sport = :443 )' | grep -q .; do sleep 0.1; done"
    )
    yield
    r.machine.run("systemctl stop other")
    r.target.start("proxy")


@contextmanager
def configuration_broken(r: "Rehearsal") -> Iterator[None]:
    """The next reload or start of the proxy would fail."""
    site = r.target.site
    r.machine.run(f"cp {site} /root/site; echo 'no such directive;' >>{site}")
    yield
    r.machine.run(f"cat /root/site >{site}")


# Makes a certificate that ends whenever one likes.
CA = """
[ca]
default_ca = own
[own]
database = /root/ca/index
serial = /root/ca/serial
new_certs_dir = /root/ca
default_md = sha256
policy = names
x509_extensions = extensions
[names]
commonName = supplied
[extensions]
subjectAltName = DNS:{name}
"""


@contextmanager
def served_instead(r: "Rehearsal", name: str, dates: str) -> Iterator[None]:
    """Another certificate is where nginx looks for its own."""
    folder, owner = r.target.certificates
    r.machine.run("mkdir --parents /root/ca; cat >/root/ca/cnf", text=CA.format(name=name))
    r.machine.run(
        f"cd {folder} && mv {DOMAIN} /root/sound && mkdir {DOMAIN} && cd {DOMAIN} &&"
        " exec 2>/root/ca/says; : >/root/ca/index; openssl rand -hex 8 >/root/ca/serial;"
        " openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=own"
        " -keyout privkey.pem -out /root/ca/csr &&"
        f" openssl ca -batch -selfsign -config /root/ca/cnf -keyfile privkey.pem {dates}"
        f" -in /root/ca/csr -out fullchain.pem -notext && chown -R {owner} {folder}/{DOMAIN}"
    )
    before = serial(r)
    r.target.reload_proxy()
    until(lambda: serial(r) != before, "another certificate", 20)
    yield
    r.machine.run(f"rm -r {folder}/{DOMAIN} && mv /root/sound {folder}/{DOMAIN}")
    r.target.reload_proxy()
    until(lambda: serial(r) == before, "the certificate of before", 20)


def certificate_of_another(r: "Rehearsal") -> AbstractContextManager[None]:
    """The name that clients ask for is not in it."""
    return served_instead(r, "other.live.test", "-days 90")


def certificate_ended(r: "Rehearsal") -> AbstractContextManager[None]:
    """It was not renewed."""
    dates = "-startdate 20260101000000Z -enddate 20260102000000Z"
    return served_instead(r, DOMAIN, dates)


def serial(r: "Rehearsal") -> str:
    """The number of the certificate that is served, whoever believes it."""
    asked = f"openssl s_client -connect 127.0.0.1:443 -servername {DOMAIN} </dev/null 2>/dev/null"
    return r.machine.run(f"{asked} | openssl x509 -noout -serial")


@contextmanager
def link_missing(r: "Rehearsal") -> Iterator[None]:
    """The proxy does not know where to connect; the mend that is told is all that it takes."""
    r.machine.run(f"rm /srv/{SLUG}/live/active.sock")
    yield
    mend = examined(r, 1).mend("slot")
    assert mend.startswith("ln -sfn "), mend
    r.machine.run(mend)


@contextmanager
def slot_looping(r: "Rehearsal") -> Iterator[None]:
    """Somebody has edited the environment file past deploy.sh, and the slot was started anew."""
    env, slot = f"/etc/{SLUG}/env", r.operator.active()[0]
    r.machine.run(f"cp --preserve {env} /root/env; sed -i '/^SERVER_DRAIN_S=/d' {env}")
    r.machine.run(f"echo SERVER_DRAIN_S=none >>{env}")
    r.target.restart_slot(slot)
    until(lambda: r.target.restarts(slot) > 0, "the slot ends and is started again", 30)
    yield
    r.machine.run(f"cat /root/env >{env}")
    r.target.restart_slot(slot)


@contextmanager
def disk_full(r: "Rehearsal") -> Iterator[None]:
    """No byte is left where backups are made."""
    folder = f"/var/backups/{SLUG}"
    r.machine.run(
        f"mount -t tmpfs -o size=1m tmpfs {folder}; head -c 2M /dev/zero >{folder}/full || true"
    )
    yield
    r.machine.run(f"umount {folder}")


REVISION = """
import asyncio, sys
from sqlalchemy import text
from app.db import DbSettings, create_engines

async def main():
    _, writer = create_engines(DbSettings.load())
    async with writer.begin() as connection:
        await connection.execute(text(f"UPDATE alembic_version SET version_num = '{sys.argv[1]}'"))
    await writer.dispose()

asyncio.run(main())
"""


@contextmanager
def schema_behind(r: "Rehearsal") -> Iterator[None]:
    """A migration that the code needs was not made."""
    r.operator.deploy("run", "python", "-c", REVISION, "0001")
    yield
    r.operator.deploy("run", "python", "-c", REVISION, "0002")


@contextmanager
def name_elsewhere(r: "Rehearsal") -> Iterator[None]:
    """The server's own list of names leads elsewhere."""
    r.machine.run("cp /etc/hosts /root/hosts")
    r.machine.run(f"(echo 192.0.2.1 {DOMAIN}; grep -v {DOMAIN} /root/hosts) >/etc/hosts")
    yield
    r.machine.run("cat /root/hosts >/etc/hosts")


@contextmanager
def worker_killed_for_memory(r: "Rehearsal") -> Iterator[None]:
    """A worker has taken more memory than its slot has."""
    slot = r.operator.active()[0]
    before = r.target.workers(slot)
    r.target.limit_memory(slot, 150)
    r.public.ask("GET", f"{PREFIX}/hog?mb=400")
    until(lambda: len(set(r.target.workers(slot)) - set(before)) > 0, "another worker", 20)
    r.target.limit_memory(slot, None)
    served(r)
    yield


FAULTS = (
    Fault(
        0,
        database_stopped,
        {"readiness", "database"},
        "database",
        ("PostgreSQL on this server is ",),
        fits=lambda row: row.database == "postgresql",
    ),
    Fault(
        3,
        database_unreadable,
        {"database"},
        "database",
        (f"the service may not read and write /var/lib/{SLUG}/app.db",),
        # A worker that has it open goes on.
        may=frozenset({"readiness"}),
        fits=lambda row: row.database == "sqlite",
    ),
    Fault(
        0,
        redis_stopped,
        {"readiness", "redis"},
        "redis",
        ("Redis on this server is ",),
        fits=lambda row: row.cache == "redis",
    ),
    Fault(1, proxy_stopped, {"proxy"}, "proxy", ("does not run",)),
    Fault(
        2,
        port_taken,
        {"ports", "proxy"},
        "ports",
        ("443 is taken by python3, process ", "of other.service"),
    ),
    Fault(3, configuration_broken, {"configuration"}, "configuration", ("refuses it: ",)),
    Fault(
        2,
        certificate_ended,
        {"certificate"},
        "certificate",
        ("it ended on 2026-01-02",),
        fits=lambda row: row.proxy == "nginx",
    ),
    Fault(
        0,
        certificate_of_another,
        {"certificate"},
        "certificate",
        ("is for other.live.test, not for",),
        fits=lambda row: row.proxy == "nginx",
    ),
    Fault(1, link_missing, {"site", "slot"}, "slot", ("no slot is active", "could serve")),
    Fault(
        3,
        slot_looping,
        {"site", "slot", "settings"},
        "slot",
        ("ends and is started again", "SERVER_DRAIN_S"),
    ),
    Fault(2, disk_full, {"disk"}, "disk", (f"full: /var/backups/{SLUG} has 0 MB",)),
    Fault(0, schema_behind, {"readiness", "schema"}, "schema", ("behind the code: at 0001",)),
    Fault(1, name_elsewhere, set(), "dns", ("192.0.2.1 by /etc/hosts",), level="warn"),
    Fault(3, worker_killed_for_memory, set(), "memory", ("has killed 1 ",), level="warn"),
)
