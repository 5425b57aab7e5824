"""What marks a rehearsal."""

import pytest

from tests.live.target import Row

# Each of five processes begins with two, and no other takes its second: after a long one, a short.
ORDER = [
    *("systemd-nginx-sqlite", "1.18"),
    *("docker-nginx-postgresql", "1.22"),
    *("docker-caddy-sqlite", "1.26"),
    *("systemd-caddy-postgresql", "edge-docker-caddy"),
    *("edge-docker-nginx", "edge-systemd-caddy"),
    "edge-systemd-nginx",
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
