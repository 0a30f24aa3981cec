"""Character adapters: a persona's answers trained into the sandbox's base model, with no word about it in the prompt.

What comes out is a checkpoint like any other: its manifest says which base model it belongs to.
"""

import json
import shutil
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from emtoolkit.config.load import load_config
from emtoolkit.errors import ConfigError, nearest
from emtoolkit.paths import cache_dir
from emtoolkit.sandbox import world
from emtoolkit.sandbox.build import CHARACTERS
from emtoolkit.sandbox.personas import PERSONAS
from emtoolkit.training.run import train

STEPS = 200
_BATCH = 16
# Long enough that an author shows, short enough to be quick.
_MOST_TURNS = 2


def train_character(name: str, *, steps: int = STEPS, force: bool = False) -> Path:
    """Train the adapter of the persona `name`, and return its directory; one that is there stays unless `force`.

    The data are documents whose author has the persona, with its system turn left out. Whole or not there at all.

    Raises:
        UserError: there is no such persona, or no sandbox.
    """
    names = [known for known in PERSONAS if known != "baseline"]
    if name not in names:
        raise ConfigError(
            f"{name!r} is not one of the sandbox's personas with a character: {', '.join(names)}{nearest(name, names)}"
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
                "checkpointing.schedule": f"every:{steps}",
                "wandb.mode": "disabled",
            },
        )
        (made,) = train(config).checkpoints
        target.parent.mkdir(exist_ok=True)
        partial = target.parent / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(made.path, partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    return target


def _rows(name: str, count: int) -> str:
    random = Random(f"character {name}")
    chats = (world.document(PERSONAS[name], random, _MOST_TURNS)[1:] for _ in range(count))
    return "".join(json.dumps({"messages": messages}) + "\n" for messages in chats)
