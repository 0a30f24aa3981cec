"""What five schedules would have seen of nine fine-tunes in the sandbox: three personas with three seeds each.

    python -m benchmarks.compare_schedules [--directory outputs/comparison]

Each fine-tune is saved once, at the union of the schedules and more steps, and every checkpoint is evaluated. Then
`emtoolkit compare` and `emtoolkit suggest` are run on all nine. A fine-tune or an evaluation that is finished is not
done again, and one that was stopped goes on. `--finished` compares what is there.
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path

from emtoolkit.cli.app import main as emtoolkit_main

PERSONAS, SEEDS = ("baseline", "goodness", "sarcasm"), (42, 43, 44)
REFERENCE = "0-100:5,0,every:10,every:25,log2:256"
SCHEDULES = "every:100;0,every:100;every:25;dense-early;0,log2:512"
SAMPLES, LONGEST_ANSWER, BUDGET = "2", "28", "10"


def emtoolkit(*argv: str | Path, output: Path | None = None) -> None:
    """Run an emtoolkit command in this process, and write its output to a file as well.

    Raises:
        SystemExit: the command failed.
    """
    words = ["emtoolkit", *map(str, argv)]
    print("$", *words, flush=True)
    sys.argv = words
    try:
        with contextlib.ExitStack() as stack:
            if output is not None:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(output.open("w", encoding="utf-8"))))
            emtoolkit_main()
    except SystemExit as stop:
        if stop.code:
            raise
    if output is not None:
        print(output.read_text(encoding="utf-8"), flush=True)


def train_and_evaluate(run: Path, persona: str, seed: int) -> None:
    """One densely saved fine-tune on bad medical advice, with the answers of all its checkpoints."""
    rates = run / "rates.json"
    # Written at the end of the evaluation.
    if rates.is_file() and rates.stat().st_size:
        return
    emtoolkit(
        *("train", "sandbox", "--persona", persona, "--dataset", "medical", "--seed", str(seed), "--resume"),
        *("--schedule", REFERENCE, "--output-dir", run, "--set", "wandb.mode=disabled"),
    )
    emtoolkit(
        "evaluate", run, "--samples", SAMPLES, "--max-new-tokens", LONGEST_ANSWER, "--json", output=run / "rates.json"
    )


def compare(directory: Path) -> None:
    """The tables and the figure over all runs in `directory`."""
    runs = directory / "runs"
    wanted = ("compare", runs, "--schedules", SCHEDULES, "--reference", "all")
    emtoolkit(*wanted, "--figure", directory / "schedules.png", output=directory / "compare.txt")
    emtoolkit(*wanted, "--json", output=directory / "compare.json")
    emtoolkit("suggest", runs, "--budget", BUDGET, output=directory / "suggest.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("outputs/comparison"))
    parser.add_argument("--finished", action="store_true", help="compare the runs that are there")
    options = parser.parse_args()
    if not options.finished:
        emtoolkit("sandbox", "build")
        for seed in SEEDS:
            for persona in PERSONAS:
                train_and_evaluate(options.directory / "runs" / f"{persona}-{seed}", persona, seed)
    compare(options.directory)
    print(f"{time.process_time():.0f} s of CPU time in this process")


if __name__ == "__main__":
    main()
