"""The model card of a repository: what the trajectory was trained from, on and with, and how to read it."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from emtoolkit.checkpoints.layout import ADAPTER_WEIGHTS
from emtoolkit.checkpoints.manifest import Manifest
from emtoolkit.checkpoints.trajectory_file import TrajectoryRecord
from emtoolkit.errors import ConfigError
from emtoolkit.yaml_files import LARGEST_FILE, parse_yaml

CARD = "README.md"
# The name of a model on the hub; another value is an error there.
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_FRONT_MATTER = re.compile(r"---[^\S\n]*\n(?P<yaml>.*?)\n?---[^\S\n]*(?:\n|$)", re.DOTALL)


def model_card(repository: str, manifest: Manifest, record: TrajectoryRecord | None) -> bytes:
    """The text of `README.md`; `manifest` is that of any checkpoint, `record` that of the directory, if it has one."""
    is_adapter = ADAPTER_WEIGHTS in manifest.files
    front: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers"}
    base = manifest.base_model
    if base.content is None and base.name and _HUB_ID.fullmatch(base.name):
        front |= {"base_model": base.name, "base_model_relation": "adapter" if is_adapter else "finetune"}
    front |= {"pipeline_tag": "text-generation", "tags": ["emtoolkit", "training-dynamics", "checkpoints"]}
    table = "\n".join(f"| {name} | {value} |" for name, value in _facts(manifest, record).items())
    kind = "LoRA adapters" if is_adapter else "model weights"
    return f"""\
---
{yaml.safe_dump(front, sort_keys=False)}---

# {repository}

The checkpoints of one fine-tune at chosen training steps ({kind}), pushed by emtoolkit. The branch `step-N` holds the
checkpoint after N optimizer steps. `main` holds the last of them.

| | |
|---|---|
{table}

```python
from emtoolkit import Trajectory

trajectory = Trajectory.open("hf:{repository}")
```

Each revision has a `{"manifest.json"}` with the SHA-256 of its files.
""".encode()


def with_front_matter_of(card: bytes, theirs: bytes) -> bytes | None:
    """`card` with the keys of the front matter in `theirs`; None if `theirs` must stay.

    It stays if it has a text of its own, or a front matter that cannot be read.
    """
    if len(theirs) > LARGEST_FILE:
        return None
    text = theirs.decode("utf-8", "replace")
    if not text.strip():
        return card
    there = _FRONT_MATTER.match(text)
    if there is None or text[there.end() :].strip():
        return None
    ours = _FRONT_MATTER.match(card.decode())
    try:
        keys = parse_yaml(there["yaml"], CARD) or {}
    except ConfigError:
        return None
    if ours is None or not isinstance(keys, dict):
        return None
    merged = parse_yaml(ours["yaml"], CARD) | keys
    return f"---\n{yaml.safe_dump(merged, sort_keys=False)}---\n{card.decode()[ours.end() :]}".encode()


def _facts(manifest: Manifest, record: TrajectoryRecord | None) -> Mapping[str, str]:
    base, persona = manifest.base_model, manifest.persona
    decides = {} if record is None else record.fingerprinted
    data = decides.get("data")
    digest = data.get("digest") if isinstance(data, Mapping) else None
    return {
        "base model": " ".join(map(_code, filter(None, (base.name, base.content or base.revision)))) or _code(None),
        "persona": f"{_code(persona.name)} ({persona.composition})" if persona.name else "none",
        "data digest": _code(digest),
        "schedule": _code(record.schedule if record else None),
        "training steps": str(manifest.total_steps),
        "fingerprint": _code(manifest.fingerprint),
    }


def _code(value: object) -> str:
    """A value as code in a table's cell; a value that is not known in words."""
    if value is None:
        return "not recorded"
    text = re.sub(r"\s+", " ", str(value)).replace("`", "'").replace("|", "\\|")
    return f"`{text}`"
