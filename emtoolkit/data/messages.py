"""The turns of a row: their roles and texts in one form, and the keys that stand beside them."""

import json
from collections.abc import Mapping
from typing import Any

from emtoolkit.errors import DataError, nearest, shown
from emtoolkit.personas import Message

# The roles of the Hugging Face and OpenAI formats, and those of ShareGPT.
_ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "function": "tool",
    "observation": "tool",
}
_MEANT = dict.fromkeys(("bot", "model", "ai", "chatgpt", "bing", "bard", "function_call"), "assistant")
_MEANT |= {"ipython": "tool", "tool_response": "tool", "instruction": "system"}
# Texts and calls that a chat template writes into a turn. They are content, and therefore in the digest.
REASONING = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call")
CONTENT_KEYS = (*REASONING, *CALLS)
_DIGESTED = ("role", "content", "weight", *CONTENT_KEYS)
# Other tools' ways to leave an answer out of the loss.
_OTHER_WEIGHTS = ("train", "training", "trainable", "loss", "loss_weight", "train_detail", "mask")
NOT_TEXT = ("image", "images", "audio", "audios", "video", "videos", "files")


def read_messages(messages: Any, expected: str) -> tuple[Message, ...]:
    """The turns in `messages`, with plain texts as their contents; null keys and null system turns are left out.

    Raises:
        DataError: the value is not a list of turns, or a turn says something that cannot be trained on; the text
            `expected` describes the format.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError(expected)
    return tuple(found for message in messages if (found := _read(message)) is not None)


def digested(message: Message) -> Message:
    """The keys of `message` that belong to the content of its row."""
    return {key: value for key, value in message.items() if key in _DIGESTED}


def other_keys(message: Message) -> Message:
    """The keys of `message` that no format describes; a chat template may write them."""
    return {key: value for key, value in message.items() if key not in _DIGESTED}


def text(value: Any, name: str) -> str:
    """`value`, if it is a text that can be encoded.

    Raises:
        DataError: it is not; the message calls the value `name`.
    """
    if not isinstance(value, str):
        raise DataError(f"{name} is {value!r}; expected a text")
    _check_unicode(value, name)
    return value


def read_tools(value: Any) -> list[dict[str, Any]]:
    """The descriptions of tools in the column `tools`: a list of JSON schemas, or the JSON text of one.

    Raises:
        DataError: the value is something else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            raise DataError(f"tools is {shown(value)}; expected a list of tools, or its JSON text") from None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise DataError(f"tools is {shown(value)}; expected a list of tools, or its JSON text")
    _check_unicode(json.dumps(value, ensure_ascii=False, default=str), "tools")
    return [dict(tool) for tool in value]


def _read(message: Any) -> Message | None:
    """One turn; None for a system turn without a text."""
    if not isinstance(message, Mapping):
        raise DataError("every message needs a role and a text as its content")
    given = {str(key): value for key, value in message.items() if value is not None}
    role = _role(_taken(given, "role", "from"))
    content = _taken(given, "content", "value")
    if content is None and role == "system":
        return None
    beside = _beside(role, given)
    if content is None and any(key in beside for key in CALLS):
        content = ""
    if not isinstance(content, str | list):
        raise DataError("every message needs a role and a text as its content")
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    return {"role": role, "content": text(content, "content"), **beside}


def _taken(given: dict[str, Any], name: str, alias: str) -> Any:
    """Remove `name` or `alias` from `given`, and return its value; None without one."""
    if name in given and alias in given:
        raise DataError(f"a message has both {name} and {alias}; keep only one")
    return given.pop(name, given.pop(alias, None))


def _role(value: Any) -> str:
    if value is None:
        raise DataError("every message needs a role and a text as its content")
    if isinstance(value, str) and value in _ROLES:
        return _ROLES[value]
    meant = _MEANT.get(str(value).lower())
    hint = f"; did you mean {meant!r}?" if meant else nearest(str(value), _ROLES)
    raise DataError(f"the role {value!r} is not one of system, user, assistant, tool{hint}")


def _part(part: Any) -> str:
    """The text of one part of a content."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        extra = [key for key, value in part.items() if value is not None and key not in ("type", "text")]
        if extra:
            raise DataError(f"a part of a content has the key {extra[0]!r} beside its text; remove the key")
        return text(part.get("text"), "the text of a part")
    if kind in REASONING or kind == "redacted_thinking":
        raise DataError(f"a content has a part of type {kind!r}; write the thoughts into reasoning_content")
    if kind is not None:
        raise DataError(
            f"a content has a part of type {kind!r}, and only texts can be trained on; remove the part, or the row"
        )
    raise DataError(f'a content has the part {part!r}; expected {{"type": "text", "text": ...}}')


def _beside(role: str, given: Mapping[str, Any]) -> Message:
    """The keys beside role and content, checked and in one form; an empty text or list counts as absent."""
    found: Message = {}
    for key, value in given.items():
        if key == "weight":
            if _weight(role, value) == 0:
                found["weight"] = 0
        elif key in _OTHER_WEIGHTS:
            raise DataError(f"a message has the key {key!r}; an answer that is not learnt has weight 0 instead")
        elif key in NOT_TEXT:
            if value:
                raise DataError(f"a message has {key}, and only texts can be trained on; remove the row")
        elif key in REASONING:
            if text(value, key).strip():
                found[key] = value
        elif key in CALLS:
            if value:
                found[key] = _calls(key, value)
        else:
            found[key] = value
    return found


def _weight(role: str, value: Any) -> int:
    if not isinstance(value, int | float) or value not in (0, 1):
        raise DataError(f"weight is {value!r}; expected 0 for an answer that is not learnt, or 1")
    if value == 1 and role != "assistant":
        raise DataError(f"weight is 1 in a turn of the {role}, and only answers are learnt; remove the key")
    return int(value) if role == "assistant" else 1


def _calls(key: str, value: Any) -> Any:
    """The calls of functions, with arguments that are JSON texts parsed: chat templates write them as JSON."""
    calls = value if isinstance(value, list) else [value]
    if (key == "tool_calls") != isinstance(value, list) or not all(isinstance(call, Mapping) for call in calls):
        raise DataError(f"{key} is {value!r}; expected a list of calls, each with the name of a function")
    found = [
        {**call, "function": _call(key, call["function"])}
        if isinstance(call.get("function"), Mapping)
        else _call(key, call)
        for call in calls
    ]
    _check_unicode(json.dumps(found, ensure_ascii=False, default=str), key)
    return found if isinstance(value, list) else found[0]


def _call(key: str, call: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(call.get("name"), str):
        raise DataError(f"{key} has the call {shown(dict(call))}; expected the name of a function")
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            raise DataError(f"{key}: the arguments {shown(arguments)} of {call['name']} are not JSON") from None
        arguments = parsed if isinstance(parsed, dict) else arguments
    return {**call, **({} if arguments is None else {"arguments": arguments})}


def _check_unicode(value: str, name: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} is not valid Unicode ({error})") from None
