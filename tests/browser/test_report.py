"""The report in a browser: it loads offline, sorts, searches, fits a phone and prints."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

PACKAGES = ("chromium", "chromium-driver")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1280,900",
)  # fmt: skip
PHONE = (390, 844)  # CSS pixels


def install_chromium() -> None:
    """Install Chromium on Debian as root; skip the tests if that is not possible."""
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("chromium and chromedriver are not installed")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-qq", "--no-install-recommends", *PACKAGES]
    for command in (["apt-get", "update", "-qq"], install):
        if subprocess.run(command, env=environment, capture_output=True).returncode:
            pytest.skip(f"`{' '.join(command)}` failed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[WebDriver]:
    install_chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    profile = tmp_path_factory.mktemp("chromium")
    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, finished) -> WebDriver:
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # reading a log empties it
    browser.get((finished.folder / "results/tiny/report.html").as_uri())
    return browser


def find_table(page: WebDriver, name: str) -> WebElement:
    """Return a table together with its search field."""
    region = page.find_element(By.CSS_SELECTOR, f'[role=region][aria-label="{name}"]')
    return region.find_element(By.XPATH, "..")


def read_column(box: WebElement, name: str) -> list[str]:
    """Return the visible text of a column's cells."""
    names = [head.text.rstrip(" ▲▼") for head in box.find_elements(By.TAG_NAME, "th")]
    rows = [row for row in box.find_elements(By.CSS_SELECTOR, "tbody tr") if row.is_displayed()]
    return [row.find_elements(By.TAG_NAME, "td")[names.index(name)].text for row in rows]


def test_the_report_logs_no_error_and_needs_no_network(page):
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requested = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert requested
    local = {"file", "data", "chrome"}  # chrome: the browser's own
    assert {url.partition(":")[0] for url in requested} <= local


def test_the_answer_is_on_the_first_screen(page):
    warning = page.find_element(By.CLASS_NAME, "warning")
    assert "noise: no run beats chance, so nothing is compared." in warning.text
    assert "One seed cannot decide" in warning.text
    answer = page.find_element(By.CLASS_NAME, "answer")
    assert "not compared, because no run beats chance" in answer.text
    assert warning.rect["y"] < answer.rect["y"]
    picture = page.find_element(By.TAG_NAME, "img")
    assert picture.rect["y"] < 900


def test_all_images_load_and_have_descriptions(page):
    images = page.find_elements(By.TAG_NAME, "img")
    assert len(images) == 9
    for image in images:
        assert page.execute_script("return arguments[0].naturalWidth", image) > 300
        assert len(image.get_attribute("alt")) > 10


def test_a_column_head_sorts_its_table(page):
    box = find_table(page, "differences")
    name = "mean [interval]"
    head = next(h for h in box.find_elements(By.TAG_NAME, "th") if h.text == name)
    button = head.find_element(By.TAG_NAME, "button")
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    cells = read_column(box, name)
    # Points are hundredths, so that the signs are in order, and not all numbers.
    signs = ["-0+".index(cell[0]) for cell in cells if cell]
    assert signs == sorted(signs)
    assert {0, 2} <= set(signs)
    assert not any(cells[len(signs) :])  # rows without a number come last
    button.send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "descending"
    assert ["-0+".index(cell[0]) for cell in read_column(box, name) if cell] == signs[::-1]
    next(h for h in box.find_elements(By.TAG_NAME, "th") if h.text == "measure").click()
    words = read_column(box, "measure")
    assert words == sorted(words)
    assert head.get_attribute("aria-sort") is None


def test_percentages_are_sorted_as_numbers(page):
    box = find_table(page, "runs")
    for name in ("final top-1", "best top-1 (epoch)"):
        head = next(h for h in box.find_elements(By.TAG_NAME, "th") if h.text == name)
        head.find_element(By.TAG_NAME, "button").click()
        column = [h.text.rstrip(" ▲▼") for h in box.find_elements(By.TAG_NAME, "th")].index(name)
        rows = box.find_elements(By.CSS_SELECTOR, "tbody tr")
        cells = [row.find_elements(By.TAG_NAME, "td")[column] for row in rows]
        numbers = [float(cell.get_attribute("data-value")) for cell in cells]
        assert len(numbers) == 4
        assert numbers == sorted(numbers)
        assert max(numbers) <= 1


def test_a_search_shows_the_matching_rows(page):
    box = find_table(page, "runs")
    assert len(read_column(box, "method")) == 4
    box.find_element(By.TAG_NAME, "input").send_keys("CONSTANT -pre")
    assert read_column(box, "method") == ["constant-preserve"]


def test_the_tab_key_visits_everything_in_order(page):
    body = page.find_element(By.TAG_NAME, "body")
    script = """
    const all = [...document.querySelectorAll("a[href], button, input, summary, [tabindex]")];
    return [all.indexOf(document.activeElement), all.filter(e => e.checkVisibility()).length];
    """
    visited = []
    for _ in range(500):
        page.switch_to.active_element.send_keys(Keys.TAB) if visited else body.send_keys(Keys.TAB)
        index, num_visible = page.execute_script(script)
        if index < 0 or index in visited:
            break
        visited.append(index)
    assert visited == sorted(visited)
    assert len(visited) == num_visible > 20


@pytest.mark.parametrize("size", [PHONE, (1280, 900)])
def test_the_report_is_not_wider_than_the_screen(page, size):
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        html = "document.documentElement"
        content, visible = page.execute_script(f"return [{html}.scrollWidth, {html}.clientWidth]")
        assert content == visible > width - 20  # a scroll bar takes less than 20 pixels
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_report_can_be_printed(page, tmp_path):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        box = find_table(page, "runs")
        assert not box.find_element(By.TAG_NAME, "label").is_displayed()
        assert len(read_column(box, "method")) == 4
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len(page.print_page()) > 50_000
