"""What can be said of images and containers without an engine; tests/live starts them on one."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.combinations import ROOT, Answers, files, pairwise, render, row_id

SLUG = "orders-desk"
ROWS = [row for row in pairwise() if row["deployment"] == "docker"]
BIN = Path(sys.executable).parent

# What runs inside of containers; test_deploy checks the rest.
SCRIPTS = ("deploy/certbot.sh", "deploy/nginx.sh")
APP = {"blue", "green", "migrate", "task"}
SERVERS = {"postgres", "redis"}
# What carries a capability on its file, and does not start without.
CAPABLE = {"caddy": ["NET_BIND_SERVICE"]}
SECRET = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|_KEY$|_URL$", re.IGNORECASE)
# A container may take so long until its first worker serves.
START_S = 45

# By .dockerignore: what a working copy may hold, and whether it may get into the image.
CONTEXT = {
    ".env": False,
    ".env.production": False,
    ".git/config": False,
    ".github/workflows/ci.yml": False,
    ".venv/bin/python": False,
    "README.md": False,
    "app/.env": False,
    "app/__pycache__/main.pyc": False,
    "app/main.py": True,
    "deploy/deploy.sh": False,
    "deploy/uv.txt": True,
    "dev.db": False,
    "gunicorn_conf.py": True,
    "id_ed25519": False,
    "requirements-dev.txt": False,
    "requirements.txt": True,
    "scripts/.env": False,
    "scripts/healthcheck.py": True,
    "tests/conftest.py": False,
}


@pytest.fixture(scope="module", params=ROWS, ids=row_id)
def answers(request: pytest.FixtureRequest) -> Answers:
    """The answers of a project that runs in containers."""
    given: Answers = request.param
    return given


@pytest.fixture(scope="module")
def project(answers: Answers, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that runs in containers."""
    folder = tmp_path_factory.mktemp("docker") / "project"
    return render(template, folder, project_slug=SLUG, domain="orders.test", **answers)


@pytest.fixture(scope="module")
def sound(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a service of every kind but Caddy."""
    folder = tmp_path_factory.mktemp("sound") / "project"
    return render(template, folder, project_slug=SLUG, deployment="docker", cache="redis")


# ------------------------------------------------------------- what files say


def resolved(value: Any) -> Any:
    """A part of a compose file, every variable being its default."""
    if isinstance(value, dict):
        return {name: resolved(part) for name, part in value.items()}
    if isinstance(value, list):
        return [resolved(part) for part in value]
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) if isinstance(value, str) else value


def compose(project: Path) -> dict[str, Any]:
    """The production stack."""
    loaded: dict[str, Any] = resolved(yaml.safe_load((project / "compose.yaml").read_text()))
    return loaded


def services(project: Path) -> dict[str, dict[str, Any]]:
    """The services of the production stack."""
    found: dict[str, dict[str, Any]] = compose(project)["services"]
    return found


def seconds(text: str) -> float:
    """What a time span means."""
    number, unit = re.fullmatch(r"([\d.]+)(s|m|)", text).groups()  # type: ignore[union-attr] # a test may fail so
    return float(number) * (60 if unit == "m" else 1)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each on one line, in their order."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line.strip()]


def stages(dockerfile: Path) -> list[list[tuple[str, str]]]:
    """The instructions of each stage; what comes before the first is no stage."""
    found: list[list[tuple[str, str]]] = []
    for name, rest in instructions(dockerfile):
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, rest))
    return found


def dockerfiles(project: Path) -> list[Path]:
    """The Dockerfiles of a project."""
    return [project / name for name in files(project) if name.endswith("Dockerfile")]


def health_options(dockerfile: Path) -> dict[str, str]:
    """The figures of a Dockerfile's health check."""
    check = [rest for name, rest in stages(dockerfile)[-1] if name == "HEALTHCHECK"]
    return dict(re.findall(r"--([\w-]+)=(\S+)", check[-1])) if check else {}


def setting(project: Path, name: str) -> float:
    """The default of a setting that is a number."""
    lines = dict(re.findall(r"^#?(\w+)=(.*)$", (project / ".env.example").read_text(), re.M))
    return float(lines[name])


def admitted(dockerignore: str, name: str) -> bool:
    """Whether a file gets into the context: the last pattern for it, or its folder, decides."""
    kept = True
    for line in dockerignore.splitlines():
        pattern = line.strip().removeprefix("!")
        if pattern and not pattern.startswith("#"):
            wild = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            if re.fullmatch(f"{wild}(/.*)?", name):
                kept = line.startswith("!")
    return kept


# ------------------------------------------------------------------ the checks


def unwatched(project: Path) -> Iterator[str]:
    """Services that count as up while they do not work; those that run once end with a status."""
    for name, service in services(project).items():
        health = service.get("healthcheck", {})
        if health.get("disable"):
            if service.get("restart") != "no":
                yield f"{name}: has no health check"
            continue
        if name in APP:
            figures = health_options(project / "Dockerfile")
        elif "build" in service:
            figures = health_options(project / "deploy" / service["build"]["dockerfile"])
        else:
            figures = {key.replace("_", "-"): value for key, value in health.items()}
            if figures.get("test", [""])[0] != "CMD":
                yield f"{name}: has no health check that runs without a shell"
        missing = {"interval", "timeout", "retries", "start-period", "start-interval"} - set(
            figures
        )
        if missing:
            yield f"{name}: its health check has no {', '.join(sorted(missing))}"
        elif seconds(figures["start-period"]) <= START_S:
            yield f"{name}: may not take {START_S} s to start"
        if service.get("restart") != "unless-stopped":
            yield f"{name}: does not come back after a crash or a reboot"


def unlimited(project: Path) -> Iterator[str]:
    """Services that may take the whole machine, or fill its disk with logs."""
    for name, service in services(project).items():
        for limit in ("mem_limit", "cpus", "pids_limit"):
            if not service.get(limit):
                yield f"{name}: has no {limit}"
        options = service.get("logging", {}).get("options", {})
        if not {"max-size", "max-file"} <= set(options):
            yield f"{name}: its log is not rotated"
        if "ulimits" in service:
            yield f"{name}: not every engine may raise ulimits"


def unconfined(project: Path) -> Iterator[str]:
    """Services that may do what they do not need to."""
    for name, service in services(project).items():
        if service.get("read_only") is not True:
            yield f"{name}: may write to its image"
        if service.get("cap_drop") != ["ALL"]:
            yield f"{name}: keeps capabilities"
        kind = re.split("[:/]", service["image"])[0]
        if service.get("cap_add", []) != CAPABLE.get(kind, []):
            yield f"{name}: is given capabilities"
        if service.get("security_opt") != ["no-new-privileges:true"]:
            yield f"{name}: may gain privileges"
        if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", service.get("user", "")):
            yield f"{name}: its user is no number, or root"
        for key in ("privileged", "network_mode", "pid", "ipc", "devices", "userns_mode"):
            if key in service:
                yield f"{name}: has {key}"
        if "docker.sock" in str(service):
            yield f"{name}: commands the engine"


def exposed(project: Path) -> Iterator[str]:
    """Services that more can reach, or that reach more, than they need."""
    networks = compose(project)["networks"]
    if (networks["data"] or {}).get("internal") is not True:
        yield "data: is not internal"
    for name, service in services(project).items():
        inside = name in APP | SERVERS
        if service.get("networks") != ["data" if inside else "front"]:
            yield f"{name}: is on {service.get('networks')}"
        if ("ports" in service) != (name == "proxy"):
            yield f"{name}: publishes {service.get('ports')}"


def telling(project: Path) -> Iterator[str]:
    """Secrets in variables, which everybody sees who may ask the engine."""
    for name, service in services(project).items():
        given = {**service.get("environment", {}), **service.get("build", {}).get("args", {})}
        for variable, value in given.items():
            if SECRET.search(variable.removesuffix("_FILE")) and not (
                variable.endswith("_FILE") and value.startswith("/run/secrets/")
            ):
                yield f"{name}: {variable} is a secret"
        if "env_file" in service:
            yield f"{name}: env_file makes variables of secrets"
        wanted = {"env"} if name in APP else {"postgres-password"} if name == "postgres" else set()
        held = {
            secret["source"] if isinstance(secret, dict) else secret
            for secret in service.get("secrets", [])
        }
        if held != wanted:
            yield f"{name}: is given the secrets {sorted(held)}"
    for dockerfile in dockerfiles(project):
        for name, rest in instructions(dockerfile):
            for variable in re.findall(r"(\w+)=", rest) if name in {"ENV", "ARG"} else []:
                if SECRET.search(variable):
                    yield f"{dockerfile.name}: {variable} is a secret"


def impatient(project: Path) -> Iterator[str]:
    """Whoever does not wait longer than whom it waits for."""
    drain = setting(project, "SERVER_DRAIN_S")
    for name, service in services(project).items():
        if name in {"blue", "green"} and seconds(service["stop_grace_period"]) < drain + 10:
            yield f"{name}: is killed while it drains"
        elif service["restart"] != "no" and "stop_grace_period" not in service:
            yield f"{name}: has no stop_grace_period"
    if (nginx := project / "deploy" / "nginx.conf").exists():
        shutdown = re.search(r"worker_shutdown_timeout (\w+);", nginx.read_text())
        grace = services(project)["proxy"]["stop_grace_period"]
        if shutdown is None or seconds(shutdown[1]) >= seconds(grace):
            yield "proxy: is killed while its workers stop"
    own = re.search(
        r"^TIMEOUT_S = (.+)$", (project / "scripts" / "healthcheck.py").read_text(), re.M
    )
    engines = seconds(health_options(project / "Dockerfile")["timeout"])
    if own is None or not setting(project, "APP_READY_TIMEOUT_S") < float(own[1]) < engines:
        yield "Dockerfile: the health check is cut before it can say what is wrong"


def misplaced(project: Path) -> Iterator[str]:
    """Mounts that would make folders of root's where setup did not make the right ones."""
    for name, service in services(project).items():
        for volume in service.get("volumes", []):
            if isinstance(volume, str):
                if volume.startswith((".", "/")):
                    yield f"{name}: {volume} is made if it is missing"
            elif volume["type"] == "bind" and volume.get("bind") != {"create_host_path": False}:
                yield f"{name}: {volume['source']} is made if it is missing"


def unpinnable(project: Path) -> Iterator[str]:
    """Images that nobody can pin, and names of registries."""
    for name, service in yaml.safe_load((project / "compose.yaml").read_text())["services"].items():
        if not re.fullmatch(
            rf"\$\{{[A-Z_]+:-[a-z0-9-]+:[\w.-]+\}}|{SLUG}-certbot", service["image"]
        ):
            yield f"{name}: {service['image']} cannot be replaced, or names a registry"
        if name in APP and service.get("pull_policy") != "never":
            yield f"{name}: is asked of a registry"
    for dockerfile in dockerfiles(project):
        if "syntax=" in dockerfile.read_text():
            yield f"{dockerfile.name}: its syntax wants a registry"
        for name, rest in instructions(dockerfile):
            if name == "FROM" and not re.match(r"\$\{[A-Z]+_IMAGE\}", rest):
                yield f"{dockerfile.name}: {rest} cannot be replaced"


def unlike(project: Path) -> Iterator[str]:
    """Slots that differ in more than their image and their folder."""
    blue, green = (services(project)[name] for name in ("blue", "green"))
    blue["volumes"] = str(blue["volumes"]).replace("live/blue", "live/green")
    green["volumes"] = str(green["volumes"])
    assert blue["environment"]["APP_SLOT"] == "blue"
    blue["environment"] = blue["environment"] | {"APP_SLOT": "green"}
    for key in blue.keys() | green.keys():
        if blue.get(key) != green.get(key):
            yield f"green: {key} is not blue's"
    sources = yaml.safe_load((project / "compose.yaml").read_text())["services"]
    if {name: sources[name]["image"] for name in ("blue", "green", "task")} != {
        name: f"${{{name.upper()}:-{SLUG}:latest}}" for name in ("blue", "green", "task")
    }:
        yield "blue, green, task: their images are not named by variables"


def heavy(project: Path) -> Iterator[str]:
    """What makes the image larger, slower to build or less safe than it must be."""
    *building, final = stages(project / "Dockerfile")
    for stage in building:
        copied = " ".join(rest for name, rest in stage if name == "COPY")
        if "requirements.txt" in copied and re.search(r"\b(app|scripts|migrations)\b", copied):
            yield "Dockerfile: a change of code installs dependencies again"
        for name, rest in stage:
            if name == "RUN" and " install " in rest and "--require-hashes" not in rest:
                yield f"Dockerfile: {rest} takes what it gets"
    said = dict(final)
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", said.get("USER", "")):
        yield "Dockerfile: the user is no number, or root"
    for name in ("CMD", "HEALTHCHECK"):
        if not re.search(r'^(--.* )?(CMD )?\["python", "-m", ', said.get(name, "")):
            yield f"Dockerfile: {name} runs in a shell"
    if said.get("STOPSIGNAL") != "SIGTERM":
        yield "Dockerfile: gunicorn drains at SIGTERM"
    if final[-1][0] != "LABEL" or "image.revision" not in final[-1][1]:
        yield "Dockerfile: the revision comes before what is cached"
    for name, rest in final:
        if name == "RUN" and re.search(r"\b(pip|uv|gcc|curl)\b", rest):
            yield f"Dockerfile: {rest} is for another stage"
        if name == "COPY" and not rest.startswith("--from="):
            yield f"Dockerfile: {rest} was not made readable and compiled"


def leaking(project: Path) -> Iterator[str]:
    """Files that get into the build's context, or that do not."""
    text = (project / ".dockerignore").read_text()
    context = dict(CONTEXT)
    if (project / "alembic.ini").exists():
        context |= {"alembic.ini": True, "migrations/env.py": True}
    for name, wanted in context.items():
        if admitted(text, name) != wanted:
            yield f".dockerignore: {name} is {'left out' if wanted else 'let in'}"
    for source in re.findall(r"^COPY (?!-)(.+) \S+$", (project / "Dockerfile").read_text(), re.M):
        for name in source.split():
            if not (project / name).exists():
                yield f"Dockerfile: {name} does not exist"


CHECKS = (
    unwatched, unlimited, unconfined, exposed, telling, impatient, misplaced, unpinnable, unlike,
    heavy, leaking,
)  # fmt: skip


def linted(project: Path) -> Iterator[str]:
    """What linters say of what an engine and a shell read."""
    names = files(project)
    schema = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    commands = [
        ["hadolint", *(name for name in names if name.endswith("Dockerfile"))],
        ["shellcheck", *(name for name in SCRIPTS if name in names)],
        [*schema, "compose.yaml", "compose.dev.yaml"],
    ]
    for program, *arguments in commands:
        # Caddy's projects have no scripts.
        if not arguments:
            continue
        done = subprocess.run(
            [BIN / program, *arguments], cwd=project, capture_output=True, text=True
        )
        if done.returncode:
            yield f"{program}: {done.stdout}{done.stderr}"


# ----------------------------------------------------------------- on projects


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_containers_are_what_was_promised(
    check: Callable[[Path], Iterator[str]], project: Path
) -> None:
    assert list(check(project)) == []


@pytest.mark.slow
def test_linters_find_nothing(project: Path) -> None:
    assert list(linted(project)) == []


def test_the_stack_is_what_the_answers_say(project: Path, answers: Answers) -> None:
    wanted = {"blue", "green", "task", "proxy"}
    wanted |= {"migrate"} if answers["database"] != "none" else set()
    wanted |= {"postgres"} if answers["database"] == "postgresql" else set()
    wanted |= {"redis"} if answers["cache"] == "redis" else set()
    wanted |= {"certbot"} if answers["proxy"] == "nginx" else set()
    assert set(services(project)) == wanted
    assert compose(project)["name"] == SLUG
    assert services(project)["proxy"]["image"].startswith(f"{answers['proxy']}:")
    for dockerfile in dockerfiles(project):
        python = f"PYTHON_IMAGE=python:{answers['python_version']}-slim-trixie"
        assert ("ARG", python) in instructions(dockerfile)
    waits = set(services(project)["blue"].get("depends_on", {}))
    assert waits == wanted & {"migrate", "postgres", "redis"}


def test_the_cache_keeps_nothing_as_on_a_server_without_containers(
    project: Path, answers: Answers
) -> None:
    if answers["cache"] == "none":
        assert "redis" not in services(project)
        return
    written = (ROOT / "template" / "deploy" / "redis.conf.jinja").read_text()
    command = " ".join(
        repr(word).strip("'") or '""' for word in services(project)["redis"]["command"]
    )
    for name in ("save", "appendonly", "maxmemory", "maxmemory-policy"):
        directive = re.search(rf"^{name} (.*)$", written, re.MULTILINE)
        assert directive
        assert f"--{name} {directive[1]}" in command


def test_a_developer_needs_no_file_of_a_server(project: Path) -> None:
    own = yaml.safe_load((project / "compose.dev.yaml").read_text())
    port = re.search(r"^PORT \?= (\d+)$", (project / "Makefile").read_text(), re.MULTILINE)
    assert port
    assert own["services"]["blue"]["ports"] == [f"127.0.0.1:{port[1]}:{port[1]}"]
    for name in services(project).keys() & {"blue", "migrate"}:
        development, production = own["services"][name], services(project)[name]
        replaced = {
            volume["target"] if isinstance(volume, dict) else volume.split(":")[1]
            for volume in development["volumes"]
        }
        assert {volume["target"] for volume in production["volumes"]} <= replaced
        assert development["environment"]["APP_ENVIRONMENT"] == "development"
    assert {secret["file"] for secret in resolved(own["secrets"]).values()} == {"/dev/null"}
    assert own["secrets"].keys() == compose(project)["secrets"].keys()
    assert not re.search(r"//[^/\s]*:[^/\s]*@", (project / "compose.dev.yaml").read_text())


# ------------------------------------------------------------- of the checks


@pytest.mark.parametrize(
    ("check", "name", "old", "new", "says"),
    [
        (unwatched, "compose.yaml", "[CMD, redis-cli", "[CMD-SHELL, redis-cli", "redis: has no"),
        (unwatched, "compose.yaml", "start_period: 60s", "start_period: 30s", "may not take 45"),
        (unwatched, "compose.yaml", "start_interval", "x-interval", "no start-interval"),
        (unwatched, "compose.yaml", 'restart: "no"', "restart: always", "task: has no health"),
        (unwatched, "compose.yaml", "unless-stopped", "on-failure", "blue: does not come back"),
        (unwatched, "Dockerfile", "HEALTHCHECK", "ONBUILD HEALTHCHECK", "blue: its health check"),
        (unwatched, "deploy/certbot.Dockerfile", "--retries=1", "", "certbot: its health check"),
        (
            unlimited,
            "compose.yaml",
            "  mem_limit: ${SLOT",
            "  mem_reservation: ${SLOT",
            "blue: has",
        ),
        (unlimited, "compose.yaml", "cpus: ${SLOT", "cpuset: ${SLOT", "task: has no cpus"),
        (unlimited, "compose.yaml", "pids_limit: 128", "", "proxy: has no pids_limit"),
        (unlimited, "compose.yaml", "max-size", "tag", "redis: its log"),
        (unlimited, "compose.yaml", "shm_size: 256m", "ulimits: {nofile: 9}", "raise ulimits"),
        (unconfined, "compose.yaml", "read_only: true\n  cap", "cap", "blue: may write"),
        (unconfined, "compose.yaml", "cap_drop: [ALL]", "cap_drop: [CHOWN]", "blue: keeps cap"),
        (unconfined, "compose.yaml", "pids_limit: 128", "cap_add: [CHOWN]", "proxy: is given"),
        (unconfined, "compose.yaml", "no-new-privileges:true", "label:x", "blue: may gain"),
        (unconfined, "compose.yaml", '"10002:10001"', '"0:10001"', "proxy: its user"),
        (unconfined, "compose.yaml", '"999:999"', "postgres", "postgres: its user"),
        (unconfined, "compose.yaml", "pids_limit: 128", "pid: host", "proxy: has pid"),
        (unconfined, "compose.yaml", "source: ./live\n", "source: /run/docker.sock\n", "commands"),
        (exposed, "compose.yaml", "{internal: true}", "{internal: false}", "data: is not"),
        (exposed, "compose.yaml", "networks: [front]", "networks: [front, data]", "proxy: is on"),
        (exposed, "compose.yaml", "shm_size: 256m", "ports: ['5432:5432']", "postgres: publishes"),
        (telling, "compose.yaml", "shm_size: 256m", "env_file: .env", "makes variables"),
        (telling, "compose.yaml", "_PASSWORD_FILE: /run/secrets/p", "_PASSWORD: p", "is a secret"),
        (telling, "compose.yaml", "secrets: [postgres-password]", "secrets: [env]", "is given the"),
        (telling, "Dockerfile", "ENV ", "ENV API_TOKEN=x ", "API_TOKEN is a secret"),
        (impatient, "compose.yaml", "period: 75s", "period: 30s", "blue: is killed"),
        (impatient, "compose.yaml", "period: 70s", "period: 60s", "while its workers stop"),
        (impatient, "compose.yaml", "stop_grace_period: 120s", "", "postgres: has no stop"),
        (impatient, "scripts/healthcheck.py", "TIMEOUT_S = 4", "TIMEOUT_S = 9", "is cut before"),
        (misplaced, "compose.yaml", "create_host_path: false", "propagation: slave", "blue: /var"),
        (misplaced, "compose.yaml", '["postgres:/', '["/data:/', "postgres: /data"),
        (unpinnable, "compose.yaml", "${REDIS_IMAGE:-redis:8-trixie}", "redis:8", "redis: redis:8"),
        (unpinnable, "compose.yaml", ":-nginx:", ":-example.org/nginx:", "names a registry"),
        (unpinnable, "compose.yaml", "pull_policy: never", "", "blue: is asked"),
        (unpinnable, "Dockerfile", "ARG ", "# syntax=x\nARG ", "wants a registry"),
        (unpinnable, "Dockerfile", "FROM ${PYTHON_IMAGE}", "FROM python", "python AS dep"),
        (unlike, "compose.yaml", "image: ${GREEN", "cpus: 2\n    image: ${GREEN", "green: cpus"),
        (unlike, "compose.yaml", "${TASK", "${BLUE", "are not named by"),
        (heavy, "Dockerfile", "COPY requirements.txt", "COPY app requirements.txt", "again"),
        (heavy, "Dockerfile", "--require-hashes", "--quiet", "takes what it gets"),
        (heavy, "Dockerfile", "USER 10001:10001", "USER www-data", "Dockerfile: the user"),
        (heavy, "Dockerfile", 'CMD ["python"', 'CMD exec ["python"', "CMD runs in a shell"),
        (heavy, "Dockerfile", "STOPSIGNAL SIGTERM", "STOPSIGNAL SIGINT", "drains at SIGTERM"),
        (heavy, "Dockerfile", "image.revision", "image.version", "the revision comes"),
        (heavy, "Dockerfile", "RUN install", "RUN uv install", "for another stage"),
        (heavy, "Dockerfile", "COPY --from=code /app", "COPY .", "was not made readable"),
        (leaking, ".dockerignore", "*\n!app", "!app", "README.md is let in"),
        (leaking, ".dockerignore", "**/.env*", "", "app/.env is let in"),
        (leaking, ".dockerignore", "!scripts", "!script", "scripts/healthcheck.py is left out"),
        (leaking, "Dockerfile", "COPY alembic.ini", "COPY alembic.toml", "does not exist"),
        (linted, "Dockerfile", " --no-install-recommends", "", "hadolint: "),
        (linted, "deploy/nginx.sh", '"$found"', "$found", "shellcheck: "),
        (linted, "compose.yaml", "read_only: true", "readonly: true", "check-jsonschema: "),
    ],
)
def test_each_check_finds_its_fault(
    check: Callable[[Path], Iterator[str]],
    name: str,
    old: str,
    new: str,
    says: str,
    sound: Path,
    tmp_path: Path,
) -> None:
    broken = shutil.copytree(sound, tmp_path / "project")
    text = (broken / name).read_text()
    assert old in text
    assert says not in "\n".join(check(broken))
    (broken / name).write_text(text.replace(old, new))
    assert says in "\n".join(check(broken))
