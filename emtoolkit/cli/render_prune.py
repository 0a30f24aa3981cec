"""The output of `emtoolkit prune`."""

from collections.abc import Set

from rich.console import Group, RenderableType

from emtoolkit.artifacts.version_removal import RemovedVersions
from emtoolkit.byte_sizes import format_size
from emtoolkit.checkpoints.pruned import how_to_make_again
from emtoolkit.cli.layout import Column, Records, line, prose
from emtoolkit.cli.render import as_json
from emtoolkit.pruning.plan import PrunePlan


def prune_text(plan: PrunePlan, removed: RemovedVersions | None, *, days: float) -> RenderableType:
    """The checkpoints that go and those that stay; what was removed, or how to remove them if nothing was."""
    if not plan.going:
        left = [] if not plan.left_over or removed is not None else [_left_over(plan)]
        return Group(prose(f"Nothing goes: all {len(plan.kept)} checkpoints stay."), *left)
    parts: list[RenderableType] = [_table(plan, "goes" if removed is None else "pruned")]
    verb = "would be" if removed is None else ("was", "were")
    if here := len(plan.here):
        parts.append(prose(_sentence(here, verb, f"removed here, freeing {format_size(plan.freed)}")))
    if versions := len(plan.versions):
        parts.append(prose(_sentence(versions, verb, f"removed on W&B ({_on_wandb(plan, removed, days)})")))
    if removed is None:
        parts += [_left_over(plan)] if plan.left_over else []
        parts.append(prose("Nothing is changed yet; the same command with --yes removes them."))
    else:
        again = how_to_make_again(plan.reference, plan.going)
        parts.append(line(f"Made again by: {again}"))
    return Group(*parts)


def _table(plan: PrunePlan, goes: str) -> RenderableType:
    """Where each step is and what becomes of it there: it `goes`, or it stays for a reason."""
    places: dict[str, tuple[Set[int], Set[int]]] = {}
    if plan.directory is not None:
        places["here"] = ({info.step for info in plan.here}, plan.steps_here)
    if plan.collection is not None:
        known = {version.step for version in plan.collection.checkpoints}
        places["on W&B"] = ({version.step for version in plan.versions}, known)
    rows: list[list[RenderableType]] = []
    for step in sorted({*plan.kept, *plan.going}):
        at = [goes if step in going else "stays" if step in there else "—" for going, there in places.values()]
        rows.append([str(step), *at, "" if step in plan.going else plan.kept[step]])
    return Records([Column("step"), *map(Column, places), Column("because of", "left", at_least=20)], rows)


def prune_json(plan: PrunePlan, removed: RemovedVersions | None) -> str:
    """The same as JSON."""
    return as_json(
        {
            "trajectory": plan.reference,
            "done": removed is not None,
            "kept": {str(step): reason for step, reason in plan.kept.items()},
            "here": [info.step for info in plan.here],
            "wandb": [version.step for version in plan.versions],
            "bytes_freed_here": plan.freed,
            "bytes_on_wandb": plan.freed_on_wandb,
            "pruned_before": list(plan.pruned),
            "expiring": [] if removed is None else list(removed.expiring),
            "deleted": [] if removed is None else list(removed.deleted),
        }
    )


def _sentence(count: int, verb: str | tuple[str, str], what: str) -> str:
    return f"{count} checkpoint{'s' if count > 1 else ''} {verb if isinstance(verb, str) else verb[count > 1]} {what}."


def _on_wandb(plan: PrunePlan, removed: RemovedVersions | None, days: float) -> str:
    size = format_size(plan.freed_on_wandb)
    if removed is None:
        return f"{size}, {f'kept for {days:g} days without a name' if days else 'at once'}"
    if removed.deleted and days:
        return f"{size}; deleted at once, because the server keeps no time to live"
    return f"{size}; {f'W&B deletes the versions in {days:g} days' if removed.expiring else 'deleted'}"


def _left_over(plan: PrunePlan) -> RenderableType:
    return prose(f"{len(plan.left_over)} directories that an interrupted command left go with --yes, too.")
