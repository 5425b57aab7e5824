"""What the doctor finds inside of a release."""

from collections.abc import Callable

import pytest

from app.main import Settings
from app.settings import SettingsError
from scripts import doctor
from scripts.doctor import main
from scripts.findings import Finding

Found = Callable[[], dict[str, Finding]]


@pytest.fixture
def found(capsys: pytest.CaptureFixture[str]) -> Found:
    """Look at everything; the fixture returns the lines, by what each is about."""

    def look() -> dict[str, Finding]:
        status = main()
        said = capsys.readouterr().out.splitlines()
        # The log may be there, too.
        lines = [Finding(*line.split("\t")) for line in said if "\t" in line]
        assert status == any(line.level == "fail" for line in lines)
        return {line.what: line for line in lines}

    return look


def test_nothing_fails_where_nothing_is_wrong(settings: Settings, found: Found) -> None:
    levels = {what: line.level for what, line in found().items()}
    assert set(levels.values()) == {"ok"}
    assert next(iter(levels)) == "settings"


def test_a_wrong_variable_is_named_without_its_value(
    settings: Settings, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "hunter2")
    line = found()["settings"]
    assert line.level == "fail"
    assert line.found.startswith("WEB_CONCURRENCY: ")
    assert "config WEB_CONCURRENCY=" in line.mend
    assert "hunter2" not in str(line)


def test_what_breaks_hides_nothing_and_no_password_is_printed(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks() -> list[Finding]:
        raise RuntimeError("no way to\nx://me:hunter2@host/name")

    def wants_settings() -> list[Finding]:
        raise SettingsError({"THE_URL": "is not set"})

    last = Finding("ok", "last", "it is fine", "")
    parts = {"first": breaks, "second": wants_settings, "last": lambda: [last]}
    monkeypatch.setattr(doctor, "PARTS", parts)
    lines = found()
    assert [(line.what, line.level) for line in lines.values()] == [
        ("first", "fail"),
        ("second", "warn"),
        ("last", "ok"),
    ]
    assert "RuntimeError" in lines["first"].found
    assert "hunter2" not in str(lines)
    assert "THE_URL" in lines["second"].found
