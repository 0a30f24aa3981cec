"""The output of `emtoolkit dynamics`: a line for each checkpoint, or for each module of each checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType

from emtoolkit.analysis.dynamics import Dynamics
from emtoolkit.cli.layout import Column, Records, line, prose
from emtoolkit.cli.output_formats import rows_csv
from emtoolkit.cli.render import as_json
from emtoolkit.cli.render_metrics import without_nan


def dynamics_text(dynamics: Dynamics, *, modules: bool) -> RenderableType:
    """The table, and what its columns mean."""
    if modules:
        return _table(_module_rows(dynamics))
    shares = ", ".join(f"{100 * share:.1f} %" for share in dynamics.explained if not math.isnan(share))
    parts: list[RenderableType] = [
        _table(_for_people([each.row() for each in dynamics.steps])),
        line(""),
        prose("norm: of scale · BA, or of the change of whole tensors. A and B depend on the gauge: (BM)(M⁻¹A) = BA."),
        prose(
            "cosine: between the way to the step and the way from it, 1 on a straight line, with the steps before and "
            "after; an empty cell has no two sides of nearly the length of the window."
        ),
        prose("overlap: of the subspace of BA's columns with the last checkpoint's, and the level of chance."),
    ]
    if shares:
        parts.append(prose(f"pc1: first principal component of the path; the variance of the first three: {shares}."))
    return Group(*parts)


def dynamics_json(dynamics: Dynamics, *, modules: bool) -> str:
    """All values as JSON; NaN is null."""
    steps = []
    for each in dynamics.steps:
        value = asdict(each)
        value["cosines"] = [{"window": window, **asdict(cosine)} for window, cosine in each.cosines.items()]
        value["coordinates"] = list(each.coordinates)
        value["modules"] = list(value["modules"])
        if not modules:
            del value["modules"]
        steps.append(value)
    head = {"trajectory": dynamics.trajectory, "windows": list(dynamics.windows)}
    rest = {"explained": list(dynamics.explained), "notes": list(dynamics.notes), "steps": steps}
    return as_json(without_nan(head | rest))


def dynamics_csv(dynamics: Dynamics, *, modules: bool) -> str:
    """The same table as CSV; NaN is an empty field."""
    return rows_csv(_module_rows(dynamics) if modules else [each.row() for each in dynamics.steps])


def _for_people(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as people read them: the windows beside their cosine, chance beside the overlap, no value twice."""
    shown = [_shown(row) for row in rows]
    if all(math.isclose(row["norm"], row["from_first"]) for row in rows):
        shown = [{key: value for key, value in row.items() if key != "from first"} for row in shown]
    empty = {key for key in ("A", "B", "overlap") if all(_absent(row[key]) for row in shown)}
    return [{key: value for key, value in row.items() if key not in empty} for row in shown]


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {"step": row["step"], "norm": row["norm"], "A": row["norm_a"], "B": row["norm_b"]}
    shown |= {"from first": row["from_first"], "per step": row["per_step"]}
    for key, value in row.items():
        kind, _, window = key.partition("_")
        if kind == "cosine":
            sides = f"{row[f'before_{window}']}+{row[f'after_{window}']}"
            shown[f"cosine {window}"] = None if _absent(value) else f"{value:+.2f} {sides}"
    overlap, chance = row["overlap"], row["overlap_chance"]
    shown |= {"pc1": row["pc1"], "overlap": None if _absent(overlap) else f"{overlap:.2f} ({chance:.1g})"}
    return shown | {"grad norm": row["grad_norm"]}


def _module_rows(dynamics: Dynamics) -> list[dict[str, Any]]:
    return [
        {
            "step": each.step,
            "module": module.module,
            "norm": module.norm,
            "norm_a": module.norm_a,
            "norm_b": module.norm_b,
            "overlap": float("nan") if module.overlap is None else module.overlap.outputs,
            "overlap_chance": float("nan") if module.overlap is None else module.overlap.outputs_chance,
        }
        for each in dynamics.steps
        for module in each.modules
    ]


def _table(rows: list[dict[str, Any]]) -> RenderableType:
    columns = [Column(name, "left" if name == "module" else "right") for name in rows[0]]
    return Records(columns, [[_cell(value) for value in row.values()] for row in rows])


def _cell(value: Any) -> str:
    if _absent(value):
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
