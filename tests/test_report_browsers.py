"""The page in real browsers: it works, says nothing on the console and asks for nothing."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import browsers
import pytest
from axe_core_python.base import AXE_SCRIPT
from browsers import Browser, Chromium, Firefox
from pages import BAD, EVERY, FINE, GONE, break_two, refresh, remember, settings
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from asset_sync.cli.page import draw
from asset_sync.database import Connection
from asset_sync.ops.report import Report, report_of

pytestmark = pytest.mark.skipif(browsers.lacking() is not None, reason=browsers.lacking() or "")

WIDTHS = (360, 1280, 3840)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def firefox() -> Iterator[Firefox]:
    with browsers.firefox() as browser:
        yield browser


@pytest.fixture(scope="module", params=["chromium", "firefox"])
def browser(request: pytest.FixtureRequest) -> Browser:
    """Each of the browsers, started once."""
    found: Browser = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def report(db: Connection) -> Report:
    """A report with a failing asset, a dead one and one that is well."""
    wanted = settings()
    refresh(db, wanted)
    break_two(db)
    remember(db, wanted)
    return report_of(db, wanted)


@pytest.fixture
def address(report: Report, tmp_path: Path) -> str:
    return written(report, tmp_path)


def written(report: Report, directory: Path, every: float = EVERY) -> str:
    """Write the page and return its address."""
    path = directory / "report.html"
    path.write_text(draw(report, every), encoding="utf-8")
    return path.as_uri()


def ask(browser: Browser, script: str) -> object:
    """Return what an expression is in the page."""
    return browser.driver.execute_script(f"return {script}")


def symbols(browser: Browser) -> list[str]:
    """Return the assets of the rows that can be seen, in their order."""
    rows = browser.driver.find_elements(By.CSS_SELECTOR, ".assets tbody tr th")
    return [row.text.removeprefix("▲ ") for row in rows if row.is_displayed()]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_breaks_no_rule_of_accessibility_and_fits_its_width(
    chromium: Chromium, address: str, width: int, *, dark: bool
) -> None:
    chromium.look(address, width=width, dark=dark)

    assert broken_rules(chromium) == []
    assert ask(chromium, "document.documentElement.scrollWidth") == width
    assert ask(chromium, "matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert chromium.said == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_the_same_in_firefox(firefox: Firefox, address: str, width: int) -> None:
    firefox.look(address, width=width)

    assert broken_rules(firefox) == []
    assert ask(firefox, "document.documentElement.scrollWidth <= innerWidth") is True
    assert firefox.said == []


def test_the_dark_page_is_the_same_in_firefox(address: str) -> None:
    with browsers.firefox(dark=True) as firefox:
        firefox.look(address)

        assert ask(firefox, "matchMedia('(prefers-color-scheme: dark)').matches") is True
        assert broken_rules(firefox) == []


def broken_rules(browser: Browser) -> list[str]:
    """Return the rules of axe that the page breaks, each with the places."""
    browser.driver.execute_script(AXE_SCRIPT)
    found = browser.driver.execute_async_script(
        "const done = arguments[0]; axe.run({resultTypes: ['violations']}).then("
        "found => done(found.violations.map(one => `${one.id}: ${one.nodes.map("
        "node => node.html + node.failureSummary)}`)))"
    )
    return [str(rule) for rule in found]


def test_the_page_is_the_only_thing_that_a_browser_asks_a_server_for(
    browser: Browser, report: Report
) -> None:
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(draw(report, EVERY).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        browser.look(f"http://127.0.0.1:{server.server_port}/")
        # A picture of the tab would be asked for now.
        WebDriverWait(browser.driver, 10).until(lambda _: ask(browser, "document.readyState"))
        assert symbols(browser) == [BAD, GONE, FINE]
        assert ask(browser, "performance.getEntriesByType('resource').length") == 0
    finally:
        server.shutdown()
        server.server_close()
    assert asked == ["/"]


def test_a_page_that_is_not_written_any_more_turns_red(
    browser: Browser, report: Report, tmp_path: Path
) -> None:
    browser.look(written(report, tmp_path))
    fresh = browser.driver.find_element(By.ID, "old")
    assert not fresh.is_displayed()
    assert "ago" in browser.driver.find_element(By.ID, "age").text

    browser.look(written(replace(report, now=report.now - timedelta(hours=3)), tmp_path))

    warning = browser.driver.find_element(By.ID, "old")
    assert "This page is 3 h old. It should be written every 5 min" in warning.text
    red = warning.value_of_css_property("background-color").replace("rgba", "rgb")
    assert red.startswith("rgb(163, 22, 14")
    assert browser.driver.title.startswith("OLD: ")
    assert broken_rules(browser) == []


def test_a_page_that_stays_open_turns_red_by_itself(
    chromium: Chromium, report: Report, tmp_path: Path
) -> None:
    nearly = timedelta(seconds=2 * EVERY + 60 - 3)
    chromium.look(written(replace(report, now=report.now - nearly), tmp_path))

    warning = chromium.driver.find_element(By.ID, "old")
    WebDriverWait(chromium.driver, 20).until(lambda _: warning.is_displayed())


def test_the_table_is_sorted_with_the_keyboard(browser: Browser, address: str) -> None:
    browser.look(address)
    page = browser.driver.find_element(By.TAG_NAME, "body")

    for _ in range(40):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        if browser.driver.switch_to.active_element.text.startswith("Refreshed"):
            break
    button = browser.driver.switch_to.active_element
    assert button.text.startswith("Refreshed"), page.text
    assert button.value_of_css_property("outline-style") == "solid", "the focus can be seen"

    button.send_keys(Keys.ENTER)
    heading = browser.driver.find_element(By.CSS_SELECTOR, "[aria-sort]")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert symbols(browser)[-1] == BAD, "refreshed five hours ago"
    button.send_keys(Keys.ENTER)
    assert heading.get_attribute("aria-sort") == "descending"
    assert symbols(browser)[0] == BAD
    assert browser.driver.switch_to.active_element == button
    assert broken_rules(browser) == []


def test_levels_are_sorted_by_their_rank_and_symbols_by_their_letters(
    chromium: Chromium, address: str
) -> None:
    chromium.look(address)

    def sort_by(title: str) -> list[str]:
        buttons = chromium.driver.find_elements(By.CSS_SELECTOR, ".assets thead button")
        next(one for one in buttons if one.text.startswith(title)).click()
        return symbols(chromium)

    assert sort_by("Level") == [BAD, GONE, FINE]
    assert sort_by("Asset") == [BAD, FINE, GONE]


def test_the_filter_shows_only_the_rows_with_these_words(browser: Browser, address: str) -> None:
    browser.look(address)
    field = browser.driver.find_element(By.ID, "filter")

    field.send_keys("HIGH knows")
    assert symbols(browser) == [GONE]
    assert browser.driver.find_element(By.ID, "found").text == "1 of 3"
    field.send_keys("nothing")
    assert symbols(browser) == []
    for _ in range(20):
        field.send_keys(Keys.BACKSPACE)
    assert symbols(browser) == [BAD, GONE, FINE]


def test_without_javascript_all_is_there_but_the_age(address: str) -> None:
    with browsers.chromium(javascript=False) as chromium:
        chromium.look(address)

        assert not chromium.driver.find_elements(By.TAG_NAME, "button")
        assert symbols(chromium) == [BAD, GONE, FINE]
        said = chromium.driver.find_element(By.CLASS_NAME, "written").text
        assert "without JavaScript the page cannot tell how old it is" in said
        assert not chromium.driver.find_element(By.CLASS_NAME, "tools").is_displayed()
        assert chromium.said == []


def test_the_first_screen_answers_what_is_wrong(chromium: Chromium, address: str) -> None:
    """Headline, plan, calls, ages and history end within a screen of 1280 by 900."""
    chromium.look(address, width=1280)

    for selector in ("h1", ".plan", "#calls", "#ages", "#history"):
        bottom = chromium.driver.find_element(By.CSS_SELECTOR, selector).rect
        assert bottom["y"] + bottom["height"] <= 900, selector


def test_a_print_has_no_links_and_tools_and_shows_every_row(
    chromium: Chromium, address: str
) -> None:
    chromium.look(address)
    chromium.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})

    assert not chromium.driver.find_element(By.TAG_NAME, "nav").is_displayed()
    assert not chromium.driver.find_element(By.CLASS_NAME, "tools").is_displayed()
    assert symbols(chromium) == [BAD, GONE, FINE]
    chromium.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
