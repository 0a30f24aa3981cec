"""Commands that a user pastes into a POSIX shell, with whatever characters a path has."""

import shlex
from pathlib import Path


def shell_command(*words: str | Path) -> str:
    """`words` as a line that a POSIX shell splits into these words again.

    A relative path that begins with a hyphen gets `./` in front, so that no program takes the path for an option.
    """
    return " ".join(map(_word, words))


def quoted_command(*words: str | Path) -> str:
    """`shell_command` in quotes for a sentence: in backticks if the command has quotes itself."""
    line = shell_command(*words)
    return f"'{line}'" if "'" not in line else f"`{line}`"


def _word(word: str | Path) -> str:
    text = str(word)
    return shlex.quote(f"./{text}" if isinstance(word, Path) and text.startswith("-") else text)
