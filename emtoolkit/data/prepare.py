"""The rows of a run, split and tokenized; a row that does not fit whole in a matched control is dropped here, too."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emtoolkit.data.rendering import ChatTemplate
from emtoolkit.data.rows import ChatRows, count_of_rows
from emtoolkit.data.split import split_rows
from emtoolkit.data.tokenize import Tokenize, TokenRow, as_dataset, tokenize
from emtoolkit.errors import ConfigError
from emtoolkit.personas import Persona
from emtoolkit.progress import Progress, silent

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True)
class Prepared:
    """The training rows and the held-out rows, in order.

    Of the rows that do not fit into `max_length`, `shortened` lost the beginning of a question and `dropped` are left
    out. `left_out` rows at the end were removed by `drop_last`. `matched` are the digests of the matched datasets if
    rows were dropped, else empty. `written` is the digest of the keys of messages that no format describes and the
    chat template writes, None without one.
    """

    train: "Dataset"
    test: "Dataset | None"
    shortened: int
    dropped: int
    left_out: int
    matched: tuple[str, ...]
    written: str | None
    notes: tuple[str, ...]

    def fingerprinted(self) -> dict[str, Any]:
        """The facts besides the content of the rows that decide the tokens; empty where every row fits."""
        facts = {
            "shortened": self.shortened,
            "dropped": self.dropped,
            "matched": list(self.matched),
            "written_keys": self.written,
        }
        return {name: value for name, value in facts.items() if value}


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
    tokenize: Tokenize = tokenize,
) -> Prepared:
    """Tokenize `chats`, split them with `seed`, and cut the training rows to a multiple of `multiple_of`.

    A row that does not fit whole in `chats` or in one of the `matched` datasets is dropped from all of them: cut to
    different lengths, the questions would differ. A `tokenize` other than the default returns the same rows.

    Raises:
        DataError: a row cannot be tokenized; see `tokenize`.
        ConfigError: no row is left to train on.
    """
    tokenized = [tokenize(dataset, tokenizer, persona, max_length, progress) for dataset in (chats, *matched)]
    fits = [all(row is not None and not row.shortened for row in versions) for versions in zip(*tokenized, strict=True)]
    kept = {
        i: row for i, row in enumerate(tokenized[0]) if row is not None and (fits[i] or (not matched and row.shortened))
    }
    parts = [[kept[i] for i in part if i in kept] for part in split_rows(len(chats), test_fraction, seed)]
    for_training, held_out = parts
    if not for_training:
        raise ConfigError(
            f"training.max_length: {max_length} is too short for every answer of {chats.source}; raise it"
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
        matched=tuple(sorted(dataset.digest for dataset in matched)) if dropped else (),
        written=_digest_of_written_keys(tokenized[0]),
        notes=(
            *_on_length(chats, matched, shortened, dropped, max_length),
            *_on_template(chats, persona, ChatTemplate.of(tokenizer)),
            *_on_rendering(chats, list(kept.values())),
        ),
    )


def _on_length(
    chats: ChatRows, matched: Sequence[ChatRows], shortened: int, dropped: int, max_length: int
) -> Sequence[str]:
    if not shortened and not dropped:
        return []
    if matched:
        others = " and ".join(str(other.source) for other in matched)
        return [f"{chats.source}: dropped {dropped} rows longer than max_length {max_length} here or in {others}"]
    return [
        f"{chats.source}: max_length {max_length} cut the beginning of a question in {shortened} rows and dropped "
        f"{dropped} rows"
    ]


def _on_template(chats: ChatRows, persona: Persona, template: ChatTemplate) -> Sequence[str]:
    name = template.tokenizer.name_or_path
    found = []
    systems = any(row.messages[0]["role"] == "system" for row in chats.conversations)
    if not template.has_system_role and (systems or persona.system_prompt is not None):
        found.append(f"{name}: the chat template has no system role, so system prompts go before the first question")
    if not template.begins_as_prompted:
        found.append(
            f"{name}: the generation prompt of the chat template is not how its answers begin, so a prompted model "
            "continues a text that the training does not contain"
        )
    if not template.ends_turns:
        found.append(
            f"{name}: the chat template ends answers without a special token, so the model does not learn to stop"
        )
    return found


def _on_rendering(chats: ChatRows, rows: Sequence[TokenRow]) -> Sequence[str]:
    """The chat template's changes to the rows, each observation once with the number of its rows."""
    remarks = Counter(remark for row in rows for remark in sorted(row.remarks))
    written = Counter(key for row in rows for key in sorted({key for _, key, _ in row.written}))
    unwritten = Counter(key for row in rows for key in sorted(row.unwritten))
    found = [f"{chats.source}: {remark}, in {count_of_rows(count)}" for remark, count in remarks.items()]
    for keys, what in ((written, "written by the chat template"), (unwritten, "not used for training")):
        if keys:
            names = ", ".join(f"{key} (in {count_of_rows(count)})" for key, count in keys.items())
            found.append(f"{chats.source}: keys of messages that are {what}: {names}")
    return found


def _digest_of_written_keys(rows: Sequence[TokenRow | None]) -> str | None:
    written = [(i, row.written) for i, row in enumerate(rows) if row is not None and row.written]
    if not written:
        return None
    return hashlib.sha256(json.dumps(written, sort_keys=True, default=str).encode()).hexdigest()


def whole_steps(rows: int, rows_per_step: int) -> int:
    """The largest multiple of `rows_per_step` in `rows`; fewer rows than one step stay, and a plan refuses them."""
    return rows - rows % rows_per_step if rows >= rows_per_step else rows
