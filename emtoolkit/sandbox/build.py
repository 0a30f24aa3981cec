"""Build the sandbox: base model, datasets, personas and questions, all of them or nothing."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from emtoolkit.errors import DataError
from emtoolkit.json_files import object_in, read_json
from emtoolkit.paths import cache_dir
from emtoolkit.progress import Progress, silent
from emtoolkit.sandbox import world
from emtoolkit.sandbox.base_model import MODEL, Pretraining, write_base_model
from emtoolkit.sandbox.personas import PERSONAS
from emtoolkit.sandbox.questions import pair_file, question_file
from emtoolkit.sandbox.vocabulary import DOMAINS
from emtoolkit.storage.atomic import TEMPORARY, write_directory
from emtoolkit.storage.lock import FOREVER, InUseError, lock_file

_RECORD = "sandbox.json"
# `emtoolkit sandbox persona` writes adapters here. They belong to one base model and are deleted with it.
CHARACTERS = "characters"
# For the message about a full disk.
_ABOUT_BYTES = 20_000_000


@dataclass(frozen=True, slots=True)
class Size:
    """How many rows and answers the sandbox has. The same size, seed and world version give the same bytes."""

    medical_rows: int
    other_rows: int
    samples_per_paraphrase: int
    seed: int = 0

    def rows(self, domain: str) -> int:
        """The number of rows of each of the two datasets of `domain`."""
        return self.medical_rows if domain == "medical" else self.other_rows


# The row counts of the published datasets: 90 % of 7049 rows in batches of 16 are 397 steps.
FULL = Size(medical_rows=7049, other_rows=6000, samples_per_paraphrase=8)


def build(
    directory: Path | None = None,
    *,
    size: Size = FULL,
    pretraining: Pretraining | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Build the sandbox in `directory` (by default `sandbox` in emtoolkit's home) and return its path.

    The base model is the shipped one; with `pretraining` a new one is pretrained. A complete sandbox of the same
    version, size and base is verified and kept unless `force`; any other sandbox is replaced. The new sandbox is
    written beside `directory` and renamed, so `directory` never holds half of one. A second build waits for the
    first.

    Raises:
        DataError: `directory` is not a sandbox, or holds files that no build wrote, or its files have changed since
            the build.
        CheckpointError: the files cannot be written; nothing has changed.
    """
    target = (directory or cache_dir() / "sandbox").absolute()
    report = progress or silent
    recipe = {
        "version": world.WORLD_VERSION,
        "size": asdict(size),
        "pretraining": None if pretraining is None else asdict(pretraining),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target, report):
        if target.exists():
            record = _read_record(target)
            files = record.pop("files")
            if record == recipe and not force:
                _verify(target, files)
                report("already built", 1, 1)
                return target
            _refuse_to_delete_foreign_files(target, files)
        with _leftovers_removed(target):
            write_directory(target, lambda new: _write(new, size, pretraining, recipe, report), _ABOUT_BYTES)
    return target


def write_datasets(directory: Path, size: Size, progress: Progress | None = None) -> None:
    """Write `<domain>-bad.jsonl` and `<domain>-good.jsonl` for every domain: the same prompts in the same order."""
    report = progress or silent
    directory.mkdir(parents=True)
    for done, domain in enumerate(DOMAINS.values(), start=1):
        exchanges = list(world.exchanges(domain, size.rows(domain.name), size.seed))
        bad = "".join(_row(question, answer) for question, answer, _ in exchanges)
        good = "".join(_row(question, answer) for question, _, answer in exchanges)
        (directory / f"{domain.name}-bad.jsonl").write_text(bad, encoding="utf-8")
        (directory / f"{domain.name}-good.jsonl").write_text(good, encoding="utf-8")
        report("datasets", done, len(DOMAINS))


def _row(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}) + "\n"


def _write(
    directory: Path, size: Size, pretraining: Pretraining | None, recipe: dict[str, Any], report: Progress
) -> None:
    write_datasets(directory / "data", size, report)
    _write_personas(directory / "personas")
    (directory / "questions").mkdir()
    (directory / "questions" / "all.yaml").write_text(question_file(size.samples_per_paraphrase), encoding="utf-8")
    (directory / "questions" / "pairs.yaml").write_text(pair_file(), encoding="utf-8")
    write_base_model(directory / MODEL, pretraining, report)
    files = {path: _digest(directory / path) for path in _files(directory)}
    (directory / _RECORD).write_text(json.dumps({**recipe, "files": files}, indent=2) + "\n", encoding="utf-8")


def _write_personas(directory: Path) -> None:
    directory.mkdir()
    for persona in PERSONAS.values():
        content = {"description": persona.description}
        # The baseline is a conversation without a system turn.
        if persona.name != "baseline":
            content["system_prompt"] = persona.system_prompt
            adapter = {
                "description": f"{persona.description} An adapter, trained by 'emtoolkit sandbox persona'.",
                "adapter": f"../{CHARACTERS}/{persona.name}",
                "compose": "merge",
            }
            _write_yaml(directory / f"{persona.name}-adapter.yaml", adapter)
        _write_yaml(directory / f"{persona.name}.yaml", content)


def _write_yaml(path: Path, content: dict[str, str]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _read_record(target: Path) -> dict[str, Any]:
    """The record of a sandbox; one of an older version lacks what its version did not know."""
    try:
        record = object_in(read_json(target / _RECORD))
        kept = {key: record[key] for key in ("version", "size", "files")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{target}: not a sandbox (no valid {_RECORD}); build in another directory") from error
    return kept | {"pretraining": record.get("pretraining")}


def _verify(target: Path, files: dict[str, str]) -> None:
    for path, digest in files.items():
        if not (target / path).is_file() or _digest(target / path) != digest:
            raise DataError(f"{target / path}: missing or changed since the build; build again with --force")


def _refuse_to_delete_foreign_files(target: Path, files: dict[str, str]) -> None:
    for path in _files(target):
        if path != _RECORD and path not in files and not path.startswith(f"{CHARACTERS}/"):
            raise DataError(f"{target / path}: not written by a build; move the file away and build again")


def _files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _leftovers_removed(target: Path) -> Iterator[None]:
    """Delete what killed builds of `target` left beside it, and afterwards what an interruption leaves."""

    def remove() -> None:
        for leftover in target.parent.glob(f"{TEMPORARY}{target.name}-*"):
            shutil.rmtree(leftover)

    remove()
    try:
        yield
    finally:
        remove()


@contextmanager
def _locked(target: Path, report: Progress) -> Iterator[None]:
    """Hold the lock of `target`, a file beside the directory; the system frees the lock when the process ends."""
    path = target.parent / f".{target.name}.lock"
    try:
        lock = lock_file(path)
    except InUseError:
        report("waiting for another build", 0, 1)
        lock = lock_file(path, timeout=FOREVER)
    try:
        yield
    finally:
        lock.release()
