"""The W&B run of an evaluation, which begins when the results are on disk and never costs them.

Every call with new results is a run of its own with the steps of that call. What cannot be sent now, offline or because
W&B fails, stays in `wandb-runs.json` for `emtoolkit sync`.
"""

import logging
import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from emtoolkit.artifacts.client_variables import check_client_variables
from emtoolkit.artifacts.guarded_run import GuardedRun
from emtoolkit.artifacts.run_mode import Mode, wandb_mode
from emtoolkit.artifacts.server import client_limits
from emtoolkit.checkpoints.publications import WandbRun
from emtoolkit.config.sections import WandbConfig
from emtoolkit.errors import CheckpointError, ConfigError, first_line, nearest
from emtoolkit.evaluation.results import EvaluationResult
from emtoolkit.evaluation.wandb_content import Content, place_of
from emtoolkit.evaluation.wandb_record import EvaluationRun, keep_run, read_runs, relative_log
from emtoolkit.evaluation.wandb_sync import IncompleteError, send
from emtoolkit.shell_command import quoted_command

logger = logging.getLogger(__name__)

_PROJECT = "emtoolkit"
# The time limit for the end of the run's log, in seconds.
_FINISH_SECONDS = 20.0


def chosen_mode(name: str | None) -> Mode:
    """The mode of the run: `name`, else `$WANDB_MODE`, else online under a W&B agent and offline elsewhere.

    Without a login, or if the server does not answer, online becomes offline with a warning.

    Raises:
        ConfigError: `name` or `$WANDB_MODE` is not a mode, or the value of a W&B variable is refused.
    """
    if name is not None and name not in get_args(Mode):
        raise ConfigError(f"--wandb: {name!r} is not one of {', '.join(get_args(Mode))}{nearest(name, get_args(Mode))}")
    mode = wandb_mode(WandbConfig.model_validate({"mode": name}))
    if mode != "disabled":
        check_client_variables()
    return mode


def log_evaluation(result: EvaluationResult, reference: str, mode: Mode) -> EvaluationRun | None:
    """Log `result`, the evaluation of the trajectory `reference`, to a W&B run; None if W&B is disabled.

    Results that a run holds already make no second run, except for a W&B agent, whose sweep expects one. A failure of
    W&B is one warning, and so is a full disk, on which no run is recorded; the result is complete without it.

    Raises:
        UserError: the results or the record of earlier runs cannot be read.
    """
    if mode == "disabled":
        return None
    content = Content.read(result.directory, reference, result.all_steps)
    digest = content.digest
    in_sweep = bool(os.environ.get("WANDB_SWEEP_ID"))
    known = [run for run in read_runs(result.directory) if run.digest == digest and not in_sweep]
    if known and (known[-1].sent or mode == "offline"):
        return known[-1]
    run_id = (os.environ.get("WANDB_RUN_ID") if in_sweep else None) or secrets.token_hex(4)
    entity, project = place_of(content.reference)
    project = project or os.environ.get("WANDB_PROJECT") or _PROJECT
    kept = known[-1] if known else EvaluationRun(run_id, digest, reference, content.steps, entity, project)
    try:
        keep_run(result.directory, kept)
    except CheckpointError as error:
        logger.warning(
            "W&B lacks this evaluation (%s); %s holds all of it, and the same command sends it", error, result.directory
        )
        return None
    try:
        return send(content, kept) if known else _log(content, kept, mode, in_sweep=in_sweep)
    except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
        directory = result.directory
        logger.warning(
            "W&B lacks this evaluation (%s); %s holds all of it, and %s sends it",
            first_line(error),
            directory,
            quoted_command("emtoolkit", "sync", directory),
        )
        return kept


def _log(content: Content, kept: EvaluationRun, mode: Mode, *, in_sweep: bool) -> EvaluationRun:
    """Log everything to a new run, or what an offline run can hold."""
    run = _begin(content, kept, mode, in_sweep=in_sweep)
    guarded = GuardedRun(run)
    log = WandbRun.of(run)
    kept = replace(
        kept,
        entity=log.entity or kept.entity,
        project=log.project or kept.project,
        log=relative_log(content.directory, log.log),
    )
    keep_run(content.directory, kept)
    try:
        content.log_curve(run)
        if not run.offline:
            content.use_checkpoints(run)
            content.log_files(run)
    except KeyboardInterrupt:
        guarded.abandon()
        raise
    except Exception:
        # The evaluation has not failed, whatever W&B does.
        guarded.finish(_FINISH_SECONDS, failed=False)
        raise
    guarded.finish(_FINISH_SECONDS, failed=False)
    if guarded.problem is not None:
        raise IncompleteError(guarded.problem)
    if run.offline:
        return kept
    kept = replace(kept, sent=True)
    keep_run(content.directory, kept)
    return kept


def _begin(content: Content, kept: EvaluationRun, mode: Mode, *, in_sweep: bool) -> Any:
    """Start the run."""
    import wandb

    # A W&B sweep determines the project of its runs.
    place = {} if in_sweep and mode == "online" else {"project": kept.project, "entity": kept.entity or None}
    arguments: dict[str, Any] = content.run_options() | place | {"id": kept.id, "dir": _run_directory(content)}
    quiet: dict[str, Any] = {"silent": True, "console": "off", "x_disable_stats": True, "save_code": False}
    limits = client_limits() | {"finish_timeout": _FINISH_SECONDS / 2, "finish_timeout_raises": True}
    settings = wandb.Settings(**quiet, **(limits if mode == "online" else {}))
    return wandb.init(mode=mode, settings=settings, **arguments)


def _run_directory(content: Content) -> str:
    """The directory of the run's files; W&B's client would choose another one if it cannot be written."""
    directory = Path(os.environ.get("WANDB_DIR") or content.directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f".emtoolkit-{secrets.token_hex(4)}"
    probe.touch()
    probe.unlink()
    return str(directory)
