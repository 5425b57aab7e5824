"""What can be said of the deployment's files without a server; tests/live starts them on one."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.combinations import Answers, pairwise, render, row_id

SLUG = "orders-desk"
SYSTEMD = [row for row in pairwise() if row["deployment"] == "systemd"]
VERBS = ["setup", "release", "rollback", "restart", "status", "logs", "run", "config"]
WITH_DATABASE = ["backup", "restore"]

# By `systemd-analyze security`, in tenths; with and without a network.
EXPOSURE = {"online": 12, "offline": 6}


@pytest.fixture(scope="module", params=SYSTEMD, ids=row_id)
def answers(request: pytest.FixtureRequest) -> Answers:
    """The answers of a project that systemd runs."""
    given: Answers = request.param
    return given


@pytest.fixture(scope="module")
def project(answers: Answers, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that systemd runs."""
    folder = tmp_path_factory.mktemp("deploy") / "project"
    return render(template, folder, project_slug=SLUG, domain="orders.test", **answers)


def deploy(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run deploy.sh as somebody with no server in mind."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("DEPLOY_")}
    return subprocess.run(
        [project / "deploy" / "deploy.sh", *arguments],
        capture_output=True,
        text=True,
        env=own | environment,
        stdin=subprocess.DEVNULL,
    )


def directive(file: Path, name: str) -> str:
    """The last value of a directive in a unit."""
    return str(re.findall(rf"^{name}=(.*)$", file.read_text(), re.MULTILINE)[-1])


def seconds(text: str) -> float:
    """What a time span of systemd's means."""
    number, unit = re.fullmatch(r"(\d+)(ms|s|)", text).groups()  # type: ignore[union-attr] # a test may fail so
    return int(number) / 1000 if unit == "ms" else int(number)


def test_shellcheck_finds_nothing(project: Path) -> None:
    done = subprocess.run(
        ["shellcheck", "deploy/deploy.sh"], cwd=project, capture_output=True, text=True
    )
    assert done.stdout == ""
    assert done.returncode == 0


def test_every_verb_has_a_help_of_its_own(project: Path, answers: Answers) -> None:
    verbs = VERBS if answers["database"] == "none" else VERBS + WITH_DATABASE
    usage = deploy(project, "--help")
    assert usage.returncode == 0
    assert set(re.findall(r"^  ([a-z]+) ", usage.stdout, re.MULTILINE)) == set(verbs)
    for verb in verbs:
        said = deploy(project, verb, "--help")
        assert said.returncode == 0
        assert said.stdout.startswith(f"usage: deploy/deploy.sh {verb}")
        assert said.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no verb given"),
        (["deploy"], "there is no verb deploy"),
        (["--force", "release"], "there is no option --force"),
        (["status"], "DEPLOY_HOST is not set"),
        (["setup", "now"], "setup takes no arguments"),
        (["release", "a", "b"], "release takes one REF"),
    ],
)
def test_misuse_is_named_and_changes_nothing(
    arguments: list[str], says: str, project: Path
) -> None:
    done = deploy(project, *arguments)
    assert done.returncode == 64
    assert f"deploy.sh: {says}" in done.stderr


def test_a_release_of_what_is_no_commit_is_refused(project: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    done = deploy(project, "release", "v0", DEPLOY_HOST="localhost")
    assert done.returncode == 1
    assert done.stderr == (
        "deploy.sh: there is no commit v0 here\n"
        "next: git log shows the commits; git fetch brings newer ones\n"
    )


def test_whoever_waits_waits_longer_than_whom_it_waits_for(project: Path) -> None:
    unit = project / "deploy" / "app@.service"
    settings = dict(re.findall(r"^#?(\w+)=(.*)$", (project / ".env.example").read_text(), re.M))
    drain = int(settings["SERVER_DRAIN_S"])
    assert seconds(directive(unit, "TimeoutStopSec")) >= drain + 10
    assert seconds(directive(unit, "RestartSec")) < 3


def test_proxy_and_app_accept_bodies_of_the_same_size(project: Path) -> None:
    limit = re.search(
        r"^#APP_BODY_LIMIT_BYTES=(\d+)$", (project / ".env.example").read_text(), re.M
    )
    assert limit
    files = [project / "deploy" / name for name in ("nginx-https.conf", "Caddyfile")]
    text = next(file for file in files if file.exists()).read_text()
    sizes = re.findall(r"(?:client_max_body_size|max_size) (\d+)(MB)?\b", text)
    assert [int(number) * (10**6 if unit else 1) for number, unit in sizes] == [int(limit[1])]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is missing")
@pytest.mark.parametrize("network", EXPOSURE)
def test_the_unit_is_exposed_no_more_than_promised(
    network: str, project: Path, tmp_path: Path
) -> None:
    units = tmp_path / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    shutil.copy(project / "deploy" / "app@.service", units / f"{SLUG}@.service")
    if network == "offline":
        (units / f"{SLUG}@.service.d").mkdir()
        shutil.copy(project / "deploy" / "offline.conf", units / f"{SLUG}@.service.d")
    done = subprocess.run(
        [
            *("systemd-analyze", "security", "--no-pager", "--offline=true"),
            *(f"--root={tmp_path}", f"--threshold={EXPOSURE[network]}", f"{SLUG}@blue.service"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout
