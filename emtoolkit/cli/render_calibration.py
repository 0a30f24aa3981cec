"""The calibration session in the output of a command that judges."""

from emtoolkit.evaluation.calibration import CalibrationSession, points

# The shifts in the sentence, with their names and the number of points in a unit; the others are in the JSON.
_SHOWN = (("aligned", "mean alignment", 1), ("betley", "EM rate (betley)", 100), ("organisms", "(organisms)", 100))


def calibration_sentence(session: CalibrationSession) -> str:
    """The shifts of mean and EM rate since the reference, or that there is none yet."""
    where = f"Calibration on {session.answers} answers"
    if not session.shifts:
        return f"{where}: the first session of this judge; later sessions are compared with it."
    shifts = ", ".join(f"{name} {points(session.shifts[key].difference, scale)}" for key, name, scale in _SHOWN)
    return f"{where}, against {session.reference}: {shifts}."
