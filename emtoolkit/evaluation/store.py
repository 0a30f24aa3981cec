"""The store of answers and verdicts, shared by all trajectories: what is there is never made again.

An entry belongs to a key, the digest of everything that decides the entries (`identity.digest_of`). Each key is a
directory of JSON lines, `KEY[:2]/KEY/PART.jsonl`, one part for each process that wrote, so that processes need no lock.
Lines are appended batch by batch and flushed to the disk; a kill loses at most the batch in flight, and a line that it
cut off is ignored.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from emtoolkit.errors import CheckpointError
from emtoolkit.json_files import parse_json

Entries = Mapping[str, Mapping[str, Any]]


@contextmanager
def says_what_is_kept(count: Callable[[], int], what: str) -> Iterator[None]:
    """On an interruption, note on the exception that `count()` new `what` are kept."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        interruption.add_note(f"{count()} new {what} are kept")
        raise


class Store:
    """A directory of entries. `kind` is `answers` or `verdicts`; `added` counts the entries that this object added."""

    def __init__(self, directory: Path, kind: str) -> None:
        self._directory = directory / kind
        self.added = 0
        self._part = f"{uuid4().hex}.jsonl"
        self._known: dict[str, dict[str, Mapping[str, Any]]] = {}

    def read(self, key: str) -> Entries:
        """The entries of `key` by their name; empty if there are none.

        Raises:
            CheckpointError: a file cannot be read.
        """
        if key not in self._known:
            self._known[key] = {}
            for path in sorted(self._home(key).glob("*.jsonl")):
                for name, value in _lines(path):
                    self._known[key].setdefault(name, value)
        return self._known[key]

    def add(self, key: str, entries: Entries) -> None:
        """Append `entries` to those of `key`, and wait until they are on the disk.

        Raises:
            CheckpointError: the disk is full or read-only; what was there before stays.
        """
        known = self.read(key)
        new = {name: value for name, value in entries.items() if name not in known}
        if not new:
            return
        path = self._home(key) / self._part
        text = "".join(json.dumps([name, value], ensure_ascii=False) + "\n" for name, value in new.items())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                before = file.tell()
                try:
                    file.write(text.encode())
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    # The next batch must not follow a line that was cut off.
                    os.truncate(path, before)
                    raise
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be written ({error.strerror or error}); everything before is kept, and the same "
                "command continues"
            ) from error
        self._known[key] |= new
        self.added += len(new)

    def _home(self, key: str) -> Path:
        return self._directory / key[:2] / key


def _lines(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    found: list[tuple[str, Mapping[str, Any]]] = []
    for line in text.split(b"\n")[:-1]:
        try:
            name, value = parse_json(line, finite=False)
        except (ValueError, TypeError):
            # A kill cut the line off, and the file system gave it an end.
            continue
        if isinstance(name, str) and isinstance(value, dict):
            found.append((name, value))
    return found
