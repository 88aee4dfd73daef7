"""Do the README's experiments still show what it says?  python -m tests.experiments

Runs every command of its table of experiments, two at a time in a folder of their own, and
checks the outcome against bounds that leave room for another machine's rounding.
"""
import argparse
import re
import shlex
import tempfile
from concurrent.futures import ThreadPoolExecutor

from tests.command import TOP, run

BOUNDS = {  # of the last percentage that is printed: test problems right, or lists of 256
    "--n-head 1": (80, 99.99), "--carry-chains 0": (99, 100), "--slope 0.0625": (50, 97)}

def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    table = (TOP / "README.md").read_text().split("\n## Experiments\n")[1]
    commands = re.findall(r"^\| `python ([^`]+)` \|", table, re.M)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda x: run(*shlex.split(x), cwd=folder), commands))
    for command, result in zip(commands, results):
        ((low, high),) = [BOUNDS[words] for words in BOUNDS if words in command]
        percent = re.findall(r"([\d.]+)%", result.stdout)[-1:]
        assert percent and low <= float(percent[0]) <= high, result
        print(f"{percent[0]}%, as it should be: {command}")

if __name__ == "__main__":
    main()
