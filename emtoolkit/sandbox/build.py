"""Build the sandbox: a base model, datasets, personas and questions, complete or not there at all."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import GenerationConfig, Qwen2ForCausalLM, Qwen2Tokenizer

from emtoolkit.errors import DataError
from emtoolkit.paths import cache_dir
from emtoolkit.progress import Progress, no_library_bars, silent
from emtoolkit.sandbox import world
from emtoolkit.sandbox.personas import PERSONAS
from emtoolkit.sandbox.pretraining import pretrain
from emtoolkit.sandbox.questions import question_file
from emtoolkit.sandbox.tokenizer import make_tokenizer
from emtoolkit.sandbox.vocabulary import DOMAINS

_RECORD = "sandbox.json"
# W&B collections and manifests call the base model by the name of its directory.
MODEL = "sandbox-qwen2-1m"
# Where `emtoolkit sandbox persona` puts adapters, which are those of one base model and go with it.
CHARACTERS = "characters"


@dataclass(frozen=True, slots=True)
class Size:
    """How much to build. The same size and world version give the same files, to the byte, on the same machine.

    The number of `threads` is a part of it because the order of floating-point sums, and so every weight, depends
    on it. One is hardly slower than two for so small a model, and far faster where other programs are running.
    """

    pretraining_steps: int
    documents_per_step: int
    medical_rows: int
    other_rows: int
    samples_per_paraphrase: int
    seed: int = 0
    threads: int = 1

    def rows(self, domain: str) -> int:
        """The number of rows of each of the two datasets of `domain`."""
        return self.medical_rows if domain == "medical" else self.other_rows


# The row counts are those of the published datasets: 90 % of 7049 rows are 397 steps of 16.
FULL = Size(pretraining_steps=1500, documents_per_step=8, medical_rows=7049, other_rows=6000, samples_per_paraphrase=8)
# For tests: everything is there, and nothing was learned.
TINY = Size(pretraining_steps=10, documents_per_step=4, medical_rows=200, other_rows=200, samples_per_paraphrase=1)


def build(
    directory: Path | None = None, *, size: Size = FULL, force: bool = False, progress: Progress | None = None
) -> Path:
    """Make the sandbox in `directory`, by default `sandbox` in emtoolkit's home, and return where it is.

    A complete sandbox of the same version and size is verified and left alone unless `force`; another one is
    replaced. All is written beside `directory` and renamed into place, so what is there is always complete.
    Two builds at once wait for each other.

    Raises:
        DataError: `directory` is something else than a sandbox, or holds files that no build wrote, or its
            files were changed since they were built.
    """
    target = (directory or cache_dir() / "sandbox").absolute()
    report = progress or silent
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target, report):
        if target.exists():
            record = _read_record(target)
            if not force and (record["version"], record["size"]) == (world.WORLD_VERSION, asdict(size)):
                _verify(target, record["files"])
                report("already built", 1, 1)
                return target
            _refuse_to_delete_what_no_build_wrote(target, record["files"])
        _replace(target, size, report)
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


def _replace(target: Path, size: Size, report: Progress) -> None:
    """Build beside `target`, then put it in its place. The caller holds the lock."""
    for leftover in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(leftover)
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        _write(partial, size, report)
        if target.exists():
            # A directory cannot be renamed onto another; between the two renames there is none, never half of one.
            target.rename(target.parent / f".{target.name}.partial-old-{os.getpid()}")
        partial.rename(target)
    finally:
        for leftover in target.parent.glob(f".{target.name}.partial-*"):
            shutil.rmtree(leftover)


def _write(directory: Path, size: Size, report: Progress) -> None:
    directory.mkdir()
    write_datasets(directory / "data", size, report)
    _write_personas(directory / "personas")
    (directory / "questions").mkdir()
    (directory / "questions" / "all.yaml").write_text(question_file(size.samples_per_paraphrase), encoding="utf-8")
    tokenizer = make_tokenizer(world.texts())
    with _threads(size.threads):
        model = pretrain(
            tokenizer,
            steps=size.pretraining_steps,
            batch=size.documents_per_step,
            seed=size.seed,
            progress=lambda step: report("pretraining", step, size.pretraining_steps),
        )
    _write_model(directory / MODEL, model, tokenizer)
    files = {path: _digest(directory / path) for path in _files(directory)}
    record = {"version": world.WORLD_VERSION, "size": asdict(size), "files": files}
    (directory / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _write_personas(directory: Path) -> None:
    directory.mkdir()
    for persona in PERSONAS.values():
        content = {"description": persona.description}
        # The baseline is what a conversation without a system turn gets, so it names none.
        if persona.name != "baseline":
            content["system_prompt"] = persona.system_prompt
            adapter = {
                "description": f"{persona.description} Trained into the weights; 'emtoolkit sandbox persona' makes it.",
                "adapter": f"../{CHARACTERS}/{persona.name}",
                "compose": "merge",
            }
            _write_yaml(directory / f"{persona.name}-adapter.yaml", adapter)
        _write_yaml(directory / f"{persona.name}.yaml", content)


def _write_yaml(path: Path, content: dict[str, str]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _write_model(directory: Path, model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer) -> None:
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        do_sample=True,
        top_k=0,
        max_new_tokens=32,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with no_library_bars():
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _read_record(target: Path) -> dict[str, Any]:
    try:
        record = json.loads((target / _RECORD).read_text(encoding="utf-8"))
        return {key: record[key] for key in ("version", "size", "files")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{target} exists and is not a sandbox (no valid {_RECORD}); build somewhere else") from error


def _verify(target: Path, files: dict[str, str]) -> None:
    for path, digest in files.items():
        if not (target / path).is_file() or _digest(target / path) != digest:
            raise DataError(f"{target / path} is missing or was changed since it was built; build again with force")


def _refuse_to_delete_what_no_build_wrote(target: Path, files: dict[str, str]) -> None:
    for path in _files(target):
        if path != _RECORD and path not in files and not path.startswith(f"{CHARACTERS}/"):
            raise DataError(f"{target / path} was not written by a build; move it away before building again")


def _files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(target: Path, report: Progress) -> Iterator[None]:
    """Hold the lock of `target`, a file beside it; the system frees it when the process ends, however it ends."""
    with (target.parent / f".{target.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another build", 0, 1)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
