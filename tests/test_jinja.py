"""The Jinja of the template: what its syntax trees say, and that every branch is rendered."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import copier
import jinja2
import pytest
import yaml
from copier._jinja_ext import SandboxedEnvironment
from jinja2 import nodes
from jinja2.meta import find_undeclared_variables

from tests.combinations import (
    Answers,
    choices,
    combinations,
    config,
    environment,
    questions,
    row_id,
)
from tests.test_answers import BAD, GOOD, NAMES, TEXTS

Record = Callable[[str, object], None]

# What Copier itself offers; _folder_name is left out, an update gives it another value.
COPIERS_OWN = {"_copier_answers", "_copier_conf", "_copier_operation"}

PYTHON_BUDGET = 3
PYPROJECT_BUDGET = 12
BUDGET_PER_100_LINES = 3.0


@pytest.fixture(scope="session")
def jinja(template: Path) -> SandboxedEnvironment:
    """The environment in which Copier renders."""
    return environment(template)


@pytest.fixture(scope="session")
def sources(template: Path) -> dict[str, str]:
    """Every piece of Jinja by its place: files, names of files, strings of copier.yml."""
    found = {
        path.relative_to(template).as_posix(): path.read_text()
        for folder in ("template", "hooks")
        for path in sorted((template / folder).rglob("*.jinja"))
    }
    for path in sorted((template / "template").rglob("*")):
        if "{" in path.name:
            found[f"name of {path.relative_to(template).as_posix()}"] = path.name
    found |= {f"copier.yml {place}": text for place, text in strings(config()) if "{" in text}
    return found


def strings(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a configuration, with its place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from strings(part, f"{place}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from strings(part, f"{place}[{number}]")


def computed() -> dict[str, dict[str, Any]]:
    """The values that copier.yml computes."""
    return {
        name: value
        for name, value in config().items()
        if not name.startswith("_") and name not in questions()
    }


def possible(jinja: SandboxedEnvironment) -> dict[str, set[str]]:
    """The values that a name can have; a list's are those of its items."""
    values = {name: set(offered) for name, offered in choices().items()}
    values["_copier_operation"] = {"copy", "update"}
    for name, value in computed().items():
        values[name] = set()
        for answers in combinations():
            text = jinja.from_string(value["default"]).render(answers)
            read = yaml.safe_load(text) if value["type"] == "yaml" else text
            values[name] |= set(read) if isinstance(read, list) else {read}
    return values


# ------------------------------------------------------------------ the checks


def undeclared(jinja: SandboxedEnvironment, source: str, known: Iterable[str]) -> set[str]:
    """Names that nobody defines."""
    return find_undeclared_variables(jinja.parse(source)) - set(known) - set(jinja.globals)


def literals(node: nodes.Node) -> list[Any]:
    """The constants of an operand: itself, or the items of a list."""
    parts = node.items if isinstance(node, nodes.List | nodes.Tuple) else [node]
    return [part.value for part in parts if isinstance(part, nodes.Const)]


def impossible(
    jinja: SandboxedEnvironment, source: str, values: dict[str, set[str]]
) -> Iterator[str]:
    """Comparisons of an answer with what it can never be."""
    for compare in jinja.parse(source).find_all(nodes.Compare):
        operands = [compare.expr, *(operand.expr for operand in compare.ops)]
        for name in operands:
            if isinstance(name, nodes.Name) and name.name in values:
                for operand in operands:
                    for literal in literals(operand):
                        if literal not in values[name.name]:
                            yield f"line {compare.lineno}: {name.name} is never {literal!r}"


def conditions(jinja: SandboxedEnvironment, source: str) -> int:
    """How many `if` and `elif` a source has."""
    return len(list(jinja.parse(source).find_all(nodes.If)))


def crowded(source: str) -> Iterator[str]:
    """Lines on which a block tag does not stand alone; raw text may stand in a line."""
    source = re.sub(
        r"\{#.*?#\}", lambda found: "\n" * found[0].count("\n"), source, flags=re.DOTALL
    )
    for number, line in enumerate(source.splitlines(), 1):
        rest = re.sub(r"\{%[-+]? *(end)?raw *[-+]?%\}", "", line).strip()
        if ("{%" in rest or "%}" in rest) and not re.fullmatch(r"\{%((?!%\}).)*%\}", rest):
            yield f"line {number}: {line}"


def hidden_conditions(jinja: SandboxedEnvironment, source: str) -> Iterator[str]:
    """Conditions inside an expression."""
    tree = jinja.parse(source)
    ternaries = [found for found in tree.find_all(nodes.Filter) if found.name == "ternary"]
    for found in [*tree.find_all(nodes.CondExpr), *ternaries]:
        yield f"line {found.lineno}: a condition in an expression"
    for output in tree.find_all(nodes.Output):
        for logic in output.find_all((nodes.And, nodes.Or, nodes.Not, nodes.Compare)):
            yield f"line {logic.lineno}: a condition in an output"


def distrusted(settings: dict[str, Any]) -> Iterator[str]:
    """Settings that demand trust, or that break the updates of older projects."""
    for name in ("_tasks", "_jinja_extensions"):
        if name in settings:
            yield f"{name} demands trust of everybody, from now on and for ever"
    for migration in settings.get("_migrations", []):
        if not isinstance(migration, dict) or "version" not in migration:
            yield f"a migration without a version demands trust at every update: {migration}"
    if "undefined" in settings.get("_envops", {}):
        yield "strict undefined values crash updates from versions with fewer questions"


def safe_condition(test: nodes.Node) -> bool:
    """Whether a condition is false for an answer that does not exist."""
    match test:
        case nodes.And() | nodes.Or():
            return safe_condition(test.left) and safe_condition(test.right)
        case nodes.Compare(expr=nodes.Name(), ops=[nodes.Operand(op=op, expr=literal)]):
            constant = isinstance(literal, nodes.Const) and literal.value is not None
            listed = isinstance(literal, nodes.List | nodes.Tuple) and all(
                isinstance(item, nodes.Const) and item.value is not None for item in literal.items
            )
            return (op == "eq" and constant) or (op == "in" and listed)
    return False


def unsafe_exclusions(jinja: SandboxedEnvironment, pattern: str) -> Iterator[str]:
    """Whatever in a row of `_exclude` is not a plain condition over plain paths."""
    tree = jinja.parse(pattern)
    for found in tree.find_all(nodes.If):
        if not safe_condition(found.test):
            yield f"line {found.lineno}: not of the form == or in [...], joined by and, or"
        if found.else_:
            yield f"line {found.lineno}: else also holds for an answer that does not exist"
    allowed = nodes.Template | nodes.If | nodes.Output | nodes.TemplateData
    pending: list[Sequence[nodes.Node]] = [tree.body]
    while pending:
        for node in pending.pop():
            if not isinstance(node, allowed):
                yield f"line {node.lineno}: {type(node).__name__} has no place here"
            elif isinstance(node, nodes.If):
                pending += [node.body, node.elif_, node.else_]
            elif isinstance(node, nodes.Output):
                pending.append(node.nodes)


def stale_exclusions(template: Path, pattern: str) -> Iterator[str]:
    """Paths of a conditional row of `_exclude` that nothing in template/ has."""
    for line in re.sub(r"\{%.*?%\}", "", pattern).splitlines() if "{%" in pattern else []:
        path = line.strip()
        inside = template / "template" / path.lstrip("/")
        if not path:
            continue
        if not path.startswith("/"):
            yield f"{path}: begins without a slash, so it also means files in other folders"
        elif path.endswith("/"):
            yield f"{path}: ends with a slash, so an empty folder would stay"
        elif not inside.exists() and not inside.with_name(f"{inside.name}.jinja").exists():
            yield f"{path}: is not in template/"


class Branches:
    """Notes which ways every condition goes while it lives."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ways: dict[tuple[str, int, int], set[bool]] = defaultdict(set)
        parse = jinja2.Environment._parse

        def noting(
            jinja: jinja2.Environment, source: str, name: str | None, filename: str | None
        ) -> nodes.Template:
            tree = parse(jinja, source, name, filename)
            jinja.filters["noted"] = self.note
            for number, found in enumerate(list(tree.find_all(nodes.If))):
                place = (name or source, found.lineno, number)
                self.ways[place] |= set()
                found.test = nodes.Filter(
                    found.test,
                    "noted",
                    [nodes.Const(part) for part in place],
                    [],
                    None,
                    None,
                    lineno=found.lineno,
                    environment=jinja,
                )
            return tree

        patch.setattr(jinja2.Environment, "_parse", noting)

    def note(self, value: Any, name: str, line: int, number: int) -> Any:
        """Keep which way a condition goes, and let it go there."""
        self.ways[name, line, number].add(bool(value))
        return value

    def untaken(self) -> list[str]:
        """The conditions that never were true, or never false."""
        return [
            f"{name}, line {line}: never {way}"
            for (name, line, _), ways in self.ways.items()
            for way in (True, False)
            if way not in ways
        ]


# ------------------------------------------------------------- on the template


def test_every_name_is_defined(jinja: SandboxedEnvironment, sources: dict[str, str]) -> None:
    # Macros are imported without the answers, they know nothing but their arguments.
    imported = {
        found.template.value
        for source in sources.values()
        for found in jinja.parse(source).find_all(nodes.FromImport)
        if isinstance(found.template, nodes.Const) and not found.with_context
    }
    assert imported
    known = {*questions(), *computed(), *COPIERS_OWN}
    found = {
        name: unknown
        for name, source in sources.items()
        if (unknown := undeclared(jinja, source, () if name in imported else known))
    }
    assert not found


def test_no_answer_is_compared_with_what_it_cannot_be(
    jinja: SandboxedEnvironment, sources: dict[str, str]
) -> None:
    values = possible(jinja)
    assert all(values.values())
    assert not [
        f"{name}, {found}"
        for name, source in sources.items()
        for found in impossible(jinja, source, values)
    ]


def test_conditions_stay_within_the_budget(
    jinja: SandboxedEnvironment,
    sources: dict[str, str],
    template: Path,
    record_property: Record,
) -> None:
    inside = {
        name: conditions(jinja, source)
        for name, source in sources.items()
        if name.startswith(("template/", "name of template/"))
    }
    lines = sum(
        len(path.read_text().splitlines())
        for path in (template / "template").rglob("*")
        if path.is_file()
    )
    over = {
        name: count
        for name, count in inside.items()
        if (name.endswith(".py.jinja") and count > PYTHON_BUDGET)
        or (name == "template/pyproject.toml.jinja" and count > PYPROJECT_BUDGET)
    }
    assert not over
    assert "template/pyproject.toml.jinja" in inside
    per_100_lines = 100 * sum(inside.values()) / lines
    record_property("conditions per 100 lines of template/", f"{per_100_lines:.2f}")
    assert 0 < per_100_lines <= BUDGET_PER_100_LINES


def test_block_tags_stand_alone_on_their_lines(sources: dict[str, str]) -> None:
    assert not [
        f"{name}, {found}"
        for name, source in sources.items()
        if name.startswith("template/")
        for found in crowded(source)
    ]


def test_no_condition_hides_in_an_expression(
    jinja: SandboxedEnvironment, sources: dict[str, str]
) -> None:
    assert not [
        f"{name}, {found}"
        for name, source in sources.items()
        if name.startswith("template/")
        for found in hidden_conditions(jinja, source)
    ]


def test_names_of_files_hold_no_jinja_but_that_of_the_answers(sources: dict[str, str]) -> None:
    names = [source for name, source in sources.items() if name.startswith("name of")]
    assert names == ["{{_copier_conf.answers_file}}.jinja"]


def test_no_setting_demands_trust() -> None:
    assert not list(distrusted(config()))


def test_conditions_of_exclusions_are_false_for_unknown_answers(
    jinja: SandboxedEnvironment,
) -> None:
    found = [row for pattern in config()["_exclude"] for row in unsafe_exclusions(jinja, pattern)]
    assert not found
    for pattern in config()["_exclude"]:
        assert not jinja.from_string(pattern).render().strip() or "{" not in pattern


def test_every_excluded_path_exists(template: Path) -> None:
    rows = [row for row in config()["_exclude"] if "{%" in row]
    assert rows
    assert not [found for row in rows for found in stale_exclusions(template, row)]


def test_every_file_kept_from_updates_exists(template: Path) -> None:
    kept = config()["_skip_if_exists"]
    assert kept
    for name in kept:
        inside = template / "template" / name
        assert inside.exists() or inside.with_name(f"{inside.name}.jinja").exists()


def deciding(jinja: SandboxedEnvironment, sources: dict[str, str]) -> set[str]:
    """The questions that conditions ask about, also by way of a computed value."""
    names = {
        name.name
        for source in sources.values()
        for found in jinja.parse(source).find_all(nodes.If)
        for name in [*found.test.find_all(nodes.Name), found.test]
        if isinstance(name, nodes.Name)
    }
    for value in names & set(computed()):
        names |= find_undeclared_variables(jinja.parse(computed()[value]["default"]))
    return names & set(choices())


@pytest.mark.slow
def test_every_branch_is_rendered_both_ways(
    jinja: SandboxedEnvironment,
    sources: dict[str, str],
    template: Path,
    tmp_path: Path,
    record_property: Record,
) -> None:
    rows = combinations(deciding(jinja, sources))
    messages = [text for name, text in config().items() if name.startswith("_message")]
    with pytest.MonkeyPatch.context() as patch:
        branches = Branches(patch)
        fresh = environment(template)
        for source in sources:
            if source.startswith(("template/", "hooks/")):
                fresh.get_template(source)
        for answers in rows:
            worker = copier.run_copy(
                str(template),
                tmp_path / row_id(answers),
                data=answers,
                defaults=True,
                pretend=True,
                quiet=True,
            )
            for message in messages:
                worker.jinja_env.from_string(message).render(worker._render_context())
        # An update renders the table of exclusions with the answers of an older version.
        for pattern in config()["_exclude"]:
            fresh.from_string(pattern).render()
            fresh.from_string(pattern).render(_copier_operation="update")
        for question, answer in [*GOOD, *(bad[:2] for bad in BAD)]:
            validator = questions()[question]["validator"]
            fresh.from_string(validator).render({question: answer})
        for text in NAMES:
            default = questions()["project_slug"]["default"]
            fresh.from_string(default).render(project_name=text)
        strings: Any = fresh.get_template("hooks/strings.jinja").module
        for text in TEXTS:
            strings.python(text)
    record_property("conditions rendered both ways", len(branches.ways))
    assert len(branches.ways) > 20
    assert not branches.untaken()


# -------------------------------------------------- each check finds its fault


def test_an_unknown_name_is_found(jinja: SandboxedEnvironment) -> None:
    source = "{% set here = 1 %}{% for x in range(here) %}{{ x }}{% endfor %}{{ databse }}"
    assert undeclared(jinja, source, {"database"}) == {"databse"}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("{% if database == 'postgres' %}{% endif %}", 1),
        ("{% if 'postgres' != database %}{% endif %}", 1),
        ("{{ database in ['postgresql', 'mysql', 'maria'] }}", 2),
        ("{% if database not in ('mysql',) %}{% endif %}", 1),
        ("{% if x %}{% elif a and not (database == '') %}{% endif %}", 1),
        ("{% if 'db' in resources or 'dbs' in resources %}{% endif %}", 1),
        ("{% if database == 'postgresql' or database in ['none'] %}{% endif %}", 0),
        ("{% if project_name == 'x' %}{% endif %}", 0),
    ],
)
def test_an_impossible_comparison_is_found(
    source: str, found: int, jinja: SandboxedEnvironment
) -> None:
    values = {"database": {"postgresql", "sqlite", "none"}, "resources": {"db", "cache"}}
    assert len(list(impossible(jinja, source, values))) == found


def test_every_condition_is_counted(jinja: SandboxedEnvironment) -> None:
    source = "{% if a %}{% if b %}{% endif %}{% elif c %}{% elif d %}{% else %}{% endif %}"
    assert conditions(jinja, source) == 4


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("a = [{% if b %}1{% endif %}]\n", 1),
        ("{% if b %} x\n{% endif %}\n", 1),
        ("{% if b %}{% endif %}\n", 1),
        ("{% if b\n%}\n", 2),
        ("x {% for a in b %}\n", 1),
        ("  {% if b %}\n  x\n  {%- endif -%}\n", 0),
        ("{# {% if b %} x #}\na: {% raw %}${{ b }}{% endraw %}\n", 0),
    ],
)
def test_a_tag_in_a_line_of_text_is_found(source: str, found: int) -> None:
    assert len(list(crowded(source))) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("{{ 'a' if b else 'c' }}", 1),
        ("{% set a = 'a' if b else 'c' %}", 1),
        ("{{ b | ternary(1, 2) }}", 1),
        ("{{ a or b }}{{ not a }}{{ a == b }}{{ a and b }}", 4),
        ("{{ python(a | upper) }}{% if a == 1 and not b %}{% endif %}", 0),
    ],
)
def test_a_condition_in_an_expression_is_found(
    source: str, found: int, jinja: SandboxedEnvironment
) -> None:
    assert len(list(hidden_conditions(jinja, source))) == found


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"_tasks": []}, 1),
        ({"_tasks": ["true"], "_jinja_extensions": []}, 2),
        ({"_migrations": ["true", {"command": "true"}]}, 2),
        ({"_envops": {"undefined": "jinja2.StrictUndefined"}}, 1),
        ({"_migrations": [{"version": "2.0.0", "command": "true"}], "_envops": {}}, 0),
    ],
)
def test_a_setting_that_demands_trust_is_found(settings: dict[str, Any], found: int) -> None:
    assert len(list(distrusted(settings))) == found


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("{% if not a %}/x{% endif %}", 1),
        ("{% if a != 'b' %}/x{% endif %}", 1),
        ("{% if a not in ['b'] %}/x{% endif %}", 1),
        ("{% if a == 'b' and not c %}/x{% endif %}", 1),
        ("{% if a == 'b' or c %}/x{% endif %}", 1),
        ("{% if a == b %}/x{% endif %}", 1),
        ("{% if a == none %}/x{% endif %}", 1),
        ("{% if a in b %}/x{% endif %}", 1),
        ("{% if a | lower == 'b' %}/x{% endif %}", 1),
        ("{% if a is undefined %}/x{% endif %}", 1),
        ("{% if a == 'b' %}/x{% elif not c %}/y{% endif %}", 1),
        ("{% if a == 'b' %}/x{% else %}/y{% endif %}", 1),
        ("{% set b = 1 %}{{ a }}", 2),
        ("{% if a == 'b' %}{% for x in y %}/x{% endfor %}{% endif %}", 1),
        ("{% if a == 'b' %}\n/x\n{% elif a in ['c'] and d == 'e' or f == 'g' %}\n{% endif %}", 0),
        ("*.py[co]", 0),
    ],
)
def test_an_unsafe_exclusion_is_found(
    pattern: str, found: int, jinja: SandboxedEnvironment
) -> None:
    assert len(list(unsafe_exclusions(jinja, pattern))) == found


def test_a_stale_exclusion_is_found(tmp_path: Path) -> None:
    (tmp_path / "template" / "app").mkdir(parents=True)
    (tmp_path / "template" / "app" / "db.py.jinja").touch()
    pattern = "{% if a == 'b' %}\n/app\n/app/db.py\n/app/gone.py\n/app/\napp\n{% endif %}\n"
    found = list(stale_exclusions(tmp_path, pattern))
    assert [row.split(":")[0] for row in found] == ["/app/gone.py", "/app/", "app"]
    assert not list(stale_exclusions(tmp_path, "__pycache__"))


def test_an_untaken_branch_is_found() -> None:
    source = "{% if a == 1 %}{% if b %}{% endif %}\n{% elif a == 2 %}\n{% elif a %}\n{% endif %}"
    with pytest.MonkeyPatch.context() as patch:
        branches = Branches(patch)
        rendered = jinja2.Environment().from_string(source)
        for a in (1, 2, 3):
            rendered.render(a=a, b=True)
    assert [found.rsplit("line ")[-1] for found in branches.untaken()] == [
        "1: never False",
        "3: never False",
    ]


def test_only_questions_that_conditions_ask_about_decide(jinja: SandboxedEnvironment) -> None:
    by_computed: Answers = {"x": "{% if resources %}{{ python_version }}{% endif %}"}
    assert deciding(jinja, by_computed) == {"cache", "database"}
