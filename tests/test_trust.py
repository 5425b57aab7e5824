"""Copying and updating work as typed: the template never asks for trust."""

import subprocess
import sys
from pathlib import Path

import copier
import pytest
from copier.errors import UnsafeTemplateError

from tests.combinations import commit, files, git, render, snapshot

COPIER = Path(sys.executable).with_name("copier")

TASKS = '\n_tasks:\n  - command: "true"\n    when: false\n'
MIGRATIONS = '\n_migrations:\n  - command: "true"\n'
EXTENSIONS = "\n_jinja_extensions:\n  - jinja2.ext.do\n"


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command `copier`."""
    return subprocess.run([COPIER, *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository of the template as it stands, released as v0.1.0."""
    return commit(snapshot(tmp_path / "template"), tag="v0.1.0")


def release(source: Path, config: str = "", tag: str = "v0.2.0") -> None:
    """Release a newer version with more lines in copier.yml and in the Makefile."""
    for path, text in (("copier.yml", config), ("template/Makefile.jinja", "\n# Newer.\n")):
        with (source / path).open("a") as file:
            file.write(text)
    commit(source, tag=tag)


def test_the_command_copies_without_trust(source: Path, tmp_path: Path) -> None:
    done = run("copy", "--defaults", source, "project", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "_commit: v0.1.0" in (tmp_path / "project" / ".copier-answers.yml").read_text()


@pytest.mark.slow
def test_the_command_copies_from_an_address_without_trust(source: Path, tmp_path: Path) -> None:
    done = run("copy", "--defaults", f"git+{source.as_uri()}", "project", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"pyproject.toml", "app/main.py"} <= set(files(tmp_path / "project"))


@pytest.mark.slow
def test_the_command_updates_without_trust(source: Path, tmp_path: Path) -> None:
    project = commit(render(source, tmp_path / "project"))
    release(source)
    done = run("update", "--defaults", cwd=project)
    assert done.returncode == 0, done.stderr
    assert git(project, "diff", "--name-only").split() == [".copier-answers.yml", "Makefile"]


def test_the_interface_copies_and_updates_without_trust(source: Path, tmp_path: Path) -> None:
    project = commit(render(source, tmp_path / "project"))
    release(source)
    copier.run_update(project, defaults=True, overwrite=True, quiet=True)
    assert (project / "Makefile").read_text().endswith("\n# Newer.\n")


@pytest.mark.parametrize("config", [TASKS, EXTENSIONS])
def test_a_feature_that_needs_trust_would_be_seen_in_a_copy(
    config: str, source: Path, tmp_path: Path
) -> None:
    release(source, config)
    with pytest.raises(UnsafeTemplateError):
        render(source, tmp_path / "project")
    done = run("copy", "--defaults", source, "project", cwd=tmp_path)
    assert done.returncode == 4
    assert not (tmp_path / "project").exists()


@pytest.mark.slow
@pytest.mark.parametrize("config", [TASKS, EXTENSIONS, MIGRATIONS])
def test_a_feature_that_needs_trust_would_be_seen_in_an_update(
    config: str, source: Path, tmp_path: Path
) -> None:
    project = commit(render(source, tmp_path / "project"))
    release(source, config)
    with pytest.raises(UnsafeTemplateError):
        copier.run_update(project, defaults=True, overwrite=True, quiet=True)
    done = run("update", "--defaults", cwd=project)
    assert done.returncode == 4
    assert not git(project, "status", "--porcelain")
