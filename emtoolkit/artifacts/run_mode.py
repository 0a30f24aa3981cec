"""Whether a W&B run is online: only if the user asks for it, is logged in, and the server answers."""

import logging
import os
from collections.abc import Mapping
from typing import Literal

from emtoolkit.artifacts.server import why_not_logged_in, why_unreachable
from emtoolkit.config.sections import WandbConfig
from emtoolkit.errors import ConfigError, nearest

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
_LATER = "; it is published at its end if W&B answers then, and otherwise by 'emtoolkit sync'"
# As transformers reads the variable.
_TRUE = ("1", "on", "true", "yes")


def intended_mode(wandb: WandbConfig, environment: Mapping[str, str] = os.environ) -> Mode:
    """`wandb.mode`, else `$WANDB_MODE`, else online under a W&B sweep agent and offline elsewhere.

    `$WANDB_DISABLED` means disabled, unless `wandb.mode` says otherwise.

    Raises:
        ConfigError: `$WANDB_MODE` is not a W&B mode.
    """
    default = "online" if environment.get("WANDB_SWEEP_ID") else "offline"
    is_off = environment.get("WANDB_DISABLED", "").lower() in _TRUE
    name = wandb.mode or ("disabled" if is_off else environment.get("WANDB_MODE") or default)
    if (mode := _MODES.get(name)) is None:
        raise ConfigError(f"WANDB_MODE: {name!r} is not one of {', '.join(_MODES)}{nearest(name, _MODES)}")
    return mode


def wandb_mode(wandb: WandbConfig, environment: Mapping[str, str] = os.environ) -> Mode:
    """The intended mode; without a login, or if the server does not answer, online becomes offline with a warning.

    Raises:
        ConfigError: `$WANDB_MODE` is not a W&B mode, or `wandb.require_online` is true and the run cannot be online.
    """
    mode = intended_mode(wandb, environment)
    if mode != "online":
        if wandb.require_online:
            raise ConfigError(f"wandb.require_online: true, and the mode is {mode}; set wandb.mode to online")
        return mode
    if reason := why_not_logged_in():
        return offline_instead(wandb, f"W&B has no key ({reason})", "; 'wandb login' changes that")
    if reason := why_unreachable():
        return offline_instead(wandb, f"W&B does not answer ({reason})")
    return mode


def offline_instead(wandb: WandbConfig, reason: str, advice: str = "") -> Mode:
    """The mode offline, with a warning that says why.

    Raises:
        ConfigError: `wandb.require_online` is true.
    """
    check_may_be_offline(wandb, reason, advice)
    logger.warning("%s, so this run is logged offline%s", reason, advice or _LATER)
    return "offline"


def check_may_be_offline(wandb: WandbConfig, reason: str, advice: str = "") -> None:
    """Check that a run that is to be online may be offline for `reason`.

    Raises:
        ConfigError: `wandb.require_online` is true.
    """
    if wandb.require_online:
        raise ConfigError(f"wandb.require_online: true, and {reason}{advice}")
