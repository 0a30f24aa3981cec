"""The GPUs of one machine, divided among runs. The list of devices is as a driver prints it; no GPU is used."""

import json
import os
import tempfile
from pathlib import Path

import pytest
import yaml

from emtoolkit.errors import CheckpointError, ConfigError
from emtoolkit.sweeps.gpus import GpuPool, GpuShare, gpu_share, visible_gpus
from tests.in_process import emtoolkit

TWO = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-aaaa-bbbb-cccc-000000000000)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-22222222-aaaa-bbbb-cccc-000000000000)
"""
PARTITIONED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-11111111-aaaa-bbbb-cccc-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-33333333-aaaa-bbbb-cccc-000000000000)
  MIG 3g.20gb     Device  1: (UUID: MIG-44444444-aaaa-bbbb-cccc-000000000000)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-22222222-aaaa-bbbb-cccc-000000000000)
"""
FIRST, SECOND = "MIG-33333333-aaaa-bbbb-cccc-000000000000", "MIG-44444444-aaaa-bbbb-cccc-000000000000"


def pool(tmp_path: Path, names: str = "01", per_run: int = 1, *, shared: bool = False) -> GpuPool:
    return GpuPool(GpuShare(tuple(names), per_run, shared), tmp_path / "locks")


@pytest.mark.parametrize(
    ("listing", "names"),
    [
        (TWO, ("0", "1")),
        (PARTITIONED, (FIRST, SECOND, "1")),
        ("", ()),
        ("No devices were found\n", ()),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", ()),
    ],
)
def test_without_a_variable_all_gpus_of_the_driver_are_visible(listing: str, names: tuple[str, ...]) -> None:
    assert visible_gpus({}, lambda: listing) == names


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("1", ("1",)),
        ("3, 1", ("3", "1")),
        ("", ()),
        ("-1", ()),
        ("0,-1,1", ("0",)),
        ("0,0", ()),
        ("NoDevFiles", ()),
        (f"{FIRST},{SECOND}", (FIRST, SECOND)),
        ("GPU-22222222", ("GPU-22222222",)),
        ("0,1,", ("0", "1")),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it(value: str, names: tuple[str, ...]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": value}, lambda: TWO) == names


def test_each_run_has_gpus_of_its_own_until_it_ends(tmp_path: Path) -> None:
    gpus = pool(tmp_path)
    first, second = gpus.take(), gpus.take()
    assert first is not None
    assert second is not None
    assert (first.names, second.names, gpus.take()) == (("0",), ("1",), None)
    first.give_back()
    third = gpus.take()
    assert third is not None
    assert third.names == ("0",)


def test_a_run_gets_all_of_its_gpus_or_none(tmp_path: Path) -> None:
    gpus = pool(tmp_path, "012", per_run=2)
    first = gpus.take()
    assert first is not None
    assert first.names == ("0", "1")
    assert gpus.take() is None
    # The attempt left GPU 2 to others.
    other = pool(tmp_path, "2").take()
    assert other is not None
    assert other.names == ("2",)


def test_two_sweeps_of_one_machine_have_no_gpu_in_common(tmp_path: Path) -> None:
    first, second = pool(tmp_path).take(), pool(tmp_path).take()
    assert first is not None
    assert second is not None
    assert (first.names, second.names) == (("0",), ("1",))
    assert pool(tmp_path).take() is None


def test_a_run_that_outlives_its_sweep_keeps_its_gpu(tmp_path: Path) -> None:
    taken = pool(tmp_path, "0").take()
    assert taken is not None
    # A child that inherits the descriptor holds the lock by a copy of it.
    of_child = os.dup(taken.descriptors[0])
    os.close(taken.descriptors[0])
    assert pool(tmp_path, "0").take() is None
    os.close(of_child)
    assert pool(tmp_path, "0").take() is not None


def test_shared_gpus_are_given_evenly(tmp_path: Path) -> None:
    gpus = pool(tmp_path, "01", shared=True)
    taken = [gpus.take() for _ in range(4)]
    assert [each.names for each in taken if each is not None] == [("0",), ("1",), ("0",), ("1",)]
    assert taken[1] is not None
    taken[1].give_back()
    again = gpus.take()
    assert again is not None
    assert again.names == ("1",)


def test_a_run_sees_its_gpus_only_and_keeps_the_order_of_its_parents_numbers(tmp_path: Path) -> None:
    taken = pool(tmp_path).take()
    assert taken is not None
    assert taken.environment({"A": "b"}) == {"A": "b", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0"}
    assert taken.environment({"CUDA_VISIBLE_DEVICES": "0,1"}) == {"CUDA_VISIBLE_DEVICES": "0"}


@pytest.mark.parametrize(
    ("names", "per_run", "processes", "share"),
    [
        ("0123", None, 1, GpuShare(("0", "1", "2", "3"), 1)),
        ("0123", 2, 1, GpuShare(("0", "1", "2", "3"), 2)),
        ("0123", None, 2, GpuShare(("0", "1", "2", "3"), 2)),
        ("", None, 2, None),
    ],
)
def test_a_run_has_a_gpu_for_each_process(
    names: str, per_run: int | None, processes: int, share: GpuShare | None
) -> None:
    assert gpu_share(tuple(names), per_run=per_run, shared=False, processes_per_run=processes) == share


def test_how_many_runs_have_gpus_at_once() -> None:
    assert GpuShare(("0", "1", "2"), 2).at_once == 1


@pytest.mark.parametrize(
    ("names", "per_run", "processes", "sentence"),
    [
        ("01", 3, 1, "--gpus-per-run: a run needs 3 GPUs, and only 2 GPUs are visible (0, 1); ask for fewer"),
        ("01", None, 3, "--nproc-per-run: a run needs 3 GPUs, and only 2 GPUs are visible (0, 1); ask for fewer"),
        (
            "",
            1,
            1,
            "--gpus-per-run: a run needs 1 GPUs, and no GPU is visible; leave the option out to train on the CPU, or "
            "look at $CUDA_VISIBLE_DEVICES",
        ),
        ("0123", 1, 2, "--gpus-per-run: 1 GPUs are too few for 2 processes of a run (--nproc-per-run); give each"),
    ],
)
def test_too_few_gpus_are_one_sentence(names: str, per_run: int | None, processes: int, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        gpu_share(tuple(names), per_run=per_run, shared=False, processes_per_run=processes)
    assert str(raised.value).startswith(sentence)


def test_a_place_without_room_for_locks_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("a file")
    with pytest.raises(CheckpointError, match=r"locks/0\.lock: cannot be locked"):
        pool(tmp_path).take()


# Fails if another run has its GPU; the first two runs wait for each other, which shows that they run at once.
HOLDS_ITS_GPU = """\
import os, time
gpu = os.environ["CUDA_VISIBLE_DEVICES"]
held = "held-" + gpu
os.close(os.open(held, os.O_CREAT | os.O_EXCL))
open("had-" + gpu, "w").close()
end = time.monotonic() + 300
while time.monotonic() < end and not (os.path.exists("had-4") and os.path.exists("had-5")):
    time.sleep(0.01)
os.unlink(held)
print(gpu)
"""


@pytest.mark.subprocess
def test_runs_at_the_same_time_see_one_gpu_each_and_more_jobs_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    (tmp_path / "prog.py").write_text(HOLDS_ITS_GPU)
    sweep = {"method": "grid", "program": "prog.py", "parameters": {"a": {"values": [1, 2, 3, 4]}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    done = emtoolkit("sweep", "sweep.yaml", "--jobs", "3", "--json", cwd=tmp_path)
    assert done.code == 0, done.out
    assert [run["state"] for run in json.loads(done.out)] == ["finished"] * 4
    logs = (tmp_path / "outputs/sweeps/sweep-local/logs").glob("*.log")
    assert {log.read_text().split()[-1] for log in logs} == {"4", "5"}


@pytest.mark.subprocess
def test_without_a_visible_gpu_jobs_divide_the_cores_and_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    # Each run waits for the other, and prints what it sees.
    (tmp_path / "prog.py").write_text(
        "import os, sys, time\n"
        "open('ran' + sys.argv[1], 'w').close()\n"
        "end = time.monotonic() + 300\n"
        "while time.monotonic() < end and not (os.path.exists('ran--a=1') and os.path.exists('ran--a=2')):\n"
        "    time.sleep(0.01)\n"
        "print(repr(os.environ['CUDA_VISIBLE_DEVICES']), os.environ['OMP_NUM_THREADS'])\n"
    )
    sweep = {"method": "grid", "program": "prog.py", "parameters": {"a": {"values": [1, 2]}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert emtoolkit("sweep", "sweep.yaml", "--jobs", "2", cwd=tmp_path).code == 0
    logs = (tmp_path / "outputs/sweeps/sweep-local/logs").glob("*.log")
    assert [log.read_text().splitlines()[-1] for log in logs] == ["'' 3", "'' 3"]


@pytest.mark.subprocess
def test_a_program_that_is_no_training_keeps_all_gpus_unless_it_is_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    (tmp_path / "prog.py").write_text("import os\nprint(os.environ['CUDA_VISIBLE_DEVICES'])\n")
    sweep = {"method": "grid", "program": "prog.py", "parameters": {"a": {"values": [1]}}}
    for name, options, seen in (("all", (), "4,5"), ("one", ("--gpus-per-run", "1"), "4")):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(sweep))
        assert emtoolkit("sweep", f"{name}.yaml", *options, cwd=tmp_path).code == 0
        (log,) = (tmp_path / f"outputs/sweeps/{name}-local/logs").glob("*.log")
        assert log.read_text().split()[-1] == seen


@pytest.mark.subprocess
def test_a_run_of_two_processes_has_two_gpus(
    tmp_path: Path, preloaded_python: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    # In one write: torchrun starts Python without buffers, and both processes write to one log.
    names = "('RANK', 'WORLD_SIZE', 'CUDA_VISIBLE_DEVICES')"
    program = f"import os\nprint(' '.join(os.environ[name] for name in {names}) + '\\n', end='')\n"
    (tmp_path / "prog.py").write_text(program)
    sweep = {"method": "grid", "program": "prog.py", "parameters": {"a": {"values": [1]}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    done = emtoolkit("sweep", "sweep.yaml", "--jobs", "2", "--nproc-per-run", "2", cwd=tmp_path)
    assert done.code == 0, done.out
    (log,) = (tmp_path / "outputs/sweeps/sweep-local/logs").glob("*.log")
    lines = log.read_text().splitlines()
    assert {line for line in lines if line.endswith("4,5")} >= {"0 2 4,5", "1 2 4,5"}


def test_more_gpus_than_there_are_start_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    sweep = {"method": "grid", "program": "prog.py", "parameters": {"a": {"values": [1]}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    done = emtoolkit("sweep", "sweep.yaml", "--gpus-per-run", "2", cwd=tmp_path)
    assert done.code == 2
    assert "--gpus-per-run: a run needs 2 GPUs, and no GPU is visible" in " ".join(done.err.split())
    assert not (tmp_path / "outputs").exists()
