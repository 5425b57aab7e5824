"""A real browser, headless, that looks at the documentation of a service as a person would."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

WITHIN_S = 30.0
NOTE_VIOLATIONS = """
window.violations = [];
addEventListener("securitypolicyviolation", event => violations.push(
    `${event.effectiveDirective} keeps out ${event.blockedURI} ${event.sourceFile}`));
"""


@contextmanager
def browser(*, resolve: str = "", ignore_https_errors: bool = False) -> Iterator[Chrome]:
    """Open a browser that keeps its logs; `resolve` are Chromium's host resolver rules.

    Where it is not installed the test is skipped, or fails where everything must run.
    """
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if None in found:
        missing = "chromium or chromium-driver is not installed"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    options = ChromeOptions()
    options.binary_location = str(found[0])
    options.accept_insecure_certs = ignore_https_errors
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Root may not use the sandbox, and a container's /dev/shm is small.
    for argument in ("headless", "no-sandbox", "disable-dev-shm-usage", "window-size=1200,2000"):
        options.add_argument(f"--{argument}")
    # It asks its maker for updates, which is no business of the page.
    options.add_argument("--disable-background-networking")
    if resolve:
        options.add_argument(f"--host-resolver-rules={resolve}")
    opened = Chrome(options, ChromeService(str(found[1])))
    try:
        yield opened
    finally:
        opened.quit()


def check_docs(
    url: str,
    *,
    resolve: str = "",
    ignore_https_errors: bool = False,
    within_s: float = WITHIN_S,
) -> None:
    """Check the documentation at `url`: it shows the operations, and a GET can be tried out.

    Fails on an error in the console, on anything that the content policy kept out, and on a request
    to another host than the service's own. The page has `within_s` seconds to show its operations.
    """
    with browser(resolve=resolve, ignore_https_errors=ignore_https_errors) as page:
        page.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": NOTE_VIOLATIONS})
        page.get(url)
        shown = wait(page, ".opblock", within_s=within_s)
        api = page.execute_script("return ui.specSelectors.specJson().toJS()")
        declared = sum(len(operations) for operations in api["paths"].values())
        assert len(shown) == declared, f"{len(shown)} of {declared} operations are shown"
        assert api["info"]["title"] in wait(page, ".info .title")[0].text
        if any("get" in operations for operations in api["paths"].values()):
            status, answer = try_out(page, wait(page, ".opblock-get")[0])
            assert (status, bool(answer)) == ("200", True), (status, answer, errors(page))
        assert not errors(page), errors(page)
        foreign = {
            asked for asked in requests(page) if urlsplit(asked).netloc != urlsplit(url).netloc
        }
        assert not foreign, f"it asked elsewhere: {foreign}"


def try_out(page: Chrome, operation: WebElement) -> tuple[str, str]:
    """Execute an operation; return the status and the answer that are shown."""
    for button in (".opblock-summary-control", ".try-out__btn", ".execute"):
        wait(page, button, operation)[0].click()
    (status, *_) = wait(
        page, ".live-responses-table .response .response-col_status", operation, text=r"\d{3}"
    )
    (answer, *_) = wait(page, ".live-responses-table .response code", operation)
    return status.text.split()[0], answer.text


def wait(
    page: Chrome,
    selector: str,
    inside: WebElement | None = None,
    *,
    text: str = "",
    within_s: float = WITHIN_S,
) -> list[WebElement]:
    """Wait for elements to be shown, and for the first to have a text like `text`; return them."""

    def shown(_page: Chrome) -> list[WebElement]:
        assert not violations(page), violations(page)
        found = (inside or page).find_elements(By.CSS_SELECTOR, selector)
        visible = [element for element in found if element.is_displayed()]
        return visible if visible and re.search(text, visible[0].text) else []

    waiting = WebDriverWait(page, within_s, ignored_exceptions=[StaleElementReferenceException])
    try:
        return waiting.until(shown)
    except TimeoutException:
        raise AssertionError(f"there is no {selector}: {errors(page)}") from None


def violations(page: Chrome) -> list[str]:
    """What the content policy kept out."""
    noted: list[str] = page.execute_script("return window.violations")
    return noted


def errors(page: Chrome) -> list[str]:
    """What the content policy kept out, and what the console calls an error since the last call."""
    # Selenium has no types for its logs.
    lines = page.get_log("browser")  # type: ignore[no-untyped-call]
    return [*violations(page), *(line["message"] for line in lines if line["level"] == "SEVERE")]


def requests(page: Chrome) -> Iterator[str]:
    """The addresses that the page asked for since the last call."""
    for line in page.get_log("performance"):  # type: ignore[no-untyped-call]
        message = json.loads(line["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked = message["params"]["request"]["url"]
            if not asked.startswith("data:"):
                yield asked
