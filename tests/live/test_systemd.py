"""Two instances of a unit, on what Debian has."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.rehearsal import rehearse, selected
from tests.live.systemd import Systemd
from tests.live.target import Row

pytestmark = [pytest.mark.slow, pytest.mark.live]

# With those of Docker every proxy meets every database.
ROWS = [
    Row("systemd", "caddy", "postgresql", "trixie", 0, cache="redis"),
    Row("systemd", "nginx", "sqlite", "bookworm", 1, "full"),
    Row("systemd", "nginx", "postgresql", "bookworm", 2, "full", usual=False),
    Row("systemd", "caddy", "sqlite", "bookworm", 3, "full", usual=False),
]


@pytest.mark.parametrize("row", selected(ROWS), ids=lambda row: row.name)
def test_a_server_lives_through_releases_faults_and_its_own_end(
    row: Row, template: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    rehearse(row, Systemd, template, tmp_path, record_property)
