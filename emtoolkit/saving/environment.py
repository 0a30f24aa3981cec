"""`environment.json`: the machine and the library versions that computed the steps of a trajectory.

None of this is in the fingerprint: on one machine a training gives the same bytes again, and another CPU, another
version of torch or another number of threads may round differently. Where a step that is computed again has other
bytes, this record says what is different.
"""

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.json_files import count_in, object_in, read_json
from emtoolkit.storage.atomic import write_file
from emtoolkit.storage.digests import canonical_json

ENVIRONMENT = "environment.json"
_FORMAT = 1

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")
# Each restricts the instructions or the order of sums of a library that computes on the CPU.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
)


@dataclass(frozen=True, slots=True)
class Environment:
    """The facts by name: `torch`, `transformers` and other versions, `cpu`, `instructions`, `threads`, `device`."""

    facts: Mapping[str, str | int]

    @classmethod
    def current(cls, device: str = "cpu") -> "Environment":
        """The environment of this process, which trains on `device`: `cpu`, or a type of accelerator as torch names it.

        `threads` is torch's number of threads at the moment of the call.
        """
        facts: dict[str, str | int] = {"python": platform.python_version()}
        facts |= {name: found for name in _PACKAGES if (found := _version(name)) is not None}
        if "bitsandbytes" in sys.modules and (found := _version("bitsandbytes")) is not None:
            facts["bitsandbytes"] = found
        facts |= {
            "cpu": _cpu_model(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "device": _device_name(device),
        }
        if device == "cuda":
            cudnn: Any = torch.backends.cudnn  # torch leaves its functions untyped
            facts |= {"cuda": str(torch.version.cuda or torch.version.hip), "cudnn": str(cudnn.version())}
        return cls(facts | {name: value for name in _VARIABLES if (value := os.environ.get(name))})

    def differs_from(self, other: "Environment") -> list[str]:
        """One phrase for each fact that is not equal, `self` there and `other` here: `torch is 2.7.0 there and …`."""
        return [
            f"{name} is {self.facts.get(name, 'not set')} there and {other.facts.get(name, 'not set')} here"
            for name in (*self.facts, *(name for name in other.facts if name not in self.facts))
            if self.facts.get(name) != other.facts.get(name)
        ]


@dataclass(frozen=True, slots=True)
class TrainedStretch:
    """One process, or one launch of several, trained from `from_step` on in `environment`."""

    from_step: int
    environment: Environment


def read_environments(directory: Path) -> tuple[TrainedStretch, ...]:
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
        return tuple(TrainedStretch(count_in(each, "from_step"), _environment_in(each)) for each in stretches)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a record of environments ({first_line(error)})") from error


def environment_of(directory: Path, step: int) -> Environment | None:
    """The environment that computed `step` of the trajectory in `directory`; None if it is not recorded.

    Where stretches overlap, the last one counts: it compared the steps that were there.

    Raises:
        CheckpointError: the record is damaged.
    """
    stretches = [each for each in read_environments(directory) if each.from_step < max(step, 1)]
    return stretches[-1].environment if stretches else None


def add_environment(directory: Path, from_step: int, environment: Environment) -> None:
    """Record that `environment` trains from `from_step` on in `directory`; nothing if it is that of the stretch before.

    A damaged record begins anew.

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        stretches = read_environments(directory)
    except CheckpointError:
        stretches = ()
    if stretches and stretches[-1].environment == environment and stretches[-1].from_step <= from_step:
        return
    all_of_them = (*stretches, TrainedStretch(from_step, environment))
    trained = [{"from_step": each.from_step, "environment": dict(each.environment.facts)} for each in all_of_them]
    write_file(directory / ENVIRONMENT, canonical_json({"format": _FORMAT, "trained": trained}))


def _environment_in(stretch: Mapping[str, Any]) -> Environment:
    facts = object_in(stretch.get("environment"), "environment")
    return Environment({name: value for name, value in facts.items() if isinstance(value, str | int)})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The model of the CPU, such as `AMD EPYC 9B14`; without one its architecture, such as `aarch64`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, named), "") or platform.processor() or platform.machine()


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device
