"""What the application is made of."""

import inspect
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import fastapi.routing
import httpx2
import pytest
from fastapi import FastAPI, Request
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.telemetry import TelemetryConfig
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Receive, Scope, Send

from app import main
from app.health import State
from app.middleware import FILES, NO_FILES, HandledErrors
from app.settings import load
from tests.conftest import client_of

OPENERS = sorted(name for name in vars(main) if name.startswith("open_"))


async def test_parts_close_in_reverse_order_also_when_opening_fails_half_way(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def recorder(name: str, *, fails: bool) -> object:
        @asynccontextmanager
        async def opener(_settings: object) -> AsyncGenerator[Mock]:
            if fails:
                raise ConnectionError(name)
            events.append(f"open {name}")
            try:
                yield Mock()
            finally:
                events.append(f"close {name}")

        return opener

    for name in OPENERS:
        monkeypatch.setattr(main, name, recorder(name, fails=False))
    async with app.router.lifespan_context(app):
        assert app.state.readiness.state == State.SERVING.value
    assert events == [f"open {name}" for name in OPENERS] + [f"close {name}" for name in reversed(OPENERS)]
    assert app.state.readiness.state == State.DRAINING.value

    for name in OPENERS[-1:]:
        events.clear()
        monkeypatch.setattr(main, name, recorder(name, fails=True))
        with pytest.raises(ConnectionError, match=name):
            async with app.router.lifespan_context(app):
                pass
        assert events == [f"open {name}" for name in OPENERS[:-1]] + [
            f"close {name}" for name in reversed(OPENERS[:-1])
        ]


@pytest.mark.parametrize(("docs", "status"), [("", 404), ("true", 200)])
async def test_documentation_is_off_in_production_unless_switched_on(
    production: None, monkeypatch: pytest.MonkeyPatch, docs: str, status: int
) -> None:
    monkeypatch.setenv("APP_DOCS", docs)
    async with client_of(main.create_app(), host="api.test") as client:
        assert (await client.get("/docs")).status_code == status
        assert (await client.get("/openapi.json")).status_code == status
        assert (await client.get("/docs/oauth2-redirect")).status_code == status


async def test_only_the_named_origins_may_call_from_a_browser(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APP_CORS_ORIGINS", "https://app.test, https://other.test")
    async with client_of(main.create_app(load(main.Settings))) as client:
        allowed = await client.get("/health", headers={"Origin": "https://app.test"})
        refused = await client.get("/health", headers={"Origin": "https://evil.test"})
    assert allowed.headers["access-control-allow-origin"] == "https://app.test"
    assert "access-control-allow-origin" not in refused.headers


async def test_without_origins_no_answer_speaks_of_them(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/health", headers={"Origin": "https://app.test"})
    assert not [name for name in answer.headers if name.startswith("access-control") or name == "vary"]


async def test_middleware_of_its_own_is_outermost(app: FastAPI) -> None:
    app.add_middleware(GZipMiddleware, minimum_size=1)
    assert type(app.build_middleware_stack()) is GZipMiddleware
    async with client_of(app) as client:
        assert (await client.get("/health")).headers["content-encoding"] == "gzip"


def test_the_frameworks_layers_are_those_that_ours_replace(app: FastAPI) -> None:
    # With another one, see what it does, and whether `Service` has to have it.
    assert layers(FastAPI()) == [
        "ServerErrorMiddleware",
        "ExceptionTelemetryMiddleware",
        "AppBodyLimitMiddleware",
        "ExceptionMiddleware",
        "AsyncExitStackMiddleware",
    ]
    assert layers(app) == ["MetricsEndpoint", "Front", "HandledErrors"]
    # Where the framework is to limit bodies, it does.
    app.max_body_size = 1
    assert "AppBodyLimitMiddleware" in layers(app)


async def test_the_files_of_a_form_are_closed_after_its_request(app: FastAPI) -> None:
    # Where the framework looks for who closes them.
    assert AsyncExitStackMiddleware(app).context_name == FILES
    close = Mock()

    @app.post("/form")
    async def form(request: Request) -> bool:
        request.scope[FILES].callback(close)
        return close.called

    async with client_of(app) as client:
        assert (await client.post("/form", content=b"file")).json() is False
    close.assert_called_once_with()


async def test_what_has_no_body_leaves_nothing_to_be_closed(app: FastAPI) -> None:
    # What the framework does with those that requests have in common.
    done = re.findall(r"file_stack\.(\w+)", inspect.getsource(fastapi.routing))
    assert set(done) == {"push_async_callback"}

    @app.post("/form")
    async def form(request: Request) -> None:
        request.scope[FILES].push_async_callback(AsyncMock())

    async with client_of(app) as client:
        assert (await client.post("/form")).status_code == 200
    # Nothing public tells what a stack holds without taking it away, and the types have no private names.
    assert not NO_FILES._exit_callbacks  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize(("observed", "root_path"), [(False, ""), (True, ""), (False, "/below")])
async def test_the_framework_does_what_it_has_to_do_before_the_middleware(
    monkeypatch: pytest.MonkeyPatch, observed: bool, root_path: str
) -> None:
    telemetry = TelemetryConfig(tracing=observed, metrics=False, logs=False)
    app = main.Service(telemetry=telemetry, root_path=root_path, max_body_size=1)
    enabled = Mock(return_value=False)
    monkeypatch.setattr(app._native_telemetry, "enabled", enabled)

    @app.get("/root")
    async def root(request: Request) -> str:
        return str(request.scope["root_path"])

    async with client_of(app) as client:
        # The first finds no middleware yet.
        assert [(await client.get("/root")).json() for _ in range(3)] == [root_path] * 3
    assert enabled.call_count == (3 if observed or root_path else 1)


@pytest.mark.parametrize("kind", [FastAPI, Starlette])
@pytest.mark.parametrize("named_alike", [False, True])
async def test_what_watches_the_framework_sees_every_request(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, kind: type[Starlette], named_alike: bool
) -> None:
    seen = []
    serve = kind.__call__

    async def watch(app: Starlette, scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])
        await serve(app, scope, receive, send)

    monkeypatch.setattr(kind, "__call__", wraps(serve)(watch) if named_alike else watch)
    async with client_of(app) as client:
        for _ in range(3):
            await client.get("/health")
    assert seen == ["/health"] * 3


def layers(app: FastAPI) -> list[str]:
    """Return what is around the router, outermost first."""
    names = []
    layer: Any = app.build_middleware_stack()
    while layer not in (app.router, app.router.middleware_stack):
        names.append(type(layer).__name__)
        layer = layer.routes if isinstance(layer, HandledErrors) else layer.app
    return names
