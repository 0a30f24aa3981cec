"""A Qwen2 with random weights and K random LoRA adapters on disk, evaluated in three ways.

`reloaded` loads base model and adapter anew for each checkpoint, `swapped` copies the weights of each checkpoint into
one model, and `stacked` has all adapters in one batch.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from benchmarks.subject import PROJECTIONS
from emtoolkit import ModelLoader, Trajectory
from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.config.sections import ModelConfig
from emtoolkit.evaluation.generate import Answer, Prompt, Request, SamplingOptions, generate
from emtoolkit.evaluation.stacked import stacked_adapters
from emtoolkit.models.base_record import base_identity
from emtoolkit.models.weight_swap import SwappableWeights
from emtoolkit.sandbox.tokenizer import make_tokenizer

# The shape of Qwen2.5-0.5B.
_QWEN2_500M: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}

Answers = list[Answer]


@dataclass(frozen=True)
class Subject:
    """A base model and its adapters, and what they are asked."""

    base: Path
    checkpoints: tuple[Path, ...]
    device: str
    dtype: torch.dtype
    prompts: int = 8
    samples: int = 1
    prompt_tokens: int = 24
    new_tokens: int = 24

    @property
    def requests(self) -> list[Request]:
        """Random prompts of one length."""
        generator = torch.Generator().manual_seed(2)
        ids = torch.randint(10, 5000, (self.prompts, self.prompt_tokens), generator=generator).tolist()
        samples = tuple(range(self.samples))
        return [Request(Prompt(str(i), tuple(tokens), str(i)), samples) for i, tokens in enumerate(ids)]

    def load_base(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.base, dtype=self.dtype).to(self.device).eval()

    def load(self, checkpoint: Path) -> Any:
        return PeftModel.from_pretrained(self.load_base(), checkpoint).eval()

    def clock(self) -> float:
        """CPU seconds on a CPU, seconds on a GPU."""
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def sample(self, model: Any, models: int = 1, rows_at_a_time: int = 1024) -> list[Answers]:
        """The answers of each model; none ends early."""
        options = SamplingOptions(temperature=1.0, max_new_tokens=self.new_tokens)
        answers: list[Answers] = [[] for _ in range(models)]
        for batch in generate(model, self.requests, options, (), models=models, rows_at_a_time=rows_at_a_time):
            for k, of_model in enumerate(batch.answers):
                answers[k] += of_model
        return answers


def qwen2_500m() -> Any:
    """A random model of Qwen2.5-0.5B's shape, in bfloat16."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**_QWEN2_500M)).to(torch.bfloat16)


def write_subject(directory: Path, base: Any, count: int, *, device: str = "cpu") -> Subject:
    """Write the model `base` and `count` random adapters of rank 8 on all projections."""
    torch.manual_seed(1)
    base.save_pretrained(directory / "base")
    config = LoraConfig(r=8, lora_alpha=16, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = str(directory / "base")
    checkpoints = []
    for step in range(count):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    parameter.normal_(std=0.02 * step / count)
        checkpoints.append(directory / f"checkpoint-{step}")
        model.save_pretrained(checkpoints[-1])
    return Subject(directory / "base", tuple(checkpoints), device, base.dtype)


def reloaded(subject: Subject) -> list[Answers]:
    """The answers of each checkpoint, loaded anew with its base model by PEFT."""
    return [subject.sample(subject.load(checkpoint))[0] for checkpoint in subject.checkpoints]


def reloaded_and_verified(subject: Subject) -> list[Answers]:
    """The answers of each checkpoint, loaded anew by a `ModelLoader`, which compares all files with the manifest."""
    return [
        subject.sample(ModelLoader().load(checkpoint).model)[0] for checkpoint in Trajectory.open(subject.base.parent)
    ]


def seal(subject: Subject) -> None:
    """Write a tokenizer and the manifests, which a `ModelLoader` needs."""
    make_tokenizer(["a"]).save_pretrained(subject.base)
    record = base_identity(ModelConfig.model_validate({"base": str(subject.base)}))
    manifests = TrajectorySeal(Identity({"seed": 0}, base_model=record), len(subject.checkpoints))
    for step, checkpoint in enumerate(subject.checkpoints):
        manifests.seal(checkpoint, step)


def swapped(subject: Subject, model: Any, weights: SwappableWeights) -> list[Answers]:
    """The answers of each checkpoint, whose weights are copied into `model`."""
    answers = []
    for checkpoint in subject.checkpoints:
        if not weights.replace(checkpoint):
            raise SystemExit(f"{checkpoint}: cannot be swapped in")
        answers.append(subject.sample(model)[0])
    return answers


def swappable(subject: Subject, model: Any) -> SwappableWeights:
    """The weights of the first checkpoint in `model`, which has just been loaded."""
    weights = SwappableWeights.of_adapter(model, subject.checkpoints[0], "default")
    if weights is None:
        raise SystemExit("the adapter cannot be swapped")
    return weights


def stacked(subject: Subject, model: Any) -> list[Answers]:
    """The answers of all checkpoints, all adapters in one batch."""
    with stacked_adapters(model, subject.checkpoints):
        return subject.sample(model, models=len(subject.checkpoints))


def in_turn(
    subject: Subject, ways: Sequence[tuple[str, Callable[[], Any]]], rounds: int, seconds: float = float("inf")
) -> dict[str, list[float]]:
    """The seconds of each way in each round, taking turns; no round begins after `seconds`."""
    taken: dict[str, list[float]] = {name: [] for name, _ in ways}
    began = time.monotonic()
    for _ in range(rounds):
        for name, way in ways:
            start = subject.clock()
            way()
            taken[name].append(subject.clock() - start)
        if time.monotonic() - began > seconds:
            break
    return taken


def largest_difference(subject: Subject) -> float:
    """The largest absolute difference of a logit between a stacked and a swapped-in checkpoint."""
    model = subject.load(subject.checkpoints[0])
    ids = torch.tensor([request.prompt.tokens for request in subject.requests], device=subject.device)
    count, weights, largest = len(subject.checkpoints), swappable(subject, model), 0.0
    with torch.inference_mode():
        with stacked_adapters(model, subject.checkpoints):
            together = model(input_ids=ids.repeat(count, 1), logits_to_keep=1).logits.float().split(len(ids))
        for checkpoint, part in zip(subject.checkpoints, together, strict=True):
            weights.replace(checkpoint)
            alone = model(input_ids=ids, logits_to_keep=1).logits.float()
            largest = max(largest, float((part - alone).abs().max()))
    return largest


def ratios(
    name: str, taken: Mapping[str, Sequence[float]], ratios: Sequence[tuple[str, str, str]]
) -> Iterator[dict[str, Any]]:
    """The median seconds of each way, and the ratio of each pair with its bar."""
    for way, seconds in taken.items():
        yield row(name, f"{way}, seconds", f"{statistics.median(seconds):.3g}", "")
    for slow, fast, bar in ratios:
        ratio = statistics.median(a / b for a, b in zip(taken[slow], taken[fast], strict=True))
        yield row(name, f"{slow} / {fast}", f"{ratio:.2f} x", bar)


def row(part: str, what: str, value: str, bar: str) -> dict[str, Any]:
    """A row of the report."""
    return {"part": part, "measured": what, "value": value, "bar": bar}
