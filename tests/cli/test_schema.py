"""`emtoolkit schema`, and the schemas that the shipped YAML files name for editors."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from emtoolkit.config.schema import config_schema, persona_schema, preset_schema
from emtoolkit.errors import ConfigError
from emtoolkit.evaluation.decided_schema import analysis_schema
from emtoolkit.paths import shipped
from emtoolkit.personas import load_persona
from emtoolkit.sweeps import distributions, search
from emtoolkit.sweeps.schema import sweep_schema
from emtoolkit.yaml_files import read_yaml
from tests.in_process import emtoolkit

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = {
    "config": shipped("training") / "sandbox.yaml",
    "sweep": ROOT / "sweeps" / "seeds.yaml",
    "persona": shipped("personas") / "sarcasm-adapter.yaml",
    "preset": shipped("schedules") / "dense-early.yaml",
}
FILES = sorted(file for example in EXAMPLES.values() for file in example.parent.glob("*.yaml"))
SCHEMAS = {
    "config": config_schema,
    "sweep": sweep_schema,
    "persona": persona_schema,
    "analysis": analysis_schema,
    "preset": preset_schema,
}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_shipped_schema_is_what_the_command_prints(kind: str, tmp_path: Path) -> None:
    done = emtoolkit("schema", kind, cwd=tmp_path)
    assert done.code == 0
    # Equal as JSON: pydantic 2.14.0 writes 64 where 2.14.3 writes 64.0.
    assert json.loads((shipped("schemas") / f"{kind}.json").read_text(encoding="utf-8")) == json.loads(done.out)
    jsonschema.Draft202012Validator.check_schema(json.loads(done.out))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_file_names_its_schema_and_is_valid(file: Path) -> None:
    line = file.read_text(encoding="utf-8").splitlines()[0]
    named = file.parent / line.removeprefix("# yaml-language-server: $schema=")
    jsonschema.validate(read_yaml(file), json.loads(named.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("config", {"sead": 1}),
        ("config", {"training": {"learning_rat": 1e-4}}),
        ("config", {"datasets": {"medical": {"path": "a.jsonl", "row": 1}}}),
        ("config", {"checkpointing": {"save_steps": 1.5}}),
        ("config", {"checkpointing": {"save_steps": 5, "max_in_flight": 0}}),
        ("config", {"lora": {"target_modules": "all-liner"}}),
        ("sweep", {"progam": "emtoolkit"}),
        ("sweep", {"method": "bayes"}),
        ("sweep", {"parameters": {"seed": {"valus": [1, 2]}}}),
        ("sweep", {"parameters": {"seed": {"distribution": "uniform"}}}),
        ("sweep", {"parameters": {"training": {"parameters": {"learning_rate": {"valus": [1, 2]}}}}}),
        ("persona", {"sytem_prompt": "a"}),
        ("persona", {"system_prompt": "a"}),
        ("persona", {"compose": "merged"}),
        ("persona", {"description": " "}),
        ("preset", {"schedul": "0,every:5"}),
        ("preset", {"schedule": 100}),
    ],
)
def test_a_schema_refuses_a_misspelt_key_and_a_bad_value(kind: str, change: dict[str, Any]) -> None:
    content = read_yaml(EXAMPLES[kind])
    jsonschema.validate(content, SCHEMAS[kind]())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content | change, SCHEMAS[kind]())


def test_the_sweep_schema_has_the_keys_that_a_sweep_is_read_with(tmp_path: Path) -> None:
    schema = sweep_schema()
    with pytest.raises(ConfigError) as raised:
        search.read_sweep(_written(tmp_path, "{method: grid, unknown: 1}"))
    expected = str(raised.value).rpartition("; expected ")[2].split(", ")
    assert sorted(schema["properties"]) == sorted(expected)
    with pytest.raises(ConfigError) as raised:
        distributions.parse_distribution({"distribution": "unknown"}, "")
    known = str(raised.value).rpartition(" is not one of ")[2].split(", ")
    parameter = schema["$defs"]["parameter"]
    assert parameter["properties"]["distribution"]["enum"] == known


def test_the_persona_schema_has_the_keys_that_a_persona_is_read_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_persona(str(_written(tmp_path, "unknown: 1")))
    expected = str(raised.value).rpartition("; expected ")[2].replace(" and ", ", ").split(", ")
    assert list(persona_schema()["oneOf"][1]["properties"]) == expected


def _written(directory: Path, text: str) -> Path:
    path = directory / "file.yaml"
    path.write_text(text)
    return path


def test_every_field_of_a_config_has_a_description() -> None:
    schema = config_schema()
    sections = {"top level": schema, **schema["$defs"]}
    missing = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, field in section["properties"].items()
        if not field.get("description")
    ]
    assert missing == []
    assert [name for name, section in sections.items() if not section.get("description")] == []
