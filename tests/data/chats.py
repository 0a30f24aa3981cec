"""Rows as tests write them."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

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


CALL = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"topic": "knee"}'}}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


def turn(role: str, content: Any, **beside: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **beside}


def write_gz(path: Path, rows: list[Any]) -> None:
    path.write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in rows).encode()))


def write_json(path: Path, rows: list[Any]) -> None:
    path.write_text(json.dumps(rows, indent=1))


def write_parquet(path: Path, rows: list[Any]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


CONTAINERS: dict[str, Callable[[Path, list[Any]], Any]] = {
    ".jsonl": write_lines,
    ".jsonl.gz": write_gz,
    ".json": write_json,
    ".parquet": write_parquet,
}


def messages(rows: ChatRows) -> list[list[tuple[str, str]]]:
    return [[(m["role"], m["content"]) for m in row.messages] for row in rows.conversations]
