"""The checkpoints in a directory: emtoolkit's and those of other tools, but no failed saves and no temporaries."""

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from emtoolkit.checkpoints.declared import manifest_in
from emtoolkit.checkpoints.layout import ADAPTER_WEIGHTS, MODEL_INDEX, MODEL_WEIGHTS, TRAINER_STATE, step_of
from emtoolkit.checkpoints.manifest import MANIFEST, Manifest
from emtoolkit.checkpoints.publications import PUBLICATIONS, Difference, Publications, event_in
from emtoolkit.checkpoints.saved_for import SavedFor
from emtoolkit.checkpoints.trajectory_file import DamagedRecordError, TrajectoryRecord
from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.json_files import LARGEST_JSON, count_in, object_in, parse_json, read_json, text_in
from emtoolkit.progress import Progress, counting, silent
from emtoolkit.regular_files import read_regular
from emtoolkit.schedules.steps import elided
from emtoolkit.storage.safe_paths import why_unsafe

# The limit of the safetensors library, in bytes.
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """One checkpoint on disk, written by emtoolkit or, if `source` is `other`, by another tool.

    `published` is its W&B version, `entity/project/collection:vN`, if the directory records one. `recomputed` is the
    difference to the weights that a resumed run computed for its step, if there was one. A `pruned` checkpoint is not
    there any more, and was removed on purpose. A checkpoint `saved_for` an
    interruption alone is deleted once training has passed its step. A `reused` checkpoint was saved by an earlier
    training of the trajectory, from whose store the run took it.
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
    recomputed: Difference | None = None
    pruned: bool = False
    saved_for: SavedFor = "schedule"
    reused: bool = False

    @property
    def state(self) -> Literal["complete", "damaged", "pruned"]:
        """Whether the checkpoint can be used, or why not."""
        return "pruned" if self.pruned else "complete" if self.complete else "damaged"

    @property
    def is_of_trajectory(self) -> bool:
        """Whether the checkpoint is more than the place of an interruption."""
        return self.saved_for != "interruption"

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values, without `problems`; of a pruned checkpoint also its `state`.

        Only a checkpoint that is `reused` has that key.
        """
        values = asdict(self) | {"path": str(self.path)} | ({"state": self.state} if self.pruned else {})
        del values["problems"], values["pruned"]
        if not self.reused:
            del values["reused"]
        return values


def list_checkpoints(directory: Path, *, rehash: bool = False, progress: Progress = silent) -> list[CheckpointInfo]:
    """The checkpoints in `directory`, in step order.

    A checkpoint directory without a manifest is damaged if `publications.jsonl` names its step, another tool's
    checkpoint if its weights are complete, and otherwise a failed save, which is not listed. With `rehash` every file
    that a manifest lists is hashed and compared, and `progress` counts the bytes. A damaged `trajectory.json` or
    `publications.jsonl` hides no checkpoint; `damaged_records` says which is damaged.

    Raises:
        CheckpointError: `directory` does not exist or is not a directory.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: there is no such directory")
    try:
        record = TrajectoryRecord.read_if_any(directory)
    except DamagedRecordError:
        record = None
    return checkpoints_of(directory, record, rehash=rehash, progress=progress)


def checkpoints_of(
    directory: Path, record: TrajectoryRecord | None, *, rehash: bool = False, progress: Progress = silent
) -> list[CheckpointInfo]:
    """`list_checkpoints` of a directory whose `trajectory.json` holds `record`."""
    try:
        publications = Publications.read(directory)
    except CheckpointError:
        publications = Publications()
    published = publications.published
    named = [(step, path) for path in directory.iterdir() if (step := step_of(path.name)) is not None and path.is_dir()]
    hashed = counting(progress, "comparing checkpoints", sum(_bytes(path) for _, path in named) if rehash else 0)
    found = []
    for step, path in sorted(named):
        if (path / MANIFEST).exists() or (step in publications.metadata and not (path / TRAINER_STATE).exists()):
            info: CheckpointInfo | None = _ours(path, step, record, rehash, hashed)
        else:
            info = _of_the_hub(path, step, rehash, hashed) or _of_another_tool(path, step)
        if info is not None and step in published:
            info = replace(info, published=published[step].artifact)
        if info is not None:
            info = replace(info, saved_for=publications.saved_for.get(step, "schedule"))
        if info is not None and step in publications.reused:
            info = replace(info, reused=True)
        if info is not None and step in publications.differences:
            info = replace(info, recomputed=publications.differences[step])
        if info is not None:
            found.append(info)
    return found


def damaged_records(directory: Path) -> list[str]:
    """A sentence on each of `trajectory.json` and `publications.jsonl` in `directory` that cannot be read."""
    found = []
    for read in (TrajectoryRecord.read_if_any, Publications.read):
        try:
            read(directory)
        except CheckpointError as error:
            found.append(str(error))
    if not found and (problem := _ledger_of_something_else(directory / PUBLICATIONS)):
        found.append(problem)
    return found


def _ledger_of_something_else(path: Path) -> str | None:
    """A sentence on a ledger that has lines and no event in any of them, except for a first line that a kill cut."""
    try:
        lines = [line for line in read_regular(path, LARGEST_JSON, follow=False).splitlines() if line.strip()]
    except OSError:
        return None
    events = (event_in(line) for line in lines)
    if not lines or lines[0].startswith(b'{"event"') or any(isinstance(e, dict) and "event" in e for e in events):
        return None
    return f"{path}: holds nothing that emtoolkit has written, so nothing is known of what W&B has; remove the file"


def damaged_checkpoints(reference: str) -> list[str]:
    """A sentence for each damaged checkpoint of a directory; none for a collection on W&B."""
    found = list_checkpoints(Path(reference)) if Path(reference).is_dir() else []
    return [f"step {info.step} is skipped: {info.problems[0]}" for info in found if not info.complete]


def why_none_is_complete(directory: Path) -> str:
    """The end of an error about `directory`: a reason for each incomplete checkpoint, or where checkpoints are."""
    found = list_checkpoints(directory)
    problems = {info.step: (*info.problems, "" if info.is_of_trajectory else _interrupted(info))[0] for info in found}
    named = [(step, path) for path in directory.iterdir() if (step := step_of(path.name)) is not None and path.is_dir()]
    reasons = {step: problems.get(step, f"{path}: holds no complete weights") for step, path in sorted(named)}
    if why := [reason for reason in reasons.values() if reason]:
        return f": {'; '.join(why)}"
    below = sorted({str(path.parent) for path in directory.glob("*/checkpoint-*") if step_of(path.name) is not None})
    return f"; there are checkpoints in {', '.join(below[:3])}{' and others' if below[3:] else ''}" if below else ""


def _interrupted(info: CheckpointInfo) -> str:
    return f"{info.path}: was saved at an interruption; Trajectory.open(..., interrupted=True) includes the step"


def check_belongs_to(
    directory: Path,
    record: TrajectoryRecord | None,
    checkpoints: Iterable[CheckpointInfo],
    fingerprint: str,
    fingerprinted: Mapping[str, Any],
) -> None:
    """Check that `directory`, with this `record` and these `checkpoints`, holds nothing but trajectory `fingerprint`.

    `fingerprinted` is what the fingerprint hashes, or empty where only the fingerprint is known.

    Raises:
        CheckpointError: it holds another trajectory, whose differences are named, or a checkpoint of another tool.
    """
    if record is not None and record.fingerprint != fingerprint:
        found = f"{record.fingerprint[:8]}, not {fingerprint[:8]}"
        if record.fingerprinted and fingerprinted:
            differences = record.differs_from(fingerprinted)
            more = f" and {len(differences) - 2} more" if len(differences) > 2 else ""
            found = "; ".join(differences[:2]) + more
        raise CheckpointError(f"{directory}: holds another trajectory ({found}); choose another directory")
    for info in checkpoints:
        if info.source == "other" and info.fingerprint != fingerprint:
            raise CheckpointError(f"{info.path}: was saved by another tool; choose another directory")
        if info.fingerprint is not None and info.fingerprint != fingerprint:
            found = f"{info.fingerprint[:8]}, not {fingerprint[:8]}"
            raise CheckpointError(f"{info.path}: belongs to trajectory {found}; choose another directory")


def check_one_fingerprint(place: str, fingerprints: Mapping[int, Any], advice: str) -> None:
    """Check that the checkpoints of `place` belong to one trajectory; `fingerprints` by step, None where not known.

    Raises:
        CheckpointError: they belong to several; the message says which steps belong to which, then `advice`.
    """
    steps = defaultdict(list)
    for step, fingerprint in fingerprints.items():
        if fingerprint is not None:
            steps[str(fingerprint)[:8]].append(step)
    if len(steps) > 1:
        parts = "; ".join(f"steps {elided(of, 60)} belong to {fingerprint}" for fingerprint, of in steps.items())
        raise CheckpointError(f"{place}: mixes several trajectories: {parts}. {advice}")


def _ours(
    path: Path, step: int, record: TrajectoryRecord | None, rehash: bool, hashed: Callable[[int], None]
) -> CheckpointInfo:
    try:
        manifest = Manifest.read(path)
    except CheckpointError as error:
        return CheckpointInfo(step, path, False, _bytes(path), None, False, "emtoolkit", (str(error),))
    problems = manifest.problems(path, rehash=rehash, hashed=hashed)
    if manifest.step != step:
        problems.append(f"{path / MANIFEST}: is the manifest of step {manifest.step}, not of step {step}")
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


def _of_the_hub(path: Path, step: int, rehash: bool, hashed: Callable[[int], None]) -> CheckpointInfo | None:
    """Another tool's checkpoint, with the digests that the hub declared; None where no download recorded them."""
    try:
        manifest = manifest_in(path)
        if manifest is None:
            return None
        problems = manifest.problems(path, rehash=rehash, hashed=hashed)
    except CheckpointError as error:
        return CheckpointInfo(step, path, False, _bytes(path), None, False, "other", (str(error),))
    final = step == manifest.total_steps
    return CheckpointInfo(step, path, final, _bytes(path), manifest.fingerprint, not problems, "other", tuple(problems))


def _of_another_tool(path: Path, step: int) -> CheckpointInfo | None:
    if not _weights_are_complete(path):
        return None
    final = False
    problems: tuple[str, ...] = ()
    # The stock Trainer writes this file last: without it the save did not end.
    state_file = path / TRAINER_STATE
    try:
        state = object_in(read_json(state_file, finite=False))
        final = count_in(state, "global_step") == step == state.get("max_steps")
    except FileNotFoundError:
        problems = (f"{state_file}: the file is missing; a Trainer writes this file last",)
    except (OSError, ValueError) as error:
        problems = (f"{state_file}: is not the state of a Trainer ({first_line(error)})",)
    return CheckpointInfo(step, path, final, _bytes(path), None, not problems, "other", problems)


def _weights_are_complete(path: Path) -> bool:
    if (index := path / MODEL_INDEX).is_file():
        try:
            weight_map = object_in(object_in(read_json(index)).get("weight_map"), "weight_map")
            shards = {text_in(weight_map, name) for name in weight_map}
        except (OSError, ValueError):
            return False
        return all(why_unsafe(shard) is None and _safetensors_is_complete(path / shard) for shard in shards)
    return any(_safetensors_is_complete(path / name) for name in (ADAPTER_WEIGHTS, MODEL_WEIGHTS))


def _safetensors_is_complete(path: Path) -> bool:
    """Whether the file has the length that its header declares (8 bytes of header length, JSON, tensors)."""
    if not path.is_file():  # to open a pipe would wait for a writer
        return False
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(path.stat().st_size, _LARGEST_HEADER):
                return False
            header = parse_json(file.read(length))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        return bool(path.stat().st_size == 8 + length + end)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return False


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
