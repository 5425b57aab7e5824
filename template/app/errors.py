"""Errors: every failed request answers with one shape, problem details (RFC 9457)."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.types import Scope

MEDIA_TYPE = "application/problem+json"

# How every operation documents its errors; FastAPI's own 422 would promise another shape.
RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem (RFC 9457)",
        "content": {
            MEDIA_TYPE: {
                "schema": {
                    "type": "object",
                    "required": ["type", "title", "status"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                        "request_id": {"type": "string"},
                        "errors": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["location", "message", "type"],
                                "properties": {
                                    "location": {"type": "array", "items": {}},
                                    "message": {"type": "string"},
                                    "type": {"type": "string"},
                                },
                            },
                        },
                    },
                }
            }
        },
    }
}


class ProblemResponse(JSONResponse):
    """A problem, in ASCII: also a lone surrogate that a client sent can be named in it."""

    media_type = MEDIA_TYPE

    def render(self, content: object) -> bytes:
        """Encode the problem."""
        return json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode()


def route_template(scope: Scope) -> str | None:
    """Return the matched route as declared (`/items/{item_id}`), so that log lines can be grouped by it."""
    # An included router's own route knows its path without the prefix; only the context has the whole one.
    context = scope.get("fastapi", {}).get("effective_route_context")
    path: str | None = getattr(context or scope.get("route"), "path", None)
    return path


def problem(
    status: int,
    detail: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    **extra: object,
) -> ProblemResponse:
    """Make the response for `status`; `extra` adds members of its own to the problem."""
    title = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Error"
    content: dict[str, object] = {"type": "about:blank", "title": title, "status": status}
    if detail is not None and detail != title:
        content["detail"] = detail
    if request_id := structlog.contextvars.get_contextvars().get("request_id"):
        content["request_id"] = request_id
    return ProblemResponse(content | extra, status_code=status, headers=headers)


def install(app: FastAPI) -> None:
    """Answer validation errors and HTTP errors with problems; `Front` does it for crashes."""
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - Starlette's handlers are typed for any Exception
    if error.status_code in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
        return Response(status_code=error.status_code, headers=error.headers)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (methods := allowed_methods(request)):
        headers["Allow"] = ", ".join(sorted(methods))
    return problem(error.status_code, error.detail, headers=headers)


def allowed_methods(request: Request) -> set[str]:
    """Return what the requested path allows; the router itself names only the first route it met.

    Empty where no route was met but a mounted application, which knows what it allows.
    """
    path = route_template(request.scope)
    routes = iter_route_contexts(request.app.routes) if path else ()
    return {method for route in routes if route.path == path for method in route.methods or ()}


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
    # The input stays out: it may hold a secret, and the client knows what it sent.
    errors = [
        {"location": list(mistake["loc"]), "message": mistake["msg"], "type": mistake["type"]}
        for mistake in error.errors()
    ]
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "The request does not fit the schema.", errors=errors)
