"""The service as two containers of one compose project."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.live.machine import Machine
from tests.live.project import SLUG
from tests.live.target import Row, Target, quickened

COMPOSE = f"cd /srv/{SLUG} && docker compose"
USER = 10001
# What a proxy may be left with.
NET_BIND_SERVICE = 1 << 10
SERVICES = {"postgresql": "postgres", "redis": "redis", "proxy": "proxy"}


class Docker(Target):
    """An engine, and everything in containers."""

    shared = False
    fillable = False
    # Where there is one processor, a container would have one worker.
    settings = ("WEB_CONCURRENCY=2",)
    refusals = (
        (
            "systemd-run --quiet --unit other python3 -m http.server 80;"
            " until ss -Hlt '( sport = :80 )' | grep -q .; do sleep 0.1; done",
            "ports 80 and 443 are taken, by: python3",
            "systemctl stop other",
        ),
    )

    def __init__(self, row: Row, machine: Machine) -> None:
        super().__init__(row, machine)
        # What a slot's memory is limited to but for what is tried.
        self.usual = 0

    @property
    def other_kind(self) -> str:
        return "docker"

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows about a service's container; nothing where there is none."""
        found = self.machine.run(f"docker inspect {SLUG}-{service}-1", check=False)
        return dict(*json.loads(found or "[]"))

    def master(self, slot: str) -> int:
        first = int(self.inspect(slot).get("State", {}).get("Pid", 0))
        if first and "init" in self.machine.run(f"cat /proc/{first}/comm", check=False):
            children = self.machine.run(f"cat /proc/{first}/task/{first}/children", check=False)
            return int(children.split()[0]) if children.split() else 0
        return first

    def running(self) -> set[int]:
        return {
            int(word)
            for word in self.machine.run(f"pgrep -u {USER} -f '^python .*gunicorn'").split()
        }

    def up(self) -> set[str]:
        states = {slot: self.inspect(slot).get("State", {}) for slot in ("blue", "green")}
        gone = {"", "created", "exited", "dead"}
        return {slot for slot, state in states.items() if state.get("Status", "") not in gone}

    def limit_memory(self, slot: str, more_mb: int | None) -> None:
        found = self.inspect(slot)
        if more_mb is None:
            limit = self.usual
        else:
            self.usual = found["HostConfig"]["Memory"]
            usage = "cat memory.current memory/memory.usage_in_bytes 2>/dev/null; true"
            used = self.machine.run(
                f"docker exec --workdir /sys/fs/cgroup {found['Id']} sh -c '{usage}'"
            )
            limit = int(used) + (more_mb << 20)
        self.machine.run(f"docker update --memory {limit} --memory-swap {limit} {found['Id']}")

    def stop(self, service: str) -> None:
        self.machine.run(f"{COMPOSE} stop {SERVICES[service]}")

    def start(self, service: str) -> None:
        self.machine.run(f"{COMPOSE} start {SERVICES[service]}")

    def restart_slot(self, slot: str) -> None:
        self.machine.run(f"docker restart -t 1 {SLUG}-{slot}-1")

    def restarts(self, slot: str) -> int:
        return int(self.inspect(slot)["RestartCount"])

    @property
    def site(self) -> str:
        names = {"nginx": f"{SLUG}-https.conf", "caddy": f"{SLUG}.caddy"}
        return f"/srv/{SLUG}/proxy/conf.d/{names[self.row.proxy]}"

    @property
    def certificates(self) -> tuple[str, str]:
        return f"/var/lib/{SLUG}-proxy/live", "10002:10001"

    def reload_proxy(self) -> None:
        commands = {
            "nginx": "nginx -c /etc/proxy/nginx.conf -s reload",
            "caddy": "caddy reload --force --config /etc/caddy/Caddyfile",
        }
        self.machine.run(f"{COMPOSE} exec -T proxy {commands[self.row.proxy]}")

    def quicken_caddy(self) -> None:
        path = f"/srv/{SLUG}/proxy/Caddyfile"
        text = self.machine.read(path)
        self.machine.run(f"cat >{path}", text=quickened(text))
        # It looks as often as when it was started, whatever it reads later.
        self.machine.run(f"{COMPOSE} restart proxy && {COMPOSE} up --detach --no-deps --wait proxy")
        self.machine.run(f"cat >{path}", text=text)

    def renew(self) -> None:
        renew = "renew --force-renewal --quiet --no-random-sleep-on-renew"
        self.machine.run(f"{COMPOSE} exec -T certbot certbot.sh {renew}")

    def forget_builds(self) -> None:
        self.machine.run("docker builder prune --all --force")

    @contextmanager
    def hastened(self) -> Iterator[dict[str, str]]:
        yield {"DEPLOY_START_S": "12"}

    def fingerprint(self) -> str:
        files = f"/etc /srv/{SLUG} /usr/local /var/spool -type f,l,d"
        runs = "{{.Name}} {{.Id}} {{.Image}} {{.State.Status}} {{.State.StartedAt}}"
        return self.machine.run(
            f"find {files} ! -name deploy.lock -printf '%p %m %u %T@ %l\\n' |"
            f" grep -v '^/srv/{SLUG} ' | sort;"
            f" docker ps --all --quiet --no-trunc | sort | xargs docker inspect --format '{runs}';"
            " for kind in image volume network; do docker $kind ls --quiet | sort; done;"
            " systemctl list-unit-files --no-legend"
        )

    def hardened(self, slot: str) -> dict[str, object]:
        for process in (self.master(slot), *self.workers(slot)):
            status = self.shielded(process)
            assert status["Uid"].split() == [str(USER)] * 4, status
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[name], 16) == 0, f"{name}: {status[name]}"
        published = self.machine.run("docker ps --format '{{.Names}} {{.Ports}}'")
        lines = [line for line in published.splitlines() if "->" in line]
        assert len(lines) == 1, f"only the proxy is to be reached: {published}"
        assert "proxy" in lines[0], published
        names = self.machine.run("docker ps --format '{{.ID}}'").split()
        for name in names:
            first = self.machine.run(f"docker inspect --format '{{{{.State.Pid}}}}' {name}")
            status = self.shielded(int(first))
            assert "0" not in status["Uid"].split(), f"{name} runs as root"
            left = int(status["CapEff"], 16) & ~NET_BIND_SERVICE
            assert left == 0, f"{name} has capabilities: {status['CapEff']}"
        open_to = self.machine.run("ss --no-header --listening --tcp --numeric").splitlines()
        addresses = [line.split()[3] for line in open_to]
        ports = {one.rpartition(":")[2] for one in addresses if not one.startswith("127.")}
        assert ports <= {"22", "80", "443"}, addresses
        return {"containers": len(names)}

    def shielded(self, process: int) -> dict[str, str]:
        """Check what holds for every container; return what the kernel says about a process."""
        lines = self.machine.read(f"/proc/{process}/status").splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert status["NoNewPrivs"] == "1", f"{status['Name']} may gain privileges"
        assert status["Seccomp"] == "2", f"{status['Name']} may make any system call"
        mounts = self.machine.read(f"/proc/{process}/mountinfo").splitlines()
        root = next(line.split() for line in mounts if line.split()[4] == "/")
        assert "ro" in root[5].split(","), f"the root of {status['Name']} can be written: {root}"
        return status

    def moment(self, seconds: float) -> str:
        return str(int(seconds))

    def first_secrets(self) -> str:
        return ""

    def secrets(self) -> set[str]:
        found = super().secrets()
        if self.row.database == "postgresql":
            found.add(self.machine.read(f"/etc/{SLUG}/postgres-password").strip())
            env = self.machine.read(f"/etc/{SLUG}/env").splitlines()
            url = next(line for line in env if line.startswith("DATABASE_URL="))
            found.add(url.partition("@")[0].rpartition(":")[2])
        return found

    def traces(self) -> dict[str, str]:
        containers = "$(docker ps --all --quiet)"
        images = "$(docker image ls --quiet | sort --unique)"
        variables = "echo $(cat $p/comm) $(tr '\\0' ' ' <$p/environ)"
        return super().traces() | {
            "docker logs": f"for c in {containers}; do docker logs $c 2>&1; done",
            "docker inspect": f"docker inspect {containers} {images}",
            "docker history": f"for i in {images}; do docker history --no-trunc $i; done",
            "image": f"docker save $(docker image ls --quiet {SLUG} | head -1)",
            # PostgreSQL's image hands it its own password that way.
            "environments": f"for p in /proc/[0-9]*; do {variables}; done | grep -v ^postgres",
        }
