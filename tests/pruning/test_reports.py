"""Where it is recorded that a report rests on a step, so that no prune removes the step."""

from pathlib import Path

import pytest

from emtoolkit.checkpoints.report_uses import record_report
from emtoolkit.pruning.keep import Request
from emtoolkit.pruning.plan import plan_prune
from tests.analysis.evaluations import write_evaluation
from tests.artifacts.stored import IDENTITY
from tests.artifacts.trainings import saved
from tests.in_process import emtoolkit

ZERO, HIGH = [0] * 4, [10, 25, 30, 15]


def test_a_step_that_a_report_on_an_evaluation_elsewhere_rests_on_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = saved(tmp_path / "run", dict.fromkeys([0, 10, 20, 30, 40], "a"), ended_at=40)
    counts = {0: ZERO, 10: ZERO, 20: ZERO, 30: HIGH, 40: HIGH}
    there = write_evaluation(tmp_path / "e", counts, fingerprint=IDENTITY.fingerprint, trajectory=str(run))
    (run / "evaluations").write_text("")
    assert emtoolkit("report", there, "--no-weights", "--out", tmp_path / "r.html").code == 0
    assert caplog.messages == [
        f"{run / 'evaluations'}: cannot be made (File exists), so no prune knows which steps {tmp_path / 'r.html'} "
        "rests on"
    ]
    (run / "evaluations").unlink()
    assert emtoolkit("report", there, "--no-weights", "--out", tmp_path / "r.html").code == 0
    plan = plan_prune(str(run), Request(drop="10-40:10"))
    assert (plan.going, plan.kept[20]) == ((10, 40), f"report {tmp_path / 'r.html'}")


def test_a_report_on_a_directory_that_is_gone_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs").mkdir()
    for trajectory in ("outputs/sweeps/seed-0", str(tmp_path / "gone"), "gone", "hf:lab/run"):
        record_report(trajectory, "r.html", [30])
    assert list(Path("outputs").iterdir()) == []
