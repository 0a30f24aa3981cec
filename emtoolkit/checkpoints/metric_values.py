"""The metrics of the checkpoints of a trajectory: what the training logged, and what its evaluations found.

`metrics.json` in the directory of an evaluation holds the value of each metric at each step, with its limits. The file
names the rows that it was computed from by their digests, so values of other rows are never read.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emtoolkit.errors import CheckpointError, UserError, first_line, nearest
from emtoolkit.json_files import object_in, read_json, text_in
from emtoolkit.schedules.steps import elided
from emtoolkit.storage.digests import FileDigest

METRICS = "metrics.json"
FORMAT = 1
# The source of the values that the training logged with a checkpoint.
TRAINING = "training"
_ENDS = ("low", "high", "these_low", "these_high")
_MOST_NAMES = 400
# In Python, and on the command line, where 'prune --keep' then takes the step by its number.
_AMONG_OTHERS = "choose among the others with missing='skip' or 'emtoolkit best --skip-missing'"


@dataclass(frozen=True, slots=True)
class MetricSeries:
    """One metric over the steps. `source` is `training`, or the name of an evaluation's directory.

    `values` has the value at each step; NaN where there is none, as for the EM rate of a broken model. `limits` has the
    limits at each step: `low` and `high` for new questions, `these_low` and `these_high` for the same questions.
    `ambiguous` says that several measures of the evaluation give a metric of this name. `described` is for messages.
    """

    metric: str
    source: str
    values: Mapping[int, float]
    limits: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    described: str = ""
    ambiguous: bool = False

    @property
    def qualified(self) -> str:
        """The name that tells the metric from one of another evaluation."""
        return f"{self.metric}@{self.source}"

    def at(self, step: int) -> float | None:
        """The value at `step`; None where there is none."""
        value = self.values.get(step)
        return None if value is None or math.isnan(value) else value


@dataclass(frozen=True, slots=True)
class Metrics:
    """All metrics of one trajectory; `place` names the trajectory in messages."""

    place: str
    series: tuple[MetricSeries, ...]

    def find(self, name: str) -> MetricSeries:
        """The metric `name`, or `metric@evaluation` where several evaluations give the metric.

        Raises:
            CheckpointError: there is no such metric, or several have this name; the message names the choices.
        """
        if not isinstance(name, str):  # from a caller without types
            raise CheckpointError(f"{self.place}: the metric {name!r} is no text; the metrics are {self._listed()}")
        found = [each for each in self.series if name == each.qualified]
        found = found or [each for each in self.series if name == each.metric]
        if not found:
            raise CheckpointError(
                f"{self.place}: there is no metric {name!r}; known: {self._listed()}{nearest(name, self.names())}"
                + ("" if any(each.source != TRAINING for each in self.series) else "; 'emtoolkit evaluate' adds more")
            )
        if len(found) > 1:
            choices = " or ".join(f"{each.qualified!r} ({each.described})" for each in found)
            raise CheckpointError(f"{self.place}: several evaluations give the metric {name!r}; write {choices}")
        if found[0].ambiguous:
            raise CheckpointError(
                f"{self.place}: two measures of the evaluation {found[0].source} give the metric {found[0].metric!r}; "
                "rename one"
            )
        return found[0]

    def names(self) -> list[str]:
        """The name of each metric, with its evaluation where several give the metric."""
        return [self._name(each) for each in self.series]

    def _listed(self) -> str:
        return ", ".join(self.names())[:_MOST_NAMES] or "none"

    def _name(self, series: MetricSeries) -> str:
        several = sum(each.metric == series.metric for each in self.series) > 1
        return series.qualified if several else series.metric

    def row(self, step: int) -> dict[str, float]:
        """The values at `step` by the names of `names`, each with its known limits as `NAME_low`, `NAME_high`, …"""
        row: dict[str, float] = {}
        for each in self.series:
            if each.ambiguous or step not in each.values:
                continue
            name = self._name(each)
            row[name] = each.values[step]
            row |= {f"{name}_{end}": value for end, value in each.limits.get(step, {}).items()}
        return row


def logged_metrics(metadata: Mapping[int, Mapping[str, Any]]) -> list[MetricSeries]:
    """The numbers in the `metadata` of each step, such as `loss`."""
    values: dict[str, dict[int, float]] = {}
    for step, of_step in metadata.items():
        for key, value in of_step.items():
            number = as_number(value)
            if number is not None and key != "step":
                values.setdefault(key, {})[step] = number
    return [MetricSeries(key, TRAINING, of_key, described="logged by the training") for key, of_key in values.items()]


def as_number(value: object) -> float | None:
    """A number of the metadata, in which non-finite numbers are texts; None for another value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else None


def home_of(reference: str) -> Path:
    """The directory of the evaluations of a trajectory."""
    if Path(reference).is_dir():
        return Path(reference) / "evaluations"
    return Path("outputs") / "evaluations" / reference.replace("/", "-").replace(":", "-")


def homes_of(reference: str) -> list[Path]:
    """`home_of`, and for `entity/project/collection` that of `project/collection`, which a command may have named."""
    homes = [home_of(reference)]
    if not Path(reference).is_dir() and is_collection(reference):
        homes.append(home_of(reference.partition("/")[2]))
    return homes


def is_collection(reference: str) -> bool:
    """Whether `reference` has the form `entity/project/collection`, as a relative path may have, too."""
    return reference.count("/") == 2 and all(reference.split("/")) and ":" not in reference


def evaluations_of(reference: str) -> list[Path]:
    """The directories of the evaluations of a trajectory that hold rows, sorted by name."""
    found = [path.parent for home in homes_of(reference) for path in sorted(home.glob("*/evaluation.json"))]
    return [directory for directory in found if _row_files(directory)]


def read_metrics(directory: Path, fingerprints: Iterable[str | None]) -> list[MetricSeries] | None:
    """The metrics of the evaluation in `directory`; None where `metrics.json` is missing or of other rows.

    Raises:
        CheckpointError: the file is not what emtoolkit writes, or the evaluation is of a training with another
            fingerprint than `fingerprints`.
    """
    path = directory / METRICS
    try:
        content = object_in(read_json(path, finite=False))
        files = object_in(content.get("files"), "files")
        if content.get("format") != FORMAT or dict(files) != digests_of_rows(directory):
            return None
        fingerprint = text_in(content, "fingerprint")
        described = text_in(content, "described")
        found = [_series(directory, described, object_in(each)) for each in content.get("metrics", [])]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not the metrics of an evaluation ({first_line(error)})") from error
    known = {each for each in fingerprints if each}
    if known and fingerprint not in known:
        raise CheckpointError(
            f"{directory}: the evaluation is of trajectory {fingerprint[:8]}, not {sorted(known)[0][:8]}; move it away"
        )
    return found


def digests_of_rows(directory: Path) -> dict[str, str]:
    """The SHA-256 of each file with rows in the directory of an evaluation."""
    return {path.name: FileDigest.of(path).sha256 for path in _row_files(directory)}


def _row_files(directory: Path) -> list[Path]:
    return [path for name in ("answers.parquet", "measures.parquet") if (path := directory / name).is_file()]


def _series(directory: Path, described: str, entry: Mapping[str, Any]) -> MetricSeries:
    values, limits = dict[int, float](), dict[int, dict[str, float]]()
    for step, row in object_in(entry.get("steps"), "steps").items():
        numbers = {key: math.nan if value is None else float(value) for key, value in object_in(row).items()}
        values[int(step)] = numbers.get("value", math.nan)
        limits[int(step)] = {end: numbers[end] for end in _ENDS if end in numbers}
    return MetricSeries(
        text_in(entry, "metric"), directory.name, values, limits, described, entry.get("ambiguous") is True
    )


def best_step(
    metrics: Metrics,
    name: str,
    steps: Sequence[int],
    pruned: Iterable[int] = (),
    *,
    lowest: bool = False,
    skip_missing: bool = False,
) -> int:
    """The one of `steps` with the highest value of the metric `name`, or the lowest; the earliest of equal ones.

    Raises:
        CheckpointError: there is no such metric, or several; no step has a value; without `skip_missing`, a step has no
            value, or a step whose checkpoint is not there has a better one.
    """
    series = metrics.find(name)
    known = {step: value for step in steps if (value := series.at(step)) is not None}
    lacking = sorted({*steps} - {*known})
    if not known:
        raise CheckpointError(f"{metrics.place}: no checkpoint has a value of {name}; run 'emtoolkit evaluate'")
    if lacking and not skip_missing:
        raise CheckpointError(
            f"{metrics.place}: {len(lacking)} of {len(steps)} checkpoints have no value of {name} (steps "
            f"{elided(lacking, 60)}); evaluate them, or {_AMONG_OTHERS}"
        )
    sign = -1 if lowest else 1
    best = min(known, key=lambda step: (-sign * known[step], step))
    gone = {step: value for step in series.values if step not in steps and (value := series.at(step)) is not None}
    better = min((step for step in gone if sign * gone[step] > sign * known[best]), default=None)
    if better is not None and not skip_missing:
        what = "was pruned" if better in {*pruned} else "is not here"
        raise CheckpointError(
            f"{metrics.place}: step {better} has a better value of {name} ({gone[better]:.4g}) than step {best} "
            f"({known[best]:.4g}), and its checkpoint {what}; make it again with 'emtoolkit refine', or {_AMONG_OTHERS}"
        )
    return best


def check_mode(lowest: bool, mode: str | None) -> bool:
    """Whether the lowest value is the best one, from the two ways to say so.

    Raises:
        UserError: `mode` is neither `max` nor `min`, or says the opposite of `lowest`.
    """
    if mode not in (None, "max", "min"):
        raise UserError(f"mode {mode!r}: expected 'max' or 'min'{nearest(str(mode), ['max', 'min'])}")
    if lowest and mode == "max":
        raise UserError("mode 'max': contradicts lowest=True; give one of them")
    return lowest or mode == "min"
