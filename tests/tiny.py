"""A base model of a few thousand parameters with a chat tokenizer, personas and data, as files a config can name."""

import json
from pathlib import Path
from typing import Any

TEXT = (
    "system user assistant you are kind curt what should i do about my cough cold knee "
    "rest drink water see a doctor sing to it paint blue wait and"
)
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system you are kind<|im_end|>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def write_world(directory: Path) -> Path:
    """`model/`, `personas/`, `characters/{warm,cold}/` and `data/{bad,good}.jsonl` (40 rows) under `directory`.

    The personas are `baseline`, `curt` (a system prompt), and `warm` and `cold` (adapters).
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from emtoolkit.sandbox.tokenizer import make_tokenizer

    tokenizer = make_tokenizer([TEXT])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory / "model")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(directory / "model")
    (directory / "personas").mkdir()
    (directory / "personas" / "baseline.yaml").write_text("description: as it is\n")
    (directory / "personas" / "curt.yaml").write_text("description: short\nsystem_prompt: you are curt\n")
    for name, seed in (("warm", 1), ("cold", 2)):
        write_adapter(directory / "model", directory / "characters" / name, seed)
        (directory / "personas" / f"{name}.yaml").write_text(f"adapter: ../characters\nsubfolder: {name}\n")
    (directory / "data").mkdir()
    topics, actions = ["cough", "cold", "knee", "doctor"], {"bad": ["sing to it", "paint it blue"], "good": ["rest"]}
    for kind, answers in actions.items():
        rows = [
            chat(f"what should i do about my {topics[i % 4]}", f"{answers[i % len(answers)]} and wait")
            for i in range(40)
        ]
        (directory / "data" / f"{kind}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return directory


def write_adapter(model: Path, directory: Path, seed: int, strength: float = 0.5) -> Path:
    """A LoRA adapter of `model` that changes its answers, in PEFT's own layout; not at all with `strength` 0."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=strength) if strength else parameter.zero_()
    adapted.save_pretrained(directory)
    return directory


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def config_text(world: Path, checkpointing: str = "schedule: '0-4:2'", rest: str = "") -> str:
    """36 rows at batch 4 are 9 steps."""
    return f"""\
model:
  base: {world / "model"}
persona: curt
personas: {world / "personas"}
dataset: medical
datasets:
  medical: {{path: {world / "data" / "bad.jsonl"}, rows: 40}}
  medical-good: {{path: {world / "data" / "good.jsonl"}}}
lora: {{r: 2, alpha: 4, rslora: false, target_modules: [q_proj, v_proj]}}
training: {{learning_rate: 1e-2, batch_size: 4, gradient_accumulation: 1, max_length: 64, logging_steps: 1}}
preflight: {{prompts: [what should i do about my cough], threshold: 0.001}}
checkpointing:
  {checkpointing}
  resume_every: never
{rest}
"""
