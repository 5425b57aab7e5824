"""Every distinct app is linted and tested by its own commands, and lives through a whole run."""

import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.combinations import Answers, choices, combinations, files, render, row_id

# The questions that change what runs; the others change files that describe or deploy it.
AXES = ("database", "cache")
# The file in which the proxy decides one default.
LIMITS = "app/limits.py"
CODE = (
    "app/",
    "migrations/",
    "scripts/",
    "static/",
    "tests/",
    "gunicorn_conf.py",
    "requirements",
)
# Measuring trebles the time of the tests: it is done in the largest app and in the smallest.
WHOLE = {("postgresql", "redis"), ("none", "none")}
# What these are about is the same in all apps: the others leave them out.
SAME = ("clients", "exchange", "gunicorn", "levels", "limits", "server", "start", "tracing")
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
SCENARIO = Path(__file__).parent / "scenarios" / "service.py"


def identify(value: object) -> str:
    """Return the id of a row, or nothing for what is only its number."""
    return row_id(value) if isinstance(value, dict) else ""


def command(project: Path, *arguments: str | Path, **own: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a project as its owner would, with nothing of ours in the environment."""
    ours = ("MAKE", "PYTEST", "COV_", "VIRTUAL_ENV", "APP_", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=project,
        env=environment | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )


@cache
def interpreters() -> list[str]:
    """Return one interpreter for each supported Python on this machine."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = []
    for version in SUPPORTED:
        # pyenv's shims stand in the way of uv.
        wanted = [version, *sorted(map(str, pyenv.glob(f"{version}.*/bin/python3")))]
        search = ["uv", "python", "find", "--system", "--no-project", "--no-python-downloads"]
        tried = [subprocess.run([*search, name], capture_output=True, text=True) for name in wanted]
        found += [done.stdout.strip() for done in tried if done.returncode == 0][:1]
    return found


def code_of(project: Path) -> dict[str, bytes]:
    """Return the files of a project that decide what runs; only an image asks for its health."""
    return {
        name: path.read_bytes()
        for name, path in files(project).items()
        if name.startswith(CODE) and "healthcheck" not in name
    }


@pytest.mark.slow
def test_no_other_question_changes_what_runs(template: Path, tmp_path: Path) -> None:
    usual = code_of(render(template, tmp_path / "usual"))
    for question, values in choices().items():
        for value in values[1:]:
            project = render(template, tmp_path / f"{question}-{value}", **{question: value})
            code = code_of(project)
            if question == "proxy":
                (line,) = set(code[LIMITS].splitlines()) - set(usual[LIMITS].splitlines())
                assert line.strip() == b'"100/second",'
                code[LIMITS] = usual[LIMITS]
            assert (code != usual) == (question in AXES), f"{question}: {value}"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "answers"), list(enumerate(combinations(AXES))), ids=identify)
def test_an_app_passes_its_own_checks_and_a_whole_run(
    number: int,
    answers: Answers,
    template: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    # In turn with the databases and with the caches.
    proxy = choices()["proxy"][(number + number // 2) % 2]
    project = render(template, tmp_path / "project", proxy=proxy, **answers)
    # In turn, so that every supported Python of this machine runs some app.
    python = interpreters()[number % len(interpreters())]

    done = command(project, "make", "lint", PYTHON=python)
    assert done.returncode == 0, done.stdout
    whole = (answers["database"], answers["cache"]) in WHOLE
    ignored = " ".join(f"--ignore tests/test_{name}.py" for name in SAME)
    options = [] if whole else [f"ARGS=--no-cov {ignored}"]
    done = command(project, "make", "test", *options, PYTHON=python)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]
    coverage = [line for line in done.stdout.splitlines() if "Total coverage" in line]
    assert len(coverage) == whole

    done = command(project, ".venv/bin/python", SCENARIO)
    assert done.returncode == 0, done.stdout
    figures = [*done.stdout.splitlines(), *(f"{one.split(': ')[-1]} covered" for one in coverage)]

    if answers["database"] != "none":
        models = project / "app/items/models.py"
        models.write_text(models.read_text() + "    color: Mapped[str | None]\n")
        for arguments in (["migration", "m=add color"], ["migrate"]):
            done = command(project, "make", *arguments, PYTHON=python)
            assert done.returncode == 0, done.stdout
        for arguments in (["check"], ["format", "--check"]):
            done = command(project, ".venv/bin/ruff", *arguments)
            assert done.returncode == 0, done.stdout
        (written,) = (project / "migrations/versions").glob("*_add_color.py")
        assert "add_column" in written.read_text()

    version = command(project, python, "--version").stdout.strip()
    record_property(f"{row_id(answers)} on {version}", "; ".join(figures))
