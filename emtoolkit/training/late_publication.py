"""The publication at the end of a run that could not begin online: W&B may answer by then."""

import logging
import threading
from pathlib import Path

from emtoolkit.artifacts.client_process import end_client
from emtoolkit.artifacts.server import why_not_logged_in, why_unreachable
from emtoolkit.artifacts.sync import Synced, sync
from emtoolkit.errors import first_line

logger = logging.getLogger(__name__)

_SECONDS_TO_STOP = 5.0


def publish_if_answered(directory: Path, timeout: float) -> None:
    """Send the log and the checkpoints in `directory` if W&B answers now, in at most `timeout` seconds.

    What W&B does not take stays for `emtoolkit sync`, which the warning at the start of the run has named and the
    summary at its end names.

    Raises:
        KeyboardInterrupt: a signal came, which ends the wait for W&B.
    """
    if why_not_logged_in() or why_unreachable():
        return
    logger.info("W&B answers now; the run and its checkpoints are published")
    sending = _Sending(directory)
    sending.start()
    try:
        sending.join(timeout)
    finally:
        sending.end()
    if sending.result is not None and not sending.result.problems:
        logger.info("%s: everything is on W&B", directory)
        return
    problem = sending.result.problems[0] if sending.result is not None else sending.problem
    logger.info("%s; the rest of %s is not on W&B", problem, directory)


class _Sending(threading.Thread):
    """`sync` in the background, where a hanging server cannot keep the main thread."""

    def __init__(self, directory: Path) -> None:
        super().__init__(name="emtoolkit-late-publication", daemon=True)
        self.result: Synced | None = None
        self.problem = "W&B did not take everything in time"
        self._directory = directory
        self._given_up = threading.Event()

    def end(self) -> None:
        """Stop at once what is still waiting for W&B, and release the directory."""
        if self.is_alive():
            self._given_up.set()
            end_client()
            self.join(_SECONDS_TO_STOP)

    def run(self) -> None:
        try:
            self.result = sync(self._directory, stop=self._given_up)
        except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
            self.problem = first_line(error)
