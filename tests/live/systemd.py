"""The service as two instances of a systemd unit."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.live.project import CANARY, SLUG
from tests.live.target import Target, quickened


class Systemd(Target):
    """The packages of the system, and units."""

    shared = True
    fillable = True
    refusals = ((f"useradd {SLUG}", f"there is a user {SLUG} already", f"userdel {SLUG}"),)

    def unit(self, slot: str) -> str:
        """The unit of a slot."""
        return f"{SLUG}@{slot}.service"

    def show(self, slot: str, name: str) -> str:
        """A property of a slot's unit."""
        command = f"systemctl show --property {name} --value {self.unit(slot)}"
        return self.machine.run(command).strip()

    def master(self, slot: str) -> int:
        return int(self.show(slot, "MainPID"))

    def running(self) -> set[int]:
        return {int(word) for word in self.machine.run(f"pgrep -u {SLUG} -f gunicorn").split()}

    def up(self) -> set[str]:
        gone = {"inactive", "failed"}
        return {slot for slot in ("blue", "green") if self.show(slot, "ActiveState") not in gone}

    def limit_memory(self, slot: str, more_mb: int | None) -> None:
        limit = "infinity"
        if more_mb is not None:
            limit = str(int(self.show(slot, "MemoryCurrent")) + (more_mb << 20))
        self.machine.run(f"systemctl set-property --runtime {self.unit(slot)} MemoryMax={limit}")

    def stop(self, service: str) -> None:
        self.machine.run(f"systemctl stop '{self.units(postgresql='postgresql@*')[service]}'")

    def start(self, service: str) -> None:
        self.machine.run(f"systemctl start {self.units(postgresql='postgresql')[service]}")

    def units(self, *, postgresql: str) -> dict[str, str]:
        """The units of services; that of PostgreSQL is none itself, and starts those that are."""
        redis, proxy = f"redis-server@{SLUG}", self.row.proxy
        return {"postgresql": postgresql, "redis": redis, "proxy": proxy}

    def restart_slot(self, slot: str) -> None:
        self.machine.run(f"systemctl restart --no-block {self.unit(slot)}")

    def restarts(self, slot: str) -> int:
        return int(self.show(slot, "NRestarts"))

    @property
    def site(self) -> str:
        names = {"nginx": f"nginx/conf.d/{SLUG}-https.conf", "caddy": f"caddy/conf.d/{SLUG}.caddy"}
        return f"/etc/{names[self.row.proxy]}"

    @property
    def certificates(self) -> tuple[str, str]:
        return "/etc/letsencrypt/live", "root:root"

    def reload_proxy(self) -> None:
        self.machine.run(f"systemctl reload {self.row.proxy}")

    def quicken_caddy(self) -> None:
        main = "/etc/caddy/Caddyfile"
        self.machine.run(f"cat >{main}", text=quickened(self.machine.read(main)))
        self.machine.run("systemctl reload caddy")

    def renew(self) -> None:
        # With the environment that the timer's unit has.
        variables = "$(systemctl show --property Environment --value certbot.service)"
        renew = "certbot renew --force-renewal --quiet --no-random-sleep-on-renew"
        self.machine.run(f"env {variables} {renew}")

    @contextmanager
    def hastened(self) -> Iterator[dict[str, str]]:
        folder = f"/etc/systemd/system/{SLUG}@.service.d"
        sooner = f"mkdir -p {folder} && cat >{folder}/sooner.conf && systemctl daemon-reload"
        self.machine.run(sooner, text="[Service]\nTimeoutStartSec=15\n")
        yield {}
        self.machine.run(f"rm -r {folder} && systemctl daemon-reload")

    def fingerprint(self) -> str:
        files = f"/etc /srv/{SLUG} /usr/local /var/spool -type f,l,d"
        listed = (
            f"find {files} ! -name deploy.lock ! -path '*/deploy.lock' -printf '%p %m %u %T@ %l\\n'"
        )
        processes = "nginx caddy postgresql redis-server gunicorn"
        return self.machine.run(
            f"{listed} | grep -v '^/srv/{SLUG} ' | sort; getent passwd {SLUG}; id www-data caddy;"
            f" for p in {processes}; do pgrep -o $p; done;"
            " systemctl list-unit-files --no-legend; true"
        )

    def hardened(self, slot: str) -> dict[str, object]:
        said = self.machine.run(f"systemd-analyze verify --man=no {self.unit(slot)} 2>&1; true")
        assert not said.strip(), f"systemd-analyze verify: {said}"
        score = self.machine.run(f"systemd-analyze security --no-pager {self.unit(slot)} | tail -1")
        exposure = float(score.split(":")[1].split()[0])
        # Everything is on unix sockets.
        assert exposure <= 0.6, score
        return {"exposure": exposure}

    def first_secrets(self) -> str:
        if self.row.database != "postgresql":
            return ""
        # With a password, which nobody asks for.
        return f"DATABASE_URL=postgresql://{SLUG}:{CANARY}@/{SLUG}?host=/run/postgresql\n"
