"""The W&B run of one training: offline unless the user asks for online, and never a reason for training to wait.

Every wait of the W&B client that has a setting is bounded here. A server that does not answer costs seconds at the
start and `publish_timeout` at the end.
"""

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.attached_run import define_training_axis
from emtoolkit.artifacts.client_process import end_client
from emtoolkit.artifacts.client_variables import check_client_variables
from emtoolkit.artifacts.guarded_run import GuardedRun
from emtoolkit.artifacts.names import RUN_NAME, RUN_TAG
from emtoolkit.artifacts.run_history import PART, RunHistory, find_run, history_of
from emtoolkit.artifacts.run_mode import Mode, check_may_be_offline, intended_mode, offline_instead
from emtoolkit.artifacts.server import client_limits
from emtoolkit.checkpoints.publications import WandbRun, add_run
from emtoolkit.config.sections import RunConfig, WandbConfig
from emtoolkit.errors import first_line
from emtoolkit.launch import SWEEP_VARIABLES
from emtoolkit.paths import SCRATCH, out_of_scratch
from emtoolkit.shell_command import quoted_command
from emtoolkit.training.run_part import next_part

logger = logging.getLogger(__name__)

# W&B's environment variables for the keys of the config.
_VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "tags": "WANDB_TAGS",
    "mode": "WANDB_MODE",
}

# A full disk has room for an empty file.
_BYTES_OF_PROBE = 64 * 1024

# The fraction of `publish_timeout` that is reserved for the run's own log; checkpoints get the rest.
_LOG_FRACTION = 1 / 3
# The variable that makes the Trainer's W&B callback upload checkpoints.
_LOG_MODEL = "WANDB_LOG_MODEL"


def start_run(config: RunConfig, directory: Path, group: str, mode: Mode) -> GuardedRun:
    """Start the W&B run of a training that writes to `directory`, named as the directory; no run if W&B is disabled.

    A run that cannot start online is offline. If W&B's client cannot start at all, training goes on without a run.

    Raises:
        ConfigError: the run cannot start online, and `wandb.require_online` is true.
    """
    if mode == "disabled":
        return GuardedRun(None)
    arguments = _arguments(config, directory, group, mode)
    not_online = ""
    if mode == "online":
        # The other half is for the request that asks the server what it holds.
        finish_seconds = max(1.0, seconds_for_finish(config.wandb) / 2)
        limits = client_limits() | {"finish_timeout": finish_seconds, "finish_timeout_raises": True}
        try:
            return _begin(mode, limits, arguments, directory)
        except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
            end_client()
            not_online = f"W&B did not begin the run ({first_line(error)})"
            check_may_be_offline(config.wandb, not_online)
    try:
        run = _begin("offline", {}, arguments, directory)
    except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
        logger.warning(
            "W&B's client cannot log this run (%s); training goes on without it, and %s publishes the checkpoints",
            first_line(error),
            quoted_command("emtoolkit", "sync", directory),
        )
        end_client()
        return GuardedRun(None)
    if not_online:
        offline_instead(config.wandb, not_online)
    return run


def _begin(mode: Mode, limits: Mapping[str, Any], arguments: Mapping[str, Any], directory: Path) -> GuardedRun:
    """Start the run, or continue the run of the earlier parts of this training."""
    import wandb

    part = next_part(directory, arguments, mode)
    run = wandb.init(mode=mode, settings=wandb.Settings(quiet=True, **limits), **{**arguments, **part.arguments})
    history = None
    if part.may_exist:
        history = history_of(find_run(run.path)) if run.resumed else RunHistory()
    guarded = GuardedRun(run, history)
    # The record is first: W&B never names a part that the directory does not.
    log = WandbRun.of(run)
    add_run(directory, log)
    guarded.call(lambda: run.config.update({PART: log.name}, allow_val_change=True))  # type: ignore[no-untyped-call]
    guarded.call(lambda: define_training_axis(run))
    return guarded


def _arguments(config: RunConfig, directory: Path, group: str, mode: Mode) -> dict[str, Any]:
    """The arguments of `wandb.init` that describe the run."""
    chosen = {
        "persona": Path(config.persona).stem,
        "dataset": config.dataset_name,
        "schedule": str(config.checkpointing.to_schedule()),
    }
    place = {} if _is_placed(mode) else chosen_place(config.wandb)
    tags = _tags(config.wandb)
    return place | {
        "name": RUN_NAME.fit(os.environ.get("WANDB_NAME") or directory.name),
        "group": RUN_NAME.fit(_chosen(config.wandb, "group") or group),
        "tags": list(dict.fromkeys(RUN_TAG.fit(tag) for tag in (*chosen.values(), *tags) if tag.strip())),
        # Keys at the top level become columns of W&B's table and axes of its plots.
        "config": chosen | {"seed": config.seed, "emtoolkit": _shown_config(config)},
        "dir": _log_directory(directory),
    }


def _shown_config(config: RunConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    if os.environ.get(SCRATCH):
        # The scratch disk is gone after the run.
        values["output_dir"] = str(out_of_scratch(config.directory()))
        values["trajectory"]["store"] = str(out_of_scratch(Path(config.trajectory.store)))
    return values


def _log_directory(directory: Path) -> str:
    """`$WANDB_DIR`, or `directory` if nothing can be written there: W&B's client would take a temporary directory."""
    chosen = os.environ.get("WANDB_DIR")
    if not chosen:
        return str(directory)
    probe = Path(chosen) / f".emtoolkit-{secrets.token_hex(4)}"
    try:
        Path(chosen).mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(_BYTES_OF_PROBE))
    except OSError as error:
        logger.warning(
            "WANDB_DIR: %s cannot be written (%s), so W&B's log is written to %s, from where %s sends it",
            chosen,
            error.strerror or error,
            directory,
            quoted_command("emtoolkit", "sync", directory),
        )
        return str(directory)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return chosen


def check_wandb_variables(wandb: WandbConfig) -> None:
    """Check W&B's variables where the config leaves anything to them.

    Raises:
        ConfigError: W&B refuses one of them, or `$WANDB_MODE` is not a W&B mode.
    """
    if intended_mode(wandb) != "disabled":
        check_client_variables(ignored=overridden(wandb))


def overridden(wandb: WandbConfig) -> frozenset[str]:
    """W&B's variables that the config replaces; those of a W&B sweep's place win.

    Raises:
        ConfigError: `$WANDB_MODE` is not a W&B mode.
    """
    keys = {key for key in _VARIABLES if _is_set(wandb, key)}
    if _is_placed(intended_mode(wandb)):
        keys -= {"project", "entity"}
    return frozenset(_VARIABLES[key] for key in keys)


def _is_placed(mode: Mode) -> bool:
    """Whether a W&B sweep determines the project of its runs."""
    return mode == "online" and bool(os.environ.get("WANDB_SWEEP_ID"))


def chosen_place(wandb: WandbConfig) -> dict[str, Any]:
    """The project and the entity of the run; None as entity means the default entity of the account."""
    return {"project": _chosen(wandb, "project"), "entity": _chosen(wandb, "entity")}


def _tags(wandb: WandbConfig) -> list[str]:
    tags = _chosen(wandb, "tags")
    return tags.split(",") if isinstance(tags, str) else list(tags)


def _chosen(wandb: WandbConfig, key: str) -> Any:
    """The value of `key`: that of the sweep, or what the config or a flag says, or W&B's variable, or the default."""
    if of_sweep := os.environ.get(SWEEP_VARIABLES.get(_VARIABLES[key], "")):
        return of_sweep
    value = getattr(wandb, key)
    return value if _is_set(wandb, key) else os.environ.get(_VARIABLES[key]) or value


def _is_set(wandb: WandbConfig, key: str) -> bool:
    return key in wandb.model_fields_set and getattr(wandb, key) is not None


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
