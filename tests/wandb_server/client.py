"""The end of W&B's client in this process."""

import sys
import threading


def end_client(within: float) -> None:
    """Finish the run and stop the client's service process, which is killed after `within` seconds.

    Without that limit the client may wait a minute for its next attempt to reach a server.
    """
    if "wandb" not in sys.modules:
        return
    import psutil  # type: ignore[import-untyped]
    import wandb
    from wandb.sdk.lib.module import unset_globals

    killed = threading.Event()

    def kill_service() -> None:
        killed.set()
        for child in psutil.Process().children():
            if child.name() == "wandb-core":
                child.kill()

    timer = threading.Timer(within, kill_service)
    timer.start()
    for end in (wandb.finish, wandb.teardown):
        try:
            end()
        except Exception:
            if not killed.is_set():
                raise
    timer.cancel()
    unset_globals()  # type: ignore[no-untyped-call]
