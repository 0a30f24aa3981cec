"""The errors of bad input: where they are located."""

import pytest

from emtoolkit.errors import DataError, NotHereError, UserError, located


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
