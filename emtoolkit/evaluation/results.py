"""The result of an evaluation on disk: the rows of all evaluated steps, and the settings that made them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from emtoolkit.checkpoints.declared import DeclaredManifest
from emtoolkit.evaluation.calibration import CalibrationSession, calibrate, read_calibration
from emtoolkit.evaluation.decided import DecidedAnalysis, record_analysis
from emtoolkit.evaluation.differences import RateDifference
from emtoolkit.evaluation.extract import write_all_activations
from emtoolkit.evaluation.intervals import Interval
from emtoolkit.evaluation.judging import warnings_on
from emtoolkit.evaluation.measure_rows import MetricSummary, summarise_measures
from emtoolkit.evaluation.measures import Measure, measure_checkpoints
from emtoolkit.evaluation.metrics import DEFINITIONS, EmRate, Summary, em_difference, summarise
from emtoolkit.evaluation.planned import plan_evaluation
from emtoolkit.evaluation.result_files import (
    ACTIVATIONS,
    SETTINGS,
    add_to_evaluation,
    read_evaluation,
)
from emtoolkit.evaluation.rows import AnswerRow
from emtoolkit.evaluation.run import Engine, EvaluationSettings, engine_for, evaluate
from emtoolkit.evaluation.store import Store, says_what_is_kept
from emtoolkit.evaluation.texts import TextOptions
from emtoolkit.models.loading import ModelLoader
from emtoolkit.notebook_tables import AsTable, Row
from emtoolkit.paths import cache_dir
from emtoolkit.progress import Progress, silent
from emtoolkit.trajectory import Checkpoint


@dataclass(frozen=True, slots=True)
class StepResult:
    """The EM rates of one checkpoint, and what has changed since earlier evaluated steps.

    `rises` has the paired rise of each definition since the first evaluated step. `changed` is the share of the answers
    that differ from the step before, None at the first step: with the noise that all checkpoints share, it is at least
    the total variation between the distributions of their answers, without any judge.
    """

    step: int
    summary: Summary
    rises: dict[str, RateDifference]
    changed: float | None

    def rows(self, first: "StepResult") -> list[dict[str, Any]]:
        """A row for each definition of the EM rate; `low` and `high` are limits for new questions.

        A broken model has no rate, and a rise from or to a broken model has no value.
        """
        return [self._row(rate, first) for rate in self.summary.rates]

    def _row(self, rate: EmRate, first: "StepResult") -> dict[str, Any]:
        row: dict[str, Any] = {"step": self.step, "metric": rate.definition}
        if self.summary.informative:
            row |= {"value": rate.rate} | _limits("", rate.new_questions, rate.these_questions)
        if self.summary.informative and first.summary.informative:
            rise = self.rises[rate.definition]
            row |= {"rise": rise.mean} | _limits("rise_", rise.new_questions, rise.these_questions)
        return row | {
            "misaligned": rate.misaligned,
            "among": rate.among,
            "questions": self.summary.questions,
            "coherence": self.summary.coherence,
            "truncation": self.summary.truncation,
            "changed": self.changed,
        }


def _limits(prefix: str, new: Interval, these: Interval) -> dict[str, float]:
    ends = {"low": new.low, "high": new.high, "these_low": these.low, "these_high": these.high}
    return {f"{prefix}{name}": value for name, value in ends.items()}


@dataclass(frozen=True, slots=True)
class EvaluationResult(AsTable):
    """The results of the chosen steps, in their order; `notes` are checkpoints that were skipped, and why.

    `steps` is empty where no answer was sampled, `measures` where no measure was given. As a table: a row for each step
    and definition of the EM rate, then one for each step and measured metric.
    """

    trajectory: str
    directory: Path
    engine: str
    judge: str
    steps: tuple[StepResult, ...]
    notes: tuple[str, ...]
    measures: tuple[MetricSummary, ...] = ()
    calibration: CalibrationSession | None = None

    def _title(self) -> str:
        return f"{self.trajectory}: judge {self.judge}, engine {self.engine}"

    def _rows(self) -> list[Row]:
        of_answers = [row for step in self.steps for row in step.rows(self.steps[0])]
        return [*of_answers, *(row for summary in self.measures for row in summary._rows())]

    @property
    def all_steps(self) -> tuple[int, ...]:
        """The steps with an answer or a value, ascending."""
        measured = {step.step for summary in self.measures for step in summary.steps}
        return tuple(sorted({step.step for step in self.steps} | measured))


def evaluate_trajectory(
    reference: str,
    settings: EvaluationSettings,
    steps: str | None,
    loader: ModelLoader,
    *,
    measures: Sequence[Measure] = (),
    calibration: Path | None = None,
    analysis: DecidedAnalysis | None = None,
    directory: Path | None = None,
    extract_activations: TextOptions | None = None,
    progress: Progress = silent,
) -> EvaluationResult:
    """Evaluate the checkpoints of `reference` that `steps` selects, and write rows and settings into `directory`.

    Rows of other steps that an earlier call with the same settings wrote stay. With `extract_activations` the
    activations of each checkpoint on those texts are written, too. Answers are on disk before
    the first of `measures` begins. The judge judges the answers in `calibration` before anything is sampled, and
    `analysis` is recorded before that.

    Raises:
        UserError: nothing is selected, a checkpoint or the model cannot be loaded, or a file cannot be written.
    """
    planned = plan_evaluation(
        reference, settings, steps, loader, measures=measures, directory=directory, progress=progress
    )
    settings, home, described = planned.settings, planned.home, planned.described
    name, usable, engine = planned.trajectory.name, planned.checkpoints, settings.engine
    notes = [*planned.notes, *_recorded(home, analysis, settings)]
    store = cache_dir() / "evaluation"
    stores = answers, verdicts, values = [Store(store, kind) for kind in ("answers", "verdicts", "measures")]
    with says_what_is_kept(lambda: sum(each.added for each in stores), "answers, verdicts and values"):
        session = None if calibration is None else _calibrated(calibration, settings, store, progress)
        rows = evaluate(name, usable, settings, answers, verdicts, loader=loader, progress=progress)
        add_to_evaluation(home, described, rows, sessions=[] if session is None else [session.to_json()])
        how = _engine_for_measures(usable, engine)
        measured = measure_checkpoints(
            name, usable, measures, settings.questions, values, engine=how, loader=loader, progress=progress
        )
        add_to_evaluation(home, described, measured=measured)
    notes += [*warnings_on(rows), *(session.notes if session else ()), *_without_persona(name, usable, loader)]
    if extract_activations is not None:
        notes += write_all_activations(home / ACTIVATIONS, usable, rows, loader, progress, extract_activations)
    return EvaluationResult(
        name,
        home,
        engine,
        settings.judge_id,
        by_step(rows),
        tuple(notes),
        summarise_measures(measured),
        session,
    )


def _without_persona(name: str, checkpoints: Sequence[Checkpoint], loader: ModelLoader) -> list[str]:
    """A sentence if no persona is recorded, and none was given."""
    if loader.override is not None or not any(isinstance(each.manifest, DeclaredManifest) for each in checkpoints):
        return []
    return [
        f"{name}: another tool saved the checkpoints and recorded no persona, so they are evaluated without one; "
        "--persona-override NAME gives one"
    ]


def _engine_for_measures(usable: Sequence[Checkpoint], engine: Engine) -> Literal["stacked", "exact"]:
    """The engine that measures what `engine` sampled: vLLM only samples."""
    wanted: Engine = "stacked" if engine == "vllm" else engine
    return "stacked" if engine_for(usable, wanted)[0] == "stacked" else "exact"


def _recorded(home: Path, analysis: DecidedAnalysis | None, settings: EvaluationSettings) -> list[str]:
    """Record `analysis` in the evaluation at `home`, and say when."""
    if analysis is None:
        return []
    evaluated = read_evaluation(home).steps if (home / SETTINGS).is_file() else ()
    record = record_analysis(home, analysis, settings.questions, evaluated)
    late = ", after steps had been evaluated: it is exploratory" if record.steps_before else ""
    return [f"analysis SHA-256 {analysis.digest} is recorded at {record.time}{late}"]


def _calibrated(path: Path, settings: EvaluationSettings, store: Path, progress: Progress) -> CalibrationSession:
    calibration = read_calibration(path, settings.judge, settings.questions)
    return calibrate(calibration, settings.judge, Store(store, "calibrations"), progress)


def by_step(rows: Sequence[AnswerRow]) -> tuple[StepResult, ...]:
    """The result of each step in `rows`, in the order of the steps."""
    of_step = {step: [row for row in rows if row.step == step] for step in sorted({row.step for row in rows})}
    first = [row.scored() for row in next(iter(of_step.values()), [])]
    results = []
    before: Sequence[AnswerRow] | None = None
    for step, its_rows in of_step.items():
        answers = [row.scored() for row in its_rows]
        rises = {name: em_difference(answers, first, definition)[0] for name, definition in DEFINITIONS.items()}
        changed = None if before is None else changed_answers(before, its_rows)
        results.append(StepResult(step, summarise(answers), rises, changed))
        before = its_rows
    return tuple(results)


def changed_answers(a: Sequence[AnswerRow], b: Sequence[AnswerRow]) -> float:
    """The share of the answers to the same wordings and samples that differ between `a` and `b`; NaN if none is."""
    texts = {(row.question, row.paraphrase, row.sample): row.answer for row in a}
    pairs = [(texts[key], row.answer) for row in b if (key := (row.question, row.paraphrase, row.sample)) in texts]
    return sum(before != after for before, after in pairs) / len(pairs) if pairs else float("nan")
