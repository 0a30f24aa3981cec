"""Trainings that are not the usual one: every checkpoint is the model at its step, and the last step is there."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import (
    AutoTokenizer,
    Qwen2ForSequenceClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from emtoolkit.checkpoints.listing import list_checkpoints
from tests.saving.callbacks import callback
from tests.saving.trainings import base_model, saved_steps, token_rows

Make = Callable[[Path, Sequence[TrainerCallback]], Trainer]


class Truth(TrainerCallback):
    """Copies of all weights at the end of each step."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.kind: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        bare = getattr(model, "_orig_mod", model)
        self.kind = type(bare)
        self.weights[state.global_step] = {name: tensor.clone() for name, tensor in bare.state_dict().items()}


def assert_is(checkpoint: Path, kind: Any, weights: dict[str, torch.Tensor]) -> None:
    """A checkpoint loads as the model with these `weights`."""
    loaded = kind.from_pretrained(checkpoint).state_dict()
    assert loaded.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(loaded[name], tensor), (checkpoint, name)


def arguments(directory: Path, kind: type[TrainingArguments] = TrainingArguments, **more: Any) -> Any:
    ours: dict[str, Any] = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "num_train_epochs": 1}
    quiet = {"save_strategy": "no", "logging_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True}
    return kind(output_dir=str(directory), **(ours | quiet | more))


def plain(cls: type[Trainer] = Trainer, *, rows: int = 10, data: Any = None, **more: Any) -> Make:
    def make(directory: Path, callbacks: Sequence[TrainerCallback]) -> Trainer:
        rows_of = token_rows(rows) if data is None else data()
        args = arguments(directory, **more)
        return cls(model=base_model(), args=args, train_dataset=rows_of, callbacks=list(callbacks))

    return make


class Sam(Trainer):
    """Sharpness-aware minimization (Foret et al. 2021): the gradient at a point beside the weights."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        moves = [(p, 0.05 * p.grad / (p.grad.norm() + 1e-12)) for p in model.parameters() if p.grad is not None]
        before = [p.data for p, _ in moves]
        for parameter, move in moves:
            parameter.data = parameter.data + move
        model.zero_grad()
        super().training_step(model, inputs, num_items_in_batch)
        for (parameter, _), own in zip(moves, before, strict=True):
            parameter.data = own
        return loss


class TwoOptimizers(Trainer):
    """Trains the norms with an optimizer of their own, which the Trainer does not know."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        norms = [parameter for name, parameter in model.named_parameters() if "norm" in name]
        loss = super().training_step(model, inputs, num_items_in_batch)
        torch.optim.SGD(norms, lr=0.1).step()
        for parameter in norms:
            parameter.grad = None
        return loss


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from token_rows(3)


def sequence_to_sequence(directory: Path, callbacks: Sequence[TrainerCallback]) -> Trainer:
    torch.manual_seed(0)
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return Seq2SeqTrainer(
        model=T5ForConditionalGeneration(config),
        args=arguments(directory, Seq2SeqTrainingArguments, predict_with_generate=True),
        train_dataset=token_rows(10),
        callbacks=list(callbacks),
    )


def classifier(directory: Path, callbacks: Sequence[TrainerCallback]) -> Trainer:
    config = base_model().config
    config.num_labels, config.pad_token_id = 2, 0
    rows = Dataset.from_dict({"input_ids": token_rows(10)["input_ids"], "label": [0, 1] * 5})
    model = Qwen2ForSequenceClassification(config)
    return Trainer(model=model, args=arguments(directory), train_dataset=rows, callbacks=list(callbacks))


def vision(directory: Path, callbacks: Sequence[TrainerCallback]) -> Trainer:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    rows = [{"pixel_values": torch.full((3, 8, 8), i / 10), "labels": i % 2} for i in range(10)]
    model = ViTForImageClassification(config)
    return Trainer(model=model, args=arguments(directory), train_dataset=rows, callbacks=list(callbacks))


COMPILED = plain(torch_compile=True, torch_compile_backend="eager")


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        pytest.param(
            plain(torch_compile=True, torch_compile_backend="eager"), 5, id="compiled", marks=pytest.mark.slow
        ),
        pytest.param(plain(Sam), 5, id="sam"),
        pytest.param(plain(TwoOptimizers), 5, id="two-optimizers"),
        # Five batches are two steps of two batches, and one of one.
        pytest.param(plain(gradient_accumulation_steps=2, num_train_epochs=2), 6, id="remainder"),
        # The identity of a stream is read in a forked process.
        pytest.param(plain(data=Endless, max_steps=4), 4, id="endless", marks=pytest.mark.subprocess),
        pytest.param(plain(neftune_noise_alpha=5), 5, id="neftune"),
        pytest.param(plain(train_sampling_strategy="group_by_length"), 5, id="group-by-length"),
        pytest.param(sequence_to_sequence, 5, id="seq2seq"),
        pytest.param(classifier, 5, id="classifier"),
        pytest.param(vision, 5, id="vision"),
    ],
)
def test_each_checkpoint_is_the_model_at_its_step(tmp_path: Path, make: Make, steps: int) -> None:
    truth = Truth()
    make(tmp_path, [callback("0,2,3"), truth]).train()
    assert saved_steps(tmp_path) == [0, 2, 3, steps]
    assert all(info.complete for info in list_checkpoints(tmp_path, rehash=True))
    for step in (2, 3, steps):
        assert_is(tmp_path / f"checkpoint-{step}", truth.kind, truth.weights[step])


@pytest.mark.subprocess
def test_a_stream_under_trl_is_saved_at_its_steps(world: Path, tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_dict({"text": ["rest and drink water", "see a doctor"] * 4}).to_iterable_dataset()
    truth = Truth()
    SFTTrainer(
        model=str(world / "model"),
        args=arguments(
            tmp_path, SFTConfig, max_steps=3, max_length=16, model_init_kwargs={"dtype": "float32"}, bf16=False
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(world / "model"),
        callbacks=[callback("0,2"), truth],
    ).train()
    assert saved_steps(tmp_path) == [0, 2, 3]
    for step in (2, 3):
        assert_is(tmp_path / f"checkpoint-{step}", truth.kind, truth.weights[step])
