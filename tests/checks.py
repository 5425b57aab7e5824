"""What must hold for the files of every rendered project."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from tests.combinations import files

RUFF = Path(sys.executable).with_name("ruff")

# GitHub's own expressions, Docker's for one field, Prometheus's and Grafana's.
FOREIGN_BRACES = re.compile(
    r"\$\{\{.*?\}\}|\{\{(?:index )?\.[\w. \"-]+\}\}|\{\{ \$[\w.]+(?: \| \w+)? \}\}|\{\{\w+\}\}"
)


@cache
def parse_error(suffix: str, text: str) -> str | None:
    """Why a text is no Python, TOML, YAML or JSON; most files are alike in many projects."""
    try:
        match suffix:
            case ".py":
                compile(text, "", "exec", dont_inherit=True)
            case ".toml":
                tomllib.loads(text)
            case ".yml" | ".yaml":
                yaml.safe_load(text)
            case ".json":
                json.loads(text)
    except (SyntaxError, ValueError, yaml.YAMLError) as error:
        return str(error)
    return None


def unparsable(project: Path) -> Iterator[str]:
    """Python that does not compile; TOML, YAML and JSON that do not parse."""
    for name, path in files(project).items():
        if error := parse_error(path.suffix, path.read_text()):
            yield f"{name}: {error}"


def ruff_findings(project: Path) -> Iterator[str]:
    """What ruff, with the project's own settings, would lint or format otherwise."""
    for command in (["check", "--output-format=concise"], ["format", "--check", "--diff"]):
        # Without the cache no folder of its own appears in the project.
        done = subprocess.run(
            [RUFF, *command, "--no-cache", "."], cwd=project, capture_output=True, text=True
        )
        if done.returncode:
            yield f"ruff {command[0]}: {done.stdout}{done.stderr}"


def jinja_left(project: Path) -> Iterator[str]:
    """Names and lines in which Jinja survived."""
    for name, path in files(project).items():
        for number, line in enumerate([name, *path.read_text().splitlines()]):
            if re.search(r"\{[{%#]|[%#]\}", FOREIGN_BRACES.sub("", line)):
                yield f"{name}:{number}: {line}"


def hollow(project: Path) -> Iterator[str]:
    """Folders and files with nothing in them."""
    for folder, folders, names in os.walk(project):
        if not folders and not names:
            yield f"{folder}: an empty folder"
        for name in names:
            if not Path(folder, name).read_bytes().strip():
                yield f"{Path(folder, name)}: an empty file"


def untidy(project: Path) -> Iterator[str]:
    """White space that a condition left behind."""
    for name, path in files(project).items():
        text = path.read_text()
        gap = 3 if path.suffix in {".py", ".mako"} else 2
        if text != text.strip("\n") + "\n":
            yield f"{name}: does not begin with text and end with one line feed"
        for number, line in enumerate(text.split("\n"), 1):
            if line != line.rstrip():
                yield f"{name}:{number}: ends in a blank"
        if found := re.search(rf"\n(?:[ \t]*\n){{{gap}}}", text):
            yield f"{name}:{text.count(chr(10), 0, found.start()) + 1}: {gap} empty lines in a row"
