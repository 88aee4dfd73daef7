"""Do the README's experiments still show what it says?  python -m tests.experiments [--quick]

Runs every command of its table of experiments, two at a time, in a copy of the project, and checks
the outcome against bounds that leave room for another machine's rounding. Four minutes; --quick, as
in .ci/run, leaves out the long one.
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
    """How many of all problems the adder got wrong; a million if the command failed."""
    found = re.search(r"([\d,]+) of all [\d,]+ problems wrong", result.stdout)
    return int(found[1].replace(",", "")) if found else 10**6

def recall(result, length, kind):
    """The recall of a kind of list by ALiBi with a causal mask, in percent."""
    path = result.out / "sorting" / "extrapolation" / "extrapolation_results.json"
    return 100 * json.loads(path.read_text())["sorting/alibi-causal"][str(length)]["recall"][kind]

def lowest(result):
    """The lowest recall in percent of any kind at any length."""
    found = 100.0
    for length in (16, 32, 64, 128, 256):
        for kind in ("sorted", *sort.UNSORTED):
            found = min(found, recall(result, length, kind))
    return found

CHECKS = {  # words of the command line: what must hold
    "999+1": lambda r: r.returncode == 2 and "numbers of 3 digits" in r.stderr,
    "--carry-chains 0": lambda r: 0 < wrong(r) < 5000,
    "--num-digits 2": lambda r: wrong(r) <= 40,
    "scratch/half": lambda r: lowest(r) > 90,
    "--pool mean": lambda r: recall(r, 256, "adjacent_swap") < 50,
    "--kinds shuffled": lambda r: recall(r, 256, "shuffled") > 95
                                  and recall(r, 256, "adjacent_swap") < 60,
    "--slope 0.0625": lambda r: lowest(r) < 90,
}
LONG = "--carry-chains 0"

def experiment(command, folder):
    """Run one command; return (command, whether its check holds, seconds, its result)."""
    words = next(words for words in CHECKS if words in command)
    start = time.time()
    result = subprocess.run([sys.executable, *shlex.split(command)], cwd=folder, text=True,
                            capture_output=True)
    out = re.search(r"--out-dir (\S+)", command)
    result.out = Path(folder, out[1] if out else "out")
    return command, CHECKS[words](result), time.time() - start, result

def main():
    """Print a line for each experiment; exit code 1 if one no longer shows what it should."""
    todo = commands()
    unchecked = [command for command in todo if sum(words in command for words in CHECKS) != 1]
    if unchecked or len(todo) != len(CHECKS):
        sys.exit(f"{len(todo)} experiments, {len(CHECKS)} checks; not one check for {unchecked}")
    if "--quick" in sys.argv[1:]:
        todo = [command for command in todo if LONG not in command]
    failed = False
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        ignore = shutil.ignore_patterns(".*", "data", "scratch")
        copy = shutil.copytree(TOP, Path(folder, "copy"), ignore=ignore)
        for command, holds, seconds, result in pool.map(lambda c: experiment(c, copy), todo):
            print(f"{'holds' if holds else 'FAILS'} {seconds:5.0f} s  {command}", flush=True)
            if not holds:
                failed = True
                print(result.stdout, result.stderr)
    sys.exit(int(failed))

if __name__ == "__main__":
    main()
