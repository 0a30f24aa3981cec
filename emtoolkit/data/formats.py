"""The formats of a row, each converted to a `Conversation`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from emtoolkit.data.messages import NOT_TEXT, digested, read_messages, read_tools, text
from emtoolkit.errors import DataError, nearest
from emtoolkit.personas import Message

# The columns of each format, and those that may stand beside them; every format may have `tools`.
_FORMATS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("messages",): (),
    ("prompt", "completion"): (),
    ("instruction", "output"): ("input",),
    ("conversations",): ("system",),
}
_EXPECTED = (
    'expected {"messages": [{"role": ..., "content": ...}, ...]}, {"prompt": ..., "completion": ...}, '
    '{"instruction": ..., "output": ...} or {"conversations": [{"from": ..., "value": ...}, ...]}'
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row: its turns, and its place in the dataset, such as `line 3`.

    The model is trained on the assistant's turns from index `read_only` on, except those of weight 0: all of them in
    the `messages` format, and those of the `completion` if a `prompt` has earlier answers. `tools` are the JSON
    schemas of the functions that the assistant may call.
    """

    messages: tuple[Message, ...]
    place: str
    read_only: int = 0
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def answers(self) -> tuple[int, ...]:
        """The indices of the turns that the model is trained on."""
        return tuple(
            i
            for i, message in enumerate(self.messages)
            if i >= self.read_only and message["role"] == "assistant" and message.get("weight") != 0
        )

    @property
    def unweighted(self) -> int:
        """The number of answers that weight 0 leaves out of the loss."""
        return sum(message.get("weight") == 0 for message in self.messages[self.read_only :])

    @property
    def prompt(self) -> tuple[tuple[str, str | None], ...]:
        """The role and the content of each turn, None for a turn that the model is trained on, and then the tools."""
        answers = self.answers
        turns = [
            (message["role"], None if i in answers else _as_json(digested(message) | {"weight": None}))
            for i, message in enumerate(self.messages)
        ]
        return (*turns, ("tools", _as_json(self.tools)))

    @property
    def content(self) -> bytes:
        """The row's bytes in the digest: the row's turns and tools, in the form of the oldest rows."""
        turns: object = [digested(message) for message in self.messages]
        if any(message["role"] == "assistant" for message in self.messages[: self.read_only]):
            turns = [self.read_only, turns]
        return _as_json({"tools": self.tools, "turns": turns} if self.tools else turns).encode()


def format_of(row: Any) -> tuple[str, ...]:
    """The columns of `row` that hold its conversation; a null column counts as absent.

    Raises:
        DataError: the row has no conversation, or two, or something that is not a text.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{_EXPECTED}, found {type(row).__name__}")
    present = [name for name, value in row.items() if value is not None]
    found = [columns for columns in _FORMATS if set(columns) <= set(present)]
    if not found:
        known = [name for columns in _FORMATS for name in columns if name not in present]
        hint = next((hint for name in present if (hint := nearest(str(name), known))), "")
        raise DataError(f"{_EXPECTED}, found {', '.join(map(str, present)) or 'nothing'}{hint}")
    if len(found) > 1:
        first, second = (" and ".join(columns) for columns in found[:2])
        raise DataError(f"the row has both {first} and {second}; keep only one")
    if seen := next((name for name in NOT_TEXT if row.get(name)), None):
        raise DataError(f"the row has {seen}, and only texts can be trained on; remove the column, or the row")
    if row.get("functions"):
        raise DataError("the row has functions, the older form of tools; write tools")
    return found[0]


def unused_columns(row: Mapping[str, Any], columns: tuple[str, ...]) -> list[str]:
    """The columns of `row`, in the format `columns`, that are not null and say nothing to a training."""
    used = (*columns, *_FORMATS[columns], "tools", *NOT_TEXT, "functions")
    return [str(name) for name, value in row.items() if value is not None and name not in used]


def conversation(row: Mapping[str, Any], columns: tuple[str, ...], place: str) -> Conversation:
    """The conversation in the `columns` of `row`, which stands at `place` in its dataset.

    Raises:
        DataError: the columns hold no conversation, or a conversation without an answer that is learnt.
    """
    if columns == ("messages",):
        found = Conversation(read_messages(row["messages"], _EXPECTED), place)
    elif columns == ("conversations",):
        found = Conversation(_share_gpt(row.get("system"), row["conversations"]), place)
    elif columns == ("prompt", "completion"):
        found = _prompt_and_completion(row["prompt"], row["completion"], place)
    else:
        asked = [text(row[name], name) for name in ("instruction", "input") if row.get(name) is not None]
        # As in Alpaca, the input is often present and empty.
        question = "\n\n".join(part for part in asked if part)
        found = _exchange(question, text(row["output"], "output"), place)
    if row.get("tools") is not None:
        found = replace(found, tools=tuple(read_tools(row["tools"])))
    if not found.answers and found.unweighted:
        raise DataError("every answer of the conversation has weight 0; remove the row")
    if not found.answers:
        raise DataError("the conversation has no assistant turn to train on; add one, or remove the row")
    return found


def _share_gpt(system: Any, conversations: Any) -> tuple[Message, ...]:
    """The turns of a ShareGPT row, after the text of its column `system`."""
    turns = read_messages(conversations, _EXPECTED)
    if system is None or not text(system, "system").strip():
        return turns
    if any(turn["role"] == "system" for turn in turns):
        raise DataError("the row has the column system and a turn of the role system; keep only one")
    return ({"role": "system", "content": system}, *turns)


def _prompt_and_completion(prompt: Any, completion: Any, place: str) -> Conversation:
    if isinstance(prompt, list) and isinstance(completion, list):
        before = read_messages(prompt, _EXPECTED)
        return Conversation((*before, *read_messages(completion, _EXPECTED)), place, read_only=len(before))
    if isinstance(prompt, list) or isinstance(completion, list):
        raise DataError("prompt and completion must both be texts, or both lists of messages")
    return _exchange(text(prompt, "prompt"), text(completion, "completion"), place)


def _exchange(question: str, answer: str, place: str) -> Conversation:
    return Conversation(
        ({"role": "user", "content": question}, {"role": "assistant", "content": answer}), place, read_only=1
    )


def _as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
