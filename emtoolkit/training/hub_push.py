"""The push of a training's checkpoints to the hub while it runs (`hub.repo`)."""

from collections.abc import Iterator
from contextlib import contextmanager

from emtoolkit.config.sections import HubConfig
from emtoolkit.hub.background_push import BackgroundPush, PushedTrajectory
from emtoolkit.saving.session import SECONDS_AFTER_SIGNAL
from emtoolkit.training.prepare import PreparedRun


@contextmanager
def pushing_to_hub(hub: HubConfig, repository: str | None, prepared: PreparedRun, *, is_saving: bool) -> Iterator[None]:
    """Push the run's checkpoints inside, in the process that saves them; wait for the hub at the end, within bounds.

    `repository` is the one of `hub.repo` with its placeholders filled in; None pushes nothing.
    """
    if repository is None or not is_saving:
        yield
        return
    identity = prepared.identity
    pushed = PushedTrajectory(
        prepared.plan.directory, identity.fingerprint, identity.fingerprinted, repository, hub.private
    )
    push = BackgroundPush(pushed)
    patience = hub.push_timeout
    try:
        yield
    except KeyboardInterrupt:
        patience = min(patience, SECONDS_AFTER_SIGNAL)
        raise
    finally:
        push.close(patience)
