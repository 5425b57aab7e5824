"""CI, git hooks and the small files of a project, judged by the tools that read them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.combinations import Answers, choices, combinations, commit, files, git, render, row_id

BIN = Path(sys.executable).parent

WORKFLOW = ".github/workflows/ci.yml"
PIPELINE = ".gitlab-ci.yml"
CI_FILES = {"github": WORKFLOW, "gitlab": PIPELINE}

YAMLLINT = ["yamllint", "--strict", "--config-data"]
YAML_RULES = """
extends: default
rules:
  comments: {min-spaces-from-content: 1}
  document-start: disable
  line-length: {max: 110}
  truthy: {check-keys: false}
"""
LINTERS = {
    "github": [
        ["check-jsonschema", "--builtin-schema", "vendor.github-workflows"],
        ["zizmor", "--offline", "--no-progress"],
        [*YAMLLINT, YAML_RULES],
    ],
    "gitlab": [
        ["check-jsonschema", "--builtin-schema", "vendor.gitlab-ci"],
        [*YAMLLINT, YAML_RULES],
    ],
}

SERVICES = {
    ("database", "postgresql"): ("postgres:17", "TEST_DATABASE_URL"),
    ("cache", "redis"): ("redis:8", "TEST_REDIS_URL"),
}

# What work in a project leaves behind.
LEFT_BEHIND = """
    .coverage .env .hypothesis/x .mypy_cache/x .pytest_cache/x .ruff_cache/x .venv/x
    app/__pycache__/main.pyc
"""
LEFT_BEHIND_BY = {
    "postgresql": ".postgres/data/PG_VERSION",
    "sqlite": "dev.db dev.db-shm dev.db-wal",
    "none": "",
}


def findings(ci: str, paths: list[Path]) -> str:
    """What the linters of a CI service say against its files."""
    said = []
    for linter, *arguments in LINTERS[ci]:
        done = subprocess.run([BIN / linter, *arguments, *paths], capture_output=True, text=True)
        if done.returncode:
            said.append(f"{linter}: {done.stdout}{done.stderr}")
    return "\n".join(said)


@pytest.mark.parametrize("ci", sorted(CI_FILES))
def test_the_linters_of_ci_find_nothing(template: Path, tmp_path: Path, ci: str) -> None:
    paths = []
    for row in combinations(["database", "cache"]):
        project = render(template, tmp_path / row_id(row), ci=ci, **row)
        paths += [project / CI_FILES[ci], project / ".pre-commit-config.yaml"]
    own = [path for path in paths if path.name != ".pre-commit-config.yaml"]
    assert findings(ci, own) == ""
    lint = subprocess.run([BIN / "yamllint", *YAMLLINT[1:], YAML_RULES, *paths], check=False)
    assert lint.returncode == 0


@pytest.mark.parametrize(
    ("ci", "pattern", "replacement", "says"),
    [
        ("github", "timeout-minutes: 10", "timeout-minutes: soon", "check-jsonschema"),
        ("github", r"with:\n +persist-credentials: false", "", "artipacked"),
        ("github", r"actions/checkout@[0-9a-f]+", "actions/checkout@main", "unpinned-uses"),
        ("github", "contents: read", "contents: write", "excessive-permissions"),
        ("github", "name: CI", "name: CI\nname: CI", "key-duplicates"),
        ("gitlab", "interruptible: true", "interruptible: perhaps", "check-jsonschema"),
        ("gitlab", "stages:", "stages: [x]\nstages:", "key-duplicates"),
    ],
)
def test_the_linters_of_ci_find_a_planted_mistake(
    template: Path, tmp_path: Path, ci: str, pattern: str, replacement: str, says: str
) -> None:
    path = render(template, tmp_path / "project", ci=ci) / CI_FILES[ci]
    text, count = re.subn(pattern, replacement, path.read_text())
    assert count
    path.write_text(text)
    assert says in findings(ci, [path])


def loaded(path: Path) -> dict[str, Any]:
    """A YAML file; the key `on` of a workflow is read as `True`."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


@pytest.mark.parametrize("row", combinations(["database", "cache"]), ids=row_id)
def test_ci_brings_what_the_answers_need(template: Path, tmp_path: Path, row: Answers) -> None:
    needed = [SERVICES[choice] for choice in row.items() if choice in SERVICES]
    images = {image for image, _ in needed}
    variables = {variable for _, variable in needed}

    workflow = loaded(render(template, tmp_path / "github", ci="github", **row) / WORKFLOW)
    services = workflow["jobs"]["test"].get("services", {})
    assert {service["image"] for service in services.values()} == images
    assert {name for name in workflow["env"] if name.startswith("TEST_")} == variables

    pipeline = loaded(render(template, tmp_path / "gitlab", ci="gitlab", **row) / PIPELINE)
    assert set(pipeline["test"].get("services", [])) == images
    assert {name for name in pipeline["variables"] if name.startswith("TEST_")} == variables


def test_both_ci_services_run_the_same_commands(template: Path, tmp_path: Path) -> None:
    workflow = loaded(render(template, tmp_path / "github", ci="github") / WORKFLOW)
    pipeline = loaded(render(template, tmp_path / "gitlab", ci="gitlab") / PIPELINE)
    expected = {
        "lint": ["make lint", ".venv/bin/prek run --all-files"],
        "test": ["make test"],
        "audit": ["make audit"],
    }
    for name, commands in expected.items():
        runs = [step["run"] for step in workflow["jobs"][name]["steps"] if "run" in step]
        assert runs == ['pipx install "uv==$UV_VERSION"', *commands]
        assert pipeline[name]["script"] == commands
    assert set(workflow["jobs"]) == set(expected)
    assert workflow["env"]["UV_VERSION"] == pipeline["variables"]["UV_VERSION"]


def test_a_workflow_may_only_read_and_every_job_ends_in_time(
    template: Path, tmp_path: Path
) -> None:
    workflow = loaded(render(template, tmp_path / "project", ci="github") / WORKFLOW)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 20, name
        assert "permissions" not in job, name


def test_every_action_is_pinned_by_a_commit_that_names_its_version(
    template: Path, tmp_path: Path
) -> None:
    text = (render(template, tmp_path / "project", ci="github") / WORKFLOW).read_text()
    pins = re.findall(r"uses: (.*)", text)
    assert pins
    for pin in pins:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", pin), pin
    assert len({pin.split("@")[0] for pin in pins}) == len(set(pins)), "one action, two versions"


@pytest.mark.parametrize("python_version", choices()["python_version"])
def test_ci_runs_the_python_that_is_deployed(
    template: Path, tmp_path: Path, python_version: str
) -> None:
    answers = {"python_version": python_version}
    project = render(template, tmp_path / "github", ci="github", **answers)
    assert (project / ".python-version").read_text() == f"{python_version}\n"
    for job in loaded(project / WORKFLOW)["jobs"].values():
        setup = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
        assert setup == [{"python-version-file": ".python-version"}]
    project = render(template, tmp_path / "gitlab", ci="gitlab", **answers)
    assert loaded(project / PIPELINE)["default"]["image"] == f"python:{python_version}"


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Path:
    """A project in a git repository of its own, with the ruff that its hooks call."""
    project = render(template, tmp_path / "project")
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/ruff").symlink_to(BIN / "ruff")
    return commit(project)


PLANTED = {
    "nothing wrong": ("app/extra.py", '"""Nothing."""\n', set()),
    "a conflict in the README": (
        "README.md",
        "<<<<<<< before updating\na\n=======\nb\n>>>>>>> after updating\n",
        {"conflict-markers"},
    ),
    "half a conflict in Python": (
        "app/extra.py",
        '"""Nothing.\n\n>>>>>>> after updating\n"""\n',
        {"conflict-markers"},
    ),
    "a title seven characters long": ("notes.md", "Seventh\n=======\n", set()),
    "a rejected change": ("app/main.py.rej", "@@ -1 +1 @@\n", {"rejected-changes"}),
    "an unused import": ("app/extra.py", "import os\n", {"ruff-check"}),
    "an ugly line": ("app/extra.py", "a = {  }\n", {"ruff-format"}),
}


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("tool", ["prek", "pre-commit"])
def test_the_hooks_refuse_a_bad_commit_and_no_other(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, planted: str
) -> None:
    name, text, expected = PLANTED[planted]
    monkeypatch.setenv("PREK_HOME", str(tmp_path / "prek"))
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "pre-commit"))
    subprocess.run([BIN / tool, "install"], cwd=repository, check=True, capture_output=True)
    (repository / name).write_text(text)
    git(repository, "add", name)
    done = subprocess.run(
        ["git", "commit", "--message", "try"], cwd=repository, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert set(re.findall(r"hook id: (\S+)", said)) == expected, said
    assert (done.returncode == 0) == (not expected), said


@pytest.mark.parametrize("tool", ["prek", "pre-commit"])
def test_a_fresh_project_passes_its_own_hooks(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    monkeypatch.setenv("PREK_HOME", str(tmp_path / "prek"))
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "pre-commit"))
    done = subprocess.run(
        [BIN / tool, "run", "--all-files"], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    passed = re.findall(r"^(.*?)\.+Passed$", done.stdout, re.MULTILINE)
    assert passed == ["no conflict markers", "ruff check", "ruff format"], done.stdout


@pytest.mark.parametrize("database", choices()["database"])
def test_git_ignores_what_work_leaves_behind_and_nothing_else(
    template: Path, tmp_path: Path, database: str
) -> None:
    project = render(template, tmp_path / "project", database=database)
    rendered = set(files(project))
    commit(project)
    assert set(git(project, "ls-files").splitlines()) == rendered
    for name in f"{LEFT_BEHIND} {LEFT_BEHIND_BY[database]}".split():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    assert git(project, "status", "--porcelain") == ""
    for name in (".env.example.rej", "app/dev.db", "notes.md"):
        (project / name).write_text("x")
    untracked = git(project, "status", "--porcelain").splitlines()
    assert untracked == ["?? .env.example.rej", "?? app/dev.db", "?? notes.md"]


def test_the_answers_file_is_copiers_own(template: Path, tmp_path: Path) -> None:
    project = render(template, tmp_path / "project", project_name='"{{ 7 * 7 }}"')
    answers = loaded(project / ".copier-answers.yml")
    assert answers["_src_path"] == str(template)
    assert answers["project_name"] == '"{{ 7 * 7 }}"'
    # A computed value would be asked for by the next update.
    assert "example" not in answers
    assert "resources" not in answers


def test_editors_follow_the_formatter(template: Path, tmp_path: Path) -> None:
    project = render(template, tmp_path / "project")
    rules = (project / ".editorconfig").read_text()
    assert rules.startswith("root = true\n")
    for path in files(project).values():
        if path.name == "Makefile":
            continue
        assert "\t" not in path.read_text(), path
    assert "[Makefile]\nindent_style = tab\n" in rules


def test_every_tool_of_these_tests_is_installed() -> None:
    tools = {"prek", "pre-commit", "ruff", *(row[0] for rows in LINTERS.values() for row in rows)}
    assert all(shutil.which(tool, path=str(BIN)) for tool in tools), tools
