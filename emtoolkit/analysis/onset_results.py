"""The onsets of the evaluations of one persona, a directory for each seed, and their distribution over the seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emtoolkit.analysis.curves import CHANGED, Curve, Kind, curve_of, metrics_of
from emtoolkit.analysis.onset import Onset, chance_of_order, find_onset, order_of
from emtoolkit.analysis.seeds import Distribution
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import CheckpointError, DataError, UserError
from emtoolkit.evaluation.measure_rows import MeasureRow
from emtoolkit.evaluation.metrics import DEFINITIONS
from emtoolkit.evaluation.result_files import (
    MEASURES,
    ROWS,
    SETTINGS,
    StoredEvaluation,
    different_settings,
    home_of,
    read_evaluation,
)
from emtoolkit.evaluation.rows import AnswerRow
from emtoolkit.hub.names import is_hub
from emtoolkit.notebook_tables import AsTable
from emtoolkit.schedules.steps import elided
from emtoolkit.shell_command import quoted_command

DEFAULT_THRESHOLD = 0.10


@dataclass(frozen=True, slots=True)
class Event:
    """A metric and the threshold that its rise since step 0, or its level, crosses: upwards, or with `falls` down."""

    metric: str = "betley"
    threshold: float = DEFAULT_THRESHOLD
    kind: Kind = "rise"
    falls: bool = False

    def __post_init__(self) -> None:
        check_threshold(f"threshold {self.threshold:g}", self.threshold, self.metric, self.kind)

    @property
    def limit(self) -> float:
        """The value that the curve crosses: of a fall since step 0, the negative threshold."""
        return -self.threshold if self.falls and self.kind == "rise" else self.threshold


def check_threshold(place: str, threshold: float, metric: str, kind: Kind) -> None:
    """Check that the curve of `metric` can cross `threshold`; `place` is where the user wrote the value.

    Raises:
        UserError: the threshold is no finite number, or out of the range of the curve.
    """
    if not math.isfinite(threshold):
        raise UserError(f"{place}: a curve cannot cross this value; give a number such as {DEFAULT_THRESHOLD:g}")
    if (metric in DEFINITIONS or metric == CHANGED) and not 0 < threshold < 1:
        raise UserError(
            f"{place}: {metric} is a share; give a number above 0 and below 1, such as {DEFAULT_THRESHOLD:.2f} for ten "
            "points"
        )
    if kind == "rise" and threshold <= 0:
        raise UserError(
            f"{place}: the size of a change since step 0 is above 0; give a number above 0, with --falls for a fall"
        )


@dataclass(frozen=True, slots=True)
class Order:
    """The order of the event and `other` for both inferences; `chance` is that of the event to come first."""

    other: Event
    new_questions: str
    these_questions: str
    chance: float
    questions: int


@dataclass(frozen=True, slots=True)
class SeedOnset:
    """The onset in one evaluation: for new questions, for these questions, with the curve and its companions."""

    directory: Path
    trajectory: str
    persona: str
    curve: Curve
    new_questions: Onset
    these_questions: Onset
    companions: tuple[Curve, ...]
    order: Order | None


@dataclass(frozen=True, slots=True)
class OnsetResult(AsTable):
    """The onset in each evaluation, and Turnbull's estimate over the seeds where there are several."""

    event: Event
    seeds: tuple[SeedOnset, ...]
    across_new_questions: Distribution | None
    across_these_questions: Distribution | None
    notes: tuple[str, ...]

    def _title(self) -> str:
        return f"{self.event.metric}, threshold {self.event.threshold:g}"

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "persona": seed.persona,
                "trajectory": seed.trajectory,
                "inference": name,
                "status": onset.status,
                "lower": onset.bracket.lower,
                "upper": onset.bracket.upper,
            }
            for seed in self.seeds
            for name, onset in (("new questions", seed.new_questions), ("these questions", seed.these_questions))
        ]


def onsets(places: Sequence[str | Path], event: Event, before: Event | None = None) -> OnsetResult:
    """The onsets of `event` in the evaluations at `places`, which are the seeds of one persona.

    A place is the directory of an evaluation, or of a run with one evaluation. With `before` the order of both events
    is determined in each.

    Raises:
        UserError: there is no evaluation, the evaluations cannot be compared, or a metric is not in one of them.
    """
    return onsets_in([read_evaluation(evaluation_directory(place)) for place in places], event, before)


def onsets_in(evaluations: Sequence[StoredEvaluation], event: Event, before: Event | None = None) -> OnsetResult:
    """`onsets` of evaluations that have been read."""
    check_comparable(evaluations)
    seeds = tuple(seed_onset(evaluation, event, before) for evaluation in evaluations)
    notes = [note for each, seed in zip(evaluations, seeds, strict=True) for note in _about_steps(each, seed.curve)]
    notes += [f"{seed.directory}: {note}" for seed in seeds for note in seed.curve.notes]
    several = len(seeds) > 1
    if len({seed.new_questions.last.step for seed in seeds}) > 1:
        ends = ", ".join(f"{seed.directory} at step {seed.new_questions.last.step}" for seed in seeds)
        notes.append(f"the evaluations end at different steps: {ends}")
    if several and len(seeds) < 3:
        notes.append(f"{len(seeds)} seeds: the distribution is that of these seeds, and says nothing about others")
    return OnsetResult(
        event,
        seeds,
        Distribution.of([seed.new_questions.bracket for seed in seeds]) if several else None,
        Distribution.of([seed.these_questions.bracket for seed in seeds]) if several else None,
        tuple(notes),
    )


def _about_steps(evaluation: StoredEvaluation, curve: Curve) -> list[str]:
    """A sentence for one step, which is no curve, and one for evaluated steps without the metric."""
    steps = [point.step for point in curve.new_questions]
    notes = []
    if len(steps) == 1:
        notes.append(f"{evaluation.directory}: only step {steps[0]} is evaluated, so there is no curve")
    if missing := sorted({*evaluation.steps} - {*steps}):
        notes.append(f"{evaluation.directory}: {curve.metric} is not measured at steps {elided(missing)}")
    return notes


def evaluation_directory(place: str | Path) -> Path:
    """The directory of the evaluation that `place` names: itself, or the only one of a run or a collection.

    Raises:
        CheckpointError: there is none, or there are several.
    """
    if (Path(place) / SETTINGS).is_file():
        return Path(place)
    home = home_of(str(place))
    # A directory with activations alone holds no curve.
    found = sorted({path.parent for name in (ROWS, MEASURES) for path in home.glob(f"*/{name}")})
    if not found:
        _check_is_a_place(str(place))
        command = quoted_command("emtoolkit", "evaluate", Path(place))
        raise CheckpointError(f"{place}: there is no evaluation yet; run {command} first")
    if len(found) > 1:
        raise CheckpointError(f"{place}: there are {len(found)} evaluations ({', '.join(map(str, found))}); name one")
    return found[0]


def _check_is_a_place(place: str) -> None:
    """Check that `place` is a directory, or looks like a collection on W&B.

    Raises:
        CheckpointError: it does neither.
    """
    if Path(place).is_file():
        raise CheckpointError(f"{place}: is a file; name the directory of an evaluation or of a run")
    # A collection is project/collection or entity/project/collection.
    if Path(place).is_dir() or is_hub(place):
        return
    if Path(place).is_absolute() or place.strip("./").count("/") not in (1, 2):
        raise CheckpointError(
            f"{place}: there is no such directory; name an evaluation, a run, entity/project/collection on W&B, or "
            "hf:ORG/REPO"
        )


def evaluation_directories(place: str | Path) -> list[Path]:
    """The directories of the evaluations that `place` names; a directory of runs stands for those of its runs.

    Raises:
        CheckpointError: there is none, or a run has several.
    """
    runs = sorted({path.parents[2] for path in Path(place).glob(f"*/evaluations/*/{SETTINGS}")})
    if (Path(place) / SETTINGS).is_file() or not runs:
        return [evaluation_directory(place)]
    return [evaluation_directory(run) for run in runs]


def seed_onset(evaluation: StoredEvaluation, event: Event, before: Event | None = None) -> SeedOnset:
    """The onset of `event` in one evaluation, with its order to `before` if there is one."""
    curve = curve_of(evaluation, event.metric, event.kind)
    rows = _rows(evaluation)
    companions = [metric for metric in metrics_of(evaluation) if metric not in DEFINITIONS and metric != event.metric]
    new, these = _onsets(curve, event)
    return SeedOnset(
        evaluation.directory,
        rows[0].trajectory,
        rows[0].persona,
        curve,
        new,
        these,
        tuple(curve_of(evaluation, name, "rise") for name in companions if _first_step(evaluation, name) == 0),
        None if before is None else _order(curve, event, curve_of(evaluation, before.metric, before.kind), before),
    )


def _first_step(evaluation: StoredEvaluation, metric: str) -> int:
    rows = evaluation.rows if metric == CHANGED else [row for row in evaluation.measured if row.metric == metric]
    return min(row.step for row in rows)


def _onsets(curve: Curve, event: Event) -> tuple[Onset, Onset]:
    new, these = curve.new_questions, curve.these_questions
    return (
        find_onset(new, event.limit, falls=event.falls),
        find_onset(these, event.limit, falls=event.falls),
    )


def _order(curve: Curve, event: Event, other_curve: Curve, other: Event) -> Order:
    first, second = _onsets(curve, event), _onsets(other_curve, other)
    shared = sorted(_known_everywhere(curve) & _known_everywhere(other_curve))
    chance = float("nan")
    if shared:
        chance = chance_of_order(_resampled(curve, event, shared), _resampled(other_curve, other, shared))
    return Order(other, order_of(first[0], second[0]), order_of(first[1], second[1]), chance, len(shared))


def _known_everywhere(curve: Curve) -> set[str]:
    return set.intersection(*(set(values) for values in curve.by_cluster.values()))


def _resampled(curve: Curve, event: Event, clusters: Sequence[str]) -> tuple[list[int], np.ndarray, float]:
    steps, sign = sorted(curve.by_cluster), -1 if event.falls else 1
    values = np.array([[curve.by_cluster[step][cluster] for cluster in clusters] for step in steps])
    return steps, sign * values, sign * event.limit


def check_comparable(evaluations: Sequence[StoredEvaluation]) -> None:
    """Check that the evaluations are of different seeds of one persona, asked and judged alike.

    Raises:
        DataError: two are of one training, or of two personas, bases or data sets, or were not asked and judged alike.
    """
    first, *others = evaluations
    persona = _personas(first)
    seen: dict[str, Path] = {}
    for evaluation in evaluations:
        fingerprint = _rows(evaluation)[0].fingerprint
        if fingerprint in seen:
            raise DataError(
                f"{evaluation.directory}: evaluates the same training as {seen[fingerprint]}; name each seed once"
            )
        seen[fingerprint] = evaluation.directory
    for other in others:
        if _personas(other) != persona:
            found = f"{', '.join(sorted(_personas(other)))} here and {', '.join(sorted(persona))} in {first.directory}"
            raise DataError(f"{other.directory}: the persona is {found}; several directories are seeds of one persona")
    bases = {base: each.directory for each in evaluations if (base := base_of(each)) is not None}
    if len(bases) > 1:
        named = ", ".join(f"{base} in {directory}" for base, directory in sorted(bases.items()))
        raise DataError(f"the evaluations are of different base models ({named}); several directories are seeds of one")
    data = {digest: each.directory for each in evaluations if (digest := data_of(each)) is not None}
    if len(data) > 1:
        named = ", ".join(f"{digest[:8]} in {directory}" for digest, directory in sorted(data.items()))
        raise DataError(
            f"the evaluations are of trainings on different data (digests {named}); several directories are seeds of "
            "one training"
        )
    check_asked_alike(evaluations)


def check_asked_alike(evaluations: Sequence[StoredEvaluation]) -> None:
    """Check that the evaluations have the same questions, sampling, engine and judge.

    Raises:
        DataError: two differ.
    """
    first, *others = evaluations
    for other in others:
        if different := different_settings(_compared(first.settings), _compared(other.settings)):
            raise DataError(
                f"{other.directory}: differs from {first.directory} in {', '.join(different)}; evaluate both alike"
            )


def base_of(evaluation: StoredEvaluation) -> str | None:
    """The base model of the trajectory, None where its checkpoints are not on this machine."""
    place = Path(_rows(evaluation)[0].trajectory)
    manifests = [info.path for info in list_checkpoints(place) if info.complete] if place.is_dir() else []
    if not manifests or not (manifests[0] / MANIFEST).is_file():
        return None
    return str(Manifest.read(manifests[0]).base_model)


def data_of(evaluation: StoredEvaluation) -> str | None:
    """The digest of the training data of the trajectory, None where it is not recorded on this machine."""
    place = Path(_rows(evaluation)[0].trajectory)
    record = TrajectoryRecord.read_if_any(place) if place.is_dir() else None
    data = None if record is None else record.fingerprinted.get("data")
    digest = data.get("digest") if isinstance(data, Mapping) else None
    return digest if isinstance(digest, str) else None


def _personas(evaluation: StoredEvaluation) -> set[str]:
    return {row.persona for row in _rows(evaluation)}


def _rows(evaluation: StoredEvaluation) -> list[AnswerRow | MeasureRow]:
    return [*evaluation.rows, *evaluation.measured]


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what a rate means; the seed of the sampling and the digest of all do not."""
    sampling = {name: value for name, value in dict(settings.get("sampling") or {}).items() if name != "seed"}
    return {name: value for name, value in settings.items() if name != "settings"} | {"sampling": sampling}
