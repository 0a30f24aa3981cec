"""Train character adapters: a persona's answers in the weights of an adapter, with no system prompt.

An adapter is a checkpoint like any other, and its manifest names its base model.
"""

import json
from pathlib import Path
from random import Random
from shutil import copytree
from tempfile import TemporaryDirectory

from emtoolkit.config.load import load_config
from emtoolkit.errors import ConfigError, nearest
from emtoolkit.paths import cache_dir
from emtoolkit.sandbox import world
from emtoolkit.sandbox.build import CHARACTERS
from emtoolkit.sandbox.personas import PERSONAS
from emtoolkit.storage.atomic import write_directory
from emtoolkit.training.run import train

STEPS = 200
_BATCH = 16
# Two turns show an author; longer documents cost more time.
_MOST_TURNS = 2


def train_character(name: str, *, steps: int = STEPS, force: bool = False) -> Path:
    """Train the adapter of the persona `name` and return its directory; an existing adapter is kept unless `force`.

    The training data are documents by authors of the persona, without the system turn. The directory appears after
    every file is on disk.

    Raises:
        UserError: the sandbox has no such persona, or is not built.
    """
    names = [known for known in PERSONAS if known != "baseline"]
    if name not in names:
        raise ConfigError(
            f"persona {name!r}: no character of the sandbox; choose from {', '.join(names)}{nearest(name, names)}"
        )
    target = cache_dir() / "sandbox" / CHARACTERS / name
    if target.exists() and not force:
        return target
    with TemporaryDirectory(prefix="emtoolkit-character-") as scratch:
        rows = Path(scratch) / f"{name}.jsonl"
        rows.write_text(_rows(name, steps * _BATCH), encoding="utf-8")
        config = load_config(
            "sandbox",
            flags={
                "dataset": str(rows),
                "output_dir": str(Path(scratch) / "run"),
                "training.test_fraction": 0.0,
                "training.learning_rate": 2e-3,
                "training.max_length": 256,
                "lora.r": 16,
                "lora.alpha": 32,
                "lora.target_modules": "all-linear",
                "checkpointing.schedule": f"every:{steps}",
                "wandb.mode": "disabled",
            },
        )
        (made,) = train(config).checkpoints
        target.parent.mkdir(exist_ok=True)
        write_directory(target, lambda new: copytree(made.path, new, dirs_exist_ok=True), made.bytes)
    return target


def _rows(name: str, count: int) -> str:
    random = Random(f"character {name}")
    chats = (world.document(PERSONAS[name], random, _MOST_TURNS)[1:] for _ in range(count))
    return "".join(json.dumps({"messages": messages}) + "\n" for messages in chats)
