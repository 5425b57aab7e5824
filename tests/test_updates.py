"""An update makes a project what the newest template renders, and keeps its owner's work."""

import re
import shutil
from pathlib import Path

import copier
import pytest
import yaml

from tests.combinations import (
    Answers,
    combinations,
    commit,
    config,
    files,
    git,
    render,
    row_id,
    snapshot,
)

ROWS = [
    pytest.param(row, id=row_id(row), marks=[pytest.mark.slow] if number else [])
    for number, row in enumerate(combinations(["database", "proxy", "deployment"]))
]

# The question of the newest version that the older one did not ask, and what it brought.
NEW_QUESTION = "ci"
NEW_FILES = [".github", ".gitlab-ci.yml", "app/errors.py", "tests/test_errors.py"]
OLD_FILES = {"app/legacy.py": '"""Gone."""\n', "legacy/notes/first.md": "# Gone\n"}

# Lines near those that owners edit, as they are and as they were; {} stands for any text.
OLDER = [
    ("README.md", "`make dev` serves on{}", "`make dev` served on{}"),
    ("README.md", "- `/api/v1/{} is the worked example.", "- Older: `/api/v1/{}"),
    ("README.md", "## Update from the template", "## Updates"),
    ("pyproject.toml", '    "uvicorn-worker{}', '    "uvicorn-worker>=0.3,<1",'),
    ("pyproject.toml", '    "schemathesis{}', '    "schemathesis>=4.30,<5",'),
    ("pyproject.toml", "fail_under = {}", "fail_under = 90"),
    ("Makefile", "test: install ##{}", "test: install ## Older words{}"),
    ("Makefile", "\t$(BIN)/ruff check .", "\t$(BIN)/ruff check --quiet ."),
    (
        "app/main.py",
        "    app.include_router(health.router)",
        "    app.include_router(health.route)",
    ),
    ("app/main.py", "from app import clients, crashes, docs, errors,{}", "from app import docs,{}"),
    ("app/settings.py", "def load(groups{}", "def load_all(groups{}"),
    ("app/settings.py", "class ServiceSettings({}", "class OwnSettings({}"),
    ("gunicorn_conf.py", "timeout = {}", "timeout = 60 or {}"),
]

# What an owner's edits put into files of the template.
OWN_WORDS = {
    "app/main.py": 'app.include_router(orders, prefix="/api/v1")',
    "app/settings.py": "    greeting: str",
    "pyproject.toml": '    "email-validator>=2,<3",',
    "README.md": "Orders are what this service is about.",
}

ROUTES = '''"""Orders: the routes."""

from fastapi import APIRouter

router = APIRouter(prefix="/orders", tags=["orders"])


@router.get("")
async def list_orders() -> list[str]:
    """List orders."""
    return []
'''

# What databases have run, and no update touches.
FIRST_MIGRATION = "migrations/versions/0001_items.py"

MIGRATION = '''"""Orders."""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Make the table."""
    op.create_table("orders", sa.Column("id", sa.Uuid(), nullable=False))


def downgrade() -> None:
    """Drop it."""
    op.drop_table("orders")
'''


def in_template(source: Path, name: str) -> Path:
    """The file of the template that a project's file comes from."""
    path = source / "template" / name
    return path if path.exists() else path.with_name(f"{path.name}.jinja")


def make_older(source: Path) -> None:
    """Turn the template as it stands into a version from before it."""
    settings = config()
    question = re.compile(rf"^{NEW_QUESTION}:\n(?:[ ].*\n)+\n?", re.MULTILINE)
    exclusion = re.compile(rf"^  - \|\n    {{% if {NEW_QUESTION} ==.*\n(?:    .*\n)+", re.MULTILINE)
    text = (source / "copier.yml").read_text()
    for part in (question, exclusion):
        text, count = part.subn("", text)
        assert count == 1
    (source / "copier.yml").write_text(text)
    assert set(settings) - set(yaml.safe_load(text)) == {NEW_QUESTION}

    for name in NEW_FILES:
        path = in_template(source, name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, text in OLD_FILES.items():
        (source / "template" / name).parent.mkdir(parents=True, exist_ok=True)
        (source / "template" / name).write_text(text)

    for name, new, old in OLDER:
        path = in_template(source, name)
        line = re.compile(f"^{re.escape(new)}$".replace(re.escape("{}"), "(.*)"), re.MULTILINE)
        text, count = line.subn(old.replace("{}", r"\1"), path.read_text())
        assert count == 1, f"{name} has no single line {new!r}"
        path.write_text(text)
    for name in config()["_skip_if_exists"]:
        path = in_template(source, name)
        text, count = re.subn(r"^fastapi==.* \\$", r"fastapi==0.1 \\", path.read_text(), flags=re.M)
        assert count == 1
        path.write_text(text)
    path = in_template(source, FIRST_MIGRATION)
    path.write_text(path.read_text().replace('op.drop_table("items")', 'op.drop_table("things")'))
    # Everything else was a little other, too.
    for path in (source / "template" / "app").rglob("*.py*"):
        with path.open("a") as file:
            file.write("\n# This line was taken away later.\n")


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with an older release, v0.1.0, and the template as it stands, v0.2.0."""
    source = snapshot(tmp_path_factory.mktemp("history"))
    make_older(source)
    commit(source, tag="v0.1.0")
    for path in source.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return commit(snapshot(source), tag="v0.2.0")


def insert(path: Path, anchor: str, text: str, *, before: bool = False) -> None:
    """Add lines after, or before, the one line that begins with `anchor`."""
    lines = path.read_text().splitlines(keepends=True)
    found = [number for number, line in enumerate(lines) if line.startswith(anchor)]
    assert found, f"{path} has no line {anchor!r}"
    at = found[0] if before else found[0] + 1
    path.write_text("".join([*lines[:at], text, *lines[at:]]))


def edit(project: Path, answers: Answers) -> Path:
    """Do what an owner does: a route, a dependency, a migration, a setting, words."""
    (project / "app" / "orders").mkdir()
    (project / "app" / "orders" / "__init__.py").write_text('"""Orders."""\n')
    (project / "app" / "orders" / "routes.py").write_text(ROUTES)
    main = project / "app" / "main.py"
    insert(main, "from app.middleware import", "from app.orders.routes import router as orders\n")
    insert(
        main, "    return app", '    app.include_router(orders, prefix="/api/v1")\n', before=True
    )
    own = "    # Add your own below this line"
    insert(project / "pyproject.toml", own, '    "email-validator>=2,<3",\n')
    insert(
        project / "app" / "settings.py",
        "    # Add fields here",
        '\n    greeting: str = Field("Hello", description="What is said first.")\n',
    )
    insert(
        project / "README.md",
        "## Configuration",
        "## Orders\n\nOrders are what this service is about.\n\n",
        before=True,
    )
    insert(project / "README.md", "# ", "\nOur team looks after it.\n")
    pins = project / "requirements.txt"
    pins.write_text(f"{pins.read_text()}email-validator==2.3.0\n")
    if answers["database"] != "none":
        (project / "migrations" / "versions" / "0002_orders.py").write_text(MIGRATION)
    return project


def contents(project: Path) -> dict[str, tuple[bytes, bool]]:
    """Every file's bytes, and whether it is executable, but for what is the owner's after birth."""
    return {
        name: (path.read_bytes(), bool(path.stat().st_mode & 0o111))
        for name, path in files(project).items()
        if name not in {*config()["_skip_if_exists"], FIRST_MIGRATION}
    }


def update(project: Path) -> None:
    """Update as an owner does, without trust."""
    copier.run_update(project, defaults=True, overwrite=True, quiet=True)


def differences(project: Path, wanted: Path) -> list[str]:
    """The files in which two projects differ."""
    one, other = contents(project), contents(wanted)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


# What is edited is in every row; here every choice is in one at least.
@pytest.mark.parametrize("answers", ROWS[::3])
def test_an_unedited_project_becomes_what_a_fresh_copy_is(
    answers: Answers, history: Path, tmp_path: Path
) -> None:
    project = commit(render(history, tmp_path / "project", version="v0.1.0", **answers))
    fresh = render(history, tmp_path / "fresh", **answers)
    kept = {*config()["_skip_if_exists"], FIRST_MIGRATION} & set(files(project))
    assert (FIRST_MIGRATION in kept) == (answers["database"] != "none")
    before = {name: (project / name).read_text() for name in kept}
    assert len(differences(project, fresh)) > 15
    assert set(OLD_FILES) <= set(files(project))

    update(project)
    assert differences(project, fresh) == []
    assert not (project / "legacy").exists()
    for name, text in before.items():
        assert (project / name).read_text() == text != (fresh / name).read_text()


@pytest.mark.parametrize("answers", ROWS)
def test_an_edited_project_keeps_its_edits_without_a_conflict(
    answers: Answers, history: Path, tmp_path: Path
) -> None:
    project = render(history, tmp_path / "project", version="v0.1.0", **answers)
    commit(edit(commit(project), answers))
    edited = edit(render(history, tmp_path / "edited", **answers), answers)
    pins = (project / "requirements.txt").read_text()

    update(project)
    assert not [name for name in files(project) if name.endswith(".rej")]
    assert not [name for name, path in files(project).items() if "<<<<<<<" in path.read_text()]
    assert differences(project, edited) == []
    for name, words in OWN_WORDS.items():
        assert words in (project / name).read_text()
    assert (project / "requirements.txt").read_text() == pins
    assert pins.endswith("email-validator==2.3.0\n")


def test_a_migration_that_the_owner_has_deleted_stays_away(history: Path, tmp_path: Path) -> None:
    project = commit(render(history, tmp_path / "project", version="v0.1.0"))
    (project / FIRST_MIGRATION).unlink()
    own = project / "migrations" / "versions" / "2026_own.py"
    own.write_text(MIGRATION)
    update(commit(project))
    assert not (project / FIRST_MIGRATION).exists()
    assert own.read_text() == MIGRATION


@pytest.mark.slow
def test_a_conflict_would_be_seen(history: Path, tmp_path: Path) -> None:
    project = commit(render(history, tmp_path / "project", version="v0.1.0"))
    text = (project / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(text.replace("fail_under = 90", "fail_under = 50"))
    commit(project)
    update(project)
    assert "<<<<<<<" in (project / "pyproject.toml").read_text()
    assert git(project, "status", "--porcelain", "pyproject.toml").startswith("UU")
    assert "pyproject.toml" in differences(project, render(history, tmp_path / "fresh"))
