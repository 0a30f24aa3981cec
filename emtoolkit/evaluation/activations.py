"""Activations of a model on given texts: the residual stream after every layer, averaged over spans.

The same text for every checkpoint is what makes steps comparable. Index 0 is the output of the embeddings and index l
that of layer l, as `output_hidden_states` gives them: transformers applies the final norm to the last one.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from emtoolkit.errors import CheckpointError
from emtoolkit.evaluation.identity import digest_of
from emtoolkit.evaluation.virtual_tokens import refuse_virtual_tokens
from emtoolkit.storage.atomic import write_file

SPANS = ("answer_mean", "prompt_mean", "prompt_last")
_ROWS_AT_A_TIME = 8


@dataclass(frozen=True, slots=True)
class Text:
    """A rendered prompt and an answer to it, as tokens. `name` is unique in an extraction."""

    name: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Activations:
    """The activations of one checkpoint.

    `tensors` maps each of `SPANS` to float32 of shape [texts, layers + 1, hidden]: the mean over the answer's tokens,
    the mean over the prompt's tokens, and the prompt's last token. The answer mean of an empty answer is NaN, and
    `gaps` names the text.
    """

    texts: tuple[Text, ...]
    tensors: Mapping[str, torch.Tensor]

    @property
    def gaps(self) -> tuple[str, ...]:
        """The names of the texts without an answer."""
        return tuple(text.name for text in self.texts if not text.answer)


def activations(model: Any, texts: Sequence[Text]) -> Activations:
    """The activations of `model`, in evaluation mode, on `texts`; no text is padded, and sums are in float32.

    Raises:
        CheckpointError: an activation is NaN or infinite, or the model's adapter has virtual tokens.
        ValueError: a text has no prompt.
    """
    refuse_virtual_tokens(model)
    if empty := [text.name for text in texts if not text.prompt]:
        raise ValueError(f"{empty[0]}: the prompt has no tokens")
    found: dict[int, dict[str, torch.Tensor]] = {}
    with torch.inference_mode():
        for indices in _equally_long(texts):
            ids = torch.tensor([[*texts[i].prompt, *texts[i].answer] for i in indices], device=model.device)
            output = model(input_ids=ids, output_hidden_states=True, use_cache=False, logits_to_keep=1)
            for row, index in enumerate(indices):
                states = [state[row] for state in output.hidden_states]
                found[index] = _spans(states, len(texts[index].prompt))
    tensors = {span: torch.stack([found[i][span] for i in range(len(texts))]).cpu() for span in SPANS}
    answered = torch.tensor([bool(text.answer) for text in texts], dtype=torch.bool)
    spans = (tensors["answer_mean"][answered], tensors["prompt_mean"], tensors["prompt_last"])
    if not all(bool(each.isfinite().all()) for each in spans):
        raise CheckpointError("the model gives NaN or infinity for an activation")
    return Activations(tuple(texts), tensors)


def write_activations(path: Path, found: Activations, facts: Mapping[str, Any]) -> None:
    """Write the tensors to a safetensors file, atomically, with the texts and `facts` in its metadata.

    Raises:
        CheckpointError: the file cannot be written.
    """
    texts = [asdict(text) | {"spans": _places(text)} for text in found.texts]
    described = {"facts": dict(facts), "texts": texts, "gaps": list(found.gaps)}
    metadata = {
        "emtoolkit": json.dumps(described),
        "digest": _digest(found.texts, facts),
        "texts": texts_digest(found.texts),
    }
    write_file(path, save(dict(found.tensors), metadata))


def is_written(path: Path, texts: Sequence[Text], facts: Mapping[str, Any]) -> bool:
    """Whether `path` holds the activations of `texts` with `facts`.

    Raises:
        CheckpointError: the file is there and cannot be read.
    """
    return path.exists() and _metadata(path).get("digest") == _digest(texts, facts)


def texts_of(path: Path) -> str | None:
    """The digest of the texts in a file of activations; None where the file does not say.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return _metadata(path).get("texts")


def texts_digest(texts: Sequence[Text]) -> str:
    """SHA-256 in hex of the texts: activations on other texts are not comparable."""
    return digest_of([asdict(text) for text in texts])


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is not a file of activations ({error}); delete it") from None


def projection(vectors: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """The scalar projection a·b/‖b‖ of each vector a on the direction b.

    Args:
        vectors: of shape [..., layers + 1, hidden].
        direction: of shape [layers + 1, hidden].

    Returns:
        Shape [..., layers + 1]; NaN where the direction is zero.
    """
    direction = direction.double()
    lengths: torch.Tensor = (vectors.double() * direction).sum(-1) / direction.norm(dim=-1)
    return lengths


def difference_of_means(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The direction from `b` to `a`: mean(a) - mean(b) over the first dimension, without the rows that are gaps.

    Args:
        a: of shape [texts, layers + 1, hidden]; `b` likewise.

    Raises:
        ValueError: one of them has no row without NaN.
    """
    means = []
    for rows in (a, b):
        usable = rows[~rows.isnan().flatten(1).any(1)].double()
        if not len(usable):
            raise ValueError("a set of answers has no activations, so there is no direction")
        means.append(usable.mean(0))
    return means[0] - means[1]


def _equally_long(texts: Sequence[Text]) -> Iterator[list[int]]:
    lengths = [len(text.prompt) + len(text.answer) for text in texts]
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    for _, group in groupby(order, key=lengths.__getitem__):
        indices = list(group)
        for start in range(0, len(indices), _ROWS_AT_A_TIME):
            yield indices[start : start + _ROWS_AT_A_TIME]


def _spans(states: Sequence[torch.Tensor], prompt: int) -> dict[str, torch.Tensor]:
    """The spans of one text, each [layers + 1, hidden]; `states` are of shape [tokens, hidden], one for each layer.

    One layer at a time is in float32: all of them for a batch would take gigabytes.
    """
    return {
        "answer_mean": torch.stack([state[prompt:].float().mean(0) for state in states]),
        "prompt_mean": torch.stack([state[:prompt].float().mean(0) for state in states]),
        "prompt_last": torch.stack([state[prompt - 1].float() for state in states]),
    }


def _places(text: Text) -> dict[str, list[int]]:
    """The first token of each span, and the one after its last."""
    prompt, end = len(text.prompt), len(text.prompt) + len(text.answer)
    return {"answer_mean": [prompt, end], "prompt_mean": [0, prompt], "prompt_last": [prompt - 1, prompt]}


def _digest(texts: Sequence[Text], facts: Mapping[str, Any]) -> str:
    return digest_of([dict(facts), [asdict(text) for text in texts]])
