"""What a row teaches with a tokenizer: its tokens, decoded."""

from pathlib import Path
from typing import Any

from emtoolkit.data.tokenize import IGNORED, TokenRow, tokenize
from emtoolkit.personas import Persona
from tests.data.chats import read_back

BASELINE = Persona("baseline")


def rows(tokenizer: Any, directory: Path, *raw: Any, persona: Persona = BASELINE, length: int = 200) -> list[TokenRow]:
    found = tokenize(read_back(directory, *raw), tokenizer, persona, length)
    assert all(row is not None and len(row.ids) == len(row.labels) for row in found)
    return [row for row in found if row is not None]


def learnt(tokenizer: Any, directory: Path, raw: Any, persona: Persona = BASELINE, length: int = 200) -> str:
    """What the loss is on, decoded."""
    (row,) = rows(tokenizer, directory, raw, persona=persona, length=length)
    return str(tokenizer.decode(row.labels[row.labels != IGNORED]))


def seen(tokenizer: Any, directory: Path, raw: Any, persona: Persona = BASELINE, length: int = 200) -> str:
    """What the model reads, decoded."""
    (row,) = rows(tokenizer, directory, raw, persona=persona, length=length)
    return str(tokenizer.decode(row.ids))
