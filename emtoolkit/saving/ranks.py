"""The processes of one distributed training: process 0 saves, and all processes agree on when.

A decision that depends on a clock or a signal must be the same in all processes, or one would wait for the others
forever. Decisions are exchanged over a separate process group on the CPU, so no GPU waits for them.
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

from emtoolkit.errors import ConfigError, UserError, first_line
from emtoolkit.launch import process_count

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """The rank `index` of this process among `count` processes; `group` is None if there is only one."""

    index: int = 0
    count: int = 1
    group: Any = None

    @classmethod
    def of_this_training(cls) -> "Ranks":
        """The processes that torch.distributed knows; every process must call this."""
        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return cls()
        group = distributed.new_group(backend="gloo")
        return cls(distributed.get_rank(), distributed.get_world_size(), group)

    @classmethod
    def of_this_launch(cls) -> "Ranks":
        """The processes that a launcher started, connected here as the Trainer would connect them later.

        Raises:
            ConfigError: the processes cannot train together.
        """
        count = process_count()
        if count == 1:
            return cls()
        for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            if parse_flag_from_env(f"ACCELERATE_USE_{engine}"):
                raise ConfigError(
                    f"ACCELERATE_USE_{engine}: 'emtoolkit train' holds the whole model in each process; launch it "
                    "with torchrun, or use ScheduledCheckpointCallback in your own script"
                )
        PartialState(cpu=trains_on_cpu(), timeout=timedelta(seconds=TrainingArguments.ddp_timeout))
        ranks = cls.of_this_training()
        if ranks.count != count:
            raise ConfigError(
                f"WORLD_SIZE: {count} processes were started, but each would train alone; use another launcher"
            )
        return ranks

    @contextmanager
    def raise_on_all(self) -> Iterator[None]:
        """Raise an error in every process if the block raises one in any process; all processes enter it.

        Raises:
            UserError: the first process's, or a sentence about its error of another kind, which it raises itself.
        """
        if self.group is None:
            yield
            return
        reported: UserError | None = None
        own: Exception | None = None
        try:
            yield
        except UserError as error:
            reported = error
        except Exception as error:  # noqa: BLE001 - raised below, after the other processes have been told
            own, reported = error, UserError(f"process {self.index}: {type(error).__name__}: {first_line(error)}")
        errors: list[UserError | None] = [None] * self.count
        distributed.all_gather_object(errors, reported, group=self.group)
        if own is not None:
            raise own
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
        """For each of `values` the maximum over all processes."""
        if self.group is None:
            return list(values)
        agreed = torch.tensor(values, dtype=torch.int64)
        distributed.all_reduce(agreed, op=distributed.ReduceOp.MAX, group=self.group)
        return [int(value) for value in agreed]

    def gather(self, value: Any) -> list[Any]:
        """On rank 0 the `value` of each process, in the order of the ranks; an empty list on other ranks."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.gather_object(value, values if self.index == 0 else None, dst=0, group=self.group)
        return values if self.index == 0 else []

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if self.group is not None:
            distributed.barrier(group=self.group)

    def close(self) -> None:
        """Destroy the group: a process that ended while the group's threads were alive aborted."""
        if self.group is not None and distributed.is_initialized():
            distributed.destroy_process_group(self.group)


def trains_on_cpu() -> bool:
    """Whether training runs on the CPU; accelerate needs this as an argument, or each process trains alone."""
    return bool(parse_flag_from_env("ACCELERATE_USE_CPU")) or not torch.accelerator.is_available()
