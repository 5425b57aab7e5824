"""A project with routes that show what the app sees, and whose answers a proxy can spoil."""

from pathlib import Path

from tests.live.project import Project

EDGE = "/edge"

ROUTES = '''\
"""What a proxy can spoil."""

import asyncio
import gzip
import os
import secrets
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request, WebSocket
from fastapi.responses import (
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from app.exchange import budget

router = APIRouter(prefix="/edge")
hidden = APIRouter()
TEXT = "The quick brown fox jumps over the lazy dog. " * 400
TAG = '"one-of-a-kind"'


@router.api_route("/see", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def see(request: Request) -> JSONResponse:
    return JSONResponse(
        {
            "client": request.client.host if request.client else None,
            "scheme": request.url.scheme,
            "url": str(request.url),
            "base_url": str(request.base_url),
            "here": str(request.url_for("see")),
            "method": request.method,
            "path": request.url.path,
            "headers": [[name, value] for name, value in request.headers.items()],
        }
    )


@router.get("/redirect")
async def redirect(request: Request) -> RedirectResponse:
    return RedirectResponse(request.url_for("see"))


@router.get("/slash/")
async def slash() -> PlainTextResponse:
    return PlainTextResponse("slash")


@router.get("/events")
async def events(count: int = 10, gap: float = 0.3) -> StreamingResponse:
    async def generate() -> AsyncGenerator[str]:
        for number in range(count):
            yield f"data: {number}\\n\\n"
            await asyncio.sleep(gap)

    return StreamingResponse(generate(), media_type="text/event-stream")


@router.get("/slow", dependencies=[budget(None)])
async def slow(seconds: float) -> PlainTextResponse:
    await asyncio.sleep(seconds)
    return PlainTextResponse("slow")


@router.get("/download")
async def download(parts: int = 10, gap: float = 0.3) -> StreamingResponse:
    async def generate() -> AsyncGenerator[bytes]:
        for _ in range(parts):
            yield secrets.token_bytes(100_000)
            await asyncio.sleep(gap)

    return StreamingResponse(generate(), media_type="application/octet-stream")


@router.post("/upload")
async def upload(request: Request) -> JSONResponse:
    received = 0
    async for part in request.stream():
        received += len(part)
    return JSONResponse({"bytes": received})


@router.get("/once")
async def once(control: str = "", vary: str = "", cookie: str = "") -> PlainTextResponse:
    """Never the same answer twice."""
    given = {"Cache-Control": control, "Vary": vary, "Set-Cookie": cookie}
    headers = {name: value for name, value in given.items() if value}
    return PlainTextResponse(secrets.token_hex(16), headers=headers)


@router.get("/text")
async def text(kind: str = "text/plain", size: int = 10_000, encoded: bool = False) -> Response:
    content = TEXT[:size].encode()
    headers = {}
    if encoded:
        content, headers = gzip.compress(content), {"Content-Encoding": "gzip"}
    return Response(content, headers=headers, media_type=kind)


@router.get("/tagged")
async def tagged(request: Request) -> Response:
    if TAG in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": TAG})
    return PlainTextResponse(TEXT, headers={"ETag": TAG})


@router.get("/policy")
async def policy() -> PlainTextResponse:
    """Headers that a route chose itself."""
    headers = {"X-Content-Type-Options": "nosniff", "X-Request-ID": "chosen-by-the-route"}
    return PlainTextResponse("policy", headers=headers)


@router.get("/schema")
async def schema(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())


@router.get("/crash")
async def crash() -> None:
    raise RuntimeError("a crash on purpose")


@router.get("/status")
async def status(code: int) -> PlainTextResponse:
    return PlainTextResponse(str(code), status_code=code)


@router.get("/die")
async def die() -> None:
    os._exit(1)


@hidden.get("/metrics")
async def metrics() -> PlainTextResponse:
    """What no client may see."""
    return PlainTextResponse("secret_total 1")


@router.websocket("/ws")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    seen = {"client": socket.client.host if socket.client else None, "url": str(socket.url)}
    await socket.send_json(seen)
    async for message in socket.iter_text():
        await socket.send_text(message)
'''


class EdgeProject(Project):
    """A project with these routes."""

    def __init__(self, template: Path, folder: Path, *, deployment: str, **answers: str) -> None:
        super().__init__(template, folder, deployment=deployment, **answers)
        (self.folder / "app/edge.py").write_text(ROUTES)
        self._edit(
            "app/main.py",
            "    app.include_router(health.router)\n",
            after="    app.include_router(edge.router)\n    app.include_router(edge.hidden)\n",
        )
        self._edit("app/main.py", "from app import trial\n", after="from app import edge\n")
        # Files of which some must never be served.
        static = self.folder / "static"
        static.mkdir(exist_ok=True)
        (static / "site.css").write_text("body { margin: 0 }\n" * 200)
        (static / "pixel.png").write_bytes(bytes(4000))
