"""What users get: a light import, and a wheel that carries its presets, personas and configs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "wandb", "peft", "datasets", "pydantic")


@pytest.mark.subprocess
def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, emtoolkit; emtoolkit.Schedule; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_public_names_are_these() -> None:
    import emtoolkit

    names = [
        "Checkpoint",
        "GenerationEvalCallback",
        "ModelLoader",
        "Schedule",
        "ScheduledCheckpointCallback",
        "Trajectory",
        "UserError",
        "load_config",
        "train",
    ]
    assert dir(emtoolkit) == emtoolkit.__all__ == names
    assert [getattr(emtoolkit, name).__name__ for name in names] == names
    assert not hasattr(emtoolkit, "Schedul")


@pytest.mark.subprocess
def test_a_wheel_finds_its_presets_and_configs_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import emtoolkit\n"
        "from emtoolkit.config.load import load_config\n"
        "from emtoolkit.personas import load_persona\n"
        "print(emtoolkit.__file__, len(emtoolkit.Schedule.parse('pythia').steps(143000)),"
        " load_config('sandbox').training.learning_rate > 0, load_persona('sarcasm').name)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n{code}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout == f"{tmp_path / 'site' / 'emtoolkit' / '__init__.py'} 154 True sarcasm\n"
    assert (tmp_path / "site" / "emtoolkit" / "py.typed").exists()
    weights = Path("emtoolkit") / "sandbox" / "base" / "model.safetensors"
    assert (tmp_path / "site" / weights).read_bytes() == (ROOT / weights).read_bytes()
