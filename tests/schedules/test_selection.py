"""Selecting from existing steps by a schedule and the word `final`."""

import pytest

from emtoolkit.errors import CheckpointError, UserError
from emtoolkit.schedules.selection import select_steps

STEPS = (0, 25, 50, 75, 100, 125, 150, 200, 250, 300, 397)


def final() -> int:
    return 397


@pytest.mark.parametrize(
    ("spec", "selected"),
    [
        ("0-150:25,final", (0, 25, 50, 75, 100, 125, 150, 397)),
        ("final", (397,)),
        (" 25 , 0 ", (0, 25)),
        ("every:100", (100, 200, 300)),
        ("every:10%", (200,)),
        ("300-:97", (300, 397)),
        ("log2:512,0", (0,)),
        ("dense-early", (0, 25, 50, 75, 100, 125, 150, 200, 250, 300)),
        ("0-1000000000000:1", STEPS),
    ],
)
def test_a_range_selects_whatever_exists_and_nothing_else_is_selected(spec: str, selected: tuple[int, ...]) -> None:
    assert select_steps(spec, STEPS, final) == selected


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("0-150:25,90", 'steps "0-150:25,90": there is no checkpoint at step 90; the nearest is 100'),
        ("398", 'steps "398": there is no checkpoint at step 398; the nearest is 397'),
        ("2-24:2", 'steps "2-24:2": no checkpoint is selected; the steps are 0, 25, 50, 75, …, 200, 250, 300, 397'),
        ("", 'schedule "": expected at least one term'),
        ("final,", 'schedule "": expected at least one term'),
        ("0-150", 'schedule term "0-150": expected a stride after the range; did you mean "0-150:1"?'),
        ("last", 'schedule term "last": expected a step such as 40'),
    ],
)
def test_a_spec_that_selects_nothing_or_cannot_be_read_is_an_error(spec: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        select_steps(spec, STEPS, final)
    assert str(error.value).startswith(sentence)


def test_a_trajectory_of_step_zero_alone_has_no_rule_that_fails() -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint is selected; the steps are 0$"):
        select_steps("every:25,300-:100,every:5%", (0,), final)
