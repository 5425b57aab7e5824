"""Health: alive (`/health`) is not the same as ready for traffic (`/ready`)."""

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from http import HTTPStatus

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from app import errors

log = structlog.get_logger(__name__)
router = APIRouter(include_in_schema=False)

Check = Callable[[], Awaitable[None]]


class NotReady(Exception):  # noqa: N818 - it is a state, and its text is for the client
    """Raised by a check that knows a reason which anybody may read."""


class State(StrEnum):
    """What a worker is doing."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Readiness:
    """Whether this worker should get traffic."""

    def __init__(self, timeout_s: float) -> None:
        """Give every check `timeout_s` seconds."""
        self.state = State.STARTING
        self.timeout_s = timeout_s
        self._checks: dict[str, Check] = {}

    def add(self, name: str, check: Check) -> None:
        """Add a dependency; `check` raises while it cannot be used."""
        self._checks[name] = check

    def serve(self) -> None:
        """Everything is open."""
        self.state = State.SERVING

    def drain(self) -> None:
        """Requests in flight are finished, no new ones should come."""
        self.state = State.DRAINING

    async def failed(self) -> dict[str, str]:
        """Run all checks at once; return a short public reason for each that failed."""
        reasons = await asyncio.gather(*(self._run(name, check) for name, check in self._checks.items()))
        return {name: reason for name, reason in zip(self._checks, reasons, strict=True) if reason}

    async def _run(self, name: str, check: Check) -> str | None:
        try:
            async with asyncio.timeout(self.timeout_s):
                await check()
        except NotReady as error:
            reason = str(error)
        except TimeoutError:
            reason = f"no answer within {self.timeout_s:g} s"
        except Exception as error:  # noqa: BLE001 - a check may fail in any way, and only the log may say how
            log.warning("check_failed", check=name, error=repr(error))
            return "unavailable"
        else:
            return None
        log.warning("check_failed", check=name, error=reason)
        return reason


@router.get("/health")
async def health() -> Response:
    """Tell the supervisor that the event loop turns; touches no dependency."""
    return PlainTextResponse("ok")


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Tell the proxy or a deployment whether this worker should get traffic."""
    readiness: Readiness = request.app.state.readiness
    if readiness.state is not State.SERVING:
        return errors.problem(HTTPStatus.SERVICE_UNAVAILABLE, f"The service is {readiness.state}.")
    if failed := await readiness.failed():
        names = ", ".join(failed)
        return errors.problem(HTTPStatus.SERVICE_UNAVAILABLE, f"Not ready: {names}.", failed=failed)
    return PlainTextResponse("ready")
