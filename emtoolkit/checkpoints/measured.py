"""Checkpoints and their metrics: the best one, and a table with a row for each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from emtoolkit.checkpoints.metric_values import (
    METRICS,
    Metrics,
    as_number,
    best_step,
    check_mode,
    evaluations_of,
    logged_metrics,
    read_metrics,
)
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.errors import CheckpointError, UserError, nearest
from emtoolkit.notebook_tables import AsTable, Row, data_frame
from emtoolkit.shell_command import quoted_command

if TYPE_CHECKING:
    import pandas


class _Checkpoint(Protocol):
    @property
    def step(self) -> int: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    def _rows(self) -> Sequence[Row]: ...


C = TypeVar("C", bound=_Checkpoint)


def metrics_of(reference: str, metadata: Mapping[int, Mapping[str, Any]], *, fingerprint: str | None = None) -> Metrics:
    """The metrics that the training logged in `metadata`, by step, and those of the evaluations of `reference`.

    Raises:
        CheckpointError: an evaluation has no current `metrics.json`, or is of another training.
    """
    fingerprints = {str(values["fingerprint"]) for values in metadata.values() if values.get("fingerprint")}
    series = logged_metrics(metadata)
    for directory in evaluations_of(reference):
        found = read_metrics(directory, {*fingerprints, fingerprint})
        if found is None:
            command = quoted_command("emtoolkit", "checkpoints", Path(reference), "--sort", "step")
            raise CheckpointError(f"{directory}: there is no {METRICS} for its rows; {command} writes the file")
        series += found
    return Metrics(reference, tuple(series))


def row_with_metrics(row: Mapping[str, Any], metrics: Metrics) -> dict[str, Any]:
    """`row`, which has a `step`, with numbers in place of non-finite numbers that are texts, and with the metrics."""
    numbers = {
        key: number if isinstance(value, str) and (number := as_number(value)) is not None else value
        for key, value in row.items()
    }
    return numbers | {key: value for key, value in metrics.row(row["step"]).items() if key not in numbers}


class MeasuredCheckpoints(AsTable, Sequence[C]):
    """A sequence of checkpoints in step order with a `name`, and the steps that were `pruned` from it."""

    name: str
    pruned: tuple[int, ...]

    def metrics(self) -> Metrics:
        """The metrics that the training logged and those of the trajectory's evaluations, at every step.

        Evaluations are those in `evaluations/` of the directory, or in `outputs/evaluations/` for a collection on W&B.

        Raises:
            CheckpointError: an evaluation is of another training, or an earlier version of emtoolkit made it.
        """
        metadata = dict[int, Mapping[str, Any]]()
        if self.pruned and Path(self.name).is_dir():
            recorded = Publications.read(Path(self.name)).metadata
            metadata = {step: recorded[step] for step in self.pruned if step in recorded}
        return metrics_of(self.name, metadata | {checkpoint.step: checkpoint.metadata for checkpoint in self})

    def best(
        self,
        metric: str,
        *,
        lowest: bool = False,
        mode: Literal["max", "min"] | None = None,
        missing: Literal["refuse", "skip"] = "refuse",
    ) -> C:
        """The checkpoint with the highest value of `metric`; the earliest of equal ones.

        Args:
            metric: a metric that the training logged (`eval_loss`) or that an evaluation gives (`betley`);
                `metric@evaluation` where several evaluations give the metric.
            lowest: whether the lowest value is the best one; the same as `mode="min"`.
            missing: with `skip`, checkpoints without a value of the metric are left out.

        Raises:
            CheckpointError: there is no such metric, or several; a checkpoint has no value of the metric, or a step
                that was pruned has a better one.
            UserError: `mode` or `missing` is none of its values.
        """
        if missing not in ("refuse", "skip"):
            raise UserError(f"missing {missing!r}: expected 'refuse' or 'skip'{nearest(missing, ['refuse', 'skip'])}")
        steps = [checkpoint.step for checkpoint in self]
        is_lowest = check_mode(lowest, mode)
        step = best_step(self.metrics(), metric, steps, self.pruned, lowest=is_lowest, skip_missing=missing == "skip")
        return self[steps.index(step)]

    def to_dataframe(self) -> "pandas.DataFrame":
        """A row for each checkpoint: step, place, what the run logged, and each metric of the evaluations.

        A metric `m` of an evaluation has the columns `m`, `m_low` and `m_high` (the 95 % limits for new questions), and
        `m_these_low` and `m_these_high` (for the same questions again); a value that is not known is NaN. A metric that
        several evaluations give has the columns `m@evaluation`. Nothing is downloaded.

        Raises:
            UserError: pandas is not installed.
            CheckpointError: see `metrics`.
        """
        metrics = self.metrics()
        return data_frame([row_with_metrics(row, metrics) for checkpoint in self for row in checkpoint._rows()])


def stale_evaluations(reference: str) -> list[Path]:
    """The evaluations of a trajectory whose `metrics.json` is missing, or of other rows.

    Raises:
        CheckpointError: a file is not what emtoolkit writes.
    """
    return [directory for directory in evaluations_of(reference) if read_metrics(directory, ()) is None]
