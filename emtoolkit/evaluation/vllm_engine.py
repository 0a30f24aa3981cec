"""The engine `vllm`: answers sampled by vLLM, one `LoRARequest` for each checkpoint, for models that are slow here.

Written to the documented interface of vLLM (`LLM`, `SamplingParams`, `vllm.lora.request.LoRARequest`) and tested with a
stand-in of these signatures; vLLM itself was not run. The answers are not those of the engines `stacked` and `exact`:
vLLM draws its own noise, from a seed for each question and sample that all checkpoints share, and rounds otherwise.
"""

import gc
import importlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from transformers import GenerationConfig

from emtoolkit.checkpoints.layout import ADAPTER_CONFIG
from emtoolkit.config.sections import ModelConfig
from emtoolkit.errors import CheckpointError, ConfigError, first_line
from emtoolkit.evaluation.generate import Prompt, Request, SamplingOptions
from emtoolkit.evaluation.identity import checkpoint_digest
from emtoolkit.evaluation.noise import row_key
from emtoolkit.json_files import object_in, read_json
from emtoolkit.models.loading import LoadedModel
from emtoolkit.models.location import model_path
from emtoolkit.trajectory import Checkpoint

ENGINE = "vllm"
# Memory grows with every adapter that was loaded, so the base model is loaded anew after this many.
_ADAPTERS_PER_BASE = 50
# The ranks that vLLM can be told.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_LARGEST_SEED = 2**31 - 1
# Options of PEFT that vLLM's LoRA does not have.
_NOT_PLAIN = ("use_dora", "modules_to_save", "trainable_token_indices", "layer_replication", "lora_bias")

# The text of an answer, the number of its tokens, and whether it was cut off, by prompt and sample.
Answers = Mapping[tuple[Prompt, int], Mapping[str, Any]]


class VllmEngine:
    """vLLM with the base model of `checkpoints`, loaded with the first answer and anew after 50 adapters.

    Args:
        checkpoints: LoRA checkpoints of one trajectory, all on this machine.
        origin: their base model, tokenizer and persona (`ModelLoader.describe`).

    Raises:
        ConfigError: the persona is an adapter, which vLLM cannot add to another one, or the base model is in 4-bit.
        CheckpointError: a checkpoint has no LoRA that vLLM takes.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], origin: LoadedModel) -> None:
        if origin.persona.adapter is not None:
            raise ConfigError(
                f"--engine vllm: the persona {origin.persona.name} is an adapter, and vLLM adds one adapter to a base "
                "model; leave the option out"
            )
        if origin.config.load_in_4bit:
            raise ConfigError("--engine vllm: the base model was trained in 4-bit, which vLLM loads otherwise")
        rank = max(_checked_rank(checkpoint) for checkpoint in checkpoints)
        self._origin = origin
        self._options = {
            "model": model_path(origin.config),
            "dtype": origin.config.dtype,
            "enable_lora": True,
            "max_lora_rank": next(each for each in _RANKS if each >= rank),
        }
        if origin.config.revision is not None:
            self._options |= {"revision": origin.config.revision, "tokenizer_revision": origin.config.revision}
        self._llm: Any = None
        # An id or a name that stands for two adapters would reuse the cached prefixes of the first.
        self._ids: dict[str, int] = {}
        self._loaded: set[str] = set()

    def sample(
        self,
        checkpoint: Checkpoint,
        requests: Sequence[Request],
        options: SamplingOptions,
        ends: Collection[int],
        rows_at_a_time: int,
    ) -> Iterator[Answers]:
        """The answers of `checkpoint` to `requests`, batch by batch.

        Raises:
            ConfigError: vLLM is not installed, or does not start.
        """
        rows = [(request.prompt, sample) for request in requests for sample in request.samples]
        for start in range(0, len(rows), rows_at_a_time):
            batch = rows[start : start + rows_at_a_time]
            found = self._generate(checkpoint, batch, options, ends)
            yield {row: _entry(output, ends) for row, output in zip(batch, found, strict=True)}

    def close(self) -> None:
        """Free the memory of the base model."""
        self._llm = None
        self._loaded.clear()
        gc.collect()

    def _generate(
        self,
        checkpoint: Checkpoint,
        rows: Sequence[tuple[Prompt, int]],
        options: SamplingOptions,
        ends: Collection[int],
    ) -> list[Any]:
        """The first output for each of `rows`."""
        digest = checkpoint_digest(checkpoint, self._origin)
        if self._llm is None or (digest not in self._loaded and len(self._loaded) >= _ADAPTERS_PER_BASE):
            # The old base model must be gone before the new one is loaded: two may not fit.
            self.close()
            self._llm = self._start()
        self._loaded.add(digest)
        number = self._ids.setdefault(digest, len(self._ids) + 1)
        adapter = _imported("vllm.lora.request").LoRARequest(
            lora_name=digest, lora_int_id=number, lora_path=str(checkpoint.path)
        )
        params = _imported("vllm").SamplingParams
        sampling = [
            params(
                n=1,
                temperature=options.temperature,
                top_p=1.0,
                max_tokens=options.max_new_tokens,
                seed=row_key(options.seed, prompt.noise, sample) % _LARGEST_SEED,
                stop_token_ids=sorted(ends),
            )
            for prompt, sample in rows
        ]
        prompts = [{"prompt_token_ids": list(prompt.tokens)} for prompt, _ in rows]
        outputs = self._llm.generate(prompts, sampling, lora_request=adapter, use_tqdm=False)
        return [output.outputs[0] for output in outputs]

    def _start(self) -> Any:
        llm = _imported("vllm").LLM
        try:
            return llm(**self._options)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"--engine vllm: vLLM does not start ({first_line(error)})") from error


def configured_ends(config: ModelConfig, tokenizer: Any) -> set[int]:
    """The tokens that end an answer of the base model of `config`, without its weights (`prompts.end_tokens`)."""
    place, revision = model_path(config), config.revision or "main"
    try:
        configured = GenerationConfig.from_pretrained(place, revision=revision).eos_token_id
    except OSError:
        configured = None
    ids = configured if isinstance(configured, list) else [configured]
    return {int(each) for each in (*ids, tokenizer.eos_token_id) if each is not None}


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError("--engine vllm: the package is not installed: pip install 'emtoolkit[vllm]'") from None


def _entry(output: Any, ends: Collection[int]) -> Mapping[str, Any]:
    """An answer as the store keeps it; the token that ended it is not counted."""
    tokens = list(output.token_ids)
    ended = bool(tokens) and tokens[-1] in ends
    return {"text": output.text, "tokens": len(tokens) - ended, "truncated": output.finish_reason == "length"}


def _checked_rank(checkpoint: Checkpoint) -> int:
    """The largest rank of the checkpoint's LoRA."""
    try:
        adapter = object_in(read_json(checkpoint.path / ADAPTER_CONFIG))
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint.path}: holds all weights, and the engine vllm takes LoRA adapters only"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.path}: {ADAPTER_CONFIG} cannot be read ({error})") from None
    kind = adapter.get("peft_type")
    special = [key for key in _NOT_PLAIN if adapter.get(key)] + ["bias"] * (adapter.get("bias", "none") != "none")
    if kind != "LORA" or special:
        raise CheckpointError(f"{checkpoint.path}: vLLM takes plain LoRA only, not {', '.join(special) or kind}")
    rank = max(int(each) for each in (adapter["r"], *(adapter.get("rank_pattern") or {}).values()))
    if rank > _RANKS[-1]:
        raise CheckpointError(f"{checkpoint.path}: vLLM takes ranks up to {_RANKS[-1]}, not {rank}")
    return rank
