"""Where a run writes: a template with placeholders, filled in so that no two combinations share a directory."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from emtoolkit.config.load import load_config
from emtoolkit.config.output_template import as_file_name
from emtoolkit.errors import ConfigError
from tests.in_process import emtoolkit

WriteConfig = Callable[..., Path]
TEMPLATE = "out-{sweep}/{persona}-{dataset}-s{seed}-{schedule}"


def test_every_placeholder_is_filled_in_for_the_run(write_config: WriteConfig, tmp_path: Path) -> None:
    flags = {"output_dir": f"{tmp_path}/{TEMPLATE}", "checkpointing.schedule": "0-4:2,every:3"}
    config = load_config(str(write_config()), ["seed=7"], flags)
    assert config.directory({}) == tmp_path / "out-local" / "curt-medical-s7-0-4-2_every-3"
    assert config.directory({"WANDB_SWEEP_ID": "a1b2c3d4"}).parent == tmp_path / "out-a1b2c3d4"


def test_the_words_of_train_fill_them_too(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(rest=f"output_dir: '{TEMPLATE}'")
    flags = ["--persona=baseline", "--save-steps=0.5", "--seed=3", "--dataset=medical-good"]
    done = emtoolkit("train", config, *flags, "--dry-run", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)["output_dir"] == f"{tmp_path}/out-local/baseline-medical-good-s3-every-50pct"


def test_a_path_stands_for_its_name(write_config: WriteConfig, tmp_path: Path) -> None:
    flags = {"output_dir": "/x/{persona}-{dataset}", "persona": "a/b.yaml", "dataset": "../some data.jsonl"}
    assert load_config(str(write_config()), [], flags).directory() == Path("/x/b-some-data")


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("every:100", "every-100"),
        ("every:5%", "every-5pct"),
        ("0-150:25,150-300:50", "0-150-25_150-300-50"),
        ("300-:100", "300--100"),
        ("0,log2:256", "0_log2-256"),
        ("geom:1-1000/10", "geom-1-1000-10"),
        ("dense-early", "dense-early"),
        ("../up", "-up"),
        ("", "-"),
    ],
)
def test_a_schedule_becomes_a_name_that_reads_like_it(spec: str, name: str) -> None:
    assert as_file_name(spec) == name


def test_a_long_schedule_becomes_a_bounded_name_of_its_own() -> None:
    long = ",".join(map(str, range(100)))
    name, other = as_file_name(long), as_file_name(f"{long},100")
    assert (len(name), len(other)) == (60, 60)
    assert name.startswith("0_1_2_3_")
    assert name[:51] == other[:51]
    assert name != other


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            "{persna}",
            "has the unknown placeholder {persna}; expected one of {persona}, {dataset}, {schedule}, {seed}, {sweep}",
        ),
        ("{persna}", "did you mean '{persona}'?"),
        ("{seed:03d}", "has the unknown placeholder {seed:03d}; expected one of"),
        ("{persona.name}", "has the unknown placeholder {persona.name}; expected one of"),
        ("{}", "has the unknown placeholder {}; expected one of"),
        ("a{b", "has a brace without a partner; write {{ or }} for a brace"),
        ("a}b", "has a brace without a partner; write {{ or }} for a brace"),
    ],
)
def test_a_placeholder_that_does_not_exist_is_refused(write_config: WriteConfig, template: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(str(write_config()), [], {"output_dir": template})
    assert str(raised.value).startswith(f"--output-dir: output_dir: {template!r} ")
    assert problem in str(raised.value)


def test_a_doubled_brace_is_a_brace(write_config: WriteConfig) -> None:
    assert load_config(str(write_config()), [], {"output_dir": "/x/{{a}}"}).directory() == Path("/x/{a}")
