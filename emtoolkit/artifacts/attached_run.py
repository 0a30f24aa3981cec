"""A W&B run that goes on in this process, or a run of this process alone, without a trace of the process itself."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from emtoolkit.artifacts.client_process import end_client
from emtoolkit.artifacts.server import client_limits

# The time limit for W&B to finish the run after the last artifact, in seconds.
_FINISH_SECONDS = 60


def define_training_axis(run: Any) -> None:
    """Make `train/global_step` the axis of every metric of a training: W&B's own step counts calls, not steps."""
    run.define_metric("train/global_step")
    run.define_metric("*", step_metric="train/global_step", step_sync=True)


def active_run() -> Any:
    """The W&B run that the program has started, or None; a run in the mode `disabled` logs nothing."""
    import wandb

    return None if wandb.run is None or wandb.run.disabled else wandb.run


@contextmanager
def attached_run(
    run_id: str | None,
    state: str | None,
    define_axis: Callable[[Any], None] = define_training_axis,
    *,
    failed: bool | None = None,
    **arguments: Any,
) -> Iterator[Any]:
    """Resume the W&B run `run_id`, whose state on W&B is `state`, without logging anything about this process.

    A run that W&B does not have (`state` None) is started; without an id a new one. `define_axis` defines the axes of
    its metrics, because a resumed run replaces the definitions on the server. `failed` says how the run
    ends, by default as its `state` says. `arguments` are those of `wandb.init`.

    Raises:
        Exception: whatever W&B's client raises.
    """
    import wandb

    is_failed = state in ("failed", "crashed", "killed", "preempted") if failed is None else failed
    with tempfile.TemporaryDirectory(prefix="emtoolkit-sync-") as scratch:
        try:
            run = wandb.init(
                id=run_id,
                resume="allow" if run_id else None,
                mode="online",
                dir=scratch,
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    finish_timeout=_FINISH_SECONDS,
                    x_disable_stats=True,
                    x_disable_meta=True,
                    save_code=False,
                    **client_limits(),
                ),
                **arguments,
            )
        except BaseException:
            # The client keeps the id of a run that it could not resume, and would refuse the next attempt as "in use".
            if wandb.run is None:
                end_client()
            raise
        try:
            if state is not None:
                define_axis(run)
            yield run
        except KeyboardInterrupt:
            # The signal ends the wait for W&B: the end of the run would wait once more.
            end_client()
            raise
        except BaseException:
            _finish(run, failed=is_failed)
            raise
        _finish(run, failed=is_failed)


def _finish(run: Any, *, failed: bool) -> None:
    try:
        run.finish(exit_code=int(failed))
    except KeyboardInterrupt:
        end_client()
        raise
