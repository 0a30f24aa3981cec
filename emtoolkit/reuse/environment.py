"""The facts beside the fingerprint that decide a training's bytes: library versions, the processor, threads, the GPU.

The same trajectory has the same bytes again only where all of these are equal. The facts stand in `environment.json`
beside the checkpoints, in the `store.json` of a trajectory in the store, and in the metadata of each checkpoint.
Everything is read without importing torch, so that a run whose checkpoints exist already ends in a second.
"""

import hashlib
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from emtoolkit.cpu_threads import SMALL_MODEL
from emtoolkit.storage.digests import canonical_json

_LIBRARIES = ("emtoolkit", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "bitsandbytes")
# The flags of /proc/cpuinfo by which math libraries choose their kernels.
_INSTRUCTIONS = ("sse4", "avx", "fma", "amx", "f16c", "asimd", "sve", "bf16", "i8mm")
# Variables that choose kernels.
KERNEL_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Environment:
    """The facts by name, such as `torch: 2.13.0`; two environments with equal facts give equal bytes."""

    facts: Mapping[str, str]

    @classmethod
    def here(
        cls, base_parameters: int | None, *, on_cpu: bool, environment: Mapping[str, str] = os.environ
    ) -> "Environment":
        """The environment of a training in this process of a base model with `base_parameters`, None if unknown.

        `on_cpu` says that the config asks for the CPU, whatever else the machine has.
        """
        facts = {name: found for name in _LIBRARIES if (found := _version(name)) is not None}
        facts |= {"python": platform.python_version(), "machine": platform.machine()}
        facts |= _processor() | {"threads": _threads(base_parameters, environment)}
        facts |= {name: value for name in KERNEL_VARIABLES if (value := environment.get(name))}
        if not on_cpu and (accelerator := _accelerator(environment)):
            facts["accelerator"] = accelerator
            if libraries := _libraries_of_torch():
                facts["cuda"] = libraries
        return cls(facts)

    @property
    def digest(self) -> str:
        """SHA-256 in hex over the facts."""
        return hashlib.sha256(canonical_json(dict(self.facts))).hexdigest()

    def differs_from(self, other: Mapping[str, Any]) -> list[str]:
        """The differences to the facts `other` of an earlier training: one phrase each."""
        names = sorted(self.facts.keys() | other.keys())
        return [
            f"{name} was {_shown(other.get(name))} there and is {_shown(self.facts.get(name))} here"
            for name in names
            if other.get(name) != self.facts.get(name)
        ]


def _shown(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@cache
def _version(name: str) -> str | None:
    """The installed version, read once: an upgrade changes nothing in a process that has imported the library."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _libraries_of_torch() -> str:
    """The packages of NVIDIA that torch asks for, such as cuDNN, with the versions that are installed."""
    try:
        lines = requires("torch") or ()
    except PackageNotFoundError:
        return ""
    asked = {re.split(r"[^\w-]", line, maxsplit=1)[0] for line in lines if line.startswith("nvidia-")}
    found = {name: _version(name) for name in sorted(asked)}
    return ", ".join(f"{name} {number}" for name, number in found.items() if number is not None)


def _processor() -> dict[str, str]:
    """The model of the processor, and the instruction sets that it reports."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {"processor": platform.processor() or platform.node()}
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    flags = (found.get("flags") or found.get("Features") or "").split()
    names = ("vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU part")
    chosen = sorted(flag for flag in flags if any(part in flag for part in _INSTRUCTIONS))
    return {
        "processor": " ".join(filter(None, (found.get(name) for name in names))),
        "instructions": " ".join(chosen),
    }


def _threads(base_parameters: int | None, environment: Mapping[str, str]) -> str:
    """How many threads compute, by the rule of `threads_for`, or what decides their number."""
    if given := [f"{name}={environment[name]}" for name in _THREAD_VARIABLES if environment.get(name)]:
        # OMP_NUM_THREADS=1 is what a small model takes without the variable.
        return "1" if given == ["OMP_NUM_THREADS=1"] else " ".join(given)
    # The new adapter counts, too: close to the limit only the machine says how many threads there are.
    if base_parameters is not None and base_parameters < SMALL_MODEL * 0.9:
        return "1"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"all of {cores} cores"


def _accelerator(environment: Mapping[str, str]) -> str:
    """The names of the GPUs and of their driver; for other accelerators the name of the machine."""
    home = Path("/proc/driver/nvidia")
    names = []
    for file in sorted(home.glob("gpus/*/information")):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    if len(set(names)) > 1:
        # Which of them trains decides the bytes.
        names.append(f"CUDA_VISIBLE_DEVICES={environment.get('CUDA_VISIBLE_DEVICES', 'not set')}")
    if names:
        driver = (home / "version").read_text(encoding="utf-8", errors="replace").splitlines()[:1]
        return "; ".join([*names, *driver])
    others = sys.platform == "darwin" or any(Path(device).exists() for device in ("/dev/kfd", "/dev/nvidiactl"))
    return f"of {platform.node()}" if others else ""
