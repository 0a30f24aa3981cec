"""Tokenized rows on disk, so that equal rows are tokenized once: one file for each key in a directory.

The key is a digest of everything that decides the tokens (`key_of`). A file that is damaged, or belongs to another key,
is not used and is written anew. Writes are atomic and equal keys have equal content, so processes need no lock. A cache
that cannot be read or written changes nothing but the time of a run.
"""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import safetensors.numpy
import tokenizers
import transformers
from safetensors import SafetensorError, safe_open

import emtoolkit
from emtoolkit import personas
from emtoolkit.data.rendering import names_the_day
from emtoolkit.data.rows import ChatRows
from emtoolkit.data.tokenize import Tokenize, TokenRow, tokenize
from emtoolkit.errors import CheckpointError
from emtoolkit.paths import cache_dir
from emtoolkit.personas import Persona
from emtoolkit.progress import Progress, silent
from emtoolkit.storage.atomic import write_file

logger = logging.getLogger(__name__)

# The largest size of the directory in bytes; the files that were not used for the longest time are deleted first.
LIMIT = 2 * 2**30
_SEAL = "key and sha256"
_NO_ROW = -1  # the length of a row that is None

_Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TokenCache:
    """The cache in `directory`, of at most `limit` bytes, for chat templates that are told `day`."""

    directory: Path
    day: date
    limit: int = LIMIT

    def tokenize(
        self, chats: ChatRows, tokenizer: Any, persona: Persona, max_length: int, progress: Progress = silent
    ) -> list[TokenRow | None]:
        """The rows that `tokenize` gives, read from the cache if it holds them and kept there if not.

        Raises: as `tokenize`. No failure of the cache is raised.
        """
        key = key_of(chats, tokenizer, persona, max_length, self.day)
        if key is None:
            return tokenize(chats, tokenizer, persona, max_length, progress)
        path = self.directory / f"{key}.safetensors"
        if (found := _read(path, key)) is not None and len(found) == len(chats):
            progress(f"tokenizing {chats.source.name}", len(chats), len(chats))
            return found
        rows = tokenize(chats, tokenizer, persona, max_length, progress)
        try:
            self._keep(path, key, rows)
        except (CheckpointError, OSError) as error:
            logger.debug("the tokens of %s are not kept: %s", chats.source, error)
        return rows

    def _keep(self, path: Path, key: str, rows: Sequence[TokenRow | None]) -> None:
        arrays = _as_arrays(rows)
        if arrays is None or 2 * sum(array.nbytes for array in arrays.values()) > self.limit:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        write_file(path, safetensors.numpy.save(dict(arrays), {_SEAL: _seal(key, arrays)}))
        self._trim()

    def _trim(self) -> None:
        """Delete the files that were used last before the others, until the rest fits."""
        used = []
        for path in self.directory.iterdir():
            # Another process may delete the file at the same time.
            with suppress(FileNotFoundError):
                stat = path.stat()
                used.append((stat.st_mtime_ns, stat.st_size, path))
        total = 0
        for _, size, path in sorted(used, reverse=True):
            total += size
            if total > self.limit:
                path.unlink(missing_ok=True)


def tokenize_once(day: date) -> Tokenize:
    """`tokenize` with the cache `tokens/` in emtoolkit's cache directory, if there is one."""
    try:
        directory = cache_dir() / "tokens"
    except RuntimeError:
        # The user has no home directory, as in some containers.
        return tokenize
    return TokenCache(directory, day).tokenize


def key_of(chats: ChatRows, tokenizer: Any, persona: Persona, max_length: int, day: date) -> str | None:
    """A digest of everything that decides what `tokenize` returns; None for a tokenizer that is not transformers' own.

    Of a persona only the system prompt is rendered, and `day` counts if the chat template can ask for the time. The
    tokenizer counts by its content, which is the same wherever its files are.
    """
    kind = type(tokenizer)
    if not kind.__module__.startswith("transformers.") or not tokenizer.is_fast:
        return None
    digest = hashlib.sha256()
    # The digest of a dataset leaves out keys of messages that a chat template may write.
    rows = ((row.messages, row.read_only, row.tools) for row in chats.conversations)
    parts = (
        _versions(),
        kind.__qualname__,
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        getattr(tokenizer, "split_special_tokens", False),
        persona.system_prompt,
        max_length,
        day.isoformat() if names_the_day(tokenizer) else None,
        len(chats),
        *rows,
    )
    for part in parts:
        text = repr(part).encode(errors="surrogatepass")
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


@cache
def _versions() -> Mapping[str, str]:
    """The versions of all code between a row and its tokens; of emtoolkit's code, the digest of its files."""
    code = hashlib.sha256()
    for path in (*sorted(Path(__file__).parent.glob("*.py")), Path(personas.__file__)):
        code.update(path.read_bytes())
    return {
        "python": platform.python_version(),
        "emtoolkit": emtoolkit.__version__,
        "code": code.hexdigest(),
    } | {library.__name__: library.__version__ for library in (jinja2, tokenizers, transformers)}


def _as_arrays(rows: Sequence[TokenRow | None]) -> _Arrays | None:
    """`rows` as flat arrays, and their other facts as JSON; None if JSON changes a value."""
    present = [row for row in rows if row is not None]
    facts = {
        "shortened": [i for i, row in enumerate(rows) if row is not None and row.shortened],
        "remarks": {i: sorted(row.remarks) for i, row in enumerate(rows) if row is not None and row.remarks},
        "written": {i: list(map(list, row.written)) for i, row in enumerate(rows) if row is not None and row.written},
        "unwritten": {i: sorted(row.unwritten) for i, row in enumerate(rows) if row is not None and row.unwritten},
    }
    try:
        text = json.dumps(facts)
    except (TypeError, ValueError):
        return None
    written: dict[int, Any] = facts["written"]  # type: ignore[assignment]  # each value has a type of its own
    if repr(list(json.loads(text)["written"].values())) != repr(list(written.values())):
        return None
    empty = np.empty(0, np.int32)
    return {
        "lengths": np.array([_NO_ROW if row is None else len(row.ids) for row in rows], np.int64),
        "ids": np.concatenate([empty, *(row.ids for row in present)]),
        "labels": np.concatenate([empty, *(row.labels for row in present)]),
        "facts": np.frombuffer(text.encode(), np.uint8),
    }


def _read(path: Path, key: str) -> list[TokenRow | None] | None:
    """The rows in `path`; None if there is no such file, or not the one that was written."""
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
            if file.metadata() != {_SEAL: _seal(key, arrays)}:
                return None
        # The last use of the file, for `_trim`.
        with suppress(OSError):
            os.utime(path)
        return _as_rows(arrays)
    except (OSError, SafetensorError):
        return None


def _as_rows(arrays: _Arrays) -> list[TokenRow | None]:
    facts = json.loads(arrays["facts"].tobytes())
    shortened = set(facts["shortened"])
    rows: list[TokenRow | None] = []
    begin = 0
    for i, length in enumerate(arrays["lengths"].tolist()):
        if length == _NO_ROW:
            rows.append(None)
            continue
        part, name = slice(begin, begin + length), str(i)
        begin += length
        rows.append(
            TokenRow(
                arrays["ids"][part],
                arrays["labels"][part],
                i in shortened,
                frozenset(facts["remarks"].get(name, ())),
                tuple((turn, key, value) for turn, key, value in facts["written"].get(name, ())),
                frozenset(facts["unwritten"].get(name, ())),
            )
        )
    return rows


def _seal(key: str, arrays: _Arrays) -> str:
    """The key and the SHA-256 of the arrays; one text, as safetensors writes several in any order."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data)
    return f"{key} {digest.hexdigest()}"
