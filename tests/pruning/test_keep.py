"""Which checkpoints stay, as pure values."""

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import pytest

from emtoolkit.checkpoints.metric_values import Metrics, MetricSeries
from emtoolkit.errors import UserError
from emtoolkit.pruning.keep import Request, Steps, kept_steps, thinned

EVERY_10 = Steps(tuple(range(0, 101, 10)), final=100, total=100)
HARM = MetricSeries("harm", "abc", {step: abs(step - 40.0) for step in EVERY_10.complete})


def kept(request: Request, steps: Steps = EVERY_10, protected: Mapping[int, str] | None = None) -> list[int]:
    return list(kept_steps(request, steps, protected or {}, lambda: Metrics("run", (HARM,))))


@pytest.mark.parametrize(
    ("request_", "steps"),
    [
        ({"keep": "50"}, [0, 50, 100]),
        ({"keep": "0-20:10,final"}, [0, 10, 20, 100]),
        ({"keep": "every:50%"}, [0, 50, 100]),
        ({"keep": "final"}, [0, 100]),
        ({"keep": "best:harm"}, [0, 100]),
        ({"keep": "lowest:harm"}, [0, 40, 100]),
        ({"keep": "lowest:harm@abc, 70"}, [0, 40, 70, 100]),
        ({"drop": "10-90:10"}, [0, 100]),
        ({"drop": "50"}, [0, 10, 20, 30, 40, 60, 70, 80, 90, 100]),
        # The ends go only if they are named.
        ({"keep": "50", "drop": "0,final"}, [50]),
        ({"keep": "0-50:10", "drop": "10-40:10"}, [0, 50, 100]),
        ({"budget": 3}, [0, 50, 100]),
        ({"budget": 2}, [0, 100]),
        ({"budget": 99}, list(EVERY_10.complete)),
        ({"budget": 3, "keep": "10"}, [0, 10, 100]),
        ({"budget": 4, "keep": "10"}, [0, 10, 50, 100]),
        # What has to stay may be more than the budget.
        ({"budget": 2, "keep": "10,20"}, [0, 10, 20, 100]),
        ({"budget": 3, "drop": "40-60:10"}, [0, 30, 100]),
    ],
)
def test_what_stays(request_: dict[str, Any], steps: list[int]) -> None:
    assert kept(Request(**request_)) == steps


def test_a_step_that_has_to_stay_stays_even_if_it_is_named_to_go() -> None:
    assert kept(Request(keep="final", drop="30"), protected={30: "alias best-harm on W&B"}) == [0, 30, 100]
    assert kept(Request(drop="0-100:10"), protected={30: "report r.html"}) == [30]


def test_a_step_that_somebody_asked_a_training_to_save_goes_only_if_it_is_named() -> None:
    asked = Steps(EVERY_10.complete, final=100, total=100, asked=frozenset({70, 75}))
    assert kept(Request(keep="50"), asked) == [0, 50, 70, 100]
    assert kept(Request(keep="50", drop="70"), asked) == [0, 50, 100]


def test_the_newest_step_of_a_training_that_has_not_ended_stays() -> None:
    going_on = Steps((0, 10, 20, 30), final=None, total=100)
    assert kept(Request(keep="10,final"), going_on) == [0, 10, 30]
    # 20 % of the whole run, not of what is there.
    assert kept(Request(keep="every:20%"), going_on) == [0, 20, 30]


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({}, "nothing says what stays; give --keep"),
        ({"budget": 1}, "--budget 1: .* at least 2"),
        ({"budget": 0}, "--budget 0: .* at least 2"),
        ({"budget": -3}, "--budget -3: .* at least 2"),
        ({"keep": "500-600:10"}, '--keep "500-600:10": no checkpoint is selected'),
        ({"keep": "45"}, '--keep "45": there is no checkpoint at step 45; the nearest is 40'),
        ({"keep": ""}, "--keep"),
        ({"keep": "finale"}, "did you mean 'final'"),
        ({"keep": "best:"}, "expected a metric, such as best:METRIC"),
        ({"keep": "best"}, "expected a metric, such as best:METRIC"),
        ({"keep": "best:harmm"}, "there is no metric 'harmm'.*did you mean 'harm'"),
        ({"drop": "0-100:10"}, "nothing would be left of 11 checkpoints"),
        ({"keep": "50", "drop": "0,50,final"}, "nothing would be left"),
    ],
)
def test_a_request_that_would_leave_nothing_or_cannot_be_read_is_refused(request_: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        kept(Request(**request_))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("finl", "final"),
        ("Final", "final"),
        ("dense-early,finl", "final"),
        ("finl,best:harm", "final"),
        ("bst:harm", "best"),
        ("10,lowst:harm", "lowest"),
        ("dense-erly,final", "dense-early"),
        ("evry:10", "every"),
    ],
)
@pytest.mark.parametrize("option", ["keep", "drop"])
def test_a_misspelt_word_is_suggested_once(option: str, text: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf"; did you mean '{meant}'\?$") as error:
        kept(Request(**{option: text}))
    assert str(error.value).count("did you mean") == 1


def test_a_step_that_was_pruned_already_is_said_to_be() -> None:
    with pytest.raises(UserError, match="step 15 was pruned already"):
        kept(Request(keep="15"), Steps((0, 10, 100), pruned=(15,), final=100))


def test_a_budget_is_spent_evenly_along_the_path() -> None:
    steps = [0, 1, 2, 3, 4, 50, 100]
    # The weights move most at the beginning.
    path = [0.0, 1.0, 2.0, 3.0, 4.0, 4.1, 4.2]
    assert thinned(steps, path, 4, ()) == (0, 1, 3, 100)
    assert thinned(steps, [float(step) for step in steps], 4, ()) == (0, 4, 50, 100)
    assert thinned(steps, path, 5, {2, 50}) == (0, 2, 3, 50, 100)
    assert thinned(range(101), [step**0.5 for step in range(101)], 6, ()) == (0, 4, 16, 36, 64, 100)


def test_no_choice_of_as_many_steps_has_more_even_gaps() -> None:
    steps, places = range(9), [0.0, 0.1, 1.0, 1.5, 4.0, 4.1, 7.5, 9.0, 10.0]

    def unevenness(chosen: Sequence[int]) -> float:
        return sum((places[b] - places[a]) ** 2 for a, b in pairwise(chosen))

    for budget in range(3, 9):
        for stay in ((), (3,), (1, 5)):
            found = thinned(steps, places, budget, stay)
            others = [(0, *inner, 8) for inner in combinations(range(1, 8), budget - 2) if {*stay} <= {*inner}]
            if others:
                assert len(found) == budget
                assert unevenness(found) == pytest.approx(min(map(unevenness, others)))
            assert {0, 8, *stay} <= {*found}


def test_a_path_that_does_not_move_keeps_the_ends() -> None:
    assert thinned([0, 1, 2, 3], [0.0] * 4, 2, ()) == (0, 3)
