"""Kills `emtoolkit refine`, and a training that takes checkpoints of an earlier one, at their file-system events.

Part of `make crash-test`. Each command is killed before and after each event, called again, and compared with a command
that nothing killed. The libraries are imported once, and each command is a process forked from there.
"""

import argparse
import gc
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from emtoolkit.checkpoints.listing import list_checkpoints
from emtoolkit.errors import CheckpointError
from tests.crash.audit import AFTER, BEFORE, Audit, Counts, Point, Row, Subject, _spread, _table, kill_at_points
from tests.crash.shim import build, compiler
from tests.in_process import emtoolkit
from tests.saving.trainings import bytes_of
from tests.tiny import config_text, write_world

# Directories of the run under audit.
REFINED, FIRST, SECOND, STORE = "refined", "first", "second", "store"
# They hold times, processes and attempts.
_OF_ONE_RUN = {"publications.jsonl", "trainer_state.json", "environment.json", "training.json"}


def command(*words: str | Path) -> None:
    """Call `emtoolkit`.

    Raises:
        RuntimeError: its exit code is not 0.
    """
    done = emtoolkit(*words)
    if done.code != 0:
        raise RuntimeError(f"exit code {done.code}: {done.err}")


def _checkpoints(directory: Path) -> dict[str, bytes]:
    """The files of checkpoints below `directory`, by relative path."""
    return {name: content for name, content in bytes_of(directory).items() if "checkpoint-" in name}


def _after_kill(directory: Path, reference: Path) -> list[str]:
    """Checkpoints that are incomplete, or other ones than those of a command that nothing killed."""
    faults = []
    for trajectory in sorted({path.parent for path in directory.rglob("trajectory.json")}):
        try:
            listed = list_checkpoints(trajectory, rehash=True)
        except CheckpointError as error:
            faults.append(f"{trajectory.name} cannot be listed: {error}")
            continue
        for info in listed:
            expected = reference / info.path.relative_to(directory)
            if not info.complete:
                faults.append(f"{info.path.name} is corrupt: {'; '.join(info.problems)}")
            elif expected.is_dir() and bytes_of(info.path) != bytes_of(expected):
                faults.append(f"{info.path.name} is listed as whole and has other bytes")
    return faults


def _at_end(directory: Path, reference: Path) -> tuple[list[str], list[str]]:
    ours, theirs = _checkpoints(directory), _checkpoints(reference)
    differing = [f"{name} is missing or differs at the end" for name in theirs if ours.get(name) != theirs[name]]
    names = {str(path.relative_to(directory)) for path in directory.rglob("*")}
    expected = {str(path.relative_to(reference)) for path in reference.rglob("*")}
    extra = {name for name in names - expected if Path(name).name not in _OF_ONE_RUN}
    return differing, [f"{name} was left over" for name in sorted(extra)]


def refine_subject(config: Path) -> tuple[Callable[[Path], None], Subject]:
    """A finished run of steps 0, 4 and 9, and the command that adds steps 2 and 6."""

    def begin(directory: Path) -> None:
        command("train", config, "--output-dir", directory / REFINED, "--schedule", "0,4")

    def refine(directory: Path) -> None:
        command("refine", directory / REFINED, "--steps", "2,6", "--yes")

    return begin, Subject(refine, refine, _after_kill, _at_end)


def reuse_subject(config: Path) -> tuple[Callable[[Path], None], Subject]:
    """A run that has left steps 0, 4 and 9 in a store, and another schedule that takes them and trains to step 6."""

    def train(directory: Path, name: str, schedule: str) -> None:
        place = ("--output-dir", directory / name, "--set", f"trajectory.store={directory / STORE}")
        command("train", config, *place, "--schedule", schedule, "--reuse", "--resume")

    return (
        lambda directory: train(directory, FIRST, "0,4"),
        Subject(
            lambda directory: train(directory, SECOND, "0,4,6"),
            lambda directory: train(directory, SECOND, "0,4,6"),
            _after_kill,
            _at_end,
        ),
    )


def audit_command(
    audit: Audit, name: str, begin: Callable[[Path], None], subject: Subject, spread: int | None
) -> list[Counts]:
    """Kill the command before and after each of its events, or at about `spread` of them."""
    audit.clear()
    audit.run.mkdir()
    audit.in_child(lambda: begin(audit.run), expect=0)
    start = audit.kept(f"{name}-start")
    reference, events = audit.uninterrupted(subject.train, f"{name}-reference", start)
    rows = [
        Row(f"{name}, {how} each event", subject, [Point(event, how) for event in events], start)
        for how in (BEFORE, AFTER)
    ]
    rows = rows if spread is None else _spread(rows, spread)
    return [kill_at_points(audit, row, reference) for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spread", type=int, metavar="N", help="only about N kill points of each command")
    arguments = parser.parse_args()
    if compiler() is None:
        print("there is no C compiler (cc or gcc) here, and the audit needs one", file=sys.stderr)
        return 2
    logging.getLogger("emtoolkit").setLevel(logging.ERROR)
    started = time.monotonic()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as work:
        audit = Audit(Path(work).resolve(), build(Path(work)))
        config = Path(work, "run.yaml")
        config.write_text(config_text(write_world(Path(work, "world")), rest="wandb: {mode: disabled}"))
        _warm_up()
        counts = []
        for name, (begin, subject) in {"refine": refine_subject(config), "reuse": reuse_subject(config)}.items():
            counts += audit_command(audit, name, begin, subject, arguments.spread)
    print(_table(counts))
    for fault in [fault for row in counts for fault in row.faults]:
        print(f"  {fault}")
    print(f"{time.monotonic() - started:.0f} s")
    return 0 if all(row.is_clean for row in counts) else 1


def _warm_up() -> None:
    """Import what every child needs, and take inherited objects out of the garbage collection."""

    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
