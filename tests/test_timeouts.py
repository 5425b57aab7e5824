"""Whoever waits waits longer than whom it waits for, in every project, and its README says so."""

import re
from pathlib import Path

from tests.combinations import Answers, pairwise, render, row_id

# Innermost first; what a project has no part of is left out of its own row.
ORDERS = (
    ("REDIS_TIMEOUT_S", "APP_REQUEST_BUDGET_S"),
    ("DATABASE_CHECKOUT_TIMEOUT_S", "APP_REQUEST_BUDGET_S"),
    ("DATABASE_CONNECT_TIMEOUT_S", "APP_REQUEST_BUDGET_S"),
    ("DATABASE_STATEMENT_TIMEOUT_S", "APP_REQUEST_BUDGET_S"),
    ("DATABASE_BUSY_TIMEOUT_S", "APP_REQUEST_BUDGET_S"),
    ("CLIENT_TOTAL_TIMEOUT_S", "APP_REQUEST_BUDGET_S"),
    ("APP_REQUEST_BUDGET_S", "SERVER_DRAIN_S"),
    ("SERVER_DRAIN_S", "graceful_timeout"),
    ("graceful_timeout", "proxy_read_timeout"),
    ("graceful_timeout", "response_header_timeout"),
    ("graceful_timeout", "stop_grace_period"),
    ("graceful_timeout", "TimeoutStopSec"),
)
# What a part is by one file alone, and how it is written there.
FILES = {
    "proxy_read_timeout": ("deploy/nginx-https.conf", r"^    proxy_read_timeout (\d+)s;$"),
    "response_header_timeout": ("deploy/site.caddy", r"^\t+response_header_timeout (\d+)s$"),
    "stop_grace_period": ("compose.yaml", r"^x-slot:.*?^  stop_grace_period: (\d+)s$"),
    "TimeoutStopSec": ("deploy/app@.service", r"^TimeoutStopSec=(\d+)$"),
}
# Beside the margin, time for the master.
SPARE_S = 5


def figures(project: Path) -> dict[str, float]:
    """Read every timeout out of the project's own files, in seconds."""
    example = (project / ".env.example").read_text()
    found = {
        name: float(value)
        for name, value in re.findall(r"^#?([A-Z_]+_S)=([\d.]+)$", example, re.MULTILINE)
    }
    assert (
        "graceful_timeout = settings.server.drain_s + STOP_MARGIN_S"
        in (project / "gunicorn_conf.py").read_text()
    )
    worker = (project / "app/worker.py").read_text()
    margin = re.search(r"^STOP_MARGIN_S = (\d+)$", worker, re.MULTILINE)
    assert margin
    found["graceful_timeout"] = found["SERVER_DRAIN_S"] + float(margin[1])
    for name, (path, pattern) in FILES.items():
        if (project / path).exists():
            text = (project / path).read_text()
            match = re.search(pattern, text, re.MULTILINE | re.DOTALL)
            assert match, f"{path} sets no {name}"
            found[name] = float(match[1])
    return found


Row = tuple[str, float, set[tuple[str, str]]]


def table(project: Path) -> list[Row]:
    """Read the README's table: where each is set, its default, and its orders."""
    readme = (project / "README.md").read_text()
    (section,) = re.findall(r"^## Timeouts$(.*?)^## ", readme, re.MULTILINE | re.DOTALL)
    rows = []
    for line in section.splitlines()[:-1]:
        match = re.fullmatch(r"\| [^|]+ \| `(\w+)`[^|]* \| (\d+) s \| (\w+) than `(\w+)` \|", line)
        if match:
            name, default, order, other = match.groups()
            orders = {(name, other) if order == "shorter" else (other, name)}
            rows.append((name, float(default), orders))
        else:
            assert not line.startswith("| a"), line
    return rows


def mistakes(found: dict[str, float], rows: list[Row]) -> list[str]:
    """Say what is out of order, and where the table is wrong."""
    orders = {(short, long) for short, long in ORDERS if short in found and long in found}
    wrong = [
        f"{short} ({found[short]:g} s) is not below {long} ({found[long]:g} s)"
        for short, long in sorted(orders)
        if found[short] >= found[long]
    ]
    stops = [found[name] for name in ("stop_grace_period", "TimeoutStopSec") if name in found]
    if min(stops) < found["graceful_timeout"] + SPARE_S:
        wrong.append("the supervisor leaves the master no time")
    reads = [
        found[name] for name in ("proxy_read_timeout", "response_header_timeout") if name in found
    ]
    if min(stops) <= max(reads):
        wrong.append("the supervisor kills what the proxy still waits for")
    for name, default, _ in rows:
        if found.get(name) != default:
            wrong.append(f"the table says {default:g} s for {name}, which has {found.get(name)}")
    named = {name for name, _, _ in rows}
    wrong += [f"the table lacks {name}" for name in sorted({*sum(orders, ())} - named)]
    said = {order for _, _, own in rows for order in own}
    wrong += [f"the table does not say {short} < {long}" for short, long in sorted(orders - said)]
    wrong += [f"the table says {short} < {long}" for short, long in sorted(said - orders)]
    if [default for _, default, _ in rows] != sorted(default for _, default, _ in rows):
        wrong.append("the table is not in order")
    return wrong


def test_the_timeouts_are_in_order_and_in_the_table(template: Path, tmp_path: Path) -> None:
    kinds = ("database", "proxy", "deployment", "cache")
    seen = []
    for answers in pairwise():
        kind: Answers = {name: answers[name] for name in kinds}
        if kind in seen:
            continue
        seen.append(kind)
        project = render(template, tmp_path / row_id(answers), **answers)
        found, rows = figures(project), table(project)
        assert mistakes(found, rows) == [], row_id(answers)
        # Nothing that a project has is missing from its orders.
        assert len(rows) >= 5
    assert len(seen) >= 6


def test_what_is_out_of_order_is_noticed(template: Path, tmp_path: Path) -> None:
    project = render(template, tmp_path / "project")
    found, rows = figures(project), table(project)
    for short, long in ORDERS:
        if short in found and long in found:
            assert any(
                f"{short} " in line and long in line
                for line in mistakes(found | {short: found[long]}, rows)
            )
    assert "the table lacks DATABASE_CHECKOUT_TIMEOUT_S" in mistakes(found, rows[1:])
    name, default, orders = rows[-1]
    assert len(mistakes(found, [*rows[:-1], (name, default - 1, orders)])) == 1
    assert len(mistakes(found, [*rows[:-1], (name, default, set())])) == 1
    assert "the table is not in order" in mistakes(found, rows[::-1])
