"""The sandbox's base model: the one in the package, or a new one from `pretraining`."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from emtoolkit.progress import Progress

# W&B collections and manifests name the base model after its directory.
MODEL = "sandbox-qwen2-1m"
SHIPPED = Path(__file__).parent / "base"


@dataclass(frozen=True, slots=True)
class Pretraining:
    """How to pretrain a base model.

    The number of `threads` is part of the recipe: the order of floating-point sums, and with it every weight, depends
    on the threads. One thread is hardly slower than two for a model of this size.
    """

    steps: int = 1500
    documents_per_step: int = 8
    seed: int = 0
    threads: int = 1


def write_base_model(directory: Path, pretraining: Pretraining | None, progress: Progress) -> None:
    """Write model and tokenizer into `directory`, which this creates.

    Without `pretraining` the files are byte-for-byte copies of the shipped ones, the same on every machine.
    """
    if pretraining is None:
        directory.mkdir()
        for file in sorted(SHIPPED.iterdir()):
            # The bytes alone: the permissions of an installed package are of no use to a reader of the copy.
            shutil.copyfile(file, directory / file.name)
        return
    # Imported here: copying the shipped model takes a second, importing torch takes several.
    from emtoolkit.sandbox.pretraining import write_pretrained

    write_pretrained(directory, progress, **asdict(pretraining))
