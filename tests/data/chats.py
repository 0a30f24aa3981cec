"""Rows as tests write them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emtoolkit.data.rows import ChatRows, read_rows
from emtoolkit.data.sources import File


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read_back(directory: Path, *rows: Any, name: str = "rows.jsonl") -> ChatRows:
    """`rows` by way of a file, as a run gets them."""
    return read_rows(File(write_lines(directory / name, rows)))


def turns(*contents: str, system: str | None = None) -> dict[str, Any]:
    """A conversation: question, answer, question, answer, …"""
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return {"messages": said if system is None else [{"role": "system", "content": system}, *said]}
