"""The options of Slurm that several commands have."""

from typing import Annotated

import typer

SLURM = "Slurm"

On = Annotated[str | None, typer.Option(metavar="slurm", help="Submit the work as a job array.", rich_help_panel=SLURM)]
SlurmOptions = Annotated[
    str, typer.Option(metavar="OPTIONS", help="Options of sbatch, such as partition=gpu.", rich_help_panel=SLURM)
]
Parallel = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Tasks at the same time.", rich_help_panel=SLURM)
]
Print = Annotated[bool, typer.Option("--print", help="Print the job script; submit nothing.", rich_help_panel=SLURM)]
Status = Annotated[bool, typer.Option("--status", help="Print the state of each task.", rich_help_panel=SLURM)]
Cancel = Annotated[bool, typer.Option("--cancel", help="Cancel the tasks in the queue.", rich_help_panel=SLURM)]
