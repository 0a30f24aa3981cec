"""Python code that lies in a base model runs only if `model.trust_remote_code` says so, whatever stdin says."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emtoolkit import ModelLoader, Trajectory
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.config.load import load_config
from emtoolkit.config.sections import ModelConfig
from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.models.architecture import architecture_of
from emtoolkit.models.base import load_base, load_tokenizer
from emtoolkit.models.base_record import base_identity
from emtoolkit.training.run import train
from tests.in_process import emtoolkit

CONFIG = """
from pathlib import Path

from transformers import Qwen2Config

Path({marker!r}).touch()


class OwnConfig(Qwen2Config):
    model_type = "own"
"""
MODEL = """
from transformers import Qwen2ForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(Qwen2ForCausalLM):
    config_class = OwnConfig
"""
TOKENIZER = """
from pathlib import Path

from transformers import PreTrainedTokenizerFast

Path({marker!r}).touch()


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(autouse=True)
def _yes_from_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 100))


@pytest.fixture(scope="module", autouse=True)
def _modules_of_this_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies trusted code into one package, which Python imports once."""
    with pytest.MonkeyPatch.context() as patch:
        directory = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", directory)
        yield


def changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def base(world: Path, tmp_path: Path) -> Path:
    """The tiny model with a config and a class of its own; its code leaves the file `ran` when it runs."""
    base = shutil.copytree(world / "model", tmp_path / "base")
    (base / "configuration_own.py").write_text(CONFIG.format(marker=str(tmp_path / "ran")))
    (base / "modeling_own.py").write_text(MODEL)
    own = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    changed(base / "config.json", model_type="own", auto_map=own)
    return base


def model(base: Path, **values: Any) -> ModelConfig:
    return ModelConfig.model_validate({"base": str(base)} | values)


@pytest.mark.parametrize("load", [load_base, lambda config: architecture_of(config, None)], ids=["load", "plan"])
def test_code_in_a_base_model_is_refused_with_its_files_and_the_key(
    load: Callable[[ModelConfig], Any], base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(model(base))
    assert str(refused.value) == (
        f"model.base: '{base}': needs Python code of its own (configuration_own.py, named by auto_map in config.json, "
        "modeling_own.py, named by auto_map in config.json); read the code, and set model.trust_remote_code to true to "
        "run it"
    )
    assert not (tmp_path / "ran").exists()


def test_code_in_a_tokenizer_is_refused_and_run_when_it_is_trusted(base: Path, tmp_path: Path) -> None:
    (base / "tokenization_own.py").write_text(TOKENIZER.format(marker=str(tmp_path / "ran")))
    auto_map = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
    changed(base / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=auto_map)
    with pytest.raises(ConfigError, match=r"tokenization_own\.py, named by auto_map in tokenizer_config\.json"):
        load_tokenizer(model(base))
    assert not (tmp_path / "ran").exists()
    assert type(load_tokenizer(model(base, trust_remote_code=True))).__name__ == "OwnTokenizer"
    assert (tmp_path / "ran").exists()


def test_the_command_refuses_code_with_exit_code_2(
    base: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = write_config()
    for command in ("train", "plan"):
        done = emtoolkit(command, config, "--set", f"model.base={base}", cwd=tmp_path)
        assert (done.code, "set model.trust_remote_code to true" in done.err) == (2, True), done.err
    assert not (tmp_path / "ran").exists()


def test_trusted_code_is_in_the_fingerprint_and_a_checkpoint_loads_only_with_trust(
    base: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    settings = [f"model.base={base}", "model.trust_remote_code=true", "wandb.mode=disabled", "training.max_steps=2"]
    result = train(load_config(str(write_config("schedule: '0,2'")), settings, {"output_dir": str(tmp_path / "out")}))
    record = TrajectoryRecord.read_if_any(result.directory)
    assert record is not None
    assert record.fingerprinted["base_model"]["trust_remote_code"] is True
    assert len(record.fingerprinted["base_model"]["code"]) == 64

    checkpoint = Trajectory.open(result.directory).final
    with pytest.raises(CheckpointError, match=r"runs Python code of its own; read the code in .*base"):
        ModelLoader().load(checkpoint)
    loaded = ModelLoader(trust_remote_code=True).load(checkpoint)
    assert type(loaded.model.get_base_model()).__name__ == "OwnForCausalLM"

    (base / "modeling_own.py").write_text(MODEL + "\n# changed\n")
    with pytest.raises(CheckpointError, match="is another one"):
        ModelLoader(trust_remote_code=True).load(checkpoint)


def test_the_record_of_a_base_model_without_code_is_as_it_was(world: Path) -> None:
    assert sorted(base_identity(model(world / "model")).to_json()) == ["content", "name"]


def test_code_in_another_repository_is_refused_although_it_is_trusted(base: Path, tmp_path: Path) -> None:
    changed(base / "config.json", auto_map={"AutoConfig": "someone/code--configuration_own.OwnConfig"})
    with pytest.raises(ConfigError, match=r"names code in another repository \(someone/code--configuration_own\.py\)"):
        load_base(model(base, trust_remote_code=True))
