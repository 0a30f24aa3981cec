"""A checkpoint's records of its base model, its persona and its run, with the keys of each JSON object.

`manifest.json` holds a `BaseModelRecord` and a `PersonaRecord`; `publications.jsonl` and the metadata of a W&B artifact
hold a `CheckpointMetadata`. Every key is declared here and nowhere else. `from_json` followed by `to_json` returns
the same object: a key that was absent stays absent, and a key that this version does not know is kept.
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from emtoolkit.errors import shown

# The compositions of a persona whose weights are an adapter.
_ADAPTER_COMPOSITIONS = ("merge", "stack")


class _Record(BaseModel):
    # Pydantic remembers which fields were given: `to_json` writes a None that was given as null, and no other None.
    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The record in a JSON object.

        Raises:
            ValueError: a key that is declared here holds a value of another type.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ValueError(f"{key}: {shown(first['input'])} is not valid: {first['msg']}") from None

    def to_json(self) -> dict[str, Any]:
        """The JSON object: the declared keys that were given, in their order here, then the unknown ones."""
        return self.model_dump(exclude_unset=True)


class BaseModelRecord(_Record):
    """A base model: a directory is recorded with `content`, a hub id with `revision`."""

    name: str | None = None
    """The hub id, the last part of a directory's path, or the name of a class."""
    content: str | None = None
    """SHA-256 in hex over the files of a directory that decide the logits."""
    revision: str | None = None
    """The commit on the hub; before a download the configured revision."""
    load_in_4bit: bool | None = None
    """Whether the weights are quantised to 4 bits; absent where they are not."""
    trust_remote_code: bool | None = None
    """Whether Python code of the base model is run; absent where none is."""
    code: str | None = None
    """SHA-256 in hex over the Python files of a directory; absent where none is run."""
    dtype: str | None = None
    """The floating-point type that the weights are loaded in, such as `bfloat16`; only in a manifest."""

    def __str__(self) -> str:
        known = self.content or self.revision
        return f"{self.name} {known[:8]}" if known else str(self.name)


class PersonaRecord(_Record):
    """Everything needed to reproduce a persona and to distinguish it from others; a bare Trainer records none of it."""

    name: str | None = None
    """The name of the persona."""
    composition: str | None = None
    """How the persona enters the model: `none`, `system_prompt`, `merge` or `stack`."""
    system_prompt: str | None = None
    """The system prompt; null for the other compositions."""
    adapter: str | None = None
    """The hub id of the adapter, or the last part of its directory's path; null for a persona without an adapter."""
    subfolder: str | None = None
    """The subfolder of `adapter` that holds the files."""
    revision: str | None = None
    """The commit of `adapter` on the hub; null for a directory."""
    content: str | None = None
    """SHA-256 in hex of the system prompt, or of the adapter's config and weights."""

    @property
    def has_adapter(self) -> bool:
        """Whether the persona is an adapter, merged or stacked."""
        return self.composition in _ADAPTER_COMPOSITIONS

    def fingerprinted(self) -> dict[str, Any]:
        """The values that decide the weights; the place where the adapter was found does not."""
        decides = {"name": self.name, "composition": self.composition, "system_prompt": self.system_prompt}
        return decides | ({"content": self.content} if self.has_adapter else {})


class CheckpointMetadata(_Record):
    """One run's record of a checkpoint; none of it is in the checkpoint's own files.

    The metrics that the Trainer logged at this very step (`loss`, `eval_loss`, `grad_norm`, `learning_rate`, …) and the
    step's `epoch` follow the declared keys under their own names. A metric that was not logged at the step is absent.
    The Trainer's `loss` is the mean over the steps since it was logged before.
    """

    step: int | None = None
    """The optimizer step that was saved."""
    total_steps: int | None = None
    """The number of optimizer steps in the whole run."""
    fingerprint: str | None = None
    """The fingerprint of the trajectory."""
    schedule: str | None = None
    """The schedule of the run, in the schedule grammar."""
    seconds_since_start: int | float | None = None
    """Wall time from the beginning of training to the save, in seconds."""
    persona_name: str | None = None
    """`PersonaRecord.name`, and so on for each key of the record."""
    persona_composition: str | None = None
    persona_system_prompt: str | None = None
    persona_adapter: str | None = None
    persona_subfolder: str | None = None
    persona_revision: str | None = None
    persona_content: str | None = None
    base_place: str | None = None
    """The directory or hub id from which this run loaded the base model."""
    persona_place: str | None = None
    """The directory or hub id from which this run loaded the persona's adapter."""
    environment: dict[str, str] | None = None
    """What decides the bytes beside the fingerprint, such as `torch: 2.13.0`; absent where it is not known, or where
    the training changed its environment."""
    saved_for: str | None = None
    """`interruption` or `asked`: why a step was saved that is not in the schedule; absent for a scheduled step."""
    resumed_with_differences: float | None = None
    """The largest absolute difference of a weight in an earlier step that a resumed run computed again; absent where
    no step differed."""

    @classmethod
    def of(
        cls,
        *,
        step: int,
        total_steps: int,
        fingerprint: str,
        schedule: str,
        seconds_since_start: float,
        persona: PersonaRecord,
        base_place: str | None,
        persona_place: str | None,
        environment: Mapping[str, str] | None = None,
    ) -> Self:
        """The metadata of one save, before its metrics are known; a place or environment that is None is left out."""
        places = {"base_place": base_place, "persona_place": persona_place}
        return cls.model_validate(
            {
                "step": step,
                "total_steps": total_steps,
                "fingerprint": fingerprint,
                "schedule": schedule,
                "seconds_since_start": seconds_since_start,
                **{f"persona_{key}": value for key, value in persona.to_json().items()},
                **{key: place for key, place in places.items() if place is not None},
                **({} if environment is None else {"environment": dict(environment)}),
            }
        )
