"""`emtoolkit best`: the best checkpoint of a trajectory by a metric."""

from dataclasses import asdict
from typing import Annotated

import typer

from emtoolkit.cli.help import TRAJECTORY_HELP, command
from emtoolkit.cli.output_formats import Json
from emtoolkit.cli.terminal import only_results_on_stdout, show

commands = typer.Typer()

_Trajectory = Annotated[
    str,
    typer.Argument(metavar="TRAJECTORY", help=TRAJECTORY_HELP),
]
_Metric = Annotated[
    str, typer.Argument(metavar="METRIC", help="What the training logged, or a metric of an evaluation.")
]
_Skip = Annotated[bool, typer.Option("--skip-missing", help="Choose among the checkpoints that have a value.")]
_Alias = Annotated[bool, typer.Option("--alias", help="Give the version on W&B the alias best-METRIC.")]


@command(
    commands,
    "emtoolkit best outputs/goodness-medical betley",
    "emtoolkit best outputs/goodness-medical eval_loss --lowest --skip-missing",
    "emtoolkit best lab/em/COLLECTION betley --alias",
)
def best(
    trajectory: _Trajectory,
    metric: _Metric,
    lowest: Annotated[bool, typer.Option("--lowest", help="The lowest value is the best one.")] = False,
    skip_missing: _Skip = False,
    alias: _Alias = False,
    as_json: Json = False,
) -> None:
    """Find the checkpoint with the highest value of a metric, the earliest of equal ones."""
    with only_results_on_stdout():
        from emtoolkit.cli.layout import Column, Records
        from emtoolkit.cli.render import as_json as to_json
        from emtoolkit.evaluation.best import best_checkpoint

        found = best_checkpoint(trajectory, metric, lowest=lowest, skip_missing=skip_missing, alias=alias)
    if as_json:
        show(to_json({"metric": metric, **asdict(found)}))
        return
    columns, row = [Column("step"), Column(metric)], [str(found.step), f"{found.value:.4g}"]
    if found.alias is not None and found.version is not None:
        columns, row = [*columns, Column("alias", "left"), Column("on W&B", "left")], [*row, found.alias, found.version]
    show(Records(columns, [row]))
