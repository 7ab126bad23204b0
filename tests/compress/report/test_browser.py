"""The pages in a real browser: light, dark and on a phone, without a fault that axe finds."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compress.evaluation import Evaluation
from compress.report import Report, write_report
from compress.report.compare import compare
from compress.report.compare_page import write_comparison

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


@pytest.fixture
def pages(
    make_report: Callable[..., Report], make_evaluation: Callable[..., Evaluation], tmp_path: Path
) -> dict[str, Path]:
    """A report and a comparison of three, with whatever the pages can show."""
    evaluation = make_evaluation()
    reports = {
        "mine": make_report(6),
        "w8": make_report(6, recipe={"name": "w8", "steps": [{"quantize": {"bits": 8}}]}),
        "w2": make_report(6, seed=1),
    }
    for name, report in reports.items():
        (tmp_path / name).mkdir()
        report.save(tmp_path / name / "compress.json")
    single, several = tmp_path / "report.html", tmp_path / "comparison.html"
    write_report(reports["mine"], [evaluation], single, name="mine")
    write_comparison(compare([tmp_path / name for name in reports], [evaluation]), several)
    return {"report": single, "comparison": several}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("which", ["report", "comparison"])
def test_a_page_in_a_browser(
    browser: playwright.Browser, pages: dict[str, Path], which: str, view: str, tmp_path: Path
) -> None:
    page = browser.new_page(**VIEWS[view])
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(pages[which].as_uri())
    # Closed details hide what is in them from axe.
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(light) < 200) == (view == "desktop-dark")
    folder = Path(os.environ.get("COMPRESS_SCREENSHOTS", tmp_path))
    picture = page.screenshot(path=folder / f"{which}-{view}.png", full_page=True)
    width, height = struct.unpack(">II", picture[16:24])
    assert width == VIEWS[view]["viewport"]["width"]
    assert height > 1500
    assert problems == []
    page.close()


@pytest.mark.parametrize("which", ["report", "comparison"])
def test_heads_sort_their_tables(browser: playwright.Browser, pages: dict[str, Path], which: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(pages[which].as_uri())
    table = page.locator("table.sortable", has_text="KL of 99%").first
    head = table.get_by_role("button", name="KL, nats")

    def column() -> list[str]:
        at = head.evaluate("one => one.parentElement.cellIndex")
        return [row.locator("th, td").nth(at).inner_text() for row in table.locator("tbody tr").all()]

    head.click()
    rising = column()
    assert rising == ["0.00010", "0.0029", "0.0620", "–"]
    head.press("Enter")
    assert column() == [*rising[:3][::-1], "–"]
    assert head.evaluate("one => one.parentElement.getAttribute('aria-sort')") == "descending"
    # On a phone the table is wider than the page, and moves within it.
    inside = table.evaluate("one => [one.parentElement.scrollWidth, one.parentElement.clientWidth]")
    assert inside[0] > inside[1]
    page.close()


def test_a_deep_model_on_a_phone(
    browser: playwright.Browser, make_report: Callable[..., Report], tmp_path: Path
) -> None:
    """What is wider than the page moves within it, for a keyboard as well."""
    write_report(make_report(30), [], tmp_path / "report.html", name="mine")
    page = browser.new_page(**VIEWS["phone"])
    page.goto((tmp_path / "report.html").as_uri())
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.locator("section", has_text="Timeline of the blocks").locator("svg .bar.second").count() > 60
    page.close()
