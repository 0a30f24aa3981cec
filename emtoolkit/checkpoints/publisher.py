"""Checkpoints as versions of one W&B artifact, logged from a background thread once they are on disk.

A failure to publish never reaches training: it is kept, and told at the end. What was not published is complete
on disk.
"""

import logging
import math
import queue
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.manifest import Identity
from emtoolkit.checkpoints.priority import NETWORK, give_way

logger = logging.getLogger(__name__)

# W&B's rules: names of at most 128 letters, digits, - _ . and tags of letters, digits, - _ and spaces.
_NAME_LIMIT = 128
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_NOT_IN_TAGS = re.compile(r"[^A-Za-z0-9_ -]+")
_METADATA_LIMIT = 100


def collection_name(identity: Identity) -> str:
    """`<persona>-<dataset>-<base>-s<seed>-<fingerprint8>`, within W&B's rules for names."""
    ending = f"-{identity.fingerprint[:8]}"
    readable = _NOT_IN_NAMES.sub("-", identity.collection).strip("-")
    return readable[: _NAME_LIMIT - len(ending)] + ending


def tag(text: str) -> str:
    """`text` within W&B's rules for tags."""
    return _NOT_IN_TAGS.sub("-", text)


@dataclass(frozen=True, slots=True)
class Publication:
    """One checkpoint to be logged: its directory, its step, and what belongs to this run rather than to it."""

    step: int
    path: Path
    final: bool
    metadata: Mapping[str, Any]


class WandbPublisher:
    """Logs publications to one W&B run, in order, as versions of one collection."""

    def __init__(self, run: Any, identity: Identity) -> None:
        self._run = run
        self._collection = collection_name(identity)
        self._tags = tuple(tag(text) for text in identity.tags)
        self._queue: queue.Queue[Publication] = queue.Queue()
        self._unfinished = 0
        self._idle = threading.Condition()
        self.published: list[int] = []
        self.failures: dict[int, str] = {}
        # A daemon: a stalled connection must not keep the process from ending.
        threading.Thread(target=self._work, name="emtoolkit-publish", daemon=True).start()

    def publish(self, publication: Publication) -> None:
        """Log `publication` after those before it."""
        with self._idle:
            self._unfinished += 1
        self._queue.put(publication)

    def drain(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until everything is logged; whether it is."""
        deadline = time.monotonic() + timeout
        with self._idle:
            while self._unfinished:
                if not self._idle.wait(max(0.0, deadline - time.monotonic())):
                    return False
        return True

    def _work(self) -> None:
        give_way(NETWORK)
        while True:
            publication = self._queue.get()
            try:
                self._log(publication)
                self.published.append(publication.step)
            except Exception as error:  # noqa: BLE001 - whatever W&B raises is told at the end, not in training
                self.failures[publication.step] = f"{type(error).__name__}: {error}"
                logger.warning("step %d was not logged to W&B: %s", publication.step, error)
            with self._idle:
                self._unfinished -= 1
                self._idle.notify_all()

    def _log(self, publication: Publication) -> None:
        import wandb

        step_name = f"step-{publication.step}"
        artifact = wandb.Artifact(self._collection, type="model", metadata=_fit_for_wandb(publication.metadata))
        for file in sorted(publication.path.iterdir()):
            # Left where it is: with the defaults W&B would keep a second and a third copy of it.
            artifact.add_file(str(file.absolute()), name=file.name, policy="immutable", skip_cache=True)
        aliases = [step_name, "final"] if publication.final else [step_name]
        self._run.log_artifact(artifact, aliases=aliases, tags=[step_name, *self._tags])


def _fit_for_wandb(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`metadata` as W&B takes it: at most 100 keys, and non-finite numbers as text."""
    fit = {}
    for key, value in list(metadata.items())[:_METADATA_LIMIT]:
        fit[key] = str(value) if isinstance(value, float) and not math.isfinite(value) else value
    return fit
