"""The application with routes that are slow in bad ways; gunicorn serves it in the tests."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.exchange import budget
from app.main import create_app


@asynccontextmanager
async def fail(_app: FastAPI) -> AsyncGenerator[None]:
    """Fail while starting."""
    raise RuntimeError("the lifespan fails")
    yield


class Broken:
    """Middleware that can serve requests and nothing else."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        scope["headers"]
        await self.app(scope, receive, send)


def create() -> FastAPI:
    """Make it."""
    app = create_app()
    if os.environ.get("FAIL_LIFESPAN"):
        app.router.lifespan_context = fail
    if os.environ.get("BREAK_LIFESPAN"):
        app.add_middleware(Broken)

    @app.get("/sleep", dependencies=[budget(None)])
    async def sleep(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "slept"

    @app.get("/block")
    async def block() -> None:
        time.sleep(60)  # noqa: ASYNC251 - that is what it is for

    @app.get("/seen")
    async def seen(request: Request) -> dict[str, str | None]:
        return {"client": request.client.host if request.client else None, "scheme": request.url.scheme}

    return app
