"""Copies that are made beside the next step give the bytes of copies in the training thread, or are not made."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from emtoolkit.config.scheduling import CheckpointingConfig
from emtoolkit.saving import overlapped_copy, snapshot
from emtoolkit.saving.adapter_state import model_state
from emtoolkit.saving.overlapped_copy import OverlappedCopy
from emtoolkit.saving.signals import TrainingInterrupted
from emtoolkit.saving.snapshot import SnapshotBuffers
from emtoolkit.saving.whole_step import WholeStep
from tests.saving.callbacks import StopAt, callback
from tests.saving.overlapped import LateCopies, digests
from tests.saving.trainings import base_model, lora_model, make_trainer


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[LateCopies]:
    with LateCopies(monkeypatch).bounded() as copies:
        yield copies


Train = Callable[..., None]


def both(train: Train, directory: Path) -> None:
    """Train with and without overlap; every file of every checkpoint is the same."""
    for overlap in (True, False):
        train(directory / str(overlap), overlap)
    assert digests(directory / "True") == digests(directory / "False")
    assert len(digests(directory / "True")) > 4


def plain(directory: Path, overlap: bool, **options: Any) -> None:
    model = options.pop("model", lora_model)()
    callbacks = options.pop("callbacks", lambda ours: [ours])
    ours = callback("0-5:1", publish=False, overlap=overlap)
    make_trainer(directory, callbacks(ours), model=model, max_steps=5, **options).train()


@pytest.mark.parametrize(
    "options",
    [
        {"model": base_model},
        {"gradient_accumulation_steps": 2},
        {"eval_strategy": "steps", "eval_steps": 2},
        {"eval_strategy": "epoch", "rows": 6, "max_grad_norm": 0.0},
        {"optim": "adamw_torch_fused", "bf16": True},
        {"gradient_checkpointing": True},
    ],
    ids="-".join,
)
def test_every_byte_is_that_of_a_copy_in_the_training_thread(
    options: dict[str, Any], late: LateCopies, tmp_path: Path
) -> None:
    both(lambda directory, overlap: plain(directory, overlap, **options), tmp_path)
    assert late.steps == [1, 2, 3, 4]


def trained(model: Any) -> list[Any]:
    return [p for p in model.parameters() if p.requires_grad]


def swap(model: Any) -> None:
    for p in trained(model):
        p.data = p.data * 0.5


def scale_unseen(model: Any) -> None:
    for p in trained(model):
        p.data.mul_(0.5)


def scale(model: Any) -> None:
    with torch.no_grad():
        for p in trained(model):
            p.mul_(0.5)


class ChangeAt(TrainerCallback):
    """Changes the weights at one event of step 3."""

    def __init__(self, event: str, change: Callable[[Any], None]) -> None:
        self.change = change
        setattr(self, event, self._change)

    def _change(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            self.change(kwargs["model"])


class Declared(ChangeAt):
    changes_weights = False


@pytest.mark.parametrize(
    ("event", "change"),
    [("on_step_end", swap), ("on_step_end", scale_unseen), ("on_step_begin", scale_unseen), ("on_log", scale)],
)
def test_a_callback_that_may_change_weights_between_two_updates_turns_overlap_off(
    event: str, change: Callable[[Any], None], late: LateCopies, tmp_path: Path
) -> None:
    options = {"gradient_accumulation_steps": 2, "logging_strategy": "steps", "logging_steps": 1}
    after = lambda ours: [ours, ChangeAt(event, change)]  # noqa: E731  # a list for each training
    both(lambda directory, overlap: plain(directory, overlap, callbacks=after, **options), tmp_path)
    assert late.steps == []


@pytest.mark.parametrize("change", [swap, scale_unseen])
def test_weights_that_changed_before_a_step_is_saved_are_that_step(
    change: Callable[[Any], None], late: LateCopies, tmp_path: Path
) -> None:
    before = lambda ours: [ChangeAt("on_step_end", change), ours]  # noqa: E731
    both(lambda directory, overlap: plain(directory, overlap, callbacks=before), tmp_path)
    # Weights that got other memory are copied anew in the training thread, and from then on all are.
    assert late.steps == ([1, 2, 3] if change is swap else [1, 2, 3, 4])


class Sam(Trainer):
    """Trains at a point beside the weights, reached in a way that shows nowhere."""

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        kept = [p.data.clone() for p in trained(model)]
        scale_unseen(model)
        loss = super().training_step(model, *args, **kwargs)
        for p, own in zip(trained(model), kept, strict=True):
            p.data.copy_(own)
        return loss


class SwappedInEvaluation(Trainer):
    """Evaluates other weights, as with averaged ones."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        assert isinstance(self.model, nn.Module)
        kept = [p.data.clone() for p in trained(self.model)]
        scale_unseen(self.model)
        metrics = super().evaluate(*args, **kwargs)
        for p, own in zip(trained(self.model), kept, strict=True):
            p.data.copy_(own)
        return metrics


@pytest.mark.parametrize("kind", [Sam, SwappedInEvaluation])
def test_a_trainer_with_a_step_or_an_evaluation_of_its_own_turns_overlap_off(
    kind: type[Trainer], late: LateCopies, tmp_path: Path
) -> None:
    def train(directory: Path, overlap: bool) -> None:
        ours = callback("0-5:1", publish=False, overlap=overlap)
        trainer = make_trainer(directory, [ours], max_steps=5, eval_strategy="steps", eval_steps=2)
        trainer.__class__ = kind
        trainer.train()

    both(train, tmp_path)
    assert late.steps == []


def with_own_forward(model: Any) -> Any:
    """A model one of whose modules changes its weights in every third forward pass, in a way that shows nowhere."""

    class Drifting(nn.Linear):
        passes = 0

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            self.passes += 1
            if self.passes % 3 == 0:
                self.weight.data.mul_(0.9)
            return super().forward(input)

    part = model.model.layers[0].mlp.up_proj
    part.__class__ = Drifting
    return model


def with_hook(model: Any) -> Any:
    seen: list[int] = []

    def hook(module: Any, inputs: Any) -> None:
        seen.append(1)
        if len(seen) % 3 == 0:
            scale_unseen(model)

    model.register_forward_pre_hook(hook)
    return model


def with_hook_of_a_gradient(model: Any) -> Any:
    """An update in the backward pass, as of GaLore for each layer."""

    def update(p: Any) -> None:
        p.data.add_(p.grad, alpha=-0.1)

    for p in trained(model):
        p.register_post_accumulate_grad_hook(update)
    return model


def with_max_norm(model: Any) -> Any:
    model.model.embed_tokens.max_norm = 0.05
    return model


def with_buffer(model: Any) -> Any:
    """A count of the forward passes in the checkpoint, as in BatchNorm."""
    norm = nn.BatchNorm1d(6)
    model.model.norm.register_module("batch", norm)
    model.model.norm.register_forward_hook(norm_too)
    return model


def norm_too(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    changed: torch.Tensor = module.batch(output)
    return changed


norm_too.__module__ = "torch.nn"


@pytest.mark.parametrize(
    "change",
    [with_own_forward, with_hook, with_hook_of_a_gradient, with_max_norm, with_buffer],
    ids=lambda f: f.__name__,
)
def test_a_model_whose_forward_or_backward_pass_may_change_it_turns_overlap_off(
    change: Callable[[Any], Any], late: LateCopies, tmp_path: Path
) -> None:
    both(lambda directory, overlap: plain(directory, overlap, model=lambda: change(base_model())), tmp_path)
    assert late.steps == []


class WithOtherWeightsForEvaluations(torch.optim.SGD):
    """As of schedule-free optimizers: `eval` swaps weights in, and `train` swaps them out."""

    def train(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.data.mul_(2.0)

    def eval(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.data.mul_(0.5)


def test_an_optimizer_with_other_weights_for_evaluations_turns_overlap_off(late: LateCopies, tmp_path: Path) -> None:
    def train(directory: Path, overlap: bool) -> None:
        ours = callback("0-5:1", publish=False, overlap=overlap)
        trainer = make_trainer(directory, [ours], max_steps=5)
        trainer.optimizer = WithOtherWeightsForEvaluations(trained(trainer.model), lr=0.1)
        trainer.train()

    both(train, tmp_path)
    assert late.steps == []


def test_a_callback_that_says_so_is_overlapped_and_one_that_lied_fails_the_save(
    late: LateCopies, tmp_path: Path
) -> None:
    good = Declared("on_step_begin", lambda model: None)
    both(lambda directory, overlap: plain(directory, overlap, callbacks=lambda ours: [ours, good]), tmp_path)
    assert late.steps == [1, 2, 3, 4]
    late.steps.clear()
    ours = callback("0-5:1", publish=False, overlap=True, on_error="warn")
    lie = Declared("on_step_begin", scale)
    make_trainer(tmp_path / "lie", [ours, lie], max_steps=5).train()
    assert [str(error) for error in ours.failures] == [
        "step 3: its checkpoint is lost, because something changed the weights between two updates while they were "
        "copied beside the training; pass overlap=False to the callback, or set checkpointing.overlap to false"
    ]
    assert not (tmp_path / "lie" / "checkpoint-3").exists()
    assert late.steps == [1, 2, 3]
    plain(tmp_path / "without", False, callbacks=lambda ours: [ours, Declared("on_step_begin", scale)])
    without = digests(tmp_path / "without")
    lost = {name: digest for name, digest in without.items() if not name.startswith("checkpoint-3")}
    assert digests(tmp_path / "lie") == lost


class Interrupting:
    """A collator that does something in the middle of step 4, between the end of step 3 and the next update."""

    def __init__(self, inner: Any, act: Callable[[], None]) -> None:
        self.inner, self.act, self.batches = inner, act, 0

    def __call__(self, rows: Any) -> Any:
        self.batches += 1
        # The loader is one batch ahead.
        if self.batches == 5:
            self.act()
        return self.inner(rows)


def fail() -> None:
    raise RuntimeError("a fault of the data")


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("act", "error"), [(fail, RuntimeError), (interrupt, TrainingInterrupted)])
def test_what_ends_a_step_in_its_middle_leaves_the_bytes_of_the_step_before(
    act: Callable[[], None], error: type[BaseException], late: LateCopies, tmp_path: Path
) -> None:
    # A test before may have left a thread that is ending.
    earlier = set(threading.enumerate())

    def train(directory: Path, overlap: bool) -> None:
        ours = callback("0-5:1", publish=False, overlap=overlap)
        trainer = make_trainer(directory, [ours], max_steps=5)
        trainer.data_collator = Interrupting(trainer.data_collator, act)
        with pytest.raises(error):
            trainer.train()
        left = set(threading.enumerate()) - earlier
        assert not any(thread.name.startswith("emtoolkit") for thread in left)

    both(train, tmp_path)
    assert (tmp_path / "True" / "checkpoint-3" / "manifest.json").is_file()
    assert late.steps == [1, 2, 3]


def test_an_update_that_memory_ends_in_its_middle_is_tried_again_with_the_bytes_of_copies_in_training(
    late: LateCopies, tmp_path: Path
) -> None:
    def no_memory() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def train(directory: Path, overlap: bool) -> None:
        ours = callback("0-4:1", publish=False, overlap=overlap)
        trainer = make_trainer(directory, [ours], max_steps=4, auto_find_batch_size=True)
        trainer.data_collator = Interrupting(trainer.data_collator, no_memory)
        trainer.train()

    both(train, tmp_path)
    assert late.steps == [1, 2, 3, 1, 2, 3]


def test_the_last_step_is_copied_in_training_wherever_training_ends(late: LateCopies, tmp_path: Path) -> None:
    stopped = lambda ours: [StopAt(4), ours]  # noqa: E731
    both(lambda directory, overlap: plain(directory, overlap, callbacks=stopped), tmp_path)
    assert late.steps == [1, 2, 3]


def test_copies_that_a_busy_disk_does_not_come_to_are_made_in_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with LateCopies(monkeypatch, busy=True).bounded() as late:
        both(plain, tmp_path)
    assert late.steps == [1, 2, 3, 4]


def begun_copy(model: Any, before: Callable[[Any], None] = lambda model: None) -> tuple[OverlappedCopy, list[Any]]:
    """A copy of `model` as `before` leaves it, after its tensors were listed; and the values."""
    buffers = SnapshotBuffers(model_state(model), 1)
    before(model)
    copy = OverlappedCopy(buffers, 1, WholeStep(trained(model), 1))
    return copy, values(model_state(model).tensors)


def values(tensors: Mapping[str, torch.Tensor]) -> list[Any]:
    return [tensor.tolist() for tensor in tensors.values()]


def test_weights_that_change_after_their_copy_was_made_are_in_the_copy_as_they_were() -> None:
    model = lora_model()
    copy, expected = begun_copy(model)
    copy.make()
    scale(model)
    copy.settle()
    assert values(copy.wait().tensors) == expected


@pytest.mark.parametrize("before", [lambda model: None, swap], ids=["in-place", "moved"])
def test_a_copy_whose_training_was_left_without_an_end_is_finished_by_its_reader(
    before: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlapped_copy, "_LOOK_EVERY", 0.01)
    begun: list[tuple[OverlappedCopy, list[Any]]] = []
    training = threading.Thread(target=lambda: begun.append(begun_copy(lora_model(), before)))
    training.start()
    training.join()
    copy, expected = begun[0]
    assert values(copy.wait().tensors) == expected


class Streams:
    """A stand-in for two GPUs: a copy is made when its stream is waited for, and not before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        stub: dict[str, Any] = {
            "_asynchronous_device": lambda tensor: torch.device("cuda", tensor.numel() % 2),
            "_is_small": lambda tensor: False,
            "_record": lambda device: f"hand-over on {device}",
            "_side_stream": self.side_stream,
            "_begin_copy": self.begin_copy,
            "_hold_stream": self.hold_stream,
        }
        for name, function in stub.items():
            monkeypatch.setattr(snapshot, name, function)

    @contextmanager
    def side_stream(self, device: Any, after: Any) -> Iterator[None]:
        if device is not None:
            self.log.append(f"copy from {device} after {after}")
        yield

    def begin_copy(self, device: Any, targets: Any, sources: Any) -> Any:
        if len(targets) == 0:
            raise RuntimeError("Tensor list must have at least one tensor.")  # torch's own refusal
        return None if device is None else list(zip(targets, sources, strict=True))

    def hold_stream(self, device: Any, event: Any) -> None:
        self.log.append(f"the stream of {device} waits")
        for target, source in event:
            target.copy_(source)


def test_the_stream_of_every_gpu_waits_for_its_copies_before_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(4, 4, bias=False)])
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].weight.fill_(2.0)
    copy = OverlappedCopy(SnapshotBuffers(model_state(model), 1), 1, WholeStep(trained(model), 1))
    thread = threading.Thread(target=copy.make)
    thread.start()
    thread.join()
    assert "the stream of cuda:0 waits" not in streams.log
    copy.settle()
    with torch.no_grad():
        model[0].weight.zero_()
        model[1].weight.zero_()
    assert sorted(streams.log) == [
        "copy from cuda:0 after hand-over on cuda:0",
        "copy from cuda:1 after hand-over on cuda:1",
        "the stream of cuda:0 waits",
        "the stream of cuda:1 waits",
    ]
    assert copy.failure is None
    assert copy._copied is not None
    assert [float(tensor.mean()) for tensor in copy._copied.tensors.values()] == [1.0, 2.0]


def test_a_copy_that_fails_beside_the_training_is_made_by_it_and_named_once(
    late: LateCopies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(buffers: object, begun: object) -> None:
        raise RuntimeError("no stream")

    monkeypatch.setattr(SnapshotBuffers, "fill_beside", failing)
    both(plain, tmp_path)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "the copy of step 1 beside the training failed (RuntimeError: no stream), and so the training thread made it"
    ]
    assert late.steps == [1]


@pytest.mark.parametrize(
    ("given", "on_cpu", "overlaps"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_a_config_overlaps_on_a_cpu_unless_it_says_otherwise(given: bool | None, on_cpu: bool, overlaps: bool) -> None:
    section = CheckpointingConfig(schedule="0", overlap=given)
    assert section.to_save_options(publish_timeout=1.0, on_nan="stop", on_cpu=on_cpu).overlap is overlaps
