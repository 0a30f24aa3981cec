"""Which rows are held out."""

from emtoolkit.data.split import split_rows


def test_the_split_is_by_seed_and_loses_no_row() -> None:
    train, test = split_rows(7049, 0.1, seed=42)
    assert (len(train), len(test)) == (6344, 705)
    assert sorted(train + test) == list(range(7049))
    assert split_rows(7049, 0.1, seed=42) == (train, test)
    assert split_rows(7049, 0.1, seed=43) != (train, test)
    assert split_rows(3, 0.0, seed=1) == ([0, 1, 2], [])
