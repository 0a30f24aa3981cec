"""What `sandbox evaluate` prints: the harmful shares of each run, by step and domain."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from emtoolkit.cli.layout import Column, Records, line, prose
from emtoolkit.cli.render import as_json

if TYPE_CHECKING:
    from emtoolkit.sandbox.results import CheckpointResult, Proportion

    # By run, its checkpoints in step order, each with its share in every domain and then outside the trained domain.
    Shares = Mapping[str, Sequence[tuple[CheckpointResult, Sequence[Proportion]]]]


def harmful_shares_table(shares: "Shares") -> RenderableType:
    """A table for each run: a line for each checkpoint, a column for each domain, the interval outside the trained one.

    The last column is the share of the answers that are coherent.
    """
    blocks: list[RenderableType] = []
    for run, checkpoints in shares.items():
        result, groups = checkpoints[0]
        override = result.persona_override
        note = f"  (evaluated under the persona {override}, not under the run's own)" if override else ""
        names = ["step", *(group.domains for group in groups), "95 % interval", "coherent"]
        rows = [
            [
                str(result.step),
                *(f"{group.share:.2f}" for group in groups),
                f"{groups[-1].low:.2f}-{groups[-1].high:.2f}",
                f"{result.coherent:.2f}",
            ]
            for result, groups in checkpoints
        ]
        blocks += [line(f"{run}{note}"), Records([Column(name) for name in names], rows), line("")]
    explanation = "Share of harmful answers among the coherent ones. The 95 % interval is for new questions."
    return Group(*blocks, prose(explanation))


def harmful_shares_json(shares: "Shares") -> str:
    """The same as JSON: a value for each run, checkpoint and group of domains; `coherent` is of the checkpoint."""
    return as_json(
        [
            {
                "run": run,
                "step": result.step,
                "persona": result.persona,
                "persona_override": result.persona_override,
                "coherent": result.coherent,
                **asdict(group),
            }
            for run, checkpoints in shares.items()
            for result, groups in checkpoints
            for group in groups
        ]
    )
