"""`make demo` is what a newcomer types first."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.combinations import commit, snapshot

pytestmark = pytest.mark.slow


def run(clone: Path, *command: str) -> subprocess.CompletedProcess[str]:
    # What a make above this one hands down is not the newcomer's.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.run(
        command, cwd=clone, env=environment, capture_output=True, text=True, timeout=300
    )


def demo(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(clone, sys.executable, "-m", "tools.demo", *arguments)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return commit(snapshot(tmp_path / "clone"))


def test_make_demo_check_works_in_a_fresh_clone(clone: Path) -> None:
    python = Path(sys.executable).resolve()
    done = run(clone, "make", "demo", "CHECK=1", f"PYTHON={python}")

    assert done.returncode == 0, done.stdout + done.stderr
    answers = [" ".join(line.split()[:3]) for line in done.stdout.splitlines()]
    assert [line for line in answers if line.startswith(("GET", "POST"))] == [
        "GET /health 200",
        "GET /ready 200",
        "POST /api/v1/items 201",
        "POST /api/v1/items 409",
        "GET /api/v1/items 200",
        "GET /nowhere 404",
    ]
    assert '"name":"Tea"' in done.stdout
    assert '"title":"Not Found"' in done.stdout
    assert (clone / "demo" / "app" / "main.py").exists()
    assert run(clone, "git", "status", "--porcelain").stdout == ""
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert [command for command in commands if str(clone) in " ".join(command)] == []


def test_a_demo_that_does_not_start_says_why(clone: Path) -> None:
    (clone / "template/gunicorn_conf.py.jinja").write_text('raise RuntimeError("no such luck")\n')

    done = demo(clone, "--check", "demo")

    assert done.returncode == 1
    assert "the server ended with status" in done.stderr
    assert "no such luck" in done.stderr


def test_a_demo_that_answers_wrongly_fails(clone: Path) -> None:
    errors = clone / "template/app/errors.py"
    text = errors.read_text()
    assert "application/problem+json" in text
    errors.write_text(text.replace("application/problem+json", "application/json"))

    done = demo(clone, "--check", "demo")

    assert done.returncode == 1
    assert "POST /api/v1/items answered application/json, no problem" in done.stderr


def test_a_demo_replaces_no_folder_but_its_own(clone: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()

    done = demo(clone, "--check", str(mine))

    assert done.returncode == 1
    assert f"{mine} exists" in done.stderr
    assert list(mine.iterdir()) == []
