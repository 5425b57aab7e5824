"""The benchmarks run, measure everything that they promise, and see no gross regression."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import BEGIN, DOCUMENT, END, FEATURES, LIMITED, found
from benchmarks.proxies import PROXIES
from tests.combinations import ROOT

# The goal is far below; on a busy machine everything is dearer for whoever has more code.
AT_MOST = 2.0
PROGRAMS = ("caddy", "h2load", "nginx", "taskset", "uv")


def assert_complete(text: str) -> None:
    """Check that every figure is there."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    rows = {cell[0]: cell[1:] for cell in cells if cell}
    expected = {"an ASGI callable", "FastAPI alone", "the generated service", "unix socket", "TCP"}
    expected |= {f"without {feature}" for feature in FEATURES} | {LIMITED}
    expected |= {f"{proxy} in front, its own" for proxy in PROXIES}
    assert expected <= set(rows), expected - set(rows)
    assert all(figure for name in expected for figure in rows[name])


def test_the_document_has_every_figure() -> None:
    assert_complete(DOCUMENT.read_text())


@pytest.mark.slow
def test_the_command_measures_every_row_and_the_service_costs_little(tmp_path: Path) -> None:
    missing = [name for name in PROGRAMS if not found(name)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}old\n{END}\nafter\n")
    command = [sys.executable, "-m", "benchmarks"]
    done = subprocess.run(
        [*command, "--starts=1", "--rounds=2", "--requests=400", "--write", document],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = document.read_text()
    assert text.startswith(f"before\n{BEGIN}")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text

    assert_complete(text)
    ratios = {
        cells[0]: float(cells[2])
        for cells in (line.strip("| ").split(" | ") for line in text.splitlines())
        if len(cells) == 3 and cells[1].endswith("µs")
    }
    assert ratios["FastAPI alone"] == 1
    # Two turns on a busy machine do not tell the service from FastAPI alone.
    services = (ratios["the generated service"], ratios[LIMITED])
    assert ratios["an ASGI callable"] < min(1, *services), ratios
    assert max(services) < AT_MOST, ratios
