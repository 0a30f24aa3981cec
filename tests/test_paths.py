"""Labels of directories."""

from pathlib import Path

import pytest

from emtoolkit.paths import distinct_names


@pytest.mark.parametrize(
    ("directories", "names"),
    [
        (["outputs/a", "outputs/b"], ["a", "b"]),
        (["s1/run", "s2/run", "other"], ["s1/run", "s2/run", "other"]),
        (["x/s1/run", "y/s1/run", "y/s2/run"], ["x/s1/run", "y/s1/run", "s2/run"]),
        (["run", "deeper/run"], ["TOP/run", "deeper/run"]),
    ],
)
def test_directories_of_one_name_have_different_labels(directories: list[str], names: list[str]) -> None:
    top = Path.cwd().name
    assert distinct_names([Path(directory) for directory in directories]) == [
        name.replace("TOP", top) for name in names
    ]
