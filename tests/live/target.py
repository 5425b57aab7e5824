"""What a rehearsal asks of a server in words that depend on how the service is deployed."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from tests.live.machine import Machine
from tests.live.project import SLUG


@dataclass(frozen=True)
class Row:
    """What is rehearsed together."""

    deployment: str
    proxy: str
    database: str
    suite: str
    # Which share of what is dealt out over the rows of a deployment is this one's.
    number: int
    kind: str = "bare"
    cache: str = "none"
    # A short test leaves the others to a long one.
    usual: bool = True

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.deployment}-{self.proxy}-{self.database}"

    @property
    def services(self) -> list[str]:
        """What the service needs besides itself."""
        needed = {"postgresql": self.database, "redis": self.cache}
        return [name for name, answer in needed.items() if name == answer]


class Target(ABC):
    """A server with the service on it, seen from inside."""

    # Whether another site can be on the server before.
    shared: ClassVar[bool]
    # Whether the disk can be filled up just where releases are built.
    fillable: ClassVar[bool]
    # What is configured besides, for the sake of what is tried.
    settings: ClassVar[tuple[str, ...]] = ()
    # Shell commands that make the server one which setup refuses, what it says, and the way back.
    refusals: ClassVar[tuple[tuple[str, str, str], ...]]

    def __init__(self, row: Row, machine: Machine) -> None:
        self.row, self.machine = row, machine

    @property
    def other_kind(self) -> str:
        """The kind of the server that everything is moved to."""
        return self.row.kind

    @abstractmethod
    def master(self, slot: str) -> int:
        """The process that a slot's workers are children of; 0 if the slot is not up."""

    def workers(self, slot: str) -> list[int]:
        """The workers of a slot."""
        master = self.master(slot)
        listed = self.machine.run(f"cat /proc/{master}/task/{master}/children", check=False)
        return [int(word) for word in listed.split()]

    @abstractmethod
    def running(self) -> set[int]:
        """Every process of the service, whatever slot it is in."""

    @abstractmethod
    def up(self) -> set[str]:
        """The slots that are up, or are about to be."""

    @abstractmethod
    def limit_memory(self, slot: str, more_mb: int | None) -> None:
        """Let a slot take so many MB more than it has; without a number, what it usually may."""

    @abstractmethod
    def stop(self, service: str) -> None:
        """Stop `postgresql`, `redis` or `proxy`."""

    @abstractmethod
    def start(self, service: str) -> None:
        """Start it again."""

    @abstractmethod
    def restart_slot(self, slot: str) -> None:
        """Start a slot anew, whether or not it comes up."""

    @abstractmethod
    def restarts(self, slot: str) -> int:
        """How often a slot was started again by itself since then."""

    @property
    @abstractmethod
    def site(self) -> str:
        """The proxy's file for the service."""

    @property
    @abstractmethod
    def certificates(self) -> tuple[str, str]:
        """The folder with a folder for each of nginx's certificates, and whose they are."""

    @abstractmethod
    def reload_proxy(self) -> None:
        """Have the proxy read its configuration again."""

    @abstractmethod
    def quicken_caddy(self) -> None:
        """Let Caddy look every few seconds whether a certificate is to be renewed."""

    @abstractmethod
    def renew(self) -> None:
        """Renew nginx's certificate as it is renewed without being asked."""

    def forget_builds(self) -> None:  # noqa: B027 - not every server was given some
        """Have the next release build everything that it needs."""

    @abstractmethod
    def hastened(self) -> AbstractContextManager[dict[str, str]]:
        """Give releases less time to start; what is given has to be in deploy.sh's environment."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Everything that setup could change: files with their times, and what runs since when."""

    @abstractmethod
    def hardened(self, slot: str) -> dict[str, object]:
        """Check how the service is shielded; return figures."""

    def moment(self, seconds: float) -> str:
        """A moment as `logs` understands it."""
        return f"@{int(seconds)}"

    @abstractmethod
    def first_secrets(self) -> str:
        """Lines for the environment file with the canary in them, besides a setting's."""

    def secrets(self) -> set[str]:
        """What setup made and nothing may print."""
        env = self.machine.read(f"/etc/{SLUG}/env")
        tokens = {line.split("=", 1)[1] for line in env.splitlines() if "PAYMENT_TOKEN=" in line}
        return {token.strip("\"'") for token in tokens}

    def traces(self) -> dict[str, str]:
        """Where a secret may not be, by the shell command that shows it all."""
        return {
            "journal": "journalctl --output=export --all --no-pager",
            "/var/log": "cat /var/log/*.log /var/log/*/*.log 2>/dev/null",
        }


def quickened(main: str) -> str:
    """A main configuration of Caddy, with which it looks every few seconds for what to renew."""
    option = "{\n\trenew_interval 5s\n"
    return main.replace("\n{\n", f"\n{option}", 1) if "\n{\n" in main else f"{option}}}\n{main}"
