"""The report in a real browser: nothing fails, the slider moves the picture, tables sort, a phone can read it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from tests.browser.chromium import DESK, PHONE, chromium, complaints, look, run_script, settle
from tests.report.edits import edited_history
from tests.report.histories import mixed_history

from rankwise.rules.records import HISTORY_FILE, to_lines
from rankwise.runs.results.page import write_page

pytestmark = pytest.mark.browser

KEPT = Path(__file__).resolve().parents[1] / "data" / "version-0.1"
EVIL = "<img src=x onerror='window.hacked=1'></script><script>window.hacked=1</script>"
ON = "return [...document.querySelectorAll('.model .path.on')].map(each => each.dataset.path).sort()"
SLIDER = "#paths-on-the-model input[type=range]"
PAGES = ("search", "edits", "unfinished", "evil", "comparison")


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages about runs of the first release, some with longer histories than a quick run has."""
    room = tmp_path_factory.mktemp("pages")
    runs = {"search": "heterolora/finished", "edits": "lor2c/finished", "unfinished": "lor2c/interrupted"}
    for name, place in {**runs, "evil": "heterolora/finished"}.items():
        shutil.copytree(KEPT / place, room / "runs" / name)
    (room / "runs" / "search" / HISTORY_FILE).write_text(to_lines(mixed_history()))
    (room / "runs" / "edits" / HISTORY_FILE).write_text(to_lines(edited_history()))
    metrics = room / "runs" / "evil" / "metrics.json"
    figures = json.loads(metrics.read_text())
    metrics.write_text(json.dumps({**figures, "command": EVIL, "task": EVIL, "model": EVIL}))
    made = {name: write_page([room / "runs" / name], room / f"{name}.html").file for name in PAGES[:-1]}
    table = {"title": "loss", "header": ["arm", "loss"], "rows": [["a", "0.30 ± 0.1"], ["b", "0.29"]], "note": "n = 2"}
    points = [{"arm": "a", "parameters": 900, "seconds": 3.5, "loss": 0.3, "low": 0.2, "high": 0.4, "n": 2}]
    points.append({**points[0], "arm": "b", "parameters": 950, "loss": 0.29, "low": None, "high": None, "n": 1})
    return {
        **made,
        "comparison": write_page([room / "runs"], room / "comparison.html", tables=[{**table, "points": points}]).file,
    }


def data(driver: Chrome) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run_script(driver, "return document.getElementById('data').textContent"))
    return found


def column(driver: Chrome, table: str, number: int) -> list[str]:
    rows = "[...document.querySelectorAll(arguments[0] + ' tbody tr')]"
    script = f"return {rows}.map(row => row.children[arguments[1]].textContent)"
    found: list[str] = run_script(driver, script, table, number)
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_drawn_without_a_complaint(
    driver: Chrome, pages: dict[str, Path], name: str, size: tuple[int, int], dark: bool
) -> None:
    look(driver, pages[name], size, dark=dark)
    assert complaints(driver) == []
    assert run_script(driver, "return document.documentElement.scrollWidth") <= size[0], "the page scrolls sideways"
    assert run_script(driver, "return document.querySelectorAll('section').length") >= 3
    ink, paper = run_script(driver, "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
    assert (sum(channels(ink)) > sum(channels(paper))) is dark
    requests = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = {each["params"]["request"]["url"] for each in requests if each["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith(("file:", "data:", "about:"))} == set()


def channels(colour: str) -> list[int]:
    return [int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]


def test_a_statistics_table_has_a_picture_of_its_arms_with_their_intervals(
    driver: Chrome, pages: dict[str, Path]
) -> None:
    look(driver, pages["comparison"])
    pictures = driver.find_elements(By.CSS_SELECTOR, "#statistics figure")
    assert [figure.find_element(By.TAG_NAME, "figcaption").text for figure in pictures] == [
        "loss: loss against parameters",
        "loss: loss against seconds of training",
    ]
    for figure in pictures:
        assert len(figure.find_elements(By.CSS_SELECTOR, ".point")) == 2
        assert len(figure.find_elements(By.CSS_SELECTOR, ".interval")) == 1, "one seed has no interval"
        figure.find_element(By.CSS_SELECTOR, "svg[tabindex]").send_keys(Keys.HOME)
    assert "mean of 2 (a): parameters that train 900, loss 0.3000 [0.2000, 0.4000]" in pictures[0].text


@pytest.mark.parametrize("name", ["search", "edits"])
def test_the_slider_moves_the_picture(driver: Chrome, pages: dict[str, Path], name: str) -> None:
    look(driver, pages[name])
    run = data(driver)["runs"][0]
    names = [path["name"] for path in run["paths"]]
    slider = driver.find_element(By.CSS_SELECTOR, SLIDER)
    for place in reversed(range(len(run["moments"]))):
        settle(driver)
        assert run_script(driver, ON) == sorted(names[number] for number in run["moments"][place]["on"])
        assert f"{place + 1} of {len(run['moments'])}" in str(slider.get_attribute("aria-valuetext"))
        slider.send_keys(Keys.ARROW_LEFT)
    assert complaints(driver) == []


def test_the_keyboard_reaches_the_slider_and_every_table(driver: Chrome, pages: dict[str, Path]) -> None:
    look(driver, pages["search"])
    reached = []
    for _ in range(60):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(run_script(driver, "const e = document.activeElement; return e.type || e.tagName.toLowerCase()"))
    assert reached[0] == "a", "the way past the navigation comes first"
    assert {"range", "svg", "button", "div"} <= set(reached)
    labels = run_script(
        driver,
        "return [...document.querySelectorAll('input, select')].filter(e => !e.labels.length).map(e => e.id)",
    )
    assert labels == [], "every control has a label"


def test_tables_sort_by_numbers_and_back(driver: Chrome, pages: dict[str, Path]) -> None:
    look(driver, pages["search"])
    table = "#scores table"
    heads = driver.find_elements(By.CSS_SELECTOR, f"{table} th[scope=col]")
    place = next(number for number, head in enumerate(heads) if head.text.startswith("last score"))

    def numbers() -> list[float]:
        return [float(text) for text in column(driver, table, place)]

    run_script(driver, "arguments[0].querySelector('button').click()", heads[place])
    first = numbers()
    way = heads[place].get_attribute("aria-sort")
    heads[place].find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert first == sorted(first, reverse=way == "descending")
    assert numbers() == sorted(first, reverse=way != "descending")
    assert heads[place].get_attribute("aria-sort") == ({"ascending", "descending"} - {way}).pop()
    run_script(driver, "arguments[0].querySelector('button').click()", heads[0])
    names = column(driver, table, 0)
    assert names == sorted(names)


def test_pictures_are_read_by_arrow_keys_and_end_where_the_run_does(driver: Chrome, pages: dict[str, Path]) -> None:
    look(driver, pages["search"])
    picture = driver.find_element(By.CSS_SELECTOR, "#loss-and-metrics figure svg[tabindex]")
    picture.send_keys(Keys.END)
    readout = driver.find_element(By.CSS_SELECTOR, "#loss-and-metrics .readout").text
    run = data(driver)["runs"][0]
    last = run["curves"]["dev"]
    assert readout == f"step {last['step'][-1]}: dev loss {last['loss'][-1]:.4f}"
    dots = [float(dot.get_attribute("cx") or 0) for dot in picture.find_elements(By.TAG_NAME, "circle")]
    assert last["step"][-1] == run["curves"]["end"]
    assert max(dots) == pytest.approx(float(picture.get_attribute("width") or 0) - 12)


def test_the_heat_map_shows_ranks_or_how_often(driver: Chrome, pages: dict[str, Path]) -> None:
    look(driver, pages["search"])
    heat = data(driver)["runs"][0]["heat"]
    row = heat["rows"].index("value")
    shares = ["" if value is None else str(round(100 * value)) for value in heat["share"][row]]
    line = f"document.querySelectorAll('table.heat tr')[{row + 1}]"
    table = f"return [...{line}.querySelectorAll('td')].map(cell => cell.textContent)"
    assert heat["known"] is False, "the adapter has the ranks of its own paths, the longer history more paths"
    assert run_script(driver, table) == ["on" if value else "·" for value in heat["ranks"][row]]
    driver.find_element(By.CSS_SELECTOR, "#ranks-by-block select").send_keys(Keys.ARROW_DOWN)
    assert run_script(driver, table) == shares


def test_a_comparison_has_every_run_and_opens_one(driver: Chrome, pages: dict[str, Path]) -> None:
    look(driver, pages["comparison"])
    found = data(driver)["comparison"]
    task = max({run["task"] for run in found}, key=lambda name: sum(run["task"] == name for run in found))
    assert sorted(column(driver, "#comparison table", 0)) == sorted(run["name"] for run in found if run["task"] == task)
    assert run_script(driver, "return document.querySelectorAll('#what-it-costs svg .point').length") >= 4
    assert column(driver, "#statistics table", 1) == ["0.30 ± 0.1", "0.29"]
    run_script(driver, "document.querySelectorAll('#statistics th button')[1].click()")
    assert column(driver, "#statistics table", 0) == ["a", "b"]
    select = driver.find_element(By.CSS_SELECTOR, "#one-run select")
    select.send_keys("search")
    settle(driver)
    assert driver.find_elements(By.CSS_SELECTOR, "#scores table")
    assert complaints(driver) == []


def test_runs_of_a_study_are_told_apart_by_their_arm(driver: Chrome, tmp_path: Path) -> None:
    for place in ("a/seed-0", "a/seed-1", "b/seed-0", "b/seed-1"):
        shutil.copytree(KEPT / "lor2c" / "finished", tmp_path / "study" / place)
    look(driver, write_page([tmp_path / "study"], tmp_path / "study.html").file)
    legend = driver.find_elements(By.CSS_SELECTOR, "#what-it-costs figure:first-child .legend li")
    assert [item.text for item in legend] == ["a", "b"]
    assert complaints(driver) == []


def test_a_text_of_a_run_never_runs(driver: Chrome, pages: dict[str, Path]) -> None:
    for name in ("evil", "comparison"):
        look(driver, pages[name])
        assert run_script(driver, "return window.hacked === undefined")
        assert run_script(driver, "return document.querySelectorAll('img').length") == 0
    look(driver, pages["evil"])
    assert EVIL in driver.find_element(By.ID, "run-it-again").text


def test_an_unfinished_run_says_so(driver: Chrome, pages: dict[str, Path]) -> None:
    look(driver, pages["unfinished"])
    assert "This run is not finished (at step 4 of 6)" in driver.find_element(By.ID, "what-was-asked").text
    assert "6 were planned" in driver.find_element(By.ID, "loss-and-metrics").text
