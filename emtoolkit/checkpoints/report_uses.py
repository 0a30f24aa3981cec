"""The steps that reports rest on: the first step, and both ends of each onset's bracket.

`reports.json`, beside the evaluations of a trajectory, has an entry for each report, so that no later `emtoolkit prune`
removes such a step.
"""

from collections.abc import Iterable
from pathlib import Path

from emtoolkit.checkpoints.metric_values import home_of
from emtoolkit.errors import CheckpointError, first_line
from emtoolkit.json_files import object_in, read_json
from emtoolkit.storage.atomic import write_file
from emtoolkit.storage.digests import canonical_json

REPORTS = "reports.json"


def record_report(trajectory: str, report: str, steps: Iterable[int]) -> None:
    """Record that `report`, a file or an address, rests on `steps`; an earlier entry of the same report is replaced.

    Raises:
        CheckpointError: the file cannot be read or written.
    """
    home = home_of(trajectory)
    if not home.is_dir():
        return  # the evaluation was written elsewhere, and so is no part of the trajectory's directory
    known = {name: sorted(of) for name, of in _read(home / REPORTS).items()}
    write_file(home / REPORTS, canonical_json({**known, report: sorted({*steps})}))


def steps_of_reports(trajectory: str) -> dict[int, str]:
    """The steps that reports on a trajectory rest on, each with the first of its reports.

    Raises:
        CheckpointError: the file cannot be read.
    """
    found: dict[int, str] = {}
    for report, steps in _read(home_of(trajectory) / REPORTS).items():
        for step in steps:
            found.setdefault(step, report)
    return found


def _read(path: Path) -> dict[str, list[int]]:
    try:
        content = object_in(read_json(path))
        return {str(report): [int(step) for step in steps] for report, steps in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a record of reports ({first_line(error)})") from error
