"""The evaluations of a W&B sweep: those that its runs logged, or that were made of the checkpoints of its runs.

A training's checkpoints are one collection on W&B, which runs of one training share; the results of its evaluation are
artifacts whose names begin with the name of the collection.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.server import why_not_logged_in, why_unreachable
from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.evaluation.result_files import StoredEvaluation, read_evaluation
from emtoolkit.evaluation.wandb_results import download_results
from emtoolkit.hub.names import is_hub
from emtoolkit.progress import Progress, silent
from emtoolkit.shell_command import quoted_command

_FORM = "a sweep on W&B is written entity/project/sweep-id"
_PER_PAGE = 100
_NAMED = 3


@dataclass(frozen=True, slots=True)
class SweepEvaluations:
    """The evaluations of a sweep's trainings, the schedules of its runs, and sentences on what is missing."""

    evaluations: tuple[StoredEvaluation, ...]
    schedules: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """A run of the sweep: its training's `collections` of checkpoints, and `results` that it logged itself."""

    name: str
    state: str
    config: Mapping[str, Any]
    collections: tuple[str, ...]
    results: tuple[str, ...]


def is_wandb_sweep(place: str | Path) -> bool:
    """Whether `place` can only be a sweep on W&B: there is no such directory, and it has three parts."""
    parts = str(place).split("/")
    if is_hub(place):
        return False
    return (
        not Path(place).exists() and len(parts) == 3 and all(part.strip() not in ("", ".", "..", "~") for part in parts)
    )


def sweep_evaluations(place: str, progress: Progress = silent) -> SweepEvaluations:
    """The evaluations of the sweep `place`, `entity/project/sweep-id`.

    Raises:
        CheckpointError: there is no such sweep, W&B does not answer, or no run is evaluated.
    """
    if why := why_not_logged_in() or why_unreachable():
        raise CheckpointError(f"{place}: there is no such directory, and W&B could not be asked ({why}); {_FORM}")
    try:
        runs, existing = _query(place)
    except CheckpointError:
        raise
    except Exception as error:  # the client documents no set of exceptions
        raise CheckpointError(f"{place}: W&B could not be asked for the sweep ({first_line(error)})") from error
    project = place.rpartition("/")[0]
    notes, wanted = list(_differences(place, runs)), dict[str, None]()
    for run in runs:
        found = [*run.results]
        for collection in run.collections:
            found += [name for name in existing if name.startswith(f"{collection}-evaluation-")]
        if not found:
            notes.append(f"{project}: run {run.name} has no evaluation on W&B, so it is left out")
        wanted |= dict.fromkeys(found)
    if not wanted:
        command = quoted_command("emtoolkit", "evaluate", f"{project}/COLLECTION", "--wandb", "online")
        raise CheckpointError(
            f"{place}: none of its {len(runs)} runs has an evaluation on W&B yet; run {command} on the checkpoints of "
            "its runs"
        )
    evaluations = tuple(_downloaded(f"{project}/{name}", progress) for name in wanted)
    schedules = dict.fromkeys(str(run.config["schedule"]) for run in runs if run.config.get("schedule"))
    return SweepEvaluations(evaluations, tuple(schedules), tuple(notes))


def _query(place: str) -> tuple[list[_Run], list[str]]:
    """The runs of the sweep, and the names of all results of evaluations in its project."""
    import wandb

    entity, project, _ = place.split("/")
    api = wandb.Api(overrides={"entity": entity})
    try:
        sweep = api.sweep(place)  # type: ignore[no-untyped-call]  # not annotated in the client
    except (wandb.errors.CommError, ValueError) as error:
        raise CheckpointError(
            f"{place}: there is no such directory, and no sweep of this id on {api.settings['base_url']}; {_FORM}, and "
            f"'wandb sweep' prints it ({first_line(error)})"
        ) from None
    runs = []
    for run in sweep.runs:
        names: dict[str, dict[str, None]] = {"model": {}, "evaluation": {}}
        for artifact in run.logged_artifacts(per_page=_PER_PAGE):
            names.setdefault(artifact.type, {})[artifact.name.partition(":")[0]] = None
        # The group of a training is the collection of its trajectory, which another run may have published.
        group = [run.group] if run.group and not names["evaluation"] else []
        collections = tuple(dict.fromkeys([*names["model"], *group]))
        runs.append(_Run(run.name, run.state, run.config, collections, tuple(names["evaluation"])))
    try:
        results = api.artifact_type("evaluation", f"{entity}/{project}").collections(per_page=_PER_PAGE)
        return runs, [each.name for each in results]
    except (wandb.errors.CommError, ValueError):
        # Nothing was ever evaluated in this project.
        return runs, []


def _differences(place: str, runs: Sequence[_Run]) -> list[str]:
    notes = []
    open_runs = [run for run in runs if run.state != "finished"]
    if open_runs:
        named = "; ".join(f"{run.name}: {run.state}" for run in open_runs[:_NAMED])
        more = f"; and {len(open_runs) - _NAMED} more" if len(open_runs) > _NAMED else ""
        notes.append(f"{place}: {len(open_runs)} of {len(runs)} runs of the sweep have not finished ({named}{more})")
    bases = {base: run.name for run in runs if (base := _base(run.config)) is not None}
    if len(bases) > 1:
        named = ", ".join(f"{base} in {name}" for base, name in sorted(bases.items()))
        notes.append(f"the runs have different base models ({named}), so their curves differ by that, too")
    return notes


def _base(config: Mapping[str, Any]) -> str | None:
    """The base model in the config of a training."""
    model = dict(config.get("emtoolkit") or {}).get("model")
    return str(model["base"]) if isinstance(model, Mapping) and model.get("base") else None


def _downloaded(name: str, progress: Progress) -> StoredEvaluation:
    """The rows of all versions of the results `name`; of a step that several have, those of the newest."""
    with tempfile.TemporaryDirectory(prefix="emtoolkit-sweep-") as scratch:
        versions = [read_evaluation(directory) for _, directory in download_results(name, Path(scratch), progress)]
    newest, *older = versions
    for each in older:
        known = {*newest.steps}
        newest = replace(
            newest,
            rows=(*newest.rows, *(row for row in each.rows if row.step not in known)),
            measured=(*newest.measured, *(row for row in each.measured if row.step not in known)),
        )
    return replace(newest, directory=Path(name))
