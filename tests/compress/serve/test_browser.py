"""The chat page in a real browser: light, dark and on a phone, before, while and after it answers, without a fault of axe."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compress.serve.engine import Answered, Asked

from .conftest import Client

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium here: `apt-get install chromium`"
)

VIEWS = {
    "desktop-light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "desktop-dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


def endless(asked: Asked, write: Callable[[str], None], stopped: Callable[[], bool]) -> Answered:
    """An answer that goes on until it is stopped."""
    write("So it begins")
    while not stopped():
        time.sleep(0.01)
    return Answered("length", len(asked.tokens), 3)


def faultless(page: playwright.Page) -> None:
    """Axe finds nothing, best practices among it."""
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("view", VIEWS)
def test_a_conversation_in_a_browser(
    browser: playwright.Browser,
    client: Client,
    view: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client.engine, "answer", endless)
    page = browser.new_page(**VIEWS[view])
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"http://127.0.0.1:{client.port}/")
    playwright.expect(page.get_by_role("heading", level=1)).to_have_text("tiny")
    faultless(page)
    page.get_by_label("Message").fill("hello")
    page.keyboard.press("Enter")
    stop = page.get_by_role("button", name="Stop")
    playwright.expect(stop).to_be_enabled()
    playwright.expect(page.get_by_role("log").get_by_role("heading")).to_have_text(["You", "tiny"])
    faultless(page)
    stop.click()
    playwright.expect(page.get_by_role("button", name="Send")).to_be_enabled()
    playwright.expect(page.get_by_label("Message")).to_be_focused()
    faultless(page)
    folder = Path(os.environ.get("COMPRESS_SCREENSHOTS", tmp_path))
    page.screenshot(path=folder / f"chat-{view}.png", full_page=True)
    assert problems == []
    page.close()


def test_an_error_is_told(browser: playwright.Browser, client: Client) -> None:
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{client.port}/")
    page.get_by_label("Tokens at most").fill("1000000")
    page.get_by_label("Message").fill("hello")
    page.get_by_role("button", name="Send").click()
    playwright.expect(page.get_by_role("alert")).not_to_be_empty()
    faultless(page)
    page.close()
