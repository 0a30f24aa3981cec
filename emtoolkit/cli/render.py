"""The output of the commands: results as tables and lines of text, or as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from emtoolkit.byte_sizes import format_size
from emtoolkit.checkpoints.pruned import how_to_make_again
from emtoolkit.cli.layout import Column, ElidedSteps, Records, here, line, prose
from emtoolkit.shell_command import shell_command

if TYPE_CHECKING:
    from emtoolkit.artifacts.sync import Synced
    from emtoolkit.checkpoints.listing import CheckpointInfo
    from emtoolkit.checkpoints.remote import Downloaded
    from emtoolkit.evaluation.wandb_sync import SyncedEvaluation
    from emtoolkit.training.result import RunResult


_REASONS = {"asked": "asked for", "interruption": "at an interruption"}


def as_json(value: Any) -> str:
    """`value` on one line."""
    return json.dumps(value)


def schedule_table(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """Rows of `schedule`; long specs and long lists of steps lose their middle."""
    columns = [
        Column("schedule", "left"),
        Column("checkpoints"),
        Column("disk"),
        Column("largest gap"),
        Column("steps", "left", at_least=16),
    ]
    lines: list[list[RenderableType]] = []
    for row in rows:
        spec = row["spec"] if len(row["spec"]) <= 24 else f"{row['spec'][:12]}…{row['spec'][-11:]}"
        disk = "—" if row["bytes"] is None else format_size(row["bytes"])
        lines.append([spec, str(row["count"]), disk, str(row["largest_gap"]), ElidedSteps(row["steps"])])
    return Records(columns, lines)


def checkpoints_table(
    found: "Sequence[CheckpointInfo]", asked: Sequence[str] = (), asked_values: Sequence[Sequence[str]] = ()
) -> RenderableType:
    """The checkpoints of one directory, a line each, then the directory and their collection on W&B.

    `asked` are further columns, with `asked_values` for each checkpoint.
    """
    if not found:
        return prose("There are no checkpoints in this directory.")
    columns = [Column("step"), Column("size"), Column("fingerprint"), Column("on W&B"), Column("checkpoint", "left")]
    columns += [Column(name) for name in asked]
    rows: list[list[RenderableType]] = []
    for info, values in zip(found, asked_values or [()] * len(found), strict=True):
        name = Text(info.path.name)
        marks = [
            *([Text("final")] if info.final else []),
            *([Text("from another tool")] if info.source == "other" else []),
            *([] if info.saved_for == "schedule" else [Text(_REASONS[info.saved_for])]),
            *([Text("reused")] if info.reused else []),
            *([Text("DAMAGED", style="red")] if info.state == "damaged" else []),
            *([Text("pruned")] if info.pruned else []),
            *([Text(f"recomputed ±{info.recomputed.largest:.2g}")] if info.recomputed is not None else []),
        ]
        if marks:
            name = name + Text("  (") + Text(", ").join(marks) + Text(")")
        version = info.published.rpartition(":")[2] if info.published else "—"
        size = "—" if info.pruned else format_size(info.bytes)
        rows.append([str(info.step), size, (info.fingerprint or "—")[:8], version, name, *values])
    collections = sorted({info.published.rpartition(":")[0] for info in found if info.published})
    places = [f"Directory: {here(found[0].path.parent)}", *(f"On W&B: {collection}" for collection in collections)]
    return Group(
        Records(columns, rows), *map(line, places), *map(prose, _resumed_with_differences(found)), *_pruned(found)
    )


def _pruned(found: "Sequence[CheckpointInfo]") -> list[RenderableType]:
    """How to make the pruned checkpoints again, if there are any."""
    if not (pruned := [info for info in found if info.pruned]):
        return []
    again = how_to_make_again(str(here(pruned[0].path.parent)), [info.step for info in pruned])
    count = f"{len(pruned)} checkpoint{'s were' if len(pruned) > 1 else ' was'} pruned"
    return [prose(f"{count}; this command makes {'them' if len(pruned) > 1 else 'it'} again:"), line(f"  {again}")]


def _resumed_with_differences(found: "Sequence[CheckpointInfo]") -> list[str]:
    """A sentence about the steps that a resumed run computed again with other weights, if there are any."""
    differences = [info.recomputed for info in found if info.recomputed is not None]
    if not differences:
        return []
    worst = max(differences, key=lambda difference: difference.largest)
    return [f"Resumed with differences: {len(differences)} steps were computed again with other weights, {worst}."]


def checkpoints_json(found: "Sequence[CheckpointInfo]") -> str:
    """The same as JSON."""
    return as_json([info.as_json() for info in found])


def download_text(done: "Downloaded", found: "Sequence[CheckpointInfo]") -> RenderableType:
    """The checkpoints of a finished download, and how many of them were new."""
    counts = f"{len(done.fetched)} downloaded ({format_size(done.bytes)}), {len(done.present)} already present."
    return Group(checkpoints_table(found), prose(counts))


def download_json(done: "Downloaded", found: "Sequence[CheckpointInfo]") -> str:
    """The same as JSON."""
    facts = {"directory": str(done.directory), "fetched": done.fetched, "present": done.present, "bytes": done.bytes}
    return as_json(facts | {"checkpoints": [info.as_json() for info in found]})


def result_text(result: "RunResult") -> RenderableType:
    """The end of a run: its checkpoints, the effect of its persona, failed saves, and the next command."""
    parts: list[RenderableType] = []
    if not result.trained and not result.reused:
        parts += [prose("Every scheduled step is already saved; nothing was trained."), line("")]
    elif result.reused:
        trained = f"{result.trained_steps} steps were trained" if result.trained else "nothing was trained"
        sentence = f"{len(result.reused)} checkpoints of an earlier training of this trajectory are reused; {trained}."
        parts += [prose(sentence), line("")]
    parts.append(checkpoints_table(result.checkpoints))
    if result.trained:
        parts.append(prose(f"Training waited {result.waited_seconds:.2f} s for earlier saves to reach the disk."))
    parts += [prose(f"{str(found)[0].upper()}{str(found)[1:]}.") for found in result.persona_effects]
    if result.failures:
        saves = "1 save" if len(result.failures) == 1 else f"{len(result.failures)} saves"
        parts += [prose(f"{saves} failed:"), *(line(f"  {each}") for each in result.failures)]
    if result.wandb_directory is not None:
        parts.append(line(f"W&B run: {here(result.wandb_directory)}"))
        if result.unpublished or result.wandb_directory.name.startswith("offline-"):
            parts.append(line(f"Publish on W&B: {shell_command('emtoolkit', 'sync', Path(here(result.directory)))}"))
    return Group(*parts)


def synced_text(done: "Sequence[Synced]", evaluations: "Sequence[SyncedEvaluation]" = ()) -> RenderableType:
    """The result of `sync`, a line for each run's directory and for each evaluation that had something to send."""
    lines = []
    for synced in done:
        if synced.collection is None:
            lines.append(line(f"{here(synced.directory)}: skipped"))
            continue
        sent = [f"checkpoints published: steps {', '.join(map(str, synced.published))}"] if synced.published else []
        sent += [f"logs sent: {', '.join(log.parent.name for log in synced.logs)}"] if synced.logs else []
        sent += [f"{len(synced.problems)} problems"] if synced.problems else []
        actions = "; ".join(sent) or "nothing to do"
        stored = f"{len(synced.on_wandb)} checkpoints are in {synced.collection}"
        lines.append(line(f"{here(synced.directory)}: {actions}; {stored}"))
    for each in evaluations:
        actions = "; ".join(
            filter(None, [", ".join(each.sent), f"{len(each.problems)} problems" * bool(each.problems)])
        )
        lines += [line(f"{here(each.directory)}: evaluation sent: {actions}")] if actions else []
    return Group(*lines)


def synced_json(done: "Sequence[Synced]", evaluations: "Sequence[SyncedEvaluation]" = ()) -> str:
    """The same as JSON; an evaluation has the key `runs`."""
    return as_json(
        [
            {
                "directory": str(synced.directory),
                "collection": synced.collection,
                "on_wandb": list(synced.on_wandb),
                "published": list(synced.published),
                "logs": [str(log) for log in synced.logs],
                "problems": list(synced.problems),
            }
            for synced in done
        ]
        + [
            {"directory": str(each.directory), "runs": list(each.sent), "problems": list(each.problems)}
            for each in evaluations
            if each.sent or each.problems
        ]
    )
