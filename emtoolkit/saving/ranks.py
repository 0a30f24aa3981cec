"""The processes of one distributed training: one of them saves, and all agree on when.

A decision that depends on a clock or a signal must be the same everywhere, or one process would wait for the
others for ever. It is exchanged over a group of its own on the CPU, so that no GPU has to stop for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import distributed
from transformers import TrainingArguments

from emtoolkit.errors import ConfigError, UserError
from emtoolkit.launch import process_count

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among `count`; `group` is None where there is only one."""

    index: int = 0
    count: int = 1
    group: Any = None

    @classmethod
    def of_this_training(cls) -> "Ranks":
        """The processes that torch.distributed knows of; to be called by all of them."""
        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return cls()
        group = distributed.new_group(backend="gloo")
        return cls(distributed.get_rank(), distributed.get_world_size(), group)

    @classmethod
    def of_this_launch(cls) -> "Ranks":
        """The processes that a launcher started, which meet here as the Trainer would have them meet later.

        Raises:
            ConfigError: they cannot train together.
        """
        count = process_count()
        if count == 1:
            return cls()
        for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            if parse_flag_from_env(f"ACCELERATE_USE_{engine}"):
                raise ConfigError(
                    f"ACCELERATE_USE_{engine}: 'emtoolkit train' holds the whole model in each process; launch it "
                    "with torchrun, or use ScheduledCheckpointCallback in a script of your own"
                )
        PartialState(cpu=trains_on_cpu(), timeout=timedelta(seconds=TrainingArguments.ddp_timeout))
        ranks = cls.of_this_training()
        if ranks.count != count:
            raise ConfigError(f"WORLD_SIZE: {count} processes were started, and here each of them would train alone")
        return ranks

    @contextmanager
    def raise_on_all(self) -> Iterator[None]:
        """Do something in every process; a `UserError` that any of them raises is raised in all of them."""
        error: UserError | None = None
        try:
            yield
        except UserError as raised:
            error = raised
        errors = [error]
        if self.group is not None:
            errors *= self.count
            distributed.all_gather_object(errors, error, group=self.group)
        if (first := next(filter(None, errors), None)) is not None:
            raise first

    def broadcast(self, value: T) -> T:
        """The `value` of process 0."""
        if self.group is None:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def all_reduce_max(self, *values: int) -> list[int]:
        """For each of `values` the largest that any process gave."""
        if self.group is None:
            return list(values)
        agreed = torch.tensor(values, dtype=torch.int64)
        distributed.all_reduce(agreed, op=distributed.ReduceOp.MAX, group=self.group)
        return [int(value) for value in agreed]

    def gather(self, value: Any) -> list[Any]:
        """What each process gave, in the order of the ranks, on rank 0; nothing elsewhere."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.gather_object(value, values if self.index == 0 else None, dst=0, group=self.group)
        return values if self.index == 0 else []

    def barrier(self) -> None:
        """Return when every process has come here."""
        if self.group is not None:
            distributed.barrier(group=self.group)

    def close(self) -> None:
        """Let go of the group: a process that ends with its threads alive was seen to abort."""
        if self.group is not None and distributed.is_initialized():
            distributed.destroy_process_group(self.group)


def trains_on_cpu() -> bool:
    """Whether processes train together on the CPU; accelerate must be told so, or each of them trains alone."""
    return bool(parse_flag_from_env("ACCELERATE_USE_CPU")) or not torch.accelerator.is_available()
