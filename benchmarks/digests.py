"""The processor time of hashing one checkpoint for W&B, with MD5 and with XXH128.

    python -m benchmarks.digests [--megabytes 9.6] [--repeats 15] [--json FILE]

The files of a checkpoint that this process wrote get W&B's digest, and are compared with their manifest. Both kinds
alternate.
"""

import argparse
import statistics
import time
from pathlib import Path

from benchmarks.subject import report, scratch
from emtoolkit.artifacts.digest_algorithm import Algorithm
from emtoolkit.artifacts.publication import CheckedArtifact, Publication
from emtoolkit.checkpoints.manifest import TrajectorySeal
from emtoolkit.checkpoints.trajectory_identity import Identity

KINDS: tuple[Algorithm, ...] = ("MD5", "XXH128")


def milliseconds_of(publication: Publication, kind: Algorithm) -> float:
    """The processor time of one artifact, in ms."""
    began = time.process_time()
    CheckedArtifact.of(publication, "collection", kind)
    return (time.process_time() - began) * 1e3


def publication_of(directory: Path, megabytes: float) -> Publication:
    """A sealed checkpoint of that size."""
    (checkpoint := directory / "checkpoint-7").mkdir()
    (checkpoint / "adapter_model.safetensors").write_bytes(bytes(int(megabytes * 1e6)))
    sealed = TrajectorySeal(Identity(fingerprinted={"seed": 7}), 8).seal(checkpoint, 7)
    return Publication(7, checkpoint, False, {"step": 7}, sealed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=9.6)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    with scratch() as directory:
        publication = publication_of(directory, arguments.megabytes)
        taken = [[milliseconds_of(publication, kind) for kind in KINDS] for _ in range(arguments.repeats)]
    rows = [
        {"digest": kind, "processor ms, median": f"{statistics.median(times):.1f}", "least": f"{min(times):.1f}"}
        for kind, times in zip(KINDS, zip(*taken, strict=True), strict=True)
    ]
    report(f"Hashing a checkpoint of {arguments.megabytes} MB for W&B", rows, arguments.json)


if __name__ == "__main__":
    main()
