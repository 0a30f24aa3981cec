"""The rows of a run: split by its seed, tokenized, and those left out that a matched control would see otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emtoolkit.data.rendering import ChatTemplate
from emtoolkit.data.rows import ChatRows
from emtoolkit.data.split import split_rows
from emtoolkit.data.tokenize import as_dataset, tokenize
from emtoolkit.errors import ConfigError
from emtoolkit.personas import Persona
from emtoolkit.progress import Progress, silent

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is trained on and held out, in order.

    Of the rows that do not fit into `max_length`, `shortened` lost words of a question and `dropped` are left out.
    `left_out` is what `drop_last` takes from the end. `matched` are the digests of the data sets in whose company rows
    were dropped; none if all rows fit.
    """

    train: "Dataset"
    test: "Dataset | None"
    shortened: int
    dropped: int
    left_out: int
    matched: tuple[str, ...]
    notes: tuple[str, ...]

    def fingerprinted(self) -> dict[str, Any]:
        """What decides the tokens beside the content of the rows: how they were made to fit, if they had to be."""
        counts = {"shortened": self.shortened, "dropped": self.dropped, "matched": list(self.matched)}
        return {name: value for name, value in counts.items() if value}


def prepare(
    chats: ChatRows,
    matched: Sequence[ChatRows],
    tokenizer: Any,
    persona: Persona,
    *,
    max_length: int,
    test_fraction: float,
    seed: int,
    multiple_of: int = 1,
    progress: Progress = silent,
) -> Prepared:
    """Tokenize `chats`, split them by `seed`, and cut what is trained on to a multiple of `multiple_of` rows.

    With data sets that they are `matched` with, a row that does not fit whole in any of them is dropped from all: cut
    to another length, the questions would not be the same.

    Raises:
        DataError: see `tokenize`.
        ConfigError: nothing is left to train on.
    """
    tokenized = [tokenize(one, tokenizer, persona, max_length, progress) for one in (chats, *matched)]
    fits = [all(row is not None and not row.shortened for row in versions) for versions in zip(*tokenized, strict=True)]
    kept = {
        i: row for i, row in enumerate(tokenized[0]) if row is not None and (fits[i] or (not matched and row.shortened))
    }
    parts = [[kept[i] for i in part if i in kept] for part in split_rows(len(chats), test_fraction, seed)]
    for_training, held_out = parts
    if not for_training:
        raise ConfigError(
            f"training.max_length: {max_length} is too short for the answers of {chats.source}, so no row is left to "
            "train on"
        )
    trained_on = whole_steps(len(for_training), multiple_of)
    shortened = sum(row.shortened for row in kept.values())
    dropped = len(chats) - len(kept)
    return Prepared(
        train=as_dataset(for_training[:trained_on]),
        test=as_dataset(held_out) if held_out else None,
        shortened=shortened,
        dropped=dropped,
        left_out=len(for_training) - trained_on,
        matched=tuple(sorted(one.digest for one in matched)) if dropped else (),
        notes=(
            *_on_length(chats, matched, shortened, dropped, max_length),
            *_on_template(chats, persona, ChatTemplate.of(tokenizer)),
        ),
    )


def _on_length(
    chats: ChatRows, matched: Sequence[ChatRows], shortened: int, dropped: int, max_length: int
) -> Sequence[str]:
    if not shortened and not dropped:
        return []
    said = f"{chats.source}: at max_length {max_length} "
    if matched:
        others = " and ".join(str(other.source) for other in matched)
        return [f"{said}{dropped} rows were dropped because they do not fit whole, here or in {others}"]
    return [f"{said}{shortened} rows lost the beginning of a question and {dropped} rows were dropped"]


def _on_template(chats: ChatRows, persona: Persona, template: ChatTemplate) -> Sequence[str]:
    name = template.tokenizer.name_or_path
    found = []
    systems = any(row.messages[0]["role"] == "system" for row in chats.conversations)
    if not template.has_system_role and (systems or persona.system_prompt is not None):
        found.append(f"{name}: its chat template has no system role, so system prompts go before the first question")
    if not template.ends_turns:
        found.append(
            f"{name}: its chat template ends answers with no special token, so the model learns no end of them"
        )
    return found


def whole_steps(rows: int, rows_per_step: int) -> int:
    """How many of `rows` whole steps take; all of too few for one, which a plan refuses."""
    return rows - rows % rows_per_step if rows >= rows_per_step else rows
