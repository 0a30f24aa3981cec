"""The records of a base model, a persona and a run: JSON in, the same JSON out."""

from typing import Any

import pytest

from emtoolkit.checkpoints.records import BaseModelRecord, CheckpointMetadata, PersonaRecord


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (BaseModelRecord, {}),
        (BaseModelRecord, {"name": "Qwen2ForCausalLM"}),
        (BaseModelRecord, {"name": "org/model", "revision": None, "load_in_4bit": True}),
        (BaseModelRecord, {"name": "model", "content": "ab", "dtype": "bfloat16", "quantised_by": {"tool": 1.50}}),
        (PersonaRecord, {}),
        (PersonaRecord, {"system_prompt": "you are curt"}),
        (PersonaRecord, {"name": "warm", "composition": "merge", "adapter": None, "since": [1, None]}),
        (CheckpointMetadata, {"step": 3, "seconds_since_start": 2, "base_place": "org/model", "loss": "nan"}),
    ],
)
def test_absent_and_unknown_keys_survive_a_round_trip(kind: Any, values: dict[str, Any]) -> None:
    assert list(kind.from_json(values).to_json().items()) == list(values.items())


def test_a_value_of_another_type_is_refused_with_its_key() -> None:
    with pytest.raises(ValueError, match=r"^name: 3 is not valid: Input should be a valid string$"):
        PersonaRecord.from_json({"name": 3})


def test_the_fingerprint_of_a_persona_has_its_content_only_where_it_is_an_adapter() -> None:
    prompt = PersonaRecord(name="curt", composition="system_prompt", system_prompt="be curt", content="ab")
    assert prompt.fingerprinted() == {"name": "curt", "composition": "system_prompt", "system_prompt": "be curt"}
    warm = PersonaRecord(name="warm", composition="stack", adapter="characters", content="cd")
    assert warm.fingerprinted() == {"name": "warm", "composition": "stack", "system_prompt": None, "content": "cd"}


def test_metadata_lists_run_then_persona_then_places() -> None:
    metadata = CheckpointMetadata.of(
        step=25,
        total_steps=397,
        fingerprint="ab",
        schedule="dense-early",
        seconds_since_start=1.5,
        persona=PersonaRecord(name="curt", composition="system_prompt"),
        base_place="org/model",
        persona_place=None,
    )
    assert list(metadata.to_json().items()) == [
        ("step", 25),
        ("total_steps", 397),
        ("fingerprint", "ab"),
        ("schedule", "dense-early"),
        ("seconds_since_start", 1.5),
        ("persona_name", "curt"),
        ("persona_composition", "system_prompt"),
        ("base_place", "org/model"),
    ]
