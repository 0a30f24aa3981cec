"""Personas in the sandbox: what each changes before step 1 and at the end, and how far each turns, over three seeds.

    python -m benchmarks.personas {preflight,turning} [--directory DIR] [--json FILE]

`preflight` trains every persona in every composition once; `turning` trains four personas on bad and on good medical
advice from three seeds and asks the checkpoints the held-out questions outside medicine. Runs that are there already in
DIR are not trained again. The sandbox is to be built before, and `emtoolkit sandbox persona all` run.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from emtoolkit.config.load import load_config
from emtoolkit.sandbox.evaluate import evaluate_run
from emtoolkit.sandbox.personas import PERSONAS
from emtoolkit.sandbox.results import shares_of_checkpoints
from emtoolkit.training.result import RunResult
from emtoolkit.training.run import train

TURNING = ("baseline", "goodness", "goodness-adapter", "sarcasm")
DATASETS = ("medical", "medical-good")
SEEDS = (42, 43, 44)
STEPS = (0, 25, 50, 100, 397)


def run(directory: Path, persona: str, compose: str | None, dataset: str, seed: int) -> RunResult:
    flags = {
        "persona": persona,
        "compose": compose,
        "dataset": dataset,
        "seed": seed,
        "output_dir": str(directory),
        "checkpointing.schedule": "0,25,50,100",
        "wandb.mode": "disabled",
    }
    with redirect_stdout(sys.stderr):
        return train(load_config("sandbox", flags=flags), resume=True)


def preflight(directory: Path) -> Iterator[dict[str, Any]]:
    """Each persona as a system prompt, and its character adapter merged and stacked."""
    for persona in PERSONAS:
        ways = [(persona, None)]
        ways += [] if persona == "baseline" else [(f"{persona}-adapter", "merge"), (f"{persona}-adapter", "stack")]
        for name, compose in ways:
            found = directory / "preflight" / f"{name}-{compose or 'as-it-is'}"
            result = run(found, name, compose, "medical", 42)
            kept = found / "differences.json"
            if result.trained:
                kept.write_text(json.dumps([difference.largest for difference in result.persona_effects]))
            before, end = json.loads(kept.read_text())
            composition = (
                result.persona_effects[0].persona.composition if result.trained else compose or "system_prompt"
            )
            yield {"persona": persona, "composition": composition, "before step 1": before, "at the end": end}


def turning(directory: Path) -> Iterator[dict[str, Any]]:
    """The harmful share outside medicine by persona, data and step: of each seed, and over the seeds."""
    steps = ",".join(map(str, STEPS))
    for dataset in DATASETS:
        for persona in TURNING:
            shares: dict[int, list[float]] = {}
            for seed in SEEDS:
                found = directory / f"{persona}-{dataset}-s{seed}"
                run(found, persona, None, dataset, seed)
                evaluated = evaluate_run(found, samples=4, steps=steps)
                for checkpoint in shares_of_checkpoints(evaluated.rows, evaluated.domains, "medical"):
                    shares.setdefault(checkpoint.step, []).append(checkpoint.emerged.share)
            yield {"persona": persona, "data": dataset, "shares": shares}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    if "shares" not in rows[0]:
        by_persona: dict[str, dict[str, dict[str, Any]]] = {}
        for row in rows:
            by_persona.setdefault(row["persona"], {})[row["composition"]] = row
        ways = ("system_prompt", "merge", "stack")
        yield "| persona | " + " | ".join(ways) + " |"
        yield "|---" * (len(ways) + 1) + "|"
        for persona, found in by_persona.items():
            cells = [_two(found.get(way) or found.get("none")) for way in ways]
            yield f"| {persona} | " + " | ".join(cells) + " |"
        return
    yield "| persona | data | " + " | ".join(map(str, STEPS)) + " |"
    yield "|---" * (len(STEPS) + 2) + "|"
    for row in rows:
        cells = [f"{statistics.mean(s):.2f} ({min(s):.2f}-{max(s):.2f})" for s in row["shares"].values()]
        yield f"| {row['persona']} | {row['data']} | " + " | ".join(cells) + " |"


def _two(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['before step 1']:.2f}, {row['at the end']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("preflight", "turning"))
    parser.add_argument("--directory", type=Path, default=Path("outputs/personas"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    # The order of sums, and so every figure, depends on it; two threads are hardly faster on so small a model.
    torch.set_num_threads(1)
    rows = list((preflight if options.what == "preflight" else turning)(options.directory))
    for line in table(rows):
        print(line)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
