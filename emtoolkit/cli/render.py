"""What the commands print: values as tables for people and as JSON for programs."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emtoolkit.byte_sizes import format_size
from emtoolkit.schedules.steps import elided

if TYPE_CHECKING:
    from emtoolkit.artifacts.download import Downloaded
    from emtoolkit.artifacts.sync import Synced
    from emtoolkit.checkpoints.listing import CheckpointInfo
    from emtoolkit.sandbox.results import CheckpointResult
    from emtoolkit.sweeps.plan import SweepPlan, SweepRun
    from emtoolkit.sweeps.runner import Outcome, SweepResult
    from emtoolkit.training.run import RunResult


def as_json(value: Any) -> str:
    """`value` on one line."""
    return json.dumps(value)


def schedule_table(rows: Sequence[dict[str, Any]], width: int = 80) -> str:
    """Rows of `schedule` as columns; long specs and long lists of steps lose their middle to fit `width`."""
    lines = [["schedule", "checkpoints", "disk", "largest gap"]]
    for row in rows:
        spec = row["spec"] if len(row["spec"]) <= 24 else f"{row['spec'][:12]}…{row['spec'][-11:]}"
        disk = "—" if row["bytes"] is None else format_size(row["bytes"])
        lines.append([spec, str(row["count"]), disk, str(row["largest_gap"])])
    room = width - sum(max(map(len, column)) + 2 for column in zip(*lines, strict=True))
    steps = ["steps", *(elided(row["steps"], room) for row in rows)]
    return aligned([[*line, listed] for line, listed in zip(lines, steps, strict=True)])


def checkpoints_table(found: "Sequence[CheckpointInfo]") -> str:
    """The checkpoints of one directory, a line each, with a word where something is wrong."""
    if not found:
        return "There are no checkpoints in it."
    lines = [["step", "size", "fingerprint", "on W&B", "path"]]
    for info in found:
        words = ["final"] if info.final else []
        words += ["another tool's"] if info.source == "other" else []
        words += [] if info.complete else ["DAMAGED"]
        note = f"  ({', '.join(words)})" if words else ""
        version = info.published.rpartition(":")[2] if info.published else "—"
        fingerprint = (info.fingerprint or "—")[:8]
        lines.append([str(info.step), format_size(info.bytes), fingerprint, version, f"{info.path}{note}"])
    collections = sorted({info.published.rpartition(":")[0] for info in found if info.published})
    return "\n".join([aligned(lines, left=()), *(f"On W&B: {collection}" for collection in collections)])


def checkpoints_json(found: "Sequence[CheckpointInfo]") -> str:
    """The same for programs."""
    return as_json([info.as_json() for info in found])


def download_text(done: "Downloaded", found: "Sequence[CheckpointInfo]") -> str:
    """What a download did, below the checkpoints that are there for it."""
    counts = f"{len(done.fetched)} downloaded ({format_size(done.bytes)}), {len(done.present)} were there already."
    return f"{checkpoints_table(found)}\n{counts}"


def download_json(done: "Downloaded", found: "Sequence[CheckpointInfo]") -> str:
    """The same for programs."""
    facts = {"directory": str(done.directory), "fetched": done.fetched, "present": done.present, "bytes": done.bytes}
    return as_json(facts | {"checkpoints": [info.as_json() for info in found]})


def result_text(result: "RunResult") -> str:
    """The closing words of a run: what was saved, where, and how to go on."""
    lines = [] if result.trained else ["Every scheduled step is there already; nothing was trained.", ""]
    lines.append(checkpoints_table(result.checkpoints))
    if result.trained:
        lines.append(f"Training waited {result.waited_seconds:.2f} s for earlier saves to reach the disk.")
    lines += [f"{str(found)[0].upper()}{str(found)[1:]}." for found in result.persona_effects]
    if result.failures:
        lines += [f"{len(result.failures)} saves failed:", *(f"  {failure}" for failure in result.failures)]
    if result.wandb_directory is not None:
        lines.append(f"W&B run: {result.wandb_directory}")
        if result.unpublished or result.wandb_directory.name.startswith("offline-"):
            lines.append(f"Publish what is not on W&B yet: emtoolkit sync {result.directory}")
    return "\n".join(lines)


def sweep_plan(plan: "SweepPlan") -> str:
    """What a sweep would run: each combination, what became of it before, and its command as one types it."""
    from emtoolkit.sweeps.command import as_typed

    lines = []
    for number, run in enumerate(plan.runs, start=1):
        values = " ".join(f"{name}={value}" for name, value in run.parameters.items())
        lines += [f"{number}  {values}  ({run.before.state})", f"   {as_typed(run.argv)}"]
    return "\n".join(lines)


def sweep_plan_json(plan: "SweepPlan") -> str:
    """The same for programs."""
    return as_json([_sweep_run(run) | {"state": run.before.state} for run in plan.runs])


def sweep_table(result: "SweepResult") -> str:
    """A line for each combination: parameters, what became of it, checkpoints, and where they are or why not."""
    names = list(result.outcomes[0].run.parameters)
    lines = [[*names, "state", "checkpoints", "directory or error"]]
    for outcome in result.outcomes:
        count = "—" if outcome.checkpoints is None else str(outcome.checkpoints)
        values = [str(outcome.run.parameters[name]) for name in names]
        lines.append([*values, outcome.attempt.state, count, _whereabouts(outcome)])
    states = Counter(outcome.attempt.state for outcome in result.outcomes)
    summary = ", ".join(f"{count} {state}" for state, count in states.items())
    advice = "\n--retry-failed runs the failed ones again." if states["failed"] else ""
    return f"{aligned(lines, left=range(len(names) + 1))}\n{summary}.{advice}"


def _whereabouts(outcome: "Outcome") -> str:
    run, attempt = outcome.run, outcome.attempt
    if attempt.error is not None:
        return f"{attempt.error} (see {run.log})"
    return str(_from_here(run.directory) if run.directory is not None else run.log)


def _from_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def sweep_json(result: "SweepResult") -> str:
    """The same for programs, with the commands."""
    return as_json(
        [
            _sweep_run(outcome.run)
            | {
                "state": outcome.attempt.state,
                "exit_code": outcome.attempt.exit_code,
                "error": outcome.attempt.error,
                "checkpoints": outcome.checkpoints,
            }
            for outcome in result.outcomes
        ]
    )


def _sweep_run(run: "SweepRun") -> dict[str, Any]:
    directory = None if run.directory is None else str(run.directory)
    return {"parameters": dict(run.parameters), "command": run.argv, "log": str(run.log), "directory": directory}


def synced_text(done: "Sequence[Synced]") -> str:
    """What `sync` did, a line for each directory."""
    lines = []
    for synced in done:
        if synced.collection is None:
            lines.append(f"{synced.directory}: left out")
            continue
        sent = [f"checkpoints published: steps {', '.join(map(str, synced.published))}"] if synced.published else []
        sent += [f"logs sent: {', '.join(log.parent.name for log in synced.logs)}"] if synced.logs else []
        sent += [f"{len(synced.problems)} problems"] if synced.problems else []
        what = "; ".join(sent) or "nothing to do"
        lines.append(f"{synced.directory}: {what}; {len(synced.on_wandb)} checkpoints are in {synced.collection}")
    return "\n".join(lines)


def synced_json(done: "Sequence[Synced]") -> str:
    """The same for programs."""
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
    )


def aligned(lines: Sequence[Sequence[str]], left: Sequence[int] = (0,), *, last: str = "left") -> str:
    """Columns padded to equal width: those in `left` to the left, the last to the side `last`, others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    free = len(widths) - 1 if last == "left" else None
    return "\n".join(
        "  ".join(
            cell if i == free else cell.ljust(widths[i]) if i in left else cell.rjust(widths[i])
            for i, cell in enumerate(line)
        )
        for line in lines
    )


def harmful_shares(evaluated: "Mapping[str, Sequence[CheckpointResult]]", trained_on: str) -> list[dict[str, Any]]:
    """One row per run, checkpoint and group of questions: each domain, and all but the one trained on."""
    from emtoolkit.sandbox.results import harmful_share_by_domain

    return [
        {
            "run": run,
            "step": checkpoint.step,
            "persona": checkpoint.persona,
            "persona_override": checkpoint.persona_override,
            **asdict(share),
        }
        for run, checkpoints in evaluated.items()
        for checkpoint in checkpoints
        for share in harmful_share_by_domain(checkpoint.counts)
        if share.domains == f"all but {trained_on}" or not share.domains.startswith("all but ")
    ]


def harmful_shares_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Harmful among coherent answers: a line a checkpoint, a column a domain, the interval for the others' mean."""
    blocks = []
    for run in dict.fromkeys(row["run"] for row in rows):
        of_run = [row for row in rows if row["run"] == run]
        groups = list(dict.fromkeys(row["domains"] for row in of_run))
        table = [["step", *groups, "95 % interval", "coherent"]]
        for step in dict.fromkeys(row["step"] for row in of_run):
            at_step = {row["domains"]: row for row in of_run if row["step"] == step}
            others = at_step[groups[-1]]
            coherent = sum(row["scored"] for row in at_step.values()) / sum(row["n"] for row in at_step.values())
            shares = [f"{at_step[group]['share']:.2f}" for group in groups]
            table.append([str(step), *shares, f"{others['low']:.2f}-{others['high']:.2f}", f"{coherent:.2f}"])
        override = of_run[0]["persona_override"]
        word = f"  (asked under another persona than it was trained with: {override})" if override else ""
        blocks.append(f"{run}{word}\n{aligned(table, left=())}")
    blocks.append("Harmful answers among the coherent ones; the interval is a bootstrap over questions.")
    return "\n\n".join(blocks)
