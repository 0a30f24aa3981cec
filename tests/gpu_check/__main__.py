"""Run the checks on the GPU of this machine, or in a small form on its CPU: `make gpu-check`.

Prints a table. Exit code 0 if everything that ran passed; what did not run is named with the reason.
"""

import argparse
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from datetime import date
from pathlib import Path
from textwrap import wrap

if __name__ == "__main__":
    # Before anything imports a hub client or wandb, which read these once. The tests of this module have their own.
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}

import torch

from tests.gpu_check.command import check_command
from tests.gpu_check.copies import check_layouts, check_other_device, check_overlap, check_race, check_streams
from tests.gpu_check.cost import check_stall
from tests.gpu_check.device import Device, Outcome
from tests.gpu_check.repeat import check_repeat, check_resume
from tests.gpu_check.weights import check_checkpoints, check_out_of_memory

CHECKS: tuple[Callable[[Device], Iterator[Outcome]], ...] = (
    check_layouts,
    check_race,
    check_overlap,
    check_streams,
    check_other_device,
    check_checkpoints,
    check_repeat,
    check_resume,
    check_stall,
    check_command,
    check_out_of_memory,
)
_WIDTH = 80


def outcomes(device: Device, check: Callable[[Device], Iterator[Outcome]]) -> Iterator[Outcome]:
    """What `check` finds, as it finds it; an exception is one more outcome, whose traceback goes to standard error."""
    try:
        found = check(device)
        while True:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                outcome = next(found, None)
            if outcome is None:
                return
            yield outcome
    except Exception as error:  # noqa: BLE001  # the other checks still run
        traceback.print_exc()
        yield Outcome.of(check.__name__, False, f"{type(error).__name__}: {error}")


def lines(outcome: Outcome) -> list[str]:
    """The outcome in at most 80 columns: its result, its name, and its note on lines of its own if it is long."""
    first = f"{outcome.result}  {outcome.name}"
    if outcome.note and len(first) + 2 + len(outcome.note) <= _WIDTH:
        return [f"{first}: {outcome.note}"]
    return [first, *(f"      {line}" for line in wrap(outcome.note, _WIDTH - 6, break_long_words=False))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small models also on a GPU")
    names = [check.__name__.removeprefix("check_") for check in CHECKS]
    parser.add_argument("checks", nargs="*", choices=[*names, []], help="the checks to run; all of them by default")
    arguments = parser.parse_args()
    small = arguments.small or not torch.cuda.is_available()
    warnings.simplefilter("ignore")
    if not torch.cuda.is_available():
        # Also for the trainings that run in processes of their own: the number of threads decides the bytes.
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    began = time.monotonic()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, in a small form"
    print(f"{where}; torch {torch.__version__}; {date.today().isoformat()}", flush=True)
    results = []
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as home:
        device = Device("cuda" if torch.cuda.is_available() else "cpu", Path(home), small=small)
        for name, check in zip(names, CHECKS, strict=True):
            if arguments.checks and name not in arguments.checks:
                continue
            for outcome in outcomes(device, check):
                results.append(outcome.result)
                print("\n".join(lines(outcome)), flush=True)
    counts = ", ".join(f"{results.count(result)} {result}" for result in ("PASS", "FAIL", "INFO", "SKIP"))
    print(f"{counts}; {time.monotonic() - began:.0f} s")
    return 1 if "FAIL" in results else 0


if __name__ == "__main__":
    raise SystemExit(main())
