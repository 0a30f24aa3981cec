"""The download of one checkpoint of a collection, which may run in the background before the checkpoint is needed."""

import threading
from pathlib import Path

from emtoolkit.artifacts.collection import Collection, RemoteCheckpoint
from emtoolkit.artifacts.download import download_one
from emtoolkit.artifacts.file_transfer import Cancelled


class CheckpointDownload:
    """Downloads `checkpoint` into `directory` when called, or waits for the download that `start` began."""

    def __init__(self, collection: Collection, checkpoint: RemoteCheckpoint, directory: Path) -> None:
        self._collection, self._checkpoint, self._directory = collection, checkpoint, directory
        self._thread: threading.Thread | None = None
        self._downloaded: bool | BaseException = False

    def start(self, stop: threading.Event) -> threading.Thread:
        """Download in the background until `stop` is set; what has been received stays for a later download."""
        if self._thread is None:
            # A daemon: one that waits for a server that hangs does not keep the program from ending.
            self._thread = threading.Thread(target=self._run, args=(stop,), name="emtoolkit-download", daemon=True)
            self._thread.start()
        return self._thread

    def __call__(self) -> bool:
        """Whether the checkpoint had to be downloaded.

        Raises: as `emtoolkit.artifacts.download.download_one`, also for a download in the background.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if isinstance(self._downloaded, bool):
                return self._downloaded
            if not isinstance(self._downloaded, Cancelled):
                raise self._downloaded
        return download_one(self._collection, self._checkpoint, self._directory)

    def _run(self, stop: threading.Event) -> None:
        try:
            self._downloaded = download_one(self._collection, self._checkpoint, self._directory, stop=stop)
        except BaseException as error:  # noqa: BLE001 - raised where the checkpoint is needed
            self._downloaded = error
