"""Turnbull's estimator against cases that can be counted by hand, and against the likelihood itself."""

import itertools

import numpy as np
import pytest

from emtoolkit.analysis.onset import Bracket
from emtoolkit.analysis.seeds import Distribution, Mass, median, turnbull


def found(*brackets: tuple[int | None, int | None]) -> list[tuple[int | None, int | None, float]]:
    masses = turnbull([Bracket(*bracket) for bracket in brackets])
    return [(mass.bracket.lower, mass.bracket.upper, round(mass.probability, 4)) for mass in masses]


def test_brackets_that_do_not_overlap_have_the_share_of_their_seeds() -> None:
    assert found((0, 25), (0, 25), (50, 75), (25, 50)) == [(0, 25, 0.5), (25, 50, 0.25), (50, 75, 0.25)]


def test_a_wide_bracket_adds_no_place_of_its_own() -> None:
    assert found((0, 100), (25, 50)) == [(25, 50, 1.0)]
    assert found((0, 25), (0, 100), (75, 100)) == [(0, 25, 0.5), (75, 100, 0.5)]


def test_a_bracket_ends_inside_its_upper_step_and_begins_after_its_lower_step() -> None:
    assert found((0, 50), (50, 100)) == [(0, 50, 0.5), (50, 100, 0.5)]


def test_seeds_without_onset_and_before_the_first_checkpoint_are_open_brackets() -> None:
    assert found((0, 25), (100, None), (None, 10)) == [(0, 10, 0.6667), (100, None, 0.3333)]
    assert found((None, 25), (100, None)) == [(None, 25, 0.5), (100, None, 0.5)]


def test_the_masses_maximise_the_likelihood() -> None:
    brackets = [Bracket(*ends) for ends in ((0, 30), (20, 50), (40, 70), (10, 60), (60, 90), (0, 50))]
    masses = turnbull(brackets)
    inside = np.array([[_within(mass.bracket, bracket) for mass in masses] for bracket in brackets], dtype=float)
    best = np.log(inside @ [mass.probability for mass in masses]).sum()
    grid = np.linspace(0, 1, 41)
    for shares in itertools.product(grid, repeat=len(masses) - 1):
        if sum(shares) <= 1:
            with np.errstate(divide="ignore"):
                assert np.log(inside @ [*shares, 1 - sum(shares)]).sum() <= best + 1e-6


def _within(cell: Bracket, bracket: Bracket) -> bool:
    assert None not in (cell.lower, cell.upper, bracket.lower, bracket.upper)
    return bracket.lower <= cell.lower and cell.upper <= bracket.upper


def test_the_order_of_the_seeds_does_not_matter() -> None:
    brackets = [(0, 30), (20, 50), (40, 70), (10, 60)]
    assert found(*brackets) == found(*reversed(brackets))


def test_the_median_is_a_bracket() -> None:
    masses = [Mass(Bracket(0, 25), 0.25), Mass(Bracket(25, 50), 0.5), Mass(Bracket(50, 75), 0.25)]
    assert median(masses) == Bracket(25, 50)
    assert median([Mass(Bracket(0, 25), 0.5), Mass(Bracket(50, 75), 0.5)]) == Bracket(0, 75)
    assert median([Mass(Bracket(0, 25), 0.4), Mass(Bracket(100, None), 0.6)]) == Bracket(100, None)


def test_a_distribution_has_its_masses_and_their_median() -> None:
    brackets = [Bracket(0, 25), Bracket(25, 50), Bracket(25, 50)]
    assert Distribution.of(brackets) == Distribution(turnbull(brackets), Bracket(25, 50))


def test_an_empty_bracket_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        turnbull([Bracket(5, 5)])
    with pytest.raises(ValueError, match="must not be empty"):
        turnbull([])
