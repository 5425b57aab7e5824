"""The start of the service: one that fails says why on the last line of its log."""

import atexit
import json
import logging
import mmap
import os
import re
import tempfile
from typing import Any

import structlog

from app import logs

LONGEST = 500
# What mends a problem, by a word in it.
MENDS = (
    (r"Errno 98\]|in use", "stop what listens there, or change SERVER_BIND"),
    (r"^connection to ", "see that the folder of SERVER_BIND exists and belongs to the service's user"),
    (r"^ModuleNotFoundError|^ImportError", "install what requirements.txt lists, or mend the import"),
    (r"^PermissionError", "give the service's user the file that it names"),
)


class Start:
    """What goes wrong until the first worker serves, in the master and in its workers, which are forked from it."""

    def __init__(self) -> None:
        """Begin in this process, the master."""
        self.master = os.getpid()
        self.serving = mmap.mmap(-1, 1)
        self.problems = tempfile.TemporaryFile("w+", buffering=1)  # noqa: SIM115 - the process's end closes it

    def notice(self, record: logging.LogRecord) -> None:
        """Keep what a warning or an error says, as long as nothing serves."""
        if not self.serving[0]:
            self.problems.write(json.dumps(problem_of(record)) + "\n")

    def succeed(self) -> None:
        """A worker serves: what goes wrong from now on is no failed start."""
        self.serving[0] = 1
        logs.Handler.notice = None

    def say(self) -> None:
        """Say why the start failed, if it did; the last thing that the master does."""
        if os.getpid() != self.master or self.serving[0]:
            return
        self.problems.seek(0)
        found = why([json.loads(line) for line in self.problems])
        if found:
            logs.Handler.notice = None
            structlog.get_logger(__name__).critical("start_failed", **found)


started: Start | None = None


def watch() -> None:
    """Watch the start of this process, and of those that it forks."""
    global started
    if started is None:
        started = Start()
        logs.Handler.notice = started.notice
        atexit.register(started.say)


def succeed() -> None:
    """The start has succeeded."""
    if started is not None:
        started.succeed()


def problem_of(record: logging.LogRecord) -> dict[str, str]:
    """Return what a record is about in a few words: `problem`, its `kind`, and `mend` where the record knows one."""
    fields: dict[str, Any] = record.msg if isinstance(record.msg, dict) else record.__dict__
    event = str(fields.get("event", record.getMessage()))
    error = fields.get("exc_info")
    if isinstance(error, tuple):
        error = error[1]
    lines = [line for line in event.splitlines() if line.strip()]
    kind = "error" if record.levelno >= logging.ERROR else "warning"
    if event == "setting_refused":
        kind, problem = "setting", f"{fields['variable']} {fields['problem']}"
    elif event == "printed":
        kind, problem = "printed", str(fields.get("text"))
    elif isinstance(error, BaseException):
        problem = f"{type(error).__name__}: {error}"
    elif "error" in fields:
        problem = f"{event}: {fields['error']}"
    else:
        # Of a traceback the last line says what happened.
        problem = lines[-1] if lines else ""
    mend = {"mend": str(fields["mend"])} if "mend" in fields else {}
    return {"kind": kind, "problem": problem[:LONGEST], **mend}


def why(problems: list[dict[str, str]]) -> dict[str, str]:
    """Return the problem that the others follow from, and its mend; nothing where nothing failed."""
    settings = [found["problem"] for found in problems if found["kind"] == "setting"]
    if settings:
        return {"problem": "; ".join(settings), "mend": "set what it names; README.md says how"}
    errors = [found for found in problems if found["kind"] == "error"]
    # Python's own report of an error ends with what it was.
    printed = [found for found in problems if found["kind"] == "printed"]
    cause = errors[:1] or printed[-1:]
    if not cause:
        return {}
    problem = cause[0]["problem"]
    mends = [mend for pattern, mend in MENDS if re.search(pattern, problem)]
    mend = cause[0].get("mend") or next(iter(mends), "")
    return {"problem": problem} | ({"mend": mend} if mend else {})
