"""How many steps rows make: with the published sizes, in a real training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.training.cost import plan_one
from emtoolkit.training.run import train
from tests.data.chats import turns, write_lines
from tests.saving.trainings import saved_steps

pytestmark = pytest.mark.slow

WriteConfig = Callable[..., Path]


@pytest.mark.parametrize(("drop_last", "rows", "steps"), [(False, 6344, 397), (True, 6336, 396)])
def test_7049_rows_by_2_times_8_are_397_steps_and_396_whole_ones(
    write_config: WriteConfig, tmp_path: Path, drop_last: bool, rows: int, steps: int
) -> None:
    """A stock Trainer makes 397 of them with `dataloader_drop_last`, too: the last one of half a batch."""
    data = write_lines(tmp_path / "rows.jsonl", [turns("cough", "rest")] * 7049)
    config = load_config(
        str(write_config(checkpointing="schedule: dense-early")),
        [
            f"datasets.medical={{path: {data}, rows: 7049}}",
            "training={batch_size: 2, gradient_accumulation: 8, max_length: 32}",
            f"training.drop_last={str(drop_last).lower()}",
            "wandb.mode=disabled",
        ],
        {"output_dir": str(tmp_path / "out")},
    )
    planned = plan_one(config).plan
    assert (planned.train_rows, planned.test_rows, planned.total_steps) == (rows, 705, steps)
    said = "training.drop_last: 8 rows are left out, so that each of the 396 steps has 16 rows"
    assert (said in planned.notes) == drop_last

    result = train(config)
    assert saved_steps(tmp_path / "out") == [0, 25, 50, 75, 100, 125, 150, 200, 250, 300, steps]
    assert [info.step for info in result.checkpoints if info.final] == [steps]
    assert json.loads((tmp_path / "out" / "trajectory.json").read_text())["split"]["left_out"] == 6344 - rows
