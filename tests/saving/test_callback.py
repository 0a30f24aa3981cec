"""The callback under the real Trainer: which steps are saved, when, and with which files."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM, Trainer, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from emtoolkit import ScheduledCheckpointCallback
from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.errors import CheckpointError, ConfigError, ScheduleError
from emtoolkit.saving.snapshot import SnapshotBuffers
from emtoolkit.stop_signals import ENDING, NOTICES
from emtoolkit.storage.lock import lock_directory
from tests.saving.callbacks import FailAt, StopAt, callback, wait_for_disk
from tests.saving.trainings import base_model, bytes_of, lora_model, make_trainer, saved_steps


def weights(directory: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(directory / f"checkpoint-{step}" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        ("0,1,3", [0, 1, 3, 8]),
        ("every:3", [3, 6, 8]),
        ("0,log2:4,6-:1", [0, 1, 2, 4, 6, 7, 8]),
        ("every:50%", [4, 8]),
    ],
)
def test_a_training_of_eight_steps_saves_exactly_these(
    tmp_path: Path, schedule: str, steps: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="emtoolkit"):
        make_trainer(tmp_path, [callback(schedule)]).train()

    assert "scheduled steps are copied in memory, and written in the background" in caplog.text
    assert saved_steps(tmp_path) == steps
    listed = list_checkpoints(tmp_path, rehash=True)
    assert [info.step for info in listed if info.complete] == steps
    assert [info.step for info in listed if info.final] == [8]


def test_three_lines_in_a_script_are_enough(tmp_path: Path) -> None:
    from emtoolkit import ScheduledCheckpointCallback

    trainer = make_trainer(tmp_path)
    trainer.add_callback(ScheduledCheckpointCallback("0-4:2"))
    trainer.train()

    assert saved_steps(tmp_path) == [0, 2, 4, 8]
    assert isinstance(PeftModel.from_pretrained(base_model(), tmp_path / "checkpoint-2"), PeftModel)


def test_step_zero_is_saved_before_the_first_update(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [callback("0,1")])
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()

    step_0, step_1 = weights(tmp_path, 0), weights(tmp_path, 1)
    assert {name: t.tolist() for name, t in step_0.items()} == {
        name.replace(".default", ""): t.tolist() for name, t in before.items()
    }
    assert any(not torch.equal(step_0[name], step_1[name]) for name in step_0)


def test_a_warmup_from_zero_repeats_the_weights_of_step_zero_and_not_its_manifest(tmp_path: Path) -> None:
    make_trainer(tmp_path, [callback("0,1,2")], warmup_steps=5).train()

    zero, one, two = (bytes_of(tmp_path / f"checkpoint-{step}") for step in (0, 1, 2))
    assert zero["adapter_model.safetensors"] == one["adapter_model.safetensors"]
    assert one["adapter_model.safetensors"] != two["adapter_model.safetensors"]
    assert zero["manifest.json"] != one["manifest.json"]


@pytest.mark.slow
def test_the_files_are_those_of_the_stock_trainer(tmp_path: Path) -> None:
    make_trainer(tmp_path / "stock", save_strategy="steps", save_steps=4).train()
    make_trainer(tmp_path / "ours", [callback("4")]).train()

    stock, ours = (bytes_of(tmp_path / which / "checkpoint-4") for which in ("stock", "ours"))
    assert ours["adapter_model.safetensors"] == stock["adapter_model.safetensors"]
    configs = [json.loads(files["adapter_config.json"]) for files in (ours, stock)]
    for config in configs:
        config["target_modules"] = sorted(config["target_modules"])
        config["base_model_name_or_path"] = config["base_model_name_or_path"] or None
    assert configs[0] == configs[1]
    assert sorted(ours) == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]


@pytest.mark.slow
def test_a_full_fine_tune_loads_again_and_keeps_tied_weights_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(tmp_path / "stock", model=base_model(), save_strategy="steps", save_steps=4).train()
    assert "Writing model shards" in capsys.readouterr().err
    trainer = make_trainer(tmp_path / "ours", [callback("4")], model=base_model())
    trainer.train()
    assert "Writing model shards" not in capsys.readouterr().err

    stock, ours = (bytes_of(tmp_path / which / "checkpoint-4") for which in ("stock", "ours"))
    assert ours["model.safetensors"] == stock["model.safetensors"]
    loaded = Qwen2ForCausalLM.from_pretrained(tmp_path / "ours" / "checkpoint-8")
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("save_steps", [3, 4, 100, 0.25, 0.3, 0.07])
def test_save_steps_saves_what_a_stock_trainer_saves(tmp_path: Path, save_steps: int | float) -> None:
    from emtoolkit.config.scheduling import CheckpointingConfig

    make_trainer(tmp_path / "stock", save_strategy="steps", save_steps=save_steps, rows=30).train()
    schedule = CheckpointingConfig(save_steps=save_steps).to_schedule()
    make_trainer(tmp_path / "ours", [ScheduledCheckpointCallback(schedule, resume_every="never")], rows=30).train()

    assert saved_steps(tmp_path / "ours") == saved_steps(tmp_path / "stock")


def test_the_trainers_own_saves_are_turned_off_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=5)
    trainer.add_callback(callback("1,2"))
    trainer.train()

    assert saved_steps(tmp_path) == [1, 2, 8]
    assert trainer.args.save_strategy == SaveStrategy.NO
    assert "save_strategy is now 'no' (it was 'steps')" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"save_total_limit": 2}, "save_total_limit: 2 would delete scheduled checkpoints"),
        ({"save_strategy": "best", "metric_for_best_model": "loss", "eval_strategy": "epoch"}, "save_strategy: 'best'"),
        ({"load_best_model_at_end": True, "metric_for_best_model": "loss"}, "load_best_model_at_end: needs"),
    ],
)
def test_arguments_that_would_lose_scheduled_checkpoints_are_refused(
    tmp_path: Path, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_trainer(tmp_path, [callback("1")], **arguments)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_in_flight": 0}, "max_in_flight: 0 is not a number of copies, 1 or more"),
        ({"on_error": "ignore"}, "on_error: 'ignore' is neither 'raise' nor 'warn'"),
        ({"publish_timeout": -1.0}, "publish_timeout: -1.0 is not a number of seconds"),
        ({"publish_timeout": "60"}, "publish_timeout: '60' is not a number of seconds"),
        ({"max_in_flight": "2"}, "max_in_flight: '2' is not a number of copies"),
        ({"max_in_flight": True}, "max_in_flight: True is not a number of copies"),
        ({"publish": "no"}, "publish: 'no' is neither True nor False"),
        ({"overlap": None}, "overlap: None is neither True nor False"),
        ({"resume_every": "10 minutes"}, "resume_every: '10 minutes' is not an interval"),
        ({"resume_every": 50}, "resume_every: 50 is not an interval such as 10min, 30s, 2h, '50 steps' or never"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        callback("1", **options)


def test_a_step_past_the_end_is_refused_at_train_begin_and_nothing_is_written(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "out", [callback("2,40")])
    with pytest.raises(ScheduleError, match="step 40 is past the end of training at step 8"):
        trainer.train()
    assert saved_steps(tmp_path / "out") == []


def test_allow_unreachable_saves_what_can_be_reached(tmp_path: Path) -> None:
    make_trainer(tmp_path, [callback("2,40", allow_unreachable=True)]).train()
    assert saved_steps(tmp_path) == [2, 8]


def test_early_stopping_by_a_later_callback_saves_the_last_step(tmp_path: Path) -> None:
    make_trainer(tmp_path, [callback("0,2"), StopAt(5)]).train()

    assert saved_steps(tmp_path) == [0, 2, 5]
    assert [info.step for info in list_checkpoints(tmp_path) if info.final] == [5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "step", "saved"),
    [("on_step_end", 3, 3), ("on_step_begin", 3, 3), ("on_optimizer_step", 3, 4)],
)
def test_an_exception_loses_no_step_that_was_trained(tmp_path: Path, event: str, step: int, saved: int) -> None:
    ours = callback("0")
    trainer = make_trainer(tmp_path / "failed", [ours, FailAt(step, event)])
    with pytest.raises(RuntimeError, match="a fault of the training's own"):
        trainer.train()
    ours.save_after_failure()
    make_trainer(tmp_path / "whole", [callback("every:1")]).train()

    assert saved_steps(tmp_path / "failed") == [0, saved]
    name = f"checkpoint-{saved}"
    assert bytes_of(tmp_path / "failed" / name) == bytes_of(tmp_path / "whole" / name)
    assert not any(info.final for info in list_checkpoints(tmp_path / "failed"))


def test_weights_that_the_optimizer_was_changing_are_not_saved(tmp_path: Path) -> None:
    ours = callback("0")
    trainer = make_trainer(tmp_path, [ours, FailAt(3, "on_pre_optimizer_step")])
    with pytest.raises(RuntimeError):
        trainer.train()
    ours.save_after_failure()
    assert saved_steps(tmp_path) == [0]


@pytest.mark.slow
def test_two_schedules_of_one_trajectory_give_the_same_bytes(tmp_path: Path) -> None:
    make_trainer(tmp_path / "a", [callback("every:1")], model=lora_model(dropout=0.1)).train()
    make_trainer(tmp_path / "b", [callback("2,5", resume_every="3 steps")], model=lora_model(dropout=0.1)).train()

    for step in (2, 5, 8):
        assert bytes_of(tmp_path / "a" / f"checkpoint-{step}") == bytes_of(tmp_path / "b" / f"checkpoint-{step}")


@pytest.mark.slow
@pytest.mark.parametrize("stopped_at", [4, 5, 8])
def test_a_stock_resume_goes_on_byte_for_byte(tmp_path: Path, stopped_at: int) -> None:
    """Across the end of an epoch (8 of 16 steps), with dropout, under a schedule that changed in between."""
    options: dict[str, Any] = {"num_train_epochs": 2, "gradient_accumulation_steps": 1}
    make_trainer(tmp_path / "whole", [callback("0,every:1")], model=lora_model(dropout=0.1), **options).train()
    directory = tmp_path / "resumed"
    first = callback("0,2", resume_every=f"{stopped_at} steps")
    trainer = make_trainer(
        directory, [first, FailAt(stopped_at + 1, "on_step_begin")], model=lora_model(dropout=0.1), **options
    )
    with pytest.raises(RuntimeError):
        trainer.train()
    first.save_after_failure()
    assert saved_steps(directory) == [0, 2, stopped_at + 1]

    again = make_trainer(directory, [callback("0,2,10,12")], model=lora_model(dropout=0.1), **options)
    again.train(resume_from_checkpoint=str(directory / "resume" / f"checkpoint-{stopped_at}"))

    assert saved_steps(directory) == [0, 2, 10, 12, 16]
    for step in saved_steps(directory):
        name = f"checkpoint-{step}"
        assert bytes_of(directory / name) == bytes_of(tmp_path / "whole" / name), step
    assert not (directory / "resume").exists()


@pytest.mark.slow
def test_a_resume_in_a_later_epoch_is_exact_where_the_sampler_draws_from_the_global_generator(tmp_path: Path) -> None:
    """With `group_by_length` a stock resume in the second epoch or later trains on the rows in another order."""
    options: dict[str, Any] = {"num_train_epochs": 3, "train_sampling_strategy": "group_by_length"}
    make_trainer(tmp_path / "whole", [callback("every:1")], model=lora_model(dropout=0.1), **options).train()
    directory = tmp_path / "resumed"
    first = callback("2", resume_every="11 steps")
    trainer = make_trainer(directory, [first, FailAt(12, "on_step_begin")], model=lora_model(dropout=0.1), **options)
    with pytest.raises(RuntimeError):
        trainer.train()
    first.save_after_failure()

    again = make_trainer(directory, [callback("2,16,20")], model=lora_model(dropout=0.1), **options)
    again.train(resume_from_checkpoint=str(directory / "resume" / "checkpoint-11"))
    for step in (16, 20, 24):
        name = f"checkpoint-{step}"
        assert bytes_of(directory / name) == bytes_of(tmp_path / "whole" / name), step


@pytest.mark.slow
def test_a_step_that_is_damaged_is_replaced_when_it_is_saved_again(tmp_path: Path) -> None:
    make_trainer(tmp_path, [callback("0,2")]).train()
    before = bytes_of(tmp_path / "checkpoint-2")
    manifest = json.loads(before["manifest.json"])
    manifest["files"]["adapter_model.safetensors"]["sha256"] = "0" * 64
    (tmp_path / "checkpoint-2" / "manifest.json").write_text(json.dumps(manifest))
    make_trainer(tmp_path, [callback("0,2")]).train()
    assert bytes_of(tmp_path / "checkpoint-2") == before


@pytest.mark.slow
def test_a_second_run_with_other_hyperparameters_is_refused_with_the_differences(tmp_path: Path) -> None:
    make_trainer(tmp_path, [callback("2")]).train()
    before = bytes_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"another trajectory \(arguments.learning_rate is 0.01 there and 0.02"):
        make_trainer(tmp_path, [callback("2")], learning_rate=0.02).train()
    assert bytes_of(tmp_path) == before


@pytest.mark.slow
def test_another_tools_checkpoints_are_not_overwritten(tmp_path: Path) -> None:
    make_trainer(tmp_path, save_strategy="steps", save_steps=4).train()
    before = bytes_of(tmp_path)
    with pytest.raises(CheckpointError, match="checkpoint-4: was saved by another tool; choose another directory"):
        make_trainer(tmp_path, [callback("4")]).train()
    assert bytes_of(tmp_path) | {".lock": b""} == before | {".lock": b""}


def test_a_failed_save_stops_training_at_the_next_step_with_its_cause(tmp_path: Path) -> None:
    class TakeTheName(TrainerCallback):
        """Puts a file at the path of a checkpoint: tests may run as root, for whom permissions do not count."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (tmp_path / "checkpoint-2").write_text("in the way")

    ours = callback("0,2,3")
    trainer = make_trainer(tmp_path, [ours, TakeTheName()])
    with pytest.raises(CheckpointError, match=r"checkpoint-2: could not be written \(a file is in the way\)") as raised:
        trainer.train()
    assert isinstance(raised.value.__cause__, OSError)
    ours.save_after_failure()  # finishes the saves that have begun
    assert 0 in saved_steps(tmp_path)
    assert (tmp_path / "checkpoint-2").read_text() == "in the way"
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.slow
def test_two_trainings_of_a_process_cannot_save_into_one_directory(tmp_path: Path) -> None:
    class StartAnother(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                with pytest.raises(CheckpointError, match="this process is saving into it already"):
                    make_trainer(tmp_path, [callback("0")]).train()

    make_trainer(tmp_path, [callback("0"), StartAnother()]).train()
    assert saved_steps(tmp_path) == [0, 8]


def test_left_over_temporaries_are_cleaned_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / ".tmp-checkpoint-2-123").mkdir(parents=True)
    (tmp_path / ".tmp-checkpoint-2-123" / "adapter_model.safetensors").write_bytes(b"half")
    make_trainer(tmp_path, [callback("2")]).train()
    assert saved_steps(tmp_path) == [2, 8]
    assert not list(tmp_path.glob(".tmp-*"))


def test_resume_checkpoints_follow_the_clock_and_only_the_newest_is_kept(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    now = 0.0

    class Tick(TrainerCallback):
        """Advances the clock by a minute with each step."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal now
            now += 60.0
            wait_for_disk(ours)  # otherwise the listing depends on timing
            seen.append(sorted(path.name for path in (tmp_path / "resume").glob("*")))

    ours = callback("0", resume_every="3min", clock=lambda: now)
    make_trainer(tmp_path, [ours, Tick()]).train()

    assert seen == [[]] * 3 + [["checkpoint-3"]] * 3 + [["checkpoint-6"]] * 2


class MemoryRunsOut(Trainer):
    """Fails like a GPU at more than two rows, from `from_step` on."""

    from_step = 0

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(inputs["input_ids"]) > 2 and self.state.global_step >= self.from_step:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().training_step(model, inputs, *args, **kwargs)


def trainer_of(cls: type[Trainer], directory: Path, ours: ScheduledCheckpointCallback, **arguments: Any) -> Trainer:
    """`make_trainer` for a Trainer of another class."""
    plain = make_trainer(directory, **arguments)
    return cls(model=plain.model, args=plain.args, train_dataset=plain.train_dataset, callbacks=[ours])


@pytest.mark.slow
@pytest.mark.parametrize(("from_step", "max_steps"), [(0, -1), (2, -1), (1, 5)])
def test_a_batch_size_found_by_trying_is_a_separate_trajectory(
    tmp_path: Path, from_step: int, max_steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    """4 rows do not fit, nor do 3; at 2 rows a batch, 16 rows are 8 steps."""
    ours = callback("0,every:1")
    options = {"auto_find_batch_size": True, "per_device_train_batch_size": 4, "max_steps": max_steps}
    trainer = trainer_of(MemoryRunsOut, tmp_path / "found", ours, **options)
    MemoryRunsOut.from_step = from_step
    trainer.train()

    assert saved_steps(tmp_path / "found") == [0, 1, 2, 3, 4, 5, 6, 7, 8][: max_steps + 1 or None]
    assert all(info.complete for info in list_checkpoints(tmp_path / "found", rehash=True))
    abandoned = sorted((tmp_path / "found").glob("abandoned-*"))
    assert [saved_steps(path) for path in abandoned] == [list(range(from_step + 1))] * 2
    assert "memory ran out: the batch size is now 2" in caplog.text
    assert ("memory ran out after an update" in caplog.text) == (from_step > 0)

    if from_step == 0:
        make_trainer(tmp_path / "given", [callback("0,every:1")]).train()
        for step in (0, 4, 8):
            found, given = (weights(tmp_path / which, step) for which in ("found", "given"))
            assert all(torch.equal(found[name], given[name]) for name in found), step


def test_any_exception_at_the_beginning_restores_the_signal_handlers_and_releases_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(self: SnapshotBuffers) -> None:
        raise RuntimeError("no memory for the copy")

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as broken:
        broken.setattr(SnapshotBuffers, "prepare", no_memory)
        with pytest.raises(RuntimeError, match="no memory for the copy"):
            make_trainer(tmp_path, [callback("0")]).train()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    lock_directory(tmp_path).release()


def test_a_training_may_change_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    class Move(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            os.chdir(tmp_path / "elsewhere")

    make_trainer(Path("out"), [callback("0,every:4", resume_every="2 steps", resume_at_end=True), Move()]).train()
    assert saved_steps(tmp_path / "out") == [0, 4, 8]
    assert (tmp_path / "out" / "trainer_state.json").exists()
    assert [path.name for path in (tmp_path / "out" / "resume").iterdir()] == ["checkpoint-8"]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_two_callbacks_of_a_training_leave_the_signal_handlers_as_they_were(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (*ENDING, *NOTICES)]
    two = [callback("0,every:4", output_dir=tmp_path / "a"), callback("0,every:3", output_dir=tmp_path / "b")]
    make_trainer(tmp_path, list(two)).train()
    assert [saved_steps(tmp_path / name) for name in ("a", "b")] == [[0, 4, 8], [0, 3, 6, 8]]
    assert [signal.getsignal(number) for number in (*ENDING, *NOTICES)] == before
