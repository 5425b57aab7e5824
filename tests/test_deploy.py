"""What can be said of the deployment's files without a server; tests/live starts them on one."""

import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import threading
from contextlib import ExitStack
from io import StringIO
from pathlib import Path

import pytest
from dotenv import dotenv_values

from tests.combinations import Answers, pairwise, render, row_id

SLUG = "orders-desk"
SYSTEMD = [row for row in pairwise() if row["deployment"] == "systemd"]
DOCKER = [row for row in pairwise() if row["deployment"] == "docker"]
VERBS = [
    *("setup", "release", "rollback", "restart", "status", "doctor"),
    *("logs", "log-level", "metrics", "run", "config"),
]
WITH_DATABASE = ["backup", "restore"]

# By `systemd-analyze security`, in tenths; with and without a network.
EXPOSURE = {"online": 12, "offline": 6}
# Of who leads to the metrics; Docker's has to open a socket that is no user's of the server.
EXPOSURE_OF_METRICS = {"systemd": 7, "docker": 14}


def rendered(answers: Answers, template: Path, factory: pytest.TempPathFactory) -> Path:
    """A project with some answers."""
    folder = factory.mktemp("deploy") / "project"
    return render(template, folder, project_slug=SLUG, domain="orders.test", **answers)


@pytest.fixture(scope="module", params=SYSTEMD + DOCKER, ids=row_id)
def answers(request: pytest.FixtureRequest) -> Answers:
    """The answers of a project."""
    given: Answers = request.param
    return given


@pytest.fixture(scope="module")
def project(answers: Answers, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that can be deployed."""
    return rendered(answers, template, tmp_path_factory)


@pytest.fixture(scope="module", params=SYSTEMD, ids=row_id)
def with_units(
    request: pytest.FixtureRequest, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A project that systemd runs."""
    return rendered(request.param, template, tmp_path_factory)


@pytest.fixture(scope="module")
def with_images(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that Docker runs."""
    return rendered(DOCKER[0], template, tmp_path_factory)


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
        ["shellcheck", "--external-sources", "--check-sourced", "deploy/deploy.sh"],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.stdout == ""
    assert done.returncode == 0


def test_every_verb_has_a_help_of_its_own(project: Path, answers: Answers) -> None:
    verbs = VERBS if answers["database"] == "none" else VERBS + WITH_DATABASE
    usage = deploy(project, "--help")
    assert usage.returncode == 0
    assert set(re.findall(r"^  ([a-z-]+) ", usage.stdout, re.MULTILINE)) == set(verbs)
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
        (["log-level"], "log-level takes one of DEBUG, INFO, WARNING, ERROR"),
        (["log-level", "loud"], "log-level takes one of DEBUG, INFO, WARNING, ERROR, and not"),
        (["log-level", "DEBUG, INFO"], "log-level takes one of DEBUG, INFO, WARNING, ERROR, and"),
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


def test_whoever_waits_waits_longer_than_whom_it_waits_for(with_units: Path) -> None:
    unit = with_units / "deploy" / "app@.service"
    settings = dict(re.findall(r"^#?(\w+)=(.*)$", (with_units / ".env.example").read_text(), re.M))
    drain = int(settings["SERVER_DRAIN_S"])
    assert seconds(directive(unit, "TimeoutStopSec")) >= drain + 10
    assert seconds(directive(unit, "RestartSec")) < 3


def test_proxy_and_app_accept_bodies_of_the_same_size(project: Path) -> None:
    limit = re.search(
        r"^#APP_BODY_LIMIT_BYTES=(\d+)$", (project / ".env.example").read_text(), re.M
    )
    assert limit
    files = [project / "deploy" / name for name in ("nginx-https.conf", "site.caddy")]
    text = next(file for file in files if file.exists()).read_text()
    sizes = re.findall(r"(?:client_max_body_size|max_size) (\d+)(MB)?\b", text)
    assert [int(number) * (10**6 if unit else 1) for number, unit in sizes] == [int(limit[1])]


def shell(project: Path, command: str, *arguments: str) -> str:
    """What a function of deploy.sh prints, on a server that has nothing."""
    parts = "SLUG=orders-desk ROOT=/nowhere BACKUPS=/nowhere; source deploy/docker.sh"
    done = subprocess.run(
        ["bash", "-euc", f"{parts}; {command}", "bash", *arguments],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    "value",
    [
        *("plain", "", "two words", "a#b", "a # b", "it's", "'", '"', "\\", "\\'", "a\\nb"),
        *("$HOME", "${HOME}", "${A:-b}", "$${HOME}}", "`id`", "$(id)", "é\u2028", "a=b"),
    ],
)
def test_a_value_survives_the_environment_file(value: str, with_images: Path) -> None:
    quoted = shell(with_images, 'quoted "$1"', value)
    line = f"VALUE={quoted}\n"
    assert dotenv_values(stream=StringIO(line)) == {"VALUE": value}


# Workers that answer in turns.
WATCHED = """
DOMAIN=api.example.com WATCH_S=1 answers=({turns})
ask_public() {
    echo "$1" >>asked
    echo "${answers[$(wc -l <asked) % ${#answers[@]}]}"
}
fail() { echo "$1"; exit; }
sleep() { command sleep 0.05; }
"""


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ("200", ""),
        ("503", "has answered 503, and 3 times not 200"),
        ("200 200 503", "has answered 503, and 3 times not 200"),
    ],
)
def test_a_release_of_which_one_worker_is_broken_does_not_pass_the_watch(
    turns: str, says: str, with_images: Path, tmp_path: Path
) -> None:
    text = (with_images / "deploy/deploy.sh").read_text()
    watch = re.search(r"^watch\(\) \{\n.*?^\}\n", text, re.MULTILINE | re.DOTALL)
    assert watch
    stand_ins = WATCHED.replace("{turns}", turns)
    done = subprocess.run(
        ["bash", "-euc", f"{stand_ins}{watch[0]}watch"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert says in done.stdout
    assert bool(done.stdout) == bool(says)


# Those who would be told of another level only note it.
STAND_INS = """
is_up() { [[ $1 == green ]]; }
tell_level() { echo "told $*"; }
"""


def test_a_level_is_written_down_and_told_to_the_workers_that_run(
    project: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "env"
    environment.write_text("SIGNING_SALT='keep'\nAPP_LOG_LEVEL=INFO\n")
    file = project / "deploy" / "deploy.sh"
    text = file.read_text().replace("/etc/$SLUG/env", str(environment))
    text = text.replace("ROOT=/srv/$SLUG", f"ROOT={tmp_path}").replace(
        '\nmain "$@"\n', f'\n{STAND_INS}may_read() {{ :; }}\nmain "$@"\n'
    )
    copy = project / "deploy" / "copy.sh"
    copy.write_text(text)
    try:
        for word, written, told in (
            ("--dry-run", "INFO", ""),
            ("", "WARNING", "told green WARNING"),
        ):
            command = ["bash", str(copy), "--server", *word.split(), "log-level", "WARNING"]
            done = subprocess.run(
                command, capture_output=True, text=True, env=os.environ | {"ALONE": "1"}
            )
            assert done.returncode == 0, done.stderr
            lines = dict(
                line.replace("'", "").replace('"', "").split("=", 1)
                for line in environment.read_text().splitlines()
            )
            assert lines == {"SIGNING_SALT": "keep", "APP_LOG_LEVEL": written}
            assert [
                line for line in done.stdout.splitlines() if "told " in line
            ] == told.splitlines()
    finally:
        copy.unlink()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("env")] == ["env"]


def test_the_cause_of_a_failed_start_is_said_again_after_its_lines(project: Path) -> None:
    lines = "\n".join(
        json.dumps(line)
        for line in (
            {"problem": 'is "this"', "event": "start_failed", "level": "critical"},
            {"event": "Starting gunicorn"},
        )
    )
    text = (project / "deploy" / "deploy.sh").read_text()
    (function,) = re.findall(r"^show_failure\(\) .*?^}$", text, re.MULTILINE | re.DOTALL)
    stub = f"last_lines() {{ cat <<'END'\n{lines}\nEND\n}}"
    done = subprocess.run(
        ["bash", "-euc", f"new=blue\n{stub}\n{function}\nshow_failure"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = 'deploy.sh: why it did not start: is \\"this\\"'
    assert done.stderr.splitlines()[-1] == said


@pytest.mark.parametrize(
    "line",
    [
        "OTEL_EXPORTER_OTLP_ENDPOINT='https://collector.test:4318'",
        'SENTRY_DSN="https://key@sentry.test/7"',
        "OTHER_URL=https://other.test",
        "",
    ],
)
def test_a_service_that_tells_others_gets_a_network(
    line: str, project: Path, tmp_path: Path
) -> None:
    (tmp_path / "env").write_text(f"APP_DOCS=true\n{line}\n")
    text = (project / "deploy" / "deploy.sh").read_text()
    (function,) = re.findall(r"^needs_network\(\) .*?^}$", text, re.MULTILINE | re.DOTALL)
    given = f"ENV_FILE={tmp_path}/env HERE='^/'"
    done = subprocess.run(["bash", "-uc", f"{given}; {function}; needs_network"])
    assert (done.returncode == 0) == bool(line)


@pytest.mark.parametrize(
    ("pair", "left"),
    [
        ("WORKERS=", "#WORKERS=1\nOTHER='x'\nWORKERS_MAX='3'\n"),
        ("OTHER=", "#WORKERS=1\nWORKERS='2'\nWORKERS_MAX='3'\n"),
        ("NEW=", "#WORKERS=1\nWORKERS='2'\nOTHER='x'\nWORKERS_MAX='3'\n"),
        ("WORKERS=4", "OTHER='x'\nWORKERS_MAX='3'\nWORKERS='4'\n"),
    ],
)
def test_a_variable_without_a_value_is_unset(
    pair: str, left: str, with_images: Path, tmp_path: Path
) -> None:
    file = tmp_path / "env"
    file.write_text("#WORKERS=1\nWORKERS='2'\nOTHER='x'\nWORKERS_MAX='3'\n")
    own = "sed -n '/^change_variable()/,/^}/p; /^set_variable()/,/^}/p' deploy/deploy.sh"
    shell(with_images, f'eval "$({own})"; change_variable "$1" "$2"', str(file), pair)
    assert file.read_text() == left


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("export A=b", "line 2 of /etc/x must go: `export`"),
        ("SERVER_BIND=unix:x", "line 2 of /etc/x must go"),
        ("WEB_CONCURRENCY=", "an empty WEB_CONCURRENCY is no number"),
        ("WEB_CONCURRENCY=''", "an empty WEB_CONCURRENCY is no number"),
        ('WEB_CONCURRENCY="" ', "an empty WEB_CONCURRENCY is no number"),
        ("WEB_CONCURRENCY='2'", ""),
        ("#WEB_CONCURRENCY=", ""),
    ],
)
def test_lines_that_no_release_can_mend_are_named(
    line: str, says: str, with_images: Path, tmp_path: Path
) -> None:
    file = tmp_path / "env"
    file.write_text(f"A='b'\n{line}\n")
    own = "ENV_FILE=/etc/x; eval \"$(sed -n '/^mistake_in()/,/^}/p' deploy/deploy.sh)\""
    said = shell(with_images, f'{own}; mistake_in "$1"', str(file))
    assert said.startswith("line 2 of /etc/x must go") == bool(says)
    assert says in said


@pytest.mark.parametrize(
    ("image", "commit"),
    [
        ("host:5000/team/api:1f2e3d4c5b6a", "1f2e3d4c5b6a"),
        ("team/api:1f2e3d4c@sha256:99aabbcc" + "0" * 56, "1f2e3d4c"),
        ("team/api@sha256:99aabbcc" + "0" * 56, "99aabbcc"),
        ("team/api:v1.2", "image"),
        ("api", "image"),
    ],
)
def test_a_release_is_named_after_the_commit_of_its_image(
    image: str, commit: str, with_images: Path
) -> None:
    assert shell(with_images, 'commit_in "$1"', image) == f"{commit}\n"


@pytest.mark.parametrize(
    ("least", "version", "enough"),
    [
        ("25", "25.0.0", True),
        ("25", "26.1.5+dfsg1", True),
        ("25", "24.0.9", False),
        ("25", "0", False),
        ("2.24", "v2.24.0", True),
        ("2.24", "2.9.1", False),
    ],
)
def test_an_old_engine_is_known_by_its_version(
    least: str, version: str, enough: bool, with_images: Path
) -> None:
    find = 'eval "$(grep "^at_least()" deploy/deploy.sh)"'
    says = shell(with_images, f'{find}; at_least "$1" "$2" && echo yes || echo no', least, version)
    assert says == ("yes\n" if enough else "no\n")


EXAMINED = re.compile(r"^(ok|warn|fail) +([a-z ]+): .", re.MULTILINE)


@pytest.mark.parametrize("answers", [SYSTEMD[0], DOCKER[0]], ids=row_id)
def test_the_doctor_looks_at_everything_whatever_is_broken(
    answers: Answers, template: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    project = rendered(answers, template, tmp_path_factory)
    # A program that fails, and one that never ends.
    for name, does in (("df", "echo no df today >&2; exit 3"), ("ss", "sleep 60")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = deploy(project, "--server", "doctor", PATH=path, DEPLOY_EXAMINE_S="6")
    assert done.returncode == 1
    checks = re.search(
        r"^CHECKS=\(\n(.*?)^\)", (project / "deploy/doctor.sh").read_text(), re.S | re.M
    )
    assert checks
    looked_at = [what for _, what in EXAMINED.findall(done.stdout)]
    # What only a release can find out is called by its first part.
    expected = ["settings" if one == "inside" else one for one in checks[1].split()[1:]]
    assert [what for what in looked_at if what != "engine"] == expected
    assert ("engine" in looked_at) == (answers["deployment"] == "docker")
    assert ("backups" in looked_at) == (answers["database"] != "none")
    assert ("renewal" in looked_at) == (answers["proxy"] == "nginx")
    assert "fail  disk: the check broke off: no df today\n" in done.stdout
    assert "fail  ports: no end after 6 s\n" in done.stdout
    assert "fail  slot: nothing has been released yet\n" in done.stdout
    lines = done.stdout.splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        assert below.startswith("      mend: ") or not line.startswith("fail"), line
    failed = [what for level, what in EXAMINED.findall(done.stdout) if level == "fail"]
    assert done.stderr == (
        f"deploy.sh: failed: {', '.join(failed)}\n"
        "next: mend the first of them; those after it may follow from it\n"
    )


def reported(project: Path, folder: Path, check: str, **programs: str) -> str:
    """What one check says where some programs are not what they were."""
    for name, does in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return deploy(project, "--server", "examine", check, PATH=path).stdout


OWN = "echo '1: eth0 inet 192.0.2.7/24 scope global'"


@pytest.mark.parametrize(
    ("known", "begins"),
    [
        ("echo '192.0.2.7 STREAM'", "ok    dns: orders.test is 192.0.2.7, by DNS"),
        ("echo '192.0.2.8 STREAM'", "warn  dns: orders.test is 192.0.2.8, which is no address of"),
        ("exit 2", "fail  dns: orders.test leads nowhere"),
    ],
)
def test_the_doctor_sees_where_the_name_leads(
    known: str, begins: str, with_images: Path, tmp_path: Path
) -> None:
    said = reported(with_images, tmp_path, "dns", getent=known, ip=OWN)
    assert said.startswith(begins)


def test_the_doctor_counts_errors_by_event_and_shows_the_newest(
    with_images: Path, tmp_path: Path
) -> None:
    lines = [
        '{"level": "error", "event": "Worker (pid:12) was sent SIGKILL!"}',
        '{"level": "info", "event": "request"}',
        '{"level": "critical", "event": "first \\"of\\" two"}',
        '{"level": "error", "event": "Worker (pid:99) was sent SIGKILL!"}',
    ]
    (tmp_path / "lines").write_text("".join(f"{line}\n" for line in lines))
    docker = f'case "$*" in *logs*green*) cat {tmp_path}/lines;; esac'
    said = reported(with_images, tmp_path, "errors", docker=docker).splitlines()
    assert said[0] == "warn  errors: 3 in the last 60 minutes; of each event the newest:"
    assert said[1] == f"      2 x Worker (pid:N) was sent SIGKILL!: {lines[3]}"
    assert said[2].startswith("      1 x first ")
    assert said[3].startswith("      mend: ")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is missing")
@pytest.mark.parametrize("network", EXPOSURE)
def test_the_unit_is_exposed_no_more_than_promised(
    network: str, with_units: Path, tmp_path: Path
) -> None:
    units = tmp_path / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    shutil.copy(with_units / "deploy" / "app@.service", units / f"{SLUG}@.service")
    if network == "offline":
        (units / f"{SLUG}@.service.d").mkdir()
        shutil.copy(with_units / "deploy" / "offline.conf", units / f"{SLUG}@.service.d")
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


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is missing")
def test_whoever_leads_to_the_metrics_may_do_little_else(
    project: Path, answers: Answers, tmp_path: Path
) -> None:
    units = tmp_path / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    for kind in ("service", "socket"):
        shutil.copy(project / "deploy" / f"metrics.{kind}", units / f"{SLUG}-metrics.{kind}")
    threshold = EXPOSURE_OF_METRICS[answers["deployment"]]
    done = subprocess.run(
        [
            *("systemd-analyze", "security", "--no-pager", "--offline=true"),
            *(f"--root={tmp_path}", f"--threshold={threshold}", f"{SLUG}-metrics.service"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Metrics(socketserver.StreamRequestHandler):
    """Answers with the name of the folder that its socket is in."""

    def handle(self) -> None:
        """Answer once."""
        while self.rfile.readline().strip():
            pass
        body = Path(str(self.server.server_address)).parent.name.encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)


SWITCH = """
ROOT=$1 ACTIVE=$1/live/active.sock METRICS=$1/live/metrics.sock
link_to() { echo "$1/app.sock"; }
eval "$(sed -n '/^point()/,/^}/p; /^rename_link()/,/^}/p' deploy/deploy.sh)"
point "$2"
"""


@pytest.mark.skipif(
    not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is missing"
)
def test_one_address_leads_to_the_metrics_of_the_slot_that_serves(
    with_images: Path, tmp_path: Path
) -> None:
    asked = directive(with_images / "deploy" / "metrics.socket", "ListenStream")
    assert asked == "127.0.0.1:9464", "the network may ask"
    with ExitStack() as stack:
        for slot in ("blue", "green"):
            folder = tmp_path / "live" / slot
            folder.mkdir(parents=True)
            path = str(folder / "metrics.sock")
            server = stack.enter_context(socketserver.ThreadingUnixStreamServer(path, Metrics))
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = directive(with_images / "deploy" / "metrics.service", "ExecStart")
        command = command.replace(f"/srv/{SLUG}", str(tmp_path))
        listening = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", *command.split()]
        leader = stack.enter_context(subprocess.Popen(listening, stderr=subprocess.DEVNULL))
        stack.callback(leader.terminate)

        def ask() -> str:
            url = f"http://127.0.0.1:{port}/metrics"
            done = subprocess.run(
                ["curl", "--silent", "--max-time", "5", "--retry", "20", "--retry-all-errors", url],
                capture_output=True,
                text=True,
            )
            return done.stdout

        for slot in ("blue", "green", "blue"):
            shell(with_images, SWITCH, str(tmp_path), slot)
            assert (tmp_path / "live" / "active.sock").readlink() == Path(slot, "app.sock")
            assert ask() == slot
