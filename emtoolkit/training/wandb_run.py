"""The W&B run of one training: offline unless the user asks for online, and never a reason for training to wait.

Every wait of the W&B client that has a setting is bounded here. A server that does not answer costs seconds at the
start and `publish_timeout` at the end.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.attached_run import define_training_axis
from emtoolkit.artifacts.run_mode import Mode, offline_instead
from emtoolkit.artifacts.server import client_limits
from emtoolkit.config.sections import RunConfig, WandbConfig
from emtoolkit.errors import first_line

_TAG_LIMIT = 64

# The fraction of `publish_timeout` that is reserved for the run's own log; checkpoints get the rest.
_LOG_FRACTION = 1 / 3
# The variable that makes the Trainer's W&B callback upload checkpoints.
_LOG_MODEL = "WANDB_LOG_MODEL"


def start_run(config: RunConfig, directory: Path, group: str, mode: Mode) -> Any:
    """Start the W&B run of a training that writes to `directory`, named as the directory; None if W&B is disabled.

    A run that cannot start online is offline.

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
        offline_instead(config.wandb, f"W&B did not begin the run ({first_line(error)})")
        run = wandb.init(mode="offline", settings=wandb.Settings(quiet=True), **arguments)
    define_training_axis(run)
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


def seconds_for_checkpoints(wandb: WandbConfig) -> float:
    """The part of `publish_timeout` for uploads of checkpoints after the last step."""
    return wandb.publish_timeout * (1 - _LOG_FRACTION)


def seconds_for_finish(wandb: WandbConfig) -> float:
    """The part of `publish_timeout` for the upload of the run's log, after the checkpoints."""
    return wandb.publish_timeout * _LOG_FRACTION
