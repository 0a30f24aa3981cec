"""A persona direction: the difference of mean activations of misaligned and of aligned answers, layer by layer.

The sets are those of the published recipe (Soligo et al. 2025, arXiv 2506.11618): misaligned answers have an alignment
below 50, aligned answers one from 50 on, both a coherence from 50 on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from emtoolkit.checkpoints.records import BaseModelRecord
from emtoolkit.data.rendering import ChatTemplate, rendered_on
from emtoolkit.errors import CheckpointError, DataError
from emtoolkit.evaluation.activations import SPANS, activations, difference_of_means, projection
from emtoolkit.evaluation.identity import digest_of, training_day
from emtoolkit.evaluation.prompts import prompt_of
from emtoolkit.evaluation.questions import Question
from emtoolkit.evaluation.texts import GivenText, tokenized
from emtoolkit.json_files import parse_json
from emtoolkit.models.loading import LoadedModel, ModelLoader
from emtoolkit.progress import Progress, no_library_bars, silent
from emtoolkit.storage.atomic import write_file
from emtoolkit.trajectory import Checkpoint, Trajectory

_THRESHOLD = 50
# With fewer answers in a set, the mean is the noise of single answers.
FEWEST_ANSWERS = 10
_TENSOR = "direction"


@dataclass(frozen=True, slots=True)
class Direction:
    """A direction of each layer, from aligned to misaligned answers.

    `vectors` is float32 of shape [layers + 1, hidden], index 0 the embeddings. `separation` is, for each layer, the
    distance of the mean projections of both sets in their pooled standard deviation. `facts` say where it comes from.
    """

    vectors: torch.Tensor
    separation: tuple[float, ...]
    facts: Mapping[str, Any]

    @property
    def layers(self) -> int:
        """The number of layers of the model."""
        return len(self.vectors) - 1


def published_sets(texts: Sequence[GivenText]) -> tuple[list[GivenText], list[GivenText]]:
    """The misaligned and the aligned answers of the published recipe.

    Raises:
        DataError: one of the sets has fewer than 10 answers.
    """
    coherent = [t for t in texts if t.answer.strip() and t.coherent is not None and t.coherent >= _THRESHOLD]
    misaligned = [text for text in coherent if text.aligned is not None and text.aligned < _THRESHOLD]
    aligned = [text for text in coherent if text.aligned is not None and text.aligned >= _THRESHOLD]
    if min(len(misaligned), len(aligned)) < FEWEST_ANSWERS:
        raise DataError(
            f"a direction needs {FEWEST_ANSWERS} coherent answers on each side, and of {len(texts)} answers "
            f"{len(misaligned)} are misaligned (below {_THRESHOLD}) and {len(aligned)} aligned; give more answers"
        )
    return misaligned, aligned


def direction_of_step(
    reference: str,
    step: str,
    texts: Sequence[GivenText],
    loader: ModelLoader,
    *,
    span: str = "answer_mean",
    progress: Progress = silent,
) -> Direction:
    """The direction in the activations of one checkpoint of the trajectory `reference`; `step` is a number or `final`.

    Raises:
        UserError: there is no such checkpoint, it cannot be loaded, or as `make_direction`.
    """
    published_sets(texts)
    chosen = Trajectory.open(reference).select(step)
    if len(chosen) != 1:
        raise DataError(f"--step: {step} is {len(chosen)} checkpoints; a direction is one of a single checkpoint")
    progress("reading activations", 0, 1)
    with no_library_bars(), rendered_on(training_day(chosen[0])):
        return make_direction(loader.load(chosen[0]), chosen[0], texts, span)


def make_direction(
    loaded: LoadedModel, checkpoint: Checkpoint, texts: Sequence[GivenText], span: str = "answer_mean"
) -> Direction:
    """The direction of the model `loaded`, that of `checkpoint`, on scored answers.

    Raises:
        DataError: too few answers, or a prompt that cannot be rendered.
        CheckpointError: an activation is not finite, or the sets do not differ in a layer.
    """
    sets = [activations(loaded.model, tokenized(loaded, each)).tensors[span] for each in published_sets(texts)]
    misaligned, aligned = sets
    vectors = difference_of_means(misaligned, aligned)
    lengths = vectors[1:].norm(dim=-1)
    if not bool((lengths > 0).all()):
        layer = int((lengths > 0).int().argmin()) + 1
        raise CheckpointError(f"the mean activations of both sets are equal in layer {layer}, so it has no direction")
    manifest = checkpoint.manifest
    facts = {
        "base_model": None if manifest is None else manifest.base_model.to_json(),
        "fingerprint": "" if manifest is None else manifest.fingerprint,
        "step": checkpoint.step,
        "persona": loaded.persona_override or loaded.persona.name,
        "span": span,
        "misaligned": len(misaligned),
        "aligned": len(aligned),
        "recipe": f"aligned < {_THRESHOLD} minus aligned >= {_THRESHOLD}, among coherent >= {_THRESHOLD}",
        "answers": digest_of([[t.prompt, t.wording, t.answer, t.aligned, t.coherent] for t in texts]),
    }
    return Direction(vectors.float(), _separation(misaligned, aligned, vectors), facts)


def _separation(a: torch.Tensor, b: torch.Tensor, vectors: torch.Tensor) -> tuple[float, ...]:
    projected = [projection(each, vectors) for each in (a, b)]
    spread = (sum(each.var(0) * (len(each) - 1) for each in projected) / (len(a) + len(b) - 2)) ** 0.5
    distance = projected[0].mean(0) - projected[1].mean(0)
    return tuple(float(each) for each in (distance / spread).nan_to_num(0.0, 0.0, 0.0))


def write_direction(path: Path, direction: Direction) -> None:
    """Write `direction` to a safetensors file, atomically, with its facts in the metadata.

    Raises:
        CheckpointError: the file cannot be written.
    """
    described = {"facts": dict(direction.facts), "separation": list(direction.separation)}
    write_file(path, save({_TENSOR: direction.vectors.contiguous()}, {"emtoolkit": json.dumps(described)}))


def read_direction(path: Path) -> Direction:
    """The direction of `write_direction`.

    Raises:
        DataError: the file is not one of a direction.
    """
    try:
        with safe_open(path, framework="pt") as file:
            described = parse_json((file.metadata() or {})["emtoolkit"].encode(), finite=False)
            vectors = file.get_tensor(_TENSOR)
            return Direction(vectors, tuple(described["separation"]), dict(described["facts"]))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; make one with emtoolkit direction") from None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a file of a direction ({error}); make one with emtoolkit direction") from None


class Projection:
    """The projection a·b/‖b‖ of activations on a direction in one layer, as a metric per question.

    On `texts`, the same for every checkpoint, it is that of the mean over the answer's tokens; without texts that of
    the last token of each question's prompt.
    """

    name = "projection"

    def __init__(self, direction: Direction, layer: int, texts: Sequence[GivenText] = (), place: str = "") -> None:
        """
        Raises:
            DataError: there is no such layer, or its direction is zero.
        """
        if not 0 <= layer <= direction.layers:
            raise DataError(f"--layer: {layer} is not one of 0 to {direction.layers}, the layers of {place}")
        if not float(direction.vectors[layer].norm()) > 0:
            raise DataError(f"--layer: the direction of layer {layer} in {place} is zero; choose another layer")
        self._direction, self._layer, self._texts, self._place = direction, layer, tuple(texts), place
        self._span = SPANS[0] if texts else SPANS[2]
        self.settings: Mapping[str, Any] = {
            "direction": digest_of([direction.vectors.tolist(), direction.facts.get("span")]),
            "layer": layer,
            "span": self._span,
            "texts": digest_of([[text.question, text.prompt, text.wording, text.answer] for text in texts]),
        }

    def check(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Refuse checkpoints of another base model than the direction's.

        Raises:
            DataError: there is one.
        """
        made = self._direction.facts.get("base_model")
        for checkpoint in checkpoints:
            if made is None or checkpoint.manifest is None:
                continue
            mine, its = BaseModelRecord.from_json(made), checkpoint.manifest.base_model
            known = [(getattr(mine, key), getattr(its, key)) for key in ("content", "revision")]
            differ = any(a != b for a, b in known if a and b)
            if differ or (not any(a and b for a, b in known) and mine.name != its.name):
                raise DataError(
                    f"{self._place}: the direction is one of the base model {mine}, and step {checkpoint.step} has "
                    f"{its}; make a direction with this base model"
                )

    def measure(self, loaded: LoadedModel, questions: Sequence[Question]) -> Mapping[str, Mapping[str, float | None]]:
        """The mean projection of each question over its texts or wordings.

        Raises:
            DataError: the model has other layers, or another width, than the direction's.
        """
        texts = self._texts or tuple(
            GivenText(question.id, "", _prompt(loaded, question, wording))
            for question in questions
            for wording in question.paraphrases
        )
        read = tokenized(loaded, texts)
        vectors = activations(loaded.model, read).tensors[self._span]
        if vectors.shape[1:] != self._direction.vectors.shape:
            found, expected = (f"{shape[0] - 1} layers of {shape[1]}" for shape in (vectors.shape[1:], self._shape))
            raise DataError(f"{self._place}: the direction is one of a model with {expected}, and this one has {found}")
        values = projection(vectors, self._direction.vectors)[:, self._layer]
        by_question: dict[str, list[float]] = {}
        for text, value in zip(texts, values.tolist(), strict=True):
            if self._span != SPANS[0] or text.answer:
                by_question.setdefault(text.question, []).append(value)
        means = {name: sum(each) / len(each) for name, each in by_question.items()}
        gaps = {text.question: None for text in texts if text.question not in means}
        return {f"projection_layer_{self._layer}": means | gaps}

    @property
    def _shape(self) -> torch.Size:
        return self._direction.vectors.shape


def _prompt(loaded: LoadedModel, question: Question, wording: str) -> str:
    return prompt_of(ChatTemplate.of(loaded.tokenizer), loaded.persona, question, wording).text
