"""`emtoolkit sweep`: which combinations run, which run again, its messages, and its end after a signal."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from emtoolkit.sweeps.plan import plan_sweep
from emtoolkit.sweeps.processes import Processes
from emtoolkit.sweeps.runner import _error_from_log, _with_thread_limit, run_sweep
from emtoolkit.training.options import TrainOptions
from tests.in_process import Done, emtoolkit
from tests.marks import STARTS_PROCESSES
from tests.processes import HANG_SECONDS
from tests.saving.trainings import saved_steps
from tests.sweeps.shipped import fast_version

WriteConfig = Callable[..., Path]

# Records its argv and fails for a=2 unless "mended" exists; W&B prints the last line, as in a real run.
PROGRAM = """\
import os, sys
with open("ran.txt", "a") as file:
    print(*sys.argv[1:], os.environ["WANDB_MODE"], os.environ.get("WANDB_SWEEP_ID"), file=file)
print("a line of progress")
if "--a=2" in sys.argv and not os.path.exists("mended"):
    import atexit
    atexit.register(print, "wandb: Find logs at: ./wandb")
    raise ValueError("2 does not work")
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "prog.py").write_text(PROGRAM)
    return tmp_path


def write(directory: Path, values: list[Any], **more: Any) -> Path:
    path = directory / "sweep.yaml"
    content = {"method": "grid", "program": "prog.py", "parameters": {"a": {"values": values}}}
    path.write_text(yaml.safe_dump(content | more))
    return Path("sweep.yaml")


def ran(directory: Path) -> list[str]:
    """The lines of the runs since the last call."""
    path = directory / "ran.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def states(done: Done) -> list[tuple[Any, str]]:
    return [(run["parameters"]["a"], run["state"]) for run in json.loads(done.out)]


@pytest.mark.subprocess
def test_every_combination_runs_once_offline_and_a_second_call_runs_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_SWEEP_ID", "of-an-agent")
    path = write(directory, [1, 3])
    first = emtoolkit("sweep", path, cwd=directory)
    assert first.code == 0, first.err
    assert ran(directory) == ["--a=1 offline None", "--a=3 offline None"]
    lines = first.out.splitlines()
    assert lines[0].split() == ["a", "state", "checkpoints", "directory", "or", "error"]
    assert lines[1].startswith("1  finished            —  outputs/sweeps/sweep-local/logs/1-")
    assert lines[3:] == ["2 finished."]
    (log,) = (directory / "outputs/sweeps/sweep-local/logs").glob("3-*.log")
    assert log.read_text() == f"$ /usr/bin/env {sys.executable} prog.py --a=3\na line of progress\n"

    second = emtoolkit("sweep", path, cwd=directory)
    assert (second.code, second.out) == (0, first.out)
    assert ran(directory) == []


@pytest.mark.subprocess
def test_only_new_combinations_run(directory: Path) -> None:
    emtoolkit("sweep", write(directory, [1, 3]), cwd=directory)
    ran(directory)
    done = emtoolkit("sweep", write(directory, [4, 3]), "--json", cwd=directory)
    assert [line.split()[0] for line in ran(directory)] == ["--a=4"]
    assert states(done) == [(4, "finished"), (3, "finished")]
    other_command = ["${interpreter}", "${program}", "${args}"]
    emtoolkit("sweep", write(directory, [3], command=other_command), cwd=directory)
    assert [line.split()[0] for line in ran(directory)] == ["--a=3"]
    emtoolkit("sweep", write(directory, [1]), cwd=directory)
    assert ran(directory) == []


@pytest.mark.subprocess
def test_a_failed_run_is_listed_with_its_error_and_runs_again_only_with_retry_failed(directory: Path) -> None:
    path = write(directory, [1, 2, 3])
    first = emtoolkit("sweep", path, cwd=directory)
    assert first.code == 1
    assert len(ran(directory)) == 3
    failed = " ".join(first.out.split())
    assert "2 failed — exit code 1: ValueError: 2 does not work (see outputs/sweeps/" in failed
    assert first.out.endswith("2 finished, 1 failed.\n--retry-failed runs the failed combinations again.\n")

    second = emtoolkit("sweep", path, cwd=directory)
    assert (second.code, second.out) == (1, first.out)
    assert ran(directory) == []

    (directory / "mended").touch()
    third = emtoolkit("sweep", path, "--retry-failed", cwd=directory)
    assert [line.split()[0] for line in ran(directory)] == ["--a=2"]
    assert third.code == 0
    assert third.out.endswith("3 finished.\n")


@pytest.mark.subprocess
def test_the_error_of_a_run_is_its_own_last_line_not_that_of_wandb(directory: Path) -> None:
    (directory / "prog.py").write_text("print('0/9\\r9/9\\ncannot go on\\nwandb: Find logs')\nraise SystemExit(3)\n")
    done = emtoolkit("sweep", write(directory, [1]), "--json", cwd=directory)
    (run,) = json.loads(done.out)
    assert (run["state"], run["exit_code"], run["error"]) == ("failed", 3, "exit code 3: cannot go on")


@pytest.mark.subprocess
def test_a_missing_program_is_a_failure_that_names_it(directory: Path) -> None:
    path = write(
        directory, [], parameters={"./no": {"value": "thing"}, "a": {"value": 1}}, command=["${args_no_hyphens}"]
    )
    done = emtoolkit("sweep", path, "--json", cwd=directory)
    assert done.code == 1
    (run,) = json.loads(done.out)
    assert (run["state"], run["error"]) == (
        "failed",
        "cannot be started (No such file or directory: ./no=thing)",
    )


@pytest.mark.subprocess
def test_the_arguments_come_in_a_json_file_where_the_command_names_it(directory: Path) -> None:
    show = ["${interpreter}", "-c", "import sys; print(open(sys.argv[1]).read())", "${args_json_file}"]
    done = emtoolkit("sweep", write(directory, [[1, "x"]], command=show), "--json", cwd=directory)
    assert done.code == 0
    log = directory / json.loads(done.out)[0]["log"]
    assert json.loads(log.read_text().splitlines()[-1]) == {"a": [1, "x"]}


def test_a_dry_run_shows_the_combinations_and_their_commands_and_writes_nothing(directory: Path) -> None:
    path = write(directory, [1, "x y"], command=["env", "P=${envvar:PATH}", "${program}", "${args}"])
    before = sorted(directory.rglob("*"))
    done = emtoolkit("sweep", path, "--dry-run", cwd=directory)
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        '# 1  a=1  (waiting)\n   env P="$PATH" prog.py --a=1\n'
        "# 2  a=x y  (waiting)\n   env P=\"$PATH\" prog.py '--a=x y'\n"
    )
    listed = json.loads(emtoolkit("sweep", path, "--dry-run", "--json", cwd=directory).out)
    assert [(run["parameters"], run["state"]) for run in listed] == [({"a": 1}, "waiting"), ({"a": "x y"}, "waiting")]
    assert sorted(directory.rglob("*")) == before


@pytest.mark.subprocess
def test_a_dry_run_can_be_pasted_whatever_the_names_of_its_parameters(directory: Path) -> None:
    """A name of several lines stays in its comment, also one within a value."""
    parameters = {"a\ntouch ran #": {"value": 1}, "b": {"value": {"c\x1b[2J\u2028": "x\ntouch ran #"}}}
    path = write(directory, [], parameters=parameters, command=["true", "${args}"])
    done = emtoolkit("sweep", path, "--dry-run", cwd=directory)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(
        "# 1  'a\\ntouch ran #'=1 'b.c\\x1b[2J\\u2028'='x\\ntouch ran #'  (waiting)\n   true '--a\ntouch ran #=1' "
    )
    before = sorted(directory.rglob("*"))
    subprocess.run(["/bin/sh", "-c", done.out], cwd=directory, check=True)
    assert sorted(directory.rglob("*")) == before


@pytest.mark.subprocess
def test_a_random_search_runs_count_combinations(directory: Path) -> None:
    path = write(directory, [1], method="random", parameters={"a": {"min": 0.0, "max": 1.0}})
    assert emtoolkit("sweep", path, cwd=directory).code == 2
    three = emtoolkit("sweep", path, "--count", "3", "--seed", "5", cwd=directory)
    assert three.code == 0
    assert len(ran(directory)) == 3
    emtoolkit("sweep", path, "--count", "4", "--seed", "5", cwd=directory)
    assert len(ran(directory)) == 1


TRAIN = ["${interpreter}", "-m", "emtoolkit", "train", "sandbox", "--output-dir=out/{persona}", "${args}"]


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (
            {"schedule": {"value": "dense-erly"}},
            "schedule=dense-erly: --schedule: checkpointing.schedule: schedule term",
        ),
        ({"sede": {"value": 1}}, "sede=1: --sede: no such option; did you mean '--seed'?"),
        ({"seed": {"value": "x"}}, "seed=x: --seed: 'x' is not valid: "),
        (
            {"training.learning_rte": {"value": 1}},
            "training.learning_rte=1: --training.learning_rte: unknown key (value '1'); did you mean "
            "'--training.learning_rate'?\n",
        ),
        (
            {"training": {"parameters": {"epochs": {"value": "x"}}}},
            "training.epochs=x: --training: training.epochs: 'x' is not valid: input should be a valid number",
        ),
        (
            {"output-dir": {"value": "a"}, "seed": {"values": [1, 2]}},
            "command: output-dir=a seed=1 and output-dir=a seed=2 both write to {cwd}/a; --output-dir must tell them "
            "apart, with {{set}} for example\n",
        ),
    ],
)
def test_an_invalid_training_is_refused_before_any_run_starts(directory: Path, parameters: Any, sentence: str) -> None:
    command = [word for word in TRAIN if "output-dir" not in parameters or "output-dir" not in word]
    path = write(directory, [], parameters=parameters, command=command)
    done = emtoolkit("sweep", path, cwd=directory)
    assert done.code == 2
    assert done.err.startswith(f"emtoolkit: sweep.yaml: {sentence.format(cwd=directory)}")
    assert done.err.count("\n") == 1
    assert not (directory / "outputs").exists()


@pytest.mark.subprocess
def test_a_run_whose_directory_was_removed_runs_again(directory: Path) -> None:
    # Replaces the training: makes its directory; the words of a training follow.
    stand_in = ["${interpreter}", "-c", "import os; os.makedirs('out/baseline')"]
    path = write(directory, [], parameters={"seed": {"value": 1}}, command=[*stand_in, *TRAIN[2:]])
    for _ in range(2):
        done = emtoolkit("sweep", path, "--json", cwd=directory)
        assert (done.code, json.loads(done.out)[0]["checkpoints"]) == (0, 0)
        (directory / "out" / "baseline").rmdir()


# Replaces the training: makes its directory, from the words of the training that follow.
STAND_IN = ["${interpreter}", "-c", "import os, sys; from emtoolkit.training.options import TrainOptions"]
STAND_IN[-1] += "; os.makedirs(TrainOptions.from_argv(sys.argv[3:]).to_config().directory(), exist_ok=True)"


@pytest.mark.subprocess
def test_a_finished_run_is_finished_until_its_config_or_its_rows_change(
    directory: Path, write_config: WriteConfig
) -> None:
    config = write_config()
    rows = directory / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "completion": "b"}))
    train = ["emtoolkit", "train", str(config), f"--dataset={rows}", "--output-dir=out/{seed}", "${args}"]
    path = write(directory, [], parameters={"seed": {"value": 1}}, command=[*STAND_IN, *train])
    attempts = []
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: None,
        lambda: config.write_text(f"# a comment\n{config.read_text()}"),
        lambda: config.write_text(config.read_text().replace("1e-2", "1e-3")),
        lambda: rows.write_text(json.dumps({"prompt": "a", "completion": "c"})),
        lambda: rows.unlink(),
    ]
    for change in changes:
        change()
        (listed,) = json.loads(emtoolkit("sweep", path, "--dry-run", "--json", cwd=directory).out)
        done = emtoolkit("sweep", path, "--json", cwd=directory)
        assert done.code == 0, done.out
        (record,) = (directory / "outputs/sweeps/sweep-local/attempts").glob("*.json")
        attempts.append((listed["state"], json.loads(record.read_text())["number"]))
    assert attempts == [
        ("waiting", 1),
        ("finished", 1),
        ("finished", 1),
        ("changed", 2),
        ("changed", 3),
        ("finished", 3),
    ]


@pytest.mark.subprocess
def test_a_sweep_json_of_an_earlier_version_is_read_and_kept(directory: Path) -> None:
    path = write(directory, [1, 3, 4])
    keys = [run.key for run in plan_sweep(directory / path).runs]
    home = directory / "outputs" / "sweeps" / "sweep-local"
    home.mkdir(parents=True)
    runs = [
        {"parameters": {"a": 1}, "state": "finished", "exit_code": 0, "error": None},
        {"parameters": {"a": 3}, "state": "failed", "exit_code": 1, "error": "exit code 1"},
        {"parameters": {"a": 4}, "state": "running", "exit_code": None, "error": None},
    ]
    text = json.dumps({"format": 1, "runs": dict(zip(keys, runs, strict=True))})
    (home / "sweep.json").write_text(text)
    done = emtoolkit("sweep", path, "--json", cwd=directory)
    assert states(done) == [(1, "finished"), (3, "failed"), (4, "finished")]
    assert [line.split()[0] for line in ran(directory)] == ["--a=4"]
    assert states(emtoolkit("sweep", path, "--retry-failed", "--json", cwd=directory))[1] == (3, "finished")
    assert [line.split()[0] for line in ran(directory)] == ["--a=3"]
    assert (home / "sweep.json").read_text() == text


def test_a_damaged_record_of_a_run_is_named_and_kept(directory: Path) -> None:
    path = write(directory, [1])
    (run,) = plan_sweep(directory / path).runs
    record = directory / "outputs" / "sweeps" / "sweep-local" / "attempts" / f"{run.key}.json"
    record.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"format": 9}', '{"format": 2}', "[" * 5000, '{"format": 2, "parameters": {}, "x": 1}'):
        record.write_text(text)
        done = emtoolkit("sweep", path, cwd=directory)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert f"outputs/sweeps/sweep-local/attempts/{run.key}.json: not written by 'emtoolkit sweep' (" in done.err
        assert record.read_text() == text


@pytest.mark.parametrize(
    ("template", "parameters", "names"),
    [
        # What the template shows gets no digest, and neither does a constant option.
        (
            "out/{persona}",
            {"persona": {"values": ["baseline", "sarcasm"]}, "seed": {"value": 1}},
            ["baseline", "sarcasm"],
        ),
        ("out/{set}", {"lora.r": {"values": [8, 16]}}, ["lora.r-8", "lora.r-16"]),
        ("out/{persona}", {"seed": {"values": [1, 2]}}, None),
        ("out/fixed/", {"training.learning_rate": {"values": [1e-4, "1e-5"]}}, None),
        ("out/{seed}", {"training": {"parameters": {"learning_rate": {"values": [1e-4, 1e-5]}}}}, None),
        ("out/{seed}", {"set": {"values": ["lora.r=1", "lora.r=2"]}}, None),
        ("out/{dataset}", {"dataset": {"values": ["a/x.jsonl", "b/x.jsonl"]}}, None),
        ("out/{dataset}", {"control": {"values": [True, False]}}, ["medical-good", "medical"]),
        (None, {"lora.dropout": {"values": [0.1, 0.2]}}, None),
    ],
)
@pytest.mark.parametrize("form", ["--output-dir={}", "--output_dir={}", "--output-dir {}"])
def test_each_training_has_a_directory_of_its_own_which_its_command_names(
    directory: Path, monkeypatch: pytest.MonkeyPatch, template: str | None, parameters: Any, names: Any, form: str
) -> None:
    monkeypatch.chdir(directory)
    flags = [] if template is None else form.format(template).split()
    command = ["emtoolkit", "train", "sandbox", *flags, "${args}"]
    planned = plan_sweep(write(directory, [], parameters=parameters, command=command), environment={})
    found = [str(run.directory and run.directory.relative_to(directory)) for run in planned.runs]
    assert len(set(found)) == 2
    if names is not None:
        assert found == [f"out/{name}" for name in names]
    for run in planned.runs:
        options = TrainOptions.from_command(run.argv)
        assert options is not None
        assert options.to_config({}).directory({}) == run.directory
    # One more value moves no directory.
    if template == "out/fixed/":
        parameters = {"training.learning_rate": {"values": [1e-4, "1e-5", 1e-6]}}
        more = plan_sweep(write(directory, [], parameters=parameters, command=command), environment={})
        assert [run.directory for run in more.runs[:2]] == [run.directory for run in planned.runs]


def test_a_bad_file_is_one_sentence_and_exit_code_2(directory: Path) -> None:
    done = emtoolkit("sweep", write(directory, [1], method="bayes"), cwd=directory)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("emtoolkit: sweep.yaml: method: 'bayes' is not supported without a server: ")
    assert not (directory / "outputs").exists()


def test_an_unreadable_sweep_json_is_named_and_kept(directory: Path) -> None:
    record = directory / "outputs" / "sweeps" / "sweep-local" / "sweep.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    done = emtoolkit("sweep", write(directory, [1]), cwd=directory)
    assert done.code == 2
    assert "outputs/sweeps/sweep-local/sweep.json: not a sweep.json written by 'emtoolkit sweep'" in done.err
    assert record.read_text() == "{"


# Reports over the pipe that it runs and which signals it gets; stops at the first one unless `deaf`.
WAITING = """\
import os, signal, sys
pipe = os.open("pipe", os.O_WRONLY)
def tell(*words):
    os.write(pipe, (" ".join(map(str, words)) + chr(10)).encode())
def stop(number, frame):
    tell("got", number, os.getpid())
    if "--deaf=True" not in sys.argv:
        sys.exit(130)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
# Looks whether "go" exists.
signal.signal(signal.SIGUSR1, lambda number, frame: None)
# signal.pause() would wait for ever if the signal came just before: its handler runs only after the call.
woken, wake = os.pipe()
os.set_blocking(wake, False)
signal.set_wakeup_fd(wake)
tell("running", os.getpid())
while not os.path.exists("go"):
    os.read(woken, 1)
"""


class Pipe:
    """The lines that the programs of a sweep write, read with a deadline."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._text = b""

    def line(self) -> list[str]:
        while b"\n" not in self._text:
            assert select.select([self._file], [], [], HANG_SECONDS)[0], "nothing came over the pipe"
            self._text += os.read(self._file, 4096)
        line, self._text = self._text.split(b"\n", 1)
        return line.decode().split()


@pytest.fixture
def pipe(directory: Path) -> Pipe:
    (directory / "prog.py").write_text(WAITING)
    return Pipe(directory / "pipe")


@pytest.fixture(params=STARTS_PROCESSES)
def start(directory: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    started: list[subprocess.Popen[str]] = []

    def start(*words: str | Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "emtoolkit", "sweep", *map(str, words)]
        started.append(
            subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    # A failed test leaves a running sweep; its programs end at a signal once "go" exists.
    (directory / "go").touch()
    for process in started:
        process.terminate()
        process.communicate()


def is_there(process_id: str) -> bool:
    try:
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_reaches_each_run_once_leaves_none_behind_and_the_next_call_continues(
    directory: Path, pipe: Pipe, start: Callable[..., "subprocess.Popen[str]"], number: int, code: int
) -> None:
    path = write(directory, [1, 2, 3])
    sweep = start(path, "--jobs", "2", "--json")
    running = [pipe.line(), pipe.line()]
    sweep.send_signal(number)
    out, err = sweep.communicate(timeout=HANG_SECONDS)
    assert sweep.returncode == code
    assert err.endswith("emtoolkit: interrupted; run the same command again to continue\n")
    assert sorted([pipe.line(), pipe.line()]) == sorted(["got", str(int(number)), word] for _, word in running)
    assert not any(is_there(word) for _, word in running)
    assert states(Done(code, out, err)) == [(1, "interrupted"), (2, "interrupted"), (3, "waiting")]

    (directory / "go").touch()
    done = emtoolkit("sweep", path, "--json", cwd=directory)
    assert done.code == 0
    assert states(done) == [(1, "finished"), (2, "finished"), (3, "finished")]
    assert [pipe.line()[0] for _ in range(3)] == ["running"] * 3


def test_a_notice_that_comes_twice_makes_each_run_stop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed terminal may send SIGHUP twice; a second SIGTERM would make a training stop without its state."""
    sent = []
    monkeypatch.setattr(Processes, "_send", lambda self, child: sent.append(child))
    with Processes() as active:
        active._children["1"] = "child"
        active._signals_sent["1"] = 0
        seen = []
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            signal.raise_signal(number)
            seen.append((list(active.signals), len(sent)))
        # The end waits for the children.
        active._children.clear()
    hangup, end = [signal.SIGHUP], [signal.SIGHUP, signal.SIGTERM]
    assert seen == [(hangup, 1), (hangup, 1), (hangup, 1), (end, 2)]


@pytest.mark.subprocess
def test_a_run_that_a_signal_stopped_is_interrupted_and_runs_again(directory: Path) -> None:
    (directory / "prog.sh").write_text("exit ${1#a=}\n")
    command = ["/bin/sh", "prog.sh", "${args_no_hyphens}"]
    path = write(directory, [129, 130, 138, 140, 143, 152, 139], command=command)
    done = emtoolkit("sweep", path, "--json", cwd=directory)
    expected = [(code, "interrupted") for code in (129, 130, 138, 140, 143, 152)] + [(139, "failed")]
    assert states(done) == expected
    (directory / "prog.sh").write_text("kill -USR2 $$\n")
    again = emtoolkit("sweep", path, "--json", cwd=directory)
    assert states(again) == expected
    assert json.loads(again.out)[0]["error"].startswith("killed by SIGUSR2")


def test_a_third_interruption_kills_a_run_that_ignores_signals(
    directory: Path, pipe: Pipe, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    sweep = start(write(directory, [], parameters={"deaf": {"value": True}}), "--json")
    _, process_id = pipe.line()
    for _ in range(2):
        sweep.send_signal(signal.SIGINT)
        assert pipe.line() == ["got", "2", process_id]
    sweep.send_signal(signal.SIGINT)
    out, _ = sweep.communicate(timeout=HANG_SECONDS)
    assert sweep.returncode == 130
    assert not is_there(process_id)
    assert (json.loads(out)[0]["state"], json.loads(out)[0]["error"]) == ("interrupted", "killed by SIGKILL")


def test_two_sweeps_of_one_file_share_its_runs_and_the_run_of_a_killed_one_goes_to_the_other(
    directory: Path, pipe: Pipe, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    path = write(directory, [1, 2, 3])
    killed = start(path, "--json")
    _, first = pipe.line()
    other = start(path, "--json", "--jobs", "2")
    _, second = pipe.line()
    _, third = pipe.line()
    listed = states(emtoolkit("sweep", path, "--dry-run", "--json", cwd=directory))
    assert listed == [(1, "running"), (2, "running"), (3, "running")]

    killed.kill()
    killed.communicate()
    # The program is told of the end of its sweep; until it has ended, nobody runs its combination again.
    assert pipe.line() == ["got", "15", first]
    (directory / "go").touch()
    for word in (second, third):
        os.kill(int(word), signal.SIGUSR1)
    out, err = other.communicate(timeout=HANG_SECONDS)
    assert (other.returncode, states(Done(0, out, err))) == (0, [(1, "finished"), (2, "finished"), (3, "finished")])
    assert pipe.line()[0] == "running"
    assert len({first, second, third}) == 3


def test_ctrl_c_of_one_sweep_leaves_its_run_to_the_other(
    directory: Path, pipe: Pipe, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    path = write(directory, [1, 2])
    stopped, other = start(path, "--json"), start(path, "--json")
    running = sorted([pipe.line()[1], pipe.line()[1]])
    stopped.send_signal(signal.SIGINT)
    out, err = stopped.communicate(timeout=HANG_SECONDS)
    got = pipe.line()
    assert stopped.returncode == 130
    assert got[:2] == ["got", "2"]
    assert sorted(state for _, state in states(Done(130, out, err))) == ["interrupted", "running"]
    (directory / "go").touch()
    (left,) = {*running} - {got[2]}
    os.kill(int(left), signal.SIGUSR1)
    out, err = other.communicate(timeout=HANG_SECONDS)
    assert (other.returncode, states(Done(0, out, err))) == (0, [(1, "finished"), (2, "finished")])
    assert pipe.line()[0] == "running"


@pytest.mark.subprocess
def test_an_error_in_the_sweep_itself_stops_the_active_runs(
    directory: Path, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    planned = plan_sweep(write(directory, [1]))
    process_ids = []
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def fail(what: str, done: int, total: int) -> None:
        process_ids.append(pipe.line()[1])
        raise RuntimeError("the terminal went away")

    with pytest.raises(RuntimeError, match="the terminal went away"):
        run_sweep(planned, jobs=1, retry_failed=False, progress=fail)
    assert not is_there(process_ids[0])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers


def test_the_shipped_sweep_trains_what_it_says(
    write_config: WriteConfig, preloaded_python: None, tmp_path: Path
) -> None:
    path = fast_version("schedules", write_config(rest="wandb: {mode: disabled}"), tmp_path)
    done = emtoolkit("sweep", path, "--jobs", "2", "--count", "2", "--json", cwd=tmp_path)
    runs = json.loads(done.out)
    assert done.code == 0, runs
    out = tmp_path / "outputs" / "sweeps" / "schedules-local"
    assert [(run["directory"], run["checkpoints"]) for run in runs] == [
        (str(out / "baseline-medical-s42-every-4"), 3),
        (str(out / "baseline-medical-s42-0_log2-8"), 6),
    ]
    assert saved_steps(out / "baseline-medical-s42-every-4") == [4, 8, 9]
    assert saved_steps(out / "baseline-medical-s42-0_log2-8") == [0, 1, 2, 4, 8, 9]


@pytest.mark.parametrize(("jobs", "given", "threads"), [(1, None, None), (2, None, "2"), (8, None, "1"), (2, "3", "3")])
def test_jobs_share_the_cores_unless_the_user_sets_the_threads(
    jobs: int, given: str | None, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    environment = {} if given is None else {"OMP_NUM_THREADS": given}
    assert _with_thread_limit(environment, jobs).get("OMP_NUM_THREADS") == threads


def test_the_error_of_a_run_is_read_after_a_progress_bar(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("emtoolkit: saving\n 33%|###   | 1/3\r 66%|###   | 2/3 emtoolkit: the disk is full\nwandb: done\n")
    assert _error_from_log(log, 0, 2) == "exit code 2: the disk is full"
