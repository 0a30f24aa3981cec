"""The W&B run of one training: offline unless the user asks for online, and never a reason for training to wait.

Every wait of the W&B client that has a setting is bounded here. A server that does not answer costs seconds at the
start and `publish_timeout` at the end.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from emtoolkit.artifacts.server import client_limits, why_not_logged_in, why_unreachable
from emtoolkit.checkpoints.publications import WandbRun
from emtoolkit.config.sections import RunConfig, WandbConfig
from emtoolkit.errors import ConfigError, first_line, nearest

logger = logging.getLogger(__name__)

Mode = Literal["offline", "online", "disabled"]
_MODES: dict[str, Mode] = {
    "offline": "offline",
    "online": "online",
    "disabled": "disabled",
    # Older names that W&B still accepts.
    "dryrun": "offline",
    "run": "online",
}
_TAG_LIMIT = 64

# The fraction of `publish_timeout` that is reserved for the run's own log; checkpoints get the rest.
_LOG_FRACTION = 1 / 3
# The variable that makes the Trainer's W&B callback upload checkpoints.
_LOG_MODEL = "WANDB_LOG_MODEL"


def wandb_mode(wandb: WandbConfig, environment: Mapping[str, str] = os.environ) -> Mode:
    """`wandb.mode`, else `$WANDB_MODE`, else online under a W&B sweep agent and offline elsewhere.

    Without a login, or if the server does not answer, online becomes offline with a warning.

    Raises:
        ConfigError: `$WANDB_MODE` is not a W&B mode, or `wandb.require_online` is true and the run cannot be online.
    """
    default = "online" if environment.get("WANDB_SWEEP_ID") else "offline"
    name = wandb.mode or environment.get("WANDB_MODE") or default
    if (mode := _MODES.get(name)) is None:
        raise ConfigError(f"WANDB_MODE: {name!r} is not one of {', '.join(_MODES)}{nearest(name, _MODES)}")
    if mode != "online":
        if wandb.require_online:
            raise ConfigError(f"wandb.require_online: true, and the mode is {mode}; set wandb.mode to online")
        return mode
    if reason := why_not_logged_in():
        return _offline_instead(wandb, f"W&B has no key ({reason})", "; 'wandb login' changes that")
    if reason := why_unreachable():
        return _offline_instead(wandb, f"W&B does not answer ({reason})")
    return mode


def start_run(config: RunConfig, directory: Path, group: str, mode: Mode) -> Any:
    """Start the W&B run of a training that writes to `directory`, named as the directory; None if W&B is disabled.

    `train/global_step` is the axis of every metric: W&B's own step counts calls, not optimizer steps. A run that
    cannot start online is offline.

    Raises:
        ConfigError: the run cannot start online, and `wandb.require_online` is true.
    """
    import wandb

    if mode == "disabled":
        return None
    chosen = {
        "persona": Path(config.persona).stem,
        "dataset": config.dataset_name,
        "schedule": str(config.checkpointing.to_schedule()),
    }
    # A W&B sweep determines the project of its runs.
    in_sweep = mode == "online" and bool(os.environ.get("WANDB_SWEEP_ID"))
    project: dict[str, Any] = {} if in_sweep else {"project": config.wandb.project, "entity": config.wandb.entity}
    arguments: dict[str, Any] = project | {
        "name": directory.name,
        "group": config.wandb.group or group,
        "tags": [value[:_TAG_LIMIT] for value in (*chosen.values(), *config.wandb.tags)],
        # Keys at the top level become columns of W&B's table and axes of its plots.
        "config": chosen | {"seed": config.seed, "emtoolkit": config.model_dump(mode="json")},
        "dir": os.environ.get("WANDB_DIR") or str(directory),
    }
    # The other half is for the request that asks the server what it holds.
    finish_limits = {"finish_timeout": max(1.0, seconds_for_finish(config.wandb) / 2), "finish_timeout_raises": True}
    limits = client_limits() | finish_limits if mode == "online" else {}
    try:
        run = wandb.init(mode=mode, settings=wandb.Settings(quiet=True, **limits), **arguments)
    except (wandb.errors.Error, TimeoutError) as error:
        if mode != "online":
            raise
        _offline_instead(config.wandb, f"W&B did not begin the run ({first_line(error)})")
        run = wandb.init(mode="offline", settings=wandb.Settings(quiet=True), **arguments)
    run.define_metric("train/global_step")
    run.define_metric("*", step_metric="train/global_step", step_sync=True)
    return run


@contextmanager
def no_model_uploads() -> Iterator[None]:
    """Keep the Trainer's own W&B callback from uploading checkpoints a second time, named by epoch."""
    before = os.environ.get(_LOG_MODEL)
    os.environ[_LOG_MODEL] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_LOG_MODEL]
        else:
            os.environ[_LOG_MODEL] = before


def finish_run(run: Any, timeout: float, *, failed: bool) -> str | None:
    """End `run` and check within `timeout` seconds that W&B holds its log; the problem if W&B does not, else None.

    The client reports success even where the server refused the log, so the server is asked for the run's state.
    """
    log = WandbRun.of(run)
    offline, path = run.offline, str(run.path)
    try:
        run.finish(exit_code=int(failed))
    except TimeoutError:
        return "W&B did not take the end of the run's log in time"
    if offline:
        return None
    if problem := _not_on_server(path, timeout):
        return problem
    log.mark_synced()
    return None


def seconds_for_checkpoints(wandb: WandbConfig) -> float:
    """The part of `publish_timeout` for uploads of checkpoints after the last step."""
    return wandb.publish_timeout * (1 - _LOG_FRACTION)


def seconds_for_finish(wandb: WandbConfig) -> float:
    """The part of `publish_timeout` for the upload of the run's log, after the checkpoints."""
    return wandb.publish_timeout * _LOG_FRACTION


def _not_on_server(path: str, timeout: float) -> str | None:
    import wandb

    try:
        # Two requests in the second half of the time.
        state = wandb.Api(timeout=max(1, int(timeout / 4))).run(path).state
    except (wandb.errors.Error, TimeoutError, ValueError) as error:
        return f"W&B could not be asked for the run ({first_line(error)})"
    return f"W&B lacks the end of the run's log (to W&B the run is {state})" if state == "running" else None


def _offline_instead(wandb: WandbConfig, reason: str, advice: str = "") -> Mode:
    if wandb.require_online:
        raise ConfigError(f"wandb.require_online: true, and {reason}{advice}")
    logger.warning("%s, so this run is logged offline%s", reason, advice or "; 'emtoolkit sync' publishes it later")
    return "offline"
