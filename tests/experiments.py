"""Do the README's experiments still show what it says?  Four minutes: python -m tests.experiments [--quick]

Runs every command of its table of experiments, two at a time on one thread each, in a copy of the project, and checks
what comes out against bounds that leave room for another machine's rounding. --quick, as in .ci/run, leaves out those
that try all 810,000 problems.
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


def wrong_of_all(result):
    return int(re.search(r"problems: ([\d,]+) wrong", result.stdout)[1].replace(",", ""))


def teacher_forced(result):
    """The share of right digits, each with the right ones before it given, in the test after a training."""
    return json.loads((result.out / "addition/training_log.json").read_text())["test"]["teacher_forced"]


def recall(result, pe, length, kind):
    """The recall of a kind of list in percent, out of the JSON file that --mode extrapolate writes."""
    found = json.loads((result.out / "sorting/extrapolation/extrapolation_results.json").read_text())
    row = found["in_range"][pe] if length == "in range" else found["results"][pe][str(length)]
    return 100 * (row["accuracy"] if kind == "accuracy" else row["by_kind"][kind])


def worst_recall(result, pe):
    kinds = sort.KINDS
    return min(recall(result, pe, length, kind) for length in (16, 32, 64, 128, 256) for kind in kinds)


CHECKS = {  # words of the command line: what must hold
    "infer 999+1": lambda r: r.returncode == 2 and "from 100 to 999 only" in r.stderr,
    "--n-head 1": lambda r: wrong_of_all(r) <= 20,
    "--cascades 0": lambda r: 0 < wrong_of_all(r) < 2000 and re.search(r"^test: (100.00|99.9\d)%", r.stdout),
    "--no-start": lambda r: wrong_of_all(r) > 4000 and teacher_forced(r)[0] < 0.7 and min(teacher_forced(r)[1:]) > 0.88,
    "scratch/two": lambda r: wrong_of_all(r) <= 4,
    "--reverse --steps 800": lambda r: wrong_of_all(r) <= 50,
    "--num-digits 10": lambda r: wrong_of_all(r) <= 100,
    "scratch/third": lambda r: worst_recall(r, "alibi") > 95,
    "--no-causal": lambda r: recall(r, "alibi", 16, "reversed") < 25,
    "--pe none --causal": lambda r: recall(r, "none", "in range", "accuracy") > 88
                                    and 55 < recall(r, "none", 256, "accuracy") < 85,
    "--pool mean": lambda r: recall(r, "alibi", "in range", "accuracy") > 93
                             and recall(r, "alibi", 256, "adjacent_swap") < 25,
    "--kinds shuffled": lambda r: recall(r, "alibi", 256, "shuffled") > 97
                                  and recall(r, "alibi", 256, "adjacent_swap") < 40,
    "--narrow 0": lambda r: recall(r, "alibi", 256, "accuracy") < 75,
    "--slope 0.0625": lambda r: recall(r, "alibi", 256, "accuracy") < 88,
    "--no-shift": lambda r: worst_recall(r, "alibi") < 95,
}
LONG = ("--n-head 1", "--cascades 0", "--reverse --steps 800")


def experiment(command, folder):
    """Run one; return (command, whether its check holds, seconds, what it printed)."""
    words = next(words for words in CHECKS if words in command)
    threads = [] if "infer" in command else ["--threads", "1"]
    start = time.time()
    result = subprocess.run([sys.executable, *shlex.split(command), *threads], cwd=folder, capture_output=True,
                            text=True)
    out = re.search(r"--out-dir (\S+)", command)
    result.out = Path(folder, out[1] if out else "out")
    try:
        holds = bool(CHECKS[words](result))
    except (TypeError, KeyError, OSError):  # it did not get so far as to print or write what is asked for
        holds = False
    return command, holds, time.time() - start, result


def main():
    """Print a line for each experiment; exit code 1 if one of them no longer shows what it should."""
    todo = [command for command in commands() if "--model-seeds 5" not in command]  # long; out/ holds its results
    missing = [words for words in CHECKS if sum(words in command for command in todo) != 1]
    unchecked = [command for command in todo if not any(words in command for words in CHECKS)]
    if missing or unchecked:
        sys.exit(f"no experiment, or more than one, for {missing}; no check for {unchecked}")
    if "--quick" in sys.argv[1:]:
        todo = [command for command in todo if not any(words in command for words in LONG)]
    failed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        copy = shutil.copytree(TOP, Path(folder, "copy"), ignore=shutil.ignore_patterns(".*", "data", "scratch"))
        for command, holds, seconds, result in pool.map(lambda command: experiment(command, copy), todo):
            print(f"{'holds' if holds else 'FAILS'} {seconds:5.0f} s  {command}", flush=True)
            if not holds:
                failed += 1
                print(result.stdout, result.stderr)
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    main()
