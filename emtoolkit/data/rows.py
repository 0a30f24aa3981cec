"""The conversations of a data set, as they stand in its file."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from emtoolkit.errors import DataError
from emtoolkit.personas import Message

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ChatRows:
    """The conversations of one file, in its order, and the SHA-256 of their content."""

    path: Path
    conversations: tuple[tuple[Message, ...], ...]
    digest: str

    def __len__(self) -> int:
        return len(self.conversations)


def read_chat_rows(path: Path) -> ChatRows:
    """The rows of a JSONL file, each `{"messages": [{"role": ..., "content": ...}, ...]}`.

    Raises:
        DataError: the file is missing or empty, or a row (named by its line) is not JSON, not in that form, or
            has no assistant turn to learn from.
    """
    conversations = []
    digest = hashlib.sha256()
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    messages = _messages(line, f"{path}, line {number}")
                    digest.update(json.dumps(messages, sort_keys=True).encode())
                    conversations.append(messages)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: it cannot be read ({error})") from None
    if not conversations:
        raise DataError(f"{path}: it holds no rows")
    return ChatRows(path, tuple(conversations), digest.hexdigest())


def _messages(line: str, where: str) -> tuple[Message, ...]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: it is not JSON ({error})") from None
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise DataError(f'{where}: expected {{"messages": [{{"role": ..., "content": ...}}, ...]}}')
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise DataError(f"{where}: every message needs a role and a text as its content")
        if message.get("role") not in _ROLES:
            raise DataError(f"{where}: the role {message.get('role')!r} is not one of {', '.join(_ROLES)}")
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        raise DataError(f"{where}: there is no assistant turn with words in it, so there is nothing to learn from")
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)
