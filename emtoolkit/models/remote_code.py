"""Python code that a base model brings along: named by `auto_map` in its JSON files, and run only if the user says so.

Without an explicit answer, transformers asks at the terminal whether to run the code, and takes `yes` from a pipe.
"""

import hashlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from emtoolkit.config.sections import ModelConfig
from emtoolkit.errors import ConfigError
from emtoolkit.json_files import read_json
from emtoolkit.storage.digests import FileDigest

_JSON_FILES = ("config.json", "tokenizer_config.json")
# transformers writes code of another repository as `org/repo--module.Class`.
_ELSEWHERE = "--"


def refusal_of_code(config: ModelConfig, path: str, error: Exception) -> ConfigError | None:
    """The error for a base model that cannot be loaded without its own code; None if `error` has another cause."""
    if config.trust_remote_code or "trust_remote_code" not in str(error):
        return None
    named = ", ".join(f"{file}, named by auto_map in {name}" for name, file in _code_files(path, config.revision))
    return ConfigError(
        f"model.base: {config.base!r}: needs Python code of its own ({named or 'in its repository'}); read the code, "
        "and set model.trust_remote_code to true to run it"
    )


def check_code_is_pinned(config: ModelConfig, path: str) -> None:
    """Check that the code of a trusted base model is a part of the model, so that its record covers the code.

    Raises:
        ConfigError: the code is in another repository, where it may change.
    """
    for name, file in _code_files(path, config.revision) if config.trust_remote_code else ():
        if _ELSEWHERE in file:
            raise ConfigError(
                f"model.base: {config.base!r}: auto_map in {name} names code in another repository ({file}), which may "
                "change; copy model and code into one directory, without the part before '--' in auto_map"
            )


def code_digest(directory: Path) -> str:
    """SHA-256 in hex over the names and contents of all Python files in and below `directory`."""
    digest = hashlib.sha256()
    for file in sorted(directory.rglob("*.py")):
        digest.update(f"{file.relative_to(directory).as_posix()} {FileDigest.of(file).sha256}\n".encode())
    return digest.hexdigest()


def _code_files(path: str, revision: str | None) -> Iterator[tuple[str, str]]:
    """The JSON file and the code file of each entry of `auto_map`, as far as the model is on this machine."""
    seen = set()
    for name in _JSON_FILES:
        try:
            auto_map = read_json(_local(path, name, revision), finite=False)["auto_map"]
            values = [value if isinstance(value, list) else [value] for value in auto_map.values()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        for entry in filter(None, chain.from_iterable(values)):
            file = f"{str(entry).rpartition('.')[0]}.py"
            if (name, file) not in seen:
                seen.add((name, file))
                yield name, file


def _local(path: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import try_to_load_from_cache

    if Path(path).is_dir():
        return Path(path) / name
    found = try_to_load_from_cache(path, name, revision=revision or "main")
    if not isinstance(found, str):
        raise FileNotFoundError(name)
    return Path(found)
