"""CI, git hooks and the small files of a project, judged by the tools that read them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

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


class Rendered(Protocol):
    """Gives a project with these answers; it is shared, so nobody changes it."""

    def __call__(self, **answers: str) -> Path: ...


@pytest.fixture(scope="session")
def rendered(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """Render each project once."""
    projects: dict[frozenset[tuple[str, str]], Path] = {}
    defaults = {question: values[0] for question, values in choices().items()}

    def project(**answers: str) -> Path:
        key = frozenset((defaults | answers).items())
        if key not in projects:
            projects[key] = render(template, tmp_path_factory.mktemp("project"), **answers)
        return projects[key]

    return project


def findings(linter: list[str], paths: list[Path]) -> str:
    """What a linter says against files."""
    program, *arguments = linter
    done = subprocess.run([BIN / program, *arguments, *paths], capture_output=True, text=True)
    return f"{program}: {done.stdout}{done.stderr}" if done.returncode else ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ci", "linter"),
    [(ci, linter) for ci, linters in LINTERS.items() for linter in linters],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_the_linters_of_ci_find_nothing(rendered: Rendered, ci: str, linter: list[str]) -> None:
    rows = combinations(["database", "cache", "deployment"])
    assert findings(linter, [rendered(ci=ci, **row) / CI_FILES[ci] for row in rows]) == ""


def test_the_linter_of_yaml_finds_nothing_in_the_hooks(rendered: Rendered) -> None:
    assert findings([*YAMLLINT, YAML_RULES], [rendered() / ".pre-commit-config.yaml"]) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ci", "pattern", "replacement", "linter", "says"),
    [
        ("github", "timeout-minutes: 10", "timeout-minutes: soon", 0, "schema"),
        ("github", "    steps:", "    step:", 0, "schema"),
        ("github", r"with:\n +persist-credentials: false", "", 1, "artipacked"),
        ("github", r"actions/checkout@[0-9a-f]+", "actions/checkout@main", 1, "unpinned-uses"),
        ("github", "contents: read", "contents: write", 1, "excessive-permissions"),
        ("github", r'"\$REFERENCE"', "${{ github.head_ref }}", 1, "template-injection"),
        ("github", "name: CI", "name: CI\nname: CI", 2, "key-duplicates"),
        ("gitlab", "interruptible: true", "interruptible: perhaps", 0, "schema"),
        ("gitlab", "stages:", "stages: [x]\nstages:", 1, "key-duplicates"),
        ("gitlab", "resource_group: production", "resource_group: []", 0, "schema"),
    ],
)
def test_the_linters_of_ci_find_a_planted_mistake(
    rendered: Rendered,
    tmp_path: Path,
    ci: str,
    pattern: str,
    replacement: str,
    linter: int,
    says: str,
) -> None:
    text, count = re.subn(pattern, replacement, (rendered(ci=ci) / CI_FILES[ci]).read_text())
    assert count
    path = tmp_path / CI_FILES[ci]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert says in findings(LINTERS[ci][linter], [path])


def loaded(path: Path) -> dict[str, Any]:
    """A YAML file; the key `on` of a workflow is read as `True`."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


@pytest.mark.parametrize("row", combinations(["database", "cache"]), ids=row_id)
def test_ci_brings_what_the_answers_need(rendered: Rendered, row: Answers) -> None:
    needed = [SERVICES[choice] for choice in row.items() if choice in SERVICES]
    images = {image for image, _ in needed}
    variables = {variable for _, variable in needed}

    workflow = loaded(rendered(ci="github", **row) / WORKFLOW)
    services = workflow["jobs"]["test"].get("services", {})
    assert {service["image"] for service in services.values()} == images
    assert {name for name in workflow["env"] if name.startswith("TEST_")} == variables

    pipeline = loaded(rendered(ci="gitlab", **row) / PIPELINE)
    assert set(pipeline["test"].get("services", [])) == images
    assert {name for name in pipeline["variables"] if name.startswith("TEST_")} == variables


CHECKS = {
    "lint": ["make lint", ".venv/bin/prek run --all-files"],
    "test": ["make test"],
    "audit": ["make audit"],
}
# The jobs of a project that is deployed as an image, in their order.
DELIVERY = ["build", "deploy"]


def runs(job: dict[str, Any]) -> list[str]:
    """The commands of a job, of whichever service."""
    if "steps" in job:
        return [step["run"] for step in job["steps"] if "run" in step]
    script: list[str] = job["script"]
    return script


@pytest.mark.parametrize("deployment", choices()["deployment"])
def test_both_ci_services_run_the_same_commands(rendered: Rendered, deployment: str) -> None:
    workflow = loaded(rendered(ci="github", deployment=deployment) / WORKFLOW)
    pipeline = loaded(rendered(ci="gitlab", deployment=deployment) / PIPELINE)
    for name, commands in CHECKS.items():
        assert runs(workflow["jobs"][name]) == ['pipx install "uv==$UV_VERSION"', *commands]
        assert runs(pipeline[name]) == commands
    expected = [*CHECKS, *(DELIVERY if deployment == "docker" else [])]
    assert list(workflow["jobs"]) == expected
    assert [name for name, job in pipeline.items() if "script" in job] == expected
    shared = {name for name in workflow["env"] if not name.startswith("TEST_")}
    assert shared == {"UV_VERSION", *(["SCANNER"] if deployment == "docker" else [])}
    for name in shared:
        assert workflow["env"][name] == pipeline["variables"][name]


@pytest.mark.parametrize("deployment", choices()["deployment"])
def test_a_workflow_may_only_read_and_every_job_ends_in_time(
    rendered: Rendered, deployment: str
) -> None:
    workflow = loaded(rendered(ci="github", deployment=deployment) / WORKFLOW)
    more = {
        "build": {"contents": "read", "packages": "write"},
        "deploy": {"contents": "read", "packages": "read"},
    }
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 20, name
        assert job.get("permissions") == more.get(name), name


def test_a_newer_commit_cancels_the_checks_and_never_a_deployment(rendered: Rendered) -> None:
    workflow = loaded(rendered(ci="github", deployment="systemd") / WORKFLOW)
    assert workflow["concurrency"]["cancel-in-progress"] is True
    workflow = loaded(rendered(ci="github") / WORKFLOW)
    only_elsewhere = "${{ github.ref != 'refs/heads/main' }}"
    assert workflow["concurrency"]["cancel-in-progress"] == only_elsewhere
    assert workflow["jobs"]["deploy"]["concurrency"]["cancel-in-progress"] is False
    pipeline = loaded(rendered(ci="gitlab") / PIPELINE)
    assert pipeline["default"]["interruptible"] is True
    assert pipeline["deploy"]["interruptible"] is False
    assert pipeline["deploy"]["resource_group"] == "production"


@pytest.mark.parametrize("ci", CI_FILES)
def test_the_image_that_is_pushed_is_the_one_that_was_scanned(rendered: Rendered, ci: str) -> None:
    jobs = loaded(rendered(ci=ci) / CI_FILES[ci])
    if ci == "github":
        jobs = jobs["jobs"]
    commands = "\n".join(runs(jobs["build"]))
    places = [
        re.search(pattern, commands)
        for pattern in (
            r"docker build --pull --build-arg \"REVISION=\$\w+\" --tag scanned \.",
            r"docker save --output image\.tar scanned",
            r"docker run --rm .* \"\$SCANNER\" image --input image\.tar ",
            r"docker tag scanned ",
            r"docker push ",
        )
    ]
    starts = [place.start() for place in places if place]
    assert len(starts) == len(places)
    assert starts == sorted(starts)
    for option in ("--severity HIGH,CRITICAL", "--ignore-unfixed", "--exit-code 1"):
        assert option in commands
    assert jobs["build"]["needs"] == ["lint", "test"]
    assert re.findall(r'release --image "(\$REFERENCE)"', "\n".join(runs(jobs["deploy"])))
    # It gets neither the engine nor what may push.
    assert "docker.sock" not in commands
    assert not re.search(r"docker run .*(--env|--privileged| -e )", commands)


def test_the_scanner_is_pinned_by_digest_and_no_release_that_was_tampered_with(
    rendered: Rendered,
) -> None:
    scanner = loaded(rendered(ci="github") / WORKFLOW)["env"]["SCANNER"]
    pin = re.fullmatch(r"aquasec/trivy:(\d+)\.(\d+)\.(\d+)@sha256:[0-9a-f]{64}", scanner)
    assert pin
    # 0.69.4 to 0.69.6 stole what their pipelines held.
    assert tuple(map(int, pin.groups())) > (0, 69, 6)


def test_only_the_main_branch_pushes_and_deploys(rendered: Rendered) -> None:
    jobs = loaded(rendered(ci="github") / WORKFLOW)["jobs"]
    (push,) = (step for step in jobs["build"]["steps"] if step.get("id") == "push")
    assert push["if"] == (
        "github.ref == 'refs/heads/main' && github.event_name == 'push' && vars.IMAGE != ''"
    )
    # Nothing but the step that pushes holds what may push.
    assert [step for step in jobs["build"]["steps"] if "env" in step] == [push]
    assert jobs["build"]["outputs"] == {"reference": "${{ steps.push.outputs.reference }}"}
    assert jobs["deploy"]["needs"] == "build"
    assert jobs["deploy"]["if"] == ("needs.build.outputs.reference != '' && vars.DEPLOY_HOST != ''")
    assert jobs["deploy"]["environment"] == "production"

    pipeline = loaded(rendered(ci="gitlab") / PIPELINE)
    on_main = (
        '$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH && $CI_PIPELINE_SOURCE != "schedule" '
        "&& $CI_REGISTRY_IMAGE"
    )
    assert pipeline["build"]["rules"] == [
        {"if": on_main, "variables": {"PUSH_TO": "$CI_REGISTRY_IMAGE:$CI_COMMIT_SHA"}},
        {"when": "on_success"},
    ]
    script = runs(pipeline["build"])
    pushing = [number for number, line in enumerate(script) if "PUSH_TO" in line or "login" in line]
    assert script[pushing[0]] == 'test "$PUSH_TO" || exit 0'
    assert pipeline["deploy"]["needs"] == ["build"]
    assert pipeline["deploy"]["rules"] == [{"if": f"{on_main} && $DEPLOY_HOST"}]
    assert pipeline["deploy"]["environment"] == "production"


@pytest.mark.parametrize("ci", CI_FILES)
def test_ci_trusts_only_the_server_that_it_was_told(rendered: Rendered, ci: str) -> None:
    text = (rendered(ci=ci) / CI_FILES[ci]).read_text()
    assert "-o StrictHostKeyChecking=yes" in text
    assert "DEPLOY_KNOWN_HOSTS" in text
    assert "ssh-keyscan" not in text


@pytest.mark.parametrize("ci", CI_FILES)
def test_shellcheck_finds_nothing_in_the_commands_of_ci(
    rendered: Rendered, tmp_path: Path, ci: str
) -> None:
    jobs = loaded(rendered(ci=ci) / CI_FILES[ci])
    # GitHub starts a shell for each step; GitLab one for the job, and in two images a plain one.
    scripts = [
        script
        for name in [*CHECKS, *DELIVERY]
        for script in (
            runs(jobs["jobs"][name]) if ci == "github" else ["\n".join(runs(jobs[name]))]
        )
    ]
    assert len(scripts) >= len(CHECKS) + len(DELIVERY)
    for number, script in enumerate(scripts):
        path = tmp_path / f"{number}.sh"
        path.write_text(f"#!/bin/{'bash' if ci == 'github' else 'sh'}\n{script}\n")
        assert findings(["shellcheck"], [path]) == ""


def test_every_action_is_pinned_by_a_commit_that_names_its_version(
    rendered: Rendered,
) -> None:
    text = (rendered(ci="github") / WORKFLOW).read_text()
    pins = re.findall(r"uses: (.*)", text)
    assert pins
    for pin in pins:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", pin), pin
    assert len({pin.split("@")[0] for pin in pins}) == len(set(pins)), "one action, two versions"


@pytest.mark.parametrize("python_version", choices()["python_version"])
def test_ci_runs_the_python_that_is_deployed(rendered: Rendered, python_version: str) -> None:
    answers = {"python_version": python_version}
    project = rendered(ci="github", **answers)
    assert (project / ".python-version").read_text() == f"{python_version}\n"
    jobs = loaded(project / WORKFLOW)["jobs"]
    for job in (jobs[name] for name in CHECKS):
        setup = [step["with"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
        assert setup == [{"python-version-file": ".python-version"}]
    project = rendered(ci="gitlab", **answers)
    assert loaded(project / PIPELINE)["default"]["image"] == f"python:{python_version}"


@pytest.fixture
def repository(rendered: Rendered, tmp_path: Path) -> Path:
    """A project in a git repository of its own, with the ruff that its hooks call."""
    project = shutil.copytree(rendered(), tmp_path / "project")
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/ruff").symlink_to(BIN / "ruff")
    return commit(project)


HOOK_TOOLS = ["prek", pytest.param("pre-commit", marks=pytest.mark.slow)]

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
@pytest.mark.parametrize("tool", HOOK_TOOLS)
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
    assert (repository / name).read_text() == text


@pytest.mark.parametrize("tool", HOOK_TOOLS)
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
    rendered: Rendered, tmp_path: Path, database: str
) -> None:
    project = shutil.copytree(rendered(database=database), tmp_path / "project")
    names = set(files(project))
    commit(project)
    assert set(git(project, "ls-files").splitlines()) == names
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


def test_the_files_are_indented_as_editorconfig_says(rendered: Rendered) -> None:
    project = rendered()
    assert "[Makefile]\nindent_style = tab\n" in (project / ".editorconfig").read_text()
    for name, path in files(project).items():
        assert ("\t" in path.read_text()) == (name == "Makefile"), name
