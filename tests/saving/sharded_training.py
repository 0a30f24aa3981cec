"""Trainings whose weights are sharded, one after the other, run by torchrun.

Arguments: the engine, `fsdp` or `deepspeed`, and a JSON list of trainings: directory, schedule and options. The
trainings share the processes, because starting a process takes longer than any of them.
"""

import itertools
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import Trainer, TrainerCallback, TrainingArguments

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.errors import UserError
from emtoolkit.saving.signals import TrainingInterrupted
from tests.saving import trainings
from tests.saving.callbacks import Die, StopAt

FSDP = {
    "transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer"],
    "cpu_ram_efficient_loading": False,
    "sync_module_states": False,  # which version 1 does on GPUs only
}
DEEPSPEED = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
}


class GpuTrainer(Trainer):
    """Makes accelerate treat these processes as having GPUs: without GPUs it silently ignores FSDP."""

    def __init__(self, *, args: TrainingArguments, **kwargs: Any) -> None:
        args.device  # noqa: B018 - reading it creates the state that the next line changes
        PartialState().distributed_type = DistributedType.MULTI_GPU
        PartialState().device = torch.device("cpu")  # without the number that a GPU has
        super().__init__(args=args, **kwargs)


class Shown(TrainerCallback):
    """Prints the type of the trained parameters in process 0."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            parameter = next(p for p in kwargs["model"].parameters() if p.requires_grad)
            print("trained:", type(parameter).__name__, hasattr(parameter, "ds_id"), flush=True)


class Ask(TrainerCallback):
    """Process 0 makes the file `requests[step]` in `directory` while the step is trained."""

    def __init__(self, directory: Path, requests: dict[str, str]) -> None:
        self._directory = directory
        self._requests = requests

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        name = self._requests.get(str(state.global_step + 1))
        if name is not None and state.is_world_process_zero:
            (self._directory / name).touch()


def train(engine: str, directory: Path, schedule: str, options: dict[str, Any]) -> None:
    # With this clock each look for requests is due.
    clock = itertools.count().__next__
    ours = ScheduledCheckpointCallback(schedule, resume_every=options.pop("resume_every", "never"), clock=clock)
    callbacks: list[TrainerCallback] = [] if options.pop("stock", False) else [ours]
    callbacks.append(Shown())
    if (step := options.pop("die_at", None)) is not None:
        callbacks.append(Die(step, ours))
    if (step := options.pop("stop_at", None)) is not None:
        callbacks.append(StopAt(step))
    if (requests := options.pop("requests", None)) is not None:
        callbacks.append(Ask(directory, requests))
    model = trainings.base_model() if options.pop("full", False) else None
    resume_from = options.pop("resume_from", None)
    if engine == "fsdp":
        trainings.Trainer = GpuTrainer  # type: ignore[misc]
        own = {"version": options.pop("version", 2), "state_dict_type": options.pop("kind")}
        options |= {"fsdp": True, "fsdp_config": FSDP | own}
    else:
        zero = {"stage": options.pop("stage"), "stage3_gather_16bit_weights_on_model_save": True}
        options |= {"deepspeed": DEEPSPEED | {"zero_optimization": zero}}
    trainer = trainings.make_trainer(directory, callbacks, model=model, **options)
    try:
        trainer.train(resume_from_checkpoint=resume_from)
    except TrainingInterrupted as interruption:
        print("stopped:", interruption.step, interruption, flush=True)
    except UserError as error:
        os.write(1, f"refused: {error}\n".encode())  # in one write: the other process writes to the same pipe


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("emtoolkit").setLevel(logging.INFO)
    for directory, schedule, options in json.loads(sys.argv[2]):
        train(sys.argv[1], Path(directory), schedule, options)
