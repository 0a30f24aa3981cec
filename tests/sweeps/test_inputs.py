"""The digest of what a run reads: contents count, comments and formats do not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.sweeps.inputs import InputDigests

WriteConfig = Callable[..., Path]
PERSONA = "description: x\nsystem_prompt: be short\n"
ROWS = [{"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "a"}]} for i in range(9)]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "p.yaml").write_text(PERSONA)
    (tmp_path / "q.yaml").write_text("- id: a\n  paraphrases: [what]\n")
    (tmp_path / "d.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return tmp_path


def digest(write_config: WriteConfig, files: Path, *settings: str, rest: str = "", rows: str = "d.jsonl") -> str | None:
    probe = f"evaluation: {{probe: {{questions: '{files / 'q.yaml'}', eval_steps: 3}}}}"
    words = [f"persona={files / 'p.yaml'}", f"dataset={files / rows}", *settings]
    return InputDigests().of(load_config(str(write_config(rest=f"{probe}\n{rest}")), words))


def test_what_a_run_does_not_train_on_changes_no_digest(write_config: WriteConfig, files: Path) -> None:
    before = digest(write_config, files)
    assert before is not None
    (files / "p.yaml").write_text(f"# a comment\n{PERSONA}")
    (files / "q.yaml").write_text("# a comment\n- {id: a, paraphrases: [what]}\n")
    (files / "d.jsonl").unlink()
    (files / "d.json").write_text(json.dumps(ROWS, indent=3))
    others = ["wandb.project=other", "training.logging_steps=3", "training.epochs=1.0", "output_dir=x"]
    assert digest(write_config, files, *others, rest="# a comment\nseed: 42", rows="d.json") == before


def test_what_a_run_trains_on_changes_the_digest(
    write_config: WriteConfig, files: Path, tmp_path: Path, world: Path
) -> None:
    found = [digest(write_config, files)]
    settings = ("training.learning_rate=0.5", "lora=null", "seed=1", "checkpointing.schedule='0,3'")
    found += [digest(write_config, files, setting) for setting in settings]
    (files / "p.yaml").write_text("system_prompt: be long\n")
    found.append(digest(write_config, files))
    (files / "q.yaml").write_text("- id: a\n  paraphrases: [what else]\n")
    found.append(digest(write_config, files))
    (files / "d.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS[1:]))
    found.append(digest(write_config, files))
    (tmp_path / "base").mkdir()
    for file in (world / "model").iterdir():
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    # A copy of the base model is the same.
    assert digest(write_config, files, f"model.base={tmp_path / 'base'}") == found[-1]
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    found.append(digest(write_config, files, f"model.base={tmp_path / 'base'}"))
    assert None not in found
    assert len(set(found)) == len(found)


def test_there_is_no_digest_of_what_is_not_here(write_config: WriteConfig, files: Path) -> None:
    (files / "d.jsonl").unlink()
    assert digest(write_config, files) is None
