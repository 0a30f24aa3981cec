"""Which resume states stay beside the newest: those at the steps of a schedule, so that a training can start there."""

from emtoolkit.errors import ConfigError, ScheduleError, shown
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.steps import Steps

NEWEST = "newest"


def kept_schedule(resume_keep: str) -> Schedule | None:
    """The schedule that `resume_keep` writes; None for `newest`, which keeps no other state.

    Raises:
        ConfigError: `resume_keep` is neither `newest` nor a schedule.
    """
    if resume_keep == NEWEST:
        return None
    if not isinstance(resume_keep, str):
        raise ConfigError(f"{shown(resume_keep)} is neither newest nor a schedule such as every:100")
    try:
        schedule = Schedule.parse(resume_keep)
        schedule.check_known()
    except ScheduleError as error:
        raise ConfigError(f"{error} (expected newest, or a schedule such as every:100)") from None
    return schedule


def kept_states(resume_keep: str, total_steps: int, *, allow_unreachable: bool = True) -> Steps:
    """The steps whose resume states stay: neither step 0, where every training starts, nor the last step.

    Raises:
        ConfigError: a step is written out, lies past the end of training, and must not.
    """
    schedule = kept_schedule(resume_keep)
    if schedule is None:
        return Steps.union([])
    try:
        schedule.check_reachable(total_steps, allow_unreachable=allow_unreachable)
    except ScheduleError as error:
        raise ConfigError(str(error)) from None
    return Steps.union([[step for step in schedule.steps(total_steps) if 0 < step < total_steps]])
