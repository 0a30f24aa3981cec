"""Sizes as people write and read them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emtoolkit.byte_sizes import format_size, parse_size
from emtoolkit.errors import UserError

EXPECTED = "expected a number and one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB, such as 150MB"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("4096", 4096),
        ("12B", 12),
        ("2KB", 2_000),
        ("150MB", 150_000_000),
        ("1.5GB", 1_500_000_000),
        ("1TB", 1_000_000_000_000),
        ("2KiB", 2_048),
        ("1MiB", 1_048_576),
        ("1.5 GiB", 1_610_612_736),
        ("1TiB", 1_099_511_627_776),
        (" 150 mb ", 150_000_000),
    ],
)
def test_a_size_is_this_many_bytes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", f'size "": {EXPECTED}'),
        ("MB", f'size "MB": {EXPECTED}'),
        ("-5MB", f'size "-5MB": {EXPECTED}'),
        ("1e3", f'size "1e3": {EXPECTED}'),
        ("1_000", f'size "1_000": {EXPECTED}'),
        ("٣MB", f'size "٣MB": {EXPECTED}'),
        ("150 apples", f'size "150 apples": {EXPECTED}'),
        ("150M", f"size \"150M\": {EXPECTED}; did you mean 'MB'?"),
        ("0MB", 'size "0MB": expected at least 1 byte'),
        ("0.4B", 'size "0.4B": expected at least 1 byte'),
    ],
)
def test_what_is_not_a_size_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_size(text)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1 KB"),
        (600_000_000, "600 MB"),
        (1_650_000_000, "1.65 GB"),
        (2_400_000_000, "2.4 GB"),
        (15_550_000_000, "15.6 GB"),
        (999_499, "999 KB"),
        (999_500, "1 MB"),
        (15_500 * 10**12, "15500 TB"),
    ],
)
def test_a_size_is_printed_to_three_digits(count: int, text: str) -> None:
    assert format_size(count) == text


@given(st.integers(1, 10**16))
@settings(derandomize=True, deadline=None)
def test_a_printed_size_reads_back_to_within_half_a_percent(count: int) -> None:
    assert abs(parse_size(format_size(count)) - count) <= count / 200
