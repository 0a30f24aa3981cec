"""`wandb-runs.json` in the directory of an evaluation: the W&B runs that hold it, or that are to hold it.

The file is written before W&B is asked for anything, so `emtoolkit sync` finds whatever could not be sent.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emtoolkit.errors import CheckpointError, DataError
from emtoolkit.json_files import read_json
from emtoolkit.storage.atomic import write_file
from emtoolkit.storage.digests import canonical_json
from emtoolkit.storage.lock import lock_directory

RUNS = "wandb-runs.json"
# Another process holds the lock while it reads and writes one file.
_LOCK_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class EvaluationRun:
    """A W&B run of one call of `emtoolkit evaluate`.

    `digest` is that of the content, so that the same content is one run. `reference` is the trajectory as the user gave
    it. `log` is the file that `wandb sync` replays, empty if there is none. `sent` says that W&B holds everything: the
    curve, the answers, the results and the lineage.
    """

    id: str
    digest: str
    reference: str
    steps: tuple[int, ...]
    entity: str = ""
    project: str = ""
    log: str = ""
    sent: bool = False

    @property
    def path(self) -> str:
        """`entity/project/id`, without an entity that is not known yet."""
        return "/".join(filter(None, (self.entity, self.project, self.id)))

    def log_in(self, directory: Path) -> Path | None:
        """The run's log, whose path is relative if it is inside the evaluation; None if it is gone."""
        path = directory / self.log
        return path if self.log and path.is_file() else None


def directories_with_runs(roots: Sequence[Path]) -> list[Path]:
    """The directories of evaluations with W&B runs among and below `roots`."""
    return list(dict.fromkeys(path.parent for root in roots for path in sorted(root.rglob(RUNS))))


def read_runs(directory: Path) -> list[EvaluationRun]:
    """The runs of the evaluation in `directory`, oldest first.

    Raises:
        CheckpointError: the file cannot be read.
        DataError: the file is not what emtoolkit writes.
    """
    path = directory / RUNS
    try:
        entries: list[dict[str, Any]] = read_json(path, finite=False)
        return [EvaluationRun(**{**entry, "steps": tuple(entry["steps"])}) for entry in entries]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a record of W&B runs ({error})") from None


def keep_run(directory: Path, run: EvaluationRun) -> None:
    """Write `run`, in place of the earlier state of the same run.

    Raises:
        CheckpointError: the file cannot be read or written.
    """
    with lock_directory(directory, timeout=_LOCK_SECONDS):
        before = {each.id: each for each in read_runs(directory)}
        write_file(directory / RUNS, canonical_json([asdict(each) for each in {**before, run.id: run}.values()]))


def relative_log(directory: Path, log: Path) -> str:
    """The path of a run's log as `wandb-runs.json` holds it."""
    log, home = log.absolute(), directory.absolute()
    return str(log.relative_to(home) if log.is_relative_to(home) else log)
