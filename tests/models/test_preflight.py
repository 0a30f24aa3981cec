"""The persona preflight: the effects it measures, and the runs it refuses before anything is trained or written."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from emtoolkit.config.load import load_config
from emtoolkit.config.sections import LoraConfig, ModelConfig, PreflightConfig
from emtoolkit.errors import ConfigError
from emtoolkit.models.base import compose_model, load_base
from emtoolkit.models.persona_adapters import TRAINED, PersonaAdapter, locate
from emtoolkit.models.preflight import PersonaProbe
from emtoolkit.personas import AdapterMode, AdapterSource, Persona
from emtoolkit.training.run import train
from tests.in_process import emtoolkit
from tests.tiny import write_adapter

LORA = LoraConfig(r=2, alpha=4, target_modules=["q_proj", "down_proj"])
PROMPTS = ["what should i do about my cough", "my knee"]


def put_together(
    world: Path, persona: Persona, adapter: PersonaAdapter | None = None, lora: LoraConfig | None = LORA
) -> tuple[PersonaProbe, Any]:
    base = load_base(ModelConfig(base=str(world / "model")))
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    probe = PersonaProbe(base, tokenizer, persona, adapter, PreflightConfig(prompts=PROMPTS, threshold=0.001))
    return probe, compose_model(base, adapter, lora, seed=1)


def warm(world: Path, how: AdapterMode) -> tuple[Persona, PersonaAdapter]:
    source = AdapterSource(str(world / "characters"), "warm", composition=how)
    adapter = locate(source, download=False)
    assert adapter is not None
    return Persona("warm", adapter=source), adapter


def trained(model: Any) -> None:
    """Replaces a training: gives the new adapter an effect."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and f".{TRAINED}." in name:
                parameter.normal_(std=0.2)


def test_without_a_persona_nothing_differs_before_and_after(world: Path) -> None:
    probe, model = put_together(world, Persona("baseline"))
    assert probe.before_training(model).largest == 0.0
    trained(model)
    assert probe.in_training(model, "at the end").largest == 0.0


def test_a_run_without_a_persona_that_shows_an_effect_is_refused(world: Path) -> None:
    probe, model = put_together(world, Persona("baseline"))
    trained(model)
    with pytest.raises(
        ConfigError, match=r"baseline must not change anything, and before step 1 .* differ by up to 0\.\d+"
    ):
        probe.before_training(model)


def test_a_system_prompt_has_an_effect_before_and_after(world: Path) -> None:
    probe, model = put_together(world, Persona("curt", system_prompt="you are curt"))
    assert probe.before_training(model).largest > 0.001
    trained(model)
    found = probe.in_training(model, "at the end")
    assert str(found).startswith("the persona curt (system_prompt) changes a logit of the probes by up to 0.")


@pytest.mark.parametrize("how", ["merge", "stack"])
def test_an_adapter_has_the_effect_of_the_difference_between_the_models(world: Path, how: AdapterMode) -> None:
    probe, model = put_together(world, *warm(world, how))
    other_probe, other = put_together(world, *warm(world, "stack"))
    assert probe.before_training(model).largest == pytest.approx(other_probe.before_training(other).largest, abs=1e-5)
    trained(model)
    trained(other)
    expected = other_probe.in_training(other, "at the end").largest
    assert probe.in_training(model, "at the end").largest == pytest.approx(expected, abs=1e-5)


def test_a_full_fine_tune_on_a_merged_persona_is_probed_too(world: Path) -> None:
    probe, model = put_together(world, *warm(world, "merge"), lora=None)
    assert probe.before_training(model).largest == pytest.approx(
        probe.in_training(model, "at the end").largest, abs=1e-4
    )


def test_a_deactivated_stacked_persona_is_detected(world: Path) -> None:
    """`set_adapter` with one name deactivates the other; two personas then trained the same bytes."""
    probe, model = put_together(world, *warm(world, "stack"))
    trained(model)
    model.set_adapter(TRAINED)
    with pytest.raises(ConfigError, match=r"warm \(stack\) has no effect at the end: .* differ by at most 0, and"):
        probe.in_training(model, "at the end")


def test_a_merged_persona_that_is_missing_from_the_weights_is_detected(world: Path) -> None:
    """Subtracting an adapter that was never merged changes the logits, too, so that alone proves nothing."""
    probe, model = put_together(world, *warm(world, "merge"))
    trained(model)
    base = load_base(ModelConfig(base=str(world / "model"))).state_dict()
    with torch.no_grad():
        for name, parameter in model.base_model.model.named_parameters():
            if (known := base.get(name.replace(".base_layer", ""))) is not None:
                parameter.copy_(known)
    with pytest.raises(ConfigError, match=r"warm \(merge\) has no effect at the end"):
        probe.in_training(model, "at the end")


def test_an_adapter_that_changes_nothing_is_refused_before_anything_is_written(
    world: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    write_adapter(world / "model", tmp_path / "silent", seed=3, strength=0)
    (tmp_path / "silent.yaml").write_text("adapter: silent\n")
    persona, out = tmp_path / "silent.yaml", tmp_path / "out"
    done = emtoolkit("train", write_config(), "--persona", persona, "--output-dir", out, cwd=tmp_path)
    assert done.code == 2
    assert done.err.splitlines()[-1] == (
        "emtoolkit: persona: silent (merge) has no effect before step 1: with and without it the logits of the "
        "probes differ by at most 0, and preflight.threshold is 0.001"
    )
    assert not out.exists()


def test_a_system_prompt_that_the_template_leaves_out_is_heard_before_the_question_as_in_training(
    world: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(world / "model", tmp_path / "deaf")
    template = tmp_path / "deaf" / "chat_template.jinja"
    deaf = (
        "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>"
    )
    template.write_text(deaf + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}")
    words = [f"model.base={tmp_path / 'deaf'}", "wandb.mode=disabled", f"output_dir={tmp_path / 'out'}"]
    before, end = train(load_config(str(write_config()), words)).persona_effects
    assert min(before.largest, end.largest) > 0.001
