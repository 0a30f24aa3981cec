"""Threads that wait sleep, and a small model trains with one thread; what the user has set stays."""

import subprocess
import sys

import pytest
import torch

from emtoolkit.cpu_threads import SMALL_MODEL, let_waiting_threads_sleep, threads_for


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"OMP_WAIT_POLICY": "passive"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"GOMP_SPINCOUNT": "1000"}, {"GOMP_SPINCOUNT": "1000"}),
        ({"KMP_BLOCKTIME": "200"}, {"KMP_BLOCKTIME": "200"}),
        ({"OMP_NUM_THREADS": "2"}, {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}),
    ],
)
def test_waiting_threads_sleep_unless_the_user_has_set_a_wait_policy(
    before: dict[str, str], after: dict[str, str]
) -> None:
    let_waiting_threads_sleep(before)
    assert before == after


@pytest.mark.parametrize(("parameters", "threads"), [(SMALL_MODEL - 1, 1), (SMALL_MODEL, 3)])
def test_a_small_model_computes_with_one_thread(parameters: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threads_for(parameters):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(usual)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_of_threads_that_the_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "3")
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threads_for(1):
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(usual)


@pytest.mark.subprocess
def test_the_command_line_sets_the_wait_policy_before_torch_is_imported() -> None:
    code = (
        "import os, sys; os.environ.pop('OMP_WAIT_POLICY', None); sys.argv = ['emtoolkit', '--help']\n"
        "from emtoolkit.cli import app\n"
        "try:\n"
        "    app.main()\n"
        "except SystemExit:\n"
        "    print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "passive False"
