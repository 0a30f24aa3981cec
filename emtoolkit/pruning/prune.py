"""The removal of checkpoints from a directory and from W&B.

What goes is recorded first, then W&B's versions go, then the directories: each gets another name before its files are
deleted. A crash at any point leaves a trajectory whose checkpoints are complete, and the same call again finishes.
"""

from dataclasses import dataclass

from emtoolkit.artifacts.version_removal import RemovedVersions, remove_versions
from emtoolkit.checkpoints.publications import Place, add_pruned
from emtoolkit.errors import CheckpointError
from emtoolkit.progress import Progress, silent
from emtoolkit.pruning.keep import Request
from emtoolkit.pruning.plan import PrunePlan, plan_prune
from emtoolkit.schedules.steps import elided
from emtoolkit.storage.atomic import remove_directory, remove_temporaries
from emtoolkit.storage.lock import lock_directory


@dataclass(frozen=True, slots=True)
class Pruned:
    """A plan that was carried out, and how the versions on W&B went."""

    plan: PrunePlan
    versions: RemovedVersions


def prune(
    reference: str, request: Request, only: Place | None = None, *, days: float = 7.0, progress: Progress = silent
) -> Pruned:
    """Carry out `plan_prune`; what goes on W&B has `days` to live there, or none.

    Raises:
        InUseError: a training saves into the directory, or another process publishes from it.
        CheckpointError: see `plan_prune`; or the disk or W&B failed, and the message says what was removed.
        UserError: the request cannot be read.
    """
    plan = plan_prune(reference, request, only)
    if plan.directory is None:
        return _carry_out(plan, days, progress)
    with lock_directory(plan.directory):
        # A training may have saved in the meantime.
        return _carry_out(plan_prune(reference, request, only), days, progress)


def _carry_out(plan: PrunePlan, days: float, progress: Progress) -> Pruned:
    removed = RemovedVersions()
    if plan.directory is not None:
        remove_temporaries([plan.directory])
        here, versions = {info.step for info in plan.here}, {version.step for version in plan.versions}
        add_pruned(plan.directory, sorted(here & versions), ["here", "wandb"])
        add_pruned(plan.directory, sorted(here - versions), ["here"])
        add_pruned(plan.directory, sorted(versions - here), ["wandb"])
    if plan.collection is not None and plan.versions:
        removed = remove_versions(plan.collection, plan.versions, days, progress)
    for number, info in enumerate(plan.here):
        progress("checkpoints", number, len(plan.here))
        try:
            remove_directory(info.path)
        except OSError as error:
            done = elided([each.step for each in plan.here[:number]], 60) or "none"
            left = elided([each.step for each in plan.here[number:]], 60)
            raise CheckpointError(
                f"{info.path}: could not be deleted ({error.strerror or error}); steps removed here: {done}, not "
                f"removed: {left}; run the same command again to finish"
            ) from error
    return Pruned(plan, removed)
