"""Documentation: Swagger UI with assets of its own, under a content policy that lets nothing else in."""

import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html, get_swagger_ui_oauth2_redirect_html
from fastapi.responses import HTMLResponse

from app.static import HashedFiles, file_hash, static_path

INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
# The scripts in the page itself are let in by their hashes.
POLICY = (
    "default-src 'none'; script-src 'self' {hashes}; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def install(app: FastAPI) -> None:
    """Serve `/docs` and what it loads, all of it from here."""
    assets = HashedFiles(packages=[("fastapi_swagger", "resources")])
    (folder,) = assets.all_directories
    script, style = (
        f"/docs/assets/{file_hash(Path(folder, name))}/{name}"
        for name in ("swagger-ui-bundle.js", "swagger-ui.css")
    )

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        root_path = request.scope.get("root_path", "")
        page = get_swagger_ui_html(
            openapi_url=f"{root_path}/openapi.json",
            title=escape(app.title),
            swagger_js_url=root_path + script,
            swagger_css_url=root_path + style,
            swagger_favicon_url=favicon(root_path),
            oauth2_redirect_url=f"{root_path}/docs/oauth2-redirect",
        )
        return guarded(page)

    @app.get("/docs/oauth2-redirect", include_in_schema=False)
    async def oauth2_redirect() -> HTMLResponse:
        return guarded(get_swagger_ui_oauth2_redirect_html())

    app.mount("/docs/assets", assets)


def favicon(root_path: str) -> str:
    """Return the address of the project's own icon, an empty one where it has none."""
    try:
        return root_path + static_path("favicon.svg")
    except FileNotFoundError:
        return "data:,"


def guarded(page: HTMLResponse) -> HTMLResponse:
    """Return a page with a policy that lets in its own inline scripts, and no others."""
    found = INLINE_SCRIPT.findall(bytes(page.body))
    hashes = " ".join(f"'sha256-{b64encode(sha256(script).digest()).decode()}'" for script in found)
    page.headers["Content-Security-Policy"] = POLICY.format(hashes=hashes)
    return page
