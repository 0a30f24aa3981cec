"""The output of `plan` and `train --dry-run`: the plan of a run, and the plans of a sweep with their totals."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from emtoolkit.byte_sizes import format_size
from emtoolkit.cli.layout import Column, ElidedSteps, Records, facts, here, prose
from emtoolkit.cli.render import as_json
from emtoolkit.cli.render_power import detection_json, detection_text
from emtoolkit.evaluation.power import Detection
from emtoolkit.models.memory import GPUS_GB, Memory
from emtoolkit.schedules.steps import elided
from emtoolkit.training.cost import PlannedRun, Totals

if TYPE_CHECKING:
    from emtoolkit.training.plan import Plan

_PARTS = ("weights", "gradients", "optimizer", "activations", "recompute", "logits", "evaluation")


def plan_table(run: PlannedRun, detection: Detection | None = None) -> RenderableType:
    """The work and the cost of a run, a line for each fact, and what its evaluation can detect."""
    plan = run.plan
    each = "" if plan.checkpoint_bytes is None else f" of {format_size(plan.checkpoint_bytes)}"
    beside = "" if plan.resume_bytes is None else f", and {format_size(plan.resume_bytes)} while it runs"
    table = facts(
        [
            ("persona", plan.persona),
            ("dataset", f"{plan.dataset}: {plan.train_rows} rows to train on, {plan.test_rows} held out"),
            ("optimizer steps", f"{plan.total_steps}{_with_reuse(plan.total_steps, run.steps_with_reuse)}"),
            ("schedule", plan.schedule),
            ("saves at", _saves_at(plan)),
            ("checkpoints", f"{_checkpoints(plan)}{each}"),
            ("disk", f"{_size(plan.bytes)}{beside}"),
            *((("resume states", _kept(plan)),) if plan.kept_states else ()),
            ("on W&B", _size(plan.bytes) if run.published else "nothing"),
            ("peak memory", _size(None) if plan.memory is None else _peak(plan.memory)),
            *((("fits", _fitting(plan.memory)),) if plan.memory is not None else ()),
            ("evaluates at", "never" if plan.eval_steps is None else ElidedSteps(plan.eval_steps)),
            ("answers", f"{_number(run.answers)}, {_number(run.judge_calls)} judge calls{_assumed([run])}"),
            ("writes to", here(plan.directory)),
            *(("note", note) for note in plan.notes),
        ]
    )
    return table if detection is None else Group(table, detection_text(detection))


def runs_table(runs: Sequence[PlannedRun], total: Totals, detection: Detection | None = None) -> RenderableType:
    """The runs of a sweep, a line for each, then their totals, their notes, and what an evaluation can detect."""
    names = list(runs[0].parameters)
    numbers = ("steps", "checkpoints", "disk", "peak memory", "answers", "judge calls")
    columns = [*(Column(name, "left") for name in names), *map(Column, numbers)]
    rows = []
    for run in runs:
        plan = run.plan
        rows.append(
            [
                *(str(run.parameters[name]) for name in names),
                str(plan.total_steps),
                _checkpoints(plan),
                _size(plan.bytes),
                _size(None if plan.memory is None else plan.memory.peak),
                _number(run.answers),
                _number(run.judge_calls),
            ]
        )
    notes = dict.fromkeys(note for run in runs for note in run.plan.notes)
    summary = prose(_summary(total, _assumed(runs)))
    parts: list[RenderableType] = [Records(columns, rows), summary, facts(("note", note) for note in notes)]
    return Group(*parts, *([] if detection is None else [detection_text(detection)]))


def plan_json(plan: "Plan") -> str:
    """The plan of a run as JSON, with every step."""
    return as_json(_facts(plan))


def runs_json(runs: Sequence[PlannedRun], total: Totals, detection: Detection | None = None) -> str:
    """Runs, their totals, and what an evaluation can detect, as JSON."""
    rows = [
        _facts(run.plan)
        | {
            "parameters": dict(run.parameters),
            "answers": run.answers,
            "judge_calls": run.judge_calls,
            "published": run.published,
            "steps_with_reuse": run.steps_with_reuse,
        }
        for run in runs
    ]
    found = {} if detection is None else {"detection": detection_json(detection)}
    return as_json({"runs": rows, "totals": asdict(total), **found})


def _summary(total: Totals, assumed: str) -> str:
    return (
        f"{total.runs} runs on {total.trajectories} trajectories: {total.steps:,} optimizer steps"
        f"{_with_reuse(total.steps, total.steps_with_reuse)}, "
        f"{_number(total.checkpoints)} checkpoints, {_size(total.bytes)} on disk, "
        f"{_size(total.bytes_on_wandb)} on W&B ({_number(total.versions)} versions: runs on one trajectory share "
        f"them), at most {_size(total.peak)} of memory, "
        f"{_number(total.answers)} answers and {_number(total.judge_calls)} judge calls{assumed}."
    )


def _kept(plan: "Plan") -> str:
    count = len(plan.kept_states)
    return f"{count} kept for refine, {_size(plan.kept_bytes)} more on disk"


def _with_reuse(steps: int, left: int | None) -> str:
    return "" if left is None or left == steps else f" ({left:,} with reuse)"


def _saves_at(plan: "Plan") -> ElidedSteps | str:
    if plan.adaptive is None:
        return ElidedSteps(plan.steps)
    return f"{elided(plan.steps)}, and steps that {plan.adaptive} chooses during training"


def _checkpoints(plan: "Plan") -> str:
    return f"{'at most ' if plan.adaptive is not None and plan.count is not None else ''}{_number(plan.count)}"


def _number(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def _size(count: int | None) -> str:
    return "unknown" if count is None else format_size(count)


def _assumed(runs: Sequence[PlannedRun]) -> str:
    if not any(run.plan.evaluation.assumed for run in runs):
        return ""
    each = runs[0].plan.evaluation.samples // 8
    return f" (assumed: 8 questions, {each} answers each, 2 metrics; evaluation.questions names a file)"


def _peak(memory: Memory) -> str:
    parts = ", ".join(f"{name} {format_size(getattr(memory, name))}" for name in _PARTS if getattr(memory, name))
    return f"{format_size(memory.peak)} with rows of max_length ({parts})"


def _fitting(memory: Memory) -> str:
    fitting = [size for size in GPUS_GB if memory.fits(size)]
    if not fitting:
        return f"no GPU of {GPUS_GB[-1]} GB or less"
    return f"a GPU of {', '.join(map(str, fitting))} GB"


def _facts(plan: "Plan") -> dict[str, Any]:
    memory = plan.memory
    return {
        "persona": plan.persona,
        "dataset": plan.dataset,
        "train_rows": plan.train_rows,
        "test_rows": plan.test_rows,
        "total_steps": plan.total_steps,
        "schedule": plan.schedule,
        "steps": list(plan.steps),
        "count": plan.count,
        "eval_steps": None if plan.eval_steps is None else list(plan.eval_steps),
        "checkpoint_bytes": plan.checkpoint_bytes,
        "bytes": plan.bytes,
        "resume_bytes": plan.resume_bytes,
        "kept_resume_states": list(plan.kept_states),
        "kept_resume_bytes": plan.kept_bytes,
        "memory": None if memory is None else asdict(memory) | {"peak": memory.peak},
        "fits_gpus_of_gb": None if memory is None else [size for size in GPUS_GB if memory.fits(size)],
        "evaluation": asdict(plan.evaluation),
        "output_dir": str(plan.directory),
        "notes": list(plan.notes),
    }
