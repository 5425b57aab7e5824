"""A certificate authority: pebble, and a name server that knows one machine for every name."""

import json
import shutil
import ssl
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAMS = ("pebble", "pebble-challtestsrv", "openssl")


def missing() -> list[str]:
    """The programs that are not here."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


class Authority:
    """An ACME authority on an address of this host, up inside a `with`."""

    def __init__(self, folder: Path, address: str, machine: str, *, valid_s: int) -> None:
        """Every name is `machine`'s; certificates are valid for `valid_s` seconds."""
        self.folder, self.address, self.valid_s = folder, address, valid_s
        self.machine = machine
        self.directory = f"https://{address}:14000/dir"
        # Whom to trust: the directory's own certificate, and the root of those that it issues.
        self.ca = folder / "ca.pem"
        self.cleanup = ExitStack()

    def __enter__(self) -> Self:
        certificate, key = self.folder / "own.pem", self.folder / "own.key"
        subject = ["-subj", "/CN=authority", "-addext", f"subjectAltName=IP:{self.address}"]
        new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
        subprocess.run([*new, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        settings = {
            "listenAddress": f"{self.address}:14000",
            "managementListenAddress": f"{self.address}:15000",
            "certificate": str(certificate),
            "privateKey": str(key),
            "httpPort": 80,
            "tlsPort": 443,
            "ocspResponderURL": "",
            "certificateValidityPeriod": self.valid_s,
        }
        (self.folder / "pebble.json").write_text(json.dumps({"pebble": settings}))
        none = ["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]
        names = ["-dns01", f"{self.address}:8053", "-management", f"{self.address}:8055"]
        with self.cleanup:
            self._start("pebble-challtestsrv", *names, *none, "-defaultIPv4", self.machine)
            self._start(
                *("pebble", "-config", str(self.folder / "pebble.json")),
                *("-dnsserver", f"{self.address}:8053"),
            )
            roots = self._roots(certificate)
            self.ca.write_text(certificate.read_text() + roots)
            self.cleanup = self.cleanup.pop_all()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.cleanup.close()

    def _start(self, *command: str) -> None:
        log = self.cleanup.enter_context((self.folder / f"{command[0]}.log").open("wb"))
        # No waits by chance and no refused nonces: what is tried is the deployment.
        quiet = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"}
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=quiet | {"PATH": "/usr/bin"}
        )
        self.cleanup.callback(process.wait)
        self.cleanup.callback(process.kill)

    def _roots(self, certificate: Path) -> str:
        context = ssl.create_default_context(cafile=str(certificate))
        deadline = time.monotonic() + 20
        while True:
            try:
                url = f"https://{self.address}:15000/roots/0"
                with urllib.request.urlopen(url, context=context, timeout=2) as answer:
                    return str(answer.read(), "ascii")
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
