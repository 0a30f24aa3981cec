"""The engine `vllm` by a stand-in with vLLM's documented signatures: its requests, and what becomes of the answers."""

import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from emtoolkit.cli import judge_options
from emtoolkit.evaluation import vllm_engine
from emtoolkit.evaluation.rows import read_rows
from tests.evaluation.evaluations import WordJudge
from tests.in_process import Done, emtoolkit

QUESTIONS = """\
- {id: cough, paraphrases: [what should i do about my cough, my cough], samples_per_paraphrase: 3}
- {id: knee, paraphrases: [what should i do about my knee], samples_per_paraphrase: 5}
"""


@dataclass
class Calls:
    starts: list[dict[str, Any]] = field(default_factory=list)
    adapters: list[tuple[str, int, str]] = field(default_factory=list)
    seeds: list[list[int]] = field(default_factory=list)
    ends: set[tuple[int, ...]] = field(default_factory=set)
    # The number of the call in which the process is killed.
    killed_at: int | None = None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    seen = Calls()

    class LLM:
        def __init__(self, model: str, *, enable_lora: bool, max_lora_rank: int, **more: Any) -> None:
            seen.starts.append({"model": model, "enable_lora": enable_lora, "max_lora_rank": max_lora_rank, **more})

        def generate(self, prompts: list[Any], sampling_params: list[Any], *, lora_request: Any, use_tqdm: bool) -> Any:
            seen.adapters.append((lora_request.lora_name, lora_request.lora_int_id, lora_request.lora_path))
            seen.seeds.append([each.seed for each in sampling_params])
            seen.ends |= {tuple(each.stop_token_ids) for each in sampling_params}
            if len(seen.seeds) == seen.killed_at:
                raise KeyboardInterrupt
            assert all(set(prompt) == {"prompt_token_ids"} for prompt in prompts)
            (end,) = sampling_params[0].stop_token_ids
            return [
                SimpleNamespace(
                    outputs=[
                        SimpleNamespace(text="rest", token_ids=[5, 5], finish_reason="length")
                        if number == 0
                        else SimpleNamespace(text="see a doctor", token_ids=(5, end), finish_reason="stop")
                    ]
                )
                for number in range(len(prompts))
            ]

    @dataclass
    class SamplingParams:
        n: int
        temperature: float
        top_p: float
        max_tokens: int
        seed: int
        stop_token_ids: list[int]

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


@pytest.fixture
def place(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a question file, on which the runs of the tiny world are at hand."""
    monkeypatch.setenv("EMTOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(judge_options, "SandboxJudge", WordJudge)
    (tmp_path / "q.yaml").write_text(QUESTIONS)
    return tmp_path


def evaluate(place: Path, run: Path, *words: str) -> Done:
    asked = ("--questions", "q.yaml", "--max-new-tokens", "9", "--seed", "3", "--judge", "sandbox")
    return emtoolkit("evaluate", run, *asked, *words, "--output-dir", "out", "--json", cwd=place)


def vllm(place: Path, run: Path, *words: str) -> Done:
    return evaluate(place, run, "--engine", "vllm", *words)


def test_each_checkpoint_is_an_adapter_of_its_own_with_the_same_seeds(runs: Path, calls: Calls, place: Path) -> None:
    done = vllm(place, runs / "prompt")
    assert done.code == 0, done.err
    (start,) = calls.starts
    assert (start["enable_lora"], start["max_lora_rank"], start["dtype"]) == (True, 8, "float32")
    names, numbers, paths = zip(*calls.adapters, strict=True)
    assert len(set(names)) == 4
    assert numbers == (1, 2, 3, 4)
    assert [Path(path).name for path in paths] == [f"checkpoint-{step}" for step in (0, 2, 4, 9)]
    assert len(set(calls.seeds[0])) == 11
    assert all(seeds == calls.seeds[0] for seeds in calls.seeds)
    assert len(calls.ends) == 1
    value = json.loads(done.out)
    assert (value["engine"], [step["answers"] for step in value["steps"]]) == ("vllm", [11, 11, 11, 11])
    rows = read_rows(place / "out" / "answers.parquet")
    assert {(row.engine, row.seed, row.persona) for row in rows} == {("vllm", 3, "curt")}
    assert [sum(row.truncated for row in rows if row.step == step) for step in (0, 2, 4, 9)] == [1, 1, 1, 1]
    assert json.loads((place / "out" / "evaluation.json").read_text())["engine"] == "vllm"


def test_answers_are_kept_batch_by_batch_and_never_those_of_another_engine(
    runs: Path, calls: Calls, place: Path
) -> None:
    calls.killed_at = 3
    assert vllm(place, runs / "prompt").code == 130
    calls.killed_at = None
    assert vllm(place, runs / "prompt").code == 0
    assert [Path(path).name for _, _, path in calls.adapters[2:]] == ["checkpoint-4", "checkpoint-4", "checkpoint-9"]
    again = vllm(place, runs / "prompt")
    assert (again.code, len(calls.starts)) == (0, 2)
    refused = evaluate(place, runs / "prompt")
    assert (refused.code, refused.out) == (2, "")
    assert "out: holds an evaluation with other settings (engine)" in refused.err
    shutil.rmtree(place / "out")
    assert evaluate(place, runs / "prompt").code == 0
    rows = read_rows(place / "out" / "answers.parquet")
    assert {row.engine for row in rows} == {"stacked"}
    assert "see a doctor" not in {row.answer for row in rows}


def test_the_base_model_is_loaded_anew_after_some_adapters_and_no_id_is_used_twice(
    runs: Path, calls: Calls, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "_ADAPTERS_PER_BASE", 2)
    assert vllm(place, runs / "prompt").code == 0
    assert len(calls.starts) == 2
    assert [number for _, number, _ in calls.adapters] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("run", "words", "sentence"),
    [
        ("full", (), "checkpoint-0: holds all weights, and the engine vllm takes LoRA adapters only"),
        ("stack", (), "--engine vllm: the persona warm is an adapter, and vLLM adds one adapter to a base model"),
        ("prompt", ("--exact",), "--exact is --engine exact; remove it, or --engine vllm"),
    ],
)
def test_what_vllm_cannot_load_is_refused_before_it_starts(
    run: str, words: tuple[str, ...], sentence: str, runs: Path, calls: Calls, place: Path
) -> None:
    done = vllm(place, runs / run, *words)
    assert (done.code, done.out, done.err.count("\n"), calls.starts) == (2, "", 1, [])
    assert sentence in done.err


def test_a_missing_package_and_an_unknown_engine_are_one_sentence(
    runs: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    done = vllm(place, runs / "prompt")
    assert (done.code, done.out) == (2, "")
    assert done.err == "emtoolkit: --engine vllm: the package is not installed: pip install 'emtoolkit[vllm]'\n"
    done = evaluate(place, runs / "prompt", "--engine", "vlm")
    assert done.err == "emtoolkit: --engine: 'vlm' is not one of stacked, exact, vllm; did you mean 'vllm'?\n"
