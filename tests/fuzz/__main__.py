"""`python -m tests.fuzz --minutes 10`: random inputs for every parser; exit code 1 at a finding."""

import argparse
import sys
import time
import traceback
from collections import Counter

from tests.fuzz.property import try_examples
from tests.fuzz.targets import TARGETS

_AT_ONCE = 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", nargs="*", default=[target.name for target in TARGETS])
    arguments = parser.parse_args()
    targets = [target for target in TARGETS if target.name in arguments.only]
    tried: Counter[str] = Counter()
    found: set[str] = set()
    end = time.monotonic() + 60 * arguments.minutes
    seed = arguments.seed
    while time.monotonic() < end and len(found) < len(targets):
        seed += 1
        for target in targets:
            if target.name in found or time.monotonic() > end:
                continue
            try:
                tried[target.name] += try_examples(target, _AT_ONCE, seed)
            except Exception:  # noqa: BLE001 - each is a finding, printed with its input
                found.add(target.name)
                print(f"== {target.name}, seed {seed}", flush=True)
                traceback.print_exc(limit=-3)
    for name, count in tried.items():
        print(f"{name:20} {count:8,}")
    findings = ", ".join(found) or "none"
    print(f"{'in all':20} {sum(tried.values()):8,} inputs, seed {arguments.seed}, findings: {findings}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
