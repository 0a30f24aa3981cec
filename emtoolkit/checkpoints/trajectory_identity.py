"""The identity of a trajectory: everything that decides its weights, and the fingerprint that names it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emtoolkit.checkpoints.records import BaseModelRecord, PersonaRecord
from emtoolkit.storage.digests import canonical_json

# The version of the facts in a fingerprint. Version 2 knows more facts than version 1; version 3 leaves out those that
# decide nothing (`deciding`).
VERSION = 3
# Facts that came with version 2: of a directory of version 1 they are not known, and not compared.
_SINCE_VERSION_2 = (
    "attention",
    "compiled",
    "day",
    "device",
    "matmul",
    "precision",
    "tokenizer_files",
)


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything that decides the weights along a training path; the schedule is not in it.

    `fingerprinted` is hashed; `base_model` and `persona` are also repeated in each manifest for readers. `collection`
    begins the name of the W&B collection: `<persona>-<dataset>-<base>-s<seed>`. `base_place` and `persona_place` are
    the directories or hub ids from which this run loads the base model and the persona's adapter; they go into the
    metadata of each checkpoint and into none of its files. `split` is for readers and follows from the rest: how many
    rows are trained on and held out, and the seed of the split. `version` is that of the facts in `fingerprinted`.
    """

    fingerprinted: Mapping[str, Any]
    base_model: BaseModelRecord = field(default_factory=BaseModelRecord)
    persona: PersonaRecord = field(default_factory=PersonaRecord)
    base_place: str | None = None
    persona_place: str | None = None
    collection: str = "run"
    tags: tuple[str, ...] = ()
    split: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex over the canonical JSON of `fingerprinted`."""
        return hashlib.sha256(canonical_json(self.fingerprinted)).hexdigest()


def is_one_trajectory(recorded: Mapping[str, Any], version: int, fingerprinted: Mapping[str, Any]) -> bool:
    """Whether facts recorded in `version` and `fingerprinted` decide the same weights.

    They may have two fingerprints: those before version 3 hold facts that do not decide.
    """
    here = dict(fingerprinted)
    if version < 2:
        for name in _SINCE_VERSION_2:
            here.pop(name, None)
    return deciding(recorded) == deciding(here)


def deciding(fingerprinted: Mapping[str, Any]) -> dict[str, Any]:
    """The facts without those that do not decide: names of files whose content is known, the order of modules, and a
    `max_length` that no row reaches. A key that the trainer ignores beside another has its default.
    """
    facts = {key: dict(value) if isinstance(value, Mapping) else value for key, value in fingerprinted.items()}
    base, persona, lora, data, training = (
        facts[key] if isinstance(facts.get(key), dict) else {}
        for key in ("base_model", "persona", "lora", "data", "training")
    )
    if "content" in base:
        base.pop("name", None)
    persona.pop("name", None)
    if facts.get("precision") == "bf16":
        # The environment asked for what `training.bf16` asks for.
        training["bf16"] = True
        facts.pop("precision")
    if isinstance(targets := lora.get("target_modules"), list):
        lora["target_modules"] = sorted(set(targets))
    if isinstance(layers := lora.get("layers_to_transform"), list):
        lora["layers_to_transform"] = sorted(set(layers))
    if training.get("max_steps") is not None and "epochs" in training:
        training["epochs"] = 1.0
    if training.get("lr_scheduler") == "constant" and "warmup_steps" in training:
        training["warmup_steps"] = 5
    # They are recorded where a row was longer.
    if data.get("train_rows") is not None and not data.keys() & {"shortened", "dropped"}:
        training.pop("max_length", None)
    return facts
