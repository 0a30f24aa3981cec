"""Files of a base model's directory that decide tokens, beside those in the digest of its content."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emtoolkit.json_files import read_json
from emtoolkit.storage.digests import FileDigest

# Read in place of `tokenizer.json` where that is missing.
_SLOW = ("vocab.json", "merges.txt", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")
_DEFAULT_TEMPLATE = "additional_chat_templates/default.jinja"


def holds_tokenizer(directory: Path) -> bool:
    """Whether a file in `directory` can be a vocabulary: without one transformers makes an empty tokenizer."""
    return any(next(directory.glob(pattern), None) is not None for pattern in ("tokenizer.json", *_SLOW))


def tokenizer_digest(directory: Path) -> str | None:
    """A digest of the files of a tokenizer that say more than `tokenizer.json` and its config; None without one."""
    files = [directory / _DEFAULT_TEMPLATE]
    if not _repeats(directory / "special_tokens_map.json", directory / "tokenizer_config.json"):
        files.append(directory / "special_tokens_map.json")
    if not _repeats_tokens(directory):
        files.append(directory / "added_tokens.json")
    if not (directory / "tokenizer.json").is_file():
        files += [file for pattern in _SLOW for file in directory.glob(pattern)]
    return _digest(directory, files)


def _digest(directory: Path, files: Iterable[Path]) -> str | None:
    found = sorted({file for file in files if file.is_file()})
    digest = hashlib.sha256()
    for file in found:
        digest.update(f"{file.relative_to(directory).as_posix()} {FileDigest.of(file).sha256}\n".encode())
    return digest.hexdigest() if found else None


def _repeats(file: Path, config: Path) -> bool:
    """Whether every special token in `file` is the one in `config`."""
    tokens, known = _json(file), _json(config)
    if not isinstance(tokens, dict) or not isinstance(known, dict):
        return not file.is_file()
    return all(_text(value) == _text(known.get(name)) for name, value in tokens.items())


def _repeats_tokens(directory: Path) -> bool:
    """Whether every token in `added_tokens.json` is in `tokenizer.json`, under the same id."""
    added, tokenizer = _json(directory / "added_tokens.json"), _json(directory / "tokenizer.json")
    if not isinstance(added, dict) or not isinstance(tokenizer, dict):
        return not (directory / "added_tokens.json").is_file()
    known = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())}
    return added.items() <= known.items()


def _text(token: Any) -> Any:
    """The text of a token, which some files hold with its flags."""
    if isinstance(token, list):
        return list(map(_text, token))
    return token.get("content") if isinstance(token, dict) else token


def _json(file: Path) -> Any:
    try:
        return read_json(file, finite=False)
    except (OSError, ValueError):
        return None
