"""For every method of the installed PEFT: each checkpoint is the adapter at its step, and loads to the same logits."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, XLoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from emtoolkit import Trajectory
from emtoolkit.errors import CheckpointError
from emtoolkit.saving.adapter_state import model_state
from tests.saving.callbacks import callback
from tests.saving.overlapped import LateCopies
from tests.saving.peft_methods import CASES, base_model

# Tokens 3 and 4 switch the adapter of aLoRA on.
IDS = [[3, 4, 7 + i, 9, 20 - i, 5, 11] for i in range(4)]


# PEFT saves a result of what is trained: a softmax, the output of an encoder, a smaller rank.
ROUNDED = ("vblora save_only_topk_weights", "p_tuning", "p_tuning lstm", "prefix_tuning projection", "adalora")


# Copied before training goes on: a checkpoint holds buffers or what is computed, gradients have hooks, or the forward
# pass changes weights (OFT with coft).
COPIED_IN_TRAINING = {
    *ROUNDED,
    *("lora monteclora", "lora velora", "adamss", "adamss use_asa", "adamss use_dynamic_rank", "oft coft"),
    *("vera", "frod", "pvera", "unilora save_indices", "randlora", "randlora sparse", "shira", "shira random_seed"),
    *("osf", "delora", "tinylora", "tinylora without projection", "tinylora weight_tying", "supertuning"),
    *("prompt_tuning", "prefix_tuning", "cpt", "cartridge"),
}


class KMeans:
    """A stand-in for scikit-learn's, which AdaMSS imports: clusters by turns."""

    def __init__(self, n_clusters: int, **options: Any) -> None:
        self.clusters = n_clusters

    def fit_predict(self, rows: Any) -> Any:
        return np.arange(len(rows)) % self.clusters


@pytest.fixture(autouse=True)
def _optional_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without this BOFT starts a compiler to find out that there is no GPU.
    monkeypatch.setattr("peft.tuners.boft.layer._FBD_CUDA", False)
    monkeypatch.setitem(sys.modules, "sklearn", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "sklearn.cluster", SimpleNamespace(KMeans=KMeans))


class Live(TrainerCallback):
    """Records the state dict that PEFT returns at each step; prunes the ranks of AdaLoRA."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        tensors = get_peft_model_state_dict(kwargs["model"])
        self.states[state.global_step] = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    on_step_end = on_train_begin

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (prune := getattr(kwargs["model"].base_model, "update_and_allocate", None)) is not None:
            prune(state.global_step + 1)


def inputs(case: str) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {"input_ids": IDS, "attention_mask": [[1] * 7] * 4}
    if case.startswith(("poly", "multitask")):
        rows["task_ids"] = [0] * 4
    if case == "cpt":
        rows["input_type_mask"] = [[1, 2, 2, 3, 4, 4, 4]] * 4
    return rows


def logits(model: Any, case: str) -> torch.Tensor:
    tensors = {name: torch.tensor(values) for name, values in inputs(case).items()}
    with torch.no_grad():
        result: torch.Tensor = model.eval()(**tensors).logits
    return result


def trained(case: str, directory: Path, config: PeftConfig) -> tuple[Any, Live]:
    """The adapter of `case`, trained for two steps."""
    model = base_model(case)
    torch.manual_seed(1)
    model = get_peft_model(model, config)
    live = Live()
    arguments = TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=2,
        max_steps=2,
        learning_rate=0.1,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=7,
        remove_unused_columns=False,
    )
    rows = Dataset.from_dict(inputs(case) | {"labels": IDS})
    ours = callback("0-2:1", publish=False, overlap=True)
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[live, ours]).train()
    return model, live


def assert_checkpoints_are_the_model(case: str, directory: Path, config: PeftConfig) -> None:
    model, live = trained(case, directory, config)
    for step, state in live.states.items():
        saved = load_file(directory / f"checkpoint-{step}" / "adapter_model.safetensors")
        assert sorted(saved) == sorted(state)
        assert all(torch.equal(saved[name], tensor) for name, tensor in state.items())
    first, last = live.states[0], live.states[2]
    assert any(last[name].shape != first[name].shape or not torch.equal(last[name], first[name]) for name in last)
    base = base_model(case)
    torch.manual_seed(99)
    again = Trajectory.open(directory).at(2).load_adapter(base)
    assert isinstance(again, PeftModel)
    tolerance = 1e-6 if case in ROUNDED else 0.0
    torch.testing.assert_close(logits(again, case), logits(model, case), rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_each_checkpoint_is_the_state_dict_of_its_step_and_loads_to_the_same_logits(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LateCopies(monkeypatch).bounded() as late:
        assert_checkpoints_are_the_model(case, tmp_path, CASES[case]())
    assert late.steps == ([] if case in COPIED_IN_TRAINING else [1])


def test_the_ranks_that_adalora_has_pruned_are_in_the_config_of_that_step(tmp_path: Path) -> None:
    _, live = trained("adalora", tmp_path, CASES["adalora"]())
    name = next(name for name in live.states[0] if "lora_A" in name)
    assert live.states[2][name].shape[0] <= live.states[0][name].shape[0]
    configs = [(tmp_path / f"checkpoint-{step}" / "adapter_config.json").read_text() for step in (0, 2)]
    assert ['"rank_pattern":null' in config.replace(" ", "") for config in configs] == [True, False]


@pytest.mark.parametrize("init", ["pissa_niter_4", "corda", "lora_ga", "loftq"])
def test_an_initialization_that_peft_does_not_repeat_is_refused_at_the_start(init: str) -> None:
    model = get_peft_model(base_model("lora"), CASES["lora"]())
    # The other ones than PiSSA need a GPU or a calibration before they can be had.
    model.peft_config["default"].init_lora_weights = init
    with pytest.raises(CheckpointError, match=f"init_lora_weights: '{init}' changes the base model's weights"):
        model_state(model)


def test_a_mixture_of_adapters_by_xlora_is_refused_because_peft_saves_no_classifier(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model = get_peft_model(base_model("lora"), LoraConfig(r=2, task_type="CAUSAL_LM"))
        model.save_pretrained(tmp_path / name)
    adapters = {name: str(tmp_path / name) for name in ("a", "b")}
    mixture = XLoraConfig(hidden_size=16, adapters=adapters, task_type="CAUSAL_LM")
    model = get_peft_model(base_model("xlora"), mixture)
    assert get_peft_model_state_dict(model) == {}
    with pytest.raises(CheckpointError, match="X-LoRA, whose classifier PEFT leaves out"):
        model_state(model)


def test_saving_a_prompt_draws_no_random_numbers_and_leaves_its_encoder_as_it_is() -> None:
    model = get_peft_model(base_model("cpt"), CASES["cpt"]())
    encoder = model.prompt_encoder["default"]
    with torch.no_grad():
        encoder.delta_embedding.weight.fill_(7.0)
    state = model_state(model)
    assert float(state.tensors["prompt_embeddings"].abs().max()) < 1.0
    assert float(encoder.delta_embedding.weight.detach().min()) == 7.0
    assert encoder.training


def test_every_method_of_the_installed_peft_is_tested_or_refused() -> None:
    # X-LoRA is refused, see above.
    assert set(PeftType) - {make().peft_type for make in CASES.values()} == {PeftType.XLORA}
