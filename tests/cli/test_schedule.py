"""`emtoolkit schedule`: what a schedule saves and costs, for people and for programs."""

import json
from pathlib import Path

import pytest

from tests import processes
from tests.in_process import emtoolkit


def test_the_comparison_people_know_is_4_and_16_and_11_checkpoints(tmp_path: Path) -> None:
    words = "schedule every:100 every:25 dense-early --total-steps 400 --checkpoint-size 150MB"
    done = emtoolkit(*words.split(), cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "schedule     checkpoints     disk  largest gap  steps\n"
        "every:100              4   600 MB          100  100, 200, 300, 400\n"
        "every:25              16   2.4 GB           25  25, 50, 75, …, 350, 375, 400\n"
        "dense-early           11  1.65 GB          100  0, 25, 50, 75, …, 250, 300, 400\n"
    )


def test_json_lists_every_step_with_the_spec_as_written() -> None:
    words = "schedule dense-early every:30% --total-steps 397 --checkpoint-size 1KiB --json"
    done = emtoolkit(*words.split())
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == [
        {
            "spec": "dense-early",
            "steps": [0, 25, 50, 75, 100, 125, 150, 200, 250, 300, 397],
            "count": 11,
            "bytes": 11264,
            "largest_gap": 97,
        },
        {"spec": "every:30%", "steps": [120, 240, 360, 397], "count": 4, "bytes": 4096, "largest_gap": 120},
    ]


def test_without_a_size_disk_is_a_dash_and_bytes_are_null() -> None:
    assert emtoolkit("schedule", "every:100", "--total-steps", "400").out == (
        "schedule   checkpoints  disk  largest gap  steps\n"
        "every:100            4     —          100  100, 200, 300, 400\n"
    )
    listed = json.loads(emtoolkit("schedule", "every:100", "--total-steps", "400", "--json").out)
    assert listed[0]["bytes"] is None


def test_a_table_fits_80_columns_and_json_of_the_same_elides_nothing() -> None:
    long = "0,10,30,60,100,200,300,500,700,1000,2000-10000:1000,10000-60000:3000"
    words = ("schedule", long, "every:1", "every:2,every:3", "500000", "--total-steps", "1000000")
    table = emtoolkit(*words, "--checkpoint-size", "15.5GB").out
    assert table == (
        "schedule                  checkpoints      disk  largest gap  steps\n"
        "0,10,30,60,1…-60000:3000           36    558 GB       942000  0, 10, …, 1000000\n"
        "every:1                       1000000  15500 TB            1  1, 2, …, 1000000\n"
        "every:2,every:3                666667  10333 TB            2  2, 3, …, 1000000\n"
        "500000                              2     31 GB       500000  500000, 1000000\n"
    )
    assert max(map(len, table.splitlines())) <= 80
    rows = json.loads(emtoolkit(*words, "--json").out)
    assert rows[0]["spec"] == long
    assert rows[1]["steps"] == list(range(1, 1_000_001))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["every:25", "10-5:1", "--total-steps", "400"],
            'schedule term "10-5:1": the stop must not be before the start; did you mean "5-10:1"?',
        ),
        (["every:25", "--total-steps", "0"], "a run has 1 to 1000000000000 steps, not 0"),
        (
            ["every:25", "--total-steps", "400", "--checkpoint-size", "150M"],
            '--checkpoint-size: size "150M": expected a number and one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB, '
            "such as 150MB; did you mean 'MB'?",
        ),
        (
            ["every:25", "0-150:25", "--total-steps", "100", "--json"],
            'schedule "0-150:25": step 125 and 1 more are past the end of training at step 100; an open rule such '
            "as 0-:25 stops there by itself, and allow_unreachable turns this error into a warning",
        ),
    ],
)
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_on_stdout(words: list[str], sentence: str) -> None:
    done = emtoolkit("schedule", *words)
    assert (done.code, done.out, done.err) == (2, "", f"emtoolkit: {sentence}\n")


@pytest.mark.parametrize(
    "words", [["--total-steps", "400"], ["every:25"], ["every:25", "--total-steps", "many"], ["-5"]]
)
def test_wrong_usage_is_exit_code_2_and_nothing_on_stdout(words: list[str]) -> None:
    done = emtoolkit("schedule", *words)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err


def test_allow_unreachable_turns_the_error_into_a_warning() -> None:
    done = emtoolkit("schedule", "0-150:25", "--total-steps", "100", "--allow-unreachable", "--json")
    assert done.code == 0
    assert done.err == (
        'emtoolkit: warning: schedule "0-150:25": step 125 and 1 more are past the end of training at step 100\n'
    )
    assert json.loads(done.out)[0]["steps"] == [0, 25, 50, 75, 100]


@pytest.mark.subprocess
@pytest.mark.parametrize("format_words", [[], ["--json"]])
def test_the_answer_costs_no_heavy_import(format_words: list[str]) -> None:
    code = (
        "import sys\nfrom emtoolkit.cli.app import main\n"
        f"sys.argv = ['emtoolkit', 'schedule', 'every:25', 'dense-early', '--total-steps', '400', *{format_words}]\n"
        "try:\n    main()\nfinally:\n    print([name for name in ('torch', 'transformers', 'wandb', 'peft', "
        "'numpy') if name in sys.modules])"
    )
    assert processes.python(code).splitlines()[-1] == "[]"
