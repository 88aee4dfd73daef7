"""How do time and memory grow?  Run by hand, five to ten minutes: python -m tests.growth [--steps 4000] [--threads 2]

Prints two tables: the adder trained on numbers of 3 to 10 digits, and the ALiBi model under out/ asked about lists of
16 to 2,048 numbers. Every row is measured in a process of its own; MB is the most memory that it held beyond what it
held before.
"""
import argparse
import multiprocessing
import random
import resource
import sys
import time
from pathlib import Path

import torch

import attention_addition as add
import common
import positional_sorting as sort

ALIBI = Path(__file__).resolve().parents[1] / "out" / "sorting" / "alibi" / "best_model.pth"
FLAGS = ["--leading-zeros", "--reverse", "--n-train", "100000", "--n-val", "1000", "--n-test", "1"]


def most_held():
    """The most memory this process has held so far, in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def hard_problems(n):
    """The longest carries there are, and the emptiest problem: (5, 2)."""
    top, ones, half = 10**n - 1, int("1" * n), 5 * 10**(n - 1)
    return torch.tensor([(0, 0), (top, 1), (ones, 10**n - ones), (half, half), (1, top)])


def train_adder(num_digits, steps, threads):
    """One row: milliseconds a step, MB, and what is right of 10,000 fresh problems and of the five hardest."""
    args = add.command_line().parse([*FLAGS, "--num-digits", str(num_digits), "--steps", str(steps)])[0]
    args.eval_every = max(1, steps // 4)
    device, before = common.pick_device("cpu", threads), most_held()
    sizes = dict(zip(add.SPLITS, add.split_sizes(args)))
    problems = add.draw_problems(num_digits, True, sizes, args.cascades, args.seed)
    data = {split: torch.tensor(pairs) for split, pairs in problems.items()}
    model, history, _ = add.fit(args, data, device)
    held = most_held() - before
    fresh = torch.randint(0, 10**num_digits, (10_000, 2), generator=torch.Generator().manual_seed(1))
    right, hard = (add.solve(model, x, num_digits)[1] for x in (fresh, hard_problems(num_digits)))
    return (f"| {num_digits} | {2 * num_digits + 1} + {num_digits + 1} | {1000 * history[-1]['seconds'] / steps:.1f} "
            f"| {held:.0f} | {100 * right.double().mean():.2f}% | {int(hard.sum())} of 5 |")


def ask_about_lists(length, n, threads):
    """One row: milliseconds a list, MB, balanced accuracy."""
    common.pick_device("cpu", threads)
    records = sort.draw_records(random.Random(length), n, sort.KINDS[1:], 0.5, [length], set())
    lists = sort.pad([record["sequence"] for record in records])
    kinds = torch.tensor([sort.KINDS.index(record["kind"]) for record in records])
    model, _ = common.load_checkpoint(ALIBI, sort.SCRIPT, sort.build_model)
    before, start = most_held(), time.time()
    recall = sort.recalls(sort.logits_of(model, lists), kinds)
    return (f"| {length:,} | {n} | {1000 * (time.time() - start) / n:.2f} | {most_held() - before:.0f} "
            f"| {100 * sort.balanced_accuracy(recall):.1f}% |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    rows = [(train_adder, (n, args.steps, args.threads)) for n in (3, 5, 7, 10)]
    rows += [(ask_about_lists, (length, n, args.threads)) for n in (100, 400)
             for length in (16, 64, 256, 512, 1024, 2048)]
    last = None
    for function, arguments in rows:
        if function is not last:
            last = function
            print("\n| digits | tokens | ms a training step | MB | right of 10,000 | hardest |\n|-|-|-|-|-|-|"
                  if function is train_adder else
                  "\n| numbers in a list | lists | ms a list | MB | balanced accuracy |\n|-|-|-|-|-|", flush=True)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(function, arguments), flush=True)


if __name__ == "__main__":
    main()
