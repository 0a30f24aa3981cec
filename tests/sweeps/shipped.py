"""The shipped sweep files, and fast versions of them for the tiny world."""

from pathlib import Path

import yaml

SWEEPS = Path(__file__).parents[2] / "sweeps"


def fast_version(name: str, config: Path, directory: Path) -> Path:
    """`sweeps/<name>.yaml` with `config` for the sandbox, and personas and schedules for a run of nine steps."""
    content = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())
    content["command"] = [str(config) if word == "sandbox" else word for word in content["command"]]
    content["parameters"] |= {
        "persona": {"values": ["baseline", "curt"]},
        "schedule": {"values": ["every:4", "0,log2:8"]},
    }
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
