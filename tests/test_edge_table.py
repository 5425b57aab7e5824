"""The live check can read the table of abuses, and gixy objects to none of our files."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from tests.combinations import render
from tests.live.abuse import DOCUMENT, PROXIES, Abuse, compare, in_logs, table

ROWS = table(DOCUMENT.read_text())
# A file that is looked for each time costs little beside TLS, and is found as soon as it is there.
NO_OBJECTIONS = ("try_files_is_evil_too",)
VERSIONS = ("1.18.0", "1.22.1", "1.26.3", "1.30.6", "2.6.2", "2.11.4")


def test_the_table_names_every_abuse_once() -> None:
    names = [row.name for row in ROWS]
    assert len(names) > 150
    assert len(names) == len(set(names))


def test_a_difference_between_the_proxies_has_a_reason() -> None:
    for row in ROWS:
        assert row.nginx, row
        assert row.caddy, row
        same = row.nginx == row.caddy and ";" not in row.nginx
        assert (row.why == "-") == same, row


def test_every_cell_can_be_read_for_every_version() -> None:
    for row, proxy, version in itertools.product(ROWS, PROXIES, VERSIONS):
        outcome = row.outcome(proxy, version)
        assert outcome, row
        assert ":" not in outcome, row
        assert "500" not in outcome, row


def test_what_is_missing_superfluous_or_different_is_noticed() -> None:
    rows = [Abuse("a", "400; 1.22: 200", "cut or kept", "x"), Abuse("b", "400", "400", "-")]
    assert compare(rows, {"a": "200", "b": "400"}, "nginx", "1.22.1") == []
    assert compare(rows, {"a": "400", "b": "400"}, "nginx", "1.30.6") == []
    assert compare(rows, {"a": "kept", "b": "400"}, "caddy", "2.6.2") == []
    assert len(compare(rows, {"a": "400", "b": "400"}, "nginx", "1.22.1")) == 1
    assert len(compare(rows, {"a": "200"}, "nginx", "1.22.1")) == 1
    assert len(compare(rows, {"a": "200", "b": "400", "c": "400"}, "nginx", "1.22.1")) == 1


@pytest.mark.parametrize(
    ("proxied", "logged"),
    [
        ("no JSON", "{}"),
        ("[]", "{}"),
        ('{"path":"\u2028"}', "{}"),
        ('{"path":"\udcff"}', "{}"),
        ("{}", '{"path":"\x1b"}'),
        ("{}", '{"status": 500}'),
        ("{}", '{"level": "error"}'),
        ("{}", '{"exception": "Traceback"}'),
        ("{}", '{"event": "forged"}'),
        ("{}", '{"path": "/metrics"}'),
        ("{}", '{"path": "/x/.env"}'),
        ('{"request_id": "one"}', '{"path": "/planted", "request_id": "another"}'),
    ],
)
def test_what_is_wrong_in_a_log_is_noticed(proxied: str, logged: str) -> None:
    assert len(in_logs([proxied], [logged])) == 1
    assert in_logs(['{"request_id": "one"}'], ['{"path": "/planted", "request_id": "one"}']) == []


@pytest.mark.parametrize("deployment", ["systemd", "docker"])
def test_gixy_finds_nothing_in_our_nginx_files(
    deployment: str, template: Path, tmp_path: Path
) -> None:
    project = render(template, tmp_path / "project", proxy="nginx", deployment=deployment)
    files = sorted((project / "deploy").glob("nginx*.conf"))
    assert len(files) >= 4
    skipped = f"--skips={','.join(NO_OBJECTIONS)}"
    done = subprocess.run(
        [sys.executable, "-m", "gixy.cli", skipped, *files], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Problem" not in done.stdout
