"""The version of a step that only an interruption asked for loses the step's alias once training has passed it."""

from pathlib import Path

import pytest

from emtoolkit.artifacts.sync import sync
from emtoolkit.storage.atomic import remove_directory
from tests.artifacts.stored import IDENTITY
from tests.artifacts.trainings import on_wandb, publish, saved
from tests.wandb_server import WandbServer


@pytest.mark.parametrize("kept", [False, True])
def test_sync_takes_the_alias_of_a_passed_step_unless_a_schedule_has_it(
    kept: bool, wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.artifacts import trainings

    def interrupted(directory: Path, step: int, metadata: dict[str, object], run: str | None) -> None:
        add_saved(directory, step, metadata | ({"saved_for": "interruption"} if step == 5 else {}), run)

    add_saved = trainings.add_saved
    monkeypatch.setattr(trainings, "add_saved", interrupted)
    saved(tmp_path / "a", {0: "one", 5: "one"})
    assert publish(tmp_path / "a", "first") == {}
    (collection,) = on_wandb(wandb_server)
    if kept:
        # Another directory has the step in its schedule.
        monkeypatch.setattr(trainings, "add_saved", add_saved)
        saved(tmp_path / "b", {0: "one", 5: "one"})
        assert publish(tmp_path / "b", "second") == {}
    remove_directory(tmp_path / "a" / "checkpoint-5")
    trainings.checkpoint_files(tmp_path / "a" / "checkpoint-10", 10, training="one")
    add_saved(tmp_path / "a", 10, {"step": 10, "fingerprint": IDENTITY.fingerprint}, run=None)
    done = sync(tmp_path / "a")
    assert (done.problems, done.on_wandb) == ((), (0, 10))
    assert on_wandb(wandb_server) == {collection: [0, 5, 10] if kept else [0, 10]}
