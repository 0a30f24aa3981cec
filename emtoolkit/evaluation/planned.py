"""The plan of an evaluation: the checkpoints that can be evaluated, the settings that apply, and the directory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.listing import damaged_checkpoints
from emtoolkit.errors import CheckpointError, DataError
from emtoolkit.evaluation.identity import digest_of
from emtoolkit.evaluation.measures import Measure, is_stacked, measure_id
from emtoolkit.evaluation.result_files import MEASURES, ROWS, SETTINGS, check_same_settings, home_of, read_evaluation
from emtoolkit.evaluation.run import EvaluationSettings, engine_for
from emtoolkit.models.loading import ModelLoader
from emtoolkit.progress import Progress, silent
from emtoolkit.trajectory import Checkpoint, Trajectory


@dataclass(frozen=True, slots=True)
class PlannedEvaluation:
    """The `checkpoints` of `trajectory` that can be evaluated; `notes` are those that are skipped, and why.

    `settings` have the engine that applies, `described` is how they stand in the files in the directory `home`.
    """

    trajectory: Trajectory
    checkpoints: tuple[Checkpoint, ...]
    settings: EvaluationSettings
    home: Path
    described: Mapping[str, Any]
    notes: tuple[str, ...]


def plan_evaluation(
    reference: str,
    settings: EvaluationSettings,
    steps: str | None,
    loader: ModelLoader,
    *,
    measures: Sequence[Measure] = (),
    directory: Path | None = None,
    progress: Progress = silent,
) -> PlannedEvaluation:
    """Plan the evaluation of the checkpoints of `reference` that `steps` selects; see `evaluate_trajectory`.

    Raises:
        UserError: nothing is selected, a checkpoint cannot be downloaded, or the directory holds other settings.
    """
    trajectory = Trajectory.open(reference)
    usable, notes = _usable(reference, trajectory, steps)
    settings = _without_stacking(settings, measures)
    _download_together(trajectory, usable, settings, progress)
    engine, reason = engine_for(usable, settings.engine)
    if reason:
        notes.append(f"{reference}: one checkpoint is loaded at a time, because {reason}")
    settings = replace(settings, engine=engine)
    name = _name(settings, measures, loader)
    home, described = directory or home_of(reference) / name, _described(settings, measures, name)
    check_same_settings(home, described)
    return PlannedEvaluation(trajectory, tuple(usable), settings, home, described, tuple(notes))


def evaluated_steps(planned: PlannedEvaluation, measures: Sequence[Measure]) -> frozenset[int]:
    """The steps whose answers and values are in the files of the evaluation; an answer whose judge failed is none.

    Raises:
        DataError: the files hold results of another training.
    """
    home = planned.home
    if not (home / SETTINGS).is_file() or not any((home / name).is_file() for name in (ROWS, MEASURES)):
        return frozenset()
    stored = read_evaluation(home)
    # A checkpoint on W&B would be downloaded for its fingerprint.
    known = {each.manifest.fingerprint for each in planned.checkpoints if not each.is_remote and each.manifest}
    if known and (foreign := next((row for row in stored.all_rows if row.fingerprint not in known), None)):
        raise DataError(
            f"{home}: holds results of another training ({foreign.fingerprint[:8]}); remove the directory, or choose "
            "another --output-dir"
        )
    done = set(stored.steps)
    if any(question.samples for question in planned.settings.questions):
        failed = {row.step for row in stored.rows if row.status == "judge_error"}
        done &= {row.step for row in stored.rows} - failed
    for measure in map(measure_id, measures):
        done &= {row.step for row in stored.measured if row.measure == measure}
    return frozenset(done)


def _without_stacking(settings: EvaluationSettings, measures: Sequence[Measure]) -> EvaluationSettings:
    """`settings` with the engine `exact` where nothing is sampled and no measure reads several checkpoints at once."""
    if any(question.samples for question in settings.questions):
        return settings
    stacks = settings.engine != "exact" and any(map(is_stacked, measures))
    return replace(settings, engine="stacked" if stacks else "exact")


def _download_together(
    trajectory: Trajectory, checkpoints: Sequence[Checkpoint], settings: EvaluationSettings, progress: Progress
) -> None:
    """Download checkpoints that are needed at once; others are downloaded one by one while one is evaluated."""
    if settings.engine != "exact":
        trajectory.fetch(checkpoints, progress)


def _usable(reference: str, trajectory: Trajectory, steps: str | None) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints that can be evaluated, and a sentence for each other one."""
    notes = damaged_checkpoints(reference)
    try:
        chosen = tuple(trajectory) if steps is None else trajectory.select(steps)
    except CheckpointError as error:
        # A step that was asked for may be one that is damaged.
        raise CheckpointError("; ".join([str(error), *notes])) from None
    # What a checkpoint on W&B has is only known after its download, and that demands a manifest.
    usable = [checkpoint for checkpoint in chosen if checkpoint.is_remote or checkpoint.manifest is not None]
    notes += [
        f"step {checkpoint.step} is skipped: it has no manifest.json, so its persona is not known"
        for checkpoint in chosen
        if checkpoint not in usable
    ]
    if not usable:
        raise CheckpointError(f"{reference}: no checkpoint can be evaluated; {notes[0] if notes else 'none is there'}")
    return usable, notes


def _name(settings: EvaluationSettings, measures: Sequence[Measure], loader: ModelLoader) -> str:
    """The name of the directory: a digest of settings, measures, and the persona that replaces the run's own."""
    digest, override = settings.digest(), loader.override
    if measures:
        digest = digest_of([digest, sorted(measure_id(measure) for measure in measures)])
    return (digest if override is None else digest_of([digest, asdict(override)]))[:8]


def _described(settings: EvaluationSettings, measures: Sequence[Measure], name: str) -> dict[str, Any]:
    """The settings as they stand in `evaluation.json`."""
    described = {
        "settings": name,
        "questions": [asdict(question) for question in settings.questions],
        "sampling": asdict(settings.sampling),
        "engine": settings.engine,
        "judge": settings.judge_id,
        "judge_settings": dict(settings.judge.settings),
    }
    if measures:
        described["measures"] = {measure_id(measure): dict(measure.settings) for measure in measures}
    return described
