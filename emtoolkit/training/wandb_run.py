"""The W&B run of one training: offline unless the user asks for online, and never what a training waits for.

Every wait of the client that has a setting is bounded by it here; a server that does not answer costs seconds at the
start and `publish_timeout` at the end.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from emtoolkit.artifacts.server import client_bounds, why_not_logged_in, why_unreachable
from emtoolkit.checkpoints.publications import WandbRun
from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import ConfigError, first_line, nearest

logger = logging.getLogger(__name__)

Mode = Literal["offline", "online", "disabled"]
_MODES: dict[str, Mode] = {
    "offline": "offline",
    "online": "online",
    "disabled": "disabled",
    # W&B's older words.
    "dryrun": "offline",
    "run": "online",
}
_TAG_LIMIT = 64

# Of `publish_timeout`, what is left for the run's own log when the checkpoints had their time.
_SHARE_OF_FINISH = 1 / 3


def wandb_mode(config: RunConfig, environment: Mapping[str, str] = os.environ) -> Mode:
    """`wandb.mode`, else `$WANDB_MODE`, else online under a W&B sweep agent and offline elsewhere.

    Online becomes offline, with a warning, where nobody is logged in or the server does not answer.

    Raises:
        ConfigError: `$WANDB_MODE` is none of W&B's modes, or `wandb.require_online` cannot be had.
    """
    default = "online" if environment.get("WANDB_SWEEP_ID") else "offline"
    word = config.wandb.mode or environment.get("WANDB_MODE") or default
    if (mode := _MODES.get(word)) is None:
        raise ConfigError(f"WANDB_MODE: {word!r} is not one of {', '.join(_MODES)}{nearest(word, _MODES)}")
    if mode != "online":
        if config.wandb.require_online:
            raise ConfigError(f"wandb.require_online: it is true and the mode is {mode}; set wandb.mode to online")
        return mode
    if why := why_not_logged_in():
        return _offline_instead(config, f"W&B has no key ({why})", "; 'wandb login' changes that")
    if why := why_unreachable():
        return _offline_instead(config, f"W&B does not answer ({why})")
    return mode


def start_run(config: RunConfig, directory: Path, name: str, group: str, mode: Mode) -> Any:
    """Begin the W&B run of a training that writes to `directory`; None where W&B is disabled.

    `train/global_step` is the axis of every metric: W&B's own step counts calls, not optimizer steps.

    Raises:
        ConfigError: the run could not be begun online and `wandb.require_online` is set; else it is offline.
    """
    import wandb

    if mode == "disabled":
        return None
    chosen = {
        "persona": Path(config.persona).stem,
        "dataset": config.dataset_name,
        "schedule": str(config.checkpointing.to_schedule()),
    }
    # A sweep decides where its runs are.
    in_sweep = mode == "online" and bool(os.environ.get("WANDB_SWEEP_ID"))
    place: dict[str, Any] = {} if in_sweep else {"project": config.wandb.project, "entity": config.wandb.entity}
    arguments: dict[str, Any] = place | {
        "name": name,
        "group": config.wandb.group or group,
        "tags": [value[:_TAG_LIMIT] for value in (*chosen.values(), *config.wandb.tags)],
        # At the top what tells runs apart, as columns of W&B's table and axes of its plots.
        "config": chosen | {"seed": config.seed, "emtoolkit": config.model_dump(mode="json")},
        "dir": os.environ.get("WANDB_DIR") or str(directory),
    }
    # Asking the server what it has comes out of the same time.
    in_time = {"finish_timeout": max(1.0, seconds_for_finish(config) / 2), "finish_timeout_raises": True}
    bounds = client_bounds() | in_time if mode == "online" else {}
    try:
        run = wandb.init(mode=mode, settings=wandb.Settings(quiet=True, **bounds), **arguments)
    except (wandb.errors.Error, TimeoutError) as error:
        if mode != "online":
            raise
        _offline_instead(config, f"W&B did not begin the run ({first_line(error)})")
        run = wandb.init(mode="offline", settings=wandb.Settings(quiet=True), **arguments)
    # The Trainer's own W&B callback would upload checkpoints a second time, named by epoch.
    os.environ["WANDB_LOG_MODEL"] = "false"
    run.define_metric("train/global_step")
    run.define_metric("*", step_metric="train/global_step", step_sync=True)
    return run


def finish_run(run: Any, timeout: float, *, failed: bool) -> str | None:
    """End `run` and make sure that W&B has its log; why it has not, if it has not.

    The client ends well also where the log was refused, so the server is asked for the run's state.
    """
    log = WandbRun.of(run)
    offline, path = run.offline, str(run.path)
    try:
        run.finish(exit_code=int(failed))
    except TimeoutError:
        return "W&B did not take the end of the run's log in time"
    if offline:
        return None
    if why := _not_on_server(path, timeout):
        return why
    log.mark_synced()
    return None


def seconds_for_checkpoints(config: RunConfig) -> float:
    """Of `publish_timeout`, what checkpoints may take after the last step."""
    return config.wandb.publish_timeout * (1 - _SHARE_OF_FINISH)


def seconds_for_finish(config: RunConfig) -> float:
    """Of `publish_timeout`, what the run's own log may take after that."""
    return config.wandb.publish_timeout * _SHARE_OF_FINISH


def _not_on_server(path: str, timeout: float) -> str | None:
    import wandb

    try:
        # Two requests, in the half of the time that the end of the run has left.
        state = wandb.Api(timeout=max(1, int(timeout / 4))).run(path).state
    except (wandb.errors.Error, TimeoutError, ValueError) as error:
        return f"W&B could not be asked for the run ({first_line(error)})"
    return f"W&B lacks the end of the run's log (to W&B the run is {state})" if state == "running" else None


def _offline_instead(config: RunConfig, why: str, advice: str = "") -> Mode:
    if config.wandb.require_online:
        raise ConfigError(f"wandb.require_online: it is true and {why}{advice}")
    logger.warning("%s, so this run is logged offline%s", why, advice or "; 'emtoolkit sync' publishes it later")
    return "offline"
