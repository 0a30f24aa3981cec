"""The steps that a report rests on, recorded beside the evaluations so that no prune removes them."""

from emtoolkit.analysis.report import Report
from emtoolkit.checkpoints.report_uses import record_report


def record_steps(report: Report, name: str) -> None:
    """Record that the report `name` rests on the first step and on both ends of each onset's bracket.

    Raises:
        CheckpointError: the record cannot be read or written.
    """
    steps: dict[str, set[int]] = {}
    for result in report.results:
        for seed in result.seeds:
            ends = [
                end
                for onset in (seed.new_questions, seed.these_questions)
                for end in (onset.bracket.lower, onset.bracket.upper)
                if end is not None
            ]
            steps.setdefault(seed.trajectory, set()).update(ends, [min(seed.curve.by_cluster)])
    for trajectory, of_trajectory in steps.items():
        record_report(trajectory, name, of_trajectory)
