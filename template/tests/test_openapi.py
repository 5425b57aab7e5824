"""Property tests: whatever fits or misses the schema, the service keeps to what it documents."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from schemathesis import checks
from schemathesis.core.result import Ok

from app.main import create_app


class Source(BaseHTTPRequestHandler):
    """Stands in for the service that rates come from, and knows all currencies but those with an X."""

    def do_GET(self) -> None:
        """Answer."""
        (currency,) = parse_qs(urlsplit(self.path).query)["symbols"]
        body = json.dumps({"date": "2026-11-20", "rates": {currency: 1.5}}).encode()
        self.send_response(404 if "X" in currency else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def source() -> Iterator[str]:
    """The address of a service that rates come from."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Source) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def live_server(source: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a running service, which has everything that is off by default."""
    monkeypatch.setenv("RATES_URL", source)
    config = uvicorn.Config(create_app(), host="127.0.0.1", port=0, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended while it started"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def test_every_answer_is_as_documented(live_server: str) -> None:
    schema = schemathesis.openapi.from_url(f"{live_server}/openapi.json")
    results = list(schema.get_all_operations())
    assert results
    for result in results:
        assert isinstance(result, Ok), result
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
        def check(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(
                checks=[
                    checks.not_a_server_error,
                    checks.status_code_conformance,
                    checks.content_type_conformance,
                    checks.response_schema_conformance,
                ]
            )

        check()
