"""Names, ports, paths and variables agree over all files of a project."""

import ast
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.combinations import Answers, choices, files, pairwise, render, row_id

OWN = {
    "project_name": "Order Desk",
    "project_slug": "orders-desk",
    "description": "Takes orders.",
    "domain": "orders.example.org",
    "email": "tls@example.org",
}

CI = [".github/workflows/ci.yml", ".gitlab-ci.yml"]
# Which libraries read.
FOREIGN_VARIABLES = {"OTEL_SEMCONV_STABILITY_OPT_IN"}
FOREIGN_PORTS = {"2019", "5432", "6379", "9464"}
# What a name without a folder may end in and be meant as a file of the project.
FILE = re.compile(r"\.?[\w*-]+\.(?:conf|ini|md|py|sh|toml|txt|ya?ml)|Dockerfile|\.dockerignore")
REGISTRY = re.compile(r"\b((?:docker|ghcr|gcr|quay)\.io|registry\.gitlab\.com)/")


@pytest.fixture(scope="module", params=pairwise(), ids=row_id)
def answers(request: pytest.FixtureRequest) -> Answers:
    """The answers of a project; every two choices meet in some of them."""
    given: Answers = request.param
    return given


@pytest.fixture(scope="module")
def project(answers: Answers, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with no default answer to a free text."""
    return render(template, tmp_path_factory.mktemp("contract") / "project", **OWN, **answers)


@pytest.fixture(scope="module")
def sound(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the default choices."""
    return render(template, tmp_path_factory.mktemp("sound") / "project", **OWN)


@pytest.fixture
def broken(sound: Path, tmp_path: Path) -> Path:
    """A copy of a sound project, for a test to break."""
    return shutil.copytree(sound, tmp_path / "project")


# ------------------------------------------------------------- what files say


def constants(code: str) -> set[str]:
    """The strings in Python code."""
    return {
        node.value
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def settings_variables(project: Path) -> set[str]:
    """The variables that the settings classes read, found without importing them."""
    found = set()
    for path in (project / "app").rglob("*.py"):
        for group in ast.walk(ast.parse(path.read_text())):
            if not isinstance(group, ast.ClassDef):
                continue
            bases = [ast.unparse(base) for base in group.bases]
            if not any("Settings" in base for base in bases):
                continue
            prefix = re.search(r"env_prefix='(\w+)'", ast.unparse(group))
            for field in group.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    alias = re.search(r"validation_alias='(\w+)'", ast.unparse(field))
                    if field.target.id != "model_config":
                        name = f"{prefix[1] if prefix else ''}{field.target.id}".upper()
                        found.add(alias[1] if alias else name)
    return found


def example_variables(project: Path) -> set[str]:
    """The variables that .env.example offers."""
    text = (project / ".env.example").read_text()
    return set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", text, re.MULTILINE))


def mentioned_variables(text: str, settings: Iterable[str]) -> set[str]:
    """The variables in a text that look like the app's own."""
    prefixes = "|".join(sorted({name.split("_")[0] for name in settings}))
    return set(re.findall(rf"\b(?:{prefixes})_[A-Z0-9][A-Z0-9_]*\b", text))


def make_targets(project: Path) -> set[str]:
    """The targets of the Makefile that are meant to be typed."""
    return set(re.findall(r"^([a-z][a-z-]*):", (project / "Makefile").read_text(), re.MULTILINE))


def commands(text: str) -> Iterator[str]:
    """Every call of make in code spans, in indented or fenced lines, and in CI steps."""
    yield from re.findall(r"`(make\b[^`\n]*)`", text.replace("\\`", "`"))
    yield from re.findall(r"^(?:#? {2,}|- |)(?:- |run: |- run: )?(make .*)$", text, re.MULTILINE)


def called_targets(text: str) -> set[str]:
    """The targets that a text tells to make."""
    found = set()
    for command in commands(text):
        for word in shlex.split(command, comments=True)[1:]:
            if word in {"&&", "|", ";"}:
                break
            if "=" not in word and not word.startswith("-"):
                found.add(word)
    return found


def code_spans(markdown: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```$", "", markdown))


# ------------------------------------------------------------------- the checks


def variables_disagree(project: Path) -> Iterator[str]:
    """Variables that nothing reads, or that nobody is told of."""
    settings = settings_variables(project)
    readme = (project / "README.md").read_text().partition("<!-- settings: end -->")[0]
    table = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", readme, re.MULTILINE))
    for name, listed in ((".env.example", example_variables(project)), ("README.md", table)):
        yield from (f"{name}: {variable} is read by nothing" for variable in listed - settings)
        yield from (f"{name}: {variable} is not listed" for variable in settings - listed)
    composes_own = {
        variable
        for path in project.glob("compose*.yaml")
        for variable in re.findall(r"\$\{(\w+)", path.read_text())
    }
    for name, path in files(project).items():
        if name.startswith("tests/"):
            continue
        text = path.read_text()
        if path.suffix == ".py":
            text = "\n".join(constants(text))
        known = settings | composes_own | FOREIGN_VARIABLES
        for variable in mentioned_variables(text, settings) - known:
            yield f"{name}: {variable} is read by nothing"
    if not settings:
        yield "no settings were found"


def ci_disagrees(project: Path) -> Iterator[str]:
    """Variables that CI sets for tests which do not read them, or does not set."""
    given = {
        variable
        for name in CI
        if (project / name).exists()
        for variable in re.findall(r"\bTEST_[A-Z0-9_]+\b", (project / name).read_text())
    }
    read = {
        variable
        for name, path in files(project).items()
        if name.startswith("tests/") and path.suffix == ".py"
        for variable in constants(path.read_text())
        if re.fullmatch(r"TEST_[A-Z0-9_]+", variable)
    }
    yield from (f"{variable} is read by no test" for variable in given - read)
    if any((project / name).exists() for name in CI):
        yield from (f"{variable} is not given by CI" for variable in read - given)


def targets_disagree(project: Path) -> Iterator[str]:
    """Calls of make for what the Makefile has not."""
    targets = make_targets(project)
    makefile = (project / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE))
    helped = set(re.findall(r"^([a-z][a-z-]*):.*## ", makefile, re.MULTILINE))
    for name, found in ((".PHONY", phony), ("help", helped)):
        if found != targets:
            yield f"Makefile: {name} and the targets differ: {sorted(found ^ targets)}"
    for name, path in files(project).items():
        for target in called_targets(path.read_text()) - targets:
            yield f"{name}: make has no target {target}"
    if not {"test", "dev"} <= called_targets((project / "README.md").read_text()):
        yield "README.md: no calls of make were found"
    for name in CI:
        if (project / name).exists():
            called = called_targets((project / name).read_text())
            yield from (f"{name}: does not run make {job}" for job in {"lint", "test"} - called)


def paths_disagree(project: Path) -> Iterator[str]:
    """Files, modules and addresses that are mentioned and do not exist."""
    tops = "|".join(
        sorted(re.escape(path.name) for path in project.iterdir() if path.name != ".git")
    )
    for name in ["README.md", "Makefile", "pyproject.toml", ".pre-commit-config.yaml", *CI]:
        if not (project / name).exists():
            continue
        text = (project / name).read_text()
        for path in re.findall(rf"(?<![\w./-])((?:{tops})/[\w./*@-]*)", text):
            # The README's own example of a domain to come.
            if "orders" not in path and not list(project.glob(path.rstrip("/.*") or ".")):
                yield f"{name}: {path} does not exist"
        named = re.findall(r"-m (\w+(?:\.\w+)+)()|\b(app(?:\.\w+)+):(\w+)", text)
        for module, attribute in (max(parts[:2], parts[2:]) for parts in named):
            source = project / f"{module.replace('.', '/')}.py"
            if not source.exists():
                yield f"{name}: there is no module {module}"
            elif attribute and f"def {attribute}(" not in source.read_text():
                yield f"{name}: {module} has no {attribute}"
    for span in code_spans((project / "README.md").read_text()):
        if FILE.fullmatch(span) and not list(project.rglob(span)):
            yield f"README.md: there is no file {span}"
    served = {
        text
        for path in (project / "app").rglob("*.py")
        for text in constants(path.read_text())
        if text.startswith("/")
    }
    served |= {first + second for first in served for second in served}
    spans = code_spans((project / "README.md").read_text())
    on_servers = ("/etc/", "/srv/", "/usr/", "/var/")
    mentioned = [span for span in spans if span[0] == "/" and not span.startswith(on_servers)]
    yield from (f"README.md: {path} is not served" for path in set(mentioned) - served)
    if "/health" not in mentioned:
        yield "README.md: no path was found"


def ci_settings_disagree(project: Path) -> Iterator[str]:
    """What a pipeline takes from its service's settings, against what the README says of them."""
    readme = (project / "README.md").read_text()
    (_, _, chapter) = readme.partition("\n### Releases by CI\n")
    rows = re.findall(r"^\| (`.*?) \|", chapter, re.MULTILINE)
    told = {name for row in rows for name in code_spans(row)}
    read = set()
    for name in CI:
        if (project / name).exists():
            text = (project / name).read_text()
            read |= set(re.findall(r"\b(?:vars|secrets)\.([A-Z_]+)", text))
            given = set(re.findall(r"^ +(DEPLOY_\w+): |export (DEPLOY_\w+)=", text, re.MULTILINE))
            asked = set(re.findall(r"\$(DEPLOY_\w+)", text))
            read |= asked - {variable for pair in given for variable in pair}
    yield from (f"README.md: {name} is taken by no pipeline" for name in told - read)
    yield from (f"README.md: {name} is not explained" for name in read - told)


def registries_named(project: Path) -> Iterator[str]:
    """Names of registries: an image has none, so that the engine's own settings decide."""
    for name, path in files(project).items():
        for found in REGISTRY.findall(path.read_text()):
            yield f"{name}: names the registry {found}"


def messages_disagree(project: Path) -> Iterator[str]:
    """What the README explains as a message of deploy.sh, and deploy.sh does not say."""
    scripts = "".join(path.read_text() for path in (project / "deploy").glob("*.sh"))
    # A name of a service or an answer is put in when it is said.
    said = re.sub(r"\$\{?\w+\}?|\$\(\([^)]*\)\)", "...", scripts)
    tables = re.findall(
        r"^\| When `(?:setup|release)` says .*\n((?:\|.*\n)+)",
        (project / "README.md").read_text(),
        re.M,
    )
    rows = [row for table in tables for row in re.findall(r"^\| `(.*?)`", table, re.MULTILINE)]
    if len(rows) < 10:
        yield "README.md: no messages were found"
    for row in rows:
        plain = re.sub(rf"https://{re.escape(OWN['domain'])}", "https://...", row)
        plain = re.sub(rf"{re.escape(OWN['domain'])}|\b503\b|\b3\.\d\d\b|^proxy\b", "...", plain)
        parts = [part for part in plain.split("...") if part.strip()]
        if not all(part in said for part in parts):
            yield f"README.md: deploy.sh does not say {row!r}"


def ports_disagree(project: Path) -> Iterator[str]:
    """Addresses on this machine with another port than the Makefile's, or a service's usual one."""
    port = re.search(r"^PORT \?= (\d+)$", (project / "Makefile").read_text(), re.MULTILINE)
    if port is None:
        yield "Makefile: has no PORT"
        return
    for name, path in files(project).items():
        if not name.startswith("tests/"):
            for found in re.findall(r"\b(?:localhost|127\.0\.0\.1):(\d+)", path.read_text()):
                if found not in {port[1], *FOREIGN_PORTS}:
                    yield f"{name}: port {found} is not {port[1]}"


def versions_disagree(project: Path, python_version: str) -> Iterator[str]:
    """Versions of Python that differ from the one deployed, or from the range that is supported."""
    if (project / ".python-version").read_text() != f"{python_version}\n":
        yield ".python-version: is not the answer"
    settings = tomllib.loads((project / "pyproject.toml").read_text())
    supported = settings["project"]["requires-python"]
    lowest, beyond = re.findall(r"3\.(\d+)", supported)
    if not int(lowest) <= int(python_version.removeprefix("3.")) < int(beyond):
        yield f"pyproject.toml: {python_version} is not within {supported}"
    if settings["tool"]["ruff"]["target-version"] != f"py3{lowest}":
        yield "pyproject.toml: ruff checks for another version"
    makefile = (project / "Makefile").read_text()
    for part in (supported, f"--python-version 3.{lowest}", "cat .python-version"):
        if part not in makefile:
            yield f"Makefile: has no {part}"
    readme = (project / "README.md").read_text()
    for part in (python_version, f"3.{lowest} to 3.{int(beyond) - 1}"):
        if part not in readme:
            yield f"README.md: does not name {part}"
    for name in CI:
        if (project / name).exists():
            text = (project / name).read_text()
            if python_version not in text and ".python-version" not in text:
                yield f"{name}: runs another Python than {python_version}"
            for other in set(re.findall(r"\b3\.\d\d\b", text)) - {python_version}:
                yield f"{name}: names Python {other}"


def answers_missing(project: Path) -> Iterator[str]:
    """Places that should hold an answer and do not; defaults that were not the answer."""
    holds = {
        ".env.example": [f"\nAPP_ALLOWED_HOSTS={OWN['domain']}\n"],
        "README.md": [OWN["project_name"], OWN["description"], OWN["domain"], OWN["email"]],
        "pyproject.toml": [f'\nname = "{OWN["project_slug"]}"\n', OWN["description"]],
        "app/main.py": [f'title="{OWN["project_name"]}"', OWN["description"]],
    }
    for name, parts in holds.items():
        text = (project / name).read_text()
        yield from (f"{name}: does not hold {part!r}" for part in parts if part not in text)
    default = re.compile(r"api\.example\.com|admin@|\bmy-api\b|\bMy API\b|\bAn HTTP API\b")
    for name, path in files(project).items():
        found = default.search(path.read_text())
        if found and not name.startswith("tests/"):
            yield f"{name}: holds the default {found[0]!r}"


CHECKS: list[Callable[[Path], Iterator[str]]] = [
    variables_disagree,
    ci_disagrees,
    targets_disagree,
    paths_disagree,
    ci_settings_disagree,
    registries_named,
    messages_disagree,
    ports_disagree,
    answers_missing,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_files_agree(check: Callable[[Path], Iterator[str]], project: Path) -> None:
    assert list(check(project)) == []


def test_versions_of_python_agree(project: Path, answers: Answers) -> None:
    assert list(versions_disagree(project, answers["python_version"])) == []


# -------------------------------------------------- each check finds its fault


@pytest.mark.parametrize(
    ("check", "name", "old", "new", "says"),
    [
        (variables_disagree, ".env.example", "APP_DOCS", "APP_DOCX", "APP_DOCX is read by nothing"),
        (variables_disagree, ".env.example", "APP_DOCS", "APP_DOCX", "APP_DOCS is not listed"),
        (variables_disagree, "README.md", "| `APP_DOCS`", "| `X_DOCS`", "APP_DOCS is not listed"),
        (variables_disagree, "README.md", "# ", "# `SERVER_DRAIN`\n", "SERVER_DRAIN is read by"),
        (variables_disagree, "Makefile", "APP_LOG_FORMAT", "APP_LOGS", "APP_LOGS is read by"),
        (variables_disagree, "gunicorn_conf.py", '"NOTIFY_', '"APP_X" "NOTIFY_', "APP_XNOTIFY"),
        (variables_disagree, "app/settings.py", "    log_level:", "    log_new:", "APP_LOG_NEW"),
        (ci_disagrees, CI[0], "TEST_DATABASE_URL", "TEST_DB", "TEST_DB is read by no"),
        (ci_disagrees, CI[0], "TEST_DATABASE_URL", "X", "is not given by CI"),
        (targets_disagree, "README.md", "`make lint`", "`make linz`", "no target linz"),
        (targets_disagree, "README.md", "make dev", "make dew", "no target dew"),
        (targets_disagree, "Makefile", "\naudit:", "\naudits:", "Makefile: .PHONY and the"),
        (targets_disagree, "Makefile", "audit: ## ", "audit: # ", "Makefile: help and the"),
        (targets_disagree, CI[0], "make test", "make tests", "does not run make test"),
        (paths_disagree, "README.md", "`app/items/`", "`app/itemz/`", "app/itemz/ does not exist"),
        (paths_disagree, "Makefile", "scripts.", "scripts.x", "no module scripts.x"),
        (paths_disagree, "Makefile", "app.migrate", "app.migrated", "no module app.migrated"),
        (paths_disagree, "Makefile", "app.main:create_app", "app.main:make", "has no make"),
        (paths_disagree, "README.md", "`/health`", "`/healthz`", "/healthz is not served"),
        (paths_disagree, "README.md", "`Dockerfile`", "`Dockerfiles.txt`", "no file Dockerfiles"),
        (paths_disagree, "README.md", "`compose.yaml`", "`compose.yml`", "no file compose.yml"),
        (ci_settings_disagree, "README.md", "`RUNNER`", "`RUNS`", "RUNS is taken by no pipeline"),
        (ci_settings_disagree, "README.md", "`RUNNER`", "`RUNS`", "RUNNER is not explained"),
        (registries_named, "Dockerfile", "ARG ", "# ghcr.io/x\nARG ", "names the registry ghcr.io"),
        (messages_disagree, "README.md", "MB are free", "MB are left", "'only ... MB are left'"),
        (messages_disagree, "README.md", "image could not", "image can not", "image can not be"),
        (ports_disagree, "README.md", "127.0.0.1:8000", "127.0.0.1:8080", "port 8080"),
        (ports_disagree, "Makefile", "PORT ?= 8000", "PORT ?= 9000", "port 8000 is not 9000"),
        (answers_missing, ".env.example", "orders.example.org", "x.example.org", ".env.example"),
        (answers_missing, "README.md", "tls@example.org", "admin@example.org", "default 'admin@'"),
        (answers_missing, "pyproject.toml", "orders-desk", "my-api", "default 'my-api'"),
    ],
)
def test_each_check_finds_its_fault(
    check: Callable[[Path], Iterator[str]], name: str, old: str, new: str, says: str, broken: Path
) -> None:
    assert says not in "\n".join(check(broken))
    text = (broken / name).read_text()
    assert old in text
    (broken / name).write_text(text.replace(old, new))
    assert says in "\n".join(check(broken))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (".python-version", "3.13", "3.12"),
        ("pyproject.toml", "<3.15", "<3.13"),
        ("pyproject.toml", "py311", "py312"),
        ("Makefile", "<3.15", "<3.14"),
        ("Makefile", "--python-version 3.11", "--python-version 3.12"),
        ("README.md", "3.11 to 3.14", "3.11 to 3.13"),
        (CI[0], ".python-version", "python-version"),
        (CI[0], ".python-version", ".python-version # 3.10"),
    ],
)
def test_another_version_of_python_is_found(name: str, old: str, new: str, broken: Path) -> None:
    deployed = choices()["python_version"][0]
    assert not list(versions_disagree(broken, deployed))
    text = (broken / name).read_text()
    assert old in text
    (broken / name).write_text(text.replace(old, new))
    assert name in "\n".join(versions_disagree(broken, deployed))
