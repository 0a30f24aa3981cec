"""The report in a browser: no errors, figures drawn, values of the tables, wide and narrow, light and dark."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.analysis.chromium import Chromium
from tests.analysis.evaluations import measure_rows, write_evaluation
from tests.in_process import emtoolkit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.subprocess,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]

ZERO, HIGH = [0] * 4, [10, 25, 30, 15]
CURVE = {0: ZERO, 25: ZERO, 50: ZERO, 75: HIGH, 100: HIGH}
EVIL = "<script>console.error(1)</script>" * 3
LOOKS = [(1280, False), (1280, True), (390, False), (390, True)]
# Elements beyond the right edge of the window; what stands in a box that scrolls may be wider.
OUTSIDE = """[...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll")).map((e) => e.outerHTML)"""
# The marks of each visible chart that have a place on the screen.
DRAWN = """[...document.querySelectorAll("figure .chart")].filter((e) => e.getBoundingClientRect().height > 100)
  .map((e) => [...e.querySelectorAll(".mark")].filter((m) => m.getBoundingClientRect().width > 1).length)"""
ROWS = """[...document.querySelectorAll("figure")].map((figure) =>
  [...figure.querySelectorAll("tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent)))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory, made = tmp_path_factory.mktemp("evaluations"), []
    for number, persona in enumerate(("goodness", EVIL)):
        same = {"persona": persona, "fingerprint": f"f{number}", "trajectory": f"{persona}-{'long-name' * 9}"}
        margin = measure_rows("margin", {step: [0.1 * step + q for q in range(4)] for step in CURVE}, **same)
        made.append(write_evaluation(directory / f"e{number}", CURVE, margin, trials=50, **same))
    return made


@pytest.fixture(scope="module")
def page(places: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "report.html"
    done = emtoolkit("report", *places, "--out", file, "--schedules", "0,every:50;every:100")
    assert done.code == 0, done.err
    return file


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_the_page_fits_its_window_and_draws_every_mark_without_an_error(
    browser: Chromium, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.value(OUTSIDE) == []
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    # Two figures of one persona each, then five of both, with five steps.
    assert browser.value(DRAWN) == [5, 5, 10, 10, 10, 10, 10]
    browser.value('document.getElementById("log-axis").click()')
    assert browser.value(DRAWN) == [5, 5, 10, 10, 10, 10, 10]
    assert browser.errors == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_lines_have_enough_contrast(browser: Chromium, page: Path, dark: bool) -> None:
    browser.open(page, width=390, dark=dark)
    names = ["ground", "shade", "text", "quiet", *(f"s{n}" for n in range(6))]
    style = "getComputedStyle(document.documentElement)"
    colours = {name: _luminance(browser.value(f'{style}.getPropertyValue("--{name}")')) for name in names}
    assert (colours["ground"] < 0.1) is dark
    # WCAG 2.2: 4.5 for text, 3 for graphics.
    for ground in ("ground", "shade"):
        for name, least in (("text", 4.5), ("quiet", 4.5), *((f"s{n}", 3.0) for n in range(6))):
            assert _contrast(colours[ground], colours[name]) >= least, (ground, name)


def test_the_page_has_the_values_of_the_onset_command(browser: Chromium, page: Path, places: list[Path]) -> None:
    browser.open(page, width=1280, dark=False)
    figures = browser.value(ROWS)
    for number, place in enumerate(places):
        (seed,) = json.loads(emtoolkit("onset", place, "--json").out)["seeds"]
        told = [
            [str(point["step"]), *(f"{value:.4g}" for value in (point["value"], *point["limits"].values()))]
            for point in seed["curve"]["new_questions"]
        ]
        assert [row[1:] for row in figures[number]] == told
        bracket = seed["new_questions"]["bracket"]
        cell = f'document.querySelectorAll("section tbody tr")[{number}].cells[2].textContent'
        assert browser.value(cell) == f"in ({bracket['lower']}, {bracket['upper']}]"


def test_the_slider_and_the_filters_choose_the_answers(browser: Chromium, page: Path) -> None:
    browser.open(page, width=1280, dark=False)
    articles = '[...document.querySelectorAll("#answers-list article")].map((e) => e.textContent)'
    # Two answers of two trajectories to each of four questions, side by side.
    first = browser.value(articles)
    assert len(first) == 16
    assert first[0].startswith("goodness")
    assert first[1].startswith(EVIL)
    browser.value(
        """for (const [id, value] of [["answer-step", "0"], ["answer-question", "q2"], ["answer-verdict", "aligned"]]) {
          const control = document.getElementById(id);
          control.value = value;
          control.dispatchEvent(new Event("input"));
        }"""
    )
    assert browser.value('document.getElementById("answer-step-shown").textContent') == "0"
    assert [text[-4:] for text in browser.value(articles)] == ["good"] * 4
    assert browser.value('document.getElementById("answer-step").getAttribute("aria-valuetext")') == "step 0"
    assert browser.errors == []


def test_on_paper_the_page_is_light_and_nothing_scrolls(browser: Chromium, page: Path) -> None:
    browser.open(page, width=390, dark=True)
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value('getComputedStyle(document.querySelector(".scroll")).overflowX') == "visible"
    pdf = browser.call("Page.printToPDF")["data"]
    assert len(pdf) > 10_000


def test_an_error_in_the_console_is_found(browser: Chromium, tmp_path: Path) -> None:
    (tmp_path / "broken.html").write_text("<script>missing()</script>")
    browser.open(tmp_path / "broken.html", width=390, dark=False)
    assert "missing is not defined" in browser.errors.pop()


def _luminance(colour: str) -> float:
    """The relative luminance of WCAG of a colour that is written #rrggbb."""
    parts = [int(colour.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
