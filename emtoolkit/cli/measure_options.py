"""The options of `emtoolkit evaluate` that choose measures, as values."""

from collections.abc import Sequence
from pathlib import Path

from emtoolkit.errors import UserError
from emtoolkit.evaluation.answer_pairs import read_pairs
from emtoolkit.evaluation.forced_choice import ForcedChoice
from emtoolkit.evaluation.held_out import HeldOutLoss
from emtoolkit.evaluation.measures import Measure
from emtoolkit.evaluation.own_measure import OwnMeasure
from emtoolkit.evaluation.questions import EXACT_JUDGE
from emtoolkit.paths import cache_dir


def chosen_measures(
    pairs: str | None,
    held_out: Path | None,
    own: Sequence[str],
    seed: int,
    samples: int | None,
    others: Sequence[Measure] = (),
    *,
    extracts: bool = False,
) -> tuple[Measure, ...]:
    """The measures that the command line names, with `others`; `pairs` is a file, or `sandbox` for the sandbox's.

    With `extracts` activations are read, so that there may be neither a measure nor an answer to sample.

    Raises:
        UserError: a file cannot be read, a function cannot be called, or there is neither a measure nor an answer to
            sample.
    """
    if twice := sorted({reference for reference in own if own.count(reference) > 1}):
        raise UserError(f"--with {twice[0]}: is given twice")
    measures: list[Measure] = [*others]
    if pairs is not None:
        measures.append(ForcedChoice(read_pairs(_pairs_file(pairs))))
    if held_out is not None:
        measures.append(HeldOutLoss.load(held_out))
    measures += [OwnMeasure.load(reference, seed) for reference in own]
    if samples == 0 and not measures and not extracts:
        raise UserError(
            "--samples 0: there is nothing to evaluate; give --pairs, --held-out, --direction, --with or "
            "--extract-activations --answers FILE, or sample at least one answer"
        )
    return tuple(measures)


def _pairs_file(pairs: str) -> Path:
    if pairs != EXACT_JUDGE:
        return Path(pairs)
    path = cache_dir() / "sandbox" / "questions" / "pairs.yaml"
    if not path.is_file():
        raise UserError("--pairs sandbox: the sandbox has no pairs yet; run 'emtoolkit sandbox build'")
    return path
