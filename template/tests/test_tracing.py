"""Tracing and Sentry: off, nothing of them is there; what is set wrongly is refused by name."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

from app import tracing
from app.main import Settings
from app.settings import SettingsError, load

ROOT = Path(__file__).parents[1]
OFF = """
import sys
from app.main import create_app
create_app()
print(sorted(name for name in sys.modules if name.startswith(("opentelemetry.sdk", "sentry_sdk", "app.se", "app.sp"))))
"""


def mistakes() -> dict[str, str]:
    """Load the settings and return what is wrong with them."""
    with pytest.raises(SettingsError) as caught:
        load(Settings)
    return caught.value.mistakes


def test_off_nothing_of_them_is_imported(app: FastAPI) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", OFF], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "['app.settings']"


@pytest.mark.parametrize(
    ("variable", "value", "group"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318", "tracing"),
        ("SENTRY_DSN", "https://key@127.0.0.1/7", "sentry"),
    ],
)
def test_a_variable_without_its_dependencies_is_refused_with_the_mend(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, group: str
) -> None:
    monkeypatch.setattr(tracing, "find_spec", lambda _name: None)
    monkeypatch.setenv(variable, value)
    assert f"EXTRAS := {group}" in mistakes()[variable]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
        ("TRACING_SAMPLE_RATIO", "2"),
        ("SENTRY_TRACES_SAMPLE_RATE", "-1"),
    ],
)
def test_what_cannot_be_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert mistakes().keys() == {variable}
    assert "hunter2" not in str(mistakes())


def test_a_line_says_its_span_where_there_is_one() -> None:
    assert tracing.add_trace_ids(None, "info", {"event": "a"}) == {"event": "a"}
    with trace.use_span(NonRecordingSpan(SpanContext(0xAB, 0xCD, is_remote=False))):
        line = tracing.add_trace_ids(None, "info", {"event": "a"})
    assert line == {"event": "a", "trace_id": f"{0xAB:032x}", "span_id": f"{0xCD:016x}"}


async def test_what_hangs_at_the_end_holds_nothing_up() -> None:
    started = time.monotonic()
    closed: list[int] = []
    await tracing.within(10, lambda: closed.append(1))
    await tracing.within(0.1, lambda: time.sleep(0.5))
    assert closed == [1]
    assert time.monotonic() - started < 5
    # Its end, when nobody waits, is no error.
    await asyncio.sleep(0.5)
