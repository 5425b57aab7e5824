"""The documentation: a page that loads nothing from elsewhere and lets in only its own scripts."""

import re
from base64 import b64encode
from hashlib import sha256

import httpx2
import pytest

from app.main import Settings, create_app
from app.settings import load
from tests.conftest import client_of


@pytest.mark.parametrize("root_path", ["", "/myapi"])
async def test_the_page_loads_what_it_needs_from_here(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, root_path: str
) -> None:
    monkeypatch.setenv("APP_ROOT_PATH", root_path)
    async with client_of(create_app(load(Settings))) as client:
        page = await client.get(f"{root_path}/docs")
        assert page.status_code == 200
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        loaded += re.findall(r"url: '([^']+)'", page.text)
        assert len(loaded) == 4
        for address in loaded:
            assert address.startswith(f"{root_path}/")
            assert (await client.get(address)).status_code == 200, address
        types = {(await client.get(address)).headers["content-type"] for address in loaded}
    assert types == {
        "text/css; charset=utf-8",
        "text/javascript; charset=utf-8",
        "image/svg+xml",
        "application/json",
    }
    assert "//" not in re.sub(r"<!DOCTYPE.*?>|<!--.*?-->", "", page.text)


@pytest.mark.parametrize("path", ["/docs", "/docs/oauth2-redirect"])
async def test_the_policy_lets_in_the_scripts_of_the_page_and_no_others(
    client: httpx2.AsyncClient, path: str
) -> None:
    page = await client.get(path)
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in policy
    assert page.headers["cache-control"] == "no-store"
