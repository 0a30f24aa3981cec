"""The end of a W&B run: the server is asked whether it holds the run's log."""

from contextlib import suppress
from typing import Any

from emtoolkit.checkpoints.publications import WandbRun
from emtoolkit.errors import first_line


def finish_run(run: Any, timeout: float, *, failed: bool) -> str | None:
    """End `run` and check within `timeout` seconds that W&B holds its log; the problem if W&B does not, else None.

    The client reports success even where the server refused the log, so the server is asked for the run's state.
    """
    import wandb

    log = WandbRun.of(run)
    offline, path = run.offline, str(run.path)
    try:
        run.finish(exit_code=int(failed))
    except TimeoutError:
        return "W&B did not take the end of the run's log in time"
    if offline:
        # The client returns before its process has written the end of the log, and that process ends with this one.
        with suppress(SystemExit):  # raised if the process has not ended well; the log is complete all the same
            wandb.teardown()
        return None
    if problem := _not_on_server(path, timeout):
        return problem
    log.mark_synced()
    return None


def _not_on_server(path: str, timeout: float) -> str | None:
    import wandb

    try:
        # Two requests in the second half of the time.
        state = wandb.Api(timeout=max(1, int(timeout / 4))).run(path).state
    except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
        return f"W&B could not be asked for the run ({first_line(error)})"
    return f"W&B lacks the end of the run's log (to W&B the run is {state})" if state == "running" else None
