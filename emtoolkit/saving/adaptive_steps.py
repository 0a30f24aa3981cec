"""The steps that an adaptive term chooses while a model trains: measured, thinned, and kept for a resume.

The state goes into the resume state of the same step: a training that was killed and resumed chooses the steps of one
that was not.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from emtoolkit.checkpoints.layout import checkpoint_name
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.adapter_state import AdapterState
from emtoolkit.saving.finite_weights import check_finite
from emtoolkit.saving.model_state import ModelState
from emtoolkit.saving.resume_state import RESUME_DIRECTORY
from emtoolkit.saving.strategy import SavingSetup, TrainerEvent
from emtoolkit.saving.weight_distance import TrainedWeights, trained_only
from emtoolkit.schedules.adaptive import AdaptiveTerm, Distances, WeightPath
from emtoolkit.storage.atomic import remove_directory

logger = logging.getLogger(__name__)

CHOICE_FILE = "schedule_state.safetensors"
_START, _LAST = "start/", "last/"


class AdaptiveSteps:
    """The `StepChoice` of an adaptive term.

    Args:
        directory: The output directory, whose checkpoints are thinned.
        schedule: The text of the schedule, as the metadata of its checkpoints hold it.
        weights: Which tensors are measured.
        start: The `copied` weights of step 0, and `last` those that the next distance is measured from.
        finite: Whether weights that are no numbers raise a `DivergedError`.
    """

    def __init__(
        self,
        directory: Path,
        term: AdaptiveTerm,
        schedule: str,
        total_steps: int,
        weights: TrainedWeights,
        start: Mapping[str, Tensor],
        *,
        finite: bool,
    ) -> None:
        self._directory = directory
        self._term = term
        self._schedule = schedule
        self._total_steps = total_steps
        self._weights = weights
        self._start, self._last = start, start
        self._finite = finite
        self._path = WeightPath()
        # The newest step that was measured or need not be, and the chosen one that is not on disk yet.
        self._seen = 0
        self._chosen: tuple[int, Mapping[str, Tensor]] | None = None
        self.thins = term.most(total_steps) is not None

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that are kept so far."""
        return self._path.steps

    def is_measured(self, step: int) -> bool:
        return self._term.is_measured(step, self._total_steps)

    def chooses(self, step: int, tensors: Callable[[], Mapping[str, Tensor]]) -> bool:
        if step <= self._seen or not self.is_measured(step):
            return False
        now = tensors()
        self._seen = step
        start = self._start if self._term.moved_since_kept else self._last
        moved, from_start = self._weights.distances(now, self._last, start)
        if self._finite and not math.isfinite(moved):
            check_finite(step, now)
        self._path, due = self._term.measured(self._path, Distances(moved, from_start))
        self._chosen = (step, self._weights.copied(now)) if due else None
        if not self._term.moved_since_kept and math.isfinite(moved):
            self._last = self._chosen[1] if self._chosen is not None else self._weights.copied(now)
        return due

    def saved(self, step: int) -> tuple[int, ...]:
        if self._chosen is None or self._chosen[0] != step:
            return ()
        _, weights = self._chosen
        self._chosen = None
        if self._term.moved_since_kept:
            self._last = weights
        return self._keep(step)

    def ended(self, step: int) -> tuple[int, ...]:
        removed = self._keep(step)
        if self.thins:
            removed += self._remove_left_over()
        self.thins = False
        return removed

    def write(self, directory: Path) -> None:
        tensors = {_START + name: tensor for name, tensor in self._start.items()}
        tensors |= {_LAST + name: tensor.clone() for name, tensor in self._last.items()}
        state = {"term": str(self._term), "path": json.dumps(self._path.to_json())}
        save_file(tensors, directory / CHOICE_FILE, metadata=state)

    def restore(self, checkpoint: Path, step: int) -> None:
        """Go on from the resume checkpoint of `step`.

        Raises:
            CheckpointError: the checkpoint was saved under another schedule.
        """
        if problem := why_not_continued(checkpoint, self._term):
            raise CheckpointError(
                f"{problem}; without resume_from_checkpoint training starts at step 0, and intact checkpoints stay"
            )
        with safe_open(checkpoint / CHOICE_FILE, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            self._path = WeightPath.from_json(json.loads(file.metadata()["path"]))
        self._start = {n.removeprefix(_START): tensor for n, tensor in tensors.items() if n.startswith(_START)}
        self._last = {n.removeprefix(_LAST): tensor for n, tensor in tensors.items() if n.startswith(_LAST)}
        self._seen = step

    def _keep(self, step: int) -> tuple[int, ...]:
        self._path = self._path.keeping(step)
        surplus = self._term.surplus(self._path)
        if surplus is None:
            return ()
        self._path = self._path.without(surplus)
        remove_directory(self._directory / checkpoint_name(surplus))
        return (surplus,)

    def _remove_left_over(self) -> tuple[int, ...]:
        """Delete what an interrupted run of this schedule has left beside the kept steps, and return the steps.

        Checkpoints that somebody asked for stay.
        """
        metadata = Publications.read(self._directory).metadata
        found = [info for info in list_checkpoints(self._directory) if info.source == "emtoolkit"]
        left = tuple(
            info.step
            for info in found
            if info.step not in self.steps
            and info.saved_for != "asked"
            and metadata.get(info.step, {}).get("schedule") == self._schedule
        )
        for step in left:
            remove_directory(self._directory / checkpoint_name(step))
        return left


def adaptive_steps(setup: SavingSetup, term: AdaptiveTerm, event: TrainerEvent, state: ModelState) -> AdaptiveSteps:
    """The choice of `term` for the training that begins, or goes on from the resume checkpoint of its step.

    Raises:
        CheckpointError: the resume checkpoint was saved under another schedule.
    """
    trained = trained_only(state.tensors, (each for each in event.model.parameters() if each.requires_grad))
    weights = TrainedWeights.of(trained, state.config if isinstance(state, AdapterState) else None)
    if weights.why_no_product:
        logger.info("%s: %s, so its tensors are compared as they are", setup.schedule, weights.why_no_product)
    finite = setup.options.on_nan == "stop"
    choice = AdaptiveSteps(
        setup.directory, term, str(setup.schedule), setup.total_steps, weights, weights.copied(trained), finite=finite
    )
    if event.step > 0:
        choice.restore(setup.directory / RESUME_DIRECTORY / checkpoint_name(event.step), event.step)
    return choice


def why_not_continued(checkpoint: Path, term: AdaptiveTerm) -> str | None:
    """Why a training with `term` cannot go on from the resume `checkpoint`; None if it can."""
    try:
        with safe_open(checkpoint / CHOICE_FILE, "pt") as file:
            saved_by = (file.metadata() or {}).get("term")
    except (OSError, SafetensorError):
        saved_by = None
    if saved_by == str(term):
        return None
    other = "under a schedule of known steps" if saved_by is None else f"under {saved_by}"
    return f"{checkpoint}: was saved {other}, and does not say which steps {term} has chosen before"
