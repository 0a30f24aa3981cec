"""What the forced choice costs: the sandbox's pairs, against one forward pass for each prompt with its answer.

    OMP_NUM_THREADS=1 python -m benchmarks.forced_choice [--rounds N] [--json FILE]

Ratios of CPU seconds of four checkpoints, the alternatives taking turns in one run, the median of the rounds. Nothing
is loaded in the measured time but the weights of the next adapter.

single: one pass for each answer. exact: answers of one length together, as `--exact` does. packed: a prompt with both
of its answers in one row. stacked: the same for all checkpoints in one batch, as by default.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.adapters import Subject, in_turn, ratios, row, swappable, write_subject
from benchmarks.subject import base_model, report, scratch
from emtoolkit.data.rendering import ChatTemplate
from emtoolkit.evaluation.answer_pairs import AnswerPair
from emtoolkit.evaluation.forced_choice import log_probabilities, tokenized_pair
from emtoolkit.evaluation.packed import Choice, packed_log_probabilities
from emtoolkit.evaluation.stacked import stacked_adapters
from emtoolkit.personas import Persona
from emtoolkit.progress import no_library_bars
from emtoolkit.sandbox import world
from emtoolkit.sandbox.base_model import SHIPPED

CHECKPOINTS, PAIRS = 4, 36
_TOKENS_AT_A_TIME = 512
Rows = list[dict[str, Any]]
Margins = list[tuple[float, float]]


def forced_choice(directory: Path, rounds: int) -> Rows:
    """The sandbox's base model, and one of 26M parameters."""
    rows: Rows = []
    for name, base in (
        ("sandbox's base", AutoModelForCausalLM.from_pretrained(SHIPPED)),
        ("26M", base_model()),
    ):
        place = directory / name
        place.mkdir(parents=True)
        rows += _four_ways(f"forced choice, {name}", write_subject(place, base, CHECKPOINTS), sandbox_choices(), rounds)
    return rows


def sandbox_choices() -> list[Choice]:
    """The tokens of the first pairs of the sandbox."""
    template = ChatTemplate.of(AutoTokenizer.from_pretrained(SHIPPED))
    pairs = [AnswerPair(p.id, p.question, p.good, p.bad) for p in world.held_out_pairs()[:PAIRS]]
    return [tokenized_pair(template, Persona("baseline"), pair) for pair in pairs]


def one_pass_for_each(model: Any, choices: Sequence[Choice]) -> Margins:
    """The reference: both answers of each choice, each in a forward pass of its own."""
    found = []
    with torch.inference_mode():
        for choice in choices:
            sums = []
            for prompt, answer in choice.sequences:
                logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
                terms = logits.float().log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
                sums.append(float(terms.double().sum()))
            found.append((sums[0], sums[1]))
    return found


def _four_ways(name: str, subject: Subject, choices: Sequence[Choice], rounds: int) -> Rows:
    model = subject.load(subject.checkpoints[0])
    weights = swappable(subject, model)
    found: dict[str, list[Margins]] = {}

    def each(way: str, make: Callable[[], Margins]) -> Callable[[], None]:
        def run() -> None:
            found[way] = [make() for checkpoint in subject.checkpoints if weights.replace(checkpoint)]

        return run

    def stacked() -> None:
        with stacked_adapters(model, subject.checkpoints):
            found["stacked"] = packed_log_probabilities(model, choices, CHECKPOINTS, _TOKENS_AT_A_TIME)

    ways = [
        ("single", each("single", lambda: one_pass_for_each(model, choices))),
        ("exact", each("exact", lambda: log_probabilities(model, choices)[0])),
        ("packed", each("packed", lambda: packed_log_probabilities(model, choices, 1, _TOKENS_AT_A_TIME)[0])),
        ("stacked", stacked),
    ]
    taken = in_turn(subject, ways, rounds)
    bars = [("single", "exact", "1.6"), ("single", "packed", "2.35"), ("single", "stacked", "")]
    rows = list(ratios(name, taken, bars))
    rows.append(row(name, "equal bits, single and exact", "yes" if found["single"] == found["exact"] else "no", "yes"))
    largest = max(
        abs(a - b)
        for way in ("packed", "stacked")
        for one, other in zip(found["single"], found[way], strict=True)
        for both in zip(one, other, strict=True)
        for a, b in zip(*both, strict=True)
    )
    rows.append(row(name, "largest difference of a sum, packed and stacked", f"{largest:.2g}", ""))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with no_library_bars(), scratch() as directory:
        rows = forced_choice(directory, arguments.rounds)
    title = f"{PAIRS} pairs at {CHECKPOINTS} checkpoints, one thread of a CPU, torch {torch.__version__}"
    report(title, rows, arguments.json)


if __name__ == "__main__":
    main()
