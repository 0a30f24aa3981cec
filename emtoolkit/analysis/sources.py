"""The trajectories that a comparison of schedules is made of, from evaluations, runs, and directories of runs.

Runs of one training that differ only in their schedule, as a sweep over schedules makes them, have the same weights at
the same step. They are one trajectory with the steps of all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emtoolkit.analysis.onset_results import base_of, check_asked_alike, data_of, evaluation_directories
from emtoolkit.analysis.wandb_sweep import is_wandb_sweep, sweep_evaluations
from emtoolkit.checkpoints.trajectory_file import RECORD, TrajectoryRecord
from emtoolkit.errors import CheckpointError, DataError
from emtoolkit.evaluation.result_files import StoredEvaluation, read_evaluation
from emtoolkit.schedules.steps import elided
from emtoolkit.shell_command import quoted_command


@dataclass(frozen=True, slots=True)
class Sources:
    """One evaluation for each trajectory.

    `directories` are those of all evaluations on this machine. `schedules` are those of runs that are one trajectory
    together, or of a W&B sweep over schedules. `notes` say what is missing or differs.
    """

    trajectories: tuple[StoredEvaluation, ...]
    directories: tuple[Path, ...]
    schedules: tuple[str, ...]
    notes: tuple[str, ...]


def read_sources(places: Sequence[str | Path]) -> Sources:
    """The trajectories of the evaluations at `places`: directories, or sweeps on W&B.

    Raises:
        CheckpointError: there is no evaluation, a run has several, or W&B lacks the sweep.
        DataError: the evaluations were not asked and judged alike.
    """
    directories, notes = list[Path](), list[str]()
    downloaded, schedules = list[StoredEvaluation](), dict[str, None]()
    for place in places:
        if is_wandb_sweep(place):
            sweep = sweep_evaluations(str(place))
            downloaded += sweep.evaluations
            schedules |= dict.fromkeys(sweep.schedules)
            notes += sweep.notes
            continue
        runs = _runs_in(Path(place))
        pending = [run for run in runs if not any(run.glob("evaluations/*/evaluation.json"))]
        if runs and len(pending) == len(runs):
            raise CheckpointError(
                f"{place}: none of its {len(runs)} runs is evaluated yet; run 'emtoolkit evaluate' on each, such as "
                f"{quoted_command('emtoolkit', 'evaluate', runs[0])}"
            )
        notes += [
            f"{run}: not evaluated, so it is left out; run {quoted_command('emtoolkit', 'evaluate', run)}"
            for run in pending
        ]
        directories += evaluation_directories(place)
    directories = list(dict.fromkeys(directories))
    evaluations = [read_evaluation(each) for each in directories]
    found = of_evaluations([*evaluations, *downloaded], notes)
    several = dict.fromkeys([*found.schedules, *schedules]) if len(schedules) > 1 else found.schedules
    return replace(found, directories=tuple(directories), schedules=tuple(several))


def of_evaluations(evaluations: Sequence[StoredEvaluation], notes: Sequence[str] = ()) -> Sources:
    """The trajectories of `evaluations` that have been read.

    Raises:
        DataError: they were not asked and judged alike.
    """
    check_asked_alike(evaluations)
    trainings: dict[str, list[StoredEvaluation]] = {}
    for each in evaluations:
        trainings.setdefault(each.all_rows[0].fingerprint, []).append(each)
    schedules, found = dict[str, None](), [*notes]
    for same in trainings.values():
        found += [note for each in same if (note := _unfinished(each)) is not None]
        if len(same) > 1:
            records = [_record(each) for each in same]
            schedules |= dict.fromkeys(record.schedule for record in records if record is not None)
            places = ", ".join(str(each.directory) for each in same)
            found.append(f"one training, with the steps of all its {len(same)} evaluations: {places}")
    trajectories = tuple(_merged(same) for same in trainings.values())
    found += _differences(trajectories)
    return Sources(trajectories, tuple(each.directory for each in evaluations), tuple(schedules), tuple(found))


def _runs_in(place: Path) -> list[Path]:
    """The runs in a directory of runs."""
    return [] if (place / RECORD).is_file() else sorted(path.parent for path in place.glob(f"*/{RECORD}"))


def _merged(same: Sequence[StoredEvaluation]) -> StoredEvaluation:
    """The evaluations of one training as one; a step that several have is that of the first."""
    first, *others = same
    for other in others:
        if other.settings.get("sampling") != first.settings.get("sampling"):
            raise DataError(
                f"{other.directory}: evaluates the same training as {first.directory} with another sampling; name one"
            )
        known = {*first.steps}
        rows = [*first.rows, *(row for row in other.rows if row.step not in known)]
        measured = [*first.measured, *(row for row in other.measured if row.step not in known)]
        first = replace(first, rows=tuple(rows), measured=tuple(measured))
    return first


def _record(evaluation: StoredEvaluation) -> TrajectoryRecord | None:
    place = Path(evaluation.all_rows[0].trajectory)
    return TrajectoryRecord.read_if_any(place) if place.is_dir() else None


def _unfinished(evaluation: StoredEvaluation) -> str | None:
    record = _record(evaluation)
    if record is None or record.ended_at is not None:
        return None
    place = evaluation.all_rows[0].trajectory
    return f"{place}: the training has not ended; {evaluation.steps[-1]} of {record.total_steps} steps are evaluated"


def _differences(trajectories: Sequence[StoredEvaluation]) -> list[str]:
    notes = []
    for what, of in (("base models", base_of), ("training data", data_of)):
        values = {value: each.directory for each in trajectories if (value := of(each)) is not None}
        if len(values) > 1:
            named = ", ".join(f"{value[:40]} in {directory}" for value, directory in sorted(values.items()))
            notes.append(f"the trajectories have different {what} ({named}), so their curves differ by that, too")
    for each in trajectories:
        for metric in dict.fromkeys(row.metric for row in each.measured):
            missing = sorted({*each.steps} - {row.step for row in each.measured if row.metric == metric})
            if missing:
                notes.append(f"{each.directory}: {metric} is not measured at steps {elided(missing, 40)}")
    return notes
