"""Bad answers are refused before anything is written; free text survives as it was typed."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import copier
import pexpect
import pytest
import yaml
from copier._cli import CopierApp
from copier._user_data import AnswersMap, Question

from tests.checks import ruff_findings, unparsable
from tests.combinations import (
    choices,
    commit,
    environment,
    git,
    questions,
    render,
    snapshot,
)

COPIER = Path(sys.executable).with_name("copier")

LABEL = "a" * 63
LONGEST_HOST = ".".join([LABEL, LABEL, LABEL, "a" * 61])

# question, answer, what is wrong with it, what would be right
BAD = [
    ("domain", "", "no dot", "api.example.com"),
    ("domain", "https://api.example.com", "scheme", "api.example.com"),
    ("domain", "api.example.com/v1", "path", "api.example.com"),
    ("domain", "api.example.com:8443", "port", "api.example.com"),
    ("domain", "*.example.com", "wildcard", "api.example.com"),
    ("domain", "my_api.example.com", "underscore", "my-api.example.com"),
    ("domain", "api.example.com.", "ends with a dot", "api.example.com"),
    ("domain", "localhost", "no dot", "api.example.com"),
    ("domain", "192.0.2.1", "IP address", "api.example.com"),
    ("domain", "2001:db8::1", "IPv6", "api.example.com"),
    ("domain", "[2001:db8::1]", "IPv6", "api.example.com"),
    ("domain", "api.42", "ends in a number", "api.example.com"),
    ("domain", "API.Example.com", "upper-case", "Write api.example.com"),
    ("domain", "bücher.example", "outside ASCII", "xn--bcher-kva.example"),
    ("domain", f"a{LABEL}.example", "too long", "api.example.com"),
    ("domain", f"a{LONGEST_HOST}", "too long", "api.example.com"),
    ("domain", "-api.example.com", "not a host name", "api.example.com"),
    ("domain", "api-.example.com", "not a host name", "api.example.com"),
    ("domain", "api..example.com", "not a host name", "api.example.com"),
    ("domain", ".example.com", "not a host name", "api.example.com"),
    ("domain", " api.example.com", "not a host name", "api.example.com"),
    ("domain", "me@example.com", "not a host name", "api.example.com"),
    ("domain", "api.example.com\n", "not a host name", "api.example.com"),
    ("domain", "api.exa\x00mple.com", "not a host name", "api.example.com"),
    ("domain", "api.example.com; rm -r x", "not a host name", "api.example.com"),
    ("domain", "{{ 7 }}.example.com", "not a host name", "api.example.com"),
    ("project_slug", "", "begin with a letter", "my-api"),
    ("project_slug", "x", "2 to 32 characters", "my-x"),
    ("project_slug", "a" * 33, "not 33", "a" * 32),
    ("project_slug", "My-API", "a-z", "my-api"),
    ("project_slug", "my_api", "hyphens", "my-api"),
    ("project_slug", "my api", "hyphens", "my-api"),
    ("project_slug", "2fast", "begin with a letter", "fast"),
    ("project_slug", "-fast", "begin with a letter", "fast"),
    ("project_slug", "fast-", "end without a hyphen", "fast"),
    ("project_slug", "café", "a-z", "caf"),
    ("project_slug", "fast\n", "a-z", "fast"),
    ("project_slug", "fast\x1b[31m", "a-z", "fast-31m"),
    *(
        ("project_slug", name, "is the name of a user", f"my-{name}")
        for name in [
            *("root", "daemon", "nobody", "www-data", "backup", "staff", "sudo", "docker"),
            *("postgres", "postgresql", "template0", "template1", "redis", "mysql"),
            *("nginx", "caddy", "sshd", "cron", "dbus", "messagebus", "systemd", "systemd-network"),
        ]
    ),
    ("email", "", "must begin with", "admin@example.com"),
    ("email", "admin", "must begin with", "admin@example.com"),
    ("email", "@example.com", "must begin with", "admin@example.com"),
    ("email", "ad min@example.com", "must begin with", "admin@example.com"),
    ("email", "Admin <admin@example.com>", "must begin with", "admin@example.com"),
    ("email", "a..b@example.com", "must begin with", "admin@example.com"),
    ("email", ".a@example.com", "must begin with", "admin@example.com"),
    ("email", "bücher@example.com", "must begin with", "admin@example.com"),
    ("email", "a'b@example.com", "must begin with", "admin@example.com"),
    ("email", "a\x07@example.com", "must begin with", "admin@example.com"),
    ("email", f"{'a' * 65}@example.com", "too long", "admin@example.com"),
    ("email", f"aa@{LONGEST_HOST}", "too long", "admin@example.com"),
    ("email", "admin@localhost", "no dot", "api.example.com"),
    ("email", "admin@Example.com", "upper-case", "Write example.com"),
    ("email", "admin@@example.com", "not a host name", "api.example.com"),
    ("email", "admin@example.com\n", "not a host name", "api.example.com"),
    *(
        (question, text, wrong, "My API")
        for question in ("project_name", "description")
        for text, wrong in [
            ("", "is empty"),
            (" \u3000 ", "is empty"),
            ("two\nlines", "control character"),
            ("My API\n", "control character"),
            ("My API\r", "control character"),
            ("a\tb", "control character"),
            ("a\x00b", "control character"),
            ("a\x7fb", "control character"),
            ("a\x9bb", "control character"),
            ("a\u2028b", "control character"),
            ("a\u2029b", "control character"),
            ("a\udcffb", "control character"),
        ]
    ),
]

GOOD = [
    ("domain", "a.b"),
    ("domain", "1.example.com"),
    ("domain", "xn--bcher-kva.example"),
    ("domain", f"{LABEL}.example"),
    ("project_slug", "ab"),
    ("project_slug", "a1-b--c"),
    ("project_slug", "a" * 32),
    ("project_slug", "rooted"),
    ("project_slug", "my-nginx"),
    ("email", "a@b.c"),
    ("email", "First.Last+tls@example.com"),
    ("email", f"{'a' * 64}@example.com"),
]

NAMES = [
    *("My API", "x", "42", "2048 Game", "Root", "NGINX", "Systemd Network", "😀", "واجهة", "Café"),
    *("-- --", "{{ 7*7 }}", "'\"\\", "a" * 200, "a" * 31 + " b", "systemd-" + "a" * 40, "İstanbul"),
]

TEXTS = [
    "It's \"quoted\" 'twice'",
    'Only "double" quotes',
    "Only 'single' quotes",
    r"C:\new\table \u0041 \N{DIGIT ONE} \\",
    "{{ 7*7 }} {% raw %} {# gone? #} {% endraw %}",
    "${PATH} $(id) `id` $HOME %h !!",
    "#1: a comment? # yes; [a]: *b* <c> &d | > -",
    "Grüße 😀 👩‍🚀 日本語",
    "واجهة برمجية للمدفوعات",
    "  blanks around  ",
    "yes",
    "3.10",
    "0x10: ~",
    ("long " * 40).strip() + "x",
]

Refused = tuple[str, str, str, str]


def refusal(says: str, bad: Refused) -> None:
    """Fail unless a message names the question, what is wrong and what would be right."""
    question, _, wrong, right = bad
    assert question in says
    assert wrong in says
    assert says.rstrip().endswith((f"{right}.", f'"{right}".')) or f"example {right} " in says
    assert "\n" not in says.strip()


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad[0]}-{bad[1]!a}"[:60])
def test_a_bad_answer_is_refused_on_the_command_line(
    bad: Refused, template: Path, tmp_path: Path
) -> None:
    question, answer, *_ = bad
    project = tmp_path / "project"
    command = ["copier", "copy", "--defaults", f"--data={question}={answer}"]
    with pytest.raises(ValueError, match="Validation error for question") as refused:
        CopierApp.run([*command, str(template), str(project)], exit=False)
    refusal(str(refused.value), bad)
    assert not project.exists()


@pytest.mark.slow
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad[0]}-{bad[1]!a}"[:60])
def test_a_bad_answer_is_refused_at_the_prompt(bad: Refused, template: Path) -> None:
    question, answer, *_ = bad
    refusal(prompt(template, question).get_questionary_structure()["validate"](answer), bad)


@pytest.mark.parametrize(("question", "answer"), GOOD)
def test_a_good_answer_is_taken(question: str, answer: str, template: Path, tmp_path: Path) -> None:
    project = render(template, tmp_path / "project", **{question: answer})
    assert remembered(project)[question] == answer


def test_the_longest_domain_is_taken(template: Path, tmp_path: Path) -> None:
    project = render(template, tmp_path / "project", domain=LONGEST_HOST, email="a@example.com")
    assert remembered(project)["domain"] == LONGEST_HOST


@pytest.mark.parametrize("question", choices())
def test_a_choice_that_does_not_exist_is_refused(
    question: str, template: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"'{question}': 'mysql' is not in ") as refused:
        render(template, tmp_path / "project", **{question: "mysql"})
    assert all(repr(value) in str(refused.value) for value in choices()[question])
    assert not (tmp_path / "project").exists()


def test_the_command_ends_with_the_reason_and_writes_nothing(
    released: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [COPIER, "copy", "--defaults", "--data", "domain=https://x.org", released, "project"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "ValueError: Validation error for question 'domain': domain contains a scheme. "
        "Write the host name alone, for example api.example.com."
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_person_at_a_terminal_is_told_and_may_mend(template: Path, tmp_path: Path) -> None:
    first_bad: dict[str, Refused] = {}
    for bad in BAD:
        if bad[1].isascii() and bad[1].isprintable() and bad[1]:
            first_bad.setdefault(bad[0], bad)
    # Nothing that can be typed is bad in a free text, but no text at all.
    for question in ("project_name", "description"):
        first_bad[question] = (question, " ", "is empty", "My API")
    mended = {
        "project_name": "Orders",
        "project_slug": "orders",
        "description": "Takes orders.",
        "domain": "orders.example.org",
        "email": "tls@example.org",
    }
    assert set(first_bad) == set(mended)

    terminal = pexpect.spawn(
        str(COPIER),
        ["copy", str(template), str(tmp_path / "project")],
        encoding="utf-8",
        dimensions=(40, 300),
        env={**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"},
        timeout=20,
    )
    erase = "\x01\x0b"
    for question, answer in mended.items():
        terminal.expect_exact(questions()[question]["help"])
        terminal.send(f"{erase}{first_bad[question][1]}\r")
        terminal.expect_exact(f"Validation error for question '{question}'")
        terminal.expect_exact(first_bad[question][2])
        terminal.expect_exact(first_bad[question][3])
        assert not (tmp_path / "project").exists()
        terminal.send(f"{erase}{answer}\r")
    for question in choices():
        terminal.expect_exact(questions()[question]["help"])
        terminal.send("\r")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    defaults = {name: values[0] for name, values in choices().items()}
    assert remembered(tmp_path / "project") == {**mended, **defaults}


@pytest.mark.parametrize("text", NAMES)
def test_a_valid_slug_is_suggested_for_any_name(text: str, template: Path) -> None:
    checks = validators(template)
    slug = checks.slug_of(text)
    assert checks.slug("project_slug", slug) == ""


def test_the_mend_of_every_reserved_slug_is_valid(template: Path) -> None:
    checks = validators(template)
    assert len(checks.taken) > 100
    for name in checks.taken:
        assert "is the name of a user" in checks.slug("project_slug", name) or name[0] == "_"
        assert checks.slug("project_slug", checks.slug_of(name)) == ""


def test_the_suggested_slug_follows_the_name(template: Path, tmp_path: Path) -> None:
    project = render(template, tmp_path / "project", project_name="The Order Desk")
    assert remembered(project)["project_slug"] == "the-order-desk"


@pytest.mark.parametrize("text", TEXTS)
def test_free_text_survives_as_it_was_typed(text: str, template: Path, tmp_path: Path) -> None:
    project = render(template, tmp_path / "project", project_name=text, description=text)
    assert_holds(project, text, text)
    assert [*unparsable(project), *ruff_findings(project)] == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), list(zip(TEXTS[::2], TEXTS[1::2], strict=True)))
def test_free_text_survives_an_update(name: str, text: str, tmp_path: Path) -> None:
    source = commit(snapshot(tmp_path / "template"), tag="v0.1.0")
    project = render(source, tmp_path / "project", project_name=name, description=text)
    commit(project)
    with (source / "template" / "Makefile.jinja").open("a") as makefile:
        makefile.write("\n# The newer release.\n")
    commit(source, tag="v0.2.0")

    copier.run_update(project, defaults=True, overwrite=True, quiet=True)
    assert git(project, "diff", "--name-only").split() == [".copier-answers.yml", "Makefile"]
    assert_holds(project, name, text)
    assert [*unparsable(project), *ruff_findings(project)] == []


def assert_holds(project: Path, name: str, text: str) -> None:
    """Fail unless answers, pyproject.toml, app and README hold name and description as typed."""
    assert remembered(project)["project_name"] == name
    assert remembered(project)["description"] == text
    assert tomllib.loads((project / "pyproject.toml").read_text())["project"]["description"] == text
    app = ast.parse((project / "app" / "main.py").read_text())
    given = {
        keyword.arg: ast.literal_eval(keyword.value)
        for call in ast.walk(app)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "Service"
        for keyword in call.keywords
        if keyword.arg in {"title", "description"}
    }
    assert given == {"title": name, "description": text}
    readme = (project / "README.md").read_text()
    assert name in readme
    assert text in readme.replace(name, "", 1)


def remembered(project: Path) -> dict[str, Any]:
    """The answers that a project remembers, without the template's address and version."""
    answers = yaml.safe_load((project / ".copier-answers.yml").read_text())
    return {name: answer for name, answer in answers.items() if not name.startswith("_")}


def validators(template: Path) -> Any:
    """The macros of the validators, as functions."""
    return cast(ModuleType, environment(template).get_template("hooks/validators.jinja").module)


def prompt(template: Path, question: str) -> Question:
    """A question as Copier is about to ask it."""
    return Question(
        var_name=question,
        answers=AnswersMap(),
        context={"project_name": "My API", "domain": "api.example.com"},
        jinja_env=environment(template),
        **questions()[question],
    )
