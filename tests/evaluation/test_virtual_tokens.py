"""A model that reads tokens besides those of its input is refused where that would give wrong results."""

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from emtoolkit.errors import CheckpointError
from emtoolkit.evaluation.activations import Text, activations
from emtoolkit.evaluation.generate import Prompt, Request, SamplingOptions, generate
from emtoolkit.evaluation.virtual_tokens import virtual_tokens


@pytest.mark.parametrize(
    ("adapter", "kind"),
    [
        (PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "PROMPT_TUNING"),
        (PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "PREFIX_TUNING"),
        (PromptEncoderConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "P_TUNING"),
    ],
)
def test_an_adapter_with_virtual_tokens_is_refused_by_sampling_and_by_activations(
    world: Path, adapter: Any, kind: str
) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(world / "model"), adapter)
    assert virtual_tokens(model) == kind
    with pytest.raises(CheckpointError, match=f"the adapter is of type {kind}, whose virtual tokens"):
        next(generate(model, [Request(Prompt("a", (1, 2), "a"), (0,))], SamplingOptions(), {0}))
    with pytest.raises(CheckpointError, match=f"the adapter is of type {kind}, whose virtual tokens"):
        activations(model, [Text("a", (1, 2), (3,))])


def test_a_lora_and_a_model_without_an_adapter_have_none(world: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(world / "model")
    assert virtual_tokens(model) is None
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert virtual_tokens(get_peft_model(model, lora)) is None
