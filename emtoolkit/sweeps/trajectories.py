"""The runs of a sweep that are one trajectory: they differ in nothing but when they save, and share one training."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from emtoolkit.schedules.schedule import Schedule
from emtoolkit.sweeps.command import Word

if TYPE_CHECKING:
    from emtoolkit.config.scheduling import CheckpointingConfig
    from emtoolkit.config.sections import RunConfig
    from emtoolkit.sweeps.plan import SweepRun

# What decides neither the weights nor what a training measures on its way.
_OWN = {"checkpointing", "hub", "output_dir", "preflight", "trajectory", "wandb"}
_REUSE = ("--reuse", "--no-reuse", "--no_reuse")


def with_shared_trajectories(
    runs: Sequence["SweepRun"], reuse: bool, with_words: Callable[["SweepRun", Sequence[Word]], "SweepRun"]
) -> list["SweepRun"]:
    """`runs` whose commands say that they reuse, and which steps the other runs of their trajectory want.

    With `reuse` false every run trains alone. `with_words` gives a run another command.
    """
    if not reuse:
        return [run if run.config is None else _without_reuse(run, with_words) for run in runs]
    groups: dict[str, list[SweepRun]] = {}
    for run in runs:
        config = run.config
        if config is None or config.trajectory.reuse is False:
            continue
        # Steps that are chosen during a training are its own.
        if config.checkpointing.to_schedule().adaptive is None:
            groups.setdefault(_key(config), []).append(run)
    shared = {}
    for key, members in groups.items():
        schedule = _union(member.config.checkpointing for member in members if member.config is not None)
        for run in members:
            shared[run.key] = replace(_reusing(run, schedule, with_words), group=key)
    return [shared.get(run.key, run) for run in runs]


def _reusing(
    run: "SweepRun", schedule: Schedule, with_words: Callable[["SweepRun", Sequence[Word]], "SweepRun"]
) -> "SweepRun":
    config = run.config
    if config is None:
        return run
    words = [] if config.trajectory.reuse else [Word("--reuse")]
    if config.trajectory.also_save is None and set(schedule.terms) != set(config.checkpointing.to_schedule().terms):
        words.append(Word(f"--trajectory.also_save={schedule}"))
    return with_words(run, [*run.command, *words])


def _without_reuse(run: "SweepRun", with_words: Callable[["SweepRun", Sequence[Word]], "SweepRun"]) -> "SweepRun":
    if run.config is None or not run.config.trajectory.reuse:
        return run
    words = [word for word in run.command if word.text not in _REUSE]
    return with_words(run, [*words, Word("--no-reuse")])


def _key(config: "RunConfig") -> str:
    facts = config.model_dump_json(exclude=_OWN)
    return hashlib.sha256(facts.encode()).hexdigest()


def _union(sections: Iterable["CheckpointingConfig"]) -> Schedule:
    return reduce(or_, (checkpointing.to_schedule() for checkpointing in sections))
