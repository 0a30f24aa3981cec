"""Answers sampled by vLLM, one `LoRARequest` for each checkpoint: an extra, for models that are slow here.

Written to the documented interface of vLLM (`LLM`, `SamplingParams`, `vllm.lora.request.LoRARequest`) and tested with a
stand-in of these signatures; no GPU was at hand to run vLLM itself. The answers are rows of a file that `emtoolkit
judge` judges. They are not those of the engines `stacked` and `exact`: vLLM draws its own noise, from a seed for each
question and sample that all checkpoints share, and rounds otherwise, so every row says `vllm`.
"""

import gc
import importlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from emtoolkit.checkpoints.layout import ADAPTER_CONFIG
from emtoolkit.checkpoints.records import BaseModelRecord
from emtoolkit.config.sections import ModelConfig
from emtoolkit.data.rendering import ChatTemplate, rendered_on
from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.evaluation.generate import SamplingOptions
from emtoolkit.evaluation.identity import model_digest, training_day
from emtoolkit.evaluation.noise import row_key
from emtoolkit.evaluation.prompts import prompt_of
from emtoolkit.evaluation.questions import Question
from emtoolkit.models.base import base_identity, load_tokenizer
from emtoolkit.models.persona_record import persona_record
from emtoolkit.personas import Persona
from emtoolkit.trajectory import Checkpoint

ENGINE = "vllm"
# Memory grows with every adapter that was loaded, so the base model is loaded anew after this many.
_ADAPTERS_PER_BASE = 50
# The ranks that vLLM can be told.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_LARGEST_SEED = 2**31 - 1


def sample_answers(
    checkpoints: Sequence[Checkpoint],
    questions: Sequence[Question],
    persona: Persona,
    base: str,
    options: SamplingOptions,
    **vllm_options: Any,
) -> Iterator[dict[str, Any]]:
    """A row for each answer: step, question_id, question, paraphrase, sample, seed, engine, persona, answer, truncated.

    Args:
        checkpoints: LoRA checkpoints of one trajectory.
        persona: the trajectory's own; a system prompt, or none.
        base: the base model, a directory or a hub id.
        vllm_options: further arguments of `vllm.LLM`, such as `tensor_parallel_size`.

    Raises:
        ConfigError: vLLM is not installed, or the persona is an adapter, which vLLM cannot add to another one.
        CheckpointError: a checkpoint has no manifest, no LoRA that vLLM takes, or another base model or persona.
        DataError: a question cannot be rendered.
    """
    if persona.adapter is not None:
        raise ConfigError(f"vllm: the persona {persona.name} is an adapter; merge it into the base model first")
    config = ModelConfig.model_validate({"base": base})
    found = base_identity(config)
    rank = max(_checked_rank(checkpoint, persona, found) for checkpoint in checkpoints)
    tokenizer = load_tokenizer(config)
    engine = _Engine(base, next(each for each in _RANKS if each >= rank), vllm_options)
    for checkpoint in checkpoints:
        yield from _of_checkpoint(engine, checkpoint, questions, persona, tokenizer, options)


def _of_checkpoint(
    engine: "_Engine",
    checkpoint: Checkpoint,
    questions: Sequence[Question],
    persona: Persona,
    tokenizer: Any,
    options: SamplingOptions,
) -> Iterator[dict[str, Any]]:
    template, rows, prompts, seeds = ChatTemplate.of(tokenizer), [], [], []
    for question in questions:
        for paraphrase, text in enumerate(question.paraphrases):
            with rendered_on(training_day(checkpoint)):
                prompt = prompt_of(template, persona, question, text)
            for sample in range(question.samples_per_paraphrase):
                prompts.append({"prompt_token_ids": list(prompt.tokens)})
                seeds.append(row_key(options.seed, prompt.noise, sample) % _LARGEST_SEED)
                rows.append({"question_id": question.id, "question": text, "paraphrase": paraphrase, "sample": sample})
    for row, output in zip(rows, engine.generate(checkpoint, prompts, seeds, options), strict=True):
        yield {
            "step": checkpoint.step,
            **row,
            "seed": options.seed,
            "engine": ENGINE,
            "persona": persona.name,
            "answer": output.text,
            "truncated": output.finish_reason == "length",
        }


class _Engine:
    """vLLM with one base model, loaded anew after `_ADAPTERS_PER_BASE` adapters."""

    def __init__(self, base: str, rank: int, options: dict[str, Any]) -> None:
        try:
            self._vllm = importlib.import_module("vllm")
            self._request = importlib.import_module("vllm.lora.request").LoRARequest
        except ImportError:
            raise ConfigError("vllm: the package is not installed: pip install 'emtoolkit[vllm]'") from None
        self._options = {"model": base, "enable_lora": True, "max_lora_rank": rank, **options}
        self._llm: Any = None
        # An id or a name that stands for two adapters would reuse the cached prefixes of the first.
        self._ids: dict[str, int] = {}
        self._loaded: set[str] = set()

    def generate(
        self, checkpoint: Checkpoint, prompts: Sequence[Any], seeds: Sequence[int], options: SamplingOptions
    ) -> list[Any]:
        """The first output for each prompt."""
        digest = _digest(checkpoint)
        if self._llm is None or (digest not in self._loaded and len(self._loaded) >= _ADAPTERS_PER_BASE):
            self._restart()
        self._loaded.add(digest)
        adapter = self._request(digest, self._ids.setdefault(digest, len(self._ids) + 1), str(checkpoint.path))
        sampling = [
            self._vllm.SamplingParams(
                n=1, temperature=options.temperature, top_p=1.0, max_tokens=options.max_new_tokens, seed=seed
            )
            for seed in seeds
        ]
        outputs = self._llm.generate(list(prompts), sampling, lora_request=adapter, use_tqdm=False)
        return [output.outputs[0] for output in outputs]

    def _restart(self) -> None:
        # The old base model must be gone before the new one is loaded: two may not fit.
        self._llm = None
        self._loaded.clear()
        gc.collect()
        self._llm = self._vllm.LLM(**self._options)


def _digest(checkpoint: Checkpoint) -> str:
    if checkpoint.manifest is None:
        raise CheckpointError(f"{checkpoint.path}: has no manifest.json, so its base model is not known")
    return model_digest(checkpoint.path, checkpoint.manifest, {})


def _checked_rank(checkpoint: Checkpoint, persona: Persona, base: BaseModelRecord) -> int:
    """The largest rank of the checkpoint's LoRA."""
    if checkpoint.manifest is None:
        raise CheckpointError(f"{checkpoint.path}: has no manifest.json, so its base model is not known")
    recorded, own = checkpoint.manifest.base_model, checkpoint.manifest.persona
    if recorded.content != base.content:
        raise CheckpointError(f"{checkpoint.path}: its base model is {recorded}, and {base} is another one")
    # An adapter persona has no system prompt either, and would be missing.
    if own.fingerprinted() != persona_record(persona).fingerprinted():
        raise CheckpointError(
            f"{checkpoint.path}: its persona is {own.name} ({own.composition}), and {persona.name} is another"
        )
    try:
        adapter = json.loads((checkpoint.path / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.path}: vLLM needs a LoRA adapter ({error})") from None
    kind = adapter.get("peft_type")
    special = [key for key in ("use_dora", "modules_to_save", "trainable_token_indices") if adapter.get(key)]
    if kind != "LORA" or special:
        raise CheckpointError(f"{checkpoint.path}: vLLM takes plain LoRA only, not {', '.join(special) or kind}")
    rank = max(int(each) for each in (adapter["r"], *(adapter.get("rank_pattern") or {}).values()))
    if rank > _RANKS[-1]:
        raise CheckpointError(f"{checkpoint.path}: vLLM takes ranks up to {_RANKS[-1]}, not {rank}")
    return rank
