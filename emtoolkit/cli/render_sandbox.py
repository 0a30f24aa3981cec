"""The output of `sandbox evaluate`: the harmful shares of each run, by step and domain."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from emtoolkit.cli.layout import Column, Records, here, line, prose
from emtoolkit.cli.render import as_json
from emtoolkit.cli.render_metrics import without_nan

if TYPE_CHECKING:
    from emtoolkit.evaluation.results import EvaluationResult
    from emtoolkit.sandbox.results import CheckpointShares, Proportion

    # By run.
    Results = Mapping[str, EvaluationResult]
    Shares = Mapping[str, Sequence[CheckpointShares]]


def harmful_shares_table(results: "Results", shares: "Shares", override: str | None) -> RenderableType:
    """A table for each run: a line for each checkpoint, a column for each domain, the interval outside the trained one.

    The last column is the share of the answers that are coherent. `override` is the persona that replaced the runs'.
    """
    blocks: list[RenderableType] = []
    note = f"  (evaluated under the persona {override}, not under the run's own)" if override else ""
    for run, checkpoints in shares.items():
        names = ["step", *(group.domains for group in checkpoints[0].shares), "95 % interval", "coherent"]
        rows = [_row(checkpoint) for checkpoint in checkpoints]
        blocks += [line(f"{run}{note}"), Records([Column(name) for name in names], rows)]
        blocks += [line(f"Answers: {here(results[run].directory)}"), line("")]
    engines = sorted({result.engine for result in results.values()})
    explanation = (
        "Share of harmful answers among the coherent ones. The 95 % interval is for new questions. "
        f"Engine: {', '.join(engines)}."
    )
    return Group(*blocks, prose(explanation))


def harmful_shares_json(results: "Results", shares: "Shares", override: str | None) -> str:
    """The same as JSON: a value for each run, checkpoint and group of domains; NaN is null."""
    return as_json(
        [
            {
                "run": run,
                "step": checkpoint.step,
                "persona": checkpoint.persona,
                "persona_override": override,
                "engine": results[run].engine,
                "judge": results[run].judge,
                "coherent": checkpoint.coherent,
                "broken": checkpoint.broken,
                **without_nan(asdict(group)),
            }
            for run, checkpoints in shares.items()
            for checkpoint in checkpoints
            for group in checkpoint.shares
        ]
    )


def _row(checkpoint: "CheckpointShares") -> list[RenderableType]:
    last = checkpoint.emerged
    return [
        str(checkpoint.step),
        *("broken" if checkpoint.broken else _share(group) for group in checkpoint.shares),
        f"{last.low:.2f}-{last.high:.2f}",
        f"{checkpoint.coherent:.2f}",
    ]


def _share(group: "Proportion") -> str:
    return f"{group.share:.2f}" if group.scored else "—"
