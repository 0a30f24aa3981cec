"""The steps that reports rest on: the first step, and both ends of each onset's bracket.

`reports.json`, beside the evaluations of a trajectory, has an entry for each report, so that no later `emtoolkit prune`
removes such a step. It is there as well if the evaluations themselves are somewhere else.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from emtoolkit.checkpoints.metric_values import home_of, homes_of, is_collection
from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.json_files import object_in, read_json
from emtoolkit.storage.atomic import write_file
from emtoolkit.storage.digests import canonical_json

logger = logging.getLogger(__name__)

REPORTS = "reports.json"


def record_report(trajectory: str, report: str, steps: Iterable[int]) -> None:
    """Record that `report`, a file or an address, rests on `steps`; an earlier entry of the same report is replaced.

    A trajectory that is neither here nor a collection on W&B gets no record: nothing can be pruned under its name.

    Raises:
        CheckpointError: the file cannot be read or written.
    """
    home = home_of(trajectory)
    if not home.is_dir():
        if not Path(trajectory).is_dir() and not _is_on_wandb(trajectory):
            return
        try:
            home.mkdir(parents=True)
        except OSError as error:
            why = error.strerror or error
            logger.warning("%s: cannot be made (%s), so no prune knows which steps %s rests on", home, why, report)
            return
    known = {name: sorted(of) for name, of in _read(home / REPORTS).items()}
    write_file(home / REPORTS, canonical_json({**known, report: sorted({*steps})}))


def steps_of_reports(trajectory: str) -> dict[int, str]:
    """The steps that reports on a directory or a collection rest on, each with the first of its reports.

    Raises:
        CheckpointError: the file cannot be read.
    """
    found: dict[int, str] = {}
    for home in homes_of(trajectory):
        for report, steps in _read(home / REPORTS).items():
            for step in steps:
                found.setdefault(step, report)
    return found


def _is_on_wandb(trajectory: str) -> bool:
    """Whether `trajectory` is the name of a collection, and not the path of a directory that is gone."""
    return is_collection(trajectory) and not Path(trajectory.partition("/")[0]).exists()


def _read(path: Path) -> dict[str, list[int]]:
    try:
        content = object_in(read_json(path))
        return {str(report): [int(step) for step in steps] for report, steps in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a record of reports ({first_line(error)})") from error
