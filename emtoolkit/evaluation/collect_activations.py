"""The activations that several machines read for one evaluation, merged as far as they were read on the same texts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from emtoolkit.errors import CheckpointError, DataError
from emtoolkit.evaluation.activations import texts_of
from emtoolkit.schedules.steps import elided
from emtoolkit.storage.atomic import write_file


@dataclass(frozen=True, slots=True)
class MergedActivations:
    """The file of each step, and a sentence for steps that are left out."""

    files: Mapping[int, Path]
    notes: tuple[str, ...] = ()

    def write(self, directory: Path) -> None:
        """Copy the files into `directory`.

        Raises:
            CheckpointError: a file cannot be written.
        """
        for step, path in self.files.items():
            target = directory / path.name
            if target.is_file() and target.samefile(path):
                continue
            try:
                directory.mkdir(parents=True, exist_ok=True)
                content = path.read_bytes()
            except OSError as error:
                raise CheckpointError(f"{target}: step {step} cannot be copied ({error.strerror or error})") from error
            write_file(target, content)


def merge_activations(places: Sequence[tuple[str, Path]], steps: Sequence[int]) -> MergedActivations:
    """The activations of `steps` among `places`, the name and the directory of each.

    Activations compare only on the same texts: those texts that most steps were read on are kept, of several the ones
    with the earliest step.

    Raises:
        CheckpointError: a file is damaged.
        DataError: two places differ in the activations of one step on the same texts.
    """
    by_texts: dict[str | None, dict[int, tuple[str, Path]]] = defaultdict(dict)
    for place, directory in places:
        for step in steps:
            path = directory / f"step-{step}.safetensors"
            if not path.is_file():
                continue
            known = by_texts[texts_of(path)].setdefault(step, (place, path))
            if known[1] != path and not _equal(known[1], path):
                raise DataError(
                    f"{known[0]} and {place}: step {step}: different activations of one checkpoint on the same texts; "
                    "leave one of the places out"
                )
    if not by_texts:
        return MergedActivations({})
    kept = max(by_texts.values(), key=lambda found: (len(found), -min(found)))
    notes = []
    if others := sorted({step for found in by_texts.values() for step in found} - {*kept}):
        notes.append(
            f"activations of step{'s' * (len(others) > 1)} {elided(others)} were read on other texts than those of "
            f"step {min(kept)} and are left out; extract them with the same --answers FILE on every machine"
        )
    if missing := sorted({*steps} - {*kept} - {*others}):
        notes.append(f"no place holds the activations of step{'s' * (len(missing) > 1)} {elided(missing)}")
    return MergedActivations({step: kept[step][1] for step in sorted(kept)}, tuple(notes))


def _equal(first: Path, second: Path) -> bool:
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape and torch.allclose(a[name], b[name], rtol=0, atol=0, equal_nan=True)
        for name in a
    )
