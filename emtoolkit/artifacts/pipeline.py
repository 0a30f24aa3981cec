"""Publication of many checkpoints to one run, several at a time and committed in step order.

W&B's client commits the artifacts of one run in the order in which they were logged. Meanwhile the next files are
hashed and compared with what W&B holds, and the answers to earlier commits are read.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from emtoolkit.artifacts.destination import Destination, Prepared
from emtoolkit.artifacts.publication import DamagedError, Publication
from emtoolkit.checkpoints.publications import Published

# More are no faster: W&B's client is busy with 4.
_AT_ONCE = 4

Result = tuple[Publication, Published | DamagedError]


class PublicationPipeline:
    """Publishes to `run`, an online run, in the collection of `destination`."""

    def __init__(self, destination: Destination, run: Any) -> None:
        self._destination, self._run = destination, run
        # Two, so that waiting for commits keeps no file from being hashed.
        self._preparing = ThreadPoolExecutor(_AT_ONCE, "emtoolkit-prepare")
        self._finishing = ThreadPoolExecutor(_AT_ONCE, "emtoolkit-finish")
        self._started: deque[tuple[Publication, Future[Published]]] = deque()
        self._results: deque[Result] = deque()

    def publish(self, publications: Iterable[Publication]) -> Iterator[Result]:
        """Yield each of `publications` when W&B has committed it, or when its files were found damaged.

        Raises:
            CheckpointError: W&B holds other bytes under a step of the directory's own collection.
            Exception: whatever W&B's client raises; the publications that it had begun may be on W&B.
        """
        waiting = iter(publications)
        prepared: deque[tuple[Publication, Future[Prepared]]] = deque()
        try:
            while True:
                while len(prepared) < _AT_ONCE and (publication := next(waiting, None)) is not None:
                    preparing = self._preparing.submit(self._destination.prepare, self._run, publication)
                    prepared.append((publication, preparing))
                if not prepared:
                    break
                self._start(*prepared.popleft())
                if len(self._started) >= _AT_ONCE:
                    self._finish_first()
                yield from self._finished()
            self._finish_all()
            yield from self._finished()
        except Exception:
            yield from self._finished()
            raise
        finally:
            # A thread that waits for a server that hangs keeps nobody.
            for pool in (self._preparing, self._finishing):
                pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, publication: Publication, preparing: Future[Prepared]) -> None:
        try:
            started = self._destination.start(self._run, preparing.result(), self._finish_all)
        except DamagedError as error:
            # The results stay in step order.
            self._finish_all()
            self._results.append((publication, error))
            return
        except Exception:
            self._finish_all()
            raise
        self._started.append((publication, self._finishing.submit(self._destination.finish, started)))

    def _finish_all(self) -> None:
        while self._started:
            self._finish_first()

    def _finish_first(self) -> None:
        publication, finishing = self._started.popleft()
        try:
            self._results.append((publication, finishing.result()))
        except DamagedError as error:
            self._results.append((publication, error))

    def _finished(self) -> Iterator[Result]:
        while self._results:
            yield self._results.popleft()
