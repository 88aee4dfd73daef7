"""Do the README's experiments still show what it says?  python -m tests.experiments [--quick]

Runs every command of its table of experiments in a copy of the project, two at a time, and
checks the outcome against bounds that leave room for another machine's rounding. --quick
leaves one out. Nothing is written in the project itself.
"""
import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]

def right(out, said):
    """The percentage of test problems that the adder got right; -1 if the command failed."""
    found = re.search(r"([\d.]+)% of the test problems right", said)
    return float(found[1]) if found else -1

def lowest(out, said):
    """The lowest recall of any kind of list at any length, by ALiBi with a causal mask."""
    results = json.loads((out / "sorting/extrapolation/extrapolation_results.json").read_text())
    recalls = [row["recall"].values() for row in results["alibi-causal"].values()]
    return min(map(min, recalls))

CHECKS = {  # words of the command line: what must hold
    "--n-head 1": lambda *found: 80 < right(*found) < 100,
    "--carry-chains 0": lambda *found: right(*found) > 99,
    "--slope 0.0625": lambda *found: lowest(*found) < 0.9,
}

def experiment(command, folder):
    """Run one command; return whether its check holds."""
    (words,) = [words for words in CHECKS if words in command]
    result = subprocess.run([sys.executable, *shlex.split(command)], cwd=folder, text=True,
                            capture_output=True)
    out = folder / re.search(r"--out-dir (\S+)", command)[1]
    holds = CHECKS[words](out, result.stdout)
    print("holds" if holds else f"FAILS {result}", command, flush=True)
    return holds

def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    table = (TOP / "README.md").read_text().split("\n## Experiments\n")[1].split("\n## ")[0]
    commands = re.findall(r"^\| `python ([^`]+)` \|", table, re.M)
    commands = [x for x in commands if not (quick and "carry-chains" in x)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        ignore = shutil.ignore_patterns(".*", "data", "scratch", "out")
        copy = Path(shutil.copytree(TOP, Path(folder, "copy"), ignore=ignore))
        holds = list(pool.map(lambda command: experiment(command, copy), commands))
    sys.exit(not all(holds))

if __name__ == "__main__":
    main()
