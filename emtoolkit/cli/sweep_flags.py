"""The options of `sweep` that say which of its runs are executed, and where."""

from typing import Annotated

import typer

_GPUS, _SLURM = "GPUs", "Slurm"

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
On = Annotated[
    str | None, typer.Option(metavar="slurm", help="Submit the runs as a job array.", rich_help_panel=_SLURM)
]
SlurmOptions = Annotated[
    str, typer.Option(metavar="OPTIONS", help="Options of sbatch, such as partition=gpu.", rich_help_panel=_SLURM)
]
Parallel = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Tasks at the same time.", rich_help_panel=_SLURM)
]
Agents = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Agents to submit for the W&B sweep ENTITY/PROJECT/ID.", rich_help_panel=_SLURM
    ),
]
Print = Annotated[bool, typer.Option("--print", help="Print the job script; submit nothing.", rich_help_panel=_SLURM)]
Status = Annotated[bool, typer.Option("--status", help="Print the state of each run.", rich_help_panel=_SLURM)]
Cancel = Annotated[bool, typer.Option("--cancel", help="Cancel the tasks in the queue.", rich_help_panel=_SLURM)]
