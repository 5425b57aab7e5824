"""What a service tells of itself is sent here: spans by OTLP over HTTP, and Sentry's envelopes.

Runs with a rendered project's own interpreter: `python observers.py PORT FOLDER`. It writes what
comes, one JSON object a line, into spans and envelopes, and answers any question with the headers
that came with it.
"""

import gzip
import importlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TRACES = importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
FOLDER = Path(sys.argv[2])


def value(given: Any) -> Any:
    """The value of an attribute."""
    return getattr(given, given.WhichOneof("value"))


def spans(body: bytes) -> list[dict[str, Any]]:
    """Every span of a request, with its resource."""
    found = []
    for group in TRACES.ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = {one.key: value(one.value) for one in group.resource.attributes}
        for scope in group.scope_spans:
            found += [
                {
                    "trace": span.trace_id.hex(),
                    "span": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "name": span.name,
                    "scope": scope.scope.name,
                    "attributes": {one.key: str(value(one.value)) for one in span.attributes},
                    "resource": resource,
                    "whole": str(span),
                }
                for span in scope.spans
            ]
    return found


class Observer(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Take spans or an envelope."""
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            self.keep("spans", spans(body))
        elif self.path.endswith("/envelope/"):
            self.keep("envelopes", [body.decode()])
        self.answer(b"")

    def do_GET(self) -> None:
        """Tell what was seen."""
        seen = {name.lower(): text for name, text in self.headers.items()}
        self.answer(json.dumps(seen).encode())

    def keep(self, name: str, found: list[Any]) -> None:
        """Write lines, each at once."""
        with (FOLDER / name).open("a") as file:
            file.write("".join(json.dumps(one) + "\n" for one in found))

    def answer(self, body: bytes) -> None:
        """Say that it is well."""
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Observer).serve_forever()
