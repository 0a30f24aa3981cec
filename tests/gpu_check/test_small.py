"""The checks of `make gpu-check` in their small form, on the CPU: the script is in order, and what can pass does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu_check.__main__ import CHECKS, lines, outcomes
from tests.gpu_check.device import Device, Outcome


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_a_cpu_can_check_passes_and_the_rest_says_why_not(check: object, tmp_path: Path) -> None:
    assert callable(check)
    found = list(outcomes(Device("cpu", tmp_path, processes=False), check))
    assert found
    assert [outcome for outcome in found if outcome.result not in ("PASS", "SKIP")] == []
    assert all(outcome.note for outcome in found if outcome.result == "SKIP")


def test_a_check_that_raises_has_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(device: Device) -> Iterator[Outcome]:
        yield Outcome.of("first", True)
        raise ValueError("torn")

    first, found = outcomes(Device("cpu", tmp_path), broken)
    assert (first.result, found.result, found.note) == ("PASS", "FAIL", "ValueError: torn")
    assert "Traceback" in capsys.readouterr().err


def test_an_outcome_is_at_most_80_columns_wide() -> None:
    text = lines(Outcome("a name of some length, as checks have", "PASS", "5 of 7 steps differ, " * 6))
    assert len(text) > 2
    assert max(map(len, text)) <= 80
    assert lines(Outcome("short", "PASS", "3 equal steps")) == ["PASS  short: 3 equal steps"]
