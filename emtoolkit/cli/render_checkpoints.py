"""The output of `emtoolkit checkpoints`."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType

from emtoolkit.artifacts.collection import RemoteCheckpoint
from emtoolkit.byte_sizes import format_size
from emtoolkit.checkpoints.checkpoint import Checkpoint
from emtoolkit.checkpoints.listing import CheckpointInfo
from emtoolkit.checkpoints.query import is_missing
from emtoolkit.cli.layout import Column, Records, line, prose
from emtoolkit.cli.output_formats import rows_csv
from emtoolkit.cli.render import as_json, checkpoints_table
from emtoolkit.evaluation.listed import Listed, ListedCheckpoint

# The columns that the table has anyway.
_IN_TABLE = ("step", "size", "state", "final")
_IN_CSV = ("step", "state", "final", "bytes", "fingerprint", "path", "artifact")


def listed_text(listed: Listed) -> RenderableType:
    """The checkpoints, a line each, with the columns that were asked for, and what to bear in mind."""
    notes = [prose(f"{note[0].upper()}{note[1:]}.") for note in listed.notes]
    if not listed.checkpoints and listed.total:
        return Group(prose(f"None of {listed.total} checkpoints fits."), *notes)
    asked = [column for column in listed.columns if column not in _IN_TABLE]
    values = [[_cell(each.row.get(column)) for column in asked] for each in listed.checkpoints]
    here = [each.found for each in listed.checkpoints if isinstance(each.found, CheckpointInfo)]
    if len(here) == len(listed.checkpoints):
        return Group(checkpoints_table(here, asked, values), *notes)
    there = [each.found for each in listed.checkpoints if isinstance(each.found, Checkpoint)]
    if len(there) == len(listed.checkpoints):
        return Group(_revisions(there, asked, values), *notes)
    return Group(_versions(listed.checkpoints, asked, values), *notes)


def _revisions(found: Sequence[Checkpoint], asked: Sequence[str], values: Sequence[Sequence[str]]) -> RenderableType:
    columns = [Column("step"), Column("revision", "left"), Column("", "left"), *map(Column, asked)]
    return Records(
        columns,
        [
            [str(each.step), each.place, "final" if each.final else "", *more]
            for each, more in zip(found, values, strict=True)
        ],
    )


def listed_json(listed: Listed) -> str:
    """The same as JSON."""
    return as_json([each.as_json(listed.columns) for each in listed.checkpoints])


def listed_csv(listed: Listed) -> str:
    """The same as CSV: one header for directories and collections, with the columns that were asked for."""
    asked = [column for column in listed.columns if column not in _IN_CSV]
    return rows_csv([_csv_row(each, asked) for each in listed.checkpoints], [*_IN_CSV, *asked])


def _csv_row(each: ListedCheckpoint, asked: Sequence[str]) -> dict[str, Any]:
    found, values = each.found, each.as_json()
    version = found.published if isinstance(found, CheckpointInfo) else values.get("artifact")
    values |= {"path": found.place} if isinstance(found, Checkpoint) else {}
    row = {name: values.get(name) for name in _IN_CSV} | {"state": each.row["state"], "artifact": version}
    return row | {column: each.row.get(column) for column in asked}


def _versions(
    listed: Sequence[ListedCheckpoint], asked: Sequence[str], values: Sequence[Sequence[str]]
) -> RenderableType:
    columns = [Column("step"), Column("size"), Column("fingerprint"), Column("version"), Column("aliases", "left")]
    columns += [Column(name) for name in asked]
    rows: list[list[RenderableType]] = []
    collections = set()
    for each, more in zip(listed, values, strict=True):
        version = each.found
        if not isinstance(version, RemoteCheckpoint):
            rows.append([str(each.row["step"]), "—", "—", "—", "(pruned)", *more])
            continue
        fingerprint = str(version.metadata.get("fingerprint") or "—")[:8]
        aliases = ", ".join(alias for alias in version.handle.aliases if alias != "latest")
        collection, _, name = version.artifact.rpartition(":")
        collections.add(collection)
        rows.append([str(version.step), format_size(version.bytes), fingerprint, name, aliases, *more])
    return Group(Records(columns, rows), *(line(f"On W&B: {name}") for name in sorted(collections)))


def _cell(value: Any) -> str:
    if is_missing(value):
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
