"""The record of a persona in a manifest."""

from emtoolkit.models.persona_record import persona_record
from emtoolkit.personas import Persona


def test_a_manifest_records_a_system_prompt_with_its_digest() -> None:
    assert persona_record(Persona("curt", system_prompt="you are curt")).to_json() == {
        "name": "curt",
        "composition": "system_prompt",
        "system_prompt": "you are curt",
        "adapter": None,
        "subfolder": None,
        "revision": None,
        "content": "43a515d86806750bcf42411a16c54de54e58872878312b634bd5c0681ab1b633",
    }
    assert persona_record(Persona("baseline")).content is None
