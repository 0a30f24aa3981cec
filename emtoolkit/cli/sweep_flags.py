"""The options of `sweep` that say which of its runs are executed, and where."""

from typing import Annotated

import typer

from emtoolkit.cli.slurm_flags import SLURM

_GPUS = "GPUs"

Reuse = Annotated[bool, typer.Option("--reuse/--no-reuse", help="Let runs of one trajectory share one training.")]
Count = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Largest number of runs; required for a random search.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the combinations and their commands; run nothing.")]
GpusPerRun = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="GPUs of each run, by default as many as its processes.", rich_help_panel=_GPUS
    ),
]
ShareGpus = Annotated[
    bool,
    typer.Option(
        "--share-gpus", help="Let runs use one GPU at the same time; otherwise a run waits.", rich_help_panel=_GPUS
    ),
]
ProcessesPerRun = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="Processes of each run, started by torchrun if more than 1.", rich_help_panel=_GPUS
    ),
]
Only = Annotated[
    str | None, typer.Option(metavar="KEYS", help="Run some combinations, by the keys that a job script holds.")
]
Agents = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Agents to submit for the W&B sweep ENTITY/PROJECT/ID.", rich_help_panel=SLURM
    ),
]
