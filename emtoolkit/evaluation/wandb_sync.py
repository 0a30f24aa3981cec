"""Sends evaluations that W&B lacks: those of offline runs, and what a failure of W&B left over.

The log of an offline or interrupted run is replayed. The files and the lineage follow, because W&B's client takes no
inputs of an offline run. An evaluation without a log is logged from its files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emtoolkit.artifacts.attached_run import attached_run
from emtoolkit.artifacts.run_log import replay
from emtoolkit.checkpoints.publications import WandbRun
from emtoolkit.errors import first_line
from emtoolkit.evaluation.wandb_content import Content, define_axis, place_of
from emtoolkit.evaluation.wandb_record import EvaluationRun, keep_run, read_runs
from emtoolkit.progress import Progress, silent

_ENDED = ("finished", "failed", "crashed", "killed", "preempted")


class IncompleteError(Exception):
    """W&B lacks a part of the run."""


@dataclass(frozen=True, slots=True)
class SyncedEvaluation:
    """The runs of one evaluation that were sent, as `entity/project/id`, and a sentence for each that was not."""

    directory: Path
    sent: tuple[str, ...]
    problems: tuple[str, ...]


def sync_evaluations(
    directories: Sequence[Path],
    *,
    project: str | None = None,
    entity: str | None = None,
    progress: Progress = silent,
) -> list[SyncedEvaluation]:
    """Send the evaluations in `directories` that W&B does not have completely.

    The target is `entity/project`; each defaults to that of the evaluated trajectory.

    Raises:
        UserError: an evaluation cannot be read.
    """
    results = []
    for done, directory in enumerate(directories):
        progress("evaluations", done, len(directories))
        sent, problems = [], []
        for run in read_runs(directory):
            if run.sent:
                continue
            try:
                content = Content.read(directory, run.reference, run.steps)
                sent.append(send(content, run, project=project, entity=entity).path)
            except Exception as error:  # noqa: BLE001 - the client documents no set of exceptions
                problems.append(f"{directory}: the evaluation could not be sent ({first_line(error)})")
        results.append(SyncedEvaluation(directory, tuple(sent), tuple(problems)))
    return results


def send(
    content: Content, kept: EvaluationRun, *, project: str | None = None, entity: str | None = None
) -> EvaluationRun:
    """Send what W&B lacks of the run `kept`, and record that W&B has it.

    Raises:
        IncompleteError: W&B did not take the run's log.
        Exception: whatever W&B's client raises.
    """
    known_entity, known_project = place_of(content.reference)
    entity, project = entity or kept.entity or known_entity, project or kept.project or known_project
    kept = replace(kept, entity=entity, project=project)
    if log := kept.log_in(content.directory):
        _replay(content, WandbRun(kept.id, entity, project, log))
    state = _state(kept)
    more = {} if state else content.run_options()
    with attached_run(kept.id, state, define_axis, project=project, entity=entity or None, **more) as run:
        if state is None:
            content.log_curve(run)
        else:
            content.log_missing_table(run)
        content.use_checkpoints(run)
        content.log_files(run)
        kept = replace(kept, entity=str(run.entity), project=str(run.project), sent=True)
    keep_run(content.directory, kept)
    return kept


def _replay(content: Content, run: WandbRun) -> None:
    if run.is_synced:
        return
    target = ["--project", run.project, *(["--entity", run.entity] if run.entity else [])]
    done = replay(run, target, content.artifact_names())
    if done.is_empty:
        # The run was killed before W&B's client wrote a record; everything is in the evaluation's files.
        return
    state = _state(EvaluationRun(run.id, "", "", (), run.entity, run.project))
    if not done.is_sent or state not in _ENDED:
        lines = done.output.splitlines()
        errors = [line for line in lines if "ERROR" in line] or lines[-1:]
        raise IncompleteError(f"'wandb sync' did not send the whole log: {' '.join(errors).strip() or 'no output'}")
    run.mark_synced()


def _state(run: EvaluationRun) -> str | None:
    """The state of `run` on W&B; None if W&B does not have the run."""
    import wandb

    try:
        return str(wandb.Api().run(run.path).state)
    except (wandb.errors.CommError, ValueError):
        return None
