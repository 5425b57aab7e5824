"""Every combination of the choices renders a project that is whole, tidy and about its answers."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from pytest_copie.plugin import Copie

from tests.checks import hollow, jinja_left, ruff_findings, unparsable, untidy
from tests.combinations import Answers, choices, combinations, files, pairwise, questions, row_id

# Which files a project has: those of every row whose answers it gave.
FILES: list[tuple[dict[str, set[str]], str]] = [
    (
        {},
        """
        .copier-answers.yml .editorconfig .env.example .gitignore .pre-commit-config.yaml
        .python-version Makefile README.md gunicorn_conf.py pyproject.toml requirements-dev.txt
        requirements.txt
        app/__init__.py app/access.py app/clients.py app/crashes.py app/docs.py app/errors.py
        app/exchange.py app/health.py app/levels.py app/limits.py app/logs.py app/main.py
        app/metrics.py app/middleware.py app/sentry.py app/server.py app/settings.py
        app/spans.py app/start.py app/static.py app/tracing.py app/worker.py
        app/rates/__init__.py app/rates/client.py app/rates/routes.py app/rates/schemas.py
        ops/grafana/dashboard.json ops/logs.md ops/prometheus/alerts.yml
        ops/prometheus/alerts_test.yml ops/prometheus/scrape.yml ops/runbook.md
        scripts/doctor.py scripts/document_settings.py scripts/findings.py scripts/preflight.py
        static/favicon.svg
        tests/conftest.py tests/peer.py tests/rates/test_routes.py tests/slow_app.py
        tests/test_clients.py tests/test_docs.py tests/test_doctor.py
        tests/test_errors.py tests/test_exchange.py
        tests/test_gunicorn.py tests/test_health.py tests/test_levels.py tests/test_limits.py
        tests/test_logs.py tests/test_main.py tests/test_metrics.py tests/test_middleware.py
        tests/test_openapi.py tests/test_server.py tests/test_settings.py tests/test_start.py
        tests/test_static.py tests/test_tracing.py
        """,
    ),
    (
        {"database": {"postgresql", "sqlite"}},
        """
        alembic.ini app/db.py app/migrate.py
        app/idempotency/__init__.py app/idempotency/models.py app/idempotency/once.py
        app/items/__init__.py app/items/dependencies.py app/items/models.py app/items/queries.py
        app/items/routes.py app/items/schemas.py
        migrations/env.py migrations/script.py.mako migrations/versions/0001_items.py
        scripts/backup.py scripts/doctor_db.py
        tests/fixtures/db.py tests/idempotency/test_once.py tests/items/test_routes.py
        tests/test_backup.py tests/test_db.py
        tests/test_doctor_db.py tests/test_migrations.py
        """,
    ),
    (
        {"database": {"postgresql"}},
        """
        app/postgresql.py scripts/backup_postgresql.py scripts/beside.py
        scripts/doctor_postgresql.py scripts/postgresql.py
        tests/fixtures/postgresql.py
        tests/test_backup_postgresql.py tests/test_doctor_postgresql.py tests/test_postgresql.py
        """,
    ),
    (
        {"database": {"sqlite"}},
        "app/sqlite.py scripts/backup_sqlite.py scripts/doctor_sqlite.py tests/fixtures/sqlite.py "
        "tests/test_backup_sqlite.py tests/test_doctor_sqlite.py tests/test_sqlite.py",
    ),
    (
        {"database": {"none"}},
        """
        app/ibans/__init__.py app/ibans/checks.py app/ibans/routes.py app/ibans/schemas.py
        tests/ibans/test_routes.py
        """,
    ),
    (
        {"cache": {"redis"}},
        """
        app/cache.py app/cached.py app/counters.py scripts/beside.py scripts/doctor_cache.py
        scripts/redis.py tests/fixtures/redis.py tests/test_cache.py tests/test_cached.py
        tests/test_counters.py tests/test_doctor_cache.py
        """,
    ),
    (
        {"database": {"postgresql", "sqlite"}, "cache": {"redis"}},
        "app/items/cached.py tests/items/test_cached_items.py",
    ),
    (
        {},
        """
        deploy/app.service deploy/deploy.sh deploy/doctor.sh deploy/metrics.service
        deploy/metrics.socket
        deploy/smoke.txt deploy/trusted-proxies.txt deploy/uv.txt
        """,
    ),
    ({"database": {"postgresql", "sqlite"}}, "deploy/backup.service deploy/backup.timer"),
    (
        {"proxy": {"nginx"}},
        """
        deploy/nginx-default-http.conf deploy/nginx-default-https.conf
        deploy/nginx-http.conf deploy/nginx-https.conf
        """,
    ),
    ({"proxy": {"caddy"}}, "deploy/Caddyfile deploy/site.caddy"),
    (
        {"deployment": {"systemd"}},
        "deploy/app@.service deploy/journald.conf deploy/offline.conf deploy/systemd.sh",
    ),
    ({"deployment": {"systemd"}, "cache": {"redis"}}, "deploy/redis.conf"),
    (
        {"deployment": {"docker"}},
        """
        .dockerignore Dockerfile compose.dev.yaml compose.yaml deploy/docker.sh
        deploy/ipv6.yaml deploy/outbound.yaml scripts/healthcheck.py tests/test_healthcheck.py
        """,
    ),
    (
        {"deployment": {"docker"}, "proxy": {"nginx"}},
        """
        deploy/certbot.Dockerfile deploy/certbot.sh deploy/certbot.txt deploy/nginx.conf
        deploy/nginx.sh
        """,
    ),
    ({"ci": {"github"}}, ".github/workflows/ci.yml"),
    ({"ci": {"gitlab"}}, ".gitlab-ci.yml"),
]

EXECUTABLE = {"deploy/deploy.sh"}

# Words that may stand only in a project that gave one of these answers.
WORDS: list[tuple[str, set[str], str]] = [
    ("database", {"postgresql"}, r"postgres|asyncpg|psql|pgserver|\bpg_"),
    ("database", {"sqlite"}, r"sqlite"),
    (
        "database",
        {"postgresql", "sqlite"},
        r"database|alembic|sqlalchemy|migrat|greenlet|\bsql\b|\bdb\b",
    ),
    ("proxy", {"nginx"}, r"nginx"),
    ("proxy", {"caddy"}, r"caddy"),
    ("deployment", {"docker"}, r"docker|\bcompose\b|container image"),
    ("deployment", {"systemd"}, r"systemd|systemctl|journald|journalctl"),
    ("cache", {"redis"}, r"redis|valkey"),
    ("ci", {"github"}, r"github"),
    ("ci", {"gitlab"}, r"gitlab"),
]

# Names every question.
ANSWERS_FILE = ".copier-answers.yml"

# A server's own timers and units, whatever runs the service.
HOST = re.compile(r"systemd|systemctl")


def expected(answers: Answers) -> set[str]:
    """The files that a project with these answers has."""
    return {
        name
        for condition, names in FILES
        if all(answers[question] in values for question, values in condition.items())
        for name in names.split()
    }


@cache
def mentions(words: str, text: str) -> list[tuple[int, str, str]]:
    """Where words are in a text: number, word and line; most files are alike in many projects."""
    sought = re.compile(words, re.IGNORECASE)
    return [
        (number, found[0], line)
        for number, line in enumerate(text.splitlines())
        # Hashes are most of what the pins say, and no words.
        if "--hash=" not in line and (found := sought.search(line))
    ]


def misplaced_words(project: Path, answers: Answers) -> Iterator[str]:
    """Names and lines that mention an answer that was not given."""
    banned = [
        (question, words)
        for question, values, words in WORDS
        if question in answers and answers[question] not in values
    ]
    for name, path in files(project).items():
        if name == ANSWERS_FILE:
            continue
        text = f"{name}\n{path.read_text()}"
        for question, words in banned:
            for number, word, line in mentions(words, text):
                if not (name.startswith("deploy/") and HOST.fullmatch(word)):
                    chosen = f"{question} is {answers[question]}"
                    yield f"{name}:{number}: {word!r}, but {chosen}: {line}"


def test_every_combination_renders_a_whole_project(
    copie: Copie, template: Path, combination: Answers
) -> None:
    assert set(combination) <= set(questions())
    result = copie.copy(combination, template_dir=template)
    assert result.exception is None
    assert result.exit_code == 0
    assert result.project_dir is not None
    project = result.project_dir
    assert {name: result.answers[name] for name in combination} == combination

    names = set(files(project))
    found = [
        *(f"{name}: is missing" for name in sorted(expected(combination) - names)),
        *(f"{name}: should not be here" for name in sorted(names - expected(combination))),
        *hollow(project),
        *jinja_left(project),
        *untidy(project),
        *unparsable(project),
        *ruff_findings(project),
        *misplaced_words(project, combination),
    ]
    executable = {name for name, path in files(project).items() if path.stat().st_mode & 0o111}
    if executable != EXECUTABLE & names:
        found.append(f"executable are {executable}, should be {EXECUTABLE & names}")
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def test_every_choice_has_words_that_betray_it() -> None:
    # A version of Python is looked for by the contract, "none" has nothing to betray.
    wanted = {
        (question, value)
        for question, values in choices().items()
        for value in values
        if question != "python_version" and value != "none"
    }
    named = {(question, value) for question, values, _ in WORDS for value in values}
    assert named == wanted


def test_the_quick_rows_bring_every_two_choices_together() -> None:
    rows = pairwise()
    offered = choices()
    apart = [
        (first, one, second, other)
        for first in offered
        for second in offered
        if first < second
        for one in offered[first]
        for other in offered[second]
        if not any(row[first] == one and row[second] == other for row in rows)
    ]
    assert not apart
    assert len(rows) <= 15


def test_every_row_has_a_name_of_its_own() -> None:
    names = [row_id(row) for row in combinations()]
    assert len(set(names)) == len(names)
    assert row_id({"database": "postgresql", "cache": "redis"}) == "postgresql-redis"


@pytest.mark.parametrize(
    ("check", "name", "text", "says"),
    [
        (hollow, "app/x.py", "\n", "empty file"),
        (jinja_left, "x", "a {{ b }}", "x:1"),
        (jinja_left, "x", "a {% if b %}", "x:1"),
        (jinja_left, "x", "a #}", "x:1"),
        (jinja_left, "{{ x }}.md", "a", "{{ x }}.md:0"),
        (untidy, "x.py", "a = 1", "one line feed"),
        (untidy, "x.py", "a = 1\n\n", "one line feed"),
        (untidy, "x.py", "\na = 1\n", "begin with text"),
        (untidy, "x.py", "a = 1 \nb = 1\n", "x.py:1: ends in a blank"),
        (untidy, "x.py", "a = 1\n\n\n\nb = 1\n", "3 empty lines"),
        (untidy, "x.toml", "a = 1\n\n\nb = 1\n", "2 empty lines"),
        (unparsable, "x.py", "a =\n", "x.py"),
        (unparsable, "x.toml", "a =\n", "x.toml"),
        (unparsable, "x.yml", "a: b: c\n", "x.yml"),
        (unparsable, "x.yaml", "a: b: c\n", "x.yaml"),
        (unparsable, "x.json", "{\n", "x.json"),
        (ruff_findings, "x.py", "import os\n", "F401"),
        (ruff_findings, "x.py", "a = ''\n", "ruff format"),
    ],
)
def test_each_check_finds_its_fault(
    check: object, name: str, text: str, says: str, tmp_path: Path
) -> None:
    assert callable(check)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    assert says in "\n".join(check(tmp_path))


def test_an_empty_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty: an empty folder" in "\n".join(hollow(tmp_path))


def test_a_sound_project_has_no_faults(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("a = {1: {2: 3}}\n\n\nb = 2\n")
    (tmp_path / "ci.yml").write_text("a: ${{ b }}\n")
    for check in (hollow, jinja_left, untidy, unparsable, ruff_findings):
        assert list(check(tmp_path)) == []


def test_a_word_of_another_answer_is_found(tmp_path: Path) -> None:
    (tmp_path / "Caddyfile").write_text("# Redis\n")
    (tmp_path / ".copier-answers.yml").write_text("cache: redis\n")
    given = {"proxy": "nginx", "cache": "none", "database": "none"}
    found = "\n".join(misplaced_words(tmp_path, given))
    assert "Caddyfile:0: 'Caddy', but proxy is nginx" in found
    assert "Caddyfile:1: 'Redis', but cache is none" in found
    assert len(found.splitlines()) == 2
    assert not list(misplaced_words(tmp_path, {"proxy": "caddy", "cache": "redis"}))
