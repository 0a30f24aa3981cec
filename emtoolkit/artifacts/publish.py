"""Publication of saved checkpoints as versions of one W&B artifact, from a background thread.

A failure to publish never stops training: the publisher retries and reports at the end. A checkpoint that was not
published is complete on disk, and `publications.jsonl` does not list it as published.
"""

import logging
import threading
from collections import deque
from typing import Any

from emtoolkit.artifacts.client_process import ClientProcess
from emtoolkit.artifacts.destination import Destination
from emtoolkit.artifacts.publication import DamagedError, Publication
from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.storage.thread_priority import NETWORK, give_way

logger = logging.getLogger(__name__)

# The pauses between attempts, in seconds: during training, and after its end.
_PAUSES = (5.0, 15.0, 60.0, 300.0)
_PAUSE_AT_END = 1.0
_ATTEMPTS_AT_END = 3


class WandbPublisher:
    """Logs publications to one W&B run, in order, as versions of the collection of `destination`.

    A publication that failed is retried with growing pauses before later ones are tried.
    """

    def __init__(self, run: Any, destination: Destination) -> None:
        self._run = run
        self._destination = destination
        self._process = ClientProcess.current()
        self._pending: deque[Publication] = deque()
        self._failed_attempts = 0
        self._ending = False
        self._stopped = False
        # Whether equal versions that others made at the same time were looked for, after the last publication.
        self._tidied = False
        self._changed = threading.Condition()
        # The steps whose versions are no checkpoints any more.
        self._withdrawn: set[int] = set()
        # The steps that W&B has committed, or that the log of an offline run holds.
        self.published: list[int] = []
        self.failures: dict[int, str] = {}
        # The checkpoints whose files differ from their manifests, and how.
        self.damaged: dict[int, str] = {}
        # A daemon, so that a stalled connection does not keep the process alive.
        threading.Thread(target=self._work, name="emtoolkit-publish", daemon=True).start()

    def publish(self, *publications: Publication) -> None:
        """Log `publications` after all earlier ones."""
        with self._changed:
            self._pending.extend(publications)
            self._changed.notify_all()

    def withdraw(self, step: int) -> None:
        """Take the alias of `step` from its version: only an interruption asked for it, and training has passed it."""
        with self._changed:
            self._withdrawn.add(step)

    def drain(self, timeout: float, why: str | None = None) -> None:
        """Wait at most `timeout` seconds until every publication is logged or has failed, and stop.

        Afterwards `failures` holds the reason for each step that was not logged, `why` where W&B has not answered.
        """
        why = why or f"W&B had not committed the checkpoint {timeout:g} s after the last save"
        with self._changed:
            self._ending, self._failed_attempts = True, 0
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._pending and self._tidied, timeout)
            self._give_up_on_pending(why)
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        give_way(NETWORK)
        while (publication := self._next()) is not None:
            try:
                self._destination.log(self._run, publication)
            except Exception as error:  # noqa: BLE001 - W&B's errors are reported at the end, not in training
                self._note_failure(publication, error)
            else:
                self._note_success(publication)
        if not (self._stopped or self.failures or self._run.offline):
            self._destination.remove_duplicates(self._run)
            self._destination.withdraw(self._run, self._withdrawn)
        with self._changed:
            self._tidied = True
            self._changed.notify_all()

    def _next(self) -> Publication | None:
        """Wait until the first pending publication is due, and return it; None after the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._ending or self._pending)
            if self._failed_attempts and not self._ending:
                pause = _PAUSES[min(self._failed_attempts, len(_PAUSES)) - 1]
                self._changed.wait_for(lambda: self._stopped or self._ending, pause)
            elif self._failed_attempts:
                self._changed.wait_for(lambda: self._stopped, _PAUSE_AT_END)
            return None if self._stopped or not self._pending else self._pending[0]

    def _note_success(self, publication: Publication) -> None:
        with self._changed:
            self._failed_attempts = 0
            self.published.append(publication.step)
            self.failures.pop(publication.step, None)
            if self._pending:
                self._pending.popleft()
            self._changed.notify_all()

    def _note_failure(self, publication: Publication, error: Exception) -> None:
        import wandb

        with self._changed:
            gone: str | None = None
            self.failures[publication.step] = first_line(error)
            if isinstance(error, DamagedError):
                self.damaged[publication.step] = str(error)
            elif gone := self._process.why_ended():
                self.failures[publication.step] = gone
            if gone or self._run.offline or isinstance(error, (CheckpointError, wandb.errors.UsageError)):
                # No retry helps if a file was damaged, the run has finished or W&B's process is gone.
                self._failed_attempts = 0
                if self._pending:
                    self._pending.popleft()
            else:
                if self._failed_attempts == 0 and not self._ending:
                    why = self.failures[publication.step]
                    logger.info("step %d: publishing failed and will be retried (%s)", publication.step, why)
                self._failed_attempts += 1
                if self._ending and self._failed_attempts >= _ATTEMPTS_AT_END:
                    self._give_up_on_pending(self.failures[publication.step])
            self._changed.notify_all()

    def _give_up_on_pending(self, why: str) -> None:
        for publication in self._pending:
            self.failures.setdefault(publication.step, why)
        self._pending.clear()
