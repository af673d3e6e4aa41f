"""What the package stands: kills, hostile artefacts, wrong settings, wrong files and wrong calls, each tried and right.

Every row runs tests of `tests/`, the kills and the wrong inputs with other seeds until enough were tried. A run that is
killed dies by SIGKILL at random Python calls, and is resumed; then every tensor of weights, averages, optimizer state
and objective must equal that of the unbroken run, bit for bit. A wrong input must end in one sentence.

    python benchmarks/robustness.py [--one 30] [--two 10] [--cases 300] [--seed 0]

Without kills and with few cases it takes minutes: `--one 0 --two 0 --cases 60`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
KILLED_TEST = "tests/test_exactness.py::test_killed_anywhere_and_resumed_ends_bit_for_bit_as_unbroken"
KILLS = {"kills, one process": "[1-3]", "kills, two processes": "[2-2]"}  # the test's (processes, accumulation)
HOSTILE = {
    "hostile weights, cards, tokens and recipes": "tests/test_security.py",
    "hostile or damaged images": "tests/test_opening.py",
    "hostile or confusing folders and archives": "tests/test_files.py",
}
CASES_A_RUN = 60  # of each kind of wrong input


def run_tests(*selected: str, **variables: str) -> str:
    """The output of pytest."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *selected]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout


def ended(output: str, how: str) -> int:
    """How many tests "passed" or "failed", by the last line of pytest."""
    return sum(map(int, re.findall(rf"(\d+) {how}", output.rstrip().rpartition("\n")[2])))


def killed_runs(kind: str, wanted: int, seed: int) -> tuple[int, int]:
    """(kills tried, kills after which everything was equal in the end)."""
    tried = right = 0
    while tried < wanted:
        output = run_tests(KILLED_TEST + KILLS[kind], KILL_SEED=str(seed))
        kills = output.count("exit code -9")
        tried, right, seed = tried + max(kills, 1), right + kills * (ended(output, "passed") == 1), seed + 1
        print(f"  {kind}: {tried} tried, {right} right", file=sys.stderr, flush=True)
    return tried, right


def hostile_artefacts(file: str) -> tuple[int, int]:
    """(tests, tests passed) of a file in which every test tries one artefact."""
    output = run_tests(file)
    right = ended(output, "passed")
    return right + ended(output, "failed"), right


def wrong_inputs(wanted: int, seed: int) -> dict[str, tuple[int, int]]:
    """(tried, right) by kind, of wrong inputs drawn from the seeds: a test stops at its first wrong answer."""
    found: dict[str, tuple[int, int]] = {}
    for number in range(max(1, wanted // CASES_A_RUN) if wanted else 0):
        cases = str(min(CASES_A_RUN, wanted))
        output = run_tests(
            "tests/test_fuzz.py", DIFFUSERS_EXT_FUZZ_SEED=str(seed + number), DIFFUSERS_EXT_FUZZ_CASES=cases
        )
        for tried, right, kind in re.findall(r"tried (\d+), right (\d+): (.*)", output):
            before = found.get(kind, (0, 0))
            found[kind] = before[0] + int(tried), before[1] + int(right)
    return found


def rows(arguments: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """(what, tried, right), as soon as it is known."""
    for kind, wanted in zip(KILLS, (arguments.one, arguments.two), strict=True):
        if wanted:
            yield kind, *killed_runs(kind, wanted, arguments.seed)
    for what, file in HOSTILE.items():
        yield what, *hostile_artefacts(file)
    for kind, counts in wrong_inputs(arguments.cases, arguments.seed).items():
        yield kind, *counts


def main() -> int:
    """Print the table; 1 if something was not right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=int, default=30, help="kills on one process")
    parser.add_argument("--two", type=int, default=10, help="kills on two processes")
    parser.add_argument("--cases", type=int, default=300, help="wrong inputs of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the next ones count on")
    print("| what | tried | right |\n|---|---|---|")
    failed = False
    for what, tried, right in rows(parser.parse_args()):
        failed |= right < tried
        print(f"| {what} | {tried:,} | {right:,} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
