"""Run a training: base model, persona, new adapter, then the Trainer with every save on a schedule."""

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.client_variables import client_variables
from emtoolkit.artifacts.guarded_run import GuardedRun
from emtoolkit.artifacts.publication import collection_name
from emtoolkit.artifacts.run_mode import Mode, wandb_mode
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.config.sections import RunConfig, WandbConfig
from emtoolkit.cpu_threads import threads_for
from emtoolkit.launch import ignore_signals
from emtoolkit.models.preflight import PersonaEffect
from emtoolkit.progress import Bar, no_bar
from emtoolkit.reuse.environment_file import add_stretch
from emtoolkit.reuse.inputs import environment_of
from emtoolkit.saving.callback import ScheduledCheckpointCallback
from emtoolkit.saving.into_store import KnownEnvironmentCallback
from emtoolkit.saving.output_directory import OutputDirectory, clear_left_overs, set_unlisted_weights_aside
from emtoolkit.saving.ranks import Ranks
from emtoolkit.saving.session import SECONDS_AFTER_SIGNAL
from emtoolkit.saving.signals import TrainingInterrupted
from emtoolkit.shell_command import quoted_command
from emtoolkit.training.composed_model import ComposedModel, PersonaCheck, composed_model
from emtoolkit.training.determinism import deterministic_algorithms
from emtoolkit.training.divergence import StopWhereDiverged, named_as_divergence
from emtoolkit.training.effective_settings import device_type
from emtoolkit.training.hub_push import pushing_to_hub
from emtoolkit.training.interrupted import as_training_interrupted
from emtoolkit.training.prepare import PreparedRun, prepare
from emtoolkit.training.progress_callback import ProgressCallback
from emtoolkit.training.resolved_config import write_resolved_config
from emtoolkit.training.result import RunResult
from emtoolkit.training.resume_point import ResumePoint, find_resume_point
from emtoolkit.training.reusing import environment_to_record, publish_late
from emtoolkit.training.scratch import Scratch, on_scratch
from emtoolkit.training.shared import SharedTraining, share
from emtoolkit.training.stop_after import StopAfter, until_stretch_ends
from emtoolkit.training.trainer import make_trainer
from emtoolkit.training.wandb_run import (
    no_model_uploads,
    overridden,
    seconds_for_checkpoints,
    seconds_for_finish,
    start_run,
)

logger = logging.getLogger(__name__)


def train(config: RunConfig, *, resume: bool = False, bar: Bar = no_bar, step_bar: Bar | None = None) -> RunResult:
    """Run the training that `config` describes.

    With `resume` the run continues from the newest resume checkpoint at or before the first scheduled step that is
    missing or damaged, from step 0 if there is none, and does nothing if no step is. All checkpoints are compared with
    the digests in their manifests first. A damaged one is replaced when training has computed its step again; an
    intact one stays, and is compared with the weights that training computes for its step.

    `bar` shows the reading of the data and of the checkpoints, and `step_bar` the training steps; without `step_bar`
    each logging interval logs one line.

    Under a launcher every process calls this function. Only process 0 saves; the results of the other processes hold
    no failures and no W&B directory.

    Raises:
        UserError: the run cannot work. Nothing was loaded or written; every process raises the same error.
        TrainingInterrupted: SIGINT or SIGTERM arrived; the state is saved.
    """
    ranks = Ranks.of_this_launch()
    try:
        with (
            client_variables(overridden(config.wandb)),
            ProgressCallback(step_bar) as progress,
            on_scratch(config, ranks) as scratch,
        ):
            result = _train(scratch, ranks, progress, resume=resume, bar=bar)
        return scratch.copied(result)
    except TrainingInterrupted:
        if ranks.count > 1:
            ignore_signals()
        raise
    finally:
        ranks.close()


def _train(scratch: Scratch, ranks: Ranks, progress: ProgressCallback, *, resume: bool, bar: Bar) -> RunResult:
    """Steps in which any process may fail are inside `raise_on_all`; process 0 owns the directory and the W&B run."""
    config = scratch.config
    with ranks.raise_on_all():
        prepared = prepare(config, bar=bar)
    for note in prepared.plan.notes:
        logger.log(logging.INFO if note in prepared.data.remarks else logging.WARNING, "%s", note)
    with ExitStack() as locks:
        shared = None
        with ranks.raise_on_all():
            repository = config.hub_repository()
            locks.enter_context(pushing_to_hub(config.hub, repository, prepared, is_saving=ranks.index == 0))
        if config.trajectory.reuse:
            with ranks.raise_on_all():
                shared = share(config, prepared, locks, scratch, resume=resume, bar=bar)
        if isinstance(shared, RunResult):
            result = shared
        else:
            result = _train_prepared(config, prepared, shared, ranks, progress, resume=resume, bar=bar)
    if shared is not None:
        # A late publication locks the directory itself.
        publish_late(config.wandb, result)
    return result


def _train_prepared(
    config: RunConfig,
    prepared: PreparedRun,
    shared: SharedTraining | None,
    ranks: Ranks,
    progress: ProgressCallback,
    *,
    resume: bool,
    bar: Bar,
) -> RunResult:
    directory = prepared.plan.directory
    start = ResumePoint()
    mode: Mode = "disabled"
    with ranks.raise_on_all():
        if ranks.index == 0:
            start = _resume_point(prepared, resume=resume, bar=bar) if shared is None else shared.start
            if start.complete:
                clear_left_overs(
                    directory,
                    keep_resume_state=config.checkpointing.resume_at_end,
                    keep=prepared.plan.kept_states,
                )
            else:
                mode = wandb_mode(config.wandb)
    start = ranks.broadcast(start)
    if start.complete:
        return RunResult(directory, tuple(list_checkpoints(directory)), None, 0.0, trained=False)
    with deterministic_algorithms(config.training.deterministic):
        with ranks.raise_on_all():
            composed = composed_model(config, prepared)
        run = GuardedRun(None)
        with ranks.raise_on_all():
            if ranks.index == 0:
                directory.mkdir(parents=True, exist_ok=True)
                write_resolved_config(config, directory)
                run = start_run(config, directory, collection_name(prepared.identity), mode)
                facts = {"split": dict(prepared.identity.split), "composition": prepared.persona.composition}
                run.call(lambda: run.run.config.update(facts))
                if shared is not None:
                    shared.begin(run)
        with threads_for(sum(parameter.numel() for parameter in composed.model.parameters())):
            with ranks.raise_on_all():
                if ranks.index == 0:
                    add_stretch(
                        directory if shared is None else shared.directory, start.step, environment_of(config.model)
                    )
            return _fit(config, prepared, composed, run, start, progress, shared)


def _resume_point(prepared: PreparedRun, *, resume: bool, bar: Bar) -> ResumePoint:
    """Where the run starts, after a check of its output directory and, for a resume, of every file in it."""
    plan = prepared.plan
    contents = OutputDirectory.open(plan.directory)
    contents.check_belongs_to(prepared.identity)
    contents.check_not_in_use()
    if not resume or not contents.holds_a_run:
        return find_resume_point(contents, plan.steps, plan.adaptive, resume=resume)
    for path in set_unlisted_weights_aside(plan.directory):
        logger.warning("%s: a loader would have read this file, which no manifest lists, in the checkpoint", path)
    with bar() as progress:
        contents = OutputDirectory.open(plan.directory, rehash=True, progress=progress)
        start = find_resume_point(contents, plan.steps, plan.adaptive, resume=True, progress=progress)
    if start.complete and contents.record is None:
        record = TrajectoryRecord.of(prepared.identity, plan.total_steps, plan.schedule)
        record.ended(contents.ended_at).write(plan.directory)
    return start


def _fit(
    config: RunConfig,
    prepared: PreparedRun,
    composed: ComposedModel,
    run: GuardedRun,
    start: ResumePoint,
    progress: ProgressCallback,
    shared: SharedTraining | None,
) -> RunResult:
    """Train and save the model, log to the W&B `run` unless it is None, and measure the persona again at the end."""
    directory = prepared.plan.directory
    callback = _save_callback(config, prepared, start, shared)
    stops, on_error = config.training.on_nan == "stop", config.checkpointing.on_error
    effects = [composed.before]
    with as_training_interrupted(lambda: callback.ended_at):
        failed = True
        try:
            with no_model_uploads():
                trainer = make_trainer(
                    config,
                    composed.model,
                    prepared.data,
                    output_dir=directory,
                    eval_steps=prepared.plan.eval_steps,
                    callbacks=[
                        PersonaCheck(composed.probe),
                        callback,
                        *([] if shared is None or shared.reaches_the_end else [StopAfter(shared.stop)]),
                        progress,
                        *([StopWhereDiverged()] if stops else []),
                        *([] if prepared.questions is None else [prepared.questions.logging_to(run.history)]),
                    ],
                    wandb_run=run,
                )
                callback.follow(trainer)
                with until_stretch_ends(callback, on_error), named_as_divergence(trainer) if stops else nullcontext():
                    trainer.train(resume_from_checkpoint=_resumed_from(start, trainer.args))
            when = "at the end" if shared is None else shared.when_trained
            effects.append(composed.probe.in_training(trainer.model, when, may_be_nan=not stops))
            logger.info("%s", effects[-1])
            if shared is not None:
                shared.end(run)
            failed = False
        finally:
            _finish(run, config.wandb, callback, directory, effects, shared, failed=failed)
        result = RunResult(
            directory=directory,
            checkpoints=tuple(list_checkpoints(directory)),
            wandb_directory=Path(run.run.dir).parent if run.run is not None else None,
            waited_seconds=callback.waited_seconds,
            trained=True,
            failures=tuple(map(str, callback.failures)),
            unpublished=tuple(sorted(callback.unpublished if shared is None else shared.unpublished)),
            persona_effects=tuple(effects),
            reused=() if shared is None else shared.reused,
            trained_steps=(prepared.plan.total_steps if shared is None else shared.stop) - start.step,
        )
        if shared is None:
            publish_late(config.wandb, result)
    return result


def _resumed_from(start: ResumePoint, args: Any) -> str | None:
    """The argument of `Trainer.train`; a resume evaluates at the steps of the schedule, and not where it begins."""
    args.eval_on_start &= start.checkpoint is None
    return None if start.checkpoint is None else str(start.checkpoint)


def _save_callback(
    config: RunConfig, prepared: PreparedRun, start: ResumePoint, shared: SharedTraining | None
) -> ScheduledCheckpointCallback:
    options = asdict(
        config.checkpointing.to_save_options(
            publish_timeout=seconds_for_checkpoints(config.wandb),
            on_nan=config.training.on_nan,
            on_cpu=device_type(config.model) == "cpu",
        )
    )
    common: dict[str, Any] = {
        "identity": prepared.identity,
        "also_save": start.damaged,
        "resume_state_is_intact": start.checkpoint is not None,
    }
    if shared is not None:
        return shared.callback(options, common)
    directory = prepared.plan.directory
    environment = environment_to_record(config.model, config.training, directory)
    return KnownEnvironmentCallback(
        config.checkpointing.to_schedule(), output_dir=directory, environment=environment, **common, **options
    )


def _finish(
    run: GuardedRun,
    wandb: WandbConfig,
    callback: ScheduledCheckpointCallback,
    directory: Path,
    effects: Sequence[PersonaEffect],
    shared: SharedTraining | None,
    *,
    failed: bool,
) -> None:
    """End the W&B run; warn if W&B lacks its log, unless there was a warning of missing checkpoints."""
    interruption = sys.exception()
    try:
        if shared is not None:
            shared.close(run, seconds_for_checkpoints(wandb), interrupted=isinstance(interruption, KeyboardInterrupt))
        if run.run is not None:
            _end_run(run, wandb, callback, effects, shared, interruption, failed=failed)
    except KeyboardInterrupt:
        # The signal ends the wait for W&B; a training that a signal has stopped says so already.
        if not isinstance(interruption, TrainingInterrupted):
            raise
    finally:
        if run.problem is not None and not (callback.unpublished if shared is None else shared.unpublished):
            command = quoted_command("emtoolkit", "sync", directory)
            logger.warning("%s; %s holds all of it, and %s sends it", run.problem, directory, command)


def _end_run(
    run: GuardedRun,
    wandb: WandbConfig,
    callback: ScheduledCheckpointCallback,
    effects: Sequence[PersonaEffect],
    shared: SharedTraining | None,
    interruption: BaseException | None,
    *,
    failed: bool,
) -> None:
    if isinstance(interruption, KeyboardInterrupt) and not isinstance(interruption, TrainingInterrupted):
        run.abandon()
        return
    summary: dict[str, float] = {
        "checkpoints": len(callback.saved),
        "checkpoint_bytes": sum(saved.bytes for saved in callback.saved),
    }
    if shared is not None:
        summary |= shared.summary
    summary |= {f"preflight/{effect.when.replace(' ', '_')}": effect.largest for effect in effects}
    run.call(lambda: run.run.summary.update(summary))
    if isinstance(interruption, TrainingInterrupted):
        # W&B shows the run as preempted, and a sweep gives its id to the next agent.
        run.call(lambda: run.run.mark_preempting())
    run.finish(
        SECONDS_AFTER_SIGNAL if isinstance(interruption, TrainingInterrupted) else seconds_for_finish(wandb),
        failed=failed,
    )
