"""The log of an offline W&B run, a `.wandb` file: protobuf records in LevelDB's log format."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32 * 1024
_FILE_HEADER = 7
_HEADER = struct.Struct("<IHB")  # checksum, length, kind: whole 1, first 2, middle 3, last 4


def records(run_directory: Path) -> Iterator[Any]:
    """Every record in the log of `run_directory`, parsed."""
    from wandb.proto import wandb_internal_pb2

    (log,) = run_directory.glob("*.wandb")
    parts = b""
    for _, kind, part in _frames(log.read_bytes()):
        parts += part
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def cut(log: Path, *, in_a_record: bool) -> None:
    """Keep about half of `log`, as a kill may leave it: up to the middle of a record, or to the end of one."""
    content = log.read_bytes()
    start, part = next((at, part) for at, kind, part in _frames(content) if at > len(content) / 2 and kind == 1)
    log.write_bytes(content[: start + (_HEADER.size + len(part) // 2) * in_a_record])


def _frames(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Offset, kind and content of each part of a record."""
    offset = _FILE_HEADER
    while offset + _HEADER.size <= len(content):
        left = _BLOCK - offset % _BLOCK
        if left < _HEADER.size:
            offset += left
            continue
        _, length, kind = _HEADER.unpack_from(content, offset)
        yield offset, kind, content[offset + _HEADER.size : offset + _HEADER.size + length]
        offset += _HEADER.size + length


def artifacts(run_directory: Path) -> list[Any]:
    """The artifact records of an offline run, in the order of logging."""
    found = [record.artifact for record in records(run_directory) if record.HasField("artifact")]
    found += [
        record.request.log_artifact.artifact
        for record in records(run_directory)
        if record.HasField("request") and record.request.HasField("log_artifact")
    ]
    return found
