"""Two runs of `emtoolkit train` share a fingerprint exactly if they are one training."""

import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from emtoolkit.checkpoints.trajectory_identity import is_one_trajectory
from emtoolkit.config.load import load_config
from emtoolkit.errors import CheckpointError
from emtoolkit.storage.digests import canonical_json
from emtoolkit.training import prepare as preparing
from emtoolkit.training.prepare import prepare
from emtoolkit.training.run import train

Facts = Callable[..., dict[str, Any]]


@pytest.fixture
def facts(write_config: Callable[..., Path], tmp_path: Path) -> Facts:
    """The facts in the fingerprint of a run with these settings."""
    config = write_config()

    def of(*settings: str, **flags: str) -> dict[str, Any]:
        options = {"output_dir": str(tmp_path / "run"), "wandb.mode": "disabled"} | flags
        return dict(prepare(load_config(str(config), settings, options)).identity.fingerprinted)

    return of


def test_what_is_in_force_by_default_adds_nothing_to_the_fingerprint(facts: Facts) -> None:
    plain = facts()
    assert plain.keys() == {"base_model", "data", "dtype", "lora", "persona", "seed", "training"}
    for setting in ("model.attn_implementation=sdpa", "model.device=cpu", "training.deterministic=false"):
        assert facts(setting) == plain


def test_two_spellings_of_one_training_have_one_fingerprint(facts: Facts) -> None:
    plain = canonical_json(facts())
    for settings in (
        ["training.warmup_steps=5"],
        ["training.warmup_steps=5.0", "training.epochs=1", "training.max_grad_norm=1", "lora.dropout=-0.0"],
        ["lora.alpha=4.0", "training.batch_size=4.0", "seed=42.0", "training.learning_rate=1e-2"],
        ["lora.target_modules=[v_proj, q_proj, v_proj]"],
        ["model.revision=null", "training.max_steps=null", "compose=null", "lora.layers_to_transform=null"],
    ):
        assert canonical_json(facts(*settings)) == plain, settings


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["training.weight_decay=0"], ["training.weight_decay=-0.0"]),
        (["lora={r: 2}"], ["lora={r: 2.0, alpha: 6.4e1}"]),
        # Beside `max_steps` the Trainer ignores the epochs, and a constant rate has no warmup.
        (["training.max_steps=9"], ["training.max_steps=9", "training.epochs=3"]),
        (["training.lr_scheduler=constant"], ["training.lr_scheduler=constant", "training.warmup_steps=0"]),
        (["lora.layers_to_transform=[0]"], ["lora.layers_to_transform=[0, 0]"]),
    ],
)
def test_what_the_trainer_ignores_is_one_training(first: list[str], second: list[str], facts: Facts) -> None:
    assert canonical_json(facts(*first)) == canonical_json(facts(*second))


def test_another_number_has_another_fingerprint(facts: Facts) -> None:
    settings = ["training.warmup_steps=4", "training.epochs=2", "lora.alpha=64", "training.weight_decay=0", "lora.r=3"]
    assert len({canonical_json(facts(*setting)) for setting in ([], *([each] for each in settings))}) == 6


def test_the_numbers_of_a_fingerprint_keep_the_spelling_of_the_shipped_configs(facts: Facts) -> None:
    """`alpha` is written out there, and `warmup_steps` is not."""
    plain = facts("lora.alpha=64")
    assert (repr(plain["lora"]["alpha"]), repr(plain["training"]["warmup_steps"])) == ("64.0", "5")
    assert repr(facts("training.warmup_steps=10")["training"]["warmup_steps"]) == "10.0"


def test_another_attention_is_in_the_fingerprint(facts: Facts) -> None:
    assert facts("model.attn_implementation=eager") == facts() | {"attention": "eager"}


def test_the_device_is_in_the_fingerprint_unless_it_is_the_cpu(facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = facts()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert facts() == plain | {"device": "cuda"}
    assert facts("model.device=cpu") == plain


@pytest.mark.parametrize(
    ("name", "value", "added"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", {"precision": "fp16"}),
        ("ACCELERATE_MIXED_PRECISION", "no", {}),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", {"compiled": "inductor"}),
        ("ACCELERATE_DYNAMO_BACKEND", "NO", {}),
    ],
)
def test_what_accelerate_launch_switches_on_is_in_the_fingerprint(
    name: str, value: str, added: dict[str, Any], facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = facts()
    monkeypatch.setenv(name, value)
    assert facts() == plain | added


def test_bfloat16_by_the_environment_is_the_trajectory_of_bfloat16_by_the_config(
    facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured, plain = facts("training.bf16=true"), facts()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert facts("training.bf16=true") == facts() == configured != plain


def another_base(world: Path, tmp_path: Path, **files: str) -> str:
    base = tmp_path / "model"
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(world / "model", base)
    for name, text in files.items():
        path = base / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return f"model.base={base}"


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize(
    "files",
    [
        {"special_tokens_map_dot_json": '{"pad_token": "kind"}'},
        {"added_tokens_dot_json": '{"<x>": 400}'},
        {"additional_chat_templates__default_dot_jinja": TEMPLATE},
    ],
)
def test_files_of_a_tokenizer_that_say_more_are_in_the_fingerprint(
    files: dict[str, str], facts: Facts, world: Path, tmp_path: Path
) -> None:
    with_file = facts(another_base(world, tmp_path, **files))
    assert with_file == facts() | {"tokenizer_files": with_file["tokenizer_files"]}


@pytest.mark.parametrize(
    "files",
    [
        {"special_tokens_map_dot_json": '{"eos_token": {"content": "<|im_end|>", "lstrip": false}}'},
        {"added_tokens_dot_json": '{"<|im_end|>": 2}'},
        {"vocab_dot_json": '{"kind": 0}'},
        {"modeling_own_dot_py": "raise SystemExit"},
        {"README_dot_md": "read me"},
    ],
)
def test_files_that_say_nothing_more_are_not_in_the_fingerprint(
    files: dict[str, str], facts: Facts, world: Path, tmp_path: Path
) -> None:
    assert facts(another_base(world, tmp_path, **files)) == facts()


def test_the_order_of_target_modules_is_not_in_the_fingerprint(facts: Facts) -> None:
    assert facts("lora.target_modules=[v_proj, q_proj]") == facts()
    assert facts("lora.target_modules=[k_proj, q_proj]") != facts()


def continued(config: Path, directory: Path, *settings: str, **flags: str) -> str:
    """The fingerprint of a run that is begun with the config alone, and resumed with the settings."""
    options = {"output_dir": str(directory), "wandb.mode": "disabled"}
    train(load_config(str(config), [], options))
    before = (directory / "trajectory.json").read_bytes()
    shutil.rmtree(directory / "checkpoint-9")
    again = load_config(str(config), list(settings), options | flags)
    assert train(again, resume=True).trained
    assert (directory / "trajectory.json").read_bytes() == before
    manifests = [json.loads(file.read_bytes()) for file in directory.glob("checkpoint-*/manifest.json")]
    assert len({manifest["fingerprint"] for manifest in manifests}) == 1
    return str(manifests[0]["fingerprint"])


@pytest.fixture
def renamed(world: Path, tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """Settings and flags that name the base model and the persona otherwise, and a `max_length` that no row reaches."""
    shutil.copytree(world / "model", tmp_path / "scratch" / "renamed")
    shutil.copy(world / "personas" / "curt.yaml", tmp_path / "brusque.yaml")
    settings = [f"model.base={tmp_path / 'scratch' / 'renamed'}/", "training.max_length=80"]
    return settings, {"persona": str(tmp_path / "brusque.yaml")}


Renamed = tuple[list[str], dict[str, str]]


def test_names_of_files_and_an_unreached_max_length_are_not_in_the_fingerprint(facts: Facts, renamed: Renamed) -> None:
    settings, flags = renamed
    assert facts(*settings, **flags) == facts()


def test_names_of_files_and_an_unreached_max_length_do_not_stop_a_resume(
    write_config: Callable[..., Path], tmp_path: Path, renamed: Renamed
) -> None:
    settings, flags = renamed
    continued(write_config(), tmp_path / "run", *settings, **flags)
    configs = {file.read_bytes() for file in (tmp_path / "run").glob("checkpoint-*/adapter_config.json")}
    assert len(configs) == 1
    assert json.loads(configs.pop())["base_model_name_or_path"] is None


def test_a_directory_of_version_2_is_continued_under_its_own_fingerprint(
    write_config: Callable[..., Path], tmp_path: Path, renamed: Renamed
) -> None:
    """Version 2 had these names and the `max_length` in the fingerprint."""
    config, directory = write_config(), tmp_path / "run"
    options = {"output_dir": str(directory), "wandb.mode": "disabled"}
    train(load_config(str(config), [], options))
    record = json.loads((directory / "trajectory.json").read_bytes())
    assert record["version"] == 3
    decides = record["decides"]
    decides["base_model"]["name"], decides["persona"]["name"] = "model", "curt"
    decides["training"]["max_length"] = 64
    fingerprint = hashlib.sha256(canonical_json(decides)).hexdigest()
    assert fingerprint != record["fingerprint"]
    for manifest in directory.glob("checkpoint-*/manifest.json"):
        manifest.write_text(manifest.read_text().replace(record["fingerprint"], fingerprint))
    record |= {"version": 2, "fingerprint": fingerprint}
    (directory / "trajectory.json").write_bytes(canonical_json(record))
    shutil.rmtree(directory / "checkpoint-9")
    settings, flags = renamed
    with pytest.raises(CheckpointError, match=r"another trajectory \(seed is 42 there and 7 here\)"):
        prepare(load_config(str(config), ["seed=7"], options), allow_missing=True)
    train(load_config(str(config), settings, options | flags), resume=True)
    manifests = [json.loads(file.read_bytes()) for file in directory.glob("checkpoint-*/manifest.json")]
    assert {manifest["fingerprint"] for manifest in manifests} == {fingerprint}
    assert json.loads((directory / "trajectory.json").read_bytes())["version"] == 2


def test_a_max_length_that_a_row_exceeds_is_another_trajectory(write_config: Callable[..., Path], facts: Facts) -> None:
    longest, shorter = facts(), facts("training.max_length=20")
    assert shorter["data"].keys() & {"shortened", "dropped"}
    assert not is_one_trajectory(longest, 2, shorter)


def test_a_directory_of_version_1_is_continued_whatever_it_does_not_say(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """Version 1 did not record the attention, which may have been eager all along."""
    config, directory = write_config(), tmp_path / "run"
    options = {"output_dir": str(directory), "wandb.mode": "disabled"}
    eager = load_config(str(config), ["model.attn_implementation=eager"], options)
    plain = load_config(str(config), [], options)
    train(plain)
    with pytest.raises(CheckpointError, match="attention is None there and 'eager' here"):
        prepare(eager, allow_missing=True)
    record = json.loads((directory / "trajectory.json").read_bytes())
    assert record.pop("version") == 3
    (directory / "trajectory.json").write_bytes(canonical_json(record))
    found = prepare(eager, allow_missing=True)
    assert found.identity.fingerprint != record["fingerprint"]
    assert not train(eager, resume=True).trained


CLOCK_TEMPLATE = "today is {{ strftime_now('%d %b %Y') }} " + TEMPLATE


def test_a_template_that_asks_for_the_time_gets_the_day_on_which_the_run_began(
    write_config: Callable[..., Path], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = another_base(world, tmp_path, chat_template_dot_jinja=CLOCK_TEMPLATE)
    config = write_config()

    class Clock(date):
        now = date(2026, 1, 2)

        @classmethod
        def today(cls) -> "date":  # type: ignore[override]  # a plain date
            return cls.now

    monkeypatch.setattr(preparing, "date", Clock)

    def prepared(run: str, day: date) -> Any:
        Clock.now = day
        flags = {"output_dir": str(tmp_path / run), "wandb.mode": "disabled"}
        return prepare(load_config(str(config), [base, "training.max_length=128"], flags))

    first, second = prepared("a", date(2026, 1, 2)), prepared("b", date(2026, 3, 4))
    assert first.identity.fingerprinted["day"] == "2026-01-02"
    assert second.identity.fingerprint != first.identity.fingerprint
    assert list(second.data.train["input_ids"]) != list(first.data.train["input_ids"])
    text = first.data.tokenizer.decode(first.data.train[0]["input_ids"])
    assert "02 Jan 2026" in text
    # A record in the directory decides the day of a run that is resumed there.
    (tmp_path / "b").mkdir()
    recorded = {"decides": dict(first.identity.fingerprinted), "fingerprint": first.identity.fingerprint}
    rest = {"total_steps": 9, "schedule": "0", "ended_at": None, "version": 2}
    (tmp_path / "b" / "trajectory.json").write_bytes(canonical_json(recorded | rest))
    resumed = prepared("b", date(2026, 3, 4))
    assert resumed.identity.fingerprint == first.identity.fingerprint
    assert list(resumed.data.train["input_ids"]) == list(first.data.train["input_ids"])
