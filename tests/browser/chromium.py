"""A headless Chromium that says what went wrong in a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking")
PHONE, DESK = (360, 740), (1100, 800)


@contextmanager
def chromium() -> Iterator[Chrome]:
    """Start the system's Chromium by its own driver; skip where one of the two is missing."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium here: on Debian, apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = Chrome(options=options, service=Service(driver))
    try:
        yield started
    finally:
        started.quit()


def look(driver: Chrome, page: Path, size: tuple[int, int] = DESK, *, dark: bool = False) -> None:
    """Open a page as a phone or a desk shows it, and wait until it is drawn."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get("about:blank")
    complaints(driver)
    driver.get(page.as_uri())
    settle(driver)


def settle(driver: Chrome) -> None:
    """Wait for two frames: pictures are drawn in the one after their place has a width."""
    driver.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30)))"
    )


def complaints(driver: Chrome) -> list[str]:
    """Return what the console said since the last call."""
    return [str(entry["message"]) for entry in driver.get_log("browser")]


def run_script(driver: Chrome, script: str, *arguments: Any) -> Any:
    """Return what a script returns."""
    return driver.execute_script(script, *arguments)
