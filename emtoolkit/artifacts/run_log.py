"""Replay of a W&B run's log, a `.wandb` file: protobuf records in LevelDB's log format.

`wandb sync` publishes the artifacts in a log without looking at their files. So the log is replayed without its
checkpoints, which `emtoolkit sync` compares with their manifests and publishes itself.
"""

import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from emtoolkit.artifacts.joined_log import Held
from emtoolkit.artifacts.server import client_limits
from emtoolkit.checkpoints.publications import WandbRun

# The file begins with `:W&B`, a magic number and a version.
_FILE_HEADER = 7
_BLOCK = 32 * 1024
# CRC-32 of kind and content, length, kind; a part of a record never crosses a block.
_HEADER = struct.Struct("<IHB")
# A log that has not changed for this time is that of a run that has ended.
_IDLE_SECONDS = 600
# How soon a stop is noticed, in seconds.
_SECONDS_BETWEEN_LOOKS = 0.2
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Replay:
    """The result of `wandb sync` for a log.

    `is_sent` is true if it read the log to its end, whatever the server did with it. `is_torn` is true if the log ends
    in the middle of a record, as that of a run that was killed or is still writing. `is_empty` is true if the log holds
    no record to send.
    """

    output: str
    is_sent: bool
    is_torn: bool
    is_empty: bool = False


def replay(
    run: WandbRun,
    target: Sequence[str],
    collections: Set[str],
    stop: threading.Event | None = None,
    held: Held | None = None,
) -> Replay:
    """Send the log of `run` with `wandb sync` and the options `target`, without artifacts in the `collections`.

    What W&B holds of the run (`held`) is left out. An exception, and `stop` when it is set, end `wandb sync`.
    """
    with tempfile.TemporaryDirectory(prefix="emtoolkit-sync-") as scratch:
        # `wandb sync` expects the run's files beside its log.
        copy = WandbRun(run.id, run.entity, run.project, Path(scratch) / run.log.parent.name / run.log.name)
        copy.log.parent.mkdir()
        (copy.log.parent / "files").symlink_to(run.log.parent.absolute() / "files")
        count, is_torn = _copy_without_artifacts(run.log, copy.log, collections, held)
        if count == 0:
            return Replay("", is_sent=False, is_torn=is_torn, is_empty=True)
        # The `wandb` command fails in a directory that contains a file named `wandb`.
        output = _run(
            [sys.executable, "-m", "wandb", "sync", "--include-online", *target, str(copy.log)], copy.log.parent, stop
        )
        return Replay(output, copy.is_synced, is_torn)


def _run(command: Sequence[str], directory: Path, stop: threading.Event | None) -> str:
    """Run `command` online until it ends or `stop` is set; returns its output."""
    limits = {f"WANDB_{name.upper()}": str(value) for name, value in client_limits().items()}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, **limits, "WANDB_MODE": "online"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                if stop is not None and stop.is_set():
                    return "stopped"
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_SECONDS_BETWEEN_LOOKS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        return output.read().decode(errors="replace")


def ended_well(log: Path) -> bool:
    """Whether `log` holds the end of a run, and the run was successful."""
    messages = import_module("wandb.proto.wandb_internal_pb2")
    codes = []
    for _, record in _records(log.read_bytes() if log.is_file() else b""):
        parsed = messages.Record()
        parsed.ParseFromString(record)
        if parsed.HasField("exit"):
            codes.append(parsed.exit.exit_code)
    return codes[-1:] == [0]


def is_live(log: Path) -> bool:
    """Whether a run may still write to `log`: a process here has it open, or it changed lately if that is unknown."""
    written = _is_written_by_a_process(log)
    if written is not None:
        return written
    return abs(_clock_of(log.parent) - log.stat().st_mtime) <= _IDLE_SECONDS


def _clock_of(directory: Path) -> float:
    """The time by the clock that dates the files in `directory`, which may be that of a server."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def _is_written_by_a_process(log: Path) -> bool | None:
    """Whether a process on this machine has `log` open; None where the system does not say."""
    path = str(log.resolve())
    processes = Path("/proc")
    if not (processes / "self" / "fd").is_dir():
        return None
    for directory in processes.glob("[0-9]*/fd"):
        # A process may end meanwhile, or belong to another user.
        with suppress(OSError):
            if any(os.readlink(descriptor) == path for descriptor in directory.iterdir()):
                return True
    return False


def _copy_without_artifacts(log: Path, copy: Path, collections: Set[str], held: Held | None) -> tuple[int, bool]:
    """Copy the complete records of `log`, except artifacts in `collections` and what W&B holds.

    Returns the number of complete records, and whether `log` is torn.
    """
    # W&B ships no type hints of its generated messages.
    messages = import_module("wandb.proto.wandb_internal_pb2")
    content = log.read_bytes()
    with copy.open("wb") as file:
        file.write(content[:_FILE_HEADER])
        position = complete = _FILE_HEADER
        count = 0
        for complete, record in _records(content):  # noqa: B007 - read after the loop
            count += 1
            parsed = messages.Record()
            parsed.ParseFromString(record)
            if _collection_of(parsed) in collections or not (held is None or held.lacking(parsed)):
                continue
            position = _append(file, record if held is None else parsed.SerializeToString(), position)
        for record in held.end(count + 1) if held is not None and count else ():
            position = _append(file, record, position)
    # Less than a header of zeros may follow the last record of a block.
    return count, bool(content[complete:].strip(b"\0"))


def _append(file: BinaryIO, record: bytes, position: int) -> int:
    """Write `record` to `file`, which ends at `position`; returns where it ends then."""
    for part in _parts(record, position):
        file.write(part)
        position += len(part)
    return position


def _collection_of(record: Any) -> str | None:
    """The collection of the artifact that `record` logs, if it logs one."""
    if record.HasField("artifact"):
        return str(record.artifact.name)
    if record.HasField("request") and record.request.HasField("log_artifact"):
        return str(record.request.log_artifact.artifact.name)
    return None


def _records(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Each complete record, after the offset at which it ends."""
    offset, record = _FILE_HEADER, b""
    while offset + _HEADER.size <= len(content):
        left = _BLOCK - offset % _BLOCK
        if left < _HEADER.size:
            offset += left
            continue
        checksum, length, kind = _HEADER.unpack_from(content, offset)
        part = content[offset + _HEADER.size : offset + _HEADER.size + length]
        offset += _HEADER.size + length
        if len(part) < length or checksum != _checksum(kind, part):
            return
        record = part if kind in (_WHOLE, _FIRST) else record + part
        if kind in (_WHOLE, _LAST):
            yield offset, record


def _parts(record: bytes, position: int) -> Iterator[bytes]:
    """The bytes of `record` as they stand in a file from `position` on."""
    rest, is_first = record, True
    while is_first or rest:
        left = _BLOCK - position % _BLOCK
        if left < _HEADER.size:
            yield bytes(left)
            position += left
            left = _BLOCK
        part, rest = rest[: left - _HEADER.size], rest[left - _HEADER.size :]
        kind = (_FIRST if rest else _WHOLE) if is_first else (_MIDDLE if rest else _LAST)
        yield _HEADER.pack(_checksum(kind, part), len(part), kind) + part
        position += _HEADER.size + len(part)
        is_first = False


def _checksum(kind: int, part: bytes) -> int:
    return zlib.crc32(part, zlib.crc32(bytes([kind])))
