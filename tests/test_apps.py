"""Every distinct app is linted and tested by its own commands, and lives through a whole run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.combinations import Answers, choices, combinations, files, render, row_id

# The questions that change what runs; the others change files that describe or deploy it.
AXES = ("database", "cache")
CODE = ("app/", "migrations/", "scripts/", "tests/", "gunicorn_conf.py", "requirements")
SCENARIO = Path(__file__).parent / "scenarios" / "service.py"


def command(project: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a project as its owner would, with nothing of ours in the environment."""
    ours = ("MAKE", "PYTEST", "COV_", "VIRTUAL_ENV", "APP_", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=project,
        env=environment | {"PYTHON": str(Path(sys.executable).resolve())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )


def code_of(project: Path) -> dict[str, bytes]:
    """Return the files of a project that decide what runs."""
    return {
        name: path.read_bytes() for name, path in files(project).items() if name.startswith(CODE)
    }


def test_no_other_question_changes_what_runs(template: Path, tmp_path: Path) -> None:
    usual = code_of(render(template, tmp_path / "usual"))
    for question, values in choices().items():
        for value in values[1:]:
            project = render(template, tmp_path / f"{question}-{value}", **{question: value})
            assert (code_of(project) != usual) == (question in AXES), f"{question}: {value}"


@pytest.mark.slow
@pytest.mark.parametrize("answers", combinations(AXES), ids=row_id)
def test_an_app_passes_its_own_checks_and_a_whole_run(
    answers: Answers, template: Path, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    project = render(template, tmp_path / "project", **answers)

    for target in ("lint", "test"):
        done = command(project, "make", target)
        assert done.returncode == 0, done.stdout
    assert " skipped" not in done.stdout
    (coverage,) = [line for line in done.stdout.splitlines() if "Total coverage" in line]

    done = command(project, ".venv/bin/python", SCENARIO)
    assert done.returncode == 0, done.stdout
    figures = "; ".join(done.stdout.splitlines())
    record_property(row_id(answers), f"{coverage.split(': ')[-1]} covered; {figures}")
