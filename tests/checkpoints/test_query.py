"""`--where` and `--sort`: conditions on checkpoints and their order."""

import re
from typing import Any

import pytest

from emtoolkit.checkpoints.query import Condition, Query, check_columns, parse_conditions
from emtoolkit.errors import UserError

NAN = float("nan")
ROWS: list[dict[str, Any]] = [
    {"step": 0, "size": 10_000, "final": False, "state": "complete"},
    {"step": 10, "size": 20_000, "final": False, "state": "complete", "harmful": 0.5, "loss": 2.0},
    {"step": 20, "size": 20_000, "final": False, "state": "damaged", "harmful": NAN, "loss": 1.0},
    {"step": 30, "size": 30_000, "final": True, "state": "complete", "harmful": 0.75, "loss": float("inf")},
]


def steps(*where: str, sort: str | None = None) -> list[int]:
    return [row["step"] for row in Query.parse(where, sort).select(ROWS)]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("harmful>0.5", [30]),
        ("harmful >= 0.5", [10, 30]),
        ("harmful<0.6", [10]),
        ("harmful<=0.5", [10]),
        ("harmful==0.75", [30]),
        # A checkpoint without the value, or with NaN, fits no condition.
        ("harmful!=0.75", [10]),
        ("harmful>-1", [10, 30]),
        ("harmful >= 5e-1 and step <= 20", [10]),
        ("step>0 AND step<30 and loss>1", [10]),
        ("loss>1", [10, 30]),
        ("size>=20KB", [10, 20, 30]),
        ("size==10000", [0]),
        ("final==true", [30]),
        ("final!=True", [0, 10, 20]),
        ("state==damaged", [20]),
        ("state != 'complete'", [20]),
        ('"harmful">0.5', [30]),
    ],
)
def test_a_condition_selects(where: str, found: list[int]) -> None:
    assert steps(where) == found


def test_several_conditions_have_to_fit_all() -> None:
    assert steps("harmful>=0.5", "step<30") == [10]


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("harmful", 'expected COLUMN OPERATOR VALUE, such as "harmful>0.5"'),
        ("", "expected COLUMN"),
        (">0.5", "expected COLUMN"),
        ("harmful>", "expected COLUMN"),
        ("harmful=0.5", 'write "=="'),
        ("harmful>0.5 or step>3", "'or step>3' follows a condition"),
        ("harmful>0.5 step>3", "'step>3' follows a condition"),
        ("harmful>0.5 and", "follows a condition"),
        ("harmful>0.5 and and step>3", None),
        ("harmful>half", "harmful holds numbers, and 'half' is none"),
        ("harmful>50%", "harmful holds numbers, and '50%' is none"),
        ("harmful!=nan", "a checkpoint without a value fits no condition"),
        ("harmful<inf", "nothing compares with inf"),
        ("size>10 parsecs", "follows a condition"),
        ("size>10parsecs", "expected a number and one of B, KB"),
        ("final>0", "write final==true"),
        ("state>3", "compare them with == or !="),
        ("__import__('os')>0", "no column"),
        ("0.2<harmful", "no column '0.2'"),
    ],
)
def test_a_text_that_is_no_condition_is_refused(where: str, told: str | None) -> None:
    def run() -> None:
        check_columns(query := Query.parse([where]), ["step", "size", "state", "final", "harmful"])
        query.select(ROWS)

    with pytest.raises(UserError, match=None if told is None else re.escape(told)):
        run()


def test_a_wrong_condition_is_refused_even_if_another_one_fits_nothing() -> None:
    with pytest.raises(UserError, match="holds texts"):
        steps("step>1000", "state>3")


def test_a_column_with_an_operator_in_its_name_stands_in_quotes() -> None:
    assert parse_conditions('"a<b">1') == [Condition("a<b", ">", "1")]


@pytest.mark.parametrize(
    ("sort", "found"),
    [
        ("-step", [30, 20, 10, 0]),
        ("harmful", [10, 30, 0, 20]),
        ("-harmful", [30, 10, 0, 20]),
        ("-size,-step", [30, 20, 10, 0]),
        ("state,-loss", [30, 10, 0, 20]),
    ],
)
def test_missing_values_are_last_in_either_order(sort: str, found: list[int]) -> None:
    assert steps(sort=sort) == found


def test_a_column_without_a_name_and_a_column_of_mixed_types_are_no_order() -> None:
    with pytest.raises(UserError, match=r'--sort "step,": expected a column, such as step'):
        Query.parse(sort="step,")
    with pytest.raises(UserError, match="numbers and texts"):
        Query.parse(sort="loss").select([*ROWS, {"step": 40, "loss": "low"}])


def test_an_unknown_column_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"--where: there is no column 'harmfull'.*; did you mean 'harmful'\?"):
        check_columns(Query.parse(["harmfull>0"]), ["step", "harmful"])
    with pytest.raises(UserError, match=r"--sort: there is no column 'stpe'.*; did you mean 'step'\?"):
        check_columns(Query.parse(sort="-stpe"), ["step", "harmful"])


def test_a_long_list_of_columns_ends_between_two_names() -> None:
    columns = [f"column_{number:03}" for number in range(100)]
    with pytest.raises(UserError) as caught:
        check_columns(Query.parse(sort="column"), columns)
    listed = str(caught.value).partition("the columns are ")[2].partition("; did you mean")[0]
    assert listed.startswith("column_000, column_001, ")
    assert listed.endswith(", …")
    assert set(listed.removesuffix(", …").split(", ")) < set(columns)


def test_the_notes_say_how_many_lack_a_value() -> None:
    assert Query.parse(["harmful>0.5"], "-loss").notes(ROWS) == [
        "2 of 4 checkpoints have no value of harmful: no condition on the column fits",
        "1 of 4 checkpoints has no value of loss: last in the order",
    ]
