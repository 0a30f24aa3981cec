"""The push of a training's checkpoints to the hub while it runs (`hub.repo`)."""

from collections.abc import Iterator
from contextlib import contextmanager

from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import located
from emtoolkit.hub.background_push import BackgroundPush, PushedTrajectory
from emtoolkit.hub.repository_name import repository_name
from emtoolkit.saving.session import SECONDS_AFTER_SIGNAL
from emtoolkit.training.prepare import PreparedRun


def hub_repository(config: RunConfig) -> str | None:
    """The repository that the checkpoints go to; None if they are not pushed.

    Raises:
        CheckpointError: `hub.repo` is not the name of a repository.
    """
    name = config.hub_repository()
    if name is None:
        return None
    with located("hub.repo"):
        return repository_name(name)


@contextmanager
def pushing_to_hub(config: RunConfig, prepared: PreparedRun, *, is_saving: bool) -> Iterator[None]:
    """Push the run's checkpoints inside, in the process that saves them; wait for the hub at the end, within bounds.

    Raises:
        CheckpointError: `hub.repo` is not the name of a repository.
    """
    repository = hub_repository(config)
    if repository is None or not is_saving:
        yield
        return
    identity = prepared.identity
    pushed = PushedTrajectory(
        prepared.plan.directory, identity.fingerprint, identity.fingerprinted, repository, config.hub.private
    )
    push = BackgroundPush(pushed)
    patience = config.hub.push_timeout
    try:
        yield
    except KeyboardInterrupt:
        patience = min(patience, SECONDS_AFTER_SIGNAL)
        raise
    finally:
        push.close(patience)
