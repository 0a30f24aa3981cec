"""The forms in which a row may hold a conversation, each brought into one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emtoolkit.errors import DataError, nearest
from emtoolkit.personas import Message

_ROLES = ("system", "user", "assistant")
# The columns that make a form; `input` may stand beside `instruction` and be empty.
_FORMS = (("messages",), ("prompt", "completion"), ("instruction", "output"))
_EXPECTED = (
    'expected {"messages": [{"role": ..., "content": ...}, ...]}, {"prompt": ..., "completion": ...} or '
    '{"instruction": ..., "output": ...}'
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row: its turns, where it stands in its data set, and how many of its turns are there to be read only.

    The assistant's turns from `read_only` on are learnt: all of `messages`, and of a `prompt` with earlier answers
    in it those of the `completion`.
    """

    messages: tuple[Message, ...]
    place: str
    read_only: int = 0

    @property
    def answers(self) -> tuple[int, ...]:
        """The indices of the turns that are learnt."""
        return tuple(i for i, m in enumerate(self.messages) if i >= self.read_only and m["role"] == "assistant")

    @property
    def prompt(self) -> tuple[tuple[str, str | None], ...]:
        """Role and text of each turn; of what is learnt the role alone."""
        learnt = self.answers
        return tuple((m["role"], None if i in learnt else m["content"]) for i, m in enumerate(self.messages))


def form_of(row: Any, where: str) -> tuple[str, ...]:
    """The columns of `row` that hold its conversation, `input` with them; a column that is null is not there.

    Raises:
        DataError: there is no conversation in it, or two.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: {_EXPECTED}, found {type(row).__name__}")
    there = [name for name, value in row.items() if value is not None]
    found = [form for form in _FORMS if set(form) <= set(there)]
    if not found:
        known = [name for form in _FORMS for name in form if name not in there]
        hint = next((hint for name in there if (hint := nearest(str(name), known))), "")
        raise DataError(f"{where}: {_EXPECTED}, found {', '.join(map(str, there)) or 'nothing'}{hint}")
    if len(found) > 1:
        both = " as well as ".join(" and ".join(form) for form in found)
        raise DataError(f"{where}: it has {both}, and which of them is to be learnt is not said")
    return (*found[0], "input") if found[0] == ("instruction", "output") and "input" in there else found[0]


def conversation(row: Mapping[str, Any], form: tuple[str, ...], where: str, place: str) -> Conversation:
    """The conversation in the columns `form` of `row`.

    Raises:
        DataError: they do not hold one, or there is no assistant's turn in it.
    """
    if form[0] == "messages":
        found = Conversation(_messages(row["messages"], where), place)
    elif form[0] == "prompt":
        found = _prompt_and_completion(row["prompt"], row["completion"], where, place)
    else:
        asked = [_text(row[name], where, name) for name in ("instruction", "input") if name in form]
        # As in Alpaca, the input is often there and empty.
        question = "\n\n".join(text for text in asked if text)
        found = _exchange(question, _text(row["output"], where, "output"), place)
    if not found.answers:
        raise DataError(f"{where}: there is no assistant turn with words in it, so there is nothing to learn from")
    return found


def _prompt_and_completion(prompt: Any, completion: Any, where: str, place: str) -> Conversation:
    if isinstance(prompt, list) and isinstance(completion, list):
        before = _messages(prompt, where)
        return Conversation((*before, *_messages(completion, where)), place, read_only=len(before))
    if isinstance(prompt, list) or isinstance(completion, list):
        raise DataError(f"{where}: prompt and completion must both be texts, or both lists of messages")
    return _exchange(_text(prompt, where, "prompt"), _text(completion, where, "completion"), place)


def _exchange(question: str, answer: str, place: str) -> Conversation:
    return Conversation(
        ({"role": "user", "content": question}, {"role": "assistant", "content": answer}), place, read_only=1
    )


def _messages(messages: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: {_EXPECTED}")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise DataError(f"{where}: every message needs a role and a text as its content")
        if message.get("role") not in _ROLES:
            raise DataError(f"{where}: the role {message.get('role')!r} is not one of {', '.join(_ROLES)}")
    return tuple({"role": m["role"], "content": _text(m["content"], where, "content")} for m in messages)


def _text(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {value!r}, and a text was expected")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {name} is not valid Unicode ({error})") from None
    return value
