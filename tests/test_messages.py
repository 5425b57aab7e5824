"""What Copier says after a copy and after an update fits the answers, and can be typed."""

import re
import shlex
from pathlib import Path

import copier
import pytest

from tests.combinations import commit, render, snapshot

# What is said for one answer only.
HINTS = {
    "starts a PostgreSQL": ("database", "postgresql"),
    "is a file in the project": ("database", "sqlite"),
    "starts a Redis": ("cache", "redis"),
    ".github/workflows/ci.yml": ("ci", "github"),
    ".gitlab-ci.yml": ("ci", "gitlab"),
}
ROWS = [
    {"database": "postgresql", "cache": "none", "ci": "github", "deployment": "docker"},
    {"database": "sqlite", "cache": "redis", "ci": "gitlab", "deployment": "systemd"},
    {"database": "none", "cache": "none", "ci": "none", "deployment": "docker"},
]


def targets(text: str) -> set[str]:
    """The targets of every `make` in a text."""
    commands = re.findall(r"(?:^ {4}|`)make ([a-z ]+?)(?= {2}|[`\n]| \w+=)", text, re.MULTILINE)
    return {target for command in commands for target in command.split()}


def said(capsys: pytest.CaptureFixture[str], opening: str) -> str:
    """What Copier wrote after its list of files."""
    _, found, message = capsys.readouterr().err.partition(opening)
    assert found
    return message


@pytest.mark.parametrize("answers", ROWS, ids=lambda answers: "-".join(answers.values()))
def test_the_next_steps_after_a_copy_fit_the_answers(
    answers: dict[str, str], template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "my 'api'"
    copier.run_copy(str(template), project, data=answers, defaults=True)

    message = said(capsys, "My API is in ")
    assert shlex.split(message.partition("\n    cd ")[2].partition("\n")[0]) == [str(project)]
    for hint, (question, value) in HINTS.items():
        assert (hint in message) == (answers[question] == value)
    assert "deploy/deploy.sh" in message
    assert targets(message) == {"test", "dev"}
    assert targets(message) <= set(
        re.findall(r"^([a-z-]+):", (project / "Makefile").read_text(), re.M)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("database", "deployment"), [("sqlite", "systemd"), ("none", "docker")])
def test_the_next_steps_after_an_update_fit_the_answers(
    database: str, deployment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = commit(snapshot(tmp_path / "release"), tag="v1.0.0")
    project = commit(
        render(release, tmp_path / "project", database=database, deployment=deployment)
    )
    commit(release, tag="v1.1.0")
    capsys.readouterr()
    copier.run_update(project, defaults=True, overwrite=True)

    message = said(capsys, "Updated.")
    assert ("migration" in message) == (database != "none")
    assert "deploy/deploy.sh setup" in message
    assert {"pins", "lint", "test"} <= targets(message)
    assert targets(message) <= set(
        re.findall(r"^([a-z-]+):", (project / "Makefile").read_text(), re.M)
    )
