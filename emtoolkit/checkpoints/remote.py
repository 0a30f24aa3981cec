"""A trajectory that is not on this machine: what is known of it before its checkpoints are downloaded."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

from emtoolkit.checkpoints.checkpoint import Checkpoint
from emtoolkit.errors import CheckpointError
from emtoolkit.progress import Progress


class RefusedError(CheckpointError):
    """The content of a checkpoint is unsafe or cannot be loaded; the message names the checkpoint and the file."""


class Cancelled(Exception):
    """The download was cancelled; the bytes received so far stay on disk."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    """The result of a download: steps fetched, steps present before, and bytes received over the network."""

    directory: Path
    fetched: tuple[int, ...]
    present: tuple[int, ...]
    bytes: int


class Source(Protocol):
    """The server that holds the checkpoints of a trajectory."""

    def download(self, steps: Collection[int], directory: Path, *, rehash: bool, progress: Progress) -> Downloaded:
        """Download `steps`, so that `directory` is a local trajectory.

        Raises:
            CheckpointError: a file is refused, the server or the network failed, or the directory holds another
                trajectory.
        """

    def fetch(self, steps: Collection[int], progress: Progress) -> Downloaded:
        """Download `steps` into the cache, where the checkpoints of the trajectory look for them.

        Raises: as `download`.
        """


@dataclass(frozen=True, slots=True)
class RemoteTrajectory:
    """The checkpoints that `source` lists under `name`; `pruned` are the steps that were removed there."""

    name: str
    checkpoints: Sequence[Checkpoint]
    source: Source
    pruned: tuple[int, ...] = ()


class BackgroundDownload:
    """Downloads one checkpoint when called, or waits for the download that `start` began.

    Args:
        download: downloads the checkpoint unless it is present, until the event is set if there is one; returns
            whether the checkpoint had to be downloaded.
    """

    def __init__(self, download: Callable[[Event | None], bool]) -> None:
        self._download = download
        self._thread: Thread | None = None
        self._downloaded: bool | BaseException = False

    def start(self, stop: Event) -> Thread:
        """Download in the background until `stop` is set; what has been received stays for a later download."""
        if self._thread is None:
            # A daemon: one that waits for a server that hangs does not keep the program from ending.
            self._thread = Thread(target=self._run, args=(stop,), name="emtoolkit-download", daemon=True)
            self._thread.start()
        return self._thread

    def __call__(self) -> bool:
        """Whether the checkpoint had to be downloaded.

        Raises: what `download` raises, also for a download in the background.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if isinstance(self._downloaded, bool):
                return self._downloaded
            if not isinstance(self._downloaded, Cancelled):
                raise self._downloaded
        return self._download(None)

    def _run(self, stop: Event) -> None:
        try:
            self._downloaded = self._download(stop)
        except BaseException as error:  # noqa: BLE001 - raised where the checkpoint is needed
            self._downloaded = error
