"""The applications that are compared: the same route, served by the same worker."""

# Written into the rendered project, and run by its interpreter.
SOURCE = '''\
"""What is compared."""

import json
import os
from types import SimpleNamespace

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel

from app import exchange, main, middleware
from app.health import Readiness

router = APIRouter(prefix="/things")


class Thing(BaseModel):
    number: int
    name: str


@router.get("/{number}")
async def read_thing(number: int) -> Thing:
    return Thing(number=number, name="chair")


class Raw:
    """No framework."""

    def __init__(self):
        self.state = SimpleNamespace(readiness=Readiness(1))

    async def __call__(self, scope, receive, send):
        while scope["type"] == "lifespan":
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
        number = int(scope["path"].rpartition("/")[2])
        body = json.dumps({"number": number, "name": "chair"}).encode()
        length = str(len(body)).encode()
        headers = [(b"content-length", length), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def raw():
    return Raw()


def naked():
    app = FastAPI(openapi_url=None)
    app.state.readiness = Readiness(1)
    app.include_router(router, prefix="/api/v1")
    return app


def full():
    without = os.environ.get("BENCH_WITHOUT")
    if without == "metrics":
        middleware.observe_request = lambda *_: None
        exchange.Places.tick = lambda places: setattr(places, "loop", None)
    elif without == "headers":
        exchange.USUAL = ()
    elif without == "budget":
        exchange.Exchange.enter = lambda *_: None
    elif without == "forwarded":
        middleware.take_forwarded = lambda *_: None
    elif without == "hosts":
        middleware.TrustedHosts.refusal = lambda *_: None
    app = main.create_app()
    app.include_router(router, prefix="/api/v1")
    # It is looked at first, as in the naked one.
    app.router.routes.insert(0, app.router.routes.pop())
    return app
'''
