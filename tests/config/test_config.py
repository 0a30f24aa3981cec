"""A config: what it may say, what overrides it, and the sentence for everything else."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import ConfigError
from emtoolkit.paths import shipped
from emtoolkit.schedules.schedule import Schedule

WriteConfig = Callable[..., Path]


def refused(path: Path, *settings: str, **flags: object) -> str:
    with pytest.raises(ConfigError) as raised:
        load_config(str(path), settings, flags)
    return str(raised.value)


@pytest.mark.parametrize(
    ("checkpointing", "schedule"),
    [
        ("save_steps: 100", "every:100"),
        ("save_steps: 0.005", "every:0.5%"),
        ("save_at_steps: [0, 10, 5]", "0,5,10"),
        ("schedule: dense-early", "dense-early"),
        ("schedule: 0-150:25,300-:100", "0-150:25,300-:100"),
    ],
)
def test_the_three_words_say_the_same_as_the_grammar(
    write_config: WriteConfig, checkpointing: str, schedule: str
) -> None:
    config = load_config(str(write_config(checkpointing)))
    assert config.checkpointing.to_schedule() == Schedule.parse(schedule)


@pytest.mark.parametrize(
    ("evaluation", "schedule"),
    [("eval_steps: 0.005", "every:0.5%"), ("eval_at_steps: [3]", "3"), ("eval_schedule: log2:8", "log2:8")],
)
def test_evaluation_has_the_same_three_words(write_config: WriteConfig, evaluation: str, schedule: str) -> None:
    config = load_config(str(write_config(rest=f"evaluation: {{{evaluation}}}")))
    assert config.evaluation.to_schedule() == Schedule.parse(schedule)


def test_without_a_word_there_is_no_evaluation(write_config: WriteConfig) -> None:
    assert load_config(str(write_config())).evaluation.to_schedule() is None


def test_set_and_then_flags_go_over_the_file(write_config: WriteConfig) -> None:
    path = str(write_config())
    settings = ["training.learning_rate=1e-3", "wandb.tags=[a, b]"]
    config = load_config(path, settings, {"seed": 2, "persona": None})
    assert (config.training.learning_rate, config.seed, config.wandb.tags) == (0.001, 2, ["a", "b"])
    assert config.persona == "curt"


@pytest.mark.parametrize(
    ("settings", "flags"),
    [(["checkpointing.save_steps=5"], {}), ([], {"checkpointing.save_steps": 5})],
)
def test_another_word_replaces_the_files_own(
    write_config: WriteConfig, settings: list[str], flags: dict[str, object]
) -> None:
    config = load_config(str(write_config("schedule: dense-early")), settings, flags)
    assert (config.checkpointing.save_steps, config.checkpointing.schedule) == (5, None)


def test_no_word_is_an_error(write_config: WriteConfig) -> None:
    path = write_config("max_in_flight: 2")
    assert refused(path) == (
        f"{path}, line 12: checkpointing: expected exactly one of save_steps, save_at_steps and schedule; "
        "none of them is set"
    )


def test_two_words_are_an_error(write_config: WriteConfig) -> None:
    path = write_config("save_steps: 5\n  schedule: dense-early")
    assert refused(path) == (
        f"{path}, line 12: checkpointing: expected exactly one of save_steps, save_at_steps and schedule; "
        "found save_steps (5) and schedule ('dense-early')"
    )


def test_two_words_for_evaluation_are_an_error(write_config: WriteConfig) -> None:
    path = write_config(rest="evaluation: {eval_steps: 5, eval_at_steps: [1]}")
    assert refused(path) == (
        f"{path}, line 15: evaluation: expected at most one of eval_steps, eval_at_steps, eval_schedule; "
        "found eval_steps (5) and eval_at_steps ([1])"
    )


@pytest.mark.parametrize(
    ("checkpointing", "problem"),
    [
        ("save_stepz: 5", "checkpointing.save_stepz: unknown key (value 5); expected one of save_steps, "),
        ("save_steps: 0", "checkpointing.save_steps: 0 is not valid: expected a number of steps (1 or more), or"),
        ("save_steps: 1.5", "checkpointing.save_steps: 1.5 is not valid: expected a number of steps (1 or more)"),
        ("save_at_steps: []", "checkpointing.save_at_steps: [] is not valid: expected a list of steps such as"),
        ("save_at_steps: [-1]", "checkpointing.save_at_steps: [-1] is not valid: expected a list of steps such as"),
        ("schedule: 10-5:1", 'checkpointing.schedule: schedule term "10-5:1": the stop must not be before'),
        ("schedule: dense-erly", "did you mean 'dense-early'?"),
        ("schedule: 5", "checkpointing.schedule: 5 is not valid: expected a schedule such as dense-early or"),
        ("save_steps: 5\n  save_total_limit: 2", "save_total_limit: 2 cannot be combined with a schedule: it deletes"),
        (
            "save_steps: 5\n  save_strategy: best",
            "save_strategy: 'best' cannot be combined with a schedule: the schedule",
        ),
        ("save_steps: 5\n  load_best_model_at_end: true", "load_best_model_at_end: True cannot be combined with"),
        ("save_steps: 5\n  on_error: rase", "on_error: 'rase' is not one of 'raise' or 'warn'; did you mean 'raise'?"),
    ],
)
def test_a_bad_value_is_one_sentence_with_file_key_and_value(
    write_config: WriteConfig, checkpointing: str, problem: str
) -> None:
    path = write_config(checkpointing)
    sentence = refused(path)
    assert re.match(rf"{re.escape(str(path))}, line 1[34]: checkpointing\.", sentence)
    assert problem in sentence
    assert "\n" not in sentence


def test_a_misspelt_key_names_the_nearest(write_config: WriteConfig) -> None:
    path = write_config(rest="sead: 3")
    assert refused(path).endswith("did you mean 'seed'?")
    path = write_config()
    assert refused(path, "training.learning_rat=1").startswith("--set training.learning_rat=1: training.learning_rat: ")
    assert refused(path, "trainng.lr=1").startswith("--set trainng.lr=1: trainng: unknown key")
    assert refused(path, "training.learning_rat=1").endswith("did you mean 'learning_rate'?")
    assert "expected one of path, split, revision, control, rows" in refused(path, "datasets.medical.row=1")


def test_an_interval_that_cannot_be_read_is_refused(write_config: WriteConfig) -> None:
    path = write_config()
    assert refused(path, "checkpointing.resume_every=10 minutes") == (
        "--set checkpointing.resume_every=10 minutes: checkpointing.resume_every: '10 minutes' is not an interval "
        "such as 10min, 30s, 2h, '50 steps' or never"
    )
    for digits in ("9" * 19, "9" * 400, "9" * 5000):
        for unit in ("s", " steps"):
            assert "is not an interval" in refused(path, f"checkpointing.resume_every={digits}{unit}")


@pytest.mark.parametrize("setting", ["training.learning_rate", "=3", "a..b=3"])
def test_a_setting_that_is_not_key_and_value_is_refused(write_config: WriteConfig, setting: str) -> None:
    assert "such as training.learning_rate" in refused(write_config(), setting)


def test_a_key_written_twice_is_refused(write_config: WriteConfig) -> None:
    path = write_config(rest="seed: 1\nseed: 2")
    assert refused(path) == f"{path}, line 16: the key 'seed' appears twice in one mapping"


def test_broken_yaml_is_refused_by_file_and_line(write_config: WriteConfig) -> None:
    path = write_config(rest="wandb: [unclosed")
    assert refused(path).startswith(f"{path}, line ")


def test_a_scientific_number_needs_no_point(write_config: WriteConfig) -> None:
    """In YAML 1.1, and so in PyYAML, 1e-4 is text."""
    config = load_config(str(write_config()), ["training.learning_rate=1e-4", "training.weight_decay=1E+0"])
    assert (config.training.learning_rate, config.training.weight_decay) == (0.0001, 1.0)


def test_a_directory_does_not_hide_a_shipped_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sandbox").mkdir()
    assert load_config("sandbox").dataset_name == "medical"


def test_a_config_that_is_not_there_lists_those_that_ship() -> None:
    sentence = refused(Path("sandbx"))
    assert sentence.startswith("sandbx: no such file; the shipped configs are gemma-2-9b-medical, llama")
    assert sentence.endswith(", qwen2.5-7b-medical, sandbox; did you mean 'sandbox'?")
    # What follows a dot in a name is no suffix.
    assert refused(Path("qwen2.5-7b-medcal")).endswith("; did you mean 'qwen2.5-7b-medical'?")


def test_every_shipped_config_is_valid_and_found_by_name_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = sorted(path.stem for path in shipped("training").glob("*.yaml"))
    assert {"pt1-3", "qwen2.5-7b-medical", "sandbox"} <= {*names}
    for name in names:
        assert isinstance(load_config(name), RunConfig)


def test_the_default_output_directory_names_persona_and_dataset(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(str(write_config())).directory() == tmp_path / "outputs" / "curt-medical"


def test_yaml_makes_values_and_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"seed: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{tmp_path}/x]]"
    )
    with pytest.raises(ConfigError, match=r"run\.yaml, line 1: seed: the tag .* is not read"):
        load_config(str(path))
    assert not (tmp_path / "x").exists()


def test_an_option_that_the_callback_refuses_is_refused_in_a_config(write_config: WriteConfig) -> None:
    path = write_config("schedule: dense-early")
    assert refused(path, "checkpointing.max_in_flight=0") == (
        "--set checkpointing.max_in_flight=0: checkpointing.max_in_flight: 0 is not a number of copies, 1 or more"
    )
