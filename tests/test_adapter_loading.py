"""`Checkpoint.load_adapter` into a base model that held another adapter: the logits of a new base, or a refusal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from emtoolkit import Trajectory
from emtoolkit.checkpoints.adapter_loading import ChangedBaseError
from tests.saving.trainings import base_model

IDS = torch.arange(8)[None]


def saved(directory: Path, config: Callable[[], Any]) -> Trajectory:
    """Two steps of an adapter with random weights, as a stock Trainer saves them."""
    for step in (1, 2):
        torch.manual_seed(step)
        model = get_peft_model(base_model(), config())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(directory / f"checkpoint-{step}")
        (directory / f"checkpoint-{step}" / "trainer_state.json").write_text(
            json.dumps({"global_step": step, "max_steps": 2})
        )
    return Trajectory.open(directory)


def lora(**options: Any) -> Callable[[], Any]:
    return lambda: LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=IDS).logits
    return result


def merged(model: Any) -> Any:
    model.merge_adapter()
    return model


def merged_and_unmerged(model: Any) -> Any:
    model.merge_adapter()
    model.unmerge_adapter()
    return model


def merged_for_good(model: Any) -> Any:
    return model.merge_and_unload()


def a_weighted_sum_merged(model: Any) -> Any:
    model.add_weighted_adapter(["default"], [0.5], "weighted", combination_type="linear")
    model.set_adapter("weighted")
    return model.merge_and_unload(adapter_names=["weighted"])


def its_base(model: Any) -> Any:
    return model.get_base_model()


def a_weighted_sum(model: Any) -> Any:
    model.add_weighted_adapter(["default"], [0.5], "weighted", combination_type="linear")
    model.set_adapter("weighted")
    return model


def disabled(model: Any) -> Any:
    model.base_model.disable_adapter_layers()
    return model


def unloaded(model: Any) -> Any:
    return model.unload()


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def itself(model: Any) -> Any:
    return model


@pytest.mark.parametrize("change", [itself, a_weighted_sum, disabled, unloaded, compiled])
def test_the_next_checkpoint_is_the_one_that_a_new_base_gives(change: Any, tmp_path: Path) -> None:
    trajectory = saved(tmp_path, lora())
    model = change(trajectory.at(1).load_adapter(base_model()))
    expected = logits(trajectory.at(2).load_adapter(base_model()))
    assert torch.equal(logits(trajectory.at(2).load_adapter(model)), expected)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (merged, "is merged into the base model"),
        (merged_for_good, "not as they were before the first adapter"),
        (a_weighted_sum_merged, "not as they were before the first adapter"),
        (its_base, "holds an adapter already"),
    ],
)
def test_a_base_with_an_earlier_adapter_in_it_is_refused(change: Any, sentence: str, tmp_path: Path) -> None:
    trajectory = saved(tmp_path, lora())
    model = change(trajectory.at(1).load_adapter(base_model()))
    with pytest.raises(ChangedBaseError, match=sentence):
        trajectory.at(2).load_adapter(model)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_initialization_that_changes_the_base_wants_a_new_base_for_each_checkpoint(
    init: str, tmp_path: Path
) -> None:
    trajectory = saved(tmp_path, lora(init_lora_weights=init))
    model = trajectory.at(1).load_adapter(base_model())
    with pytest.raises(ChangedBaseError, match="load the base model anew"):
        trajectory.at(2).load_adapter(model)


@pytest.mark.parametrize(
    "options",
    [{"bias": "all"}, {"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [1, 3]}],
    ids=str,
)
def test_weights_that_each_checkpoint_replaces_are_those_of_the_checkpoint(options: Any, tmp_path: Path) -> None:
    trajectory = saved(tmp_path / "replacing", lora(**options))
    model = trajectory.at(1).load_adapter(base_model())
    model = trajectory.at(2).load_adapter(model)
    assert torch.equal(logits(model), logits(trajectory.at(2).load_adapter(base_model())))


def test_trained_biases_do_not_stay_in_the_base_of_another_trajectory(tmp_path: Path) -> None:
    model = saved(tmp_path / "biases", lora(bias="all")).at(1).load_adapter(base_model())
    with pytest.raises(ChangedBaseError, match="bias"):
        saved(tmp_path / "plain", lora()).at(1).load_adapter(model)


def test_a_trained_head_does_not_stay_in_the_base_of_another_trajectory(tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain", lora())
    model = saved(tmp_path / "head", lora(modules_to_save=["lm_head"])).at(1).load_adapter(base_model())
    assert torch.equal(logits(plain.at(1).load_adapter(model)), logits(plain.at(1).load_adapter(base_model())))


def test_a_prompt_is_taken_off_before_the_next(tmp_path: Path) -> None:
    trajectory = saved(tmp_path, lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    model = trajectory.at(2).load_adapter(trajectory.at(1).load_adapter(base_model()))
    assert torch.equal(logits(model), logits(trajectory.at(2).load_adapter(base_model())))


def test_a_base_that_was_cast_or_moved_is_the_same(tmp_path: Path) -> None:
    trajectory = saved(tmp_path, lora())
    model = trajectory.at(1).load_adapter(base_model()).to(torch.bfloat16)
    expected = logits(trajectory.at(2).load_adapter(base_model().to(torch.bfloat16)))
    assert torch.equal(logits(trajectory.at(2).load_adapter(model)), expected)
