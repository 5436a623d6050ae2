"""The page in a real browser: it draws, answers to the pointer, follows the theme, loads nothing.

Needs Debian's packages ``chromium`` and ``chromium-driver``, which ``.ci/run`` installs.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from pytest_dynamo_bench.reports.html import render_html
from pytest_dynamo_bench.reports.model import load_session
from pytest_dynamo_bench.reports.store import StoredResults
from tests.reports.making import HOSTILE, make_session

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and not os.environ.get("CI"),
    reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def browser():
    options = Options()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
        "--window-size=1280,900", "--hide-scrollbars",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    directory = make_session(tmp_path_factory.mktemp("results"), HOSTILE)
    path = directory / "report.html"
    path.write_text(render_html(load_session(StoredResults(directory))), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, page):
    """The page at the size of a laptop, light."""
    show(browser, width=1280)
    browser.get_log("browser")
    browser.get_log("performance")
    # Now and then chromedriver takes the page that is being left for the one that was asked for.
    browser.execute_script("window.left = true")
    browser.get(page.as_uri())
    until(browser, "!window.left && document.readyState === 'complete'")
    return browser


def show(browser, *, width, scheme="light", media="screen"):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )


def until(browser, script):
    """Wait for what the script returns to be true."""
    for _ in range(200):
        if found := browser.execute_script(f"return {script}"):
            return found
        time.sleep(0.05)
    raise AssertionError(f"never came true: {script}")


def draw_all(browser):
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    until(browser, "[...document.querySelectorAll('.chart')].every(c => c.querySelector('svg'))")


def test_figures_are_drawn_and_nothing_is_wrong_or_loaded(opened, page):
    draw_all(opened)
    assert opened.execute_script("return document.querySelectorAll('.chart').length") == 10
    assert opened.execute_script("return window.hacked") is None
    assert opened.execute_script("return document.querySelectorAll('img, iframe').length") == 0
    assert opened.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [page.as_uri()]


def test_figures_are_drawn_when_they_come_into_view(opened):
    chart = "[...document.querySelectorAll('.chart')].at(-1)"
    assert not opened.execute_script(f"return {chart}.querySelector('svg')")
    opened.execute_script(f"{chart}.scrollIntoView()")
    until(opened, f"{chart}.querySelector('svg')")


def test_pointing_at_a_figure_gives_values(opened):
    chart = "document.querySelector('[data-figure$=cdf-time_to_first_token]')"
    opened.execute_script(f"{chart}.scrollIntoView({{block: 'center'}})")
    until(opened, f"{chart}.querySelector('.nsewdrag')")
    box = opened.execute_script(
        f"const b = {chart}.querySelector('.nsewdrag').getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height]"
    )
    # Somewhere along the curves; how steep they are is left to chance.
    for share in (0.5, 0.3, 0.4, 0.6, 0.7, 0.2, 0.8):
        for height in (0.2, 0.5, 0.8):
            opened.execute_cdp_cmd(
                "Input.dispatchMouseEvent",
                {
                    "type": "mouseMoved",
                    "x": box[0] + share * box[2],
                    "y": box[1] + height * box[3],
                },
            )
            time.sleep(0.1)
            text = opened.execute_script(f"return {chart}.querySelector('.hoverlayer').textContent")
            if "% of requests within" in text:
                return
    raise AssertionError("no value is shown")


def test_colours_follow_the_theme_and_paper_is_light(opened):
    draw_all(opened)

    def colours():
        return opened.execute_script(
            "const of = (e, p) => getComputedStyle(document.querySelector(e))[p];"
            "return [of('body', 'backgroundColor'), of('body', 'color'),"
            " of('.chart .xtick text', 'fill'), of('.chart .main-svg', 'backgroundColor')]"
        )

    light = colours()
    show(opened, width=1280, scheme="dark")
    dark = colours()
    assert light[0] == "rgb(255, 255, 255)" and dark[0] != light[0]
    assert light[1] == light[2] and dark[1] == dark[2] != light[2]
    assert light[3] == dark[3] == "rgba(0, 0, 0, 0)"
    show(opened, width=1280, scheme="dark", media="print")
    assert colours()[0] == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_is_never_wider_than_the_window(opened, width):
    show(opened, width=width)
    draw_all(opened)
    until(opened, f"document.documentElement.scrollWidth <= {width}")


def test_it_can_be_printed(opened):
    pdf = opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    content = base64.b64decode(pdf["data"])
    assert content.startswith(b"%PDF") and len(content) > 50_000
