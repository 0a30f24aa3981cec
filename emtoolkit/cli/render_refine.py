"""The output of `emtoolkit refine`: the price beforehand, and the steps that were added."""

from typing import TYPE_CHECKING

from emtoolkit.cli.layout import here
from emtoolkit.cli.render import as_json
from emtoolkit.schedules.steps import elided

if TYPE_CHECKING:
    from emtoolkit.training.refine import Refined
    from emtoolkit.training.refinement import Refinement


def price(plan: "Refinement") -> str:
    """One sentence: which steps are made, from where, and what that costs."""
    count = len(plan.missing)
    steps = f"step {plan.missing[0]}" if count == 1 else f"{count} steps ({elided(plan.missing, 60)})"
    origin = "step 0" if plan.start is None else f"the resume state of step {plan.from_step}"
    seconds = "" if plan.seconds is None else f", about {_time(plan.seconds)}"
    proofs = [step for step in plan.proofs if step > plan.from_step]
    proof = _proved(proofs) if proofs else _unproved(plan.from_step)
    cost = f"{plan.steps_to_train} optimizer steps{seconds}"
    return f"{here(plan.directory)}: {steps} to make from {origin}: {cost}; {proof}"


def plan_text(plan: "Refinement") -> str:
    """The plan as text."""
    if not plan.missing:
        return f"{here(plan.directory)}: every step that is asked for is there already ({elided(plan.asked, 60)})"
    return price(plan)


def plan_json(plan: "Refinement") -> str:
    """The plan as JSON."""
    return as_json(
        {
            "directory": str(plan.directory),
            "missing": list(plan.missing),
            "from_step": plan.from_step,
            "steps_to_train": plan.steps_to_train,
            "seconds": plan.seconds,
            "proved_by": list(plan.proofs),
        }
    )


def refined_text(done: "Refined") -> str:
    """The added steps, as text."""
    if not done.added:
        return f"{here(done.directory)}: every step that is asked for is there already"
    added = f"step {done.added[0]} is added" if len(done.added) == 1 else f"{len(done.added)} steps are added"
    listed = "" if len(done.added) == 1 else f" ({elided(done.added, 60)})"
    proof = ""
    if any(step > done.from_step for step in done.proved_by):
        listed_proofs = elided(done.proved_by, 40)
        count = len(done.proved_by)
        proof = f"; {count} existing {'step' if count == 1 else 'steps'} came out with the same bytes ({listed_proofs})"
    elif done.trained_steps:
        proof = f"; {_unproved(done.from_step)}"
    return f"{here(done.directory)}: {added}{listed}, for {done.trained_steps} optimizer steps{proof}"


def refined_json(done: "Refined") -> str:
    """The added steps, as JSON."""
    return as_json(
        {
            "directory": str(done.directory),
            "added": list(done.added),
            "proved_by": list(done.proved_by),
            "from_step": done.from_step,
            "trained_steps": done.trained_steps,
        }
    )


def _unproved(from_step: int) -> str:
    return f"no checkpoint after step {from_step} is there to prove them"


def _proved(steps: list[int]) -> str:
    if len(steps) == 1:
        return f"step {steps[0]} proves them"
    return f"{len(steps)} existing steps prove them ({elided(steps, 40)})"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{max(rest, 1)} s"
