"""Debian packages of any release, unpacked and not installed."""

import hashlib
from pathlib import Path

from tests.live.machine import CACHE, call, locked, remove

MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def unpacked(suite: str, *packages: str) -> Path:
    """Return a folder with what is in these packages, made once."""
    name = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]
    made = CACHE / "packages" / f"{suite}-{name}"
    with locked("packages"):
        if made.exists():
            return made
        new = made.with_name(f"{made.name}.new")
        remove(new)
        apt = new.with_suffix(".apt")
        remove(apt)
        for folder in (new, apt / "lists/partial", apt / "cache/archives/partial", apt / "debs"):
            folder.mkdir(parents=True)
        (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n")
        settings = {
            "Dir::Etc::SourceList": apt / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": apt / "lists",
            "Dir::Cache": apt / "cache",
            # What is downloaded need not fit what is installed here.
            "Dir::State::Status": "/dev/null",
            "Acquire::Check-Valid-Until": "false",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
        }
        options = [f"--option={name}={value}" for name, value in settings.items()]
        call("apt-get", *options, "--quiet=2", "update")
        # It downloads to where it is called.
        call("env", f"--chdir={apt}/debs", "apt-get", *options, "--quiet=2", "download", *packages)
        for file in (apt / "debs").iterdir():
            call("dpkg-deb", "--extract", file, new)
        # Where these are links today.
        for name in ("bin", "lib", "sbin"):
            if (new / name).is_dir():
                call("cp", "-a", f"{new}/{name}/.", f"{new}/usr/{name}")
                remove(new / name)
        remove(apt)
        new.rename(made)
    return made
