"""Resume checkpoints: everything needed to continue training, in Hugging Face's layout.

Only the newest is kept, and those of the steps that `resume_keep` chooses.

They are separate from the scheduled checkpoints, in `<output directory>/resume/checkpoint-N`, and a stock
`Trainer.train(resume_from_checkpoint=...)` accepts them. A stock resume does not report a missing `optimizer.pt`,
`scheduler.pt` or `rng_state.pth` and trains on without it, so the manifest lists the files that must exist.
"""

import dataclasses
import json
import logging
import random
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import safe_globals

from emtoolkit.checkpoints.layout import RESUME_DIRECTORY as RESUME_DIRECTORY
from emtoolkit.checkpoints.layout import TRAINER_STATE, checkpoint_name, step_of
from emtoolkit.checkpoints.manifest import Manifest, TrajectorySeal
from emtoolkit.checkpoints.trajectory_file import DamagedRecordError, TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.progress import Progress, counting, silent
from emtoolkit.saving.live_tensors import bytes_of
from emtoolkit.saving.model_state import ModelState, WriteFiles, failures_as_os_errors
from emtoolkit.storage.atomic import remove_directory, write_directory

logger = logging.getLogger(__name__)

# An additional key in `rng_state.pth`; the stock Trainer ignores keys that it does not know.
_EPOCH_BEGIN = "emtoolkit_epoch_begin"


@dataclass(frozen=True, slots=True)
class ResumeState:
    """Copies of everything that decides how training continues after `step`; `rng` has an entry for each rank."""

    step: int
    tensors: Mapping[str, Tensor]
    write: WriteFiles
    optimizer: Any
    lr_scheduler: Any
    scaler: Mapping[str, Any] | None
    rng: Sequence[Mapping[str, Any]]
    trainer_state: str

    @classmethod
    def capture(
        cls,
        model_state: ModelState,
        optimizer: Any,
        lr_scheduler: Any,
        trainer_state: Any,
        rng: Sequence[Mapping[str, Any]],
        callbacks: Sequence[Any] = (),
    ) -> "ResumeState":
        """The current state, between two steps: after the evaluation and the logging of the earlier step.

        `rng` are the random states of all ranks, and `callbacks` are those whose states are saved.
        """
        # accelerate's optimizer holds the scaler of float16.
        scaler = getattr(optimizer, "scaler", None)
        return cls(
            step=trainer_state.global_step,
            tensors={name: tensor.detach().to("cpu", copy=True) for name, tensor in model_state.tensors.items()},
            write=model_state.writer(),
            optimizer=_copied(optimizer.state_dict()),
            lr_scheduler=None if lr_scheduler is None else _copied(lr_scheduler.state_dict()),
            scaler=None if scaler is None else _copied(scaler.state_dict()),
            rng=rng,
            trainer_state=trainer_state_json(trainer_state, callbacks),
        )


def write_resume_state(
    directory: Path,
    state: ResumeState,
    seal: TrajectorySeal,
    keep: Container[int] = (),
    more: Callable[[Path], None] = lambda target: None,
) -> None:
    """Write `state` as `<directory>/resume/checkpoint-N`, then delete the others except those of the steps `keep`.

    `more` writes other files beside those of the state.

    Raises:
        CheckpointError: the files cannot be written; the other resume checkpoints stay.
    """

    def fill(target: Path) -> None:
        state.write(target, state.tensors)
        with failures_as_os_errors():
            torch.save(state.optimizer, target / "optimizer.pt")
            if state.lr_scheduler is not None:
                torch.save(state.lr_scheduler, target / "scheduler.pt")
            if state.scaler is not None:
                torch.save(state.scaler, target / "scaler.pt")
        _write_random_states(target, state.rng)
        (target / TRAINER_STATE).write_text(state.trainer_state)
        with failures_as_os_errors():
            more(target)
        seal.seal(target, state.step)

    # The weights, and the two moments of Adam.
    size = 3 * bytes_of(state.tensors.values())
    _replace_newest(directory / RESUME_DIRECTORY, state.step, fill, size, keep)


def adopt_resume_state(
    directory: Path,
    source: Path,
    step: int,
    rng: Sequence[Mapping[str, Any]],
    seal: TrajectorySeal,
    keep: Container[int] = (),
) -> None:
    """Move the files that the Trainer saved into `source` to the resume checkpoint of `step`.

    The others are deleted, except those of the steps `keep`.
    """

    def fill(target: Path) -> None:
        for entry in list(source.iterdir()):
            entry.rename(target / entry.name)
        _write_random_states(target, rng)
        seal.seal(target, step)

    _replace_newest(directory / RESUME_DIRECTORY, step, fill, 0, keep)


def _write_random_states(target: Path, rng: Sequence[Mapping[str, Any]]) -> None:
    with failures_as_os_errors():
        for rank, state in enumerate(rng):
            torch.save(dict(state), target / _rng_file(rank, len(rng)))


def _replace_newest(home: Path, step: int, fill: Callable[[Path], None], size: int, keep: Container[int]) -> None:
    if home.parent.is_dir():
        home.mkdir(exist_ok=True)
    write_directory(home / checkpoint_name(step), fill, size)
    for older, path in _directories(home):
        if older != step and older not in keep:
            remove_directory(path)


def stateful_callbacks_of(trainer: Any) -> list[Any]:
    """The callbacks and the control of `trainer` whose states a resume can restore; none if `trainer` is None.

    The caller asks again for each save, because a resume replaces them.
    """
    if trainer is None:
        return []
    return [c for c in (*trainer.callback_handler.callbacks, trainer.control) if isinstance(c, ExportableState)]


def random_state(epoch_begin: Mapping[str, Any] | None, ranks: int = 1) -> dict[str, Any]:
    """The random state of this process, under the keys that the stock Trainer's `_load_rng_state` reads.

    `epoch_begin` is the random state at the beginning of the epoch: a sampler that draws from the global generator, as
    `group_by_length` does, drew the order of the epoch from that state.
    """
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        # As the stock Trainer does: all devices in a distributed training, otherwise the current device.
        states["cuda"] = torch.cuda.random.get_rng_state_all() if ranks > 1 else torch.cuda.random.get_rng_state()
    if epoch_begin is not None:
        states[_EPOCH_BEGIN] = dict(epoch_begin)
    return states


def check_resume_state(directory: Path, step: int) -> None:
    """Check every byte of the resume checkpoint of `step`, if it exists, after the Trainer has loaded it.

    Raises:
        CheckpointError: a file of the resume checkpoint is missing or damaged, or is of another trajectory. The Trainer
            has loaded the others without a warning, and would train another model.
    """
    checkpoint = directory / RESUME_DIRECTORY / checkpoint_name(step)
    if checkpoint.is_dir() and (problems := _problems(checkpoint)):
        raise CheckpointError(f"{checkpoint}: cannot be resumed from ({'; '.join(problems)})")


def restore_epoch_begin(directory: Path, step: int, rank: int, ranks: int) -> None:
    """Restore the random state at the beginning of the epoch of `step`, if the resume checkpoint of `step` has it."""
    file = directory / RESUME_DIRECTORY / checkpoint_name(step) / _rng_file(rank, ranks)
    if not file.is_file():
        return
    with safe_globals():  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        states = torch.load(file, weights_only=True).get(_EPOCH_BEGIN)
    if states is None:
        return
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.random.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        restore = torch.cuda.random.set_rng_state_all if ranks > 1 else torch.cuda.random.set_rng_state
        restore(states["cuda"])


def newest_resume_state(directory: Path, not_after: int | None = None, *, progress: Progress = silent) -> Path | None:
    """The newest intact resume checkpoint under `directory`, at or before step `not_after` if given.

    A damaged one, and one of another trajectory, is named in a warning. `progress` counts the bytes that are compared
    with their digests.
    """
    for step, path in sorted(_directories(directory / RESUME_DIRECTORY), reverse=True):
        if not_after is not None and step > not_after:
            continue
        problems = _problems(path, progress)
        if not problems:
            return path
        logger.warning("%s; training cannot continue from step %d", problems[0], step)
    return None


def _problems(checkpoint: Path, progress: Progress = silent) -> list[str]:
    try:
        manifest = Manifest.read(checkpoint)
        record = TrajectoryRecord.read_if_any(checkpoint.parent.parent)
    except DamagedRecordError:
        # The caller names the record, and the checkpoints say which trajectory it is.
        record = None
    except CheckpointError as error:
        return [str(error)]
    if manifest.step != step_of(checkpoint.name):
        return [f"{checkpoint}: is the state of step {manifest.step}"]
    if record is not None and manifest.fingerprint != record.fingerprint:
        there, here = str(manifest.fingerprint)[:8], record.fingerprint[:8]
        return [f"{checkpoint}: is a state of trajectory {there}, and this directory is one of {here}"]
    hashed = counting(progress, "comparing the resume state", sum(digest.bytes for digest in manifest.files.values()))
    return manifest.problems(checkpoint, rehash=True, hashed=hashed)


def resume_states(directory: Path) -> list[Path]:
    """The resume checkpoints under `directory`, in the order of their steps; their files are not compared."""
    return [path for _, path in sorted(_directories(directory / RESUME_DIRECTORY))]


def remove_resume_states(directory: Path, keep: Container[int] = ()) -> None:
    """Delete the resume checkpoints under `directory`, after training has ended, except those of the steps `keep`."""
    home = directory / RESUME_DIRECTORY
    for step, path in _directories(home):
        if step not in keep:
            remove_directory(path)
    if home.is_dir() and not any(home.iterdir()):
        home.rmdir()


def _directories(home: Path) -> list[tuple[int, Path]]:
    if not home.is_dir():
        return []
    named = ((step_of(path.name), path) for path in home.iterdir() if path.is_dir())
    return [(step, path) for step, path in named if step is not None]


def trainer_state_json(trainer_state: Any, callbacks: Sequence[Any]) -> str:
    """The content of `trainer_state.json` as the stock Trainer writes it, with the current states of `callbacks`."""
    values = dataclasses.asdict(trainer_state)
    states: dict[str, Any] = dict(values["stateful_callbacks"] or {})
    for name in {type(callback).__name__ for callback in callbacks}:
        of_name = [callback.state() for callback in callbacks if type(callback).__name__ == name]
        states[name] = of_name if len(of_name) > 1 else of_name[0]
    values["stateful_callbacks"] = states
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _copied(value: Any) -> Any:
    """A copy of `value` in which every tensor is copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return value


def _rng_file(rank: int, ranks: int) -> str:
    return "rng_state.pth" if ranks == 1 else f"rng_state_{rank}.pth"
