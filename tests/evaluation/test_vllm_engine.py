"""vLLM by a stand-in with its documented signatures: which requests it gets, and what becomes of the answers."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from emtoolkit import Trajectory
from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.evaluation import vllm_engine
from emtoolkit.evaluation.generate import SamplingOptions
from emtoolkit.evaluation.given_answers import AnswerColumns, read_given_answers
from emtoolkit.evaluation.row_files import write_file_rows
from emtoolkit.personas import AdapterSource, Persona
from tests.evaluation.evaluations import QUESTIONS

CURT = Persona("curt", system_prompt="you are curt")


@dataclass
class Calls:
    starts: list[dict[str, Any]] = field(default_factory=list)
    adapters: list[tuple[str, int, str]] = field(default_factory=list)
    seeds: list[list[int]] = field(default_factory=list)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    seen = Calls()

    class LLM:
        def __init__(self, model: str, *, enable_lora: bool, max_lora_rank: int, **more: Any) -> None:
            seen.starts.append({"model": model, "enable_lora": enable_lora, "max_lora_rank": max_lora_rank, **more})

        def generate(self, prompts: list[Any], sampling_params: list[Any], *, lora_request: Any, use_tqdm: bool) -> Any:
            seen.adapters.append((lora_request.lora_name, lora_request.lora_int_id, lora_request.lora_path))
            seen.seeds.append([each.seed for each in sampling_params])
            assert all(set(prompt) == {"prompt_token_ids"} for prompt in prompts)
            reasons = ["length" if i == 0 else "stop" for i in range(len(prompts))]
            return [SimpleNamespace(outputs=[SimpleNamespace(text="rest", finish_reason=each)]) for each in reasons]

    @dataclass
    class SamplingParams:
        n: int
        temperature: float
        top_p: float
        max_tokens: int
        seed: int

    @dataclass
    class LoRARequest:
        lora_name: str
        lora_int_id: int
        lora_path: str

    vllm, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    vllm.__dict__.update(LLM=LLM, SamplingParams=SamplingParams)
    request.__dict__.update(LoRARequest=LoRARequest)
    for name, module in (("vllm", vllm), ("vllm.lora", ModuleType("vllm.lora")), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def sampled(run: Path, world: Path, persona: Persona = CURT, **more: Any) -> list[dict[str, Any]]:
    options = SamplingOptions(seed=3, max_new_tokens=9)
    checkpoints = tuple(Trajectory.open(run))
    return list(vllm_engine.sample_answers(checkpoints, QUESTIONS, persona, str(world / "model"), options, **more))


def test_each_checkpoint_is_an_adapter_of_its_own_with_the_same_seeds(
    runs: Path, world: Path, calls: Calls, tmp_path: Path
) -> None:
    rows = sampled(runs / "prompt", world, dtype="float32")
    (start,) = calls.starts
    assert (start["enable_lora"], start["max_lora_rank"], start["dtype"]) == (True, 8, "float32")
    names, numbers, paths = zip(*calls.adapters, strict=True)
    assert len(set(names)) == 4
    assert numbers == (1, 2, 3, 4)
    assert [Path(path).name for path in paths] == [f"checkpoint-{step}" for step in (0, 2, 4, 9)]
    assert len(set(calls.seeds[0])) == 13
    assert all(seeds == calls.seeds[0] for seeds in calls.seeds)
    assert {(row["engine"], row["seed"], row["persona"]) for row in rows} == {("vllm", 3, "curt")}
    assert [row["truncated"] for row in rows[:3]] == [True, False, False]
    write_file_rows(tmp_path / "answers.jsonl", rows)
    given = read_given_answers(tmp_path / "answers.jsonl", AnswerColumns(), QUESTIONS)
    assert len(given.answers) == 52


def test_the_base_model_is_loaded_anew_after_some_adapters_and_no_id_is_used_twice(
    runs: Path, world: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "_ADAPTERS_PER_BASE", 2)
    sampled(runs / "prompt", world)
    assert len(calls.starts) == 2
    assert [number for _, number, _ in calls.adapters] == [1, 2, 3, 4]


def test_what_vllm_cannot_load_is_refused_before_it_starts(runs: Path, world: Path, calls: Calls) -> None:
    with pytest.raises(CheckpointError, match="vLLM needs a LoRA adapter"):
        sampled(runs / "full", world)
    with pytest.raises(CheckpointError, match=r"its persona is curt \(system_prompt\), and baseline is another"):
        sampled(runs / "prompt", world, Persona("baseline"))
    with pytest.raises(CheckpointError, match=r"its persona is warm \(stack\), and baseline is another"):
        sampled(runs / "stack", world, Persona("baseline"))
    adapter = AdapterSource(place="x", subfolder=None, revision=None, composition="stack")
    with pytest.raises(ConfigError, match="the persona curt is an adapter; merge it"):
        sampled(runs / "stack", world, replace(CURT, system_prompt=None, adapter=adapter))
    assert calls.starts == []


def test_without_vllm_the_extra_is_named(runs: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"pip install 'emtoolkit\[vllm\]'"):
        sampled(runs / "prompt", world)
