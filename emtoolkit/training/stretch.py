"""One stretch of a trajectory, trained again: from a resume state, or from step 0, up to the last step that is needed.

The total number of steps stays that of the trajectory, because the learning rate and the order of the data depend on
it; training only stops earlier. So each step has the bytes that an uninterrupted training gives on the same machine.
"""

import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emtoolkit.artifacts.guarded_run import GuardedRun
from emtoolkit.checkpoints.layout import checkpoint_name, step_of
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.config.sections import RunConfig
from emtoolkit.cpu_threads import threads_for
from emtoolkit.errors import CheckpointError
from emtoolkit.progress import Bar
from emtoolkit.reuse.environment_file import add_stretch
from emtoolkit.reuse.inputs import environment_of
from emtoolkit.saving.callback import ScheduledCheckpointCallback
from emtoolkit.saving.into_store import KnownEnvironmentCallback
from emtoolkit.saving.ranks import Ranks
from emtoolkit.saving.resume_state import RESUME_DIRECTORY
from emtoolkit.saving.writer import Saved
from emtoolkit.schedules.resume_keep import NEWEST
from emtoolkit.schedules.save_options import SaveOptions
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.storage.atomic import write_directory
from emtoolkit.training.composed_model import ComposedModel, PersonaCheck, composed_model
from emtoolkit.training.determinism import deterministic_algorithms
from emtoolkit.training.divergence import StopWhereDiverged, named_as_divergence
from emtoolkit.training.effective_settings import device_type
from emtoolkit.training.prepare import PreparedRun
from emtoolkit.training.progress_callback import ProgressCallback
from emtoolkit.training.trainer import make_trainer


@dataclass(frozen=True, slots=True)
class Stretch:
    """The result of one stretch: its checkpoints in the order of their steps, and the steps that were trained.

    `saved` is empty in the processes of a launch that do not save.
    """

    directory: Path
    saved: tuple[Saved, ...]
    from_step: int
    to_step: int

    @property
    def trained_steps(self) -> int:
        """The optimizer steps that were executed."""
        return self.to_step - self.from_step


def train_stretch(
    config: RunConfig,
    prepared: PreparedRun,
    steps: Collection[int],
    directory: Path,
    *,
    start: Path | None = None,
    identity: Identity | None = None,
    environment: Mapping[str, str] | None = None,
    ranks: Ranks | None = None,
    step_bar: Bar | None = None,
) -> Stretch:
    """Train the run of `config` from the resume checkpoint `start` (None: step 0) and save `steps` into `directory`.

    Training stops after the last of `steps`. There is no W&B run, no evaluation and no probe, none of which changes
    weights. Beside the checkpoints, `directory` gets the records of a training that ended at that step, a resume state
    as `checkpointing.resume_every` asks for, and the environment. A directory that an earlier call was interrupted in
    can be used again: a step that is there already is compared. Every process of a launch calls this function.

    Args:
        prepared: what `prepare(config)` returned.
        steps: at least one step, none before the step of `start`.
        start: a resume checkpoint whose files were compared with their digests; its files are linked or copied.
        identity: the identity to write into manifests; by default that of `prepared`.
        environment: what the metadata of the checkpoints name as their environment; None names none.
        ranks: the processes of the launch; None for one process.

    Raises:
        CheckpointError: a step cannot be reached from `start`, or cannot be saved.
        DivergedError: the loss or a weight is not finite, and `training.on_nan` is `stop`.
        TrainingInterrupted: a signal came; the state is saved in `directory`.
    """
    ranks = Ranks() if ranks is None else ranks
    first = 0 if start is None else step_of(start.name) or 0
    last, total = max(steps), prepared.plan.total_steps
    if min(steps) < first or last > total:
        raise CheckpointError(f"{directory}: steps {first} to {total} can be trained from {start or 'step 0'}")
    with deterministic_algorithms(config.training.deterministic):
        with ranks.raise_on_all():
            composed = composed_model(config, prepared)
        with threads_for(sum(parameter.numel() for parameter in composed.model.parameters())):
            with ranks.raise_on_all():
                if ranks.index == 0:
                    directory.mkdir(parents=True, exist_ok=True)
                    add_stretch(directory, first, environment_of(config.model))
                    if start is not None:
                        _link_resume_state(start, directory)
            options = config.checkpointing.to_save_options(
                publish_timeout=0.0, on_nan=config.training.on_nan, on_cpu=device_type(config.model) == "cpu"
            )
            callback = _save_callback(options, steps, directory, identity or prepared.identity, environment, start)
            reached = _train(config, prepared, composed, callback, directory, start, last, step_bar)
    return Stretch(directory, tuple(callback.saved), first, reached)


def _save_callback(
    options: SaveOptions,
    steps: Collection[int],
    directory: Path,
    identity: Identity,
    environment: Mapping[str, str] | None,
    start: Path | None,
) -> ScheduledCheckpointCallback:
    options = replace(options, publish=False, on_error="raise", resume_keep=NEWEST, resume_at_end=False)
    return KnownEnvironmentCallback(
        Schedule.of(steps),
        output_dir=directory,
        identity=identity,
        environment=environment,
        resume_state_is_intact=start is not None,
        **asdict(options),
    )


def _train(
    config: RunConfig,
    prepared: PreparedRun,
    composed: ComposedModel,
    callback: ScheduledCheckpointCallback,
    directory: Path,
    start: Path | None,
    last: int,
    step_bar: Bar | None,
) -> int:
    """Train up to the step `last`, and return the step that was reached."""
    stops = config.training.on_nan == "stop"
    with ProgressCallback(step_bar, last=last) as progress:
        # As in a whole training, apart from evaluations, probes and W&B.
        callbacks = [PersonaCheck(composed.probe), callback, progress, _StopAt(last)]
        trainer = make_trainer(
            config,
            composed.model,
            prepared.data,
            output_dir=directory,
            eval_steps=None,
            callbacks=[*callbacks, *([StopWhereDiverged()] if stops else [])],
            wandb_run=GuardedRun(None),
        )
        callback.follow(trainer)
        with named_as_divergence(trainer) if stops else nullcontext():
            trainer.train(resume_from_checkpoint=None if start is None else str(start))
    return int(trainer.state.global_step)


class _StopAt(TrainerCallback):
    """Ends training after the step `last`."""

    def __init__(self, last: int) -> None:
        self._last = last

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step >= self._last:
            control.should_training_stop = True


def _link_resume_state(start: Path, directory: Path) -> None:
    """Make the files of the resume checkpoint `start` one of `directory`, where the callback looks for it."""
    target = directory / RESUME_DIRECTORY / checkpoint_name(step_of(start.name) or 0)
    if target.exists() and target.samefile(start):
        return

    def fill(empty: Path) -> None:
        for file in start.iterdir():
            try:
                os.link(file, empty / file.name)
            except OSError:
                shutil.copy2(file, empty / file.name)

    target.parent.mkdir(exist_ok=True)
    write_directory(target, fill, 0)
