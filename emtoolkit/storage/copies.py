"""A directory of a run, copied from one disk to another while it changes: what is copied is complete or absent.

A pass copies what has changed since the pass before. Checkpoint directories are units: they appear under their names
only after every file is on disk, and vanish in the copy after they have vanished in the original. Logs, which only
grow, are continued; all other files are replaced as a whole. Files with several names are copied once.
"""

import os
import shutil
import stat
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from emtoolkit.errors import CheckpointError
from emtoolkit.storage.atomic import remove_directory, write_directory, write_file
from emtoolkit.storage.links import link_file

# Device, inode, bytes and time of a file, which are those of another file only if both are one.
_File = tuple[int, int, int, int]
# Files that only grow while a training writes them.
_LOGS = ("publications.jsonl", ".wandb", ".log")

Links = dict[_File, Path]
_Unit = frozenset[tuple[Path, _File]]


class CopiedDirectory:
    """Copies of the directory `original` in the directory `copy`.

    Args:
        is_unit: whether a directory of this name is complete or absent.
        record: the file that says how far the original is, and that is copied after everything else.
        links: the copies of files so far, shared with the other directories of one run.
        without: names of files that are not copied.
    """

    def __init__(
        self,
        original: Path,
        copy: Path,
        *,
        is_unit: Callable[[str], bool],
        record: str,
        links: Links,
        without: Collection[str] = (),
    ) -> None:
        self.original, self.copy = original, copy
        self._without = without
        self._is_unit = is_unit
        self._record = record
        self._links = links
        # By the path in the directory: the state that was copied last, and the length of logs.
        self._units: dict[Path, _Unit] = {}
        self._files: dict[Path, _File] = {}
        self._lengths: dict[Path, tuple[int, int]] = {}

    def bring(self) -> None:
        """Fill the original with what the copy holds, before anything writes into the original.

        Raises:
            CheckpointError: the disk of the original has no room.
        """
        if not self.copy.is_dir():
            return
        make_directory(self.original)
        back = CopiedDirectory(self.copy, self.original, is_unit=self._is_unit, record=self._record, links={})
        back.update()
        for unit in back._units:
            self._note_unit(unit, _states(self.original / unit))
        for file in back._files:
            self._files[file] = _state(self.original / file)
        for file in back._lengths:
            found = (self.original / file).stat()
            self._lengths[file] = found.st_ino, found.st_size

    def update(self) -> None:
        """Copy what is new or has changed.

        Raises:
            CheckpointError: the disk of the copy is full, read-only or missing.
        """
        if not self.original.is_dir():
            return
        make_directory(self.copy)
        # What the record says was on disk before the record, and a checkpoint was announced in the logs before it.
        record = self._read_record()
        units, files = self._listed()
        if record is not None and not (self.copy / self._record).exists():
            write_file(self.copy / self._record, record)
        for file in files:
            self._copy_file(file)
        for unit in units:
            self._copy_unit(unit)
        for gone in set(self._units) - set(self._listed()[0]):
            remove_directory(self.copy / gone)
            del self._units[gone]
            if not (self.original / gone.parent).exists():
                with suppress(OSError):  # it may hold something else
                    (self.copy / gone.parent).rmdir()
        if record is not None and _content(self.copy / self._record) != record:
            write_file(self.copy / self._record, record)

    def _listed(self) -> tuple[list[Path], list[Path]]:
        """The paths of the units and of the other plain files."""
        units, files = [], []
        for directory, inner, names in os.walk(self.original):
            here = Path(directory)
            inner[:] = sorted(name for name in inner if not name.startswith(".") and not (here / name).is_symlink())
            units += [(here / name).relative_to(self.original) for name in inner if self._is_unit(name)]
            inner[:] = [name for name in inner if not self._is_unit(name)]
            plain = (here / name for name in sorted(names) if not name.startswith(".") and name not in self._without)
            files += [path.relative_to(self.original) for path in plain if _is_plain(path)]
        return units, [file for file in files if file != Path(self._record)]

    def _read_record(self) -> bytes | None:
        return _content(self.original / self._record)

    def _copy_file(self, file: Path) -> None:
        source, target = self.original / file, self.copy / file
        if file.name.endswith(_LOGS):
            self._continue_log(file, source, target)
            return
        try:
            state = _state(source)
            if self._files.get(file) == state:
                return
            content = source.read_bytes()
            if _state(source) != state:
                return  # it is being written; the next pass sees it whole
        except FileNotFoundError:
            return
        if _content(target) != content:
            make_directory(target.parent)
            write_file(target, content)
        self._files[file] = state

    def _continue_log(self, file: Path, source: Path, target: Path) -> None:
        """Append what the log has got since it was copied; the copy may have lines of its own, which stay."""
        inode, length = self._lengths.get(file, (0, 0))
        try:
            with source.open("rb") as log:
                found = os.fstat(log.fileno())
                if (found.st_ino, found.st_size) == (inode, length):
                    return
                if found.st_ino == inode and found.st_size > length:
                    log.seek(length)
                else:
                    inode, length = found.st_ino, 0
                added = log.read(found.st_size - length)
        except FileNotFoundError:
            return
        if file.suffix == ".jsonl":
            # A line that is being written comes as a whole with the next pass.
            added = added[: added.rfind(b"\n") + 1]
        # Another process may add lines to the copy of a `.jsonl`; nobody adds to the copy of another log.
        if length == 0 or (file.suffix != ".jsonl" and _size(target) != length):
            make_directory(target.parent)
            write_file(target, added if length == 0 else source.read_bytes()[: length + len(added)])
        elif added:
            _append(target, added)
        self._lengths[file] = inode, length + len(added)

    def _copy_unit(self, unit: Path) -> None:
        source, target = self.original / unit, self.copy / unit
        try:
            state = _states(source)
            if self._units.get(unit) == state:
                return
            make_directory(target.parent)
            size = sum(size for _, (_, _, size, _) in state)
            write_directory(target, lambda scratch: self._fill(source, scratch, state), size)
        except (FileNotFoundError, _ChangedError):
            return  # the next pass sees what has become of it
        except CheckpointError:
            if source.is_dir():
                raise
            return
        self._note_unit(unit, state)

    def _note_unit(self, unit: Path, state: _Unit) -> None:
        self._units[unit] = state
        for file, of_file in state:
            self._links[of_file] = self.copy / unit / file

    def _fill(self, source: Path, target: Path, state: _Unit) -> None:
        for file, of_file in state:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            first = self._links.get(of_file)
            if first is not None and first.is_file():
                link_file(first, target / file)
            else:
                shutil.copyfile(source / file, target / file)
        if _states(source) != state:
            raise _ChangedError


class _ChangedError(Exception):
    """The original was replaced while it was copied."""


def make_directory(directory: Path) -> None:
    """Make `directory` and its parents if they do not exist.

    Raises:
        CheckpointError: they cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be written to ({error.strerror or error})") from error


def _append(path: Path, content: bytes) -> None:
    try:
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"{path}: could not be written ({error.strerror or error})") from error


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _state(path: Path) -> _File:
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _states(unit: Path) -> _Unit:
    unit.stat()  # a directory that is gone has no files
    return frozenset((path.relative_to(unit), _state(path)) for path in unit.rglob("*") if _is_plain(path))
