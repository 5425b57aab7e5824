"""The questions of copier.yml, the combinations of their choices, and how a project is rendered."""

import shutil
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import combinations as pairs_of
from itertools import product
from pathlib import Path
from typing import Any

import copier
import yaml
from copier._jinja_ext import SandboxedEnvironment
from copier._main import Worker

ROOT = Path(__file__).resolve().parents[1]

Answers = dict[str, str]


@cache
def config() -> dict[str, Any]:
    """The template's configuration."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "copier.yml").read_text())
    return loaded


def questions() -> dict[str, dict[str, Any]]:
    """The questions that are asked, in their order; computed values are not among them."""
    return {
        name: question
        for name, question in config().items()
        if not name.startswith("_") and question.get("when", True) is not False
    }


def choices() -> dict[str, list[str]]:
    """The values of every question that offers some, the default first."""
    found = {}
    for name, question in questions().items():
        if "choices" in question:
            offered = question["choices"]
            values = list(offered.values()) if isinstance(offered, dict) else list(offered)
            assert values[0] == question["default"], f"{name}: the default is not the first choice"
            found[name] = values
    return found


def combinations(names: Iterable[str] | None = None) -> list[Answers]:
    """Every combination of the choices, or of those of the named questions alone."""
    offered = choices()
    names = list(offered) if names is None else [name for name in offered if name in set(names)]
    return [
        dict(zip(names, values, strict=True))
        for values in product(*(offered[name] for name in names))
    ]


def row_id(answers: Mapping[str, str]) -> str:
    """The name of a combination, for example postgresql-nginx-systemd-redis-github-3.13."""
    return "-".join(answers.values())


def pairwise() -> list[Answers]:
    """A few combinations in which every two choices of different questions meet."""

    def pairs(answers: Answers) -> set[object]:
        return {frozenset(pair) for pair in pairs_of(answers.items(), 2)}

    rows = combinations()
    missing = set[object]().union(*map(pairs, rows))
    chosen = []
    while missing:
        best = max(rows, key=lambda answers: len(pairs(answers) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def snapshot(destination: Path) -> Path:
    """Copy the working tree, with what is not committed and without what is ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        # A file may be deleted in the working tree and still listed.
        if (ROOT / name).exists():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, destination / name, follow_symlinks=False)
    return destination


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder and return what it says."""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout


def commit(folder: Path, tag: str | None = None) -> Path:
    """Commit everything in a folder, making a repository of it first, and tag the commit."""
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", tag or "work")
    if tag is not None:
        git(folder, "tag", tag)
    return folder


def render(
    template: Path, destination: Path, *, version: str | None = None, **answers: Any
) -> Path:
    """Render a project as a user would get it, without trust; unnamed answers are the defaults."""
    assert set(answers) <= set(questions()), f"no such question: {set(answers) - set(questions())}"
    copier.run_copy(
        str(template), destination, data=answers, vcs_ref=version, defaults=True, quiet=True
    )
    return destination


def environment(template: Path) -> SandboxedEnvironment:
    """The Jinja environment in which Copier renders the template."""
    return Worker(src_path=str(template)).jinja_env


def files(project: Path) -> dict[str, Path]:
    """Every file of a project by its path, git's own left out."""
    return {
        path.relative_to(project).as_posix(): path
        for path in sorted(project.rglob("*"))
        if not path.is_dir() and ".git" not in path.relative_to(project).parts
    }
