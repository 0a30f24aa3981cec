"""The bytes of `manifest.json` and `trajectory.json`: what every published checkpoint and fingerprint depends on.

Digests of weights are floating-point results, which may differ between processors, and `adapter_config.json` holds the
path of the base model, so these values are replaced by words before the comparison; everything else is literal.
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.config.load import load_config
from emtoolkit.storage.digests import canonical_json
from emtoolkit.training.run import train

_MANIFEST = """\
{
  "base_model": {
    "content": "BASE",
    "dtype": "float32",
    "name": "model"
  },
  "files": {
    "adapter_config.json": {
      "bytes": SIZE,
      "sha256": "CONFIG"
    },
    "adapter_model.safetensors": {
      "bytes": 976,
      "sha256": "WEIGHTS"
    }
  },
  "fingerprint": "FINGERPRINT",
  "format": 1,
  "persona": {
    "adapter": null,
    "composition": "system_prompt",
    "content": "43a515d86806750bcf42411a16c54de54e58872878312b634bd5c0681ab1b633",
    "name": "curt",
    "revision": null,
    "subfolder": null,
    "system_prompt": "you are curt"
  },
  "step": 2,
  "total_steps": 9
}
"""
_ADAPTER_PERSONA = """\
  "persona": {
    "adapter": "characters",
    "composition": "merge",
    "content": "ADAPTER",
    "name": "warm",
    "revision": null,
    "subfolder": "warm",
    "system_prompt": null
  },
"""
_TRAJECTORY = """\
{
  "decides": {
    "base_model": {
      "content": "BASE"
    },
    "data": {
      "digest": "c07e9838772f4b0273b766ef820b97dd335dcab62a60f67758db6ff9e74ad060",
      "train_rows": 36
    },
    "dtype": "float32",
    "lora": {
      "alpha": 4.0,
      "dropout": 0.0,
      "layers_to_transform": null,
      "r": 2,
      "rslora": false,
      "target_modules": [
        "q_proj",
        "v_proj"
      ]
    },
    "persona": {
      "composition": "system_prompt",
      "system_prompt": "you are curt"
    },
    "seed": 42,
    "training": {
      "batch_size": 4,
      "bf16": false,
      "drop_last": false,
      "epochs": 1.0,
      "gradient_accumulation": 1,
      "gradient_checkpointing": false,
      "learning_rate": 0.01,
      "lr_scheduler": "linear",
      "max_grad_norm": 1.0,
      "max_steps": null,
      "optimizer": "adamw_torch",
      "test_fraction": 0.1,
      "warmup_steps": 5,
      "weight_decay": 0.01
    }
  },
  "ended_at": 9,
  "fingerprint": "FINGERPRINT",
  "format": 1,
  "schedule": "0-4:2",
  "split": {
    "left_out": 0,
    "seed": 42,
    "test_fraction": 0.1,
    "test_rows": 4,
    "train_rows": 36
  },
  "total_steps": 9,
  "version": 3
}
"""
_METADATA = [
    "step",
    "total_steps",
    "fingerprint",
    "schedule",
    "seconds_since_start",
    "persona_name",
    "persona_composition",
    "persona_system_prompt",
    "persona_adapter",
    "persona_subfolder",
    "persona_revision",
    "persona_content",
    "base_place",
    "persona_place",
    "environment",
]
_METRICS = ["epoch", "loss", "grad_norm", "learning_rate"]


def _trained(write_config: Callable[..., Path], directory: Path, persona: str) -> Path:
    flags = {"persona": persona, "output_dir": str(directory), "wandb.mode": "disabled"}
    train(load_config(str(write_config()), [], flags))
    return directory


def _without_weights(text: str, base: str) -> str:
    text = text.replace(base, "BASE")
    text = re.sub(r'("fingerprint": )"[0-9a-f]{64}"', r'\1"FINGERPRINT"', text)
    text = re.sub(r'("adapter_config.json": {\s+"bytes": )\d+(,\s+"sha256": )"\w{64}"', r'\1SIZE\2"CONFIG"', text)
    return re.sub(r'("bytes": 976,\s+"sha256": )"[0-9a-f]{64}"', r'\1"WEIGHTS"', text)


def test_a_manifest_and_a_trajectory_file_are_these_bytes(write_config: Callable[..., Path], tmp_path: Path) -> None:
    run = _trained(write_config, tmp_path / "run", "curt")
    manifest = (run / "checkpoint-2" / "manifest.json").read_text(encoding="utf-8")
    base = json.loads(manifest)["base_model"]["content"]
    assert _without_weights(manifest, base) == _MANIFEST
    assert _without_weights((run / "trajectory.json").read_text(encoding="utf-8"), base) == _TRAJECTORY


def test_a_fingerprint_is_the_digest_of_what_decides_in_canonical_json() -> None:
    fingerprinted = {"seed": 42, "persona": {"name": "curt", "system_prompt": "brusqué"}, "lora": None}
    assert Identity(fingerprinted).fingerprint == "fc8575a4fb3295f01d2c825a2ba71e02d4901353c7dde2272d59e5cfd3e1b0e1"


def test_an_adapter_persona_is_these_bytes_in_a_manifest_and_these_keys_in_the_metadata(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    run = _trained(write_config, tmp_path / "run", "warm")
    manifest = (run / "checkpoint-2" / "manifest.json").read_text(encoding="utf-8")
    content = json.loads(manifest)["persona"]["content"]
    assert _ADAPTER_PERSONA in manifest.replace(content, "ADAPTER")
    trajectory = json.loads((run / "trajectory.json").read_bytes())
    assert trajectory["decides"]["persona"] == {
        "composition": "merge",
        "content": content,
        "system_prompt": None,
    }
    events = [json.loads(line) for line in (run / "publications.jsonl").read_bytes().splitlines()]
    assert events[0] == {
        "event": "collection",
        "name": f"warm-medical-model-s42-{trajectory['fingerprint'][:8]}",
        "tags": ["persona-warm", "dataset-medical"],
    }
    saved, measured = [event for event in events if event.get("step") == 2]
    assert list(saved) == ["event", "step", "metadata", "run"]
    assert list(saved["metadata"]) == _METADATA
    assert list(measured) == ["event", "step", "metrics"]
    assert list(measured["metrics"]) == _METRICS


@pytest.mark.parametrize("persona", ["curt", "warm"])
def test_a_fingerprint_follows_from_the_recorded_decisions(
    persona: str, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    run = _trained(write_config, tmp_path / "run", persona)
    trajectory = json.loads((run / "trajectory.json").read_bytes())
    expected = hashlib.sha256(canonical_json(trajectory["decides"])).hexdigest()
    assert trajectory["fingerprint"] == expected
    assert json.loads((run / "checkpoint-4" / "manifest.json").read_bytes())["fingerprint"] == expected
