"""The report: one file without network, with every value of the tables, that stays whole whatever answers hold."""

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from emtoolkit.analysis.chart import Mark, Series, Span, line_chart
from emtoolkit.analysis.figures import figure_of
from emtoolkit.analysis.onset_results import Event, onsets
from emtoolkit.analysis.report_charts import onset_charts
from emtoolkit.evaluation.result_files import add_to_evaluation
from tests.analysis.evaluations import SETTINGS, answer_rows, measure_rows, write_evaluation
from tests.in_process import emtoolkit

# Four questions without a misaligned answer do not exclude ten points for new questions.
ZERO, HIGH = [0] * 4, [10, 25, 30, 15]
CURVE = {0: ZERO, 25: ZERO, 50: ZERO, 75: HIGH, 100: HIGH}
EVIL = "<script>alert(1)</script>"


class Elements(HTMLParser):
    """The names of all elements, and the text of each table cell."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names, self.cells, self.ids = list[str](), list[str](), list[str]()
        self._open: list[str] = []
        self.feed(page)
        assert self._open == ["html"] or self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "link", "input", "path", "rect"):
            self._open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "rect"):
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "td":
            self.cells[-1] += data


def page_of(tmp_path: Path, *places: Path, more: tuple[str, ...] = ()) -> str:
    done = emtoolkit("report", *places, "--out", tmp_path / "report.html", *more)
    assert (done.code, done.out) == (0, f"{tmp_path / 'report.html'}\n"), done.err
    return (tmp_path / "report.html").read_text()


def test_the_page_is_one_file_with_the_onset_and_the_values_of_the_curve(tmp_path: Path) -> None:
    margin = measure_rows("margin", {step: [0.1 * step + i for i in range(4)] for step in CURVE})
    place = write_evaluation(tmp_path / "e", CURVE, margin)
    page = page_of(tmp_path, place, more=("--schedules", "0,every:50;every:100;every:10"))
    assert "http" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    found = Elements(page)
    assert found.cells[:4] == ["goodness", "t", "in (0, 75]", "in (50, 75]"]
    # The rise at step 75: 40 points, with its limits for new questions.
    at = found.cells.index("75")
    assert found.cells[at + 1] == "0.4"
    assert len(found.ids) == len(set(found.ids))
    for name in ("margin, rise since step 0", "Truncated answers", "EM rate, betley", "What each schedule would have"):
        assert name in page
    row = found.cells.index("0,every:50")
    assert found.cells[row : row + 3] == ["0,every:50", "3", "—"]
    assert found.cells[row + 4] == "seen (0, 100]"
    assert "every:10 saves steps that were not evaluated" in page


def test_personas_and_answers_cannot_add_elements_to_the_page(tmp_path: Path) -> None:
    texts = [EVIL, "</script><b>x", "😀 \u05e9\u05dc\u05d5\u05dd", "x" * 10_000]
    rows = answer_rows(CURVE, trials=4, persona=EVIL, trajectory="a&b")
    odd = [replace(row, answer=texts[row.sample % 2 + 2 * (row.question == "q1")]) for row in rows]
    (tmp_path / "e").mkdir()
    add_to_evaluation(tmp_path / "e", SETTINGS, odd)
    page = page_of(tmp_path, tmp_path / "e")
    found = Elements(page)
    assert found.names.count("script") == 2
    assert found.names.count("b") == 0
    assert EVIL not in page
    assert found.cells[:2] == [EVIL, "a&b"]
    assert "😀 \u05e9\u05dc\u05d5\u05dd" in page
    assert "x" * 2000 + "… (10000 characters)" in page
    assert "x" * 2001 not in page


def test_each_persona_is_a_group_of_its_own_and_seeds_have_a_median(tmp_path: Path) -> None:
    places = [
        write_evaluation(tmp_path / f"e{i}", CURVE, fingerprint=f"f{i}", persona=persona, trajectory=f"t{i}")
        for i, persona in enumerate(("goodness", "goodness", "sarcasm"))
    ]
    found = Elements(page_of(tmp_path, *places))
    assert found.cells[:12:4] == ["goodness", "goodness", "sarcasm"]
    assert found.cells[12:16] == ["goodness", "2", "median in (0, 75]", "median in (50, 75]"]


def test_a_persona_on_other_data_is_a_group_of_its_own_and_no_seed(tmp_path: Path) -> None:
    recorded = {"bad": "1" * 64, "good": "2" * 64}
    for name, digest in recorded.items():
        record = {"format": 1, "fingerprint": name, "schedule": "0", "total_steps": 100, "ended_at": 100}
        (tmp_path / name).mkdir()
        (tmp_path / name / "trajectory.json").write_text(json.dumps(record | {"decides": {"data": {"digest": digest}}}))
    places = [
        write_evaluation(tmp_path / f"e-{name}", CURVE, trajectory=str(tmp_path / name), fingerprint=name)
        for name in recorded
    ]
    page = page_of(tmp_path, *places, more=("--no-weights",))
    assert "Over seeds" not in page
    done = emtoolkit("onset", *places)
    assert done.code == 2
    assert f"trainings on different data (digests 11111111 in {places[0]}, 22222222 in {places[1]})" in done.err


def test_measures_alone_make_a_page_without_answers(tmp_path: Path) -> None:
    margin = measure_rows("margin", {0: [0.0, 1.0], 50: [2.0, 3.5], 100: [3.0, 4.0]})
    place = write_evaluation(tmp_path / "e", {}, margin)
    page = page_of(tmp_path, place, more=("--metric", "margin", "--threshold", "1"))
    assert "answer-step" not in Elements(page).ids
    assert "no answers" in page


def test_the_weights_of_a_run_on_this_machine_are_compared(runs: Path, tmp_path: Path) -> None:
    curve = dict.fromkeys((0, 2, 4, 9), ZERO)
    place = write_evaluation(tmp_path / "e", curve, trajectory=str(runs / "prompt"))
    assert "Norm of the change" in page_of(tmp_path, place)
    without = page_of(tmp_path, place, more=("--no-weights",))
    assert "Norm of the change" not in without


def noted(tmp_path: Path, *places: Path, code: int = 0, more: tuple[str, ...] = ()) -> str:
    """What the command says, which stands in the page, too."""
    done = emtoolkit("report", *places, "--out", tmp_path / "report.html", "--no-weights", *more)
    assert done.code == code, done.err
    if code == 0:
        page = (tmp_path / "report.html").read_text()
        Elements(page)
        assert ">nan<" not in page.lower()
        assert all(line.removeprefix("emtoolkit: ") in unescape(page) for line in done.err.splitlines())
    return done.err


def test_one_evaluated_step_is_a_page_that_says_so(tmp_path: Path) -> None:
    place = write_evaluation(tmp_path / "e", {0: ZERO})
    assert noted(tmp_path, place) == f"emtoolkit: {place}: only step 0 is evaluated, so there is no curve\n"
    late = write_evaluation(tmp_path / "late", {50: HIGH})
    assert "a rise counts from step 0" in noted(tmp_path, late, code=2)
    assert "only step 50 is evaluated" in noted(tmp_path, late, more=("--level",))


@pytest.mark.parametrize(("name", "value"), [("judge", "other@1"), ("engine", "stacked"), ("questions", ["r"])])
def test_evaluations_that_were_made_differently_are_refused(tmp_path: Path, name: str, value: object) -> None:
    one = write_evaluation(tmp_path / "one", CURVE)
    same = {"persona": "sarcasm", "fingerprint": "f1"}
    other = write_evaluation(tmp_path / "other", CURVE, settings={**SETTINGS, name: value}, **same)
    assert f"{other}: differs from {one} in {name}; evaluate both alike" in noted(tmp_path, one, other, code=2)


def test_personas_of_different_lengths_and_bases_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write_evaluation(tmp_path / "one", CURVE)
    other = write_evaluation(tmp_path / "other", {0: ZERO, 50: HIGH}, persona="sarcasm", fingerprint="f1")
    said = "the personas are evaluated up to different steps: goodness at step 100, sarcasm at step 50"
    assert said in noted(tmp_path, one, other)
    monkeypatch.setattr("emtoolkit.analysis.report.base_of", lambda each: f"base-{each.directory.name}")
    assert f"of different base models (base-one in {one}, base-other in {other})" in noted(tmp_path, one, other)


def test_a_metric_that_is_missing_at_steps_is_named_and_drawn_only_from_step_0(tmp_path: Path) -> None:
    gaps = measure_rows("margin", {0: [0.0, 1.0], 100: [1.0, None]})
    late = measure_rows("loss", {50: [0.0, 1.0], 100: [None, None]})
    place = write_evaluation(tmp_path / "e", CURVE, [*gaps, *late])
    told = noted(tmp_path, place)
    assert f"{place}: margin is not measured at steps 25, 50, 75" in told
    assert f"{place}: loss is not measured at steps 0, 25, 75" in told
    page = (tmp_path / "report.html").read_text()
    assert "margin, rise since step 0" in page
    assert "loss, rise since step 0" not in page


def test_three_hundred_checkpoints_are_three_hundred_marks_of_each_curve(tmp_path: Path) -> None:
    curve = {10 * step: (HIGH if step > 150 else ZERO) for step in range(300)}
    page = page_of(tmp_path, write_evaluation(tmp_path / "e", curve, trials=2), more=("--no-weights",))
    # Rise, rate, coherence, truncation and changed answers, each on two axes, and a mark in each legend.
    assert page.count('class="mark') == 5 * (2 * 300 + 1)
    assert len(page) < 4_000_000


def test_each_figure_is_a_png_and_an_svg_with_the_values_of_the_page(tmp_path: Path) -> None:
    margin = measure_rows("margin", {step: [0.1 * step + i for i in range(4)] for step in CURVE})
    place = write_evaluation(tmp_path / "e", CURVE, margin, persona="$5 _a_", trajectory="_$x$")
    page_of(tmp_path, place, more=("--figures", str(tmp_path / "figures"), "--schedules", "0,every:50;every:10"))
    names = ["coherence", "companion-1", "companion-2", "onset-1", "rate", "schedules", "truncation"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        f"{name}.{form}" for name in names for form in ("png", "svg")
    ]
    result = onsets([place], Event())
    (axes,) = figure_of(onset_charts([result])[0]).axes
    (line,) = axes.lines
    assert line.get_xydata().round(12).tolist() == [[0, 0], [25, 0], [50, 0], [75, 0.4], [100, 0.4]]
    assert axes.get_title(loc="left").startswith(r"\$5 _a_")
    (again,) = figure_of(onset_charts([result])[0], log_steps=True).axes
    assert again.get_xscale() == "symlog"


def test_no_evaluation_is_one_sentence_and_no_file(tmp_path: Path) -> None:
    done = emtoolkit("report", tmp_path, "--out", tmp_path / "report.html")
    assert (done.code, done.out) == (2, "")
    assert f"there is no evaluation yet; run 'emtoolkit evaluate {tmp_path}' first" in done.err
    assert not (tmp_path / "report.html").exists()


def test_a_chart_breaks_its_line_at_a_gap_and_marks_every_checkpoint() -> None:
    nan = float("nan")
    marks = (Mark(0, 0.0, 0.0, 0.0), Mark(10, nan), Mark(100, 0.5, 0.4, 0.6), Mark(1000, 0.25))
    chart = line_chart("rate", [Series("a", marks)], percent=True, spans=[Span(10, 100, "onset in (10, 100]")])
    assert chart.count('class="mark') == 3
    (line,) = re.findall(r'class="line s0"[^>]* d="([^"]+)"', chart)
    assert line == "M56.0 260.0M121.2 55.0L708.0 157.5"
    assert "<title>a, step 100: 50 % (40 % to 60 %)</title>" in chart
    assert "<title>onset in (10, 100]</title>" in chart
    log = line_chart("rate", [Series("a", marks)], log_steps=True)
    assert re.findall(r'middle" x="[\d.]+" y="276">(\d+)', log) == ["0", "1", "10", "100", "1000"]
    assert line_chart("empty", []).startswith("<svg")


def test_a_long_trajectory_shows_fewer_questions_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emtoolkit.analysis.report_answers._MOST", 30)
    page = page_of(tmp_path, write_evaluation(tmp_path / "e", CURVE, trials=3))
    # Two answers to a question at five steps are 10; three questions have room.
    assert "The first 2 answers of each trajectory to each wording of 3 of the 4 questions." in page
    assert page.count('"question": "q0"') == 10
    assert '"question": "q3"' not in page


def test_a_place_that_cannot_be_written_is_refused_before_the_work_begins(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    page, figures = tmp_path / "report.html", ("--figures", tmp_path / "file")
    for words, problem in (
        (("--out", tmp_path), f"--out: {tmp_path} is a directory; name a file in it"),
        (("--out", tmp_path / "no" / "report.html"), f"--out: {tmp_path / 'no'}: no such directory; make it first"),
        (("--out", page, *figures), f"--figures: {tmp_path / 'file'} is a file; name a directory"),
    ):
        # There is no evaluation either.
        done = emtoolkit("report", tmp_path, *words)
        assert (done.code, done.out, done.err) == (2, "", f"emtoolkit: {problem}\n")
        assert not page.exists()


def test_schedules_that_cannot_be_judged_have_no_figure(tmp_path: Path) -> None:
    place = write_evaluation(tmp_path / "e", CURVE)
    page_of(tmp_path, place, more=("--figures", str(tmp_path / "figures"), "--schedules", "every:10"))
    assert not (tmp_path / "figures" / "schedules.png").exists()
    assert (tmp_path / "figures" / "rate.png").exists()


def test_an_axis_has_enough_labels_to_read_a_value() -> None:
    for high, labels in ((1.0, "0 20 40 60 80 100"), (0.97, "0 20 40 60 80"), (0.35, "0 10 20 30")):
        chart = line_chart("rate", [Series("a", (Mark(0, 0.0, -0.08, 0.08), Mark(397, high)))], percent=True)
        assert re.findall(r'tick end"[^>]*>(\d+) %', chart) == labels.split()


def test_a_right_to_left_name_does_not_turn_the_title_of_a_figure_around(tmp_path: Path) -> None:
    place = write_evaluation(tmp_path / "e", CURVE, persona="\u05e9\u05dc\u05d5\u05dd")
    (axes,) = figure_of(onset_charts([onsets([place], Event())])[0]).axes
    assert axes.get_title(loc="left").startswith("\u200e\u05e9\u05dc\u05d5\u05dd: betley")
