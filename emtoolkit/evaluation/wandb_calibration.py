"""The drift of the judge in the summary of a W&B run: what the newest session of the calibration found."""

from collections.abc import Mapping, Sequence
from typing import Any


def calibration_summary(sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of the newest of `sessions`, as `evaluation.json` has them, by their names on W&B.

    `calibration/NAME/shift` is the difference of a score or a rate to the reference, with its 95 % interval, and
    `calibration/drifted` is 1 where the session warns of one. The first session of a judge has no shift.
    """
    if not sessions:
        return {}
    session = sessions[-1]
    notes = session.get("notes", ())
    found: dict[str, Any] = {
        "calibration/sessions": len(sessions),
        "calibration/answers": session.get("answers"),
        "calibration/reference": session.get("reference"),
        "calibration/drifted": int(bool(notes) and bool(session.get("shifts"))),
    }
    for name, shift in session.get("shifts", {}).items():
        interval = shift["difference"]["interval"]
        found |= {
            f"calibration/{name}/before": shift["before"],
            f"calibration/{name}/now": shift["now"],
            f"calibration/{name}/shift": shift["difference"]["mean"],
            f"calibration/{name}/shift/low": interval["low"],
            f"calibration/{name}/shift/high": interval["high"],
        }
    found |= {f"calibration/{name}/flipped": share for name, share in session.get("flipped", {}).items()}
    return {name: value for name, value in found.items() if value is not None} | (
        {"calibration/notes": "; ".join(map(str, notes))} if notes else {}
    )
