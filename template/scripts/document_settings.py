"""Write .env.example and the README's table of variables from the settings (`make settings`)."""

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.main import Settings
from app.settings import DEVELOPMENT_ONLY, EnvSettings, settings_groups

ROOT = Path(__file__).parents[1]
ENV_EXAMPLE = ROOT / ".env.example"
README = ROOT / "README.md"
TABLE = re.compile(r"(?<=<!-- settings: begin -->\n).*(?=<!-- settings: end -->)", re.DOTALL)
ASSIGNMENT = re.compile(r"^([A-Z0-9_]+)=(.*)$", re.MULTILINE)

HEAD = """\
# What the service reads from its environment in production. A line that is commented out shows the default.
# Development needs none of this; a copy named .env is read there if it exists.
"""


def variables() -> Iterator[tuple[type[EnvSettings], list[tuple[str, FieldInfo]]]]:
    """Yield each settings group with its variables; one that all groups share comes with the first."""
    seen: set[str] = set()
    for _, group in settings_groups(Settings):
        named = [(group.variable(name), field) for name, field in group.model_fields.items()]
        yield group, [(variable, field) for variable, field in named if variable not in seen]
        seen.update(variable for variable, _ in named)


def default(field: FieldInfo) -> str:
    """Return a field's default as its variable would be written, empty where there is none."""
    value = field.default
    if field.is_required() or value is None or field.json_schema_extra == DEVELOPMENT_ONLY:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def must_be_set(field: FieldInfo) -> bool:
    """Return whether production refuses to start without the variable."""
    return field.is_required() or field.json_schema_extra == DEVELOPMENT_ONLY


def env_example(current: str) -> str:
    """Return .env.example; what it sets now stays set."""
    values = dict(ASSIGNMENT.findall(current))
    lines = [HEAD]
    for group, fields in variables():
        lines.append(f"# --- {title(group)}\n")
        for variable, field in fields:
            value = values.get(variable, "change-me" if must_be_set(field) else None)
            assignment = f"#{variable}={default(field)}" if value is None else f"{variable}={value}"
            lines.append(f"# {(field.description or '').replace('`', '')}\n{assignment}\n")
    return "\n".join(lines)


def table() -> str:
    """Return the README's table."""
    lines = []
    for group, fields in variables():
        lines.append(f"\n### {title(group)}\n")
        if not fields:
            lines.append(f"None yet: add them to `{group.__name__}`.")
            continue
        lines += ["| Variable | Default | Meaning |", "|---|---|---|"]
        for variable, field in fields:
            shown = "must be set" if must_be_set(field) else f"`{default(field)}`" if default(field) else ""
            lines.append(f"| `{variable}` | {shown} | {field.description} |")
    return "\n".join([*lines, "", ""])


def title(group: type[EnvSettings]) -> str:
    """Return a group's title, the first line of its docstring."""
    return (group.__doc__ or group.__name__).splitlines()[0].rstrip(".")


def main() -> None:
    """Write both files."""
    ENV_EXAMPLE.write_text(env_example(ENV_EXAMPLE.read_text()))
    README.write_text(TABLE.sub(lambda _: table(), README.read_text()))


if __name__ == "__main__":
    main()
