"""Reads the log of an offline W&B run, a `.wandb` file: LevelDB's log format around protobuf records."""

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
    content, offset, parts = log.read_bytes(), _FILE_HEADER, b""
    while offset + _HEADER.size <= len(content):
        left = _BLOCK - offset % _BLOCK
        if left < _HEADER.size:
            offset += left
            continue
        _, length, kind = _HEADER.unpack_from(content, offset)
        offset += _HEADER.size
        parts += content[offset : offset + length]
        offset += length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def artifacts(run_directory: Path) -> list[Any]:
    """The artifact records of an offline run, in the order they were logged."""
    found = [record.artifact for record in records(run_directory) if record.HasField("artifact")]
    found += [
        record.request.log_artifact.artifact
        for record in records(run_directory)
        if record.HasField("request") and record.request.HasField("log_artifact")
    ]
    return found
