"""Which names of revisions and folders are training steps, and how a trajectory on the hub is written."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emtoolkit.errors import CheckpointError
from emtoolkit.hub.names import HubReference, StepName, is_hub, steps_of_folders, steps_of_revisions

STEPS = st.integers(0, 10**18 - 1)
TRAININGS = st.sampled_from(["", "stage1", "stage2-ingredient3", "seed-7", "a/b", "step-5"])
NAMES = st.text("abcstepkhoin0123456789-_./@", max_size=24)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-0", StepName(0)),
        ("step-100", StepName(100)),
        ("step1000", StepName(1000)),  # Pythia
        ("step143000", StepName(143000)),
        ("step1000-tokens4B", StepName(1000)),  # OLMo
        ("step0-tokens0B", StepName(0)),
        ("step-0100", StepName(100)),
        ("step_100", StepName(100)),
        ("checkpoint-100", StepName(100)),
        ("stage1-step-40000", StepName(40000, "stage1")),  # SmolLM3
        ("stage2-ingredient3-step23852-tokens51B", StepName(23852, "stage2-ingredient3")),  # OLMo 2
        ("step1000-tokens2.5T", StepName(1000)),
        ("main", None),
        ("v1.0", None),
        ("1000", None),
        ("step", None),
        ("step-", None),
        ("step--1", None),
        ("step-1.5", None),
        ("step-100-wip", None),
        ("laststep-100", None),
        ("step-\u0661\u0660", None),
        ("step1000-tokens", None),
        ("step-1000000000000000000000", None),
        ("-step-1", None),
        ("checkpoint100", None),
        ("step-1\n", None),
    ],
)
def test_a_revision_is_a_step_if_its_name_is_one(name: str, step: StepName | None) -> None:
    assert StepName.parse(name) == step


@settings(max_examples=200)
@given(STEPS, TRAININGS, st.sampled_from(["step-{}", "step{}", "step{}-tokens4B", "step_{}", "checkpoint-{}"]))
def test_every_step_of_every_training_is_found(step: int, training: str, form: str) -> None:
    name = f"{training}-{form.format(step)}" if training else form.format(step)
    assert StepName.parse(name) == StepName(step, training)
    assert steps_of_revisions("hf:a/b", {name: "0" * 40, "main": "1" * 40}) == {training: {step: name}}


@settings(max_examples=200)
@given(STEPS, st.sampled_from(["", "checkpoints", "runs/a"]), st.sampled_from(["model.safetensors", "x/y/z.bin"]))
def test_every_folder_of_a_step_is_found(step: int, above: str, file: str) -> None:
    folder = f"{above}/checkpoint-{step}" if above else f"checkpoint-{step}"
    assert steps_of_folders([f"{folder}/{file}", "README.md", f"{above or 'x'}/config.json"]) == {above: {step: folder}}


def test_folders_inside_a_checkpoint_are_no_further_steps() -> None:
    paths = ["checkpoint-5/checkpoint-7/model.safetensors", "checkpoint-05/model.safetensors", "checkpoint-5"]
    assert steps_of_folders(paths) == {"": {5: "checkpoint-5"}}


def test_a_step_with_two_names_of_one_commit_is_one_step_and_of_two_commits_is_refused() -> None:
    one, other = "1" * 40, "2" * 40
    assert steps_of_revisions("hf:a/b", {"step100": one, "step-100": one, "step100-tokens4B": one}) == {
        "": {100: "step100"}
    }
    with pytest.raises(CheckpointError) as refused:
        steps_of_revisions("hf:a/b", {"step100": one, "step-100": other})
    assert str(refused.value) == (
        "hf:a/b: step 100 is the revision step100 (commit 11111111) and the revision step-100 (commit 22222222); "
        "remove one of them, or open a single one as hf:a/b@step-100"
    )


@pytest.mark.parametrize(
    ("text", "reference", "directory"),
    [
        ("hf:lab/run", HubReference("lab/run"), "lab/run"),
        ("hf:lab/run/", HubReference("lab/run"), "lab/run"),
        ("hf:lab/run@main", HubReference("lab/run", None, "main"), "lab/run@main"),
        ("hf:lab/run@refs/pr/1", HubReference("lab/run", None, "refs/pr/1"), "lab/run@refs%2Fpr%2F1"),
        ("hf:lab/run/a/b", HubReference("lab/run", "a/b"), "lab/run%2Fa%2Fb"),
        ("hf:lab/run/.", HubReference("lab/run", ""), "lab/run%2F."),
        ("hf:lab/run/a@v1", HubReference("lab/run", "a", "v1"), "lab/run%2Fa@v1"),
    ],
)
def test_a_reference_names_a_repository_a_folder_and_a_revision(
    text: str, reference: HubReference, directory: str
) -> None:
    assert is_hub(text)
    assert HubReference.parse(text) == reference
    assert HubReference.parse(str(reference)) == reference
    assert reference.directory == directory


@pytest.mark.parametrize(
    "text",
    [
        "hf:run",
        "hf:",
        "hf:/run",
        "hf:lab/",
        "hf:lab/run@",
        "hf:lab//run",
        "hf:lab/run/../other",
        "hf:../run",
        "hf://lab/run",
        "hf:https://huggingface.co/lab/run",
        "hf:lab/run@../x",
        "hf:lab/run@a\nb",
        "hf:lab/run x",
    ],
)
def test_anything_else_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(CheckpointError, match="a trajectory on the Hugging Face hub is written hf:ORG/REPO"):
        HubReference.parse(text)


@settings(max_examples=300)
@given(st.dictionaries(NAMES, st.sampled_from(["1" * 40, "2" * 40]), max_size=6), st.lists(NAMES, max_size=6), NAMES)
def test_no_name_is_more_than_a_step_or_a_refusal(commits: dict[str, str], paths: list[str], rest: str) -> None:
    try:
        found = steps_of_revisions("hf:a/b", commits)
        assert {name for steps in found.values() for name in steps.values()} <= commits.keys()
    except CheckpointError:
        pass
    assert all(
        folder in {path.rpartition("/")[0][: len(folder)] for path in paths}
        for steps in steps_of_folders(paths).values()
        for folder in steps.values()
    )
    try:
        reference = HubReference.parse(f"hf:a/b{rest}")
        assert HubReference.parse(str(reference)) == reference
        assert ".." not in reference.directory.split("/")
    except CheckpointError:
        pass
