"""Tables of the README and the documentation say what the program does."""

import re

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.models.memory import GPUS_GB
from emtoolkit.paths import shipped
from emtoolkit.saving.arguments_identity import EXCLUSIONS
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.training.cost import plan_one
from tests.docs.pages import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCHEDULES = (ROOT / "docs" / "guides" / "schedules.md").read_text(encoding="utf-8")
CONFIGS = (ROOT / "docs" / "guides" / "configs.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "guides" / "data.md").read_text(encoding="utf-8")


def grammar_table(page: str) -> dict[str, str]:
    """Term to meaning."""
    table = page.split("| term | steps |\n|---|---|\n")[1].split("\n\n")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", table, flags=re.MULTILINE))


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= 7000


def test_the_readme_has_no_file_of_this_repository_that_does_not_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    assert len(targets) > 15
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("term", grammar_table(SCHEDULES))
def test_every_term_in_the_grammar_table_parses(term: str) -> None:
    assert str(Schedule.parse(term)) == term


def test_the_readme_and_the_guide_list_the_same_terms() -> None:
    assert list(grammar_table(README)) == list(grammar_table(SCHEDULES))


@pytest.mark.parametrize("page", [README, SCHEDULES], ids=["README", "schedules"])
def test_the_presets_in_the_table_are_those_that_ship(page: str) -> None:
    meanings = grammar_table(page)
    assert {path.stem for path in shipped("schedules").glob("*.yaml")} <= set(meanings)
    for name in ("dense-early", "pythia"):
        (grammar,) = re.findall("a preset: `([^`]+)`", meanings[name])
        assert list(Schedule.parse(name).steps(143000)) == list(Schedule.parse(grammar).steps(143000))


def test_the_four_row_formats_are_shown() -> None:
    rows = re.findall(r"^\| `(\{[^`]*)`", DATA, flags=re.MULTILINE)
    columns = [re.findall(r'"(\w+)":', row) for row in rows]
    assert columns == [
        ["messages", "role", "content"],
        ["conversations", "from", "value"],
        ["prompt", "completion"],
        ["instruction", "output"],
    ]


@pytest.mark.slow
def test_the_shipped_configs_are_listed_with_the_gpu_that_their_plan_fits_on() -> None:
    table = CONFIGS.split("| shipped |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `([^`]+)` \| .+ \| (\w+)(?: GB)? \| (\d*)(?: GB)? *\|$", table, flags=re.MULTILINE)
    assert {name for name, _, _ in rows} == {path.stem for path in shipped("training").glob("*.yaml")}
    for name, size, in_4bit in rows:
        if size != "none":
            assert smallest_gpu(name) == size
        if in_4bit:
            assert smallest_gpu(name, "model.load_in_4bit=true") == in_4bit


def smallest_gpu(config: str, *settings: str) -> str:
    memory = plan_one(load_config(config, settings)).plan.memory
    assert memory is not None
    return next(str(gpu) for gpu in GPUS_GB if memory.fits(gpu))


def test_the_files_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:configs|docs|emtoolkit|sweeps|tests)/[^`]*)`", text)
    assert len(named) > 20
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []


def test_the_names_in_the_table_of_what_to_add_are_in_the_code() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("| to add |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([A-Za-z_]+)`", table))
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "emtoolkit").rglob("*.py"))
    words = set(re.findall(r"\w+", code))
    assert len(named) > 10
    assert named - words == set()


def test_the_table_of_arguments_that_do_not_decide_is_the_list_in_the_code() -> None:
    page = (ROOT / "docs" / "concepts" / "trajectory.md").read_text(encoding="utf-8")
    table = page.split("| arguments that are left out | because |\n|---|---|\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (.*) \| (.*) \|$", table, flags=re.MULTILINE)
    assert {name.strip("`"): reason for names, reason in rows for name in names.split(", ")} == EXCLUSIONS
