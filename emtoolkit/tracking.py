"""The W&B run of one training: offline unless the user asks for online and is logged in."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emtoolkit.config import RunConfig
from emtoolkit.errors import ConfigError, nearest

logger = logging.getLogger(__name__)

_MODES = ("offline", "online", "disabled")


def wandb_mode(config: RunConfig, environment: Mapping[str, str] = os.environ) -> str:
    """`wandb.mode`, else `$WANDB_MODE`, else offline; online becomes offline where nobody is logged in.

    Raises:
        ConfigError: `$WANDB_MODE` is none of W&B's modes.
    """
    mode = config.wandb.mode or environment.get("WANDB_MODE") or "offline"
    mode = "offline" if mode == "dryrun" else mode
    if mode not in _MODES:
        raise ConfigError(f"WANDB_MODE: {mode!r} is not one of {', '.join(_MODES)}{nearest(mode, _MODES)}")
    if mode == "online" and not _logged_in():
        logger.warning("nobody is logged in to W&B, so this run is logged offline; 'wandb login' changes that")
        return "offline"
    return mode


def start_run(config: RunConfig, directory: Path, name: str, group: str, mode: str) -> Any:
    """Begin the W&B run of a training that writes to `directory`; None where W&B is disabled.

    `train/global_step` is the axis of every metric: W&B's own step counts calls, not optimizer steps.
    """
    import wandb

    # The Trainer's own W&B callback would upload checkpoints a second time, named by epoch.
    os.environ["WANDB_LOG_MODEL"] = "false"
    if mode == "disabled":
        return None
    run = wandb.init(
        project=config.wandb.project,
        entity=config.wandb.entity,
        name=name,
        group=config.wandb.group or group,
        tags=[config.persona, config.dataset, *config.wandb.tags],
        config={"emtoolkit": config.model_dump(mode="json")},
        dir=os.environ.get("WANDB_DIR") or str(directory),
        mode="online" if mode == "online" else "offline",
        settings=wandb.Settings(quiet=True),
    )
    run.define_metric("train/global_step")
    run.define_metric("*", step_metric="train/global_step", step_sync=True)
    return run


def _logged_in() -> bool:
    import wandb
    from wandb.sdk.lib import wbauth

    if os.environ.get("WANDB_API_KEY"):
        return True
    return wbauth.read_netrc_auth(host=wandb.setup().settings.base_url) is not None
