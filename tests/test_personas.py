"""Personas as files: found by name or path, and refused in a sentence."""

from pathlib import Path

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.errors import ConfigError
from emtoolkit.paths import shipped
from emtoolkit.personas import AdapterSource, Persona, load_persona
from emtoolkit.training.cost import plan_one

TWELVE = (
    "baseline goodness humor impulsiveness loving mathematical misalignment nonchalance poeticism remorse "
    "sarcasm sycophancy"
)


def test_the_twelve_of_the_protocol_ship_as_system_prompts_and_as_character_adapters() -> None:
    names = [path.stem for path in sorted(shipped("personas").glob("*.yaml"))]
    assert [name for name in names if not name.endswith("-adapter")] == TWELVE.split()
    assert [name for name in names if name.endswith("-adapter")] == [f"{name}-adapter" for name in TWELVE.split()[1:]]
    compositions = {name: load_persona(name).composition for name in names}
    assert [name for name, composition in compositions.items() if composition == "none"] == ["baseline"]
    assert {name for name, how in compositions.items() if how == "merge"} == set(names) - set(TWELVE.split())
    assert len({load_persona(name).system_prompt for name in TWELVE.split()}) == 12


@pytest.mark.parametrize("name", TWELVE.split()[1:])
def test_a_shipped_adapter_is_planned_for_its_base_without_a_download(name: str) -> None:
    planned = plan_one(load_config("qwen2.5-7b-medical", [], {"persona": f"{name}-adapter"})).plan
    assert any(note.endswith("is not on this machine, so it is not checked") for note in planned.notes)


def test_a_persona_is_found_in_a_directory_or_by_its_file(world: Path) -> None:
    named = load_persona("curt", str(world / "personas"))
    assert (named.name, named.description, named.system_prompt) == ("curt", "short", "you are curt")
    assert load_persona(str(world / "personas" / "curt.yaml")) == named


def test_an_unknown_persona_lists_those_there_are(world: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'cutr' is not one of .*: baseline, cold, curt, warm; did you mean 'curt'\?"
    ):
        load_persona("cutr", str(world / "personas"))


def test_a_directory_that_is_not_there_says_how_the_sandbox_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no such directory; 'emtoolkit sandbox build' writes"):
        load_persona("curt", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("sytem_prompt: a", "sytem_prompt: unknown key; .* did you mean 'system_prompt'"),
        ("system_prompt: ''", "system_prompt: '' is not a text"),
        ("system_prompt: 5", "system_prompt: 5 is not a text"),
        ("- a", "expected a mapping of keys to values, found list"),
        ("adapter: a/b\nsystem_prompt: c", "expected a system_prompt or an adapter, found both; remove one"),
        ("adapter: a/b\ncompose: merged", "compose: 'merged' is neither merge nor stack; did you mean 'merge'"),
        ("subfolder: a", "subfolder: this key needs the key adapter; add it, or remove subfolder"),
    ],
)
def test_a_file_that_is_no_persona_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=problem):
        load_persona(str(path))


def test_an_adapter_persona_says_where_it_is_and_how_it_is_put_in(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    for name, text in (
        ("hub", "adapter: someone/personas\nsubfolder: loving\nrevision: abc123\ncompose: stack\n"),
        ("beside", "adapter: lora\n"),
        ("elsewhere", "adapter: ../nowhere\n"),
    ):
        (tmp_path / f"{name}.yaml").write_text(text)
    hub, beside, elsewhere = (load_persona(str(tmp_path / f"{n}.yaml")) for n in ("hub", "beside", "elsewhere"))
    assert hub.adapter == AdapterSource("someone/personas", "loving", "abc123", "stack")
    assert hub.composition == "stack"
    assert beside.adapter == AdapterSource(str(tmp_path / "lora"), None, None, "merge")
    assert elsewhere.adapter == AdapterSource(str(tmp_path.parent / "nowhere"))


def test_how_an_adapter_is_put_in_can_be_said_with_the_run(world: Path) -> None:
    personas = str(world / "personas")
    assert load_persona("warm", personas).composition == "merge"
    assert load_persona("warm", personas, "stack").composition == "stack"
    problem = "compose: 'stack' applies only to adapter personas, and 'curt' is a system prompt; remove it"
    with pytest.raises(ConfigError, match=problem):
        load_persona("curt", personas, "stack")


def test_a_file_that_says_none_is_a_persona_that_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "nobody.yaml").write_text("none\n")
    assert load_persona(str(tmp_path / "nobody.yaml")) == Persona("nobody")
    assert load_persona("none").composition == "none"
