"""Personas as files: found by name or path, and refused in a sentence."""

from pathlib import Path

import pytest

from emtoolkit.errors import ConfigError
from emtoolkit.locations import shipped
from emtoolkit.personas import load_persona

TWELVE = (
    "baseline goodness humor impulsiveness loving mathematical misalignment nonchalance poeticism remorse "
    "sarcasm sycophancy"
)


def test_the_twelve_of_the_protocol_ship_and_only_the_baseline_is_silent() -> None:
    assert [path.stem for path in sorted(shipped("personas").glob("*.yaml"))] == TWELVE.split()
    silent = [name for name in TWELVE.split() if load_persona(name).system_prompt is None]
    assert silent == ["baseline"]


def test_a_persona_is_found_in_a_directory_or_by_its_file(world: Path) -> None:
    named = load_persona("curt", str(world / "personas"))
    assert (named.name, named.description, named.system_prompt) == ("curt", "short", "you are curt")
    assert load_persona(str(world / "personas" / "curt.yaml")) == named


def test_an_unknown_persona_lists_those_there_are(world: Path) -> None:
    with pytest.raises(ConfigError, match=r"'cutr' is not one of .*: baseline, curt; did you mean 'curt'\?"):
        load_persona("cutr", str(world / "personas"))


def test_a_directory_that_is_not_there_says_how_the_sandbox_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no such directory; .* 'emtoolkit sandbox build'"):
        load_persona("curt", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("sytem_prompt: a", "sytem_prompt: unknown key; .* did you mean 'system_prompt'"),
        ("system_prompt: ''", "system_prompt: '' is not a text"),
        ("system_prompt: 5", "system_prompt: 5 is not a text"),
        ("- a", "expected keys and values"),
    ],
)
def test_a_file_that_is_no_persona_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=problem):
        load_persona(str(path))
