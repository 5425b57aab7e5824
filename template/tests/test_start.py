"""A start that fails: of all that was said, the last line names what the rest follows from."""

import logging

import pytest

from app.start import problem_of, why


def found(*records: dict[str, object]) -> dict[str, str]:
    """Return what the last line says after these records."""
    return why([problem_of(logging.makeLogRecord({"levelno": logging.ERROR, **one})) for one in records])


def test_the_first_error_is_the_cause_of_the_others() -> None:
    said = found(
        {"msg": "Traceback (most recent call last):\n  File x\nRuntimeError: no key\n"},
        {"msg": "Application startup failed. Exiting."},
        {"msg": "Worker (pid:%s) exited with code %s.", "args": (7, 3)},
    )
    assert said == {"problem": "RuntimeError: no key"}


def test_every_refused_setting_is_named() -> None:
    refused = {"event": "setting_refused", "variable": "A", "problem": "is not set"}
    said = found({"msg": refused}, {"msg": refused | {"variable": "B", "problem": "must be 1"}})
    assert said["problem"] == "A is not set; B must be 1"
    assert said["mend"]


def test_an_error_that_knows_its_mend_keeps_it() -> None:
    event = {"event": "store_away", "error": "OSError()", "mend": "start it"}
    assert found({"msg": event}) == {"problem": "store_away: OSError()", "mend": "start it"}


@pytest.mark.parametrize(
    "error", [PermissionError(13, "no", "/x"), (OSError, PermissionError(13, "no"), None)]
)
def test_an_exception_is_named_by_type_and_text(error: object) -> None:
    said = found({"msg": {"event": "uncaught_exception", "exc_info": error}})
    assert said["problem"].startswith("PermissionError: [Errno 13] no")
    assert "service's user" in said["mend"]


def test_of_what_is_printed_the_last_line_counts_and_an_error_counts_more() -> None:
    printed = {"msg": "printed", "levelno": logging.WARNING, "text": "Traceback"}
    last = printed | {"text": "ImportError: no module"}
    assert found(printed, last)["problem"] == "ImportError: no module"
    assert found(printed, {"msg": "it broke"}, last)["problem"] == "it broke"


def test_warnings_alone_are_no_failure() -> None:
    assert found({"msg": "careful", "levelno": logging.WARNING}) == {}
    assert found() == {}
