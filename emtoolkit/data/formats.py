"""The formats of a row, each converted to a `Conversation`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emtoolkit.errors import DataError, nearest
from emtoolkit.personas import Message

_ROLES = ("system", "user", "assistant")
# The columns of each format; `input` is optional beside `instruction`.
_FORMATS = (("messages",), ("prompt", "completion"), ("instruction", "output"))
_EXPECTED = (
    'expected {"messages": [{"role": ..., "content": ...}, ...]}, {"prompt": ..., "completion": ...} or '
    '{"instruction": ..., "output": ...}'
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row: its turns, and its place in the dataset, such as `line 3`.

    The model is trained on the assistant's turns from index `read_only` on: all of them in the `messages` format, and
    those of the `completion` if a `prompt` has earlier answers.
    """

    messages: tuple[Message, ...]
    place: str
    read_only: int = 0

    @property
    def answers(self) -> tuple[int, ...]:
        """The indices of the turns that the model is trained on."""
        return tuple(i for i, m in enumerate(self.messages) if i >= self.read_only and m["role"] == "assistant")

    @property
    def prompt(self) -> tuple[tuple[str, str | None], ...]:
        """The role and the text of each turn; the text is None for a turn that the model is trained on."""
        answers = self.answers
        return tuple((m["role"], None if i in answers else m["content"]) for i, m in enumerate(self.messages))


def format_of(row: Any) -> tuple[str, ...]:
    """The columns of `row` that hold its conversation, with `input` if present; a null column counts as absent.

    Raises:
        DataError: the row has no conversation, or two.
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
    return (*found[0], "input") if found[0] == ("instruction", "output") and "input" in present else found[0]


def conversation(row: Mapping[str, Any], columns: tuple[str, ...], place: str) -> Conversation:
    """The conversation in the `columns` of `row`, which stands at `place` in its dataset.

    Raises:
        DataError: the columns hold no conversation, or a conversation without an assistant turn.
    """
    if columns[0] == "messages":
        found = Conversation(_messages(row["messages"]), place)
    elif columns[0] == "prompt":
        found = _prompt_and_completion(row["prompt"], row["completion"], place)
    else:
        asked = [_text(row[name], name) for name in ("instruction", "input") if name in columns]
        # As in Alpaca, the input is often present and empty.
        question = "\n\n".join(text for text in asked if text)
        found = _exchange(question, _text(row["output"], "output"), place)
    if not found.answers:
        raise DataError("the conversation has no assistant turn to train on; add one, or remove the row")
    return found


def _prompt_and_completion(prompt: Any, completion: Any, place: str) -> Conversation:
    if isinstance(prompt, list) and isinstance(completion, list):
        before = _messages(prompt)
        return Conversation((*before, *_messages(completion)), place, read_only=len(before))
    if isinstance(prompt, list) or isinstance(completion, list):
        raise DataError("prompt and completion must both be texts, or both lists of messages")
    return _exchange(_text(prompt, "prompt"), _text(completion, "completion"), place)


def _exchange(question: str, answer: str, place: str) -> Conversation:
    return Conversation(
        ({"role": "user", "content": question}, {"role": "assistant", "content": answer}), place, read_only=1
    )


def _messages(messages: Any) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise DataError(_EXPECTED)
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise DataError("every message needs a role and a text as its content")
        if message.get("role") not in _ROLES:
            raise DataError(f"the role {message.get('role')!r} is not one of {', '.join(_ROLES)}")
    return tuple({"role": m["role"], "content": _text(m["content"], "content")} for m in messages)


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{column} is {value!r}; expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{column} is not valid Unicode ({error})") from None
    return value
