"""Steps that a resumed run computes again: equal bytes, equal weights in other files, and other weights."""

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForSequenceClassification, Trainer, TrainerCallback, set_seed

from emtoolkit import Trajectory
from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.publications import Difference, Publications
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.recomputed import compare_recomputed
from tests.in_process import emtoolkit
from tests.saving.callbacks import FailAt, callback
from tests.saving.trainings import VOCABULARY, bytes_of, lora_model, make_trainer, saved_steps

WEIGHTS = "adapter_model.safetensors"


class Nudge(TrainerCallback):
    """Adds `by` to one weight at the end of `step`, as a kernel that is not deterministic would."""

    def __init__(self, step: int, by: float) -> None:
        self.step, self.by = step, by

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                next(p for p in kwargs["model"].parameters() if p.requires_grad).view(-1)[0] += self.by


class Reshuffle(TrainerCallback):
    """Changes the random state at the beginning of training, so that dropout draws other numbers."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        set_seed(99)


def train_again(directory: Path, *more: TrainerCallback, schedule: str = "0,every:1") -> None:
    """Train from step 0 into `directory`, as a resume without a resume checkpoint does."""
    make_trainer(directory, [*more, callback(schedule)], model=lora_model(dropout=0.1)).train()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints 0 to 6 of a training of 8 steps."""
    home = tmp_path_factory.mktemp("trained") / "run"
    ours = callback("0,every:1")
    trainer = make_trainer(home, [ours, FailAt(6, "on_step_begin")], model=lora_model(dropout=0.1))
    with pytest.raises(RuntimeError):
        trainer.train()
    ours.save_after_failure()
    return home


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.slow
def test_other_weights_end_no_run_and_are_measured_said_and_shown(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = bytes_of(run)
    train_again(run, Nudge(4, 1e-6))

    assert saved_steps(run) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    after = bytes_of(run)
    assert {name: after[name] for name in before if name.startswith("checkpoint")} == {
        name: content for name, content in before.items() if name.startswith("checkpoint")
    }
    differences = Publications.read(run).differences
    assert sorted(differences) == [4, 5, 6]
    assert 5e-7 < differences[4].largest < 2e-6
    assert differences[4].tensor.endswith("layers.0.self_attn.q_proj.lora_A.weight")
    assert differences[4].share is not None
    assert 0 < differences[4].share < 1e-3
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [text.partition(" (")[0] for text in warnings] == [
        f"{run / 'checkpoint-4'}: computed again, step 4 has other weights",
        f"{run}: resumed with differences: 3 steps were computed again with other weights",
    ]
    assert not any("more than kernels differ" in text for text in warnings)

    largest = max(difference.largest for difference in differences.values())
    trajectory = Trajectory.open(run)
    assert trajectory.largest_difference == largest
    assert repr(trajectory).endswith(f"resumed with differences of up to {largest:.2g})")
    assert [c.metadata.get("resumed_with_differences") is not None for c in trajectory] == [False] * 7 + [True] * 2
    shown = emtoolkit("checkpoints", run).out
    assert shown.count("recomputed ±") == 3
    assert "Resumed with differences: 3 steps were computed again with other weights" in " ".join(shown.split())
    listed = {entry["step"]: entry["recomputed"] for entry in json.loads(emtoolkit("checkpoints", run, "--json").out)}
    assert listed[3] is None
    assert listed[4]["largest"] == differences[4].largest


@pytest.mark.slow
def test_another_random_state_is_kept_marked_and_named_as_more_than_noise(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (run / "checkpoint-6" / WEIGHTS).read_bytes()
    train_again(run, Reshuffle())
    assert (run / "checkpoint-6" / WEIGHTS).read_bytes() == before
    assert sorted(Publications.read(run).differences) == [1, 2, 3, 4, 5, 6]
    assert "this is more than kernels differ from run to run" in caplog.text


@pytest.mark.slow
def test_a_training_that_gives_the_same_bytes_is_not_marked(run: Path) -> None:
    fingerprint = (run / "trajectory.json").read_bytes()
    train_again(run)
    assert Trajectory.open(run).largest_difference is None
    assert "differences" not in repr(Trajectory.open(run))
    assert json.loads(fingerprint)["fingerprint"] == json.loads((run / "trajectory.json").read_bytes())["fingerprint"]


@pytest.mark.slow
def test_later_steps_stay_marked_after_another_resume(run: Path) -> None:
    train_again(run, Nudge(4, 1e-6))
    shutil.rmtree(run / "checkpoint-8")
    train_again(run, Nudge(4, 1e-6))
    metadata = Publications.read(run).metadata[8]
    assert metadata["resumed_with_differences"] == Trajectory.open(run).largest_difference


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", WEIGHTS])
def test_a_resume_checkpoint_with_a_changed_byte_is_refused_after_the_trainer_has_loaded_it(
    name: str, tmp_path: Path
) -> None:
    make_trainer(tmp_path, [callback("0", resume_every="3 steps", resume_at_end=True)]).train()
    state = tmp_path / "resume" / "checkpoint-8"
    content = bytearray((state / name).read_bytes())
    # In the middle of the data of a tensor, where the file still loads; torch's archive keeps checksums of its own.
    content[-3] ^= 1
    (state / name).write_bytes(content)
    before = bytes_of(tmp_path)
    sentence = rf"checkpoint-8: cannot be resumed from \(.*{name}: its content does not match the digest"
    with pytest.raises(CheckpointError, match=sentence):
        make_trainer(tmp_path, [callback("0")], num_train_epochs=2, max_steps=8).train(
            resume_from_checkpoint=str(state)
        )
    assert bytes_of(tmp_path) == before


def classifier(directory: Path, *callbacks: TrainerCallback, labels: Any) -> Trainer:
    """A full fine-tune whose first forward pass writes `problem_type` into the model's config."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=1, pad_token_id=0, num_labels=2, **sizes)
    trainer = make_trainer(directory, callbacks, model=Qwen2ForSequenceClassification(config))
    ids = torch.randint(1, VOCABULARY, (16, 6), generator=torch.Generator().manual_seed(1)).tolist()
    trainer.train_dataset = Dataset.from_dict({"input_ids": ids, "labels": labels})
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("labels", [[0, 1] * 8, [[0.0, 1.0], [1.0, 1.0]] * 8], ids=["single label", "multi label"])
def test_a_config_that_the_first_forward_pass_changes_is_no_other_trajectory(
    labels: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ours = callback("0,every:1", resume_every="3 steps")
    stopped = classifier(tmp_path / "run", ours, FailAt(5, "on_step_begin"), labels=labels)
    with pytest.raises(RuntimeError):
        stopped.train()
    ours.save_after_failure()
    before = bytes_of(tmp_path / "run" / "checkpoint-3")
    assert b"problem_type" in before["config.json"]

    resume = str(tmp_path / "run" / "resume" / "checkpoint-3")
    classifier(tmp_path / "run", callback("0,every:1"), labels=labels).train(resume_from_checkpoint=resume)
    assert bytes_of(tmp_path / "run" / "checkpoint-3") == before
    assert saved_steps(tmp_path / "run")[-1] == 8
    assert Publications.read(tmp_path / "run").differences == {}
    assert "config.json would be written differently now; the weights are equal" in caplog.text


def two(home: Path, kept: dict[str, torch.Tensor], again: dict[str, torch.Tensor], first: Any = None) -> Any:
    """What `compare_recomputed` says about two saves of step 2, after step 0 with `first` if given."""
    seal = TrajectorySeal(Identity({"seed": 1}), 8)
    manifests = []
    for name, step, tensors in (("checkpoint-0", 0, first), ("checkpoint-2", 2, kept), ("again", 2, again)):
        if tensors is not None:
            (home / name).mkdir()
            save_file(tensors, home / name / "model.safetensors")
            manifests.append(seal.seal(home / name, step))
    return compare_recomputed(home / "checkpoint-2", manifests[-2], home / "again", manifests[-1])


def test_a_difference_is_a_number_a_place_and_a_share_of_the_way(tmp_path: Path) -> None:
    zero, kept = torch.zeros(4), torch.tensor([3.0, 4.0, 0.0, 0.0])
    found = two(tmp_path, {"a": zero + 1, "b": kept}, {"a": zero + 1, "b": kept + 0.5}, {"a": zero + 1, "b": zero})
    assert found.weights == Difference(0.5, "b", 0.2)
    assert str(found.weights) == "up to 0.5 in b, 20 % of the way from the first checkpoint"


def test_a_difference_without_an_earlier_checkpoint_has_no_share(tmp_path: Path) -> None:
    found = two(tmp_path, {"a": torch.ones(2, dtype=torch.bfloat16)}, {"a": torch.zeros(2, dtype=torch.bfloat16)})
    assert found.weights == Difference(1.0, "a", None)


def test_a_weight_that_is_no_number_in_one_of_them_is_infinitely_different(tmp_path: Path) -> None:
    nan = torch.tensor([1.0, math.nan])
    assert two(tmp_path, {"a": nan}, {"a": torch.ones(2)}).weights.largest == math.inf


def test_equal_weights_are_equal_also_where_they_are_no_numbers(tmp_path: Path) -> None:
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    assert two(tmp_path, {"a": values}, {"a": values}).weights is None


@pytest.mark.parametrize("again", [{"b": torch.ones(2)}, {"a": torch.ones(3)}, {"a": torch.ones(2).half()}])
def test_other_tensors_are_another_model_and_refused(tmp_path: Path, again: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match="holds other tensors than this run trains at step 2; choose another"):
        two(tmp_path, {"a": torch.ones(2)}, again)


def test_weights_in_another_number_of_files_are_equal(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    two(tmp_path, tensors, tensors)
    again = tmp_path / "again"
    for number, name in enumerate(tensors):
        save_file({name: tensors[name]}, again / f"model-0000{number + 1}-of-00002.safetensors")
    (again / "model.safetensors").unlink()
    (again / "manifest.json").unlink()
    seal = TrajectorySeal(Identity({"seed": 1}), 8)
    kept = seal.seal(Path(shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "checkpoint-3")), 2)
    assert load_file(tmp_path / "checkpoint-3" / "model.safetensors").keys() == tensors.keys()
    assert compare_recomputed(tmp_path / "checkpoint-3", kept, again, seal.seal(again, 2)).weights is None
