"""Pins the dependencies of the projects that the template renders, and those of its own tools.

The union of all answers is resolved once, so that no combination of answers has another version of
a package than the rest. Each combination is then compiled by its own `make pins` with the union as
constraints, and the results are merged into one template for each requirements file.
"""

import argparse
import difflib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import FileSystemLoader
from jinja2.sandbox import SandboxedEnvironment

from tests.combinations import ROOT, Answers, choices, combinations, config, row_id

OUTPUTS = ("requirements.txt", "requirements-dev.txt")
# What servers install: the same uv that pinned the rest.
UV = ROOT / "template" / "deploy" / "uv.txt"
# What the container that renews certificates installs; no answer decides about it.
CERTBOT = ROOT / "template" / "deploy" / "certbot.txt"
CERTBOT_PYPROJECT = """\
[project]
name = "certbot-container"
version = "0"
requires-python = ">=3.11,<3.15"
dependencies = ["certbot>=5.8,<6"]
[dependency-groups]
dev = []
"""

# Pairs of a question and its answer.
Row = tuple[tuple[str, str], ...]


@cache
def _environment() -> SandboxedEnvironment:
    return SandboxedEnvironment(
        loader=FileSystemLoader(ROOT),
        extensions=["jinja2_ansible_filters.AnsibleCoreFiltersExtension"],
        **config()["_envops"],
    )


def render(name: str, answers: Answers) -> str:
    """The text of `template/<name>.jinja` for these answers, and the defaults of the rest."""
    context: dict[str, Any] = dict(answers)
    for question, entry in config().items():
        if not question.startswith("_") and question not in context:
            default = _environment().from_string(entry.get("default", "")).render(context)
            context[question] = yaml.safe_load(default) if entry["type"] == "yaml" else default
    return _environment().get_template(f"template/{name}.jinja").render(context)


@cache
def distinct_combinations() -> dict[Row, Answers]:
    """The answers that decide dependencies, each with one whole combination that has them."""
    outcomes = {
        tuple(answers.items()): json.dumps(_dependencies(render("pyproject.toml", answers)))
        for answers in combinations()
    }
    deciding = set()
    for question in choices():
        alike: dict[Row, set[str]] = {}
        for row, outcome in outcomes.items():
            alike.setdefault(tuple(pair for pair in row if pair[0] != question), set()).add(outcome)
        if any(len(seen) > 1 for seen in alike.values()):
            deciding.add(question)
    distinct: dict[Row, Answers] = {}
    for row in outcomes:
        distinct.setdefault(tuple(pair for pair in row if pair[0] in deciding), dict(row))
    return distinct


def _dependencies(pyproject: str) -> tuple[list[str], list[str]]:
    project = tomllib.loads(pyproject)
    return project["project"]["dependencies"], project["dependency-groups"]["dev"]


def blocks(requirements: str) -> dict[str, str]:
    """Each pinned package with its hashes, by its first line; the header is the block ''."""
    found = {"": ""}
    first = ""
    for line in requirements.splitlines(keepends=True):
        if not line.startswith(("#", " ")):
            first = line.removesuffix("\n")
        found[first] = found.get(first, "") + line
    return found


def condition(members: set[Row], options: dict[str, list[str]]) -> str:
    """The Jinja condition that holds for exactly these answers; '' where it would always hold."""
    alternatives = []
    for box in _boxes(members, options):
        tests = [
            f"{name} == {values[0]!r}" if len(values) == 1 else f"{name} in {values!r}"
            for name, values in box.items()
            if len(values) < len(options[name])
        ]
        alternatives.append(" and ".join(tests))
    if len(alternatives) > 1:
        alternatives = [f"({one})" if " and " in one else one for one in alternatives]
    return " or ".join(alternatives)


def _boxes(members: set[Row], options: dict[str, list[str]]) -> Iterator[dict[str, list[str]]]:
    """Few products of choices that make exactly these answers together, large ones first."""
    names = [name for name, _ in min(members)]
    subsets = [
        [
            part
            for size in range(1, len(options[name]) + 1)
            for part in itertools.combinations(options[name], size)
        ]
        for name in names
    ]
    products = {
        parts: {tuple(zip(names, row, strict=True)) for row in itertools.product(*parts)}
        for parts in itertools.product(*subsets)
    }
    fitting = {parts: cells for parts, cells in products.items() if cells <= members}
    left = set(members)
    while left:
        best = max(fitting, key=lambda parts: (len(fitting[parts] & left), len(fitting[parts])))
        left -= fitting[best]
        yield dict(zip(names, map(list, best), strict=True))


def merge(files: dict[Row, str]) -> str:
    """One template that renders to each of these requirements files for its answers."""
    owners: dict[str, set[Row]] = {}
    for row, text in files.items():
        for block in blocks(text).values():
            owners.setdefault(block, set()).add(row)
    in_order = sorted(owners, key=lambda block: re.split(r"[^\w.-]", block, maxsplit=1)[0])
    merged = "{# Written by `make pins`. #}\n"
    for test, group in itertools.groupby(
        in_order, lambda block: condition(owners[block], choices())
    ):
        text = "".join(group)
        merged += f"{{% if {test} %}}\n{text}{{% endif %}}\n" if test else text
    return merged


def union_pyproject() -> str:
    """A pyproject.toml with every dependency that some combination has."""
    runtime: set[str] = set()
    development: set[str] = set()
    for answers in distinct_combinations().values():
        pyproject = render("pyproject.toml", answers)
        for union, listed in zip((runtime, development), _dependencies(pyproject), strict=True):
            union.update(listed)
    requires_python = tomllib.loads(pyproject)["project"]["requires-python"]
    return (
        '[project]\nname = "union"\nversion = "0"\n'
        f"requires-python = {json.dumps(requires_python)}\n"
        f"dependencies = {json.dumps(sorted(runtime))}\n"
        f"[dependency-groups]\ndev = {json.dumps(sorted(development))}\n"
    )


def union_pins(name: str) -> str:
    """What the template pins at present, for all answers together."""
    template = ROOT / "template" / f"{name}.jinja"
    lines = (
        template.read_text(encoding="utf-8").splitlines(keepends=True) if template.exists() else []
    )
    return "".join(line for line in lines if not line.startswith("{"))


def compile_pins(
    folder: Path,
    pyproject: str,
    *,
    answers: Answers,
    target: str = "pins",
    keep: dict[str, str] | None = None,
    constraints: str = "",
) -> dict[str, str]:
    """What a project's own `make pins` writes; `keep` are the requirements files that it finds."""
    folder.mkdir()
    given = {"pyproject.toml": pyproject, "Makefile": render("Makefile", answers), **(keep or {})}
    for name, text in given.items():
        (folder / name).write_text(text, encoding="utf-8")
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    }
    # A make above this one would hand its own options down.
    environment.pop("MAKEFLAGS", None)
    if constraints:
        (folder / "constraints.txt").write_text(constraints, encoding="utf-8")
        environment["UV_CONSTRAINT"] = "constraints.txt"
    done = subprocess.run(
        ["make", "--silent", "--directory", str(folder), target],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"`make {target}` failed for {folder.name}:\n{done.stdout}")
    return {name: (folder / name).read_text(encoding="utf-8") for name in OUTPUTS}


def write(*, upgrade: bool) -> None:
    """Pin everything anew; without `upgrade`, what is pinned stays where it still fits."""
    target = "upgrade" if upgrade else "pins"
    some = combinations()[0]
    own = ROOT / "requirements-dev.txt"
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        union = compile_pins(
            Path(scratch, "union"),
            union_pyproject(),
            answers=some,
            target=target,
            keep={} if upgrade else {name: union_pins(name) for name in OUTPUTS},
        )
        compiled = [
            pool.submit(
                compile_pins,
                Path(scratch, row_id(answers)),
                render("pyproject.toml", answers),
                answers=answers,
                constraints=union["requirements-dev.txt"],
            )
            for answers in distinct_combinations().values()
        ]
        files = dict(zip(distinct_combinations(), [one.result() for one in compiled], strict=True))
        tools = compile_pins(
            Path(scratch, "tools"),
            (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
            answers=some,
            target=target,
            keep={own.name: own.read_text(encoding="utf-8")} if own.exists() else {},
        )
        certbot = compile_pins(
            Path(scratch, "certbot"),
            CERTBOT_PYPROJECT,
            answers=some,
            target=target,
            keep={} if upgrade else certbot_pins(),
        )
    own.write_text(tools[own.name], encoding="utf-8")
    UV.write_text(uv_pin(tools[own.name]), encoding="utf-8")
    CERTBOT.write_text(certbot_file(certbot["requirements.txt"]), encoding="utf-8")
    for name in OUTPUTS:
        merged = merge({row: pins[name] for row, pins in files.items()})
        (ROOT / "template" / f"{name}.jinja").write_text(merged, encoding="utf-8")


def uv_pin(requirements: str) -> str:
    """The pin of uv alone, from requirements that hold it."""
    pin = next(pin for line, pin in blocks(requirements).items() if line.startswith("uv=="))
    return f"# uv, as a deployment installs it.\n{pin.rstrip()}\n"


def certbot_file(requirements: str) -> str:
    """These requirements, with a header that says whose they are."""
    _, *packages = blocks(requirements).values()
    return "# certbot, as deploy/certbot.Dockerfile installs it.\n" + "".join(packages)


def certbot_pins() -> dict[str, str]:
    """What is pinned for certbot at present, as `make pins` would find it."""
    pins = CERTBOT.read_text(encoding="utf-8") if CERTBOT.exists() else ""
    _, *packages = blocks(pins).values()
    header = "# This file was autogenerated by uv via the following command:\n#    make pins\n"
    return dict.fromkeys(OUTPUTS, header + "".join(packages))


def check_combination(answers: Answers, scratch: Path) -> str:
    """How the pins rendered for these answers differ from newly compiled ones; '' if not at all."""
    pyproject = render("pyproject.toml", answers)
    pins = {name: render(name, answers) for name in OUTPUTS}
    union = union_pins("requirements-dev.txt")
    fresh = compile_pins(scratch / "fresh", pyproject, answers=answers, constraints=union)
    again = compile_pins(scratch / "again", pyproject, answers=answers, keep=pins)
    return differences(pins, fresh, again)


def check_tools(scratch: Path) -> str:
    """The same for the pins of the template's own tools."""
    some = combinations()[0]
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    name = "requirements-dev.txt"
    pins = {name: (ROOT / name).read_text(encoding="utf-8")}
    fresh = compile_pins(scratch / "fresh", pyproject, answers=some, constraints=pins[name])
    again = compile_pins(scratch / "again", pyproject, answers=some, keep=pins)
    return differences(pins, fresh, again)


def check_certbot(scratch: Path) -> str:
    """The same for the pins of certbot."""
    some = combinations()[0]
    pins = certbot_pins()
    constraints = pins["requirements.txt"]
    fresh = compile_pins(
        scratch / "fresh", CERTBOT_PYPROJECT, answers=some, constraints=constraints
    )
    again = compile_pins(scratch / "again", CERTBOT_PYPROJECT, answers=some, keep=pins)
    return differences(pins, fresh, again)


def differences(pins: dict[str, str], fresh: dict[str, str], again: dict[str, str]) -> str:
    """How pins differ from newly compiled ones and from what `make pins` makes of them."""
    found: list[str] = []
    for name, text in pins.items():
        lines, after = text.splitlines(), again[name].splitlines()
        found += difflib.unified_diff(lines, after, name, f"{name} after `make pins`", lineterm="")
        ours, theirs = blocks(text), blocks(fresh[name])
        found += difflib.unified_diff(list(ours), list(theirs), name, f"{name} anew", lineterm="")
        # Only a hash too many is a mistake: a file may be added to a release at any time.
        for package in ours.keys() & theirs.keys():
            strange = set(ours[package].split()) - set(theirs[package].split())
            found += [f"{name}: {package} {word} is unknown" for word in sorted(strange - {"\\"})]
    return "\n".join(found)


def check() -> str:
    """All differences, for every distinct combination, the template's own tools and certbot."""
    found = []
    for answers in distinct_combinations().values():
        with tempfile.TemporaryDirectory() as scratch:
            found.append(check_combination(answers, Path(scratch)))
    with tempfile.TemporaryDirectory() as scratch:
        found.append(check_tools(Path(scratch)))
    with tempfile.TemporaryDirectory() as scratch:
        found.append(check_certbot(Path(scratch)))
    return "\n".join(filter(None, found))


def main() -> None:
    """Write the pins, or check them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions allowed")
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail where they differ"
    )
    options = parser.parse_args()
    if not options.check:
        write(upgrade=options.upgrade)
    elif found := check():
        sys.exit(found)


if __name__ == "__main__":
    main()
