"""`environment.json`: the environments that computed the steps of a trajectory.

None of this is in the fingerprint: in one environment a training gives the same bytes again, and another CPU, another
version of torch or another number of threads may round differently. Where a step that is computed again has other
bytes, this record says what is different.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.json_files import count_in, object_in, read_json
from emtoolkit.reuse.environment import KERNEL_VARIABLES, Environment
from emtoolkit.storage.atomic import write_file
from emtoolkit.storage.digests import canonical_json

ENVIRONMENT = "environment.json"
# The facts of format 1 are others: see `_as_today`.
_FORMAT = 2


@dataclass(frozen=True, slots=True)
class TrainedStretch:
    """One process, or one launch of several, trained from `from_step` on in the environment with these `facts`."""

    from_step: int
    facts: Mapping[str, str]

    def differences_to(self, here: Environment) -> list[str]:
        """The differences to the environment `here`: one phrase each."""
        return here.differs_from(_as_today(self.facts, here.facts) if "cpu" in self.facts else self.facts)


def read_stretches(directory: Path) -> tuple[TrainedStretch, ...]:
    """The stretches of the trajectory in `directory`, in the order in which they were trained; empty without a record.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = directory / ENVIRONMENT
    try:
        trained = object_in(read_json(path)).get("trained")
        if not isinstance(trained, list):
            raise ValueError("trained: expected a list")
        stretches = [object_in(each, "trained") for each in trained]
        return tuple(TrainedStretch(count_in(each, "from_step"), _facts_in(each)) for each in stretches)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is not a record of environments ({first_line(error)}); delete the file, which only says where "
            "the steps were trained"
        ) from error


def stretch_of(directory: Path, step: int) -> TrainedStretch | None:
    """The stretch that computed `step` of the trajectory in `directory`; None if it is not recorded.

    Where stretches overlap, the last one counts: it compared the steps that were there.

    Raises:
        CheckpointError: the record is damaged.
    """
    stretches = [each for each in read_stretches(directory) if each.from_step < max(step, 1)]
    return stretches[-1] if stretches else None


def add_stretch(directory: Path, from_step: int, environment: Environment) -> None:
    """Record that `environment` trains from `from_step` on in `directory`; nothing if it is that of the stretch before.

    A damaged record begins anew.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        stretches = read_stretches(directory)
    except CheckpointError:
        stretches = ()
    added = TrainedStretch(from_step, environment.facts)
    if stretches and stretches[-1].facts == added.facts and stretches[-1].from_step <= from_step:
        return
    trained = [{"from_step": each.from_step, "environment": dict(each.facts)} for each in (*stretches, added)]
    write_file(directory / ENVIRONMENT, canonical_json({"format": _FORMAT, "trained": trained}))


def _facts_in(stretch: Mapping[str, Any]) -> Mapping[str, str]:
    facts = object_in(stretch.get("environment"), "environment")
    return {name: str(value) for name, value in facts.items() if isinstance(value, str | int)}


def _as_today(older: Mapping[str, str], here: Mapping[str, str]) -> dict[str, str]:
    """The facts of format 1 in today's form. What they do not say counts as equal to `here`."""
    facts = {name: value for name, value in here.items() if name not in KERNEL_VARIABLES}
    facts |= {name: value for name, value in older.items() if name in here or name in KERNEL_VARIABLES}
    # torch's name of the instruction set, while the processor's flags are recorded today.
    facts["instructions"] = here.get("instructions", "")
    cpu, threads, device = older["cpu"], older.get("threads", ""), older.get("device", "cpu")
    facts["processor"] = here["processor"] if here["processor"].endswith(cpu) or cpu == here["machine"] else cpu
    facts["threads"] = here["threads"] if threads in re.findall(r"\d+", here["threads"]) else threads
    if device not in here.get("accelerator", "cpu"):
        facts["accelerator"] = device
    return facts
