"""What marks a rehearsal."""

import pytest

from tests.live.target import Row

# Every process begins with two of them: nobody gets two that are long.
ORDER = [
    *("docker-nginx-postgresql", "1.18", "docker-caddy-sqlite", "1.22"),
    *(
        "systemd-caddy-postgresql",
        "edge-systemd-nginx",
        "systemd-nginx-sqlite",
        "edge-docker-caddy",
    ),
    *("edge-systemd-caddy", "edge-docker-nginx"),
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "live: boots machines; needs root")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what takes longest begin first."""

    def place(item: pytest.Item) -> int:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        row = parameters.get("row")
        name = row.name if isinstance(row, Row) else parameters.get("version")
        return ORDER.index(name) if name in ORDER else len(ORDER)

    items.sort(key=place)
