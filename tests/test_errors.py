"""The errors of bad input: where they are located."""

import pytest
import wandb

from emtoolkit.errors import DataError, NotHereError, UserError, first_line, located


def test_a_located_error_begins_with_its_place_and_keeps_its_kind() -> None:
    with pytest.raises(NotHereError, match=r"^rows\.jsonl, line 3: no answer$"), located("rows.jsonl, line 3"):
        raise NotHereError("no answer")


def test_the_outer_place_comes_first() -> None:
    with (
        pytest.raises(DataError, match=r"^datasets\.bad: line 3: no answer$"),
        located("datasets.bad"),
        located("line 3"),
    ):
        raise DataError("no answer")


def test_other_exceptions_pass_unchanged() -> None:
    with pytest.raises(KeyError, match=r"^'role'$"), located("line 3"):
        raise KeyError("role")


def test_the_text_of_an_error_is_one_line_of_bounded_length() -> None:
    assert str(UserError("a: 'b\nc'; d")) == "a: 'b\\nc'; d"
    assert len(str(UserError("\0" * 100_000))) == 3001


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("no space left.\ndetails"), "no space left"),
        (OSError(""), "OSError"),
        (ValueError("the layers are wrong:\n\n  7 is no layer\nmore"), "the layers are wrong: 7 is no layer"),
        (ValueError("nothing follows:"), "nothing follows:"),
        (ValueError("1 validation error for int\n  too large [type=int, input_value=7]\n    For further"), "too large"),
    ],
)
def test_the_first_line_of_an_error_says_something(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_the_first_line_of_an_error_of_pydantic_names_the_field() -> None:
    with pytest.raises(ValueError, match="1 validation error for Settings") as raised:
        wandb.Settings().update_from_env_vars({"WANDB_BASE_URL": "localhost:8080"})
    assert first_line(raised.value) == "base_url: URL scheme should be 'http' or 'https'"
