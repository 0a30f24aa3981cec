"""The cost of one checkpoint on a GPU: `checkpoint_cost` for an adapter of a model of Qwen2.5-7B's size.

    python -m benchmarks.adapter_of_7b [--rounds 5] [--json FILE]

The weights of the base model are random, in bfloat16; those of the LoRA of rank 32 on all projections are in float32.
Needs a GPU with 40 GB.
"""

import gc
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.checkpoint_cost import compare
from benchmarks.subject import PROJECTIONS


def model_of_7b() -> Any:
    """28 layers of width 3584, 7.6 billion parameters, with an adapter of 81 million."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
    )
    with torch.device("cuda"):
        base = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
        return get_peft_model(base, LoraConfig(r=32, target_modules=PROJECTIONS, task_type="CAUSAL_LM"))


if __name__ == "__main__":
    compare(
        "Cost of one checkpoint on a GPU, 7.6B-parameter Qwen2, LoRA r=32 on all projections",
        model_of_7b,
        __doc__.splitlines()[0],
    )
