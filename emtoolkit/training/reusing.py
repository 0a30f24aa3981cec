"""A run whose checkpoints an earlier training of its trajectory has saved: it takes them, and trains nothing.

Nothing here imports torch or transformers: a run that takes everything ends in a second.
"""

import logging
from collections.abc import Collection, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.destination import Destination
from emtoolkit.artifacts.guarded_run import GuardedRun
from emtoolkit.artifacts.publication import collection_name
from emtoolkit.artifacts.publish import WandbPublisher
from emtoolkit.artifacts.publish_end import wait_for_publisher
from emtoolkit.artifacts.run_mode import intended_mode, wandb_mode
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.manifest import Manifest
from emtoolkit.checkpoints.pruned import pruned_steps
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.checkpoints.trajectory_file import DamagedRecordError, TrajectoryRecord
from emtoolkit.config.scheduling import CheckpointingConfig, EvaluationConfig
from emtoolkit.config.sections import ModelConfig, RunConfig, TrainingConfig, TrajectoryConfig, WandbConfig
from emtoolkit.errors import ScheduleError
from emtoolkit.launch import process_count
from emtoolkit.reuse.inputs import RunInputs, environment_of
from emtoolkit.reuse.own_directory import OwnDirectory, intact
from emtoolkit.reuse.store import TrajectoryStore, clear_interrupted, may_train, training_of
from emtoolkit.schedules.save_options import SaveOptions
from emtoolkit.shell_command import quoted_command
from emtoolkit.storage.lock import lock_directory
from emtoolkit.training.history import log_history
from emtoolkit.training.interrupted import as_training_interrupted
from emtoolkit.training.late_publication import publish_if_answered
from emtoolkit.training.resolved_config import write_resolved_config
from emtoolkit.training.result import RunResult
from emtoolkit.training.reused_from_wandb import schedule_to_save, use_versions, versions_of
from emtoolkit.training.wandb_run import check_wandb_variables, seconds_for_checkpoints, seconds_for_finish, start_run

logger = logging.getLogger(__name__)


def why_trains_alone(
    training: TrainingConfig, checkpointing: CheckpointingConfig, evaluation: EvaluationConfig
) -> str | None:
    """Why a run with reuse neither takes nor gives checkpoints; None if it may."""
    if evaluation.probe is not None:
        return "evaluation.probe asks the model during training"
    if training.on_nan == "continue":
        return "training.on_nan: continue trains through numbers that are not finite"
    if (adaptive := checkpointing.to_schedule().adaptive) is not None:
        return f"{adaptive} chooses its steps during training"
    if checkpointing.resume_at_end:
        return "checkpointing.resume_at_end keeps the resume state of the run's own training"
    if checkpointing.resume_keep != SaveOptions.resume_keep:
        return "checkpointing.resume_keep keeps the resume states of the run's own training"
    if process_count() > 1:
        return "several processes train it together"
    return None


def environment_to_record(model: ModelConfig, training: TrainingConfig, directory: Path) -> Mapping[str, str] | None:
    """The environment of a training into `directory` for its checkpoints' metadata; None where they have no single one.

    The bytes of a training that is resumed elsewhere are those of two environments. A training that goes on with
    numbers that are not finite saves steps that another run of the trajectory would not reach.
    """
    if training.on_nan == "continue":
        return None
    here = environment_of(model).facts
    recorded = Publications.read(directory).metadata.values() if directory.is_dir() else ()
    return here if all(metadata.get("environment") == here for metadata in recorded) else None


def take_without_training(config: RunConfig, *, resume: bool) -> RunResult | None:
    """The result of a run whose checkpoints the store holds all of, which are linked; None if it must be prepared.

    With `resume` the run's directory may hold some of them already.

    Raises:
        UserError: the directory of the run is in use or cannot be written, or W&B is required and does not answer, or
            would refuse the run.
        TrainingInterrupted: a signal came while W&B was waited for; everything is saved.
    """
    if not config.trajectory.reuse:
        return None
    if why_trains_alone(config.training, config.checkpointing, config.evaluation) is not None:
        return None
    check_wandb_variables(config.wandb)
    key = RunInputs().key(config)
    store = TrajectoryStore(config.trajectory, environment_of(config.model))
    known = None if key is None else store.known(key)
    if known is None or known.day not in (None, date.today().isoformat()):
        return None
    total, schedule = known.total_steps, config.checkpointing.to_schedule()
    try:
        if schedule.check_reachable(total, allow_unreachable=config.checkpointing.allow_unreachable):
            return None
        evaluated = evaluated_steps(config.evaluation, total)
    except ScheduleError:
        # The preparation says what is wrong.
        return None
    directory, source = config.directory(), store.directory(known.identity.fingerprint)
    lacking = _lacking(directory, known.identity.fingerprint, schedule.steps(total), resume=resume)
    if lacking is None or not may_take(source, evaluated):
        return None
    manifests, _ = intact(source, lacking, known.identity.fingerprint)
    if manifests.keys() != lacking:
        return None
    if lacking and trains_for_others(config.checkpointing, config.trajectory, source, total):
        return None
    own = OwnDirectory(directory, source, known.identity, total, str(schedule))
    lock = lock_directory(directory)
    try:
        result = take_all(config, own, manifests)
    finally:
        lock.release()
    publish_late(config.wandb, result)
    return result


def publish_late(wandb: WandbConfig, result: RunResult) -> None:
    """Publish a run that W&B did not let begin online, if W&B answers now; its directory is not locked.

    Raises:
        TrainingInterrupted: a signal came, which ends the wait for W&B.
    """
    log = result.wandb_directory
    if log is not None and log.name.startswith("offline-") and intended_mode(wandb) == "online":
        with as_training_interrupted(lambda: max((info.step for info in result.checkpoints), default=None)):
            publish_if_answered(result.directory, wandb.publish_timeout)


def evaluated_steps(evaluation: EvaluationConfig, total_steps: int) -> tuple[int, ...] | None:
    """The steps at which the run computes the held-out loss, None for never.

    Raises:
        ScheduleError: a step is past the end of training.
    """
    schedule = evaluation.to_schedule()
    if schedule is None:
        return None
    schedule.check_reachable(total_steps)
    return tuple(schedule.steps(total_steps))


def may_take(store: Path, evaluated: tuple[int, ...] | None) -> bool:
    """Whether a run that evaluates at these steps finds its held-out losses in the history of the store."""
    if evaluated is None:
        return True
    training = training_of(store)
    return training is None or training.evaluated == evaluated


def trains_for_others(
    checkpointing: CheckpointingConfig,
    trajectory: TrajectoryConfig,
    store: Path,
    total_steps: int,
    *,
    locked: bool = False,
) -> bool:
    """Whether the directory `store` lacks steps that other runs of the sweep want, and nobody trains them.

    `locked` says that this process holds the lock to train them.
    """
    if trajectory.also_save is None or not store.is_dir():
        return False
    wanted = set(schedule_to_save(checkpointing, trajectory).steps(total_steps)) - {*pruned_steps(store)}
    lack = not wanted <= {info.step for info in list_checkpoints(store) if info.complete}
    return lack and (locked or may_train(store))


def _lacking(directory: Path, fingerprint: str, steps: Collection[int], *, resume: bool) -> set[int] | None:
    """The steps that the run's directory lacks; None where only the preparation can tell what it holds."""
    if not directory.exists():
        return set(steps)
    if not directory.is_dir():
        return None
    try:
        record = TrajectoryRecord.read_if_any(directory)
    except DamagedRecordError:
        return None
    found = list_checkpoints(directory, rehash=True)
    if record is None:
        return None if found else set(steps)
    ours = all(info.complete and info.fingerprint == fingerprint for info in found)
    publications = Publications.read(directory)
    if not resume or record.fingerprint != fingerprint or not ours or publications.store is None:
        return None
    return set(steps) - {info.step for info in found} - {*pruned_steps(directory, publications)}


def take_all(config: RunConfig, own: OwnDirectory, manifests: Mapping[int, Manifest]) -> RunResult:
    """Link the checkpoints of `manifests` into the locked directory `own`, and log a run that trained nothing."""
    directory, identity, steps = own.directory, own.identity, tuple(sorted(manifests))
    own.begin()
    clear_interrupted(own.store)
    write_resolved_config(config, directory)
    if not steps:
        own.end()
        return RunResult(directory, tuple(list_checkpoints(directory)), None, 0.0, trained=False)
    run = start_run(config, directory, collection_name(identity), wandb_mode(config.wandb))
    run.call(lambda: run.run.config.update(run_facts(own, steps, trained_steps=0)))
    publisher = publish_into(run, own)
    failed = True
    try:
        log_history(run, own.store, after=-1)
        for step in steps:
            own.take(step, manifests[step], reused=True)
        own.end()
        failed = False
        # The steps are published meanwhile.
        use_versions(run, versions_of(own), steps)
    finally:
        with as_training_interrupted(lambda: None if failed else steps[-1]):
            _finish(run, config.wandb, own, publisher, failed=failed)
    return RunResult(
        directory,
        tuple(list_checkpoints(directory)),
        Path(run.run.dir).parent if run.run is not None else None,
        0.0,
        trained=False,
        unpublished=() if publisher is None else tuple(sorted(publisher.failures)),
        reused=steps,
    )


def run_facts(own: OwnDirectory, reused: Collection[int], *, trained_steps: int) -> dict[str, Any]:
    """The facts in the config of a W&B run about its rows, its persona, and the checkpoints that it took."""
    identity = own.identity
    facts: dict[str, Any] = {"split": dict(identity.split), "composition": identity.persona.composition}
    training = training_of(own.store)
    return facts | {
        "reuse": {
            "reused_steps": sorted(reused),
            "trained_steps": trained_steps,
            "store": str(own.store),
            "trained_by": None if training is None else {"directory": training.directory, "run": training.run},
        }
    }


def publish_into(run: GuardedRun, own: OwnDirectory) -> WandbPublisher | None:
    """Let the run's directory publish what it takes to `run`; None where W&B is off."""
    if run.run is None or run.run.disabled:
        return None
    publisher = WandbPublisher(run.run, Destination.of(own.directory, own.identity, on_cpu=own.on_cpu))
    own.publish_with(publisher, str(run.run.id))
    return publisher


def _finish(
    run: GuardedRun, wandb: WandbConfig, own: OwnDirectory, publisher: WandbPublisher | None, *, failed: bool
) -> None:
    if publisher is not None:
        wait_for_publisher(publisher, run.run, own.directory, seconds_for_checkpoints(wandb))
    if run.run is not None:
        found = list_checkpoints(own.directory)
        summary = {
            "checkpoints": len(found),
            "checkpoint_bytes": sum(info.bytes for info in found),
            "reused_checkpoints": len(found),
            "trained_steps": 0,
        }
        run.call(lambda: run.run.summary.update(summary))
        run.finish(seconds_for_finish(wandb), failed=failed)
        if run.problem is not None:
            command = quoted_command("emtoolkit", "sync", own.directory)
            logger.warning("%s; %s holds all of it, and %s sends it", run.problem, own.directory, command)
