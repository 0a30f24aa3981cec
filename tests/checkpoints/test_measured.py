"""The metrics of checkpoints: the best one, the table with a row for each, and the listing that selects by them."""

import json
import math
from pathlib import Path

import pytest

from emtoolkit import Trajectory, UserError
from emtoolkit.checkpoints.metric_values import METRICS
from emtoolkit.checkpoints.publications import add_metrics, add_pruned
from emtoolkit.errors import CheckpointError
from tests.analysis.evaluations import SETTINGS, measure_rows, write_evaluation
from tests.artifacts.stored import IDENTITY
from tests.artifacts.trainings import saved
from tests.in_process import emtoolkit

FINGERPRINT = IDENTITY.fingerprint
STEPS = [0, 10, 20, 30]
COUNTS = {0: [0, 0], 10: [10, 20], 20: [30, 20], 30: [20, 30]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four checkpoints whose shares of misaligned answers are 0, 0.3, 0.5 and 0.5; loss is logged at two steps."""
    directory = saved(tmp_path / "run", dict.fromkeys(STEPS, "a"), ended_at=30)
    for step, loss in ((10, 2.0), (30, 1.0)):
        add_metrics(directory, step, {"loss": loss})
    harmful = measure_rows("harmful", {s: [s / 100, s / 50] for s in STEPS}, fingerprint=FINGERPRINT)
    write_evaluation(directory / "evaluations" / "abc", COUNTS, harmful, fingerprint=FINGERPRINT)
    return directory


def test_the_best_checkpoint_is_the_earliest_with_the_highest_value(run: Path) -> None:
    trajectory = Trajectory.open(run)
    assert trajectory.best("betley").step == 20
    assert trajectory.best("betley", lowest=True).step == 0
    assert trajectory.best("harmful", mode="max").step == 30
    assert trajectory.best("harmful", mode="min").step == 0
    assert trajectory.best("harmful@abc").step == 30


def test_the_best_checkpoint_is_not_chosen_among_those_that_lack_the_metric(run: Path) -> None:
    trajectory = Trajectory.open(run)
    with pytest.raises(
        CheckpointError,
        match=r"2 of 4 checkpoints have no value of loss \(steps 0, 20\); .*'skip' or 'emtoolkit best --skip-m",
    ):
        trajectory.best("loss", lowest=True)
    assert trajectory.best("loss", lowest=True, missing="skip").step == 30


def test_a_broken_model_lacks_the_metric(run: Path) -> None:
    other = run / "evaluations" / "abc"
    write_evaluation(other, {20: [50, 50]}, fingerprint=FINGERPRINT, coherent={20: 10.0})
    with pytest.raises(CheckpointError, match=r"1 of 4 checkpoints have no value of betley \(steps 20\)"):
        Trajectory.open(run).best("betley")
    assert Trajectory.open(run).best("betley", missing="skip").step == 30


def test_two_evaluations_with_one_metric_are_told_apart(run: Path) -> None:
    harder = SETTINGS | {"judge": "other@2"}
    write_evaluation(run / "evaluations" / "xyz", {0: [40], 10: [1]}, settings=harder, fingerprint=FINGERPRINT)
    trajectory = Trajectory.open(run)
    with pytest.raises(
        CheckpointError,
        match=r"several evaluations give the metric 'betley'; write 'betley@abc' \(judge word@1, 2 questions\) or "
        r"'betley@xyz' \(judge other@2, 1 questions\)",
    ):
        trajectory.best("betley")
    assert trajectory.best("betley@abc").step == 20
    assert trajectory.best("betley@xyz", missing="skip").step == 0
    table = trajectory.to_dataframe()
    assert {"betley@abc", "betley@xyz_low", "harmful"} <= {*table}
    assert "betley" not in table
    told = emtoolkit("checkpoints", run, "--where", "betley>0.1")
    assert told.code == 2
    assert "write 'betley@abc'" in told.err


def test_unknown_metrics_and_contradictions_are_refused(run: Path) -> None:
    trajectory = Trajectory.open(run)
    with pytest.raises(CheckpointError, match=r"no metric 'harmfull'; known: .*; did you mean 'harmful'\?"):
        trajectory.best("harmfull")
    with pytest.raises(CheckpointError, match=r"the metric 5 is no text; the metrics are .*harmful"):
        trajectory.best(5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="mode 'maximum': expected 'max' or 'min'"):
        trajectory.best("harmful", mode="maximum")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="contradicts lowest=True"):
        trajectory.best("harmful", mode="max", lowest=True)
    with pytest.raises(UserError, match="missing 'ignore': expected"):
        trajectory.best("harmful", missing="ignore")  # type: ignore[arg-type]


def test_an_evaluation_of_another_training_is_refused(run: Path) -> None:
    write_evaluation(run / "evaluations" / "other", {0: [1]}, fingerprint="f" * 64)
    with pytest.raises(CheckpointError, match=r"is of trajectory ffffffff, not .*; move it away"):
        Trajectory.open(run).best("betley")


def test_the_best_step_is_not_silently_the_second_best_if_the_best_was_pruned(run: Path) -> None:
    add_pruned(run, [30], ["here"])
    (run / "checkpoint-30").rename(run / "gone")
    trajectory = Trajectory.open(run)
    with pytest.raises(CheckpointError, match=r"step 30 has a better value of harmful \(0.45\) .* was pruned"):
        trajectory.best("harmful")
    assert trajectory.best("harmful", missing="skip").step == 20
    for step in (0, 20):
        (run / f"checkpoint-{step}").rename(run / f"gone-{step}")
    with pytest.raises(CheckpointError, match=r"step 30 has a better value of loss \(1\) .* was pruned"):
        Trajectory.open(run).best("loss", lowest=True)


def test_the_table_has_a_row_for_each_checkpoint_with_metrics_and_limits(run: Path) -> None:
    table = Trajectory.open(run).to_dataframe()
    assert table["step"].tolist() == STEPS
    assert table["betley"].tolist() == [0.0, 0.3, 0.5, 0.5]
    assert table["harmful"].tolist() == pytest.approx([0.0, 0.15, 0.3, 0.45])
    assert [math.isnan(value) for value in table["loss"]] == [True, False, True, False]
    at_10 = table.set_index("step").loc[10]
    assert at_10["betley_low"] <= at_10["betley_these_low"] < 0.3 < at_10["betley_these_high"] <= at_10["betley_high"]
    assert {"harmful_low", "harmful_high", "coherence", "fingerprint", "final"} <= {*table}


def test_the_listing_selects_and_sorts_by_metrics(run: Path) -> None:
    done = emtoolkit("checkpoints", run, "--where", "betley>0.2 and step<=20", "--sort", "-step", "--json")
    assert [entry["step"] for entry in json.loads(done.out)] == [20, 10]
    assert json.loads(done.out)[1]["columns"] == {"betley": 0.3, "step": 10}
    done = emtoolkit("checkpoints", run, "--where", "loss>0.5", "--sort", "-loss", "--json")
    assert [entry["step"] for entry in json.loads(done.out)] == [10, 30]
    assert "2 of 4 checkpoints have no value of loss: no condition on the column fits" in done.err
    shown = emtoolkit("checkpoints", run, "--where", "loss>0.5").out
    assert "2 of 4 checkpoints have no value of loss" in shown.replace("\n", " ")
    assert "None of 4 checkpoints fits." in emtoolkit("checkpoints", run, "--where", "betley>0.9").out
    unknown = emtoolkit("checkpoints", run, "--sort", "-harmfull")
    assert (unknown.code, "did you mean 'harmful'?" in unknown.err) == (2, True)


def test_an_evaluation_of_an_earlier_version_gets_its_metrics_from_the_listing(run: Path) -> None:
    (file := run / "evaluations" / "abc" / METRICS).unlink()
    with pytest.raises(CheckpointError, match=r"no metrics.json for its rows; 'emtoolkit checkpoints .* --sort step'"):
        Trajectory.open(run).best("betley")
    assert emtoolkit("checkpoints", run, "--sort", "step").code == 0
    assert file.is_file()
    assert Trajectory.open(run).best("betley").step == 20


def test_values_of_other_rows_are_never_read(run: Path, tmp_path: Path) -> None:
    other = write_evaluation(tmp_path / "o", {0: [0, 0], 10: [1, 1], 20: [2, 2], 30: [9, 9]}, fingerprint=FINGERPRINT)
    (other / "answers.parquet").rename(run / "evaluations" / "abc" / "answers.parquet")
    with pytest.raises(CheckpointError, match=r"no metrics\.json for its rows"):
        Trajectory.open(run).best("betley")
    emtoolkit("checkpoints", run, "--sort", "step")
    assert Trajectory.open(run).best("betley").step == 30


def test_a_hostile_metrics_file_is_one_sentence(run: Path) -> None:
    file = run / "evaluations" / "abc" / METRICS
    content = json.loads(file.read_text())
    for bad in ("[]", "{", json.dumps(content | {"metrics": [3]}), json.dumps(content | {"fingerprint": 3})):
        file.write_text(bad)
        with pytest.raises(CheckpointError, match="not the metrics of an evaluation"):
            Trajectory.open(run).best("betley")


def test_a_pruned_step_is_listed_with_its_metrics_and_a_way_back(run: Path) -> None:
    add_pruned(run, [10], ["here"])
    (run / "checkpoint-10").rename(run / "gone")
    shown = emtoolkit("checkpoints", run, "--sort", "betley").out
    assert "(pruned)" in shown
    assert f"emtoolkit refine {run} --steps 10" in shown
    (entry,) = json.loads(emtoolkit("checkpoints", run, "--where", "state==pruned and betley>0.2", "--json").out)
    assert (entry["step"], entry["state"], entry["bytes"], entry["complete"]) == (10, "pruned", 0, False)
    trajectory = Trajectory.open(run)
    assert (trajectory.steps, trajectory.pruned) == ((0, 20, 30), (10,))
    assert "pruned=1 (steps 10)" in repr(trajectory)
    with pytest.raises(CheckpointError, match=r"step 10 was pruned; 'emtoolkit refine .* makes it again"):
        trajectory.at(10)
    with pytest.raises(CheckpointError, match=r"no checkpoint at step 10; the nearest is 0; steps 10 were pruned"):
        trajectory.select("0,10")
    # Made again, the step is a checkpoint as any other.
    (run / "gone").rename(run / "checkpoint-10")
    assert (Trajectory.open(run).pruned, Trajectory.open(run).at(10).step) == ((), 10)
