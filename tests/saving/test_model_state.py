"""A full checkpoint holds the config of its step, whenever its files are written."""

import json
from pathlib import Path

from transformers import Qwen2Config, Qwen2ForCausalLM

from emtoolkit.saving.model_state import FullState


def test_a_config_that_changes_after_the_copy_is_not_written(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=32, num_key_value_heads=1, **sizes))
    state = FullState(model)
    write, tensors = state.writer(), dict(state.tensors)
    model.config.problem_type = "regression"
    model.generation_config.temperature = 0.5
    write(tmp_path, tensors)
    assert "problem_type" not in json.loads((tmp_path / "config.json").read_text())
    assert "temperature" not in json.loads((tmp_path / "generation_config.json").read_text())
    assert model.config.problem_type == "regression"
