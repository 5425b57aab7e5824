"""Prints the public images that the Docker projects name, one a line."""

import re
import tempfile
from pathlib import Path

from tests.combinations import render, snapshot

# As a default, in compose.yaml and in Dockerfiles.
NAME = re.compile(r"_IMAGE(?::-|=)([a-z][\w./-]*:[\w.-]+)")
FILES = ("compose.yaml", "Dockerfile", "deploy/certbot.Dockerfile")


def named() -> list[str]:
    """Return them, of every answer."""
    answers = {"deployment": "docker", "database": "postgresql", "cache": "redis"}
    found = set()
    with tempfile.TemporaryDirectory() as folder:
        template = snapshot(Path(folder) / "template")
        for proxy in ("nginx", "caddy"):
            project = render(template, Path(folder) / proxy, proxy=proxy, **answers)
            for path in (project / name for name in FILES):
                found.update(NAME.findall(path.read_text()) if path.exists() else [])
    return sorted(found)


if __name__ == "__main__":
    print(*named(), sep="\n")  # noqa: T201 - its output is its answer
