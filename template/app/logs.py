"""Logs: one JSON object per line on stdout, whoever wrote the line."""

import asyncio
import io
import json as json_module
import logging
import logging.config
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from select import PIPE_BUF
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TextIO, TypeVarTuple

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

SECRET_KEY = re.compile(
    r"passw(or)?d|secret|token|authorization|cookie|credential|api[-_]?key|private[-_]?key|dsn",
    re.IGNORECASE,
)
URL_PASSWORD = re.compile(r"(?P<user>[a-z][a-z0-9+.-]*://[^:/@\s\"]*:)[^/\s\"]+@", re.IGNORECASE)
REDACTED = "[redacted]"

# Named so that structlog's contextvars take it into every line of a request.
REQUEST_ID: ContextVar[str] = ContextVar("structlog_request_id")
# A worker that is killed loses the lines of that time. One write for each line would cost more than to put the line together.
WRITE_WITHIN_S = 0.02
# Lines that the event loop is going to write: what makes each, and of what.
_waiting: deque[tuple[Callable[..., str], tuple[Any, ...]]] = deque()
Parts = TypeVarTuple("Parts")


def redact(_logger: "WrappedLogger", _method: str, event: "EventDict") -> "EventDict":
    """Blank every value whose key names a secret, at any depth."""
    return {key: _redacted(key, value) for key, value in event.items()}


def _redacted(key: object, value: Any) -> Any:
    if isinstance(key, str) and SECRET_KEY.search(key):
        return REDACTED
    if isinstance(value, dict):
        return {inner: _redacted(inner, item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(None, item) for item in value]
    return value


def redact_urls(_logger: "WrappedLogger", _method: str, line: str) -> str:
    """Blank the password of every URL in a finished line."""
    return URL_PASSWORD.sub(rf"\g<user>{REDACTED}@", line) if "://" in line else line


def drop_colors(_logger: "WrappedLogger", _method: str, event: "EventDict") -> "EventDict":
    """Drop the second, coloured copy that uvicorn sends with its messages."""
    event.pop("color_message", None)
    return event


class Handler(logging.StreamHandler[Any]):
    """Writes to what is stdout now; a record that cannot be formatted still becomes a line of the same form."""

    json: ClassVar[bool] = True
    # Gets every warning and error, while the service starts.
    notice: ClassVar[Callable[[logging.LogRecord], None] | None] = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        if Handler.notice is not None and record.levelno >= logging.WARNING:
            Handler.notice(record)
        write_waiting()
        self.stream = stream_now()
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Say which logger's line was lost, and why."""
        error = sys.exception()
        if isinstance(error, OSError):
            return
        line = {
            "event": "log_line_lost",
            "level": "error",
            "logger": record.name,
            "template": str(record.msg),
            "error": repr(error),
        }
        self.stream.write(json_module.dumps(line) + self.terminator)


def stream_now() -> TextIO:
    """Return what is stdout now, where log lines go."""
    stdout = sys.stdout
    return stdout.beneath if type(stdout) is Printed else stdout


class Printed(io.TextIOBase):
    """Stands in for stdout or stderr: what is printed there becomes log lines."""

    def __init__(self, name: str, beneath: TextIO) -> None:
        """Log as `name`; log lines themselves go to `beneath`."""
        self.beneath = beneath
        self.log = logging.getLogger(name)
        self.rest = ""

    def write(self, text: str) -> int:
        """Log every line that is complete."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if line.strip():
                self.log.warning("printed", extra={"text": line})
        return len(text)

    def fileno(self) -> int:
        """Return the file below, which programs that this one starts may write to."""
        return self.beneath.fileno()


def dict_config(*, level: str = "INFO", json: bool = True) -> dict[str, Any]:
    """Return the configuration for `logging.config.dictConfig` and gunicorn's `logconfig_dict`."""
    render: list[Processor]
    if json:
        # Local variables may hold secrets, so frames are written without them.
        frames = ExceptionDictTransformer(show_locals=False, max_frames=40)
        render = [
            structlog.processors.ExceptionRenderer(frames),
            redact,
            structlog.processors.JSONRenderer(ensure_ascii=True),
        ]
    else:
        plain = structlog.dev.plain_traceback
        render = [redact, structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    formatter = {
        "()": ProcessorFormatter,
        "foreign_pre_chain": [*SHARED, *added, structlog.stdlib.ExtraAdder(), drop_colors],
        "processors": [ProcessorFormatter.remove_processors_meta, *render, redact_urls],
    }
    to_stdout: dict[str, Any] = {"handlers": ["stdout"], "level": level, "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": formatter},
        "handlers": {"stdout": {"()": Handler, "formatter": "line"}},
        "root": {"handlers": ["stdout"], "level": level},
        # The worker copies gunicorn's own handlers to uvicorn's loggers, so root alone would not do.
        "loggers": {
            "gunicorn.error": dict(to_stdout),
            "gunicorn.access": dict(to_stdout),
            "uvicorn": dict(to_stdout),
            "uvicorn.error": dict(to_stdout),
            # Its line has neither duration nor route; Front writes a better one.
            "uvicorn.access": {"handlers": [], "level": "CRITICAL", "propagate": False},
            # Their lines have whole addresses and headers of other services, which may hold secrets.
            "httpcore2": {"level": "WARNING"},
            "httpx2": {"level": "WARNING"},
        },
    }


SHARED: "list[Processor]" = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


# Beside those that every line passes through.
added: "list[Processor]" = []


def add(processor: "Processor") -> None:
    """Have every line pass through `processor`, too, from the next `configure` on."""
    if processor not in added:
        added.append(processor)


def set_level(level: str) -> None:
    """Log from another level on, in this process, whatever was configured."""
    # Whether a line is written is for the level of its time to say.
    write_waiting()
    for name in (None, "gunicorn.error", "gunicorn.access", "uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(level)


def configure(*, level: str = "INFO", json: bool = True) -> None:
    """Send everything to stdout: structlog, logging, warnings and whatever ends a thread or the process."""
    logging.config.dictConfig(dict_config(level=level, json=json))
    logging.captureWarnings(capture=True)
    Handler.json = json
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *SHARED,
            *added,
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    sys.excepthook = log_uncaught
    threading.excepthook = log_uncaught_in_thread
    sys.unraisablehook = log_unraisable


def write_later(make: Callable[[*Parts], str], *parts: *Parts) -> None:
    """Write the line that `make` returns within WRITE_WITHIN_S, and before any line that is not written later.

    It is made together with all that there are by then, which takes less than half the time, for the processor has it at hand.
    """
    if not _waiting:
        asyncio.get_running_loop().call_later(WRITE_WITHIN_S, write_waiting)
    _waiting.append((make, parts))


def write_waiting() -> None:
    """Write the lines of requests that wait, as many at a time as no line of another process can come between."""
    lines = "".join(make_waiting())
    begin = 0
    while begin < len(lines):
        end = len(lines)
        if end - begin > PIPE_BUF:
            # As many whole ones as fit; one that does not fit has to go alone.
            end = (lines.rfind("\n", begin, begin + PIPE_BUF) + 1) or (lines.index("\n", begin) + 1)
        write(lines[begin:end])
        begin = end


def make_waiting() -> Iterator[str]:
    """Yield the lines that wait."""
    # A thread that logs something else may take the last one first.
    with suppress(IndexError):
        while _waiting:
            make, parts = _waiting.popleft()
            yield make(*parts)


def write(lines: str) -> None:
    """Write to what is stdout now; a full disk does not stop the service."""
    stream = stream_now()
    with suppress(OSError):
        stream.write(lines)
        stream.flush()


def begin() -> None:
    """Configure what must be logged before the settings are known, and what is printed past the log.

    Text is for development alone; there, prints stay prints.
    """
    environ = os.environ
    json = environ.get("APP_ENVIRONMENT") != "development" or environ.get("APP_LOG_FORMAT") == "json"
    configure(json=json)
    if json and not isinstance(sys.stderr, Printed):
        sys.stdout, sys.stderr = Printed("stdout", sys.stdout), Printed("stderr", sys.stderr)


def log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log what is about to end the process."""
    logging.getLogger("app").critical("uncaught_exception", exc_info=(kind, error, trace))


def log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    """Log what ended a thread."""
    error = args.exc_value or args.exc_type()
    logging.getLogger("app").error("uncaught_exception_in_thread", exc_info=error)


def log_unraisable(args: "sys.UnraisableHookArgs") -> None:
    """Log an error that Python can only report, such as one in a finalizer."""
    logging.getLogger("app").error("unraisable_exception", exc_info=args.exc_value)
