"""What checkpoints a directory holds: ours, those of a stock Trainer, and neither failed saves nor temporaries."""

import json
import re
import struct
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.checkpoints.publications import Ledger
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError
from emtoolkit.storage.safe_paths import why_unsafe

_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]*)")
_WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
_INDEX = "model.safetensors.index.json"
# The stock Trainer writes this file last; without it the save did not end.
_STOCK_LAST_FILE = "trainer_state.json"


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """One checkpoint on disk. `source` says who wrote it: `emtoolkit`, or `other` for any other tool's.

    `published` is where it is on W&B, `entity/project/collection:vN`, as far as this directory knows.
    """

    step: int
    path: Path
    final: bool
    bytes: int
    fingerprint: str | None
    complete: bool
    source: Literal["emtoolkit", "other"]
    problems: tuple[str, ...] = ()
    published: str | None = None

    def as_json(self) -> dict[str, Any]:
        values = asdict(self) | {"path": str(self.path)}
        del values["problems"]
        return values


def list_checkpoints(directory: Path, *, rehash: bool = False) -> list[CheckpointInfo]:
    """The checkpoints in `directory`, in step order.

    A directory without a manifest is another tool's checkpoint if its weights can be read, and a failed save,
    which is not listed, otherwise. With `rehash` every file of ours is hashed again and compared.

    Raises:
        CheckpointError: `directory` does not exist, or is not a directory.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: there is no such directory")
    record = TrajectoryRecord.read_if_any(directory)
    published = Ledger.read(directory).published
    found = []
    for path in directory.iterdir():
        match = _NAME.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        step = int(match[1])
        info = _ours(path, step, record, rehash) if (path / MANIFEST).exists() else _of_another_tool(path, step)
        if info is not None and step in published:
            info = replace(info, published=published[step].artifact)
        if info is not None:
            found.append(info)
    found.sort(key=lambda info: info.step)
    return found


def check_belongs_to(directory: Path, identity: Identity) -> None:
    """Check that what `directory` holds, if anything, is the trajectory of `identity`.

    Raises:
        CheckpointError: it holds another trajectory, told by its differences, or checkpoints of another tool.
    """
    record = TrajectoryRecord.read_if_any(directory)
    if record is not None and record.fingerprint != identity.fingerprint:
        differences = record.differs_from(identity.fingerprinted)
        more = f" and {len(differences) - 2} more" if len(differences) > 2 else ""
        raise CheckpointError(
            f"{directory}: it holds another trajectory ({'; '.join(differences[:2])}{more}); "
            "choose another output directory"
        )
    if not directory.is_dir():
        return
    for info in list_checkpoints(directory):
        if info.source == "other" or info.fingerprint not in (None, identity.fingerprint):
            kind = "another tool's checkpoint" if info.source == "other" else "a checkpoint of another trajectory"
            raise CheckpointError(f"{info.path}: it is {kind}; choose another output directory")


def _ours(path: Path, step: int, record: TrajectoryRecord | None, rehash: bool) -> CheckpointInfo:
    try:
        manifest = Manifest.read(path)
    except CheckpointError as error:
        return CheckpointInfo(step, path, False, _bytes(path), None, False, "emtoolkit", (str(error),))
    problems = manifest.problems(path, rehash=rehash)
    if manifest.step != step:
        problems.append(f"{path / MANIFEST}: it is the manifest of step {manifest.step}, not {step}")
    ended_at = record.ended_at if record else None
    return CheckpointInfo(
        step=step,
        path=path,
        final=step in (manifest.total_steps, ended_at),
        bytes=_bytes(path),
        fingerprint=manifest.fingerprint,
        complete=not problems,
        source="emtoolkit",
        problems=tuple(problems),
    )


def _of_another_tool(path: Path, step: int) -> CheckpointInfo | None:
    if not _weights_are_whole(path):
        return None
    final = False
    problems: tuple[str, ...] = ()
    state_file = path / _STOCK_LAST_FILE
    try:
        state = json.loads(state_file.read_bytes())
        final = state["global_step"] == step == state["max_steps"]
    except (OSError, ValueError, KeyError, TypeError):
        problems = (f"{state_file}: the file that a Trainer writes last is missing or unreadable",)
    return CheckpointInfo(step, path, final, _bytes(path), None, not problems, "other", problems)


def _weights_are_whole(path: Path) -> bool:
    if (index := path / _INDEX).is_file():
        try:
            shards = {str(shard) for shard in json.loads(index.read_bytes())["weight_map"].values()}
        except (ValueError, KeyError, AttributeError):
            return False
        return all(why_unsafe(shard) is None and _safetensors_is_whole(path / shard) for shard in shards)
    return any(_safetensors_is_whole(path / name) for name in _WEIGHTS)


def _safetensors_is_whole(path: Path) -> bool:
    """Whether the file is as long as its own header says (8 bytes of length, JSON, then the tensors)."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                return False
            header = json.loads(file.read(length))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        return bool(path.stat().st_size == 8 + length + end)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return False


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
