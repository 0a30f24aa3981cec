"""Distances, local cosines and principal components of paths whose answers are known."""

import math

import numpy as np
import pytest

from emtoolkit.analysis.path_geometry import distance, local_cosines, principal_components, usual_window


def gram_of(points: np.ndarray) -> np.ndarray:
    return points @ points.T


def test_on_a_straight_line_every_cosine_is_1_and_one_component_holds_everything() -> None:
    steps = [0, 10, 20, 30, 40]
    gram = gram_of(np.outer(steps, [3.0, 4.0]) + np.array([1.0, -2.0]))
    assert distance(gram, 0, 1) == pytest.approx(50.0)
    cosines = local_cosines(steps, gram, 10)
    assert [each.value for each in cosines[1:-1]] == pytest.approx([1.0, 1.0, 1.0])
    assert math.isnan(cosines[0].value)
    assert math.isnan(cosines[-1].value)
    components = principal_components(gram)
    assert components.explained[0] == pytest.approx(1.0)
    assert components.coordinates[:, 0] == pytest.approx([-100.0, -50.0, 0.0, 50.0, 100.0])


def test_on_a_circle_the_cosine_is_that_of_the_turned_angle() -> None:
    steps = list(range(0, 120, 10))
    angles = np.deg2rad(np.array(steps) * 3.0)
    gram = gram_of(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    # Two chords over 30° each stand at an angle of 30°; over 60° each at 60°.
    assert [c.value for c in local_cosines(steps, gram, 10)[1:-1]] == pytest.approx([math.cos(math.pi / 6)] * 10)
    assert [c.value for c in local_cosines(steps, gram, 20)[2:-2]] == pytest.approx([0.5] * 8)
    assert principal_components(gram).explained[:2] == pytest.approx([0.5, 0.5], abs=0.01)


def test_a_path_that_turns_back_has_the_cosine_minus_1() -> None:
    gram = gram_of(np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
    assert local_cosines([0, 5, 10], gram, 5)[1].value == pytest.approx(-1.0)


@pytest.mark.parametrize(("window", "expected"), [(5, 0.17), (25, 0.50)])
def test_a_random_walk_with_drift_has_the_cosine_of_its_window(window: int, expected: float) -> None:
    # Drift 0.2, noise 1: v²kk'/√((v²k² + k)(v²k'² + k')) with v² = 0.04.
    rng = np.random.default_rng(0)
    dimension, steps = 20_000, list(range(101))
    noise = rng.normal(0, 1 / math.sqrt(dimension), (101, dimension))
    noise[:, 0] += 0.2
    gram = gram_of(np.cumsum(noise, axis=0))
    values = [each.value for each in local_cosines(steps, gram, window) if (each.before, each.after) == (window,) * 2]
    assert len(values) == 101 - 2 * window
    assert float(np.mean(values)) == pytest.approx(expected, abs=0.01)


def test_sides_that_differ_by_more_than_a_fifth_have_no_cosine_and_show_their_windows() -> None:
    steps = [0, 25, 50, 75, 100, 125, 150, 200, 250, 300, 397]
    gram = gram_of(np.outer(steps, [1.0, 0.0]))
    at = dict(zip(steps, local_cosines(steps, gram, 25), strict=True))
    assert [step for step in steps if not math.isnan(at[step].value)] == [25, 50, 75, 100, 125]
    assert (at[150].before, at[150].after) == (25, 50)
    assert (at[200].before, at[200].after) == (50, 50)
    assert (at[0].before, at[397].after) == (None, None)
    # 45 and 55 steps are within a fifth of 50 and of each other; 45 and 54 as well, 40 and 50 are not.
    for left, right, shown in ((45, 54, True), (45, 55, False), (40, 50, False), (60, 50, True), (61, 60, False)):
        ends = [0, left, left + right]
        value = local_cosines(ends, gram_of(np.outer(ends, [1.0, 0.0])), 50)[1].value
        assert math.isnan(value) is not shown, (left, right)


def test_a_window_of_another_length_than_the_spacing_is_no_value_of_that_window() -> None:
    gram = gram_of(np.outer([0, 100, 200], [1.0, 0.0]))
    (cosine,) = local_cosines([0, 100, 200], gram, 10)[1:2]
    assert math.isnan(cosine.value)
    assert (cosine.before, cosine.after) == (100, 100)


def test_a_side_without_movement_has_no_cosine_and_equal_points_have_the_distance_0() -> None:
    rng = np.random.default_rng(1)
    here, there = rng.normal(size=(2, 1000))
    gram = gram_of(np.stack([here, here, there]))
    gram[0, 1] = gram[1, 0] = gram[0, 0] * (1 + 1e-15)
    assert distance(gram, 0, 1) == 0.0
    assert math.isnan(local_cosines([0, 1, 2], gram, 1)[1].value)


def test_the_usual_window_is_the_commonest_gap_and_the_shorter_of_two() -> None:
    assert usual_window([0, 25, 50, 75, 150, 225]) == 25
    assert usual_window([0, 50, 75]) == 25
    assert usual_window([0]) is None


def test_components_of_a_path_that_does_not_move_are_zero() -> None:
    components = principal_components(np.full((3, 3), 7.0))
    assert np.all(components.coordinates == 0)
    assert all(math.isnan(share) for share in components.explained)
