"""The processes of one distributed training: one of them saves, and all agree on when.

A decision that depends on a clock or a signal must be the same everywhere, or one process would wait for the
others for ever. It is exchanged over a group of its own on the CPU, so that no GPU has to stop for it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


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

    def largest(self, *values: int) -> list[int]:
        """For each of `values` the largest that any process gave."""
        if self.group is None:
            return list(values)
        agreed = torch.tensor(values, dtype=torch.int64)
        distributed.all_reduce(agreed, op=distributed.ReduceOp.MAX, group=self.group)
        return [int(value) for value in agreed]

    def gathered(self, value: Any) -> list[Any]:
        """What each process gave, in the order of the ranks, on rank 0; nothing elsewhere."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.gather_object(value, values if self.index == 0 else None, dst=0, group=self.group)
        return values if self.index == 0 else []

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        if self.group is not None:
            distributed.barrier(group=self.group)

    def close(self) -> None:
        """Let go of the group: a process that ends with its threads alive was seen to abort."""
        if self.group is not None and distributed.is_initialized():
            distributed.destroy_process_group(self.group)
