"""A training whose loss or weights are no longer finite numbers is called that, at its step."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from emtoolkit.cli.app import main
from emtoolkit.config.load import load_config
from emtoolkit.errors import ConfigError, DivergedError
from emtoolkit.models.base import load_base
from emtoolkit.training.run import train
from emtoolkit.training.trainer import DivergenceNotingTrainer
from tests.saving.trainings import saved_steps

WriteConfig = Callable[..., Path]
ADVICE = "the checkpoints of earlier steps stay; lower training.learning_rate or training.max_grad_norm, or set"


@pytest.fixture
def diverge(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], None]:
    """Make the `loss`, or one of the `weights`, infinite in the training step that makes a step."""
    original = DivergenceNotingTrainer.__mro__[1].training_step  # type: ignore[attr-defined]  # of the Trainer's

    def from_step(step: int, what: str) -> None:
        def training_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = original(self, model, *args, **kwargs)
            if self.state.global_step + 1 < step:
                return loss
            if what == "weights":
                next(p for p in model.parameters() if p.requires_grad).grad.fill_(math.nan)
                return loss
            return loss * math.inf

        monkeypatch.setattr(DivergenceNotingTrainer.__mro__[1], "training_step", training_step)

    return from_step


def run(config: Path, directory: Path, *settings: str) -> Any:
    words = ["wandb.mode=disabled", *settings]
    return train(load_config(str(config), words, {"output_dir": str(directory)}))


@pytest.mark.parametrize(
    ("what", "settings", "sentence"),
    [
        ("loss", (), f"training diverged: the loss of step 5 is not a finite number; {ADVICE}"),
        # Nothing logs the step, and the weights of the next scheduled one are finite.
        ("loss", ("training.logging_steps=7",), "training diverged: the loss of step 5 is not a finite number; the"),
        # Clipping makes every weight of the adapter NaN.
        ("weights", (), "training diverged: the grad_norm of step 5 is nan; the checkpoints of earlier"),
        ("weights", ("training.logging_steps=50",), "training diverged: the loss of step 6 is not a finite number"),
        ("weights", ("training.logging_steps=50", "training.max_steps=5"), r"training diverged: .* of step 5 holds"),
        (
            "weights",
            ("training.logging_steps=50", "checkpointing.resume_every=1 steps"),
            "of step 5 holds numbers that",
        ),
    ],
)
def test_a_training_that_diverges_ends_at_its_step_and_the_finite_checkpoints_stay(
    write_config: WriteConfig,
    tmp_path: Path,
    diverge: Callable[[int, str], None],
    what: str,
    settings: tuple[str, ...],
    sentence: str,
) -> None:
    diverge(5, what)
    with pytest.raises(DivergedError, match=sentence):
        run(write_config("schedule: '0,every:2'"), tmp_path / "out", *settings)
    assert [step for step in saved_steps(tmp_path / "out") if step < 5] == [0, 2, 4]
    for file in (tmp_path / "out").rglob("adapter_model.safetensors"):
        for name, tensor in load_file(file).items():
            assert torch.isfinite(tensor).all(), (file, name)


def test_a_training_that_may_diverge_goes_on_and_says_that_the_persona_cannot_be_measured(
    write_config: WriteConfig, tmp_path: Path, diverge: Callable[[int, str], None]
) -> None:
    diverge(5, "weights")
    result = run(write_config("schedule: '0,4,8'"), tmp_path / "out", "training.on_nan=continue")
    assert saved_steps(tmp_path / "out") == [0, 4, 8, 9]
    assert str(result.persona_effects[-1]).endswith("cannot be measured at the end: the logits are not finite numbers")


def test_the_command_ends_with_one_sentence_and_exit_code_2(
    write_config: WriteConfig,
    tmp_path: Path,
    diverge: Callable[[int, str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    diverge(3, "loss")
    argv = ["emtoolkit", "train", str(write_config()), "--output-dir", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*argv, "--set", "wandb.mode=disabled"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last == (
        "emtoolkit: training diverged: the loss of step 3 is not a finite number; the checkpoints of earlier steps "
        "stay; lower training.learning_rate or training.max_grad_norm, or set training.on_nan to continue"
    )


def test_a_base_model_whose_logits_are_not_finite_is_named(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: Any) -> Any:
        model = load_base(config)
        model.get_output_embeddings().weight.data[3] = math.nan
        return model

    monkeypatch.setattr("emtoolkit.training.composed_model.load_base", broken)
    with pytest.raises(ConfigError, match=r"model\.base: before step 1 the logits of the probes are not finite"):
        run(write_config(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
