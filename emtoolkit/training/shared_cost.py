"""How many optimizer steps runs with reuse train, one after another: what the store has, and what earlier runs save."""

from collections.abc import Collection
from pathlib import Path

from emtoolkit.checkpoints.layout import step_of
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.pruned import pruned_steps
from emtoolkit.config.sections import RunConfig
from emtoolkit.reuse.inputs import environment_of
from emtoolkit.reuse.store import TrajectoryStore
from emtoolkit.saving.resume_state import RESUME_DIRECTORY
from emtoolkit.training.prepare import PreparedRun
from emtoolkit.training.reused_from_wandb import schedule_to_save
from emtoolkit.training.reusing import evaluated_steps, may_take, why_trains_alone


class SharedCosts:
    """The steps that each trajectory has, before the first run and after each run that was asked for."""

    def __init__(self) -> None:
        self._steps: dict[Path, set[int]] = {}
        # The held-out losses that the latest planned training into each directory has in its history.
        self._evaluated: dict[Path, tuple[int, ...] | None] = {}

    def steps_to_train(self, config: RunConfig, prepared: PreparedRun) -> int:
        """The optimizer steps that the run trains with reuse; sizes of files are compared, and no digests."""
        plan = prepared.plan
        store = TrajectoryStore(config.trajectory, environment_of(config.model))
        directory = store.directory(prepared.identity.fingerprint)
        alone = (
            config.trajectory.reuse is False
            or why_trains_alone(config.training, config.checkpointing, config.evaluation) is not None
        )
        evaluated = evaluated_steps(config.evaluation, plan.total_steps)
        if alone or not self._may_take(directory, evaluated):
            return plan.total_steps
        there = self._steps.setdefault(directory, _complete(directory))
        pruned = {*_pruned(directory)} - {*plan.steps}
        schedule = schedule_to_save(config.checkpointing, config.trajectory)
        wanted: set[int] = {*schedule.steps(plan.total_steps)} - pruned
        missing = wanted - there
        there |= wanted
        if not missing:
            return 0
        self._evaluated[directory] = evaluated
        resumable = [step for step in _steps_in(directory / RESUME_DIRECTORY) if step <= min(missing)]
        return max(missing) - max(resumable, default=0)

    def _may_take(self, directory: Path, evaluated: tuple[int, ...] | None) -> bool:
        if directory not in self._evaluated:
            return may_take(directory, evaluated)
        return evaluated in (None, self._evaluated[directory])


def _complete(directory: Path) -> set[int]:
    return {info.step for info in list_checkpoints(directory) if info.complete} if directory.is_dir() else set()


def _pruned(directory: Path) -> Collection[int]:
    return pruned_steps(directory) if directory.is_dir() else ()


def _steps_in(home: Path) -> Collection[int]:
    return [step for path in home.glob("checkpoint-*") if (step := step_of(path.name)) is not None]
