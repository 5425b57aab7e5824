"""Every line is one JSON object, whoever wrote it, and none holds a secret."""

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from select import PIPE_BUF

import httpx2
import pytest
import structlog
from fastapi import FastAPI

from app import logs
from tests.conftest import LogLines, client_of

ROOT = Path(__file__).parents[1]


def test_every_source_writes_the_same_form(log_lines: LogLines) -> None:
    structlog.get_logger("own").info("own_event", number=1)
    logging.getLogger("third.party").warning("said %s", "this", extra={"color_message": "red", "more": 2})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # pytest put its own capture over ours.
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    own, third, warning = log_lines()
    assert (own["event"], own["logger"], own["level"], own["number"]) == ("own_event", "own", "info", 1)
    assert (third["event"], third["logger"], third["more"]) == ("said this", "third.party", 2)
    assert "color_message" not in third
    assert (warning["logger"], warning["level"]) == ("py.warnings", "warning")
    assert all(line["timestamp"].endswith("Z") for line in (own, third, warning))


def test_what_a_client_sends_cannot_begin_a_line_of_its_own(log_lines: LogLines) -> None:
    evil = 'a"}\n{"event":"forged"}\r\x1b[31m\u2028\x85\x00\ud800'
    structlog.get_logger().info("event", text=evil)
    (line,) = log_lines()
    assert line["text"] == evil


def test_secrets_are_redacted_by_key_at_any_depth_and_in_urls(
    log_lines: LogLines, capsys: pytest.CaptureFixture[str]
) -> None:
    log = structlog.get_logger()
    log.info(
        "event",
        password="hunter2",
        headers=[{"Authorization": "Bearer hunter2", "Accept": "text/plain"}],
        url="amqp://user:hunter2@host/name",
        short="ftp://:hunter2@host/0",
        api_key=["hunter2"],
    )
    try:
        raise ConnectionError("cannot reach ldap://user:hunter2@host")
    except ConnectionError:
        log.exception("failed")
    logging.getLogger("third.party").info("connecting to https://user:hunter2@host/")
    written = capsys.readouterr().out
    assert "hunter2" not in written
    assert len(written.splitlines()) == 3
    first = json.loads(written.splitlines()[0])
    assert first["password"] == logs.REDACTED
    assert first["headers"] == [{"Authorization": logs.REDACTED, "Accept": "text/plain"}]
    assert first["url"] == f"amqp://user:{logs.REDACTED}@host/name"


def test_a_traceback_is_part_of_its_line_and_shows_no_local_variables(log_lines: LogLines) -> None:
    def fail() -> None:
        local = "hunter2"
        raise ValueError(len(local))

    try:
        fail()
    except ValueError:
        logging.getLogger("third.party").exception("failed")
    (line,) = log_lines()
    assert line["exception"][0]["exc_type"] == "ValueError"
    assert line["exception"][0]["frames"][-1]["name"] == "fail"
    assert "hunter2" not in json.dumps(line)


def test_a_record_that_cannot_be_formatted_is_reported_as_a_line(log_lines: LogLines) -> None:
    record = logging.LogRecord("third.party", logging.INFO, __file__, 1, "%d %d", (1,), None)
    (handler,) = [handler for handler in logging.getLogger().handlers if isinstance(handler, logs.Handler)]
    handler.handle(record)
    (line,) = log_lines()
    assert (line["event"], line["logger"], line["template"]) == ("log_line_lost", "third.party", "%d %d")


def test_a_full_disk_under_the_log_does_not_stop_the_service(
    log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    with os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(full, write_through=True))
        logging.getLogger("third.party").info("lost")
        monkeypatch.undo()
    logging.getLogger("third.party").info("written")
    assert [line["event"] for line in log_lines()] == ["written"]


def test_what_ends_a_thread_or_only_can_be_reported_is_logged(log_lines: LogLines) -> None:
    def fail() -> None:
        raise RuntimeError("in a thread")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    sys.unraisablehook(type("Args", (), {"exc_value": RuntimeError("in a finalizer")})())
    in_thread, unraisable = log_lines()
    assert (in_thread["event"], in_thread["exception"][0]["exc_value"]) == (
        "uncaught_exception_in_thread",
        "in a thread",
    )
    assert unraisable["event"] == "unraisable_exception"


def test_what_ends_the_process_is_logged() -> None:
    code = "from app import logs; logs.configure(); 1 / 0"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == ""
    line = json.loads(ended.stdout)
    assert (line["event"], line["exception"][0]["exc_type"]) == ("uncaught_exception", "ZeroDivisionError")


PRINTS = """
import os, sys
from app import logs

logs.begin()
logs.begin()
print("one\\ntwo")
print("thr", end="")
print("ee", file=sys.stdout)
print("four", file=sys.stderr)
os.system("echo '{}'")
"""


def test_what_is_printed_past_the_log_becomes_lines_of_it() -> None:
    environment = os.environ | {"APP_LOG_FORMAT": "json"}
    ended = subprocess.run(
        [sys.executable, "-c", PRINTS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stderr == ""
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    printed = [(line["logger"], line["text"]) for line in lines if line]
    assert printed == [("stdout", "one"), ("stdout", "two"), ("stdout", "three"), ("stderr", "four")]


async def test_requests_of_one_moment_are_written_together_but_never_so_many_that_lines_break(
    log_lines: LogLines, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(logs, "write", written.append)
    paths = [f"/no/such/{number}" for number in range(40)]
    # A line of its own, which no limit can make shorter.
    paths[20] += PIPE_BUF * "x"
    await asyncio.gather(*map(client.get, paths))
    await asyncio.sleep(2 * logs.WRITE_WITHIN_S)
    monkeypatch.undo()
    lines = [json.loads(line) for text in written for line in text.splitlines()]
    assert sorted(line["path"] for line in lines) == sorted(paths)
    assert len(written) < len(lines) / 2
    assert [len(text.splitlines()) for text in written if len(text) > PIPE_BUF] == [1]


async def test_the_line_of_a_request_comes_before_what_is_logged_after_it(
    log_lines: LogLines, client: httpx2.AsyncClient
) -> None:
    await client.get("/no/such")
    structlog.get_logger("own").info("own_event")
    assert [line["event"] for line in log_lines()] == ["request", "own_event"]


async def test_what_a_route_binds_is_in_the_line_of_its_request(app: FastAPI, log_lines: LogLines) -> None:
    @app.get("/bound")
    async def bound() -> None:
        structlog.contextvars.bind_contextvars(tenant="a", api_key="hunter2")

    async with client_of(app) as client:
        await client.get("/bound")
    (line,) = [line for line in log_lines() if line["event"] == "request"]
    assert (line["tenant"], line["api_key"]) == ("a", logs.REDACTED)


async def test_a_password_in_a_requested_path_is_redacted(
    log_lines: LogLines, client: httpx2.AsyncClient
) -> None:
    await client.get("/no/ftp://user:hunter2@host")
    (line,) = log_lines()
    assert line["path"] == f"/no/ftp://user:{logs.REDACTED}@host"


def test_development_gets_readable_text(app: FastAPI, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(json=False)
    structlog.get_logger("own").info("own_event", token="hunter2")
    written = capsys.readouterr().out
    assert "own_event" in written
    assert not written.startswith("{")
    assert "hunter2" not in written
