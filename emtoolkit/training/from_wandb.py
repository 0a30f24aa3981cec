"""A trajectory on W&B or on the hub as a local directory that can be refined: its checkpoints, and their config."""

from pathlib import Path

from pydantic import ValidationError

from emtoolkit.checkpoints.declared import DeclaredManifest
from emtoolkit.checkpoints.layout import RESOLVED_CONFIG
from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import CheckpointError, ConfigError, UserError, first_line
from emtoolkit.hub.names import is_hub
from emtoolkit.progress import Bar, no_bar
from emtoolkit.training.resolved_config import in_directory, write_resolved_config
from emtoolkit.trajectory import Trajectory


def downloaded_trajectory(reference: str, to: Path, *, config: bool, bar: Bar = no_bar) -> Path:
    """Download the trajectory `reference` to `to`, except what is there, and write the config of its run beside it.

    The hub has no config of a run.

    Without `config` no config is asked for, because the user names one.

    Raises:
        CheckpointError: `reference` is no collection, or a checkpoint cannot be downloaded.
        ConfigError: W&B does not have the config of the run, or the config is not valid here.
    """
    trajectory = Trajectory.open(reference)
    if is_hub(reference):
        _check_can_be_trained_again(trajectory, to, config=config)
    with bar() as progress:
        trajectory.download(to, progress=progress)
    if config and not (to / RESOLVED_CONFIG).exists():
        newest = trajectory[-1].artifact
        if newest is None:
            raise CheckpointError(f"{reference}: W&B does not name the version of step {trajectory[-1].step}")
        write_resolved_config(in_directory(_config_of(newest), to), to)
    return to.absolute()


def _check_can_be_trained_again(trajectory: Trajectory, to: Path, *, config: bool) -> None:
    """Check, before all checkpoints are downloaded, that emtoolkit trained the trajectory, and that a config is known.

    Raises:
        CheckpointError: another tool trained it.
        ConfigError: nobody knows the config.
    """
    if isinstance(trajectory[0].manifest, DeclaredManifest):
        raise CheckpointError(
            f"{trajectory.name}: another tool trained these checkpoints, so no step can be made again"
        )
    if config and not (to / RESOLVED_CONFIG).exists():
        raise ConfigError(
            f"{trajectory.name}: the hub does not hold the config of the training; pass --config FILE with that config"
        )


def _config_of(artifact: str) -> RunConfig:
    """The config that the run of `artifact` has logged."""
    import wandb

    advice = "pass --config FILE with the config of the training"
    try:
        run = wandb.Api().artifact(artifact).logged_by()
        values = None if run is None else run.config.get("emtoolkit")
    except (wandb.errors.Error, ValueError, TimeoutError) as error:
        raise ConfigError(
            f"{artifact}: W&B did not give the config of its run ({first_line(error)}); {advice}"
        ) from None
    if values is None:
        raise ConfigError(f"{artifact}: W&B has no run of 'emtoolkit train' for this version; {advice}")
    try:
        return RunConfig.model_validate(values)
    except (ValidationError, UserError) as error:
        raise ConfigError(
            f"{artifact}: the config of its run is not valid here ({first_line(error)}); {advice}"
        ) from None
