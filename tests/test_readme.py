"""The README tells the truth: its commands run, its table and its tree are the template's own."""

import io
import os
import re
import socket
import sys
import time
from pathlib import Path

import httpx2
import pexpect
import pytest
import yaml

from tests.combinations import ROOT, commit, files, questions, render, snapshot

README = (ROOT / "README.md").read_text(encoding="utf-8")

# Commands that serve until Ctrl-C, and what is there to see meanwhile.
SERVING = {"make dev": "/docs", "make demo": "/api/v1/items"}
BLOCK_S = 300


def blocks(section: str) -> list[str]:
    """The commands of a section, block by block."""
    (text,) = re.findall(rf"^## {section}$(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_as_a_user_would(folder: Path, block: str, environment: dict[str, str]) -> None:
    """Run a block in a terminal: take every default, look at what is served, stop it by Ctrl-C."""
    helps = [re.escape(question["help"]) for question in questions().values()]
    path = SERVING.get(block.splitlines()[-1])
    address = f"http://127.0.0.1:{environment['PORT']}{path}"
    terminal = pexpect.spawn(
        "bash", ["-ec", block], cwd=folder, env=environment, dimensions=(50, 300), encoding="utf-8"
    )
    terminal.logfile_read = said = io.StringIO()
    seen = False
    deadline = time.monotonic() + BLOCK_S
    while event := terminal.expect([pexpect.EOF, pexpect.TIMEOUT, *helps], timeout=0.3):
        assert time.monotonic() < deadline, f"{block}\nhas not ended:\n{said.getvalue()}"
        if event > 1:
            terminal.send("\r")
        elif path is not None and not seen and answers(address):
            seen = True
            terminal.sendintr()
    terminal.close()
    assert seen or terminal.exitstatus == 0, f"{block}\nfailed:\n{said.getvalue()}"
    assert seen == (path is not None), f"{block}\nserved nothing:\n{said.getvalue()}"


def answers(address: str) -> bool:
    try:
        return httpx2.get(address).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """The repository that the README names, as it stands in the working tree."""
    return commit(snapshot(tmp_path / "origin"), tag="v1.0.0")


@pytest.fixture
def user(origin: Path) -> dict[str, str]:
    """The environment of a user, for whom the address in the README leads to `origin`."""
    foreign = ("APP_", "DATABASE_", "REDIS_", "SERVER_", "MAKE", "MFLAGS", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return kept | {
        # A project's whole test suite is run where every distinct project is.
        "ARGS": "--no-cov tests/test_health.py",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{origin}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/org/fastapi-prod.git",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PORT": str(port),
        "PROMPT_TOOLKIT_NO_CPR": "1",
        "PYTHON": str(Path(sys.executable).resolve()),
    }


@pytest.mark.slow
def test_a_project_is_started_and_updated_by_the_commands_given(
    origin: Path, user: dict[str, str], tmp_path: Path
) -> None:
    for block in blocks("Start"):
        run_as_a_user_would(tmp_path, block, user)
    given = yaml.safe_load((tmp_path / "myapi/.copier-answers.yml").read_text(encoding="utf-8"))
    assert given["_src_path"] == "gh:org/fastapi-prod"
    assert set(questions()) <= set(given)

    readme = origin / "template/README.md.jinja"
    readme.write_text(readme.read_text(encoding="utf-8") + "\nNews.\n", encoding="utf-8")
    commit(origin, tag="v1.1.0")
    for block in blocks("Update"):
        run_as_a_user_would(tmp_path, block, user)
    assert (tmp_path / "myapi/README.md").read_text(encoding="utf-8").endswith("\nNews.\n")


@pytest.mark.slow
def test_the_default_project_is_looked_at_by_the_commands_given(
    user: dict[str, str], tmp_path: Path
) -> None:
    for block in blocks("Look first"):
        run_as_a_user_would(tmp_path, block, user)
    assert (tmp_path / "fastapi-prod/demo/app/main.py").exists()


def test_every_command_in_the_readme_is_run() -> None:
    run = [block for name in ("Start", "Look first", "Update") for block in blocks(name)]
    assert len(run) == README.count("```console") > 0
    assert set(re.findall(r"^```(\w+)$", README, re.MULTILINE)) == {"console", "text"}


def test_the_table_of_questions_is_that_of_the_template(template: Path, tmp_path: Path) -> None:
    answers_file = render(template, tmp_path / "myapi") / ".copier-answers.yml"
    defaults = yaml.safe_load(answers_file.read_text(encoding="utf-8"))
    expected = ["| Question | Answers | What it decides |", "|---|---|---|"]
    for name, question in questions().items():
        choices = question.get("choices", [defaults[name]])
        values = choices.values() if isinstance(choices, dict) else choices
        offered = ", ".join(f"`{value}`" for value in values)
        expected.append(f"| `{name}` | {offered} | {question['help']} |")
    table = [line for line in README.splitlines() if line.startswith("|")]
    assert table == expected, "it should be:\n" + "\n".join(expected)


def test_the_tree_is_that_of_a_default_project(template: Path, tmp_path: Path) -> None:
    (tree,) = re.findall(r"^```text\nmyapi/\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    shown: dict[str, set[str]] = {"": set()}
    open_folders: list[str] = []
    for line in tree.splitlines():
        match = re.fullmatch(r"((?:│   |    )*)[├└]── (\S+)(?: +\S.*)?", line)
        assert match, f"no line of a tree: {line}"
        depth = len(match[1]) // 4
        folder = "".join(open_folders[:depth])
        open_folders[depth:] = [match[2]]
        shown.setdefault(folder, set()).add(match[2])

    project = render(template, tmp_path / "myapi")
    for folder, names in shown.items():
        inside = (name.removeprefix(folder) for name in files(project) if name.startswith(folder))
        # What git ignores is not there for a user, and a folder ends in a slash.
        expected = {re.sub(r"/.*", "/", name) for name in inside}
        assert names == expected, f"in {folder or 'myapi/'}"


def test_what_the_documents_refer_to_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / link).exists(), f"{name}: {link}"
        for path in re.findall(
            r"`((?:tools|tests|hooks|template)/[\w./-]*|[\w.-]+\.(?:yml|md|toml))`", text
        ):
            assert (ROOT / path).exists(), f"{name}: {path}"
        if name == "CONTRIBUTING.md":
            mentioned = set(re.findall(r"`make ([a-z-]+)", text))
            assert mentioned
            assert mentioned <= targets, f"{name}: {mentioned - targets}"
