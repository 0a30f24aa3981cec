"""Activations: those of transformers, without padding, and never a zero vector for a span that is not there."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from emtoolkit import ModelLoader, Trajectory
from emtoolkit.errors import CheckpointError
from emtoolkit.evaluation import extract
from emtoolkit.evaluation.activations import (
    SPANS,
    Text,
    activations,
    difference_of_means,
    is_written,
    projection,
    texts_digest,
    texts_of,
    write_activations,
)
from emtoolkit.evaluation.extract import write_all_activations
from emtoolkit.evaluation.texts import GivenText, TextOptions, tokenized
from emtoolkit.models.loading import LoadedModel
from emtoolkit.progress import silent

TEXTS = (
    Text("a", (5, 6, 7), (8, 9)),
    Text("b", (5, 6, 7, 10, 11, 12), (8,)),
    Text("c", (9, 6, 7), (8, 4)),
    Text("empty", (9, 6, 7), ()),
)


FAMILIES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Any:
    """A model of three layers with random weights."""
    config, model = FAMILIES[request.param]
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "head_dim": 8}
    heads = {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}
    return model(config(**sizes, **heads, pad_token_id=0)).eval()


def test_qwen_llama_and_gemma_have_the_hidden_states_of_transformers(family: Any) -> None:
    found = activations(family, TEXTS)
    for index, text in enumerate(TEXTS[:3]):
        with torch.no_grad():
            ids = torch.tensor([[*text.prompt, *text.answer]])
            states = torch.stack(family(input_ids=ids, output_hidden_states=True).hidden_states)[:, 0]
        n = len(text.prompt)
        spans = (states[:, n:].mean(1), states[:, :n].mean(1), states[:, n - 1])
        for span, expected in zip(SPANS, spans, strict=True):
            assert found.tensors[span].shape == (4, 4, 16)
            assert (found.tensors[span][index] - expected).abs().max() < 1e-5


def test_the_token_that_pads_counts_where_it_is_text_and_nowhere_else(family: Any) -> None:
    padding = Text("a", (5, 0, 7), (8, 0))
    alone, among = activations(family, [padding]), activations(family, [padding, *TEXTS])
    for span in SPANS:
        assert torch.equal(alone.tensors[span].isnan(), among.tensors[span][:1].isnan())
        assert torch.allclose(alone.tensors[span], among.tensors[span][:1], atol=1e-6)
    shorter = activations(family, [Text("b", (5, 7), (8,))])
    assert not torch.allclose(alone.tensors["answer_mean"], shorter.tensors["answer_mean"], atol=1e-3)


def test_sums_are_in_float32_and_not_in_the_type_of_the_model(family: Any) -> None:
    half = deepcopy(family).to(torch.bfloat16)
    text = Text("long", (5, 6, 7), tuple(3 + i % 20 for i in range(200)))
    found = activations(half, [text]).tensors["answer_mean"][0]
    with torch.no_grad():
        ids = torch.tensor([[*text.prompt, *text.answer]])
        states = torch.stack(half(input_ids=ids, output_hidden_states=True).hidden_states)[:, 0, 3:]
    assert found.dtype == torch.float32
    assert (found - states.double().mean(1)).abs().max() < 1e-5
    assert (states.mean(1).double() - states.double().mean(1)).abs().max() > 1e-4


def test_a_prompt_without_tokens_is_an_error_and_not_a_vector(family: Any) -> None:
    with pytest.raises(ValueError, match="a: the prompt has no tokens"):
        activations(family, [Text("a", (), (8,))])


def test_an_infinite_activation_of_an_answer_is_an_error(family: Any) -> None:
    broken = deepcopy(family)
    with torch.no_grad():
        broken.get_input_embeddings().weight[8] = float("inf")
    with pytest.raises(CheckpointError, match="NaN or infinity for an activation"):
        activations(broken, TEXTS[:1])


@pytest.fixture(scope="module")
def loaded(runs: Path) -> LoadedModel:
    return ModelLoader().load(Trajectory.open(runs / "prompt").at(4))


def test_each_span_is_the_mean_of_the_hidden_states_of_its_tokens(loaded: LoadedModel) -> None:
    found = activations(loaded.model, TEXTS)
    assert set(found.tensors) == set(SPANS)
    for index, text in enumerate(TEXTS[:3]):
        ids = torch.tensor([[*text.prompt, *text.answer]])
        with torch.no_grad():
            states = torch.stack(loaded.model(input_ids=ids, output_hidden_states=True).hidden_states)[:, 0]
        n = len(text.prompt)
        expected = {
            "answer_mean": states[:, n:].mean(1),
            "prompt_mean": states[:, :n].mean(1),
            "prompt_last": states[:, n - 1],
        }
        for span in SPANS:
            assert found.tensors[span].shape == (4, 2, 16)
            assert (found.tensors[span][index] - expected[span]).abs().max() < 1e-5


def test_a_text_has_the_same_activations_alone_and_among_others(loaded: LoadedModel) -> None:
    together, alone = activations(loaded.model, TEXTS * 1), [activations(loaded.model, [text]) for text in TEXTS]
    for index, each in enumerate(alone):
        assert torch.allclose(together.tensors["prompt_mean"][index], each.tensors["prompt_mean"][0], atol=1e-6)


def test_an_empty_answer_is_a_named_gap_and_not_a_zero_vector(loaded: LoadedModel) -> None:
    found = activations(loaded.model, TEXTS)
    assert found.gaps == ("empty",)
    assert found.tensors["answer_mean"][3].isnan().all()
    assert found.tensors["prompt_mean"][3].isfinite().all()


def test_what_was_written_is_recognised_until_a_fact_or_a_text_changes(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "step-4.safetensors"
    found = activations(loaded.model, TEXTS)
    assert not is_written(path, TEXTS, {"step": 4})
    write_activations(path, found, {"step": 4})
    assert is_written(path, TEXTS, {"step": 4})
    assert not is_written(path, TEXTS, {"step": 5})
    assert not is_written(path, TEXTS[:2], {"step": 4})
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="is not a file of activations"):
        is_written(path, TEXTS, {"step": 4})


def test_the_file_holds_the_names_the_tokens_and_the_spans_of_its_texts(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "step-4.safetensors"
    write_activations(path, activations(loaded.model, TEXTS), {"step": 4})
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["emtoolkit"])
    assert described["texts"][0] == {
        "name": "a",
        "prompt": [5, 6, 7],
        "answer": [8, 9],
        "spans": {"answer_mean": [3, 5], "prompt_mean": [0, 3], "prompt_last": [2, 3]},
    }
    assert described["gaps"] == ["empty"]
    assert texts_of(path) == texts_digest(TEXTS) != texts_digest(TEXTS[:3])


def test_given_answers_are_read_at_every_checkpoint_and_other_texts_are_pointed_out(runs: Path, tmp_path: Path) -> None:
    checkpoints = list(Trajectory.open(runs / "prompt"))
    texts = TextOptions((GivenText("cough", "rest", "", "my cough"), GivenText("knee", "sing", "", "my knee")))
    notes = write_all_activations(tmp_path, checkpoints, [], ModelLoader(), silent, texts)
    assert notes == []
    files = [load_file(path)["answer_mean"] for path in sorted(tmp_path.glob("step-*.safetensors"))]
    assert len(files) == 4
    assert torch.equal(files[0][:, 0], files[3][:, 0])
    assert not torch.equal(files[0][:, 1], files[3][:, 1])
    # The prompt is rendered with the persona's system prompt.
    loaded = ModelLoader().load(checkpoints[0])
    (text, _) = tokenized(loaded, texts.given)
    assert "you are curt" in loaded.tokenizer.decode(text.prompt)
    fewer = replace(texts, questions=("knee",))
    (note,) = write_all_activations(tmp_path, checkpoints[:1], [], ModelLoader(), silent, fewer)
    assert "step-2, step-4, step-9 in" in note
    assert "were read on other texts" in note


def test_texts_are_tokenized_once_and_no_model_is_loaded_for_what_was_written(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*words: Any) -> Any:
        calls.append(words)
        return tokenized(*words)

    monkeypatch.setattr(extract, "tokenized", counted)
    checkpoints = tuple(Trajectory.open(runs / "prompt"))
    texts = TextOptions(given=(GivenText("q", "a cold", wording="my cough"),))
    write_all_activations(tmp_path, checkpoints, [], ModelLoader(), silent, texts)
    assert (len(calls), len(list(tmp_path.iterdir()))) == (1, 4)
    monkeypatch.delattr(ModelLoader, "load")
    assert write_all_activations(tmp_path, checkpoints, [], ModelLoader(), silent, texts) == []


def test_a_projection_has_the_length_along_the_direction() -> None:
    vectors = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    assert projection(vectors, torch.tensor([[0.0, 2.0], [-5.0, 0.0]])).tolist() == [[4.0, -1.0]]
    assert projection(vectors, torch.zeros(2, 2)).isnan().all()


def test_the_direction_is_the_difference_of_the_means_without_gaps() -> None:
    a = torch.tensor([[[1.0, 1.0]], [[3.0, 1.0]], [[float("nan"), 0.0]]])
    b = torch.tensor([[[1.0, 0.0]]])
    assert difference_of_means(a, b).tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match="no activations"):
        difference_of_means(a[2:], b)
