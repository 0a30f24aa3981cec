"""Checkpoints of a trajectory that W&B has and the store lacks: they are downloaded, and need not be trained."""

import logging
import time
from collections import Counter
from collections.abc import Collection as Steps
from collections.abc import Sequence
from pathlib import Path

from emtoolkit.artifacts.collection import Collection, NoSuchCollectionError, Reference, RemoteCheckpoint
from emtoolkit.artifacts.download import download
from emtoolkit.artifacts.file_transfer import RetryPolicy, TransferError
from emtoolkit.checkpoints.remote import RefusedError
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.progress import Progress
from emtoolkit.reuse.environment import Environment
from emtoolkit.reuse.store import Training, note_training, record_of, training_of
from emtoolkit.schedules.steps import elided

logger = logging.getLogger(__name__)

# The time limit for each answer of W&B, in seconds.
_ANSWER_SECONDS = 10
_RETRY = RetryPolicy(attempts=3)
# A slower line costs more time than a training may.
_SLOWEST_BYTES_PER_SECOND = 1_000_000
_LONGEST_LIST = 100


def fetch(
    reference: Reference,
    store: Path,
    environment: Environment,
    record: TrajectoryRecord,
    steps: Steps[int],
    *,
    patience: float,
    progress: Progress,
) -> None:
    """Download `steps` of the trajectory of `record` into `store`, whose lock the caller holds.

    A checkpoint is taken if it was trained in `environment` and every byte is the one that its manifest lists. The
    download takes at most `patience` seconds and one second for each megabyte. A failure is one warning, and the store
    keeps the checkpoints that had arrived.
    """
    try:
        collection = Collection.read(reference, timeout=_ANSWER_SECONDS)
        wanted = [checkpoint for checkpoint in collection.checkpoints if checkpoint.step in steps]
        chosen = _of_this_training(collection.name, wanted, environment, record.fingerprint)
        if not chosen:
            return
        if record_of(store) is None:
            record.write(store)
        if training_of(store) is None:
            # The held-out losses of the training are not in the store.
            note_training(store, Training(collection.name, evaluated=None))
        limit = patience + sum(checkpoint.bytes for checkpoint in chosen) / _SLOWEST_BYTES_PER_SECOND
        done = download(
            collection, chosen, store, rehash=True, retry=_RETRY, progress=_within(limit, collection.name, progress)
        )
    except NoSuchCollectionError:
        return
    except (CheckpointError, OSError) as error:
        # The rest of the sentence is for somebody who downloads.
        logger.warning("trajectory.reuse: %s; the missing steps are trained", str(error).partition("; ")[0])
        return
    taken = elided([*done.fetched, *done.present], _LONGEST_LIST)
    logger.info("%s: steps %s were downloaded from %s", store, taken, collection.name)


def _of_this_training(
    name: str, checkpoints: Sequence[RemoteCheckpoint], environment: Environment, fingerprint: str
) -> list[RemoteCheckpoint]:
    """The checkpoints that a training of this trajectory here would have the bytes of; one warning names the others."""
    chosen = []
    reasons: Counter[str] = Counter()
    for checkpoint in checkpoints:
        if (why := _why_other_bytes(checkpoint, environment, fingerprint)) is None:
            chosen.append(checkpoint)
        else:
            reasons[why] += 1
    if reasons:
        (why, _), count = reasons.most_common(1)[0], reasons.total()
        more = "" if len(reasons) == 1 else ", and for other reasons"
        logger.warning(
            "%s: %d of %d wanted checkpoints are not reused, because %s%s", name, count, len(checkpoints), why, more
        )
    return chosen


def _why_other_bytes(checkpoint: RemoteCheckpoint, environment: Environment, fingerprint: str) -> str | None:
    try:
        record = checkpoint.record
    except RefusedError:
        return "their metadata cannot be read"
    if record.fingerprint != fingerprint:
        return f"they belong to trajectory {str(record.fingerprint)[:8]}"
    if record.environment is None:
        return "they do not name the environment in which they were trained"
    if record.resumed_with_differences is not None:
        return "they were resumed with differences"
    if differences := environment.differs_from(record.environment):
        return f"a training here may give other bytes: {'; '.join(differences)}"
    return None


def _within(seconds: float, name: str, progress: Progress) -> Progress:
    """`progress`, which ends the download after `seconds`."""
    deadline = time.monotonic() + seconds

    def report(what: str, done: int, total: int) -> None:
        if time.monotonic() > deadline:
            raise TransferError(f"{name}: {what} had arrived after {seconds:.0f} s, which is too slow")
        progress(what, done, total)

    return report
