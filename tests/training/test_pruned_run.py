"""A real training whose checkpoints were pruned: what a resumed run, another schedule and the store make of it."""

import json
from collections.abc import Callable
from pathlib import Path

from emtoolkit import Trajectory
from emtoolkit.analysis.dynamics import path_lengths
from emtoolkit.config.load import load_config
from emtoolkit.pruning.keep import Request
from emtoolkit.pruning.prune import prune
from emtoolkit.training.run import RunResult, train
from tests.in_process import emtoolkit
from tests.saving.trainings import bytes_of, saved_steps

WriteConfig = Callable[..., Path]


def trained(config: Path, directory: Path, *settings: str, resume: bool = False) -> RunResult:
    words = ["wandb.mode=disabled", *settings]
    return train(load_config(str(config), words, {"output_dir": str(directory)}), resume=resume)


def test_a_resumed_run_computes_no_pruned_step_again(write_config: WriteConfig, tmp_path: Path) -> None:
    config, directory = write_config(), tmp_path / "out"
    trained(config, directory)
    weights = {step: bytes_of(directory / f"checkpoint-{step}") for step in (2, 4)}
    prune(str(directory), Request(drop="2"))
    assert not trained(config, directory, resume=True).trained
    assert saved_steps(directory) == [0, 4, 9]
    # Three of the steps 0, 4 and 9 are all of them.
    assert "all 3 checkpoints stay" in emtoolkit("prune", directory, "--budget", "3").out
    # Another schedule trains again, over the pruned step, and saves what it lacks alone.
    assert trained(config, directory, "checkpointing.schedule=0-6:2", resume=True).trained
    assert saved_steps(directory) == [0, 4, 6, 9]
    assert bytes_of(directory / "checkpoint-4") == weights[4]
    assert Trajectory.open(directory).pruned == (2,)
    done = emtoolkit("prune", directory, "--budget", "3", "--json")
    way = path_lengths(str(directory), [0, 4, 6, 9])
    middle = min((4, 6), key=lambda step: abs(way[[0, 4, 6, 9].index(step)] - way[-1] / 2))
    assert [int(step) for step in json.loads(done.out)["kept"]] == [0, middle, 9]


def test_a_run_that_reuses_takes_what_the_other_has_pruned_from_the_store(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config()
    reuse = ["trajectory.reuse=true", f"trajectory.store={tmp_path / 'store'}"]
    trained(config, tmp_path / "a", *reuse)
    weights = bytes_of(tmp_path / "a" / "checkpoint-2")
    plan = prune(str(tmp_path / "a"), Request(drop="2")).plan
    # The store has the same files.
    assert (plan.freed, len(plan.notes)) == (0, 1)
    assert not trained(config, tmp_path / "a", *reuse, resume=True).trained
    assert saved_steps(tmp_path / "a") == [0, 4, 9]
    assert not trained(config, tmp_path / "b", *reuse).trained
    assert bytes_of(tmp_path / "b" / "checkpoint-2") == weights

    (store,) = [path.parent for path in (tmp_path / "store").glob("*/trajectory.json")]
    prune(str(store), Request(drop="2"))
    # A run that lacks the step asks for it.
    assert trained(config, tmp_path / "c", *reuse).trained
    assert bytes_of(tmp_path / "c" / "checkpoint-2") == weights
    assert saved_steps(tmp_path / "c") == [0, 2, 4, 9]


def test_a_step_that_was_pruned_is_made_again_with_the_same_bytes(write_config: WriteConfig, tmp_path: Path) -> None:
    directory = tmp_path / "out"
    trained(write_config(), directory)
    weights = {step: bytes_of(directory / f"checkpoint-{step}") for step in (0, 2, 4, 9)}
    assert emtoolkit("prune", directory, "--keep", "4", "--yes").code == 0
    assert (saved_steps(directory), Trajectory.open(directory).pruned) == ([0, 4, 9], (2,))
    done = emtoolkit("refine", directory, "--steps", "2")
    assert done.code == 0, done.err
    assert {step: bytes_of(directory / f"checkpoint-{step}") for step in saved_steps(directory)} == weights
    assert (Trajectory.open(directory).steps, Trajectory.open(directory).pruned) == ((0, 2, 4, 9), ())
