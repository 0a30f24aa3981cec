"""A training into the store of trajectories, for a run whose steps the store does not hold all of.

Whoever holds the lock of the trajectory trains the missing stretch, from the nearest earlier resume state in the store,
and saves the steps that the run and the other runs of its sweep want. Steps of the store on the way are computed again
and compared with their bytes. The run's own directory takes the steps of its own schedule.
"""

import logging
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.guarded_run import GuardedRun
from emtoolkit.artifacts.publish import WandbPublisher
from emtoolkit.artifacts.publish_end import wait_for_publisher
from emtoolkit.artifacts.run_history import RunHistory
from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.manifest import Manifest
from emtoolkit.checkpoints.publications import Publications, add_wanted
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import CheckpointError
from emtoolkit.paths import out_of_scratch
from emtoolkit.progress import Bar, Progress
from emtoolkit.reuse.environment import Environment
from emtoolkit.reuse.inputs import RunInputs, environment_of
from emtoolkit.reuse.own_directory import OwnDirectory, intact
from emtoolkit.reuse.store import KnownRun, Training, TrajectoryStore, note_training, record_of, wait_to_train
from emtoolkit.saving.into_store import StoreCheckpointCallback
from emtoolkit.saving.output_directory import OutputDirectory
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.steps import elided
from emtoolkit.storage.lock import lock_directory
from emtoolkit.training.history import log_history
from emtoolkit.training.prepare import PreparedRun
from emtoolkit.training.result import RunResult
from emtoolkit.training.resume_point import ResumePoint, find_resume_point
from emtoolkit.training.reused_from_wandb import fill_from_wandb, schedule_to_save, use_versions, versions_of
from emtoolkit.training.reusing import may_take, publish_into, run_facts, take_all, trains_for_others, why_trains_alone
from emtoolkit.training.scratch import Scratch

logger = logging.getLogger(__name__)

_LONGEST_LIST = 100


@dataclass
class SharedTraining:
    """The training of one stretch into `directory`, of which `own` takes the steps that it wants.

    Attributes:
        directory: the locked directory of the trajectory in the store.
        start: where training starts; its `damaged` steps are all that are saved beside the schedule.
        schedule: the steps of the run, and those that other runs want.
        stop: the last step to train.
        taken: the steps that the store held before, with their manifests.
        environment: the facts of the store's environment.
    """

    directory: Path
    own: OwnDirectory
    start: ResumePoint
    schedule: Schedule
    stop: int
    total_steps: int
    wanted: frozenset[int]
    taken: dict[int, Manifest]
    evaluated: tuple[int, ...] | None
    environment: Mapping[str, str]
    publisher: WandbPublisher | None = field(default=None, init=False)
    _trained: set[int] = field(default_factory=set, init=False)

    @property
    def reused(self) -> tuple[int, ...]:
        """The steps that an earlier training had saved."""
        return tuple(sorted(self.taken))

    @property
    def reaches_the_end(self) -> bool:
        """Whether the last step of the trajectory is trained."""
        return self.stop == self.total_steps

    @property
    def trained_steps(self) -> int:
        """The number of optimizer steps to train."""
        return self.stop - self.start.step

    @property
    def when_trained(self) -> str:
        """The moment at which training stops, for the measurement of the persona."""
        return "at the end" if self.reaches_the_end else f"after step {self.stop}"

    @property
    def summary(self) -> dict[str, float]:
        """The checkpoints of the directory, as the summary of the W&B run records them."""
        found = list_checkpoints(self.own.directory)
        return {
            "checkpoints": len(found),
            "checkpoint_bytes": sum(info.bytes for info in found),
            "reused_checkpoints": len(self.taken),
            "trained_steps": self.trained_steps,
        }

    def callback(self, options: Mapping[str, Any], common: Mapping[str, Any]) -> StoreCheckpointCallback:
        """The callback that saves into the store; the run's own directory publishes."""
        return StoreCheckpointCallback(
            self.schedule,
            output_dir=self.directory,
            run=self,
            own_directory=self.own.directory,
            environment=self.environment,
            **common,
            # The preparation has checked the schedule of the run.
            **dict(options) | {"publish": False, "allow_unreachable": True},
        )

    def begin(self, run: GuardedRun) -> None:
        """Take what the store holds, and say in the config of the W&B run what is taken and what is trained."""
        self.own.begin()
        if self.start.step > 0 and run.history is None:
            # Another run logged the steps before: the W&B callback adds the rows that this one lacks.
            run.history = RunHistory()
        self.publisher = publish_into(run, self.own)
        run_id = None if run.run is None else str(run.run.id)
        facts = run_facts(self.own, self.reused, trained_steps=self.trained_steps)
        # The note names this run from now on, and not who trained what is taken.
        versions = versions_of(self.own)
        note_training(self.directory, Training(str(out_of_scratch(self.own.directory)), run_id, self.evaluated))
        run.call(lambda: run.run.config.update(facts))
        for step in self.reused:
            self.own.take(step, self.taken[step], reused=True)
        # The steps are published meanwhile.
        use_versions(run, versions, self.reused)

    def on_saved(self, step: int) -> None:
        """Give the run a step that was trained, if its schedule has the step or somebody asked this run for it."""
        if step in self.taken or not (step in self.wanted or step in Publications.read(self.own.directory).asked):
            return
        self.own.take(step, Manifest.read(self.directory / checkpoint_name(step)), reused=False, publish=False)
        self._trained.add(step)

    def on_settled(self, step: int) -> None:
        """Publish a step that was trained, with the metrics that were logged at the step."""
        if step in self._trained:
            self.own.settle(step)

    def end(self, run: GuardedRun) -> None:
        """The stretch is trained: log the history after it, and record the end if the last step exists."""
        log_history(run, self.directory, after=self.stop)
        if (self.directory / checkpoint_name(self.total_steps)).is_dir():
            if (record := record_of(self.directory)) is not None and record.ended_at is None:
                record.ended(self.total_steps).write(self.directory)
            self.own.end()

    def close(self, run: GuardedRun, patience: float, *, interrupted: bool) -> None:
        """Wait at most `patience` seconds for W&B, and warn about what it lacks."""
        if self.publisher is not None:
            wait_for_publisher(self.publisher, run.run, self.own.directory, patience, interrupted=interrupted)

    @property
    def unpublished(self) -> Collection[int]:
        """The steps that neither W&B nor the log of an offline run holds."""
        return self.publisher.failures.keys() if self.publisher is not None else ()


def share(
    config: RunConfig, prepared: PreparedRun, locks: ExitStack, scratch: Scratch, *, resume: bool, bar: Bar
) -> SharedTraining | RunResult | None:
    """The training that is left to do, the result of a run that takes everything, or None for a run that trains alone.

    A training of the same trajectory by another process is waited for. `locks` are released by the caller.

    Raises:
        CheckpointError: the directory of the run holds another trajectory, is in use, or holds this run and `resume` is
            false; or a directory of the store holds another trajectory.
    """
    if (why := why_trains_alone(config.training, config.checkpointing, config.evaluation)) is not None:
        logger.warning("trajectory.reuse: nothing is reused, because %s", why)
        return None
    directory, identity, plan = prepared.plan.directory, prepared.identity, prepared.plan
    contents = OutputDirectory.open(directory)
    contents.check_belongs_to(identity)
    contents.check_not_in_use()
    if not resume:
        find_resume_point(contents, plan.steps, resume=False)
    if contents.holds_a_run and Publications.read(directory).store is None:
        logger.warning("trajectory.reuse: %s was begun without reuse, so the run trains what it lacks", directory)
        return None
    evaluated = None if plan.eval_steps is None else tuple(plan.eval_steps)
    store = TrajectoryStore(config.trajectory, environment_of(config.model))
    _remember(store, config, prepared)
    for other, differences in store.other_environments(identity.fingerprint).items():
        reasons = "; ".join(differences)
        logger.warning("%s: not reused, because a training here may give other bytes: %s", other, reasons)
    source = store.directory(identity.fingerprint)
    if not may_take(out_of_scratch(source), evaluated):
        logger.warning("trajectory.reuse: nothing is reused, because the store has no held-out losses at these steps")
        return None
    locks.callback(lock_directory(directory).release)
    contents = OutputDirectory.open(directory, rehash=resume)
    _say_damage(contents)
    lacking = frozenset(plan.steps) - contents.complete_steps - contents.pruned
    own = OwnDirectory(directory, source, identity, plan.total_steps, plan.schedule)
    if (result := _taken(config, own, lacking)) is not None:
        return result
    try:
        store.create(identity.fingerprint)
        lock = wait_to_train(source)
    except CheckpointError as error:
        logger.warning("trajectory.reuse: %s; the run trains alone", error)
        # The training locks the directory itself.
        locks.close()
        return None
    locks.callback(lock.release)
    scratch.bring(source, locks)
    if (result := _taken(config, own, lacking, locked=True)) is not None:
        return result
    with bar() as progress:
        record = TrajectoryRecord.of(identity, plan.total_steps, plan.schedule)
        fill_from_wandb(config, store, own, lacking, record, progress)
    if (result := _taken(config, own, lacking, locked=True)) is not None:
        return result
    with bar() as progress:
        schedule = schedule_to_save(config.checkpointing, config.trajectory)
        return _stretch(schedule, prepared, own, lacking, evaluated, store.environment, progress)


def _taken(config: RunConfig, own: OwnDirectory, lacking: frozenset[int], *, locked: bool = False) -> RunResult | None:
    """The result of a run whose lacking steps are all in the store, and which need not train for others; else None.

    `locked` says that this process holds the lock of the trajectory.
    """
    manifests, _ = intact(own.store, lacking, own.identity.fingerprint)
    if manifests.keys() != lacking:
        return None
    if lacking and trains_for_others(
        config.checkpointing, config.trajectory, own.store, own.total_steps, locked=locked
    ):
        return None
    return take_all(config, own, manifests)


def _stretch(
    schedule: Schedule,
    prepared: PreparedRun,
    own: OwnDirectory,
    lacking: frozenset[int],
    evaluated: tuple[int, ...] | None,
    environment: Environment,
    progress: Progress,
) -> SharedTraining:
    """The stretch that is left to train for the steps of `schedule`, once the trajectory's lock is held."""
    plan, identity = prepared.plan, prepared.identity
    contents = OutputDirectory.open(own.store, rehash=True, progress=progress)
    contents.check_belongs_to(identity)
    _say_damage(contents)
    # The checkpoint of an interruption goes away once training has passed it.
    there = frozenset(info.step for info in contents.checkpoints if info.complete and info.is_of_trajectory)
    # A run that lacks a step asks for it, also if the step was pruned in the store.
    add_wanted(own.store, sorted(lacking & contents.pruned))
    missing = frozenset(schedule.steps(plan.total_steps)) - there - (contents.pruned - lacking)
    first, stop = min(missing), max(missing)
    checkpoint = contents.newest_resume_state(not_after=first, progress=progress)
    manifests, _ = intact(own.store, lacking & there, identity.fingerprint)
    if manifests:
        logger.info(
            "%s: steps %s are taken, and steps %s are trained",
            own.store,
            elided(sorted(manifests), _LONGEST_LIST),
            elided(sorted(missing), _LONGEST_LIST),
        )
    damaged = frozenset(info.step for info in contents.damaged)
    return SharedTraining(
        directory=own.store,
        own=own,
        # What is there is computed again on the way, and compared.
        start=ResumePoint(checkpoint, damaged=there | damaged),
        schedule=schedule,
        stop=stop,
        total_steps=plan.total_steps,
        wanted=lacking,
        taken=manifests,
        evaluated=evaluated,
        environment=environment.facts,
    )


def _remember(store: TrajectoryStore, config: RunConfig, prepared: PreparedRun) -> None:
    """Let later runs with the same inputs know their trajectory without a tokenizer."""
    if (key := RunInputs().key(config)) is not None:
        store.remember(key, KnownRun(prepared.identity, prepared.plan.total_steps, prepared.data.day))


def _say_damage(contents: OutputDirectory) -> None:
    for info in contents.damaged:
        logger.warning("%s; the checkpoint of step %d is made again", info.problems[0], info.step)
