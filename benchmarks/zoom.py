"""From checkpoints every 100 steps to a bracket of 5 steps: what `emtoolkit zoom` trains and evaluates in the sandbox.

    python -m benchmarks.zoom [--home DIR] [--persona goodness] [--seed 42] [--until 5] [--samples 8] [--json FILE]

Trains the sandbox's config on `0,every:100` with the resume states of every 100 steps, and zooms into the onset of its
harmful answers. The bar: for a bracket of 100 steps at most 120 optimizer steps are trained beside those of the run.
`--home` keeps the run, so that an interrupted benchmark continues. Needs `emtoolkit sandbox build`.
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from typer.main import get_command

from emtoolkit.cli.app import app
from emtoolkit.config.load import load_config
from emtoolkit.training.run import train

BAR = 120


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--persona", default="goodness")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--until", type=int, default=5)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        run = (chosen.home or Path(temporary)) / f"{chosen.persona}-s{chosen.seed}"
        found = _zoomed(run, chosen)
    text = json.dumps(found, indent=2)
    print(text)
    if chosen.json is not None:
        chosen.json.write_text(f"{text}\n")
    return 0 if found["trained_steps"] <= BAR else 1


def _zoomed(run: Path, chosen: argparse.Namespace) -> dict[str, object]:
    settings = ["checkpointing.schedule='0,every:100'", "checkpointing.resume_keep=every:100", "wandb.mode=disabled"]
    flags = {"persona": chosen.persona, "seed": chosen.seed, "output_dir": str(run)}
    train(load_config("sandbox", settings, flags), resume=True)
    words = ["zoom", run, "--until", chosen.until, "--samples", chosen.samples, "--max-new-tokens", 28]
    begun = time.monotonic()
    with redirect_stdout(StringIO()) as printed:
        get_command(app).main([*map(str, words), "--wandb", "disabled", "--json"], standalone_mode=False)
    seconds = time.monotonic() - begun
    found = json.loads(printed.getvalue())
    names = ("lower", "upper", "ended_by", "undecided", "made", "trained_steps", "rounds")
    return {name: found[name] for name in names} | {"seconds": round(seconds, 1)}


if __name__ == "__main__":
    sys.exit(main())
