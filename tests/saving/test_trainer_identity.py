"""Two trainings of a bare Trainer share a fingerprint exactly if they are one training."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import IterableDataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.callback import ScheduledCheckpointCallback
from emtoolkit.storage.digests import canonical_json
from tests.saving.trainings import base_model, lora_model, make_trainer, token_rows

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def trained(
    directory: Path, *, model: Any = None, kind: type[Trainer] = Trainer, dataset: Any = None, **options: Any
) -> tuple[str, dict[str, torch.Tensor]]:
    """The fingerprint of a training of two steps, and its last trained weights."""
    loss, optimizers = options.pop("compute_loss_func", None), options.pop("optimizers", (None, None))
    shutil.rmtree(directory, ignore_errors=True)
    defaults = {
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "logging_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
    }
    trainer = kind(
        model=lora_model() if model is None else model,
        args=TrainingArguments(output_dir=str(directory), **(defaults | options)),
        train_dataset=token_rows(16) if dataset is None else dataset,
        compute_loss_func=loss,
        optimizers=optimizers,
        callbacks=[ScheduledCheckpointCallback("0,2", publish=False)],
    )
    trainer.train()
    record = TrajectoryRecord.read_if_any(directory)
    assert record is not None
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return record.fingerprint, weights


def same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def with_lora(base: Any = None, **options: Any) -> Any:
    torch.manual_seed(3)
    return get_peft_model(base_model() if base is None else base, LoraConfig(**(LORA | options)))


def with_persona() -> Any:
    """A base model with another adapter merged into it."""
    torch.manual_seed(4)
    persona = get_peft_model(base_model(), LoraConfig(**LORA, init_lora_weights=False))
    return persona.merge_and_unload()


def with_eager_attention() -> Any:
    base = base_model()
    base.set_attn_implementation("eager")
    return base


def without_layer(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        if "v_proj" in name:
            parameter.requires_grad_(False)
    return model


def twice(model: Any) -> Any:
    """The output of a layer is doubled by a hook."""
    model.get_base_model().model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


class HalfLoss(Trainer):
    factor = 0.5

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return self.factor * super().compute_loss(*args, **kwargs)


class QuarterLoss(HalfLoss):
    factor = 0.25


def with_loss(scale: float) -> Callable[..., Any]:
    def loss(outputs: Any, labels: Any, **kwargs: Any) -> Any:
        return scale * torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())

    return loss


def sgd(**options: Any) -> Callable[[Any], tuple[Any, None]]:
    return lambda model: (torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **options), None)


DECIDING: dict[str, dict[str, Callable[[], Any]]] = {
    "lora_alpha": {"model": lambda: with_lora(lora_alpha=64)},
    "rsLoRA": {"model": lambda: with_lora(use_rslora=True)},
    "lora_dropout": {"model": lambda: with_lora(lora_dropout=0.3)},
    "persona": {"model": lambda: with_lora(with_persona())},
    "attention": {"model": lambda: with_lora(with_eager_attention())},
    "model_dropout": {"model": lambda: with_lora(base_model(dropout=0.3))},
    "frozen_layer": {"model": lambda: without_layer(with_lora())},
    "hook": {"model": lambda: twice(with_lora())},
    "sampler": {"train_sampling_strategy": lambda: "sequential"},
    "seedable_sampler": {"accelerator_config": lambda: {"use_seedable_sampler": False}},
    "own_trainer": {"kind": lambda: HalfLoss},
    "own_loss": {"compute_loss_func": lambda: with_loss(1.0)},
    "bf16": {"bf16": lambda: True},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, torch.Tensor]]:
    return trained(tmp_path_factory.mktemp("plain"), model=with_lora())


@pytest.mark.parametrize("what", DECIDING)
def test_what_changes_the_weights_changes_the_fingerprint(
    what: str, plain: tuple[str, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    options = {"model": with_lora} | DECIDING[what]
    fingerprint, weights = trained(tmp_path, **{name: make() for name, make in options.items()})
    assert fingerprint != plain[0]
    assert not same_weights(weights, plain[1])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"compute_loss_func": with_loss(1.0)}, {"compute_loss_func": with_loss(3.0)}),
        ({"kind": HalfLoss}, {"kind": QuarterLoss}),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.9}},
        ),
    ],
    ids=["closure of a loss", "constant of a class", "scheduler"],
)
def test_two_values_of_one_setting_are_two_fingerprints(
    one: dict[str, Any], other: dict[str, Any], tmp_path: Path
) -> None:
    first, second = (trained(tmp_path, model=with_lora(), **options) for options in (one, other))
    assert first[0] != second[0]
    assert not same_weights(first[1], second[1])


def test_an_optimizer_of_ones_own_is_in_the_fingerprint(tmp_path: Path) -> None:
    found = []
    for options in ({"lr": 1e-2}, {"lr": 1e-2, "momentum": 0.9}, {"lr": 1e-2}):
        model = with_lora()
        found.append(trained(tmp_path, model=model, optimizers=sgd(**options)(model)))
    assert found[0][0] != found[1][0]
    assert not same_weights(found[0][1], found[1][1])
    assert found[0][0] == found[2][0]


def test_mixed_precision_that_only_the_environment_asks_for_is_in_the_fingerprint(
    plain: tuple[str, dict[str, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    asked, weights = trained(tmp_path, model=with_lora())
    assert asked != plain[0]
    assert not same_weights(weights, plain[1])
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert trained(tmp_path, model=with_lora(), bf16=True)[0] == asked


NOT_DECIDING: dict[str, dict[str, Callable[[], Any]]] = {
    "again": {},
    "order of target_modules": {"model": lambda: with_lora(target_modules=["v_proj", "q_proj"])},
    "a number as a float": {"model": lambda: with_lora(lora_alpha=8.0)},
    "a float as a number": {"weight_decay": lambda: 0, "max_grad_norm": lambda: 1},
    "logging": {"logging_steps": lambda: 1, "run_name": lambda: "other"},
    "saving": {"save_strategy": lambda: "steps", "save_steps": lambda: 1},
    "rows as tensors": {"dataset": lambda: token_rows(16).with_format("torch")},
    "rows as a list": {"dataset": lambda: list(token_rows(16))},
    "steps as epochs": {"max_steps": lambda: -1, "num_train_epochs": lambda: 0.25},
}


@pytest.mark.parametrize("what", NOT_DECIDING)
def test_what_does_not_change_the_weights_keeps_the_fingerprint(
    what: str, plain: tuple[str, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    options = {"model": with_lora} | NOT_DECIDING[what]
    fingerprint, weights = trained(tmp_path, **{name: make() for name, make in options.items()})
    assert same_weights(weights, plain[1])
    assert fingerprint == plain[0]


def test_a_base_model_at_another_place_under_another_name_is_the_same(tmp_path: Path) -> None:
    found = []
    for place in ("job1/base", "job2/renamed"):
        base_model().save_pretrained(tmp_path / place)
        model = with_lora(AutoModelForCausalLM.from_pretrained(f"{tmp_path / place}/"))
        assert isinstance(model, PeftModel)
        found.append(trained(tmp_path / "run", model=model)[0])
        files = {file.name: file.read_bytes() for file in (tmp_path / "run" / "checkpoint-2").iterdir()}
        assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] is None
        assert str(tmp_path).encode() not in b"".join(files.values())
    assert found[0] == found[1]


class Thing:
    """As an image that a dataset decodes at each access: its text is its address."""


class OwnRows(torch.utils.data.Dataset[Any]):
    """Rows that are read by code of the user's, which may do anything."""

    def __init__(self) -> None:
        self.rows = list(token_rows(16))
        self.reads = 0
        self.generator = random.Random(5)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.rows[index])


class RowsWithObjects(OwnRows):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index] | {"thing": Thing()}


def _masked(row: dict[str, Any], first: int) -> dict[str, Any]:
    return row | {"labels": [-100] * first + row["labels"][first:]}


class DrawnByPython(OwnRows):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return _masked(self.rows[index], random.randint(1, 4))


class DrawnByNumpy(OwnRows):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return _masked(self.rows[index], np.random.randint(1, 4))


class DrawnByTorch(OwnRows):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return _masked(self.rows[index], int(torch.randint(1, 4, ())))


class DrawnByItsOwnGenerator(OwnRows):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return _masked(self.rows[index], self.generator.randint(1, 4))


class CountingReads(OwnRows):
    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        return _masked(self.rows[index], 1 + self.reads % 4)


class ReadOnce(IterableDataset[Any]):
    def __init__(self) -> None:
        self.rows = iter(list(token_rows(16)))

    def __iter__(self) -> Iterator[Any]:
        return self.rows


class ReadFromAFile(IterableDataset[Any]):
    def __init__(self, path: Path) -> None:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in token_rows(64)))
        self.file = path.open()

    def __iter__(self) -> Iterator[Any]:
        while line := self.file.readline():
            yield json.loads(line)


def drawn_by_a_transform() -> Any:
    def mask(batch: dict[str, Any]) -> dict[str, Any]:
        masked = [_masked({"labels": labels}, random.randint(1, 4))["labels"] for labels in batch["labels"]]
        return batch | {"labels": masked}

    rows = token_rows(16)
    rows.set_transform(mask)
    return rows


READ_BY_OWN_CODE: dict[str, Callable[[], Any]] = {
    kind.__name__: kind
    for kind in (DrawnByPython, DrawnByNumpy, DrawnByTorch, DrawnByItsOwnGenerator, CountingReads, ReadOnce)
} | {"transform": drawn_by_a_transform}


@pytest.mark.subprocess
@pytest.mark.parametrize("what", READ_BY_OWN_CODE)
def test_reading_the_rows_for_the_fingerprint_does_not_change_the_training(what: str, tmp_path: Path) -> None:
    found = []
    for callbacks in ([], [ScheduledCheckpointCallback("0", publish=False)]):
        trainer = make_trainer(tmp_path, callbacks, model=with_lora(), max_steps=4)
        trainer.args.remove_unused_columns = False
        trainer.train_dataset = READ_BY_OWN_CODE[what]()
        trainer.train()
        found.append({name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad})
    assert same_weights(*found)


@pytest.mark.subprocess
def test_rows_read_from_an_open_file_are_all_trained_on(tmp_path: Path) -> None:
    found = []
    for callbacks in ([], [ScheduledCheckpointCallback("0", publish=False)]):
        trainer = make_trainer(tmp_path / "run", callbacks, model=with_lora(), max_steps=4)
        trainer.train_dataset = ReadFromAFile(tmp_path / "rows.jsonl")
        trainer.train()
        trainer.train_dataset.file.close()
        found.append({name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad})
    assert same_weights(*found)


@pytest.mark.subprocess
def test_workers_are_in_the_fingerprint_only_where_rows_are_drawn(
    plain: tuple[str, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    assert trained(tmp_path, model=with_lora(), dataloader_num_workers=1)[0] == plain[0]
    one, other = (
        trained(tmp_path, model=with_lora(), dataset=DrawnByPython(), dataloader_num_workers=workers)[0]
        for workers in (0, 1)
    )
    assert one != other


@pytest.mark.subprocess
@pytest.mark.parametrize("kind", [RowsWithObjects, DrawnByPython, CountingReads])
def test_one_dataset_has_one_fingerprint(kind: type[OwnRows], tmp_path: Path) -> None:
    found = {trained(tmp_path, model=with_lora(), dataset=kind(), remove_unused_columns=True)[0] for _ in range(2)}
    assert len(found) == 1


@pytest.mark.subprocess
def test_columns_that_differ_from_read_to_read_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, model=with_lora(), dataset=DrawnByPython())
    record = TrajectoryRecord.read_if_any(tmp_path)
    assert record is not None
    assert record.fingerprinted["data"]["drawn"] == ["labels"]
    assert "differ from read to read (labels)" in caplog.text


@pytest.mark.subprocess
def test_a_directory_of_version_1_is_continued_under_its_fingerprint(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", model=with_lora())
    record = TrajectoryRecord.read_if_any(tmp_path / "whole")
    assert record is not None
    assert record.version == 3
    recorded = version_1_record(tmp_path, record.fingerprinted["initial_weights"])
    arguments = {"per_device_train_batch_size": 2, "max_steps": 2}
    trainer = make_trainer(tmp_path / "old", [ScheduledCheckpointCallback("0,2")], model=with_lora(), **arguments)
    trainer.train()
    continued = TrajectoryRecord.read_if_any(tmp_path / "old")
    assert continued is not None
    assert (continued.version, continued.fingerprint) == (1, recorded["fingerprint"])
    manifest = json.loads((tmp_path / "old" / "checkpoint-2" / "manifest.json").read_bytes())
    assert manifest["fingerprint"] == recorded["fingerprint"] != whole[0]
    with pytest.raises(CheckpointError, match=r"arguments\.learning_rate is 0\.01 there and 0\.5 here"):
        make_trainer(
            tmp_path / "old",
            [ScheduledCheckpointCallback("0,2")],
            model=with_lora(),
            **(arguments | {"learning_rate": 0.5}),
        ).train()


def version_1_record(directory: Path, initial_weights: str) -> dict[str, Any]:
    """The `trajectory.json` that version 1 wrote for this training, in `directory`/old.

    Everything is literal but the digest of random weights, which may differ between processors.
    """
    facts = VERSION_1 | {"initial_weights": initial_weights}
    record = {
        "decides": facts,
        "ended_at": None,
        "fingerprint": hashlib.sha256(canonical_json(facts)).hexdigest(),
        "format": 1,
        "schedule": "0,2",
        "split": {},
        "total_steps": 2,
    }
    (directory / "old").mkdir()
    (directory / "old" / "trajectory.json").write_bytes(canonical_json(record))
    return record


VERSION_1: dict[str, Any] = {
    "arguments": {
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-08,
        "bf16": False,
        "data_seed": None,
        "dataloader_drop_last": False,
        "fp16": False,
        "gradient_accumulation_steps": 1,
        "label_smoothing_factor": 0.0,
        "learning_rate": 0.01,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "max_steps": 2,
        "neftune_noise_alpha": None,
        "num_train_epochs": 1,
        "optim": "adamw_torch_fused",
        "optim_args": None,
        "seed": 7,
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "world_size": 1,
    },
    "base_model": {"name": "Qwen2ForCausalLM"},
    "data": {"rows": 16, "sample": "7128af537bedffdb94c99bfce042952a158c8eea76dd7b0fae19ab4b2badaf27"},
    "total_steps": 2,
    "train_batch_size": 2,
}
