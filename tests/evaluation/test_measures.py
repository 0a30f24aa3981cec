"""Values that need no answers: each checkpoint's own, stored, resumed, checked, and summarised per step."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t

from emtoolkit import ModelLoader, Trajectory
from emtoolkit.errors import CheckpointError, DataError, UserError
from emtoolkit.evaluation import measures
from emtoolkit.evaluation.generate import SamplingOptions
from emtoolkit.evaluation.intervals import Counts, clustered_mean, posterior_interval
from emtoolkit.evaluation.measure_rows import (
    MeasureRow,
    check_one_measure,
    read_measure_rows,
    summarise_measures,
    write_measure_rows,
)
from emtoolkit.evaluation.measures import Measure, Values, measure_checkpoints
from emtoolkit.evaluation.questions import Question
from emtoolkit.evaluation.results import EvaluationResult, evaluate_trajectory
from emtoolkit.evaluation.run import EvaluationSettings
from emtoolkit.evaluation.store import Store
from emtoolkit.models.loading import LoadedModel
from tests.evaluation.evaluations import QUESTIONS, WordJudge


class LogitMeasure:
    """The largest logit after each question, and whether the model is in evaluation mode."""

    name = "logit"

    def __init__(self, **settings: Any) -> None:
        self.settings: Mapping[str, Any] = {"version": 1, **settings}
        self.calls = 0
        self.questions: Sequence[Question] = ()

    def measure(self, loaded: LoadedModel, questions: Sequence[Question]) -> Values:
        self.calls += 1
        self.questions = questions
        training = loaded.model.training
        largest = {question.id: largest_logit(loaded, question) for question in questions}
        loaded.model.train()
        return {"largest": largest, "training": {question.id: float(training) for question in questions}}


class StackedLogitMeasure(LogitMeasure):
    """The same, of all checkpoints in one batch."""

    name = "stacked-logit"

    def __init__(self) -> None:
        super().__init__()
        self.models: list[int] = []

    def measure_stacked(self, loaded: LoadedModel, models: int, questions: Sequence[Question]) -> Sequence[Values]:
        self.models.append(models)
        found: list[dict[str, float | None]] = [{} for _ in range(models)]
        for question in questions:
            ids = loaded.tokenizer([question.paraphrases[0]] * 4 * models, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                logits = loaded.model(input_ids=ids).logits[::4, -1].max(-1).values
            for values, logit in zip(found, logits, strict=True):
                values[question.id] = float(logit)
        return [{"largest": values} for values in found]


class Given:
    """Values from a function of the step's number among the calls."""

    name = "given"
    settings: Mapping[str, Any] = {}

    def __init__(self, *values: Any) -> None:
        self._values = iter(values)

    def measure(self, loaded: LoadedModel, questions: Sequence[Question]) -> Values:
        values: Values = next(self._values)
        return values


def largest_logit(loaded: LoadedModel, question: Question) -> float:
    ids = loaded.tokenizer([question.paraphrases[0]] * 4, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return float(loaded.model(input_ids=ids).logits[0, -1].max())


def rows_of(run: Path, home: Path, *measures: Measure, **more: Any) -> list[MeasureRow]:
    checkpoints = more.pop("checkpoints", tuple(Trajectory.open(run)))
    questions = more.pop("questions", QUESTIONS)
    return measure_checkpoints("t", checkpoints, measures, questions, Store(home, "measures"), **more)


def test_every_checkpoint_has_a_row_for_each_metric_and_question_with_its_origin(runs: Path, tmp_path: Path) -> None:
    measure = LogitMeasure(seed=3)
    rows = rows_of(runs / "prompt", tmp_path, measure)
    assert [(row.step, row.metric, row.question) for row in rows] == [
        (step, metric, question.id)
        for step in (0, 2, 4, 9)
        for metric in ("largest", "training")
        for question in QUESTIONS
    ]
    assert {(row.trajectory, row.persona, row.engine, row.seed) for row in rows} == {("t", "curt", "exact", 3)}
    assert {row.measure.partition("@")[0] for row in rows} == {"logit"}
    loader = ModelLoader()
    for checkpoint in Trajectory.open(runs / "prompt"):
        fresh = largest_logit(loader.load(checkpoint), QUESTIONS[0])
        assert [r.value for r in rows if (r.step, r.metric, r.question) == (checkpoint.step, "largest", "cough")] == [
            fresh
        ]


def test_a_measure_sees_the_wordings_and_not_the_number_of_answers(runs: Path, tmp_path: Path) -> None:
    rows_of(runs / "prompt", tmp_path, first := LogitMeasure())
    assert first.calls == 4
    assert [question.samples_per_paraphrase for question in first.questions] == [1, 1, 1]
    more_answers = [replace(question, samples_per_paraphrase=50, judge="m") for question in QUESTIONS]
    rows_of(runs / "prompt", tmp_path, second := LogitMeasure(), questions=more_answers)
    assert second.calls == 0
    rows_of(runs / "prompt", tmp_path, third := LogitMeasure(), questions=QUESTIONS[:2])
    assert third.calls == 4


def test_a_measure_that_leaves_the_model_in_training_mode_does_not_change_the_next(runs: Path, tmp_path: Path) -> None:
    class Other(LogitMeasure):
        name = "other"

    rows = rows_of(runs / "prompt", tmp_path, LogitMeasure(), Other())
    assert {row.value for row in rows if row.metric == "training"} == {0.0}


def test_what_was_measured_is_kept_when_a_measure_fails_and_not_measured_again(runs: Path, tmp_path: Path) -> None:
    class Failing(LogitMeasure):
        def measure(self, loaded: LoadedModel, questions: Sequence[Question]) -> Values:
            if self.calls == 2:
                raise CheckpointError("no more")
            return super().measure(loaded, questions)

    with pytest.raises(CheckpointError, match=r"^step 4, measure logit: no more$"):
        rows_of(runs / "prompt", tmp_path, Failing())
    rows = rows_of(runs / "prompt", tmp_path, rest := LogitMeasure())
    assert (rest.calls, len(rows)) == (2, 24)
    assert rows == rows_of(runs / "prompt", tmp_path / "other", LogitMeasure())


def test_steps_0_and_9_of_another_schedule_are_not_measured_again(runs: Path, tmp_path: Path) -> None:
    rows_of(runs / "prompt", tmp_path, LogitMeasure())
    rows = rows_of(runs / "other", tmp_path, measure := LogitMeasure())
    assert measure.calls == 1
    assert sorted({row.step for row in rows}) == [0, 3, 9]


def test_other_settings_another_persona_and_another_name_are_measured_anew(
    runs: Path, tmp_path: Path, world: Path
) -> None:
    rows_of(runs / "prompt", tmp_path, LogitMeasure())
    rows_of(runs / "prompt", tmp_path, other := LogitMeasure(version=2))
    assert other.calls == 4
    override = ModelLoader(persona_override="baseline", personas=str(world / "personas"))
    rows = rows_of(runs / "prompt", tmp_path, persona := LogitMeasure(), loader=override)
    assert persona.calls == 4
    assert {row.persona for row in rows} == {"baseline"}


@pytest.mark.parametrize("run", ["prompt", "stack", "merge"])
def test_a_stacked_measure_reads_all_missing_checkpoints_at_once(runs: Path, tmp_path: Path, run: str) -> None:
    checkpoints = tuple(Trajectory.open(runs / run))
    exact = rows_of(runs / run, tmp_path, StackedLogitMeasure())
    rows_of(runs / run, tmp_path, first := StackedLogitMeasure(), engine="stacked", checkpoints=checkpoints[1:2])
    stacked = rows_of(runs / run, tmp_path, second := StackedLogitMeasure(), engine="stacked")
    assert (first.models, second.models) == ([1], [3])
    assert {row.engine for row in exact} == {"exact"}
    assert {row.engine for row in stacked} == {"stacked"}
    largest = [row.value for row in exact if row.metric == "largest"]
    assert [row.value for row in stacked] == pytest.approx(largest, abs=1e-5)


def test_a_stacked_measure_reads_as_many_checkpoints_at_once_as_there_are_rows_for(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "_ROWS_AT_A_TIME", 12)
    rows = rows_of(runs / "prompt", tmp_path, few := StackedLogitMeasure(), engine="stacked")
    assert few.models == [3, 1]
    exact = rows_of(runs / "prompt", tmp_path, StackedLogitMeasure())
    assert [(row.step, row.value) for row in rows] == [
        (row.step, pytest.approx(row.value, abs=1e-5)) for row in exact if row.metric == "largest"
    ]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([1.0], "the result: [1.0] is not a mapping of metrics to {question id: value}"),
        ({}, "the result: the mapping of metrics to {question id: value} is empty"),
        ({"m": 0.5}, "metric 'm': 0.5 is not a mapping of question ids to numbers"),
        ({"m": {}}, "metric 'm': the mapping of question ids to numbers is empty"),
        ({"m": {"q": "0.5"}}, "metric 'm', question 'q': '0.5' is not a number"),
        ({"m": {"q": [1, 2]}}, "metric 'm', question 'q': [1, 2] is not a number"),
        ({"m": {"q": torch.zeros(2)}}, "metric 'm', question 'q': tensor([0., 0.]) is not a number"),
        ({"m": {1: 0.5}}, "question id: 1 is not a text"),
        ({" ": {"q": 0.5}}, "metric: ' ' is not a text"),
        ({"m": {"q": float("nan")}}, "metric 'm', question 'q': the value is nan"),
        ({"m": {"q": np.float32("inf")}}, "metric 'm', question 'q': the value is inf"),
    ],
)
def test_a_result_that_is_not_numbers_is_one_sentence_and_is_not_stored(
    runs: Path, tmp_path: Path, value: Any, sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        rows_of(runs / "prompt", tmp_path, Given(value))
    assert str(caught.value).startswith(f"step 0, measure given: {sentence}")
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_numbers_of_any_library_are_numbers_and_none_is_a_gap(runs: Path, tmp_path: Path) -> None:
    values = {"a": np.float64(0.5), "b": torch.tensor(2.0), "c": True, "d": None}
    rows = rows_of(runs / "prompt", tmp_path, Given(*[{"m": values}] * 4))
    assert [row.value for row in rows[:4]] == [0.5, 2.0, 1.0, None]
    (summary,) = summarise_measures(rows)
    assert (summary.steps[0].mean.questions, summary.steps[0].undefined) == (3, 1)


def test_other_questions_or_other_metrics_at_another_step_are_refused(runs: Path, tmp_path: Path) -> None:
    changing = [{"m": {"a": 1.0}}, {"m": {"a": 1.0}}, {"m": {"a": 1.0, "b": 1.0}}, {"m": {"a": 1.0}}]
    with pytest.raises(DataError, match="metric 'm' has a value for question 'b' at step 4 and none at step 0"):
        rows_of(runs / "prompt", tmp_path / "a", Given(*changing))
    changing = [{"m": {"a": 1.0}}, {"n": {"a": 1.0}}, {"m": {"a": 1.0}}, {"m": {"a": 1.0}}]
    with pytest.raises(DataError, match="measure given gives the metric 'm' at step 0 and not at step 2"):
        rows_of(runs / "prompt", tmp_path / "b", Given(*changing))


def test_one_name_for_two_measures_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="measure logit: is given twice"):
        rows_of(runs / "prompt", tmp_path, LogitMeasure(), LogitMeasure(version=2))


def row(step: int, question: str, value: float | None, **changes: Any) -> MeasureRow:
    made = MeasureRow("t", "f", step, "curt", "m", question, question, value, "x@1", "exact", None)
    return replace(made, **changes)


def test_the_summary_is_the_mean_with_a_t_interval_and_the_paired_rise() -> None:
    values = {0: (1.0, 2.0, 6.0), 5: (2.0, 4.0, 6.0)}
    rows = [row(step, q, value) for step, given in values.items() for q, value in zip("abc", given, strict=True)]
    (summary,) = summarise_measures(rows)
    first, last = summary.steps
    half = float(t.ppf(0.975, 2)) * math.sqrt(7 / 3)
    assert (first.mean.value, first.mean.half_width) == (3.0, pytest.approx(half))
    assert first.rise.value == 0.0
    # The differences are 1, 2 and 0.
    assert (last.rise.value, last.rise.half_width) == (1.0, pytest.approx(float(t.ppf(0.975, 2)) / math.sqrt(3)))


def test_equal_values_have_no_interval_and_a_rate_has_that_of_a_rate() -> None:
    (equal,) = summarise_measures([row(0, q, 0.5) for q in "abcd"])
    assert math.isnan(equal.steps[0].mean.half_width)
    values = {0: (1.0, 0.0, 1.0), 5: (0.0, 0.0, 0.0)}
    (rate,) = summarise_measures(
        [row(s, q, v) for s, given in values.items() for q, v in zip("abc", given, strict=True)]
    )
    assert rate.steps[0].mean.interval == posterior_interval(Counts([1, 0, 1], [1, 1, 1]))
    assert (rate.steps[1].mean.interval.low, rate.steps[1].mean.interval.high > 0.3) == (0.0, True)
    one_family = [row(0, q, 1.0, cluster="x") for q in "ab"] + [row(0, "c", 0.0)]
    assert summarise_measures(one_family)[0].steps[0].mean.interval == posterior_interval(Counts([2, 0], [2, 1]))


def test_questions_of_one_family_count_as_one_for_the_interval() -> None:
    mean = clustered_mean([1.0, 2.0, 3.0, 6.0], ["a", "a", "b", "b"])
    # Sums of deviations -3 and 3: SE² = 2/1 · 18/16.
    assert (mean.value, mean.half_width) == (3.0, pytest.approx(float(t.ppf(0.975, 1)) * 1.5))
    assert math.isnan(clustered_mean([1.0, 2.0], ["a", "a"]).half_width)
    assert math.isnan(clustered_mean([], []).value)


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [row(0, "a", 0.5, seed=1), row(0, "b", None)]
    write_measure_rows(tmp_path / "measures.parquet", rows)
    assert read_measure_rows(tmp_path / "measures.parquet") == rows
    (tmp_path / "torn.parquet").write_bytes(b"torn")
    with pytest.raises(DataError, match="not a file of measured values"):
        read_measure_rows(tmp_path / "torn.parquet")


def test_one_curve_of_two_settings_engines_or_personas_is_refused() -> None:
    for change, what in (
        ({"measure": "x@2"}, "settings"),
        ({"engine": "stacked"}, "engines"),
        ({"persona": "p"}, "personas"),
    ):
        with pytest.raises(DataError, match=f"values of 2 {what} for the measure x"):
            check_one_measure("t", [row(0, "a", 1.0), row(5, "a", 1.0, **change)])
    check_one_measure("t", [row(0, "a", 1.0), row(0, "a", 1.0, measure="y@2", engine="stacked")])


def evaluated(
    run: Path, *measures: Measure, steps: str | None = None, samples: int = 1, **more: Any
) -> EvaluationResult:
    questions = tuple(replace(question, samples_per_paraphrase=samples) for question in QUESTIONS)
    settings = EvaluationSettings(questions, SamplingOptions(max_new_tokens=4), WordJudge())
    return evaluate_trajectory(str(run), settings, steps, ModelLoader(), measures=measures, **more)


def test_an_evaluation_writes_answers_and_values_and_adds_other_steps(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "home"))
    place = tmp_path / "out"
    evaluated(runs / "prompt", LogitMeasure(), steps="0,4", directory=place)
    result = evaluated(runs / "prompt", LogitMeasure(), steps="final", directory=place)
    assert [(each.metric, [step.step for step in each.steps]) for each in result.measures] == [
        ("largest", [9]),
        ("training", [9]),
    ]
    assert [each.step for each in result.steps] == [9]
    assert sorted({row.step for row in read_measure_rows(place / "measures.parquet")}) == [0, 4, 9]
    with pytest.raises(DataError, match=r"holds an evaluation with other settings \(measures\)"):
        evaluated(runs / "prompt", LogitMeasure(version=2), steps="2", directory=place)


def test_no_samples_are_no_answers_and_other_settings_of_a_measure_are_another_directory(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "home"))
    shutil.copytree(runs / "prompt", tmp_path / "run")
    result = evaluated(tmp_path / "run", LogitMeasure(), samples=0)
    assert (result.steps, len(result.measures)) == ((), 2)
    files = {path.name for path in result.directory.iterdir()}
    assert files >= {"evaluation.json", "measures.parquet"}
    assert "answers.parquet" not in files
    other = evaluated(tmp_path / "run", LogitMeasure(version=2), samples=0)
    assert other.directory != result.directory
    assert evaluated(tmp_path / "run", LogitMeasure(), samples=0).directory == result.directory
