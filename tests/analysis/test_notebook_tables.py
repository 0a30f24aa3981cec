"""What a notebook shows: every result is a table, as HTML and as a data frame, and every figure is a picture."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emtoolkit.analysis.compare import compare_all
from emtoolkit.analysis.compare_figure import compare_figure
from emtoolkit.analysis.dynamics import trajectory_dynamics
from emtoolkit.analysis.figures import figure_of
from emtoolkit.analysis.onset_results import Event, onsets
from emtoolkit.analysis.report_charts import onset_charts
from emtoolkit.analysis.schedule_costs import schedule_costs
from emtoolkit.analysis.sources import read_sources
from emtoolkit.analysis.suggest import suggest, suggest_for
from emtoolkit.evaluation.measure_rows import summarise_measures
from emtoolkit.evaluation.result_files import read_evaluation
from emtoolkit.evaluation.results import EvaluationResult, by_step
from emtoolkit.notebook_tables import AsTable
from emtoolkit.trajectory import Trajectory
from tests.analysis.evaluations import measure_rows, write_evaluation
from tests.analysis.lora_paths import vector_path

ZERO, HIGH = [0] * 4, [10, 25, 30, 15]
CURVE = {0: ZERO, 25: ZERO, 50: ZERO, 75: HIGH, 100: HIGH}
EVIL = "<script>alert(1)</script>"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;"


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Persona, trajectory and metric have a hostile name; the answers of step 25 are not coherent."""
    same = {"persona": EVIL, "trajectory": EVIL}
    measured = measure_rows(EVIL, {step: [0.1 * step + q for q in range(4)] for step in CURVE}, **same)
    place = tmp_path_factory.mktemp("evaluation") / "e"
    return write_evaluation(place, CURVE, measured, coherent={25: 10.0}, **same)


@pytest.fixture(scope="module")
def evaluated(evaluation: Path) -> EvaluationResult:
    stored = read_evaluation(evaluation)
    measured = summarise_measures(stored.measured)
    return EvaluationResult(EVIL, evaluation, "exact", "word@1", by_step(stored.rows), (), measured)


def test_every_result_is_a_table_that_escapes_its_texts(evaluation: Path, evaluated: EvaluationResult) -> None:
    found = onsets([evaluation], Event())
    compared = compare_all(read_sources([evaluation]), ["0,every:50"], Event())
    results: list[tuple[AsTable, int]] = [
        (evaluated, 5 * 3 + 5),
        (evaluated.measures[0], 5),
        (found, 2),
        (found.seeds[0].curve, 5),
        (compared, 2),
        (compared.trajectories[0], 2),
        (suggest([EVIL, "b"], [0, 1, 2], [[0, 0, 1], [0, 1, 1]], 2), 2),
    ]
    for result, rows in results:
        html = result._repr_html_()
        assert (html.count("<tr>"), len(result.to_dataframe())) == (1 + rows, rows), result
        assert EVIL not in html
        assert ESCAPED in html or result is found.seeds[0].curve


def test_a_trajectory_and_its_checkpoints_are_tables(tmp_path: Path) -> None:
    trajectory = Trajectory.open(vector_path(tmp_path, {0: torch.zeros(3), 10: torch.ones(3)}))
    assert trajectory.to_dataframe()["step"].tolist() == [0, 10]
    assert trajectory.at(0).to_dataframe()["step"].tolist() == [0]
    assert trajectory._repr_html_().count("<tr>") == 3
    assert "<td>0</td>" in trajectory.at(0)._repr_html_()


def test_the_table_of_an_evaluation_has_the_rates_and_no_rate_of_a_broken_model(evaluated: EvaluationResult) -> None:
    table = evaluated.to_dataframe()
    assert table["metric"].unique().tolist() == ["betley", "organisms", "all", EVIL]
    betley = table[table["metric"] == "betley"].set_index("step")
    assert betley["misaligned"].tolist() == [0, 0, 0, 80, 80]
    assert betley["value"].tolist()[2:] == [0.0, 0.4, 0.4]
    assert betley["rise"].tolist()[2:] == pytest.approx([0.0, 0.4, 0.4])
    assert betley.loc[25, ["value", "low", "these_high", "rise", "rise_low"]].isna().all()
    assert betley["coherence"].tolist() == [1.0, 0.0, 1.0, 1.0, 1.0]
    rate = evaluated.steps[3].summary.rates[0]
    assert betley.loc[75, ["low", "high"]].tolist() == [rate.new_questions.low, rate.new_questions.high]
    assert betley.loc[75, ["these_low", "these_high"]].tolist() == [rate.these_questions.low, rate.these_questions.high]
    measured = table[table["metric"] == EVIL].set_index("step")
    assert measured.loc[100, ["value", "rise", "questions"]].tolist() == pytest.approx([11.5, 10.0, 4])


def test_the_table_of_onsets_has_the_brackets(evaluation: Path) -> None:
    table = onsets([evaluation], Event()).to_dataframe()
    assert table[["inference", "status", "lower", "upper"]].values.tolist() == [
        ["new questions", "seen", 0, 75],
        ["these questions", "seen", 50, 75],
    ]


def test_the_table_of_schedules_has_sizes_errors_and_brackets(evaluation: Path) -> None:
    table = compare_all(read_sources([evaluation]), ["0,every:50", "every:10"], Event()).to_dataframe()
    assert table["schedule"].tolist() == ["all", "0,every:50", "every:10"]
    assert table["checkpoints"].tolist() == [5, 3, 10]
    assert table["these_status"].tolist()[:2] == ["seen", "seen"]
    assert table[["these_lower", "these_upper"]].values.tolist()[:2] == [[50, 75], [50, 100]]
    # The reference lacks steps of the last schedule.
    assert table.loc[2, ["rmse", "these_status", "these_lower"]].isna().all()


def test_the_table_of_a_suggestion_has_a_row_for_each_trajectory_left_out(tmp_path: Path) -> None:
    places = [
        write_evaluation(tmp_path / f"e{i}", {25 * k: HIGH if k > i else ZERO for k in range(6)}, fingerprint=f"f{i}")
        for i in range(2)
    ]
    found = suggest_for(read_sources(places), "betley", "level", 3)
    table = found.to_dataframe()
    assert table["left_out"].tolist() == [str(place) for place in places]
    assert table["regret"].tolist() == [each.regret for each in found.held_out]
    assert list(table) == ["left_out", "suggested", "best", "regret", "dense-early"]


def test_the_table_of_dynamics_has_the_columns_of_the_csv(tmp_path: Path) -> None:
    points = {0: torch.zeros(3), 10: torch.tensor([3.0, 4.0, 0.0]), 20: torch.tensor([6.0, 8.0, 0.0])}
    found = trajectory_dynamics(Trajectory.open(vector_path(tmp_path, points)))
    table = found.to_dataframe()
    assert table["norm"].tolist() == [0, 5, 10]
    assert table["per_step"].tolist()[1:] == [0.5, 0.5]
    assert table["cosine_10"].tolist()[1] == pytest.approx(1)
    assert math.isnan(table["cosine_10"][0])
    assert found._repr_html_().count("<tr>") == 4


def _schedules_figure(place: Path) -> object:
    found = compare_all(read_sources([place]), ["0,every:50"], Event())
    return compare_figure(found, schedule_costs(found))


@pytest.mark.parametrize(
    "draw",
    [
        lambda place: figure_of(onset_charts([onsets([place], Event())])[0]),
        _schedules_figure,
    ],
    ids=["chart", "schedules"],
)
def test_a_notebook_shows_a_figure_without_pyplot(draw: Callable[[Path], object], evaluation: Path) -> None:
    figure = draw(evaluation)
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
