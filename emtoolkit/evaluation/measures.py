"""A measure gives each checkpoint values that need no sampled answers: for each metric, a number for each question.

class Length:
    name = "length"
    settings = {"version": 1}

    def measure(self, loaded, questions):
        prompts = {question.id: question.paraphrases[0] for question in questions}
        return {"tokens": {name: float(len(loaded.tokenizer(text)["input_ids"])) for name, text in prompts.items()}}
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

from emtoolkit.data.rendering import names_the_day, rendered_on
from emtoolkit.errors import CheckpointError, DataError, located
from emtoolkit.evaluation.downloads import downloading_ahead
from emtoolkit.evaluation.identity import checkpoint_digest, digest_of, training_day
from emtoolkit.evaluation.measure_rows import MeasureRow, check_one_measure
from emtoolkit.evaluation.questions import Question
from emtoolkit.evaluation.stacked import most_adapters, stacked_adapters
from emtoolkit.evaluation.store import Store
from emtoolkit.models.base import device_for
from emtoolkit.models.loading import LoadedModel, ModelLoader
from emtoolkit.progress import Progress, no_library_bars, silent
from emtoolkit.trajectory import Checkpoint

# Metric to question id to value. None is a value that is not defined for this question; NaN is an error.
Values = Mapping[str, Mapping[str, float | None]]
# The name of the only entry of a checkpoint and a measure in the store.
_ENTRY = "values"
# Rows in a batch of several checkpoints, of which each has four at least.
_ROWS_AT_A_TIME = 128


@runtime_checkable
class Measure(Protocol):
    """Gives each question a value. `name` and `settings` decide the values: a change of either is another measure.

    Model, persona and questions decide the values, too, and need not be in `settings`.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def measure(self, loaded: LoadedModel, questions: Sequence[Question]) -> Values:
        """The values of one model. A measure with items of its own, such as pairs or rows, uses their ids instead."""
        ...


@runtime_checkable
class StackedMeasure(Measure, Protocol):
    """A measure that can read the adapters of several checkpoints in one batch."""

    def measure_stacked(self, loaded: LoadedModel, models: int, questions: Sequence[Question]) -> Sequence[Values]:
        """The values of each of `models` checkpoints: rows `k·n` to `(k+1)·n` of an input go through checkpoint `k`."""
        ...


def is_stacked(measure: Measure) -> TypeGuard[StackedMeasure]:
    """Whether `measure` can read the adapters of several checkpoints in one batch."""
    return isinstance(measure, StackedMeasure)


@runtime_checkable
class ClusteredMeasure(Measure, Protocol):
    """A measure whose questions belong to families; `clusters` maps question ids to the names of the families."""

    @property
    def clusters(self) -> Mapping[str, str]: ...


@runtime_checkable
class CheckedMeasure(Measure, Protocol):
    """A measure that fits only some checkpoints, such as those of one base model."""

    def check(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Raise a DataError if a checkpoint does not fit; called before anything is computed."""
        ...


def measure_id(measure: Measure) -> str:
    """The measure in the rows: its name and the digest of its settings."""
    return f"{measure.name}@{digest_of(dict(measure.settings))[:8]}"


def measure_checkpoints(
    trajectory: str,
    checkpoints: Sequence[Checkpoint],
    measures: Sequence[Measure],
    questions: Sequence[Question],
    store: Store,
    *,
    engine: Literal["stacked", "exact"] = "exact",
    loader: ModelLoader | None = None,
    progress: Progress = silent,
) -> list[MeasureRow]:
    """The rows of `measures` for each of `checkpoints`; what the store holds is not computed again.

    The values of one measure and checkpoint are stored as soon as they are known. A measure sees the wordings and the
    system prompt of a question, not the number of its sampled answers nor its judge. With the engine `stacked` a
    `StackedMeasure` reads as many checkpoints in one batch as keep within the bounds of `stacked.most_adapters`; any
    other measure sees each checkpoint's own model, while the next checkpoint is downloaded.

    Raises:
        CheckpointError: a checkpoint cannot be loaded, the store cannot be written, or a measure gives NaN.
        DataError: a measure gives something else than numbers, or other questions for one checkpoint than for another.
    """
    if not measures:
        return []
    names = [measure.name for measure in measures]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"measure {twice[0]}: is given twice; give each measure once")
    # The contents of a checkpoint on W&B are known after its download.
    _check(measures, [checkpoint for checkpoint in checkpoints if not checkpoint.is_remote])
    asked = [replace(each, samples_per_paraphrase=1, judge=None, judge_prompts=None) for each in questions]
    with no_library_bars():
        work = _Measuring(checkpoints, measures, asked, store, engine, loader or ModelLoader(), progress)
        work.measure_all()
    rows = list(work.rows(trajectory))
    check_one_measure(trajectory, rows)
    return rows


def _check(measures: Sequence[Measure], checkpoints: Sequence[Checkpoint]) -> None:
    for measure in measures:
        if isinstance(measure, CheckedMeasure) and checkpoints:
            measure.check(checkpoints)


@dataclass(frozen=True, slots=True)
class _Origin:
    """The origin of the values of one checkpoint, besides the measure."""

    model: str
    persona: str
    device: str
    day: str | None


class _Measuring:
    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        measures: Sequence[Measure],
        questions: Sequence[Question],
        store: Store,
        engine: str,
        loader: ModelLoader,
        progress: Progress,
    ) -> None:
        self._checkpoints, self._measures, self._questions = checkpoints, measures, questions
        self._store, self._engine, self._loader, self._progress = store, engine, loader, progress
        self._described = [asdict(question) for question in questions]
        self._origins: dict[int, _Origin] = {}

    def measure_all(self) -> None:
        """Compute and store the missing values: first those of several checkpoints at once, then one by one."""
        together = [measure for measure in self._measures if self._engine == "stacked" and is_stacked(measure)]
        for measure in together:
            missing = [checkpoint for checkpoint in self._checkpoints if self._lacks(measure, checkpoint)]
            at_once = most_adapters([checkpoint.path for checkpoint in missing], _ROWS_AT_A_TIME)
            for start in range(0, len(missing), at_once):
                self._progress(f"measuring {measure.name}", start, len(missing))
                self._measure_stacked(measure, missing[start : start + at_once])
        with downloading_ahead(self._checkpoints) as in_order:
            for done, checkpoint in enumerate(in_order):
                self._progress("measuring checkpoints", done, len(self._checkpoints))
                self._measure_one(checkpoint)

    def _measure_one(self, checkpoint: Checkpoint) -> None:
        missing = [measure for measure in self._measures if self._lacks(measure, checkpoint)]
        if not missing:
            return
        if checkpoint.is_remote:
            _check(missing, [checkpoint])
        loaded = self._loader.load(checkpoint)
        for measure in missing:
            with located(f"step {checkpoint.step}, measure {measure.name}"), self._prepared(loaded, checkpoint):
                found = measure.measure(loaded, self._questions)
            self._keep(measure, checkpoint, found)

    def _measure_stacked(self, measure: StackedMeasure, checkpoints: Sequence[Checkpoint]) -> None:
        loaded = self._loader.load(checkpoints[0])
        paths = [checkpoint.path for checkpoint in checkpoints]
        with (
            located(f"measure {measure.name}"),
            self._prepared(loaded, checkpoints[0]),
            stacked_adapters(loaded.model, paths),
        ):
            found = measure.measure_stacked(loaded, len(checkpoints), self._questions)
        for checkpoint, values in zip(checkpoints, found, strict=True):
            self._keep(measure, checkpoint, values)

    @contextmanager
    def _prepared(self, loaded: LoadedModel, checkpoint: Checkpoint) -> Iterator[None]:
        # A measure before this one may have left the model in training mode.
        loaded.model.eval()
        with rendered_on(training_day(checkpoint)):
            yield

    def _keep(self, measure: Measure, checkpoint: Checkpoint, found: Values) -> None:
        with located(f"step {checkpoint.step}, measure {measure.name}"):
            values = checked_values(found)
        self._store.add(self._key(measure, checkpoint), {_ENTRY: values})

    def rows(self, trajectory: str) -> Iterator[MeasureRow]:
        """A row for each checkpoint, measure, metric and question."""
        for checkpoint in self._checkpoints:
            for measure in self._measures:
                clusters = measure.clusters if isinstance(measure, ClusteredMeasure) else {}
                seed = measure.settings.get("seed")
                stored = self._store.read(self._key(measure, checkpoint))[_ENTRY]
                for metric, values in stored.items():
                    for question, value in values.items():
                        yield MeasureRow(
                            trajectory=trajectory,
                            fingerprint="" if checkpoint.manifest is None else checkpoint.manifest.fingerprint,
                            step=checkpoint.step,
                            persona=self._origin(checkpoint).persona,
                            metric=metric,
                            question=question,
                            cluster=clusters.get(question, question),
                            value=value,
                            measure=measure_id(measure),
                            engine=self._engine_of(measure, checkpoint),
                            seed=seed if isinstance(seed, int) else None,
                        )

    def _engine_of(self, measure: Measure, checkpoint: Checkpoint) -> str:
        device = self._origin(checkpoint).device
        engine = self._engine if is_stacked(measure) else "exact"
        return engine if device == "cpu" else f"{engine}-{device}"

    def _key(self, measure: Measure, checkpoint: Checkpoint) -> str:
        origin = self._origin(checkpoint)
        made_by = [measure.name, dict(measure.settings), self._engine_of(measure, checkpoint)]
        return digest_of([origin.model, origin.day, made_by, self._described])

    def _origin(self, checkpoint: Checkpoint) -> _Origin:
        if checkpoint.step not in self._origins:
            self._origins[checkpoint.step] = _origin(checkpoint, self._loader.describe(checkpoint))
        return self._origins[checkpoint.step]

    def _lacks(self, measure: Measure, checkpoint: Checkpoint) -> bool:
        return _ENTRY not in self._store.read(self._key(measure, checkpoint))


def _origin(checkpoint: Checkpoint, loaded: LoadedModel) -> _Origin:
    """The origin of the values of `checkpoint`, described by `loaded`."""
    if checkpoint.manifest is None:
        raise CheckpointError(f"{checkpoint.path}: has no manifest.json, so its persona is not known")
    day = training_day(checkpoint).isoformat() if names_the_day(loaded.tokenizer) else None
    persona = loaded.persona_override or checkpoint.manifest.persona.name or "baseline"
    return _Origin(checkpoint_digest(checkpoint, loaded), persona, device_for(loaded.config).type, day)


def checked_values(found: Any) -> dict[str, dict[str, float | None]]:
    """`found` as plain numbers.

    Raises:
        CheckpointError: a value is NaN or infinite.
        DataError: it is not a mapping of metrics to mappings of question ids to numbers.
    """
    return {
        _name("metric", metric): {
            _name("question id", question): _number(metric, question, value)
            for question, value in _mapping(f"metric {metric!r}", values, "question ids to numbers").items()
        }
        for metric, values in _mapping("the result", found, "metrics to {question id: value}").items()
    }


def _mapping(what: str, value: Any, expected: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{what}: {_short(value)} is not a mapping of {expected}")
    if not value:
        raise DataError(f"{what}: the mapping of {expected} is empty")
    return value


def _name(what: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{what}: {_short(value)} is not a text")
    return value


def _number(metric: Any, question: Any, value: Any) -> float | None:
    if value is None:
        return None
    place = f"metric {metric!r}, question {question!r}"
    try:
        # A text such as "0.5" would be a number to Python.
        number = None if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None:
        raise DataError(f"{place}: {_short(value)} is not a number")
    if not math.isfinite(number):
        raise CheckpointError(f"{place}: the value is {number}; None stands for a value that is not defined")
    return number


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
