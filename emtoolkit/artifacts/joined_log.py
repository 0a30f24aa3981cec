"""The log of one part of a run that W&B has in part already: what W&B lacks of it, in W&B's own records.

A training that was interrupted and resumed has a log for each part. What W&B holds of a step stays, and so do the
summary and the end of the run if a later part has set them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from emtoolkit.artifacts.run_history import RunHistory, find_run, history_of
from emtoolkit.checkpoints.publications import WandbRun

_OWN = "_"


@dataclass(frozen=True, slots=True)
class Held:
    """W&B's copy of a run: its history, and its summary and exit code if a later part has set them."""

    history: RunHistory
    summary: Mapping[str, Any] | None = None
    exit_code: int = 0

    @classmethod
    def of(cls, path: str, *, is_later_there: bool) -> "Held | None":
        """W&B's copy of the run `entity/project/id`; None if it does not have the run.

        Raises:
            Exception: whatever W&B's client raises if the server does not answer.
        """
        run = find_run(path)
        if run is None:
            return None
        history = history_of(run)
        if not is_later_there:
            return cls(history)
        return cls(history, dict(run.summary_metrics or {}), int(run.state != "finished"))

    def lacking(self, record: Any) -> bool:
        """Whether `record` is to be sent; the values of a row that W&B has are removed from `record`."""
        if record.HasField("history"):
            return self._reduce(record.history)
        if record.HasField("run"):
            # The client appends the rows to the history of the run.
            record.run.resume = True
        is_end = record.HasField("summary") or record.HasField("exit") or record.HasField("preempting")
        return self.summary is None or not is_end

    def _reduce(self, history: Any) -> bool:
        row = {_name(item): json.loads(item.value_json) for item in history.item}
        values = {name: value for name, value in row.items() if not name.startswith(_OWN)}
        missing = self.history.lacking(values)
        kept = [item for item in history.item if _name(item) in missing or _name(item).startswith(_OWN)]
        del history.item[:]
        history.item.extend(kept)
        return bool(missing)

    def end(self, number: int) -> list[bytes]:
        """The records that end the log as W&B holds the run, numbered from `number`; none if this part is the last."""
        if self.summary is None:
            return []
        messages = import_module("wandb.proto.wandb_internal_pb2")
        summary, end = messages.Record(num=number), messages.Record(num=number + 1)
        for name, value in self.summary.items():
            summary.summary.update.add(key=name, value_json=json.dumps(value))
        end.exit.exit_code = self.exit_code
        return [summary.SerializeToString(), end.SerializeToString()]


def was_on_wandb(part: WandbRun) -> bool:
    """Whether W&B had the run of `part`: the part was online, or its log was sent."""
    return part.is_synced or not part.name.startswith("offline-")


def _name(item: Any) -> str:
    return str(item.nested_key[0] if item.nested_key else item.key)
