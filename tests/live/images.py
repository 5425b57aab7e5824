"""What the Docker projects are made of; as a program it prints their public images, one a line."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.combinations import render, snapshot

# As a default, in compose.yaml and in Dockerfiles.
NAME = re.compile(r"_IMAGE(?::-|=)([a-z][\w./-]*:[\w.-]+)")
FILES = ("compose.yaml", "Dockerfile", "deploy/certbot.Dockerfile")


# Together they name every image, and need whatever is built for one of the rows.
PROJECTS = (
    {"proxy": "nginx", "database": "postgresql", "cache": "redis"},
    {"proxy": "caddy", "database": "sqlite"},
)


@contextmanager
def projects() -> Iterator[list[Path]]:
    """Projects of all kinds."""
    with tempfile.TemporaryDirectory() as folder:
        template = snapshot(Path(folder) / "template")
        yield [
            render(template, Path(folder) / answers["proxy"], deployment="docker", **answers)
            for answers in PROJECTS
        ]


def named() -> list[str]:
    """Return the public images."""
    found = set()
    with projects() as rendered:
        for path in (project / name for project in rendered for name in FILES):
            found.update(NAME.findall(path.read_text()) if path.exists() else [])
    return sorted(found)


if __name__ == "__main__":
    print(*named(), sep="\n")  # noqa: T201 - its output is its answer
