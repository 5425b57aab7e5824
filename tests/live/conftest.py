"""What marks a rehearsal."""

import pytest

from tests.live.rehearsal import ROWS
from tests.live.target import Row


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "live: boots machines; needs root")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every process of four a long row and a short one: it takes two items at a time."""

    def place(item: pytest.Item) -> int:
        parameters = getattr(item, "callspec", None)
        row = parameters.params.get("row") if parameters else None
        if not isinstance(row, Row):
            return 4 * ROWS
        # Shorter than any other.
        if row.name.startswith("edge-"):
            return 3 * ROWS + row.number
        return 2 * row.number if row.deployment == "docker" else 2 * (ROWS - row.number) - 1

    items.sort(key=place)
