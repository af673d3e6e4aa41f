"""How many runs that were killed by SIGKILL at random events, and resumed, end bit for bit as an unbroken run.

Runs the test of `tests/test_exactness.py` with other seeds until enough kills were tried. In each of its runs, the
process is killed several times, at random Python calls, and resumed; then every tensor of weights, averages, optimizer
state and objective is compared with those of the unbroken run.

    python benchmarks/robustness.py [--one 30] [--two 10] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEST = "tests/test_exactness.py::test_killed_anywhere_and_resumed_ends_bit_for_bit_as_unbroken"
KINDS = {"one process": "[1-3]", "two processes": "[2-2]"}  # the test's (processes, accumulation)
KILLED = "exit code -9"


def kills_of(kind: str, seed: int) -> tuple[int, bool]:
    """One run of the test: how many kills took place, and whether everything was equal in the end."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", TEST + KINDS[kind]]
    environment = {**os.environ, "KILL_SEED": str(seed)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return len(re.findall(KILLED, run.stdout)), run.returncode == 0


def main() -> int:
    """Print tried and right for one process and for two; 1 if a run was not equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=int, default=30, help="kills on one process")
    parser.add_argument("--two", type=int, default=10, help="kills on two processes")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the next ones count on")
    arguments = parser.parse_args()
    failed = False
    for kind, wanted in zip(KINDS, (arguments.one, arguments.two), strict=True):
        tried, right, seed = 0, 0, arguments.seed
        while tried < wanted:
            kills, equal = kills_of(kind, seed)
            tried, right, seed = tried + max(kills, 1), right + (kills if equal else 0), seed + 1
            print(f"{kind}: {tried} kills, {right} resumed bit for bit", flush=True)
        failed |= right < tried
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
