"""A sweep file: its combinations in W&B's order, and errors for keys that need a server."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from emtoolkit.errors import ConfigError
from emtoolkit.sweeps.search import Combination, Sweep, read_sweep


def sweep(tmp_path: Path, parameters: Any, method: str = "grid", **more: Any) -> Sweep:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"method": method, "parameters": parameters, **more}, sort_keys=False))
    return read_sweep(path)


def values(combinations: list[Combination]) -> list[tuple[Any, ...]]:
    return [tuple(combination.parameters.values()) for combination in combinations]


def refused(path: Path, content: str, **options: Any) -> str:
    path.write_text(content)
    with pytest.raises(ConfigError) as raised:
        read_sweep(path).combinations(**options)
    return str(raised.value)


def test_a_grid_is_the_product_of_the_lists_by_name_the_last_name_changing_fastest(tmp_path: Path) -> None:
    """W&B sorts the parameters (`HyperParameterSet.from_config`), whatever their order in the file."""
    found = sweep(
        tmp_path,
        {
            "schedule": {"values": ["every:100", "dense-early"]},
            "seed": {"value": 42},
            "persona": {"values": ["b", "a"]},
        },
    ).combinations()
    assert list(found[0].parameters) == ["persona", "schedule", "seed"]
    assert values(found) == [
        ("b", "every:100", 42),
        ("b", "dense-early", 42),
        ("a", "every:100", 42),
        ("a", "dense-early", 42),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"value": None}, [None]),
        ({"values": [1, 2, 1, 1.0]}, [1, 2]),
        ({"min": 3, "max": 5}, [3, 4, 5]),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25}, [0, 0.25, 0.5, 0.75]),
        ({"distribution": "constant", "value": [1, 2]}, [[1, 2]]),
    ],
)
def test_a_grid_has_the_values_that_wandb_lists(tmp_path: Path, content: Any, expected: list[Any]) -> None:
    assert values(sweep(tmp_path, {"a": content}).combinations()) == [(value,) for value in expected]


def test_nested_parameters_are_combined_and_given_as_a_mapping(tmp_path: Path) -> None:
    inner = {"parameters": {"lr": {"values": [0.1, 0.2]}, "deep": {"parameters": {"r": {"value": 8}}}}}
    found = sweep(tmp_path, {"training": inner, "seed": {"values": [1, 2]}}).combinations()
    assert [combination.parameters for combination in found] == [
        {"seed": seed, "training": {"deep": {"r": 8}, "lr": lr}} for seed in (1, 2) for lr in (0.1, 0.2)
    ]
    drawn = sweep(tmp_path, {"training": inner, "seed": {"min": 0.0, "max": 1.0}}, "random").combinations(count=3)
    assert [set(combination.parameters["training"]) for combination in drawn] == [{"deep", "lr"}] * 3
    assert len({combination.key for combination in [*found, *drawn]}) == 7


def test_a_merge_key_may_refer_to_a_key_for_anchors(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("x-seeds: &seeds {values: [1, 2]}\nmethod: grid\nparameters: {seed: {<<: *seeds}}\n")
    assert values(read_sweep(path).combinations()) == [(1,), (2,)]


def test_at_most_run_cap_or_count_of_them_run(tmp_path: Path) -> None:
    capped = sweep(tmp_path, {"a": {"values": [1, 2, 3]}}, run_cap=2)
    assert values(capped.combinations()) == [(1,), (2,)]
    assert values(capped.combinations(count=1)) == [(1,)]
    assert values(capped.combinations(count=3)) == [(1,), (2,)]


def test_a_random_search_depends_on_its_seed_and_grows_at_its_end(tmp_path: Path) -> None:
    space = {
        "lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3},
        "r": {"distribution": "q_uniform", "min": 8, "max": 64, "q": 8},
        "dropout": {"min": 0.0, "max": 0.5},
        "seed": {"min": 1, "max": 9},
        "persona": {"values": ["a", "b"], "probabilities": [1, 0]},
    }
    searched = sweep(tmp_path, space, "random")
    five = values(searched.combinations(count=5, seed=1))
    assert len(five) == 5
    assert values(searched.combinations(count=3, seed=1)) == five[:3]
    assert values(searched.combinations(count=5, seed=2)) != five
    for dropout, lr, persona, r, seed in five:
        assert 0 <= dropout <= 0.5
        assert 1e-5 <= lr <= 1e-3
        assert (persona, r % 8, 1 <= seed <= 9) == ("a", 0, True)


def test_a_draw_that_repeats_another_runs_once(tmp_path: Path) -> None:
    found = sweep(tmp_path, {"a": {"values": [1, 2]}}, "random").combinations(count=50)
    assert sorted(values(found)) == [(1,), (2,)]


def test_a_key_depends_on_parameters_and_command_only(tmp_path: Path) -> None:
    def keys(parameters: Any, **more: Any) -> list[str]:
        return [combination.key for combination in sweep(tmp_path, parameters, **more).combinations()]

    first = keys({"a": {"values": [1, 2]}}, name="x")
    assert keys({"a": {"values": [2, 1, 3]}}, name="y")[1] == first[0]
    assert keys({"a": {"values": [1, 2]}}, program="other.py")[0] not in first
    assert keys({"a": {"values": [1, 2]}}, command=["true"])[0] not in first


A = "parameters: {a: {values: [1]}}\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            f"method: bayes\n{A}",
            "method: 'bayes' is not supported without a server: W&B's server chooses",
        ),
        (f"method: bayes\n{A}", "use grid or random here, or 'wandb sweep' and 'wandb agent' with a server"),
        (
            f"method: custom\n{A}",
            "method: 'custom' is not supported without a server: a W&B scheduler",
        ),
        (f"method: gird\n{A}", "method: 'gird' is not one of grid and random; did you mean 'grid'?"),
        (A, "method: the key is missing"),
        (
            f"method: grid\n{A}comand: []",
            "comand: unknown key (value []); expected method, parameters, program, command",
        ),
        (f"method: grid\n{A}comand: []", "did you mean 'command'?"),
        (
            f"method: grid\n{A}early_terminate: {{type: hyperband, min_iter: 3}}",
            "early_terminate: not supported without a server: stopping runs",
        ),
        (
            f"method: grid\n{A}command: python",
            "command: 'python' is not a list of words such as ${program} and ${args}",
        ),
        (f"method: grid\n{A}program: [a]", "program: ['a'] is not a string"),
        (f"method: grid\n{A}run_cap: 0", "run_cap: 0 is not a number of runs; expected a whole number from 1 on"),
        (f"method: random\n{A}", "run_cap: a random search never ends; set run_cap, or pass --count"),
        ("method: grid", "parameters: None is not a mapping of names to values"),
        ("method: grid\nparameters: {a: 1}", "parameters.a: 1 is not a mapping such as {values: [1, 2]} or {value: 1}"),
        ("method: grid\nparameters: {a: {values: 1}}", "parameters.a.values: 1 is not a list of at least one value"),
        (
            "method: grid\nparameters: {a: {valeus: [1]}}",
            "expected value, values, or min and max; did you mean 'values'?",
        ),
        (
            "method: grid\nparameters: {a: {values: [1], min: 2}}",
            "parameters.a.min: unknown key of the distribution categorical (value 2); expected values, distribution",
        ),
        (
            "method: grid\nparameters: {a: {min: 0.0, max: 1.0}}",
            "parameters.a: a grid needs a list of values (found probabilities or a range",
        ),
        ("method: grid\nparameters: {a: {min: 3, max: 1}}", "parameters.a.min: 3 is greater than max, 1"),
        ("method: grid\nparameters: {a: {min: x, max: 1}}", "parameters.a.min: 'x' is not a number"),
        ("method: grid\nparameters: {a: {min: 1}}", "parameters.a.max: the key is missing"),
        (
            "method: random\nparameters: {a: {distribution: log_uniform_values, min: 0, max: 1}}",
            "parameters.a.min: 0 has no logarithm; expected a number above 0",
        ),
        (
            "method: random\nparameters: {a: {distribution: q_uniform, min: 0, max: 1, q: 0}}",
            "parameters.a.q: 0 is not a number above 0",
        ),
        (
            "method: random\nparameters: {a: {distribution: normal}}",
            "parameters.a.distribution: 'normal' is not supported without a server; expected one of constant,",
        ),
        (
            "method: random\nparameters: {a: {distribution: unifrom, min: 0, max: 1}}",
            "'unifrom' is not one of constant, categorical, categorical_w_probabilities, uniform, int_uniform, "
            "q_uniform, log_uniform_values, q_log_uniform_values; did you mean 'uniform'?",
        ),
        (
            "method: random\nparameters: {a: {values: [1, 2], probabilities: [1, 1]}}",
            "parameters.a.probabilities: [1, 1] is not 2 probabilities, one for each value, that sum to 1",
        ),
        (
            "method: grid\nparameters: {a: {parameters: {b: {valeu: 1}}}}",
            "parameters.a.parameters.b: {'valeu': 1}: expected value, values, or min and max; did you mean 'value'?",
        ),
        ("method: grid\nparameters: {a: {parameters: 3}}", "parameters.a.parameters: 3 is not a mapping of names"),
        (
            "method: grid\nparameters: {a: {parameters: {b: {value: 1}}, value: 2}}",
            "parameters.a.value: a parameter with nested parameters has no value; remove the key",
        ),
        (
            "method: grid\nparameters: {a: {parameters: {b: {min: 0.0, max: 1.0}}}}",
            "parameters.a.parameters.b: a grid needs a list of values",
        ),
        (
            "method: grid\nparameters: {' ': {value: 1}}",
            "parameters: the name ' ' is empty; write the name of an option",
        ),
        (f"method: grid\nproject: ' '\n{A}", "project: ' ' is not valid: W&B needs a project with a name"),
        (f"method: grid\nproject: a/b\n{A}", "project: 'a/b' is not valid: W&B accepts none of"),
        (
            "method: random\nrun_cap: 1\nparameters: {a: {values: [1, 2], probabilities: [.nan, 1]}}",
            "parameters.a.probabilities: [nan, 1] is not 2 probabilities",
        ),
        ("method: grid\nmethod: grid", "the key 'method' appears twice in one mapping"),
        ("method: [grid]\nparameters: {a: {value: 1}}", "method: ['grid'] is not one of grid and random"),
        ("method: grid\nparameters: {a: {distribution: [constant], value: 1}}", "['constant'] is not one of constant,"),
        (
            "method: grid\nparameters: {a: {min: 1, max: 1_000_000}}",
            "parameters.a: a grid needs a list of values (found",
        ),
        (
            "method: random\nrun_cap: 1e9\nparameters: {a: {value: 1}}",
            "1,000,000,000 runs are more than the 100,000 of a",
        ),
        (
            "method: grid\nparameters: {a: {min: 1, max: 1000}, b: {min: 1, max: 1000}}",
            "parameters: 1,000,000 combinations are more than the 100,000 of a sweep; set run_cap",
        ),
        (
            "method: random\nrun_cap: 1\nparameters: {a: {min: -1e308, max: 1e308}}",
            "parameters.a.max: 1e+308 is too far from -1e+308 to draw between them",
        ),
    ],
)
def test_an_unsupported_sweep_is_one_sentence_with_the_file_the_key_and_the_reason(
    tmp_path: Path, content: str, problem: str
) -> None:
    path = tmp_path / "sweep.yaml"
    sentence = refused(path, content)
    assert sentence.startswith((f"{path}: ", f"{path}, line "))
    assert problem in sentence
    assert "\n" not in sentence


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "schedules.yaml").touch()
    with pytest.raises(ConfigError, match=r"no such file; did you mean '.*/schedules\.yaml'\?"):
        read_sweep(tmp_path / "scheduls.yaml")
