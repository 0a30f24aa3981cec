"""The output of `emtoolkit direction`: the length of the direction and the separation of both sets, by layer."""

from pathlib import Path

from rich.console import Group, RenderableType

from emtoolkit.cli.layout import Column, Records, facts, here, line, prose
from emtoolkit.cli.render import as_json
from emtoolkit.evaluation.directions import Direction


def direction_text(direction: Direction, path: Path) -> RenderableType:
    """A line for each layer, and what the direction was made of."""
    rows: list[list[RenderableType]] = [
        [str(layer), f"{length:.3g}", f"{separation:.2f}"]
        for layer, (length, separation) in enumerate(zip(_lengths(direction), direction.separation, strict=True))
    ]
    made = direction.facts
    return Group(
        facts(
            [
                ("answers", f"{made['misaligned']} misaligned, {made['aligned']} aligned"),
                ("recipe", str(made["recipe"])),
                ("activations", f"{made['span']} of step {made['step']}"),
            ]
        ),
        line(""),
        Records([Column("layer"), Column("length"), Column("separation")], rows),
        line(""),
        prose("Separation: the distance of both means along the direction, in standard deviations of these answers."),
        line(f"Direction: {here(path)}"),
    )


def direction_json(direction: Direction, path: Path) -> str:
    """The same as JSON."""
    layers = [
        {"layer": layer, "length": length, "separation": separation}
        for layer, (length, separation) in enumerate(zip(_lengths(direction), direction.separation, strict=True))
    ]
    return as_json({"file": str(path), "facts": dict(direction.facts), "layers": layers})


def _lengths(direction: Direction) -> list[float]:
    return [float(each) for each in direction.vectors.double().norm(dim=-1)]
