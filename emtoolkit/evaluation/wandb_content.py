"""The content of an evaluation's W&B run: the curve, a table of answers, the files, and the checkpoints it used."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emtoolkit.artifacts.collection import Reference
from emtoolkit.artifacts.names import COLLECTION, run_labels
from emtoolkit.artifacts.versions import find_version, find_versions
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.checkpoints.trajectory_file import RECORD
from emtoolkit.evaluation.curve import AXIS, COLUMNS, curve, table_of
from emtoolkit.evaluation.decided import RECORDS, read_records
from emtoolkit.evaluation.identity import digest_of
from emtoolkit.evaluation.measure_rows import MeasureRow, summarise_measures
from emtoolkit.evaluation.result_files import ACTIVATIONS, MEASURES, ROWS, SETTINGS, read_evaluation
from emtoolkit.evaluation.results import by_step
from emtoolkit.evaluation.rows import AnswerRow
from emtoolkit.evaluation.wandb_calibration import calibration_summary
from emtoolkit.hub.names import is_hub
from emtoolkit.trajectory import Trajectory

logger = logging.getLogger(__name__)

_TABLE = "answers_table"


@dataclass(frozen=True, slots=True)
class Content:
    """The part of the evaluation in `directory` that one run holds: some steps, with the results as they stand there.

    `reference` is the evaluated trajectory: a directory, or a collection on W&B.
    """

    directory: Path
    reference: str
    settings: Mapping[str, Any]
    rows: tuple[AnswerRow, ...]
    measured: tuple[MeasureRow, ...]
    sessions: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, directory: Path, reference: str, steps: Sequence[int]) -> "Content":
        """The content for `steps`.

        Raises:
            UserError: the evaluation cannot be read.
        """
        stored = read_evaluation(directory)
        rows = tuple(row for row in stored.rows if row.step in steps)
        # A directory that was moved is where its evaluation is.
        beside = directory.absolute().parent.parent
        is_beside = directory.absolute().parent.name == "evaluations" and (beside / RECORD).is_file()
        measured = tuple(row for row in stored.measured if row.step in steps)
        place = str(beside) if is_beside else reference
        return cls(directory, place, stored.settings, rows, measured, stored.sessions)

    @property
    def _all_rows(self) -> list[AnswerRow | MeasureRow]:
        return [*self.rows, *self.measured]

    @property
    def digest(self) -> str:
        """SHA-256 in hex of everything that the run shows, so that the same content is not logged twice."""
        activations = [[path.name, path.stat().st_size] for path in self._activations()]
        rows = [asdict(row) for row in self._all_rows]
        analyses = [record.analysis.digest for record in read_records(self.directory)]
        # A setting that only some evaluations have is no part of the digest of the others.
        more = [each for each in (analyses, [dict(session) for session in self.sessions]) if each]
        return digest_of([dict(self.settings), rows, activations, *more])

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps, ascending."""
        return tuple(sorted({row.step for row in self._all_rows}))

    @property
    def settings_name(self) -> str:
        """The digest that names evaluations with these settings."""
        return str(self.settings.get("settings") or self.directory.name)

    def run_options(self) -> dict[str, Any]:
        """The arguments of `wandb.init` that describe the run."""
        config = self._facts() | {
            "seed": self.settings["sampling"].get("seed"),
            "questions": [question["id"] for question in self.settings["questions"]],
            # Not `steps`: a parameter of the sweep would replace it.
            "evaluated_steps": list(self.steps),
        }
        name = f"evaluate-{Path(self.reference).name}-{self.settings_name}"
        return run_labels(name, self._subject()) | {"job_type": "evaluation", "config": config}

    def log_curve(self, run: Any) -> None:
        """Log the values of each step in their order, and the table of answers."""
        define_axis(run)
        for values in curve(by_step(self.rows), summarise_measures(self.measured)):
            run.log(values)
        run.summary.update(calibration_summary(self.sessions))
        self._log_table(run)

    def log_missing_table(self, run: Any) -> None:
        """Log the table of answers, if W&B refused the artifact that holds it."""
        import wandb

        api = wandb.Api(overrides={"entity": run.entity, "base_url": run.settings.base_url})
        name = f"{run.entity}/{run.project}/run-{run.id}-{_TABLE}:latest"
        if find_version(api, name) is None:
            self._log_table(run)

    def _log_table(self, run: Any) -> None:
        import wandb

        if not self.rows:
            return
        table = table_of(self.rows)
        run.log({_TABLE: wandb.Table(columns=list(COLUMNS), data=table)})
        run.summary.update({"answers_in_table": len(table), "answers_of_all_steps": len(self.rows)})

    def use_checkpoints(self, run: Any) -> None:
        """Record the versions on W&B that were evaluated as inputs of `run`; a deleted version is a warning."""
        import wandb

        api = wandb.Api(overrides={"entity": run.entity, "base_url": run.settings.base_url})
        trajectory = Trajectory.open(self.reference)
        evaluated = [checkpoint.artifact for checkpoint in trajectory if checkpoint.step in self.steps]
        names = [name for name in evaluated if name is not None]
        found = find_versions(api, names)
        for name in names:
            if name in found:
                run.use_artifact(found[name])
            else:
                logger.warning("%s is not on W&B any more, so the lineage lacks it", name)

    def log_files(self, run: Any) -> None:
        """Log the results, and the activations if there are any, and wait until W&B has committed them."""
        stored = read_evaluation(self.directory)
        about = self._facts()
        results = {"steps": list(stored.steps), "answers": len(stored.rows), "values": len(stored.measured)}
        files = [path for name in (ROWS, MEASURES, SETTINGS, RECORDS) if (path := self.directory / name).is_file()]
        self._log(run, "evaluation", about | results, files)
        if activations := self._activations():
            steps = {"steps": [int(path.stem.rpartition("-")[2]) for path in activations]}
            self._log(run, "activations", about | steps, activations)

    def artifact_names(self) -> frozenset[str]:
        """The names of the artifacts of `log_files`."""
        return frozenset(self._artifact_name(kind) for kind in ("evaluation", "activations"))

    def _facts(self) -> dict[str, Any]:
        """The trajectory, the persona and the settings of the results."""
        first = self._all_rows[0]
        return {
            "settings": self.settings_name,
            "judge": self.settings["judge"],
            "engine": self.settings["engine"],
            "sampling": self.settings["sampling"],
            "measures": sorted(self.settings.get("measures", {})),
            "trajectory": first.trajectory,
            "fingerprint": first.fingerprint,
            "persona": first.persona,
        }

    def _log(self, run: Any, kind: str, metadata: Mapping[str, Any], files: Sequence[Path]) -> None:
        import wandb

        artifact = wandb.Artifact(self._artifact_name(kind), type=kind, metadata=dict(metadata))
        for file in files:
            artifact.add_file(str(file.absolute()), name=file.name, policy="immutable", skip_cache=True)
        run.log_artifact(artifact).wait()

    def _artifact_name(self, kind: str) -> str:
        return COLLECTION.fit(self._subject(), f"-{kind}-{self.settings_name}")

    def _subject(self) -> str:
        """The collection of the checkpoints; without one the name of the directory and the fingerprint."""
        if not Path(self.reference).is_dir():
            return self.reference.rpartition("/")[2]
        known = Publications.read(Path(self.reference)).collection
        return known or f"{Path(self.reference).resolve().name}-{self._facts()['fingerprint'][:8]}"

    def _activations(self) -> list[Path]:
        """The files of the evaluated steps, in their order."""
        paths = [self.directory / ACTIVATIONS / f"step-{step}.safetensors" for step in self.steps]
        return [path for path in paths if path.is_file()]


def define_axis(run: Any) -> None:
    """Make the step of the checkpoint the axis of every value."""
    run.define_metric(AXIS)
    run.define_metric("*", step_metric=AXIS)


def place_of(reference: str) -> tuple[str, str]:
    """Entity and project of a trajectory on W&B, both empty where it is not known to be there."""
    if Path(reference).is_dir():
        publications = Publications.read(Path(reference))
        if publications.published:
            artifact = next(iter(publications.published.values())).artifact
            entity, project, _ = artifact.split("/")
            return entity, project
        if publications.runs:
            newest = [*publications.runs.values()][-1][-1]
            return newest.entity, newest.project
        return "", ""
    if is_hub(reference):
        return "", ""
    parsed = Reference.parse(reference)
    return parsed.entity or "", parsed.project
