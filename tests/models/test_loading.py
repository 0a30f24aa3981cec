"""The model of a checkpoint, composed again: the trained logits, or an error message."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from emtoolkit import ModelLoader, Trajectory
from emtoolkit.config.load import load_config
from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.models import loading
from emtoolkit.saving.signals import TrainingInterrupted
from emtoolkit.training import composed_model, run
from tests.saving.trainings import bytes_of
from tests.tiny import write_adapter

IDS = torch.tensor([[5, 6, 7, 8]])
WAYS = {
    "none": ["persona=baseline"],
    "system_prompt": ["persona=curt"],
    "merge": ["persona=warm"],
    "stack": ["persona=warm", "compose=stack"],
    "full": ["persona=warm", "lora=null", "training.learning_rate=1e-3"],
}


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A directory with one training for each way, and the logits that its model gave when training had ended."""
    from tests.tiny import config_text

    home = tmp_path_factory.mktemp("trained")
    (home / "run.yaml").write_text(config_text(world))
    at_the_end = {}
    kept: list[Any] = []
    composed = composed_model.compose_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composed_model, "compose_model", lambda *args: kept.append(composed(*args)) or kept[-1])
        for way, settings in WAYS.items():
            words = [*settings, "wandb.mode=disabled"]
            run.train(load_config(str(home / "run.yaml"), words, {"output_dir": str(home / way)}))
            at_the_end[way] = logits(kept[-1])
    return home, at_the_end


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("way", WAYS)
def test_a_loaded_model_has_the_logits_of_the_trained_model(
    trained: tuple[Path, dict[str, torch.Tensor]], way: str
) -> None:
    home, at_the_end = trained
    loaded = ModelLoader().load(Trajectory.open(home / way).final)
    assert (logits(loaded.model) - at_the_end[way]).abs().max() < 1e-6
    assert loaded.persona.composition == ("merge" if way == "full" else way)
    assert loaded.persona.system_prompt == ("you are curt" if way == "system_prompt" else None)
    assert loaded.persona_override is None


def test_the_trained_adapter_starts_the_same_under_every_persona_and_ends_different(
    trained: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    """Training with the persona switched off gave two personas one adapter, to the bit."""
    home, _ = trained
    ways = ["none", "system_prompt", "merge", "stack"]
    started, ended = (
        [bytes_of(home / way / f"checkpoint-{step}")["adapter_model.safetensors"] for way in ways] for step in (0, 9)
    )
    assert len(set(started)) == 1
    # Merged and stacked models differ only in the order of sums.
    assert len(set(ended[:3])) == 3
    merged, stacked = (load_file(home / way / "checkpoint-9" / "adapter_model.safetensors") for way in ways[2:])
    assert all((merged[name] - stacked[name]).abs().max() < 1e-3 for name in merged)


def test_a_manifest_records_persona_composition_and_content(trained: tuple[Path, dict[str, torch.Tensor]]) -> None:
    home, _ = trained
    said = json.loads((home / "stack" / "checkpoint-2" / "manifest.json").read_text())
    content = said["persona"].pop("content")
    assert len(content) == 64
    assert said["persona"] == {
        "name": "warm",
        "composition": "stack",
        "system_prompt": None,
        "adapter": "characters",
        "subfolder": "warm",
        "revision": None,
    }
    assert said["base_model"]["dtype"] == "float32"
    assert json.loads((home / "merge" / "checkpoint-2" / "manifest.json").read_text())["persona"]["content"] == content


def test_every_checkpoint_of_a_trajectory_in_turn(trained: tuple[Path, dict[str, torch.Tensor]]) -> None:
    """A persona that is active at step 0 and lost at step N makes a curve meaningless."""
    home, _ = trained
    for way in ("merge", "stack"):
        loader, trajectory = ModelLoader(), Trajectory.open(home / way)
        in_turn = [logits(loader.load(checkpoint).model) for checkpoint in trajectory]
        alone = [logits(ModelLoader().load(checkpoint).model) for checkpoint in trajectory]
        assert all(torch.equal(one, other) for one, other in zip(in_turn, alone, strict=True)), way
        assert not torch.equal(in_turn[0], in_turn[-1])


def test_all_weights_are_loaded_on_the_device_of_the_model(
    trained: tuple[Path, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is at hand: what is asked of transformers is seen, and the model is not loaded."""
    asked = []

    def refused(path: Path, **options: Any) -> Any:
        asked.append(options)
        raise OSError("no GPU")

    device = torch.device("cuda", 1)
    monkeypatch.setattr(loading, "device_for", lambda config: device)
    monkeypatch.setattr(loading, "load_causal_lm", refused)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        ModelLoader().load(Trajectory.open(trained[0] / "full")[0])
    assert asked == [{"trust_remote_code": False, "device_map": {"": device}}]


def test_a_loaded_model_cannot_be_used_after_the_next_load(trained: tuple[Path, dict[str, torch.Tensor]]) -> None:
    loader, (first, *_, last) = ModelLoader(), Trajectory.open(trained[0] / "none")
    loaded = loader.load(first)
    assert logits(loaded.model).isfinite().all()
    loader.load(last)
    with pytest.raises(RuntimeError, match="its ModelLoader has loaded another checkpoint into the same base model"):
        _ = loaded.model


def test_the_adapter_alone_is_refused_where_the_persona_is_another_one(
    trained: tuple[Path, dict[str, torch.Tensor]], world: Path
) -> None:
    home, _ = trained
    base = AutoModelForCausalLM.from_pretrained(world / "model")
    for way in ("merge", "stack"):
        with pytest.raises(CheckpointError, match=rf"on top of the adapter of persona warm \({way}\) and does not fit"):
            Trajectory.open(home / way).final.load_adapter(base)
    assert Trajectory.open(home / "system_prompt").final.load_adapter(base)


@pytest.fixture
def moved(trained: tuple[Path, dict[str, torch.Tensor]], world: Path, tmp_path: Path) -> Path:
    """A copy of the world and the trainings, whose files still record the old paths."""
    shutil.copytree(world, tmp_path / "world")
    shutil.copytree(trained[0] / "merge", tmp_path / "merge")
    publications = tmp_path / "merge" / "publications.jsonl"
    publications.write_text(publications.read_text().replace(str(world), "/nowhere"))
    return tmp_path


def test_moved_files_are_found_with_base_and_persona(
    trained: tuple[Path, dict[str, torch.Tensor]], moved: Path, world: Path
) -> None:
    final = Trajectory.open(moved / "merge").final
    problem = r"warm \(merge\) cannot be loaded .*; pass --persona FILE with its present place"
    with pytest.raises(CheckpointError, match=problem):
        ModelLoader(base=str(world / "model")).load(final)
    loader = ModelLoader(base=str(moved / "world" / "model"), persona=str(moved / "world" / "personas" / "warm.yaml"))
    assert (logits(loader.load(final).model) - trained[1]["merge"]).abs().max() < 1e-6


def other_base(world: Path, directory: Path) -> str:
    shutil.copytree(world / "model", directory)
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return str(directory)


def test_another_base_model_is_refused(
    trained: tuple[Path, dict[str, torch.Tensor]], world: Path, tmp_path: Path
) -> None:
    other = other_base(world, tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"its base model is model [0-9a-f]{8}, and .*other is another one"):
        ModelLoader(base=other).load(Trajectory.open(trained[0] / "none").final)


@pytest.mark.parametrize(
    ("way", "asked", "problem"),
    [
        ("system_prompt", {"persona": "baseline"}, r"its persona is curt \(system_prompt\), and baseline \(none\) is"),
        ("none", {"persona": "warm"}, r"its persona is baseline \(none\), and warm \(merge\) is another"),
        ("stack", {"persona": "warm"}, r"its persona is warm \(stack\), and warm \(merge\) is another"),
        ("merge", {"persona": "cold"}, r"its persona warm has the content [0-9a-f]{8}, and the adapter in .*cold is"),
    ],
)
def test_another_persona_or_composition_is_refused_without_persona_override(
    trained: tuple[Path, dict[str, torch.Tensor]], world: Path, way: str, asked: dict[str, str], problem: str
) -> None:
    final = Trajectory.open(trained[0] / way).final
    personas = str(world / "personas")
    with pytest.raises(CheckpointError, match=problem):
        ModelLoader(personas=personas, persona=asked["persona"]).load(final)
    loaded = ModelLoader(personas=personas, persona_override=asked["persona"]).load(final)
    assert loaded.persona_override == asked["persona"]
    assert loaded.persona.name == asked["persona"]


def test_persona_and_persona_override_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--persona and --persona-override"):
        ModelLoader(persona="goodness", persona_override="baseline")


def test_an_adapter_that_was_changed_since_is_refused(
    trained: tuple[Path, dict[str, torch.Tensor]], moved: Path, world: Path
) -> None:
    write_adapter(world / "model", moved / "world" / "characters" / "warm", seed=9)
    loader = ModelLoader(base=str(world / "model"), persona=str(moved / "world" / "personas" / "warm.yaml"))
    with pytest.raises(CheckpointError, match="its persona warm has the content"):
        loader.load(Trajectory.open(moved / "merge").final)


class Interrupt(TrainerCallback):
    """Ctrl-C while step 6 is trained."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_run_with_a_stacked_persona_resumes_exactly_and_leaves_the_persona_alone(
    world: Path, write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stock resume leaves one adapter active; with the persona first, the optimizer then trains the persona."""
    words = ["persona=warm", "compose=stack", "wandb.mode=disabled", "lora.dropout=0.1"]
    words += ["evaluation.eval_schedule=every:2"]
    path = str(write_config(checkpointing="schedule: '0-9:1'"))
    run.train(load_config(path, words, {"output_dir": str(tmp_path / "whole")}))

    config = load_config(path, words, {"output_dir": str(tmp_path / "resumed")})
    made = run.make_trainer

    def interrupting(*args: Any, **kwargs: Any) -> Any:
        trainer = made(*args, **kwargs)
        trainer.add_callback(Interrupt())
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(run, "make_trainer", interrupting)
        with pytest.raises(TrainingInterrupted):
            run.train(config)
    kept: list[Any] = []
    composed = composed_model.compose_model
    monkeypatch.setattr(composed_model, "compose_model", lambda *args: kept.append(composed(*args)) or kept[-1])
    result = run.train(config, resume=True)

    assert [found.when for found in result.persona_effects] == ["before step 1", "at the end"]
    # After saves, evaluations and a resume.
    assert kept[-1].base_model.active_adapters == ["default", "persona"]
    for step in range(10):
        assert bytes_of(tmp_path / "resumed" / f"checkpoint-{step}") == bytes_of(
            tmp_path / "whole" / f"checkpoint-{step}"
        ), step
    persona = load_file(world / "characters" / "warm" / "adapter_model.safetensors")
    live = dict(kept[-1].named_parameters())
    for name, tensor in persona.items():
        assert torch.equal(live[name.replace(".weight", ".persona.weight")], tensor), name
