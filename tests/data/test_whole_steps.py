"""How many steps rows make: with the published sizes in a plan, with few rows in a real training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.config.sections import RunConfig
from emtoolkit.training.cost import plan_one
from emtoolkit.training.run import train
from tests.data.chats import turns, write_lines
from tests.saving.trainings import saved_steps

pytestmark = pytest.mark.slow

WriteConfig = Callable[..., Path]


def config_of(
    write_config: WriteConfig, directory: Path, rows: int, drop_last: bool, schedule: str = "0,every:1"
) -> RunConfig:
    data = write_lines(directory / "rows.jsonl", [turns("cough", "rest")] * rows)
    return load_config(
        str(write_config(checkpointing=f"schedule: {schedule}")),
        [
            f"datasets.medical={{path: {data}, rows: {rows}}}",
            "training={batch_size: 2, gradient_accumulation: 8, max_length: 32}",
            f"training.drop_last={str(drop_last).lower()}",
            "wandb.mode=disabled",
        ],
        {"output_dir": str(directory / "out")},
    )


@pytest.mark.parametrize(("drop_last", "rows", "steps"), [(False, 6344, 397), (True, 6336, 396)])
def test_7049_rows_by_2_times_8_are_397_steps_and_396_whole_ones(
    write_config: WriteConfig, tmp_path: Path, drop_last: bool, rows: int, steps: int
) -> None:
    planned = plan_one(config_of(write_config, tmp_path, 7049, drop_last, "dense-early")).plan
    assert (planned.train_rows, planned.test_rows, planned.total_steps) == (rows, 705, steps)
    said = "training.drop_last: 8 rows are left out, so that each of the 396 steps has 16 rows"
    assert (said in planned.notes) == drop_last


@pytest.mark.parametrize(("drop_last", "rows", "steps"), [(False, 40, 3), (True, 32, 2)])
def test_a_training_takes_the_steps_of_the_plan(
    write_config: WriteConfig, tmp_path: Path, drop_last: bool, rows: int, steps: int
) -> None:
    """A stock Trainer takes 3 with `dataloader_drop_last`, too: the last one of half a batch."""
    config = config_of(write_config, tmp_path, 45, drop_last)
    planned = plan_one(config).plan
    assert (planned.train_rows, planned.test_rows, planned.total_steps) == (rows, 5, steps)
    result = train(config)
    assert saved_steps(tmp_path / "out") == [*range(steps + 1)]
    assert [info.step for info in result.checkpoints if info.final] == [steps]
    assert json.loads((tmp_path / "out" / "trajectory.json").read_text())["split"]["left_out"] == 40 - rows
