"""Do the README's experiments still show what it says?  python -m tests.experiments [--quick]

Runs every command of its table of experiments, two at a time in a folder of their own, and
checks the outcome against bounds that leave room for another machine's rounding. --quick
leaves one out.
"""
import argparse
import re
import shlex
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
from tests.command import TOP, run

BOUNDS = {"--n-head 1": (80, 99.99), "--carry-chains 0": (99, 100), "--slope 0.0625": (0, 90)}

def measured(command, folder):
    """The percentage that the adder gets right, or ALiBi of its worst kind at any length."""
    result = run(*shlex.split(command), cwd=folder)
    print(result.stderr, result.stdout, flush=True)
    found = re.search(r"([\d.]+)% of the test problems right", result.stdout)
    if found:
        return float(found[1])
    (path,) = Path(folder).rglob("extrapolation_results.json")
    results = common.load_json(path)["alibi-causal"].values()
    return 100 * min(min(scores["recall"].values()) for scores in results)

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    table = (TOP / "README.md").read_text().split("\n## Experiments\n")[1]
    commands = [x for x in re.findall(r"^\| `python ([^`]+)` \|", table, re.M)
                if not (quick and "carry-chains" in x)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda command: measured(command, folder), commands))
    failed = False
    for command, percent in zip(commands, outcomes):
        ((low, high),) = [BOUNDS[words] for words in BOUNDS if words in command]
        print("holds" if low <= percent <= high else "FAILS", command, percent)
        failed = failed or not low <= percent <= high
    sys.exit(failed)

if __name__ == "__main__":
    main()
