"""What `emtoolkit prune` prints."""

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
    here, versions = {info.step: info for info in plan.here}, {version.step: version for version in plan.versions}
    columns = [Column("step"), Column("here"), Column("on W&B"), Column("", "left", at_least=20)]
    rows: list[list[RenderableType]] = []
    for step in sorted({*plan.kept, *plan.going}):
        goes = "pruned" if removed is not None else "goes"
        at = [goes if step in of else "—" for of in (here, versions)]
        rows.append([str(step), *at, "" if step in plan.going else f"stays: {plan.kept[step]}"])
    parts: list[RenderableType] = [Records(columns, rows)]
    verb = ("is", "are") if removed is None else ("was", "were")
    if here:
        parts.append(prose(_sentence(len(here), verb, f"removed here, which frees {format_size(plan.freed)}")))
    if versions:
        parts.append(prose(_sentence(len(versions), verb, f"removed on W&B ({_on_wandb(plan, removed, days)})")))
    if removed is None:
        parts += [_left_over(plan)] if plan.left_over else []
        parts.append(prose("Nothing is changed yet; add --yes to remove them."))
    else:
        again = how_to_make_again(plan.reference, plan.going)
        parts.append(line(f"Made again by: {again}"))
    return Group(*parts)


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


def _sentence(count: int, verb: tuple[str, str], what: str) -> str:
    return f"{count} checkpoint{'s' if count > 1 else ''} {verb[count > 1]} {what}."


def _on_wandb(plan: PrunePlan, removed: RemovedVersions | None, days: float) -> str:
    size = format_size(plan.freed_on_wandb)
    if removed is None:
        return f"{size}, {f'kept for {days:g} days without a name' if days else 'at once'}"
    if removed.deleted and days:
        return f"{size}; deleted at once, because the server keeps no time to live"
    return f"{size}; {f'W&B deletes the versions in {days:g} days' if removed.expiring else 'deleted'}"


def _left_over(plan: PrunePlan) -> RenderableType:
    return prose(f"{len(plan.left_over)} directories that an interrupted command left go with --yes, too.")
