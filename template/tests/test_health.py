"""Liveness and readiness."""

import asyncio

import httpx2
import pytest
from fastapi import FastAPI

from app.health import NotReady, Readiness
from tests.conftest import client_of


async def test_health_answers_whatever_the_state(app: FastAPI) -> None:
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/health")).text == "ok"


async def test_ready_when_everything_is_open(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/ready")
    assert (answer.status_code, answer.text) == (200, "ready")


async def test_not_ready_while_starting_and_while_draining(app: FastAPI) -> None:
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        starting = await client.get("/ready")
        async with app.router.lifespan_context(app):
            app.state.readiness.drain()
            draining = await client.get("/ready")
    assert (starting.status_code, starting.json()["detail"]) == (503, "The service is starting.")
    assert (draining.status_code, draining.json()["detail"]) == (503, "The service is draining.")


async def test_ready_names_what_failed_and_tells_nothing_else(app: FastAPI) -> None:
    async def broken() -> None:
        raise ConnectionError("password=hunter2 was refused")

    async def explained() -> None:
        raise NotReady("closed for repair")

    async with client_of(app) as client:
        app.state.readiness.add("broken", broken)
        app.state.readiness.add("explained", explained)
        answer = await client.get("/ready")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["failed"] == {"broken": "unavailable", "explained": "closed for repair"}
    assert "hunter2" not in answer.text


async def test_all_checks_run_at_once_and_each_has_a_time_limit() -> None:
    readiness = Readiness(timeout_s=0.2)
    met = asyncio.Barrier(3)

    async def meets_the_others() -> None:
        await met.wait()

    async def hangs() -> None:
        await asyncio.sleep(60)

    for name in ("one", "two", "three"):
        readiness.add(name, meets_the_others)
    readiness.add("slow", hangs)
    assert await readiness.failed() == {"slow": "no answer within 0.2 s"}


async def test_a_failed_check_is_logged_with_its_error(
    app: FastAPI, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken() -> None:
        raise ConnectionError("refused")

    app.state.readiness.add("broken", broken)
    await app.state.readiness.failed()
    written = capsys.readouterr().out
    assert "check_failed" in written
    assert "refused" in written
