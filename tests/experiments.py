"""Do the README's experiments still show what it says?  python -m tests.experiments [--quick]

Runs every command of its table of experiments in a copy of the project, two at a time, and checks
the outcome against bounds that leave room for another machine's rounding. --quick leaves one out.
"""
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

def wrong(result):
    """How many of all problems the adder got wrong; a million if the command failed."""
    found = re.search(r"([\d,]+) of all [\d,]+ problems wrong", result.stdout)
    return int(found[1].replace(",", "")) if found else 10**6

def recall(result, length):
    """{kind: recall in percent} of lists of a length by ALiBi with a causal mask."""
    path = result.out / "sorting/extrapolation/extrapolation_results.json"
    found = json.loads(path.read_text())["sorting/alibi-causal"][str(length)]["recall"]
    return {kind: 100 * share for kind, share in found.items()}

def lowest(result):
    return min(min(recall(result, length).values()) for length in (16, 32, 64, 128, 256))

CHECKS = {  # words of the command line: what must hold
    "--n-head 1": lambda r: 100 < wrong(r) < 100_000,
    "--carry-chains 0": lambda r: 0 < wrong(r) < 5000,
    "--pool mean": lambda r: recall(r, 256)["adjacent_swap"] < 50,
    "--slope 0.0625": lambda r: lowest(r) < 90,
    "--kinds shuffled": lambda r: recall(r, 256)["shuffled"] > 95
                                  and recall(r, 256)["adjacent_swap"] < 60,
}

def experiment(command, folder):
    """Run one command; return its result, with .holds, whether its check does."""
    (words,) = [words for words in CHECKS if words in command]
    result = subprocess.run([sys.executable, *shlex.split(command)], cwd=folder, text=True,
                            capture_output=True)
    result.out = folder / (re.findall(r"--out-dir (\S+)", command) or ["out"])[0]
    result.holds = CHECKS[words](result)
    print("holds" if result.holds else f"FAILS {result}", command, flush=True)
    return result

def main():
    """Print a line for each experiment; exit code 1 if one no longer shows what it should."""
    table = (TOP / "README.md").read_text().split("\n## Experiments\n")[1].split("\n## ")[0]
    commands = re.findall(r"^\| `python ([^`]+)` \|", table, re.M)
    if "--quick" in sys.argv:
        commands = [command for command in commands if "carry-chains" not in command]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        ignore = shutil.ignore_patterns(".*", "data", "scratch")
        copy = shutil.copytree(TOP, Path(folder, "copy"), ignore=ignore)
        make_data = [sys.executable, "positional_sorting.py", "--mode", "gendata"]
        subprocess.run(make_data, cwd=copy, check=True)  # once: two of them read it
        results = list(pool.map(lambda command: experiment(command, copy), commands))
    sys.exit(not all(result.holds for result in results))

if __name__ == "__main__":
    main()
