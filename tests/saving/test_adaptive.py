"""Steps that are chosen during a real training: `moved:5%` and `budget:20`."""

import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.weight_distance import TrainedWeights
from tests.saving.callbacks import StopAt, callback, wait_for_disk
from tests.saving.trainings import base_model, bytes_of, make_trainer, saved_steps

pytestmark = pytest.mark.slow

STEPS = 24


class CopyAndFail(TrainerCallback):
    """Copies the output directory at the beginning of `step`, as a kill there would leave it, and fails."""

    def __init__(self, step: int, copy: Path) -> None:
        self.step = step
        self.copy = copy
        self.ours: ScheduledCheckpointCallback | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            assert self.ours is not None
            wait_for_disk(self.ours)
            shutil.copytree(Path(str(args.output_dir)), self.copy)
            raise RuntimeError("a fault of the training's own")


def train(directory: Path, schedule: str, *others: TrainerCallback, model: Any = None, **options: Any) -> Any:
    """A trained callback; 24 steps on 48 rows."""
    ours = callback(schedule, **{key: options.pop(key) for key in ("resume_every", "on_nan") if key in options})
    resume = options.pop("resume", None)
    for other in others:
        if isinstance(other, CopyAndFail):
            other.ours = ours
    make_trainer(directory, [ours, *others], model=model, rows=2 * STEPS, **options).train(
        resume_from_checkpoint=resume
    )
    return ours


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All steps of the trajectory."""
    directory = tmp_path_factory.mktemp("adaptive") / "dense"
    train(directory, "0,every:1")
    return directory


def change(checkpoint: Path) -> Tensor:
    """scale · BA of all modules of a LoRA checkpoint, formed in float64 and flat."""
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    scale = 8 / 2  # lora_alpha is 8 by default, and the rank is 2
    names = sorted(name for name in tensors if name.endswith("lora_A.weight"))
    products = [scale * tensors[name.replace("lora_A", "lora_B")].double() @ tensors[name].double() for name in names]
    return torch.cat([product.flatten() for product in products])


def expected_of_moved(home: Path, share: float, total: int = STEPS) -> list[int]:
    """What `moved:` means, written anew."""
    changes = [change(home / f"checkpoint-{step}") for step in range(total + 1)]
    steps, last = [0], changes[0]
    for step in range(1, total + 1):
        if float((changes[step] - last).norm()) >= share * float((changes[step] - changes[0]).norm()):
            steps.append(step)
            last = changes[step]
    return sorted({*steps, total})


def test_moved_saves_what_its_definition_says(dense: Path, tmp_path: Path) -> None:
    for share in (0.1, 0.3, 0.6):
        directory = tmp_path / str(share)
        ours = train(directory, f"moved:{share:.0%}")
        expected = expected_of_moved(dense, share)
        assert saved_steps(directory) == expected
        assert [saved.step for saved in ours.saved] == expected
        assert all(bytes_of(directory / f"checkpoint-{s}") == bytes_of(dense / f"checkpoint-{s}") for s in expected)
    assert len(expected) < len(expected_of_moved(dense, 0.1)) < STEPS


def test_a_budget_keeps_as_many_and_the_rest_is_gone(dense: Path, tmp_path: Path) -> None:
    ours = train(tmp_path / "run", "budget:6")
    steps = saved_steps(tmp_path / "run")
    assert len(steps) == 6
    assert (steps[0], steps[-1]) == (0, STEPS)
    assert sorted(saved.step for saved in ours.saved) == steps
    assert ours.failures == []
    assert all(bytes_of(tmp_path / "run" / f"checkpoint-{s}") == bytes_of(dense / f"checkpoint-{s}") for s in steps)
    # Even gaps: the way from step to step is the path, and no gap has more than 1.7 times its share.
    changes = [change(dense / f"checkpoint-{step}") for step in range(STEPS + 1)]
    ways = [float((after - before).norm()) for before, after in pairwise(changes)]
    gaps = [sum(ways[a:b]) for a, b in pairwise(steps)]
    assert max(gaps) <= 1.7 * sum(ways) / 5 + max(ways)
    # Nothing but the checkpoints is left.
    assert not list((tmp_path / "run").glob(".tmp-*"))
    assert not (tmp_path / "run" / "resume").exists()


@pytest.mark.parametrize("schedule", ["moved:30%", "moved:30%,0-:7", "budget:5", "budget:9"])
def test_a_killed_training_that_is_resumed_keeps_the_same_steps(tmp_path: Path, schedule: str) -> None:
    """Each attempt leaves the directory as a SIGKILL at some step does, and the next one goes on from there."""
    train(tmp_path / "whole", schedule)
    killed = tmp_path / "killed"
    resume: str | None = None
    # The resume state is older than the kill, so steps that were saved and thinned after it are computed again.
    for attempt, (kill, every) in enumerate([(6, 4), (13, 5), (22, 11)]):
        with pytest.raises(RuntimeError, match="a fault of the training's own"):
            train(
                killed,
                schedule,
                CopyAndFail(kill, tmp_path / f"copy-{attempt}"),
                resume=resume,
                resume_every=f"{every} steps",
            )
        shutil.rmtree(killed)
        (tmp_path / f"copy-{attempt}").rename(killed)
        resume = str(max((killed / "resume").iterdir(), key=lambda path: int(path.name.split("-")[1])))
    train(killed, schedule, resume=resume)
    assert saved_steps(killed) == saved_steps(tmp_path / "whole")
    for step in saved_steps(killed):
        assert bytes_of(killed / f"checkpoint-{step}") == bytes_of(tmp_path / "whole" / f"checkpoint-{step}")
    assert TrajectoryRecord.read_if_any(killed) == TrajectoryRecord.read_if_any(tmp_path / "whole")


def test_a_training_that_ends_early_saves_its_last_step(tmp_path: Path) -> None:
    for schedule in ("moved:60%", "budget:3"):
        directory = tmp_path / schedule
        train(directory, schedule, StopAt(17))
        assert saved_steps(directory)[-1] == 17
        assert [info.step for info in list_checkpoints(directory) if info.final] == [17]
    assert len(saved_steps(tmp_path / "budget:3")) == 3


@pytest.mark.parametrize("schedule", ["moved:5%", "budget:5"])
def test_a_learning_rate_of_zero_saves_the_first_and_the_last_step(tmp_path: Path, schedule: str) -> None:
    train(tmp_path / "run", schedule, learning_rate=0.0)
    assert saved_steps(tmp_path / "run") == [0, STEPS]


def test_the_schedule_is_in_the_record_and_the_metadata(tmp_path: Path) -> None:
    train(tmp_path / "run", "moved:60%")
    record = TrajectoryRecord.read_if_any(tmp_path / "run")
    assert record is not None
    assert record.schedule == "moved:60%"
    metadata = Publications.read(tmp_path / "run").metadata
    assert {metadata[step]["schedule"] for step in saved_steps(tmp_path / "run")} == {"moved:60%"}
    # A step that was only measured leaves no trace.
    assert sorted(metadata) == saved_steps(tmp_path / "run")


def test_a_full_fine_tune_counts_the_trained_weights_as_they_are(tmp_path: Path) -> None:
    for schedule in ("0,every:1", "moved:40%"):
        train(tmp_path / schedule, schedule, model=base_model())
    weights = [load_file(tmp_path / "0,every:1" / f"checkpoint-{s}" / "model.safetensors") for s in range(STEPS + 1)]
    flat = [torch.cat([each[name].double().flatten() for name in sorted(each)]) for each in weights]
    expected, last = [0], flat[0]
    for step in range(1, STEPS + 1):
        if float((flat[step] - last).norm()) >= 0.4 * float((flat[step] - flat[0]).norm()):
            expected.append(step)
            last = flat[step]
    assert saved_steps(tmp_path / "moved:40%") == sorted({*expected, STEPS})


def test_a_resume_under_another_schedule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a fault of the training's own"):
        train(tmp_path / "run", "every:3", CopyAndFail(8, tmp_path / "copy"), resume_every="5 steps")
    with pytest.raises(CheckpointError, match="under a schedule of known steps, and does not say which steps moved:5%"):
        train(tmp_path / "run", "moved:5%", resume=True)
    # From the start all is well, and the intact checkpoints stay.
    train(tmp_path / "run", "moved:60%")
    assert {0, 3, 6, STEPS} < {*saved_steps(tmp_path / "run")}


# The distance


def test_the_distance_of_pairs_is_that_of_their_scaled_products() -> None:
    draw = torch.Generator().manual_seed(4)
    now = {"m.lora_A.weight": torch.randn(3, 40, generator=draw), "m.lora_B.weight": torch.randn(50, 3, generator=draw)}
    then = {name: tensor + 1e-4 * torch.randn(tensor.shape, generator=draw) for name, tensor in now.items()}
    weights = TrainedWeights.of(now, {"peft_type": "LORA", "lora_alpha": 12})
    new, old = ((4 * each["m.lora_B.weight"].double() @ each["m.lora_A.weight"].double()) for each in (now, then))
    assert weights.distance(now, weights.copied(then)) == pytest.approx(float((new - old).norm()), rel=1e-5)
    assert weights.distance(now, weights.copied(now)) == 0
    zero = {**now, "m.lora_B.weight": torch.zeros(50, 3)}
    assert weights.copied(zero) == {}
    assert weights.distance(now, weights.copied(zero)) == pytest.approx(float(new.norm()), rel=1e-5)
    assert weights.distance(zero, weights.copied(now)) == pytest.approx(float(new.norm()), rel=1e-5)


def test_another_gauge_of_the_same_product_has_not_moved() -> None:
    draw = torch.Generator().manual_seed(4)
    now = {"m.lora_A.weight": torch.randn(3, 40, generator=draw), "m.lora_B.weight": torch.randn(50, 3, generator=draw)}
    then = {"m.lora_A.weight": now["m.lora_A.weight"] / 4, "m.lora_B.weight": now["m.lora_B.weight"] * 4}
    weights = TrainedWeights.of(now, {"peft_type": "LORA", "lora_alpha": 3})
    assert weights.distance(now, weights.copied(then)) < 1e-2 * weights.distance(now, {})


def test_another_adapter_than_a_product_counts_tensor_by_tensor() -> None:
    tensors = {
        "m.lora_A.weight": torch.ones(2, 3),
        "m.lora_B.weight": torch.ones(3, 2),
        "m.lora_magnitude": torch.ones(3),
    }
    weights = TrainedWeights.of(tensors, {"peft_type": "LORA", "use_dora": True, "lora_alpha": 3})
    assert weights.pairs == ()
    assert weights.why_no_product == "the adapter is LORA with use_dora"
    moved = {name: tensor + 2 for name, tensor in tensors.items()}
    assert weights.distance(moved, weights.copied(tensors)) == pytest.approx(2 * 15**0.5)


def test_weights_that_are_no_numbers_have_no_distance() -> None:
    tensors = {"w": torch.tensor([1.0, float("nan")])}
    weights = TrainedWeights.of(tensors)
    assert not weights.distance(tensors, {"w": torch.zeros(2)}) < float("inf")


def test_a_tensor_of_another_shape_is_named() -> None:
    weights = TrainedWeights.of({"w": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"'w' has the shape \[3\] and had \[2\], so its way cannot be measured"):
        weights.distance({"w": torch.zeros(3)}, {"w": torch.zeros(2)})


class RecordingPublisher:
    """Takes the place of the publisher, and keeps what it is told to publish."""

    told: list[tuple[int, bool, list[int]]]

    def __init__(self, *_: Any) -> None:
        self.failures: dict[int, str] = {}
        self.damaged: dict[int, str] = {}

    def publish(self, publication: Any) -> None:
        type(self).told.append((publication.step, publication.final, saved_steps(publication.path.parent)))

    def withdraw(self, step: int) -> None:
        pass

    def drain(self, *_: Any) -> None:
        pass


def test_a_budget_is_published_when_nothing_is_deleted_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    RecordingPublisher.told = []
    monkeypatch.setattr("emtoolkit.saving.session.WandbPublisher", RecordingPublisher)
    monkeypatch.setattr("emtoolkit.saving.session.active_run", lambda: SimpleNamespace(id="r", offline=True))
    monkeypatch.setattr("emtoolkit.saving.session.add_run", lambda *_: None)
    monkeypatch.setattr("emtoolkit.saving.session.WandbRun", SimpleNamespace(of=lambda run: run))
    killed = tmp_path / "killed"
    with pytest.raises(RuntimeError, match="a fault of the training's own"):
        train(killed, "budget:5", CopyAndFail(13, tmp_path / "copy"), resume_every="10 steps")
    assert RecordingPublisher.told == []
    assert "are not on W&B" in caplog.text
    assert caplog.messages[-1].endswith(
        "; the schedule may still delete some of them, and the resumed training publishes the others); they are "
        f"complete in {killed}"
    )
    train(killed, "budget:5", resume=True)
    kept = saved_steps(killed)
    # Those that the killed training saved are among them, and all are on disk when the first is published.
    assert RecordingPublisher.told == [(step, step == STEPS, kept) for step in kept]
