"""Do the README's experiments still show what it says?  python -m tests.experiments [--quick]

Runs every command of its table of experiments, two at a time, in a copy of the project, and checks the outcome against
bounds that leave room for another machine's rounding. Five minutes; --quick, as in .ci/run, leaves out the long ones.
"""
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import positional_sorting as sort

TOP = Path(__file__).resolve().parents[1]


def commands():
    """The command lines in the README's table of experiments, in its order."""
    table = (TOP / "README.md").read_text().split("\n## Experiments\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `python ([^`]+)` \|", table, re.M)


def wrong(result):
    """How many of all problems the adder got wrong."""
    return int(re.search(r"tested: ([\d,]+) wrong", result.stdout)[1].replace(",", ""))


def recall(result, name, length, kind):
    """The recall of a kind of list in percent, or its balanced accuracy."""
    path = result.out / "sorting" / "extrapolation" / "extrapolation_results.json"
    row = json.loads(path.read_text())[name]["lengths"][str(length)]
    return 100 * (row["mean"] if kind == "accuracy" else row["recall"][kind]["mean"])


def lowest(result, name):
    """The lowest recall in percent of any kind at any length."""
    return min(recall(result, name, length, kind) for length in (16, 32, 64, 128, 256) for kind in ("sorted", *sort.UNSORTED))


CHECKS = {  # words of the command line: what must hold
    "999+1": lambda r: r.returncode == 2 and "from 100 to 999" in r.stderr,
    "--cascades 0": lambda r: wrong(r) < 5000 and re.search(r": (100.00|99.[5-9]\d)% of 2,000", r.stdout),
    "--num-digits 2": lambda r: wrong(r) <= 40,
    "--num-digits 10": lambda r: wrong(r) <= 500,
    "scratch/half": lambda r: lowest(r, "alibi-causal") > 90,
    "--pool mean": lambda r: recall(r, "alibi-causal", 256, "adjacent_swap") < 50,
    "--kinds shuffled": lambda r: recall(r, "alibi-causal", 256, "shuffled") > 95
                                  and recall(r, "alibi-causal", 256, "adjacent_swap") < 60,
    "--slope 0.0625": lambda r: lowest(r, "alibi-causal") < 90,
}
LONG = ("--cascades 0", "--num-digits 10")


def experiment(command, folder):
    """Run one command; return (command, whether its check holds, seconds, what it printed)."""
    words = next(words for words in CHECKS if words in command)
    start = time.time()
    result = subprocess.run([sys.executable, *shlex.split(command)], cwd=folder, capture_output=True, text=True)
    out = re.search(r"--out-dir (\S+)", command)
    result.out = Path(folder, out[1] if out else "out")
    try:
        holds = bool(CHECKS[words](result))
    except (TypeError, KeyError, OSError):  # it did not get so far as to print or write what is checked
        holds = False
    return command, holds, time.time() - start, result


def main():
    """Print a line for each experiment; exit code 1 if one of them no longer shows what it should."""
    todo = commands()
    unchecked = [command for command in todo if sum(words in command for words in CHECKS) != 1]
    if unchecked or len(todo) != len(CHECKS):
        sys.exit(f"{len(todo)} experiments and {len(CHECKS)} checks; no check, or two, for {unchecked}")
    if "--quick" in sys.argv[1:]:
        todo = [command for command in todo if not any(words in command for words in LONG)]
    failed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        copy = shutil.copytree(TOP, Path(folder, "copy"), ignore=shutil.ignore_patterns(".*", "data", "scratch"))
        for command, holds, seconds, result in pool.map(lambda command: experiment(command, copy), todo):
            print(f"{'holds' if holds else 'FAILS'} {seconds:5.0f} s  {command}")
            print("\n".join("    " + line for line in result.stdout.splitlines()[-4:]), flush=True)
            if not holds:
                failed += 1
                print(result.stdout, result.stderr)
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    main()
