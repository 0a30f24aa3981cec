"""The options of `emtoolkit evaluate` that choose measures, as values."""

from collections.abc import Sequence
from pathlib import Path

from emtoolkit.errors import UserError
from emtoolkit.evaluation.held_out import HeldOutLoss
from emtoolkit.evaluation.measures import Measure
from emtoolkit.evaluation.own_measure import OwnMeasure


def chosen_measures(
    own: Sequence[str], seed: int, samples: int | None, held_out: Path | None = None
) -> tuple[Measure, ...]:
    """The measures that the command line names.

    Raises:
        UserError: a function cannot be called, a file cannot be read, or there is neither a measure nor an answer to
            sample.
    """
    if twice := sorted({reference for reference in own if own.count(reference) > 1}):
        raise UserError(f"--with {twice[0]}: is given twice")
    measures: tuple[Measure, ...] = tuple(OwnMeasure.load(reference, seed) for reference in own)
    if held_out is not None:
        measures += (HeldOutLoss.load(held_out),)
    if samples == 0 and not measures:
        raise UserError("--samples 0: nothing is left to evaluate; give --with or --held-out, or sample an answer")
    return measures
