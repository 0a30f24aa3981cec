"""The bracket rule, on curves whose limits are written out."""

import numpy as np
import pytest

from emtoolkit.analysis.onset import Bracket, Onset, Point, chance_of_order, find_onset, order_of
from emtoolkit.evaluation.intervals import Interval

NAN = float("nan")


def points(*limits: tuple[int, float, float]) -> list[Point]:
    return [Point(step, (low + high) / 2, Interval(low, high)) for step, low, high in limits]


# LAMBADA accuracies of the Pythia models, in the published evaluations of EleutherAI/pythia (evals/pythia-v1).
PYTHIA_STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 3000, *range(13000, 143001, 10000))
PYTHIA = {
    "160m": (
        *[0.0] * 11,
        *(0.0646, 0.2276, 0.2998, 0.3394, 0.3315, 0.3511, 0.3450, 0.3992),
        *(0.3736, 0.3718, 0.3679, 0.3666, 0.3466, 0.3311, 0.3134, 0.3284),
    ),
    "1.4b": (
        *[0.0] * 11,
        *(0.0673, 0.3243, 0.4696, 0.5152, 0.5354, 0.5612, 0.5603, 0.5837),
        *(0.5905, 0.5909, 0.5919, 0.6016, 0.6134, 0.6125, 0.6119, 0.6161),
    ),
}
LAMBADA_ROWS = 5153


def pythia(model: str) -> list[Point]:
    found = []
    for step, accuracy in zip(PYTHIA_STEPS, PYTHIA[model], strict=True):
        half = 1.96 * (accuracy * (1 - accuracy) / (LAMBADA_ROWS - 1)) ** 0.5
        found.append(Point(step, accuracy, Interval(accuracy - half, accuracy + half)))
    return found


RISE = points((0, 0, 0), (25, -0.02, 0.04), (50, 0.01, 0.12), (75, 0.08, 0.2), (100, 0.2, 0.3), (397, 0.3, 0.4))


def test_the_bracket_reaches_from_the_last_exclusion_to_the_first_proof() -> None:
    onset = find_onset(RISE, 0.10)
    assert (onset.status, onset.bracket) == ("seen", Bracket(25, 100))
    assert onset.undecided == (50, 75)
    assert (onset.reversal, onset.fall) == (None, None)
    assert str(onset.bracket) == "(25, 100]"


def test_a_higher_threshold_is_crossed_later_and_one_that_no_limit_reaches_never() -> None:
    assert find_onset(RISE, 0.25).bracket == Bracket(75, 397)
    none = find_onset(RISE, 0.35)
    assert (none.status, none.bracket) == ("not_seen", Bracket(100, None))
    assert (none.last.step, none.furthest.value) == (397, pytest.approx(0.35))
    assert str(none.bracket) == "(100, not seen]"


def test_a_limit_that_touches_the_threshold_decides_nothing() -> None:
    onset = find_onset(points((0, 0, 0.1), (10, 0.1, 0.3), (20, 0.11, 0.3)), 0.10)
    assert (onset.status, onset.bracket, onset.undecided) == ("before_first", Bracket(None, 20), (0, 10))


def test_without_a_step_below_the_onset_is_before_the_first_checkpoint() -> None:
    onset = find_onset(points((13000, 0.29, 0.31), (23000, 0.33, 0.35)), 0.05)
    assert (onset.status, onset.bracket, onset.first_step) == ("before_first", Bracket(None, 13000), 13000)
    assert str(onset.bracket) == "(before the first checkpoint, 13000]"


def test_falling_below_the_threshold_again_is_a_reversal_and_does_not_move_the_onset() -> None:
    back = points((0, 0, 0.02), (10, 0.2, 0.4), (20, 0.3, 0.4), (30, 0.05, 0.2), (40, 0, 0.04), (50, 0.2, 0.4))
    onset = find_onset(back, 0.10)
    assert (onset.bracket, onset.reversal) == (Bracket(0, 10), Bracket(20, 40))


def test_a_fall_from_the_peak_is_shown_where_it_exceeds_the_noise_of_all_pairs() -> None:
    curve = points((0, 0, 0), (10, 0.38, 0.42), (20, 0.58, 0.62), (30, 0.56, 0.60), (40, 0.48, 0.52), (50, 0.44, 0.48))
    fall = find_onset(curve, 0.10).fall
    assert fall is not None
    assert (fall.peak.step, fall.shown_at, fall.last.step) == (20, 40, 50)
    # Between 0.60 and 0.58 the limits overlap.
    assert find_onset(curve[:4], 0.10).fall is None


def test_a_plateau_of_noise_falls_in_at_most_5_percent() -> None:
    rng = np.random.default_rng(0)
    falls = 0
    for _ in range(400):
        values = 0.5 + 0.02 * rng.standard_normal(12)
        noisy = [(10 * (i + 1), v - 0.0392, v + 0.0392) for i, v in enumerate(values)]
        falls += find_onset(points((0, 0, 0), *noisy), 0.10).fall is not None
    assert falls <= 20


def test_a_step_without_limits_decides_nothing() -> None:
    curve = [*RISE[:2], Point(40, NAN, Interval.none()), *RISE[2:]]
    assert find_onset(curve, 0.10).bracket == Bracket(25, 100)
    alone = find_onset([Point(5, NAN, Interval.none())], 0.10)
    assert (alone.status, alone.bracket) == ("not_seen", Bracket(None, None))


def test_a_fall_below_a_threshold_is_the_onset_of_the_mirrored_curve() -> None:
    coherence = points((0, 0.97, 0.99), (10, 0.8, 0.9), (20, 0.6, 0.75), (30, 0.2, 0.4))
    onset = find_onset(coherence, 0.78, falls=True)
    assert (onset.bracket, onset.threshold) == (Bracket(10, 20), 0.78)
    assert (onset.furthest.step, onset.furthest.limits) == (30, Interval(0.2, 0.4))


@pytest.mark.parametrize("wrong", [[], points((5, 0, 1), (5, 0, 1)), points((5, 0, 1), (4, 0, 1))])
def test_steps_that_do_not_ascend_are_refused(wrong: list[Point]) -> None:
    with pytest.raises(ValueError, match="ascending steps"):
        find_onset(wrong, 0.1)


def onset_in(lower: int | None, upper: int | None) -> Onset:
    point = Point(0, 0.0, Interval(0, 0))
    return Onset("seen", 0.1, Bracket(lower, upper), 0, point, point, ())


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ((0, 25), (25, 50), "first"),
        ((50, 75), (0, 50), "second"),
        ((0, 50), (25, 75), "not decidable"),
        ((0, 25), (100, None), "first"),
        ((100, None), (50, None), "not decidable"),
        ((None, 25), (25, 50), "first"),
        ((None, 25), (None, 50), "not decidable"),
    ],
)
def test_only_brackets_that_do_not_overlap_have_an_order(
    first: tuple[int | None, int | None], second: tuple[int | None, int | None], verdict: str
) -> None:
    assert order_of(onset_in(*first), onset_in(*second)) == verdict


def test_the_chance_of_an_order_counts_ties_as_one_half() -> None:
    steps = [0, 10, 20]
    early = np.array([[0.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
    late = np.array([[0.0, 0.0], [0.0, 0.0], [0.5, 0.5]])
    never = np.zeros((3, 2))
    assert chance_of_order((steps, early, 0.1), (steps, late, 0.1)) == 1.0
    assert chance_of_order((steps, late, 0.1), (steps, early, 0.1)) == 0.0
    assert chance_of_order((steps, early, 0.1), (steps, early, 0.1)) == 0.5
    assert chance_of_order((steps, late, 0.1), (steps, never, 0.1)) == 1.0
    assert chance_of_order((steps, never, 0.1), (steps, never, 0.1)) == 0.5
    # With one hot question of two, the mean rises in the three quarters of the resamples that contain it.
    hot = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert chance_of_order((steps, hot, 0.1), (steps, late, 0.1)) == pytest.approx(0.75, abs=0.03)
    with pytest.raises(ValueError, match="2 and 1 questions"):
        chance_of_order((steps, early, 0.1), (steps, early[:, :1], 0.1))


@pytest.mark.parametrize("model", ["160m", "1.4b"])
def test_the_published_pythia_curves_have_their_onset_between_steps_512_and_1000(model: str) -> None:
    assert find_onset(pythia(model), 0.05).bracket == Bracket(512, 1000)
    assert find_onset(pythia(model), 0.10).bracket == Bracket(1000, 3000)


def test_of_the_published_pythia_curves_only_the_small_one_turns_back() -> None:
    onset, large = find_onset(pythia("160m"), 0.05), find_onset(pythia("1.4b"), 0.05)
    assert onset.fall is not None
    assert (onset.fall.peak.step, onset.fall.peak.value, onset.fall.last.value) == (63000, 0.3992, 0.3284)
    assert find_onset(pythia("160m"), 0.35).reversal == Bracket(103000, 123000)
    assert (large.fall, large.reversal, find_onset(pythia("1.4b"), 0.35).reversal) == (None, None, None)


@pytest.mark.parametrize("model", ["160m", "1.4b"])
def test_checkpoints_every_10000_steps_see_no_step_of_the_pythia_onset(model: str) -> None:
    dense = pythia(model)
    # The published steps are 3000 more than multiples of 10000, so each stands for the multiple before it.
    thinned = [point for point in dense if point.step >= 10000]
    onset = find_onset(thinned, 0.05)
    assert (onset.status, onset.bracket) == ("before_first", Bracket(None, 13000))
    # Exactly the multiples: step 0 alone.
    alone = find_onset([point for point in dense if point.step % 10000 == 0], 0.05)
    assert (alone.status, alone.bracket) == ("not_seen", Bracket(0, None))
