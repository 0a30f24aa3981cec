"""The command line: each command parses its words, calls one function and prints what came back."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from emtoolkit.errors import UserError

app = typer.Typer(
    name="emtoolkit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Save a fine-tune at exactly the training steps that matter, and find out when a behaviour appeared.",
)


@app.callback()
def _root() -> None:
    """Kept so that a single command stays a subcommand."""


@app.command()
def schedule(
    specs: Annotated[list[str], typer.Argument(metavar="SPEC...", help="Such as every:100 or dense-early.")],
    total_steps: Annotated[int, typer.Option(help="The number of optimizer steps in the run.")],
    checkpoint_size: Annotated[str | None, typer.Option(help="Of one checkpoint, such as 150MB.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    allow_unreachable: Annotated[
        bool, typer.Option("--allow-unreachable", help="Only warn of steps past the end of training.")
    ] = False,
) -> None:
    """Show which steps each schedule saves, how many they are and what they take on disk."""
    from emtoolkit.schedule import Schedule
    from emtoolkit.sizes import parse_size

    try:
        size = None if checkpoint_size is None else parse_size(checkpoint_size)
    except UserError as error:
        raise UserError(f"--checkpoint-size: {error}") from None
    rows: list[dict[str, Any]] = []
    warnings: list[str] = []
    for spec in specs:
        parsed = Schedule.parse(spec)
        steps = parsed.steps(total_steps)
        if not allow_unreachable:
            parsed.check_reachable(total_steps)
        elif sentence := parsed.unreachable_sentence(total_steps):
            warnings.append(sentence)
        count = len(steps)
        disk = None if size is None else count * size
        rows.append({"spec": spec, "steps": steps, "count": count, "bytes": disk, "largest_gap": steps.largest_gap()})
    for warning in warnings:
        typer.echo(f"emtoolkit: warning: {warning}", err=True)
    if as_json:
        import json

        typer.echo(json.dumps([row | {"steps": list(row["steps"])} for row in rows]))
    else:
        typer.echo(_schedule_table(rows))


def _schedule_table(rows: Sequence[dict[str, Any]], width: int = 80) -> str:
    """Rows of `schedule` as columns; long specs and long lists of steps lose their middle to fit `width`."""
    from emtoolkit.sizes import format_size

    lines = [["schedule", "checkpoints", "disk", "largest gap"]]
    for row in rows:
        spec = row["spec"] if len(row["spec"]) <= 24 else f"{row['spec'][:12]}…{row['spec'][-11:]}"
        disk = "—" if row["bytes"] is None else format_size(row["bytes"])
        lines.append([spec, str(row["count"]), disk, str(row["largest_gap"])])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    room = width - sum(widths) - 2 * len(widths)
    steps = ["steps", *(_elided(row["steps"], row["count"], room) for row in rows)]
    return "\n".join(
        "  ".join([spec.ljust(widths[0]), *map(str.rjust, numbers, widths[1:]), listed])
        for (spec, *numbers), listed in zip(lines, steps, strict=True)
    )


def _elided(steps: Sequence[int], count: int, room: int) -> str:
    """`0, 25, …, 400`: as many steps from both ends as fit into `room` characters, at least the last."""
    most = min(count, room)
    front, back = list(map(str, steps[:most])), list(map(str, steps[-most:]))
    if count == most and len(whole := ", ".join(front)) <= room:
        return whole
    best = f"…, {back[-1]}"
    for shown in range(2, most):
        text = ", ".join([*front[: (shown + 1) // 2], "…", *back[-(shown // 2) :]])
        if len(text) > room:
            break
        best = text
    return best


def main() -> None:
    """The `emtoolkit` console script: bad input is one sentence on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"emtoolkit: {error}", err=True)
        sys.exit(2)
