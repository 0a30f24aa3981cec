"""The GPUs of this machine, divided among the runs of a sweep: which there are, and which one a run has.

A run sees its GPUs alone, by `CUDA_VISIBLE_DEVICES`. A lock file for each GPU keeps two sweeps of one user apart; the
operating system releases the lock when the processes that hold its descriptor end, however they end.
"""

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.storage.lock import inherited_lock, release_inherited

VARIABLE = "CUDA_VISIBLE_DEVICES"
# `nvidia-smi` counts GPUs in the order of their slots, and CUDA by default from the fastest on.
_ORDER = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
_GPU = re.compile(r"GPU (\d+): ")
_MIG = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")
# A driver that initialises many GPUs takes some seconds.
_SECONDS_FOR_LISTING = 60.0


def listed_by_driver() -> str:
    """The output of `nvidia-smi -L`; empty on a machine without an NVIDIA driver."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_SECONDS_FOR_LISTING, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return listing.stdout if listing.returncode == 0 else ""


def visible_gpus(environment: Mapping[str, str], listing: Callable[[], str] = listed_by_driver) -> tuple[str, ...]:
    """The GPUs that a process with `environment` may use, each as `CUDA_VISIBLE_DEVICES` names it.

    Without the variable they are all that `listing` shows: by their numbers, and instances of a partitioned GPU (MIG)
    by their ids, since a process can use one instance only. As in CUDA, a negative number ends the variable's list, and
    a list with a repeated entry gives no GPU.
    """
    value = environment.get(VARIABLE)
    if value is not None:
        return _named_by(value)
    gpus: dict[str, list[str]] = {}
    for line in listing().splitlines():
        if gpu := _GPU.match(line):
            gpus[gpu[1]] = []
        elif (instance := _MIG.match(line)) and gpus:
            gpus[list(gpus)[-1]].append(instance[1])
    return tuple(name for gpu, instances in gpus.items() for name in instances or [gpu])


def _named_by(value: str) -> tuple[str, ...]:
    names: list[str] = []
    for name in (part.strip() for part in value.split(",")):
        if not (name.isdecimal() or name.startswith(("GPU-", "MIG-"))):
            break
        names.append(name)
    return tuple(names) if len(set(names)) == len(names) else ()


@dataclass(frozen=True, slots=True)
class GpuShare:
    """How runs use GPUs: `per_run` each, of their own unless `shared`."""

    names: tuple[str, ...]
    per_run: int
    shared: bool = False

    @property
    def at_once(self) -> int:
        """How many runs have GPUs of their own at the same time."""
        return len(self.names) // self.per_run


def gpu_share(
    names: Sequence[str], *, per_run: int | None, shared: bool, processes_per_run: int = 1
) -> GpuShare | None:
    """How the runs use the GPUs `names`; None where there is no GPU, and the runs use the CPU.

    Args:
        per_run: GPUs of each run; as many as it has processes, if None.
        shared: let runs use one GPU at the same time.

    Raises:
        ConfigError: a run needs more GPUs than there are.
    """
    asked = per_run if per_run is not None else processes_per_run
    if not names and per_run is None:
        return None
    if asked > len(names):
        flag = "--gpus-per-run" if per_run is not None else "--nproc-per-run"
        seen = f"only {len(names)} GPUs are visible ({', '.join(names)})" if names else "no GPU is visible"
        raise ConfigError(f"{flag}: a run needs {asked} GPUs, and {seen}; {_remedy(names)}")
    if per_run is not None and per_run < processes_per_run:
        raise ConfigError(
            f"--gpus-per-run: {per_run} GPUs are too few for {processes_per_run} processes of a run (--nproc-per-run); "
            "give each process a GPU"
        )
    return GpuShare(tuple(names), asked, shared)


def _remedy(names: Sequence[str]) -> str:
    return "ask for fewer" if names else f"leave the option out to train on the CPU, or look at ${VARIABLE}"


class GpuPool:
    """Gives each run its GPUs, and takes them back."""

    def __init__(self, share: GpuShare, locks: Path | None = None) -> None:
        self._share = share
        self._uses: Counter[str] = Counter(dict.fromkeys(share.names, 0))
        # Jobs of Slurm on one machine may see different GPUs under one number.
        job = os.environ.get("SLURM_JOB_ID", "")
        self._locks = locks or Path(tempfile.gettempdir()) / f"emtoolkit-gpus-{os.getuid()}{job and '-' + job}"

    def take(self) -> "TakenGpus | None":
        """GPUs for one run; None while other runs, of this sweep or another one, have them.

        Raises:
            CheckpointError: a lock file cannot be made.
        """
        share = self._share
        if share.shared:
            least_used = sorted(share.names, key=lambda name: self._uses[name])
            return self._taken(dict.fromkeys(least_used[: share.per_run], None))
        locks: dict[str, int | None] = {}
        for name in share.names:
            if len(locks) == share.per_run:
                break
            if not self._uses[name] and (lock := self._lock(name)) is not None:
                locks[name] = lock
        if len(locks) == share.per_run:
            return self._taken(locks)
        _release(locks.values())
        return None

    def _lock(self, name: str) -> int | None:
        path = self._locks / f"{name.replace('/', '-')}.lock"
        try:
            self._locks.mkdir(mode=0o700, parents=True, exist_ok=True)
            return inherited_lock(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be locked ({error.strerror or error})") from error

    def _taken(self, locks: Mapping[str, int | None]) -> "TakenGpus":
        self._uses.update(locks.keys())
        return TakenGpus(tuple(sorted(locks, key=self._share.names.index)), tuple(locks.values()), self)

    def _give_back(self, names: Sequence[str]) -> None:
        self._uses.subtract(names)


@dataclass(frozen=True, slots=True)
class TakenGpus:
    """The GPUs of one run, until `give_back`."""

    names: tuple[str, ...]
    _locks: tuple[int | None, ...]
    _pool: GpuPool

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """`inherited`, with the GPUs of the run as the only visible ones."""
        name, by_slot = _ORDER
        order = {} if VARIABLE in inherited else {name: by_slot}
        return {**inherited, **order, VARIABLE: ",".join(self.names)}

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors of the locks; a child that inherits them keeps the GPUs while it lives."""
        return tuple(lock for lock in self._locks if lock is not None)

    def give_back(self) -> None:
        """Let other runs have the GPUs."""
        _release(self._locks)
        self._pool._give_back(self.names)


def _release(locks: Iterable[int | None]) -> None:
    for lock in locks:
        if lock is not None:
            release_inherited(lock)
