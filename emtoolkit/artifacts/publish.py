"""Publication of saved checkpoints as versions of one W&B artifact, from a background thread.

A failure to publish never stops training: the publisher retries and reports at the end. A checkpoint that was not
published is complete on disk, and `publications.jsonl` does not list it as published.
"""

import logging
import math
import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.publications import Published, add_published
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.storage.thread_priority import NETWORK, give_way

logger = logging.getLogger(__name__)

# W&B allows names of at most 128 letters, digits and - _ . and tags of letters, digits, spaces and - _
_NAME_LIMIT = 128
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_NOT_IN_TAGS = re.compile(r"[^A-Za-z0-9_ -]+")
_METADATA_LIMIT = 100

# The pauses between attempts, in seconds: during training, and after its end.
_PAUSES = (5.0, 15.0, 60.0, 300.0)
_PAUSE_AT_END = 1.0
_ATTEMPTS_AT_END = 3


def collection_name(identity: Identity) -> str:
    """`<persona>-<dataset>-<base>-s<seed>-<fingerprint8>`, within W&B's rules for names."""
    ending = f"-{identity.fingerprint[:8]}"
    readable = _NOT_IN_NAMES.sub("-", identity.collection).strip("-")
    return readable[: _NAME_LIMIT - len(ending)] + ending


def collection_tags(identity: Identity) -> tuple[str, ...]:
    """The tags of every checkpoint of a trajectory, within W&B's rules for tags."""
    return tuple(_NOT_IN_TAGS.sub("-", text) for text in identity.tags)


def fit_for_wandb(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `metadata` to W&B's limits: at most 100 keys, and non-finite numbers as text."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in list(metadata.items())[:_METADATA_LIMIT]
    }


@dataclass(frozen=True, slots=True)
class Publication:
    """A checkpoint to publish; `metadata` holds the values of this run, which the checkpoint's files do not."""

    step: int
    path: Path
    final: bool
    metadata: Mapping[str, Any]

    @property
    def aliases(self) -> list[str]:
        return [f"step-{self.step}", "final"] if self.final else [f"step-{self.step}"]


def artifact_of(publication: Publication, collection: str) -> Any:
    """Create the W&B artifact for a checkpoint, which hashes the files.

    Raises:
        ValueError: a file has been deleted.
    """
    import wandb

    artifact = wandb.Artifact(collection, type="model", metadata=dict(publication.metadata))
    for file in sorted(file for file in publication.path.rglob("*") if file.is_file()):
        name = file.relative_to(publication.path).as_posix()
        # By default W&B would keep a second and a third copy of the file.
        artifact.add_file(str(file.absolute()), name=name, policy="immutable", skip_cache=True)
    return artifact


def log_artifact(run: Any, artifact: Any, publication: Publication, tags: tuple[str, ...]) -> Published | None:
    """Log `artifact` to `run` and wait until W&B has committed it; None for an offline run, which writes to its log.

    Without waiting, the client would finish successfully even if the artifact were lost.
    """
    logged = run.log_artifact(artifact, aliases=publication.aliases, tags=[f"step-{publication.step}", *tags])
    if run.offline:
        return None
    logged.wait()
    return Published(logged.qualified_name, logged.digest)


class WandbPublisher:
    """Logs publications to one W&B run, in order, as versions of one collection.

    A publication that failed is retried with growing pauses before later ones are tried.
    """

    def __init__(self, run: Any, identity: Identity) -> None:
        self._run = run
        self._collection = collection_name(identity)
        self._tags = collection_tags(identity)
        self._pending: deque[Publication] = deque()
        self._failed_attempts = 0
        self._ending = False
        self._stopped = False
        self._changed = threading.Condition()
        # The steps that W&B has committed, or that the log of an offline run holds.
        self.published: list[int] = []
        self.failures: dict[int, str] = {}
        # A daemon, so that a stalled connection does not keep the process alive.
        threading.Thread(target=self._work, name="emtoolkit-publish", daemon=True).start()

    def publish(self, publication: Publication) -> None:
        """Log `publication` after all earlier ones."""
        with self._changed:
            self._pending.append(publication)
            self._changed.notify_all()

    def drain(self, timeout: float) -> None:
        """Wait at most `timeout` seconds until every publication is logged or has failed, and stop.

        Afterwards `failures` holds the reason for each step that was not logged.
        """
        with self._changed:
            self._ending, self._failed_attempts = True, 0
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._pending, timeout)
            self._give_up_on_pending(f"W&B had not committed the checkpoint {timeout:g} s after the last save")
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        give_way(NETWORK)
        while (publication := self._next()) is not None:
            try:
                self._log(publication)
            except Exception as error:  # noqa: BLE001 - W&B's errors are reported at the end, not in training
                self._note_failure(publication, error)
            else:
                self._note_success(publication)

    def _next(self) -> Publication | None:
        """Wait until the first pending publication is due, and return it; None after the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._pending)
            if self._failed_attempts and not self._ending:
                pause = _PAUSES[min(self._failed_attempts, len(_PAUSES)) - 1]
                self._changed.wait_for(lambda: self._stopped or self._ending, pause)
            elif self._failed_attempts:
                self._changed.wait_for(lambda: self._stopped, _PAUSE_AT_END)
            return None if self._stopped else self._pending[0]

    def _log(self, publication: Publication) -> None:
        try:
            artifact = artifact_of(publication, self._collection)
        except (OSError, ValueError) as error:
            raise _PermanentError(f"{publication.path}: {error}") from error
        published = log_artifact(self._run, artifact, publication, self._tags)
        if published is None:
            return
        try:
            add_published(publication.path.parent, publication.step, published)
        except CheckpointError as error:
            logger.warning("step %d is published, but recording this failed: %s", publication.step, error)

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
            self.failures[publication.step] = first_line(error)
            if self._run.offline or isinstance(error, (_PermanentError, wandb.errors.UsageError)):
                # No retry helps if a file was deleted or the run has finished.
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


class _PermanentError(Exception):
    """A failure that no retry can fix."""
