"""The plan of `emtoolkit refine`: the missing steps, where their training starts, its price, and its proof."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Any

from emtoolkit.checkpoints.layout import REFINING, RESOLVED_CONFIG, step_of
from emtoolkit.checkpoints.publications import Publications
from emtoolkit.checkpoints.trajectory_file import WRITTEN_AGAIN, TrajectoryRecord
from emtoolkit.checkpoints.trajectory_identity import Identity
from emtoolkit.config.scheduling import EvaluationConfig
from emtoolkit.config.sections import RunConfig
from emtoolkit.errors import CheckpointError, UserError, located
from emtoolkit.progress import Bar, no_bar
from emtoolkit.saving.output_directory import OutputDirectory
from emtoolkit.saving.resume_state import newest_resume_state
from emtoolkit.schedules.grammar import split_terms
from emtoolkit.schedules.schedule import Schedule
from emtoolkit.schedules.selection import FINAL
from emtoolkit.schedules.steps import Steps
from emtoolkit.shell_command import quoted_command
from emtoolkit.training.prepare import PreparedRun, prepare
from emtoolkit.training.resolved_config import read_resolved_config

# The keys of a config that take fractions, so that a whole number can be written in two ways.
_WITH_NUMBERS = {
    "training": {"learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "epochs", "test_fraction"},
    "lora": {"alpha", "dropout"},
}
# Of the keys that differ, as many are named.
_MOST_NAMED = 3
# As many processes are tried where the trajectory does not say how many trained it.
_MOST_PROCESSES = 1024


@dataclass(frozen=True, slots=True)
class Refinement:
    """A plan: the `missing` of the `asked` steps are trained from `start` (None: step 0) up to `last`.

    `proofs` are the steps on the way whose checkpoints exist; each must come out with its bytes. `seconds` is the
    estimated time of the training, None where the trajectory does not say how long its steps took.
    """

    directory: Path
    record: TrajectoryRecord
    config: RunConfig
    prepared: PreparedRun
    identity: Identity
    asked: tuple[int, ...]
    missing: tuple[int, ...]
    proofs: tuple[int, ...]
    start: Path | None
    last: int
    seconds: float | None

    @property
    def from_step(self) -> int:
        """The step from which training starts."""
        return 0 if self.start is None else step_of(self.start.name) or 0

    @property
    def steps_to_train(self) -> int:
        """The optimizer steps that will be executed."""
        return self.last - self.from_step if self.missing else 0

    @property
    def scratch(self) -> Path:
        """The directory in which the steps are trained; it is deleted at the end."""
        return self.directory / REFINING


def plan_refinement(
    directory: Path, steps: str, *, config: Path | None = None, base: str | None = None, bar: Bar = no_bar
) -> Refinement:
    """The plan to make the missing ones of `steps` of the trajectory in `directory` again.

    Args:
        steps: a schedule, whose every step is asked for, with the word `final` for the last step.
        config: the config of the training, for a directory without `config.yaml`.
        base: the present place of the base model.

    Raises:
        CheckpointError: the directory holds no finished trajectory, another process uses it, the steps are not in it,
            or the config is that of another trajectory; the differing keys are named.
        UserError: the run cannot work here, such as a base model that is not at its place.
    """
    contents, record = _finished(directory)
    asked = asked_steps(steps, record)
    directory = contents.path
    chosen = _config(directory, config, base)
    try:
        with located(str(config or directory / RESOLVED_CONFIG)):
            prepared = prepare(chosen, bar=bar)
    except UserError as error:
        advice = "; --base PATH names its present place" if ": model.base: " in str(error) else ""
        raise type(error)(f"{error}{advice}") from None
    identity = _as_recorded(prepared.identity, record)
    if not record.is_of(identity.fingerprint, identity.fingerprinted):
        if (processes := _processes_of(record, identity)) is not None:
            raise _other_launch(processes, directory, steps, config, base)
        raise _other_trajectory(directory, record, identity)
    chosen = _as_spelled(chosen, record.fingerprinted or identity.fingerprinted)
    missing = tuple(step for step in asked if step not in contents.complete_steps)
    refinement = Refinement(
        directory, record, chosen, prepared, contents.identity_here(identity), asked, missing, (), None, 0, None
    )
    if not missing:
        return refinement
    with bar() as progress:
        start = newest_resume_state(directory, missing[0], progress=progress)
    refinement = replace(refinement, start=start)
    proofs = _proofs(sorted(contents.complete_steps), refinement.from_step, missing[-1])
    refinement = replace(refinement, proofs=proofs, last=max(*missing, *proofs, 0))
    seconds = seconds_per_step(directory)
    return replace(refinement, seconds=None if seconds is None else seconds * refinement.steps_to_train)


def asked_steps(text: str, record: TrajectoryRecord) -> tuple[int, ...]:
    """The steps that the schedule `text` names, from 0 to the end of training.

    Raises:
        CheckpointError: a step is written out and past the end of training, or no step is named.
        ScheduleError: `text` is no schedule.
    """
    end = record.total_steps if record.ended_at is None else record.ended_at
    with located(f'--steps "{text}"'):
        asked = split_terms(text)
        rules = [term for term in asked if term != FINAL]
        schedule = Schedule.parse(",".join(rules), selectors=(FINAL,)) if rules or not asked else None
        if schedule is not None:
            schedule.check_known()
        if schedule is not None and (beyond := schedule.unreachable(end)):
            raise CheckpointError(f"step {beyond[0]} is not in the trajectory, whose steps are 0 to {end}")
        # Of the terms alone: a schedule adds the last step.
        named = [] if schedule is None else [term.steps(record.total_steps) for term in schedule.fixed_terms]
        found = [step for step in Steps.union([*named, (end,) if FINAL in asked else ()]) if step <= end]
        if not found:
            raise CheckpointError(f"names no step of the trajectory, whose steps are 0 to {end}")
    return tuple(found)


def seconds_per_step(directory: Path) -> float | None:
    """The seconds that a step of the trajectory took; None where its checkpoints do not say."""
    times = sorted(
        (step, seconds)
        for step, metadata in Publications.read(directory).metadata.items()
        if isinstance(seconds := metadata.get("seconds_since_start"), int | float)
    )
    # A training that was resumed starts to count again.
    rates = [
        (after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(times) if after[1] > before[1]
    ]
    return median(rates) if rates else None


def _finished(directory: Path) -> tuple[OutputDirectory, TrajectoryRecord]:
    """The contents of a directory whose training has ended, and that no process is saving into."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: there is no such directory")
    contents = OutputDirectory.open(directory.absolute())
    contents.check_not_in_use()
    if contents.record_problem is not None:
        raise CheckpointError(f"{contents.record_problem}; {WRITTEN_AGAIN}")
    if contents.record is None:
        raise CheckpointError(
            f"{directory}: holds no trajectory of emtoolkit (no trajectory.json); name the output directory of an "
            "'emtoolkit train'"
        )
    if contents.record.ended_at is None:
        last = max(contents.complete_steps, default=0)
        raise CheckpointError(
            f"{directory}: this training has not ended (its last checkpoint is step {last} of "
            f"{contents.record.total_steps}); run its command with --resume first"
        )
    return contents, contents.record


def _config(directory: Path, file: Path | None, base: str | None) -> RunConfig:
    """The config of the training, without its evaluations, which change no weights."""
    config = read_resolved_config(directory, file).model_copy(update={"evaluation": EvaluationConfig()})
    if base is None:
        return config
    return config.model_copy(update={"model": config.model.model_copy(update={"base": base})})


def _as_spelled(config: RunConfig, facts: Mapping[str, Any]) -> RunConfig:
    """`config` with `lora.alpha` as in `facts`, 64 or 64.0, because each `adapter_config.json` holds the number."""
    recorded = (facts.get("lora") or {}).get("alpha")
    if config.lora is None or recorded != config.lora.alpha:
        return config
    return config.model_copy(update={"lora": config.lora.model_copy(update={"alpha": recorded})})


def _other_trajectory(directory: Path, record: TrajectoryRecord, identity: Identity) -> CheckpointError:
    differences = record.differs_from(identity.fingerprinted) if record.fingerprinted else []
    here = f"its fingerprint is {record.fingerprint[:8]} there and {identity.fingerprint[:8]} here"
    named = "; ".join(differences[:_MOST_NAMED]) or here
    more = f"; and {len(differences) - _MOST_NAMED} more keys" if len(differences) > _MOST_NAMED else ""
    return CheckpointError(
        f"{directory}: this config does not describe the training that is there, so no step can be made again "
        f"({named}{more})"
    )


def _processes_of(record: TrajectoryRecord, identity: Identity) -> int | None:
    """The number of processes with which `identity` would be the trajectory of `record`; None if more differs."""
    facts = {name: value for name, value in identity.fingerprinted.items() if name != "processes"}
    # A directory that was downloaded has the fingerprint and no facts.
    counts = [record.fingerprinted.get("processes", 1)] if record.fingerprinted else range(1, _MOST_PROCESSES + 1)
    for count in counts:
        launched = replace(identity, fingerprinted=facts | ({} if count == 1 else {"processes": count}))
        if record.is_of(launched.fingerprint, launched.fingerprinted):
            return int(count)
    return None


def _other_launch(
    processes: int, directory: Path, steps: str, config: Path | None, base: str | None
) -> CheckpointError:
    launcher = () if processes == 1 else ("torchrun", "--nproc-per-node", str(processes), "-m")
    options = (*(() if config is None else ("--config", config)), *(() if base is None else ("--base", base)))
    command = quoted_command(*launcher, "emtoolkit", "refine", directory, "--steps", steps, *options)
    trained_by = (
        "one process, and only one makes" if processes == 1 else f"{processes} processes, and only as many make"
    )
    return CheckpointError(f"{directory}: was trained by {trained_by} its steps again; run {command}")


def _as_recorded(identity: Identity, record: TrajectoryRecord) -> Identity:
    """`identity` with the fingerprint of `record`, if the facts differ only in how whole numbers are written.

    A default such as 5 and the 5.0 of a config that writes it out have two digests. A directory that was downloaded
    has the digest and not the facts, which `TrajectoryRecord.is_of` would compare.
    """
    if record.fingerprinted or record.fingerprint == identity.fingerprint:
        return identity
    sections = {name: dict(identity.fingerprinted.get(name) or {}) for name in _WITH_NUMBERS}
    whole = [
        (section, key)
        for section, values in sections.items()
        for key, value in values.items()
        if key in _WITH_NUMBERS[section] and value is not None and float(value).is_integer()
    ]
    for types in product((int, float), repeat=len(whole)):
        facts = {**identity.fingerprinted, **{name: dict(values) for name, values in sections.items() if values}}
        for (section, key), written in zip(whole, types, strict=True):
            facts[section][key] = written(sections[section][key])
        candidate = replace(identity, fingerprinted=facts)
        if candidate.fingerprint == record.fingerprint:
            return candidate
    return identity


def _proofs(existing: Sequence[int], first: int, last: int) -> tuple[int, ...]:
    """The existing steps that training passes from `first` on; if none is after `first` until `last`, the next one.

    The weights at `first` itself are read and not computed, unless `first` is 0.
    """
    passed = [step for step in existing if first <= step <= last]
    if any(step > first for step in passed):
        return tuple(passed)
    following = next((step for step in existing if step > last), None)
    return tuple(passed if following is None else [*passed, following])
