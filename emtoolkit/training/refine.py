"""Missing steps of a finished trajectory, trained again and proved: `emtoolkit refine`.

The steps are trained in a directory inside the trajectory's. Only after every step on the way that exists already has
come out with its bytes do the others become checkpoints of the trajectory, each by a rename. A process that is killed
before that leaves the trajectory as it was, and another call continues; one that is killed afterwards left steps that
were proved, and another call adds the rest.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.artifacts.run_mode import intended_mode
from emtoolkit.checkpoints.layout import RESOLVED_CONFIG, checkpoint_name, step_of
from emtoolkit.checkpoints.manifest import Manifest
from emtoolkit.checkpoints.publications import Publications, add_saved
from emtoolkit.checkpoints.trajectory_file import DamagedRecordError, TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.progress import Bar, no_bar
from emtoolkit.reuse.environment_file import stretch_of
from emtoolkit.reuse.inputs import environment_of
from emtoolkit.saving.output_directory import OutputDirectory
from emtoolkit.saving.ranks import Ranks
from emtoolkit.saving.recomputed import compare_recomputed
from emtoolkit.saving.resume_state import newest_resume_state
from emtoolkit.saving.writer import keep_other_files
from emtoolkit.shell_command import quoted_command
from emtoolkit.storage.atomic import remove_directory, remove_temporaries, sync_directory, write_file
from emtoolkit.storage.lock import InUseError, lock_directory
from emtoolkit.training.late_publication import publish_if_answered
from emtoolkit.training.refinement import Refinement
from emtoolkit.training.reusing import environment_to_record
from emtoolkit.training.stretch import train_stretch

logger = logging.getLogger(__name__)

# The file in the scratch directory that says which of its steps are proved.
_PROVED = "proved.json"


@dataclass(frozen=True, slots=True)
class Refined:
    """The result of one call: the steps that it `added`, those that had their bytes again, and the steps it trained.

    `from_step` is where the training began, whose weights were read and prove nothing.
    """

    directory: Path
    added: tuple[int, ...]
    proved_by: tuple[int, ...]
    trained_steps: int
    from_step: int


def refine(plan: Refinement, *, bar: Bar = no_bar, step_bar: Bar | None = None) -> Refined:
    """Do what `plan` says, and return what was added; every process of a launch calls this function.

    Raises:
        CheckpointError: a step that exists has come out with other bytes (nothing is added; the text names the first
            difference and what differs in the environment), another process uses the directory, or the disk is full.
        TrainingInterrupted: a signal came; another call continues.
    """
    ranks = Ranks.of_this_launch()
    with ExitStack() as stack:
        stack.callback(ranks.close)
        with ranks.raise_on_all():
            if ranks.index == 0:
                stack.callback(lock_directory(plan.directory).release)
        refined = _refine(plan, ranks, bar, step_bar)
    wandb = plan.config.wandb
    if ranks.index == 0 and refined.added and intended_mode(wandb) == "online":
        publish_if_answered(plan.directory, wandb.publish_timeout)
    return refined


def clear_left_overs(plan: Refinement) -> None:
    """Delete what a call that was killed at its very end has left, unless another process uses the directory."""
    try:
        with lock_directory(plan.directory):
            _remove(plan.scratch)
            remove_temporaries([plan.directory])
    except InUseError:
        logger.info("%s: another process uses it, and left-over files stay", plan.directory)


def note_on_environment(plan: Refinement) -> str | None:
    """A sentence on what differs here from the environment that trained the steps; None if nothing is known to.

    Raises:
        CheckpointError: the record of the environment is damaged.
    """
    there = stretch_of(plan.directory, plan.missing[0]) if plan.missing else None
    if there is None or not (differences := there.differences_to(environment_of(plan.config.model))):
        return None
    return f"{plan.directory}: the steps may come out with other bytes here: {'; '.join(differences)}"


def _refine(plan: Refinement, ranks: Ranks, bar: Bar, step_bar: Bar | None) -> Refined:
    """Process 0 owns both directories; all processes train."""
    added: tuple[int, ...] = ()
    left = _Left((), None, ())
    with ranks.raise_on_all():
        if ranks.index == 0:
            remove_temporaries([plan.directory])
            added = _add_proved(plan)
            left = _left_to_do(plan, bar)
    left = ranks.broadcast(left)
    trained = 0
    if left.todo:
        stretch = train_stretch(
            plan.config,
            plan.prepared,
            left.todo,
            plan.scratch,
            start=left.start,
            identity=plan.identity,
            environment=_environment_to_record(plan),
            ranks=ranks,
            step_bar=step_bar,
        )
        trained = stretch.trained_steps
    with ranks.raise_on_all():
        if ranks.index == 0 and left.missing:
            _prove(plan)
            write_file(plan.scratch / _PROVED, json.dumps(left.missing).encode())
            added += _add(plan, left.missing)
    return Refined(plan.directory, tuple(sorted(added)), plan.proofs if left.missing else (), trained, plan.from_step)


@dataclass(frozen=True, slots=True)
class _Left:
    """The rest of an interrupted call: the steps that are still `missing`, and those still to train from `start`."""

    missing: tuple[int, ...]
    start: Path | None
    todo: tuple[int, ...]


def _environment_to_record(plan: Refinement) -> Mapping[str, str] | None:
    """The environment for the metadata of the steps: that of this process, unless training starts from another's."""
    directory = plan.scratch if plan.start is None else plan.directory
    return environment_to_record(plan.config.model, plan.config.training, directory)


def _left_to_do(plan: Refinement, bar: Bar) -> _Left:
    complete = OutputDirectory.open(plan.directory).complete_steps
    missing = tuple(step for step in plan.missing if step not in complete)
    if not missing:
        return _Left((), None, ())
    if not _is_continued(plan):
        _remove(plan.scratch)
    with bar() as progress:
        done = OutputDirectory.open(plan.scratch, rehash=True, progress=progress).complete_steps
    todo = tuple(sorted({*missing, *plan.proofs} - done))
    if not todo:
        return _Left(missing, None, ())
    with bar() as progress:
        found = [newest_resume_state(place, todo[0], progress=progress) for place in (plan.directory, plan.scratch)]
    start = max((path for path in found if path is not None), key=lambda path: step_of(path.name) or 0, default=None)
    return _Left(missing, start, todo)


def _is_continued(plan: Refinement) -> bool:
    """Whether the scratch directory holds the beginning of this training, computed in this environment."""
    try:
        record = TrajectoryRecord.read_if_any(plan.scratch)
        there = stretch_of(plan.scratch, 0)
    except CheckpointError:
        return False
    if record is None or there is None or record.fingerprint != plan.identity.fingerprint:
        return False
    return not there.differences_to(environment_of(plan.config.model))


def _prove(plan: Refinement) -> None:
    """Compare each step on the way that exists with the same step trained again.

    Raises:
        CheckpointError: a byte differs; the scratch directory is deleted, because another call would find the same.
    """
    for step in plan.proofs:
        path, again = plan.directory / checkpoint_name(step), plan.scratch / checkpoint_name(step)
        before, after = Manifest.read(path), Manifest.read(again)
        if problems := before.problems(path, rehash=True):
            repair = quoted_command("emtoolkit", "train", plan.directory / RESOLVED_CONFIG, "--resume")
            raise CheckpointError(f"{problems[0]}; {repair} repairs it")
        found = compare_recomputed(path, before, again, after)
        different_files = found.other_files or (("manifest.json",) if before != after else ())
        # The weights of a resume state are read, before a forward pass changes a model's config.
        if found.weights is None and (not different_files or (plan.start is not None and step == plan.from_step)):
            continue
        what = f"other weights ({found.weights})" if found.weights is not None else f"another {different_files[0]}"
        cause = _cause(plan, step)
        _remove(plan.scratch)
        raise CheckpointError(f"{path}: trained again, step {step} has {what}, so nothing is added; {cause}")


def _cause(plan: Refinement, step: int) -> str:
    there = stretch_of(plan.directory, step)
    if there is None:
        return "the directory does not record the CPU, the library versions and the threads that trained it"
    if differences := there.differences_to(environment_of(plan.config.model)):
        return "; ".join(differences)
    return (
        "the CPU, the library versions and the threads are the recorded ones, so a kernel may not be deterministic "
        "(training.deterministic), or the code of the model or the trainer has changed"
    )


def _add_proved(plan: Refinement) -> tuple[int, ...]:
    """Add what a call that was killed after its proof had left; the steps that were added."""
    try:
        proved = json.loads((plan.scratch / _PROVED).read_bytes())
        record = TrajectoryRecord.read_if_any(plan.scratch)
    except (OSError, ValueError, DamagedRecordError):
        return ()
    if record is None or record.fingerprint != plan.identity.fingerprint or not isinstance(proved, list):
        return ()
    complete = OutputDirectory.open(plan.scratch, rehash=True).complete_steps
    there = OutputDirectory.open(plan.directory).complete_steps
    return _add(plan, [step for step in proved if step in complete and step not in there])


def _add(plan: Refinement, steps: Sequence[int]) -> tuple[int, ...]:
    """Make checkpoints of the proved `steps`, and delete the scratch directory."""
    directory, scratch = plan.directory, plan.scratch
    described, recorded = Publications.read(scratch).metadata, Publications.read(directory)
    for step in steps:
        source, target = scratch / checkpoint_name(step), directory / checkpoint_name(step)
        metadata = {name: value for name, value in described.get(step, {}).items() if name != "seconds_since_start"}
        metadata |= {"schedule": plan.record.schedule, "refined": True}
        earlier = [other for other in recorded.run_of if other <= step]
        run = recorded.run_of[max(earlier)] if earlier else None
        # Before the checkpoint exists, as in a training.
        add_saved(directory, step, metadata, run)
        if target.exists():
            keep_other_files(target, Manifest.read(source))
            _remove(target)
        try:
            source.rename(target)
            sync_directory(directory)
        except OSError as error:
            raise CheckpointError(f"{target}: could not be written ({error.strerror or error})") from error
    _remove(scratch)
    return tuple(steps)


def _remove(directory: Path) -> None:
    """Delete `directory`, if it exists.

    Raises:
        CheckpointError: it cannot be deleted, such as a file of this name.
    """
    try:
        remove_directory(directory)
    except OSError as error:
        raise CheckpointError(
            f"{directory}: could not be deleted ({error.strerror or error}); remove it, and run the same command again"
        ) from error
