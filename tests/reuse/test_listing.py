"""What tells a reader that a checkpoint was saved by an earlier training: the listing, its JSON, and the report."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from emtoolkit.analysis.report import _reused
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.publications import Publications, add_reused, add_store
from emtoolkit.cli.render import checkpoints_json
from tests.in_process import emtoolkit


@pytest.fixture
def directory(runs: Path, tmp_path: Path) -> Path:
    """A run with steps 0, 2, 4 and 9, of which it took step 2 from a store."""
    directory = tmp_path / "run"
    directory.mkdir()
    for entry in (runs / "prompt").iterdir():
        if entry.name.startswith("checkpoint-"):
            (directory / entry.name).symlink_to(entry)
    add_store(directory, Path("/store/0ff94fd49306e94b-74e563b2"))
    add_reused(directory, 2)
    return directory


def test_a_listing_marks_the_steps_that_were_taken(directory: Path) -> None:
    assert [(info.step, info.reused) for info in list_checkpoints(directory)] == [
        (0, False),
        (2, True),
        (4, False),
        (9, False),
    ]
    assert "checkpoint-2  (reused)" in emtoolkit("checkpoints", directory).out
    assert checkpoints_json(list_checkpoints(directory)).count('"reused": true') == 1
    assert Publications.read(directory).store == Path("/store/0ff94fd49306e94b-74e563b2")


def test_a_report_says_which_steps_no_training_of_the_run_saved(directory: Path) -> None:
    row = SimpleNamespace(trajectory=str(directory))
    evaluation = cast(Any, SimpleNamespace(rows=[row], measured=[]))
    assert _reused([evaluation, evaluation]) == [f"{directory}: step 2 was saved by an earlier training, and reused"]
