"""The checkpoints of a trajectory, wherever it is, with what is known of each, filtered and sorted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.collection import RemoteCheckpoint
from emtoolkit.artifacts.named_collection import named_collection
from emtoolkit.artifacts.version_removal import recorded_as_pruned
from emtoolkit.checkpoints.listing import CheckpointInfo, damaged_records, list_checkpoints
from emtoolkit.checkpoints.measured import metrics_of, row_with_metrics, stale_evaluations
from emtoolkit.checkpoints.metric_values import Metrics
from emtoolkit.checkpoints.pruned import with_pruned
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.checkpoints.query import Query, Row, check_columns, is_missing
from emtoolkit.errors import CheckpointError
from emtoolkit.hub.names import is_hub
from emtoolkit.shell_command import quoted_command
from emtoolkit.trajectory import Checkpoint, Trajectory


@dataclass(frozen=True, slots=True)
class ListedCheckpoint:
    """A checkpoint in a directory, a version on W&B, or a revision on the hub, and the values of its columns.

    `found` is None for a version that was pruned.
    """

    found: CheckpointInfo | RemoteCheckpoint | Checkpoint | None
    row: Row

    def as_json(self, columns: Sequence[str] = ()) -> dict[str, Any]:
        """The checkpoint as JSON values, with `columns`, those that were asked for; null where a value is missing."""
        match self.found:
            case CheckpointInfo():
                values = self.found.as_json()
            case Checkpoint(step=step, final=final, place=place):
                values = {"step": step, "revision": place, "final": final, "state": self.row["state"]}
            case version:
                values = self._of_version(version)
        if columns:
            values["columns"] = {
                column: None if is_missing(self.row.get(column)) else self.row[column] for column in columns
            }
        return values

    def _of_version(self, version: RemoteCheckpoint | None) -> dict[str, Any]:
        if version is None:
            gone: dict[str, Any] = {"artifact": None, "final": False, "bytes": 0, "fingerprint": None, "aliases": []}
            return {"step": self.row["step"], **gone, "state": self.row["state"]}
        return {
            "step": version.step,
            "artifact": version.artifact,
            "final": version.final,
            "bytes": version.bytes,
            "fingerprint": version.metadata.get("fingerprint"),
            "aliases": list(version.handle.aliases),
            "state": self.row["state"],
        }


@dataclass(frozen=True, slots=True)
class Listed:
    """The checkpoints that fit, in order; `columns` are those of the conditions and of the order.

    `total` counts all checkpoints. `notes` say how many lack a value, and `problems` what is damaged.
    """

    checkpoints: tuple[ListedCheckpoint, ...]
    columns: tuple[str, ...]
    total: int
    notes: tuple[str, ...]
    problems: tuple[str, ...] = ()


def list_trajectory(reference: str, query: Query, *, rehash: bool = False) -> Listed:
    """The checkpoints of a directory, of a collection on W&B or of a repository on the hub, that `query` selects.

    With `rehash` every file in a directory is hashed and compared with its manifest. Metrics are read only where
    `query` names columns.

    Raises:
        CheckpointError: there is no such directory or collection, or the metrics of an evaluation cannot be read.
        UserError: `query` names an unknown column, or compares it with a value of another type.
    """
    directory = Path(reference)
    if directory.is_dir() or not (is_hub(reference) or reference.count("/") in (1, 2)):
        return _in_directory(directory, query, rehash=rehash)
    if rehash:
        raise CheckpointError(
            f"{reference}: --verify hashes files on this machine; use "
            f"{quoted_command('emtoolkit', 'download', reference, '--to', 'DIR', '--verify')}"
        )
    return _on_hub(reference, query) if is_hub(reference) else _in_collection(reference, query)


def _in_directory(directory: Path, query: Query, *, rehash: bool) -> Listed:
    complete_or_damaged = list_checkpoints(directory, rehash=rehash)
    damaged = [f"DAMAGED: {problem}" for problem in damaged_records(directory)]
    problems = damaged + [problem for info in complete_or_damaged for problem in info.problems]
    found = with_pruned(directory, complete_or_damaged)
    metadata: Mapping[int, Mapping[str, Any]] = {} if damaged else Publications.read(directory).metadata
    fingerprint = next((info.fingerprint for info in found if info.fingerprint), None)
    facts: dict[int, dict[str, Any]] = {
        info.step: {"step": info.step, "size": info.bytes, "state": info.state, "final": info.final} for info in found
    }
    listed = _selected(str(directory), {info.step: info for info in found}, facts, metadata, query, fingerprint)
    return Listed(listed[0], query.columns, len(found), listed[1], tuple(problems))


def _in_collection(reference: str, query: Query) -> Listed:
    collection = named_collection(reference)
    there = {version.step: version for version in collection.checkpoints}
    if not there:
        raise CheckpointError(f"{collection.name}: no complete checkpoint was found")
    facts: dict[int, dict[str, Any]] = {
        step: {"step": step, "size": version.bytes, "state": "complete", "final": version.final}
        for step, version in there.items()
    }
    pruned = recorded_as_pruned(collection)
    facts |= {step: {"step": step, "size": 0, "state": "pruned", "final": False} for step in pruned}
    facts = dict(sorted(facts.items()))
    found = {step: there.get(step) for step in facts}
    metadata = {step: version.metadata for step, version in there.items()}
    listed = _selected(collection.name, found, facts, metadata, query, None)
    return Listed(listed[0], query.columns, len(found), listed[1])


def _on_hub(reference: str, query: Query) -> Listed:
    trajectory = Trajectory.open(reference)
    found = {checkpoint.step: checkpoint for checkpoint in trajectory}
    # The size of a revision is known when it is downloaded.
    facts: dict[int, dict[str, Any]] = {
        step: {"step": step, "state": "complete", "final": checkpoint.final} for step, checkpoint in found.items()
    }
    listed = _selected(trajectory.name, found, facts, {}, query, None)
    return Listed(listed[0], query.columns, len(found), listed[1])


def _selected(
    reference: str,
    found: Mapping[int, CheckpointInfo | RemoteCheckpoint | Checkpoint | None],
    facts: Mapping[int, dict[str, Any]],
    metadata: Mapping[int, Mapping[str, Any]],
    query: Query,
    fingerprint: str | None,
) -> tuple[tuple[ListedCheckpoint, ...], tuple[str, ...]]:
    metrics = _metrics(reference, metadata, fingerprint) if query.columns else Metrics(reference, ())
    logged: dict[int, dict[str, Any]] = {
        step: {key: value for key, value in values.items() if isinstance(value, str | int | float)}
        for step, values in metadata.items()
    }
    rows = [row_with_metrics(logged.get(step, {}) | known, metrics) for step, known in facts.items()]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in query.columns:
        if column not in columns and any(each.metric == column for each in metrics.series):
            # One of several evaluations: the error names the choices.
            metrics.find(column)
    check_columns(query, columns or ["step", "size", "state", "final"])
    chosen = tuple(ListedCheckpoint(found[row["step"]], row) for row in query.select(rows))
    return chosen, tuple(query.notes(rows))


def _metrics(reference: str, metadata: Mapping[int, Mapping[str, Any]], fingerprint: str | None) -> Metrics:
    if stale := stale_evaluations(reference):
        # Statistics take seconds to import.
        from emtoolkit.evaluation.result_files import write_missing_metrics

        for directory in stale:
            write_missing_metrics(directory)
    return metrics_of(reference, metadata, fingerprint=fingerprint)
