"""Files of a model or an adapter that cannot be loaded, found by their first bytes before anything is loaded."""

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emtoolkit.checkpoints.layout import MODEL_INDEX
from emtoolkit.errors import ConfigError, first_line
from emtoolkit.json_files import LARGEST_JSON, object_in, parse_json, read_json, text_in
from emtoolkit.regular_files import check_regular, read_regular
from emtoolkit.storage.git_lfs import pointer_problem

_WEIGHTS = (".safetensors", ".bin")
_INDICES = (MODEL_INDEX, "pytorch_model.bin.index.json")
_OBJECTS = ("config.json", "generation_config.json", "tokenizer_config.json")
# Of UTF-8 and of UTF-16.
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def check_base_files(directory: Path, *, need_weights: bool) -> None:
    """Check the files of the base model in `directory`, as far as that takes no loading.

    Raises:
        ConfigError: a file is a git-lfs pointer, is cut off, or is named by an index and missing, or the directory
            holds no weights and must.
    """
    # A pipe is neither a file nor a directory; who opens one waits for a writer.
    for file in sorted(p for p in directory.iterdir() if p.suffix in _WEIGHTS or (p.exists() and not p.is_dir())):
        check_file(file, "model.base")
    if need_weights and not any(path.suffix in _WEIGHTS for path in directory.iterdir()):
        raise ConfigError(f"model.base: {directory}: holds no weights (no *.safetensors); download the model again")
    for name in _INDICES:
        if (directory / name).is_file():
            _check_index(directory / name)
    for name in _OBJECTS:
        if (directory / name).is_file():
            check_object(directory / name, "model.base")


def check_object(file: Path, key: str) -> Mapping[str, Any]:
    """The JSON object in `file`, which the config's `key` names and which another library reads.

    Raises:
        ConfigError: it holds none, or is encoded as that library does not read it.
    """
    try:
        content = read_regular(file, LARGEST_JSON)
        if content.startswith(_MARKS):
            raise ValueError("begins with a byte order mark; save the file in UTF-8 without")
        return object_in(parse_json(content, finite=False))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {file}: cannot be read ({first_line(error)})") from None


def check_file(file: Path, key: str) -> None:
    """Check that `file`, which the config's `key` names, is no git-lfs pointer and, for weights, is not cut off.

    Raises:
        ConfigError: it is; the text names the file.
    """
    try:
        check_regular(file)
        size = file.stat().st_size
        problem = pointer_problem(file)
        with file.open("rb") as opened:
            is_zip = opened.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise ConfigError(f"{key}: {file}: cannot be read ({error.strerror or error})") from None
    if problem is not None:
        raise ConfigError(f"{key}: {file}: {problem}")
    if file.suffix == ".safetensors":
        _check_safetensors(file, size, key)
    elif file.suffix in (".bin", ".pt", ".pth") and (size == 0 or (is_zip and not zipfile.is_zipfile(file))):
        raise ConfigError(f"{key}: {file}: is cut off after {size:,} bytes; download it again")


def _check_safetensors(file: Path, size: int, key: str) -> None:
    """The format: 8 bytes with the length of a JSON header, the header with the offsets of each tensor, the tensors."""
    again = f"{key}: {file}: %s; download or copy it again"
    with file.open("rb") as opened:
        first = opened.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if size < 8 + length or not length:
            looks_right = not length or opened.read(1) == b"{"
            raise ConfigError(again % (f"is cut off after {size:,} bytes" if looks_right else "is no safetensors file"))
        try:
            header = json.loads(opened.read(length))
            ends = [int(value["data_offsets"][1]) for name, value in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            raise ConfigError(again % "is no safetensors file") from None
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise ConfigError(again % f"is cut off: {size:,} of {whole:,} bytes are there")
    if size > whole:
        raise ConfigError(again % f"is damaged: it has {size:,} bytes, and its header describes {whole:,}")


def _check_index(index: Path) -> None:
    try:
        files = object_in(object_in(read_json(index)).get("weight_map"), "weight_map").values()
        names = sorted({text_in({"weight_map": name}, "weight_map") for name in files})
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.base: {index}: cannot be read ({first_line(error)}); download it again") from None
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ConfigError(
            f"model.base: {index}: names {missing[0]}, which is missing ({len(missing)} of {len(names)} files); "
            "download the model again"
        )
