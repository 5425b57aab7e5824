"""What the doctor finds out about Redis."""

import pytest

from app.main import Settings
from tests.test_doctor import Found, found

__all__ = ["found"]


@pytest.mark.parametrize(
    ("url", "says", "mend"),
    [
        ("unix:///nowhere/redis.sock", "it cannot be reached: ", "start it, or mend REDIS_URL"),
        ("redis://127.0.0.1:1/0", "it cannot be reached: ", "start it, or mend REDIS_URL"),
    ],
)
def test_a_redis_that_is_away_is_named(
    settings: Settings, found: Found, monkeypatch: pytest.MonkeyPatch, url: str, says: str, mend: str
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    line = found()["redis"]
    assert (line.level, line.mend) == ("fail", mend)
    assert line.found.startswith(says)


def test_a_password_that_is_refused_is_named_and_not_told(
    settings: Settings, found: Found, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, _, place = redis_url.partition("://")
    monkeypatch.setenv("REDIS_URL", f"{scheme}://nobody:hunter2@{place}")
    line = found()["redis"]
    assert line.found.startswith("it answers and refuses: ")
    assert "hunter2" not in str(line)


def test_a_wrong_variable_does_not_hide_the_rest(
    settings: Settings, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "http://nowhere")
    lines = found()
    assert lines["settings"].level == "fail"
    assert (lines["cache"].level, lines["cache"].found) == ("warn", "not looked at, for want of REDIS_URL")
