"""A project to measure: rendered, installed, and with the applications that are compared in it."""

import os
import shutil
import subprocess
from pathlib import Path

import copier

from benchmarks.apps import SOURCE

ROOT = Path(__file__).resolve().parents[1]
# Neither costs anything that belongs to the request path.
ANSWERS = {"database": "none", "cache": "none", "proxy": "nginx"}
# As little as a server needs; all three are served by the same worker.
BARE = """\
worker_class = "app.worker.AppWorker"
preload_app = True
keepalive = 75
graceful_timeout = 30
umask = 0o007
control_socket_disable = True
"""


def make(folder: Path, python: str) -> Path:
    """Render the working tree's project into `folder`, and install it for an interpreter.

    Raises:
        subprocess.CalledProcessError: it could not be installed.
    """
    template, project = folder / "template", folder / "project"
    template.mkdir(parents=True)
    shutil.copy2(ROOT / "copier.yml", template)
    for name in ("hooks", "template"):
        shutil.copytree(
            ROOT / name, template / name, ignore=shutil.ignore_patterns("__pycache__", ".*_cache")
        )
    copier.run_copy(str(template), project, data=ANSWERS, defaults=True, quiet=True)
    (project / "bench_apps.py").write_text(SOURCE)
    (project / "bench_conf.py").write_text(BARE)
    environment = os.environ | {"VIRTUAL_ENV": str(project / ".venv")}
    for command in (
        ["uv", "venv", "--quiet", "--python", python, ".venv"],
        ["uv", "pip", "sync", "--quiet", "--require-hashes", "requirements.txt"],
    ):
        subprocess.run(command, cwd=project, env=environment, check=True)
    return project
