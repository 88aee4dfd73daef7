"""How do time and memory grow, and does the adder learn ten digits?  python -m tests.growth [--steps 4000] [--threads 1]

Prints two tables: the adder trained on numbers of 3 to 10 digits, and the reference ALiBi model with a causal mask on
lists of 16 to 2,048 numbers. Every row is measured in a process of its own; MB is the memory that it took beyond what the
process held before. Ten minutes.
"""
import argparse
import multiprocessing
import random
import resource
import sys
import time

import common
import attention_addition as add
import positional_sorting as sort

import torch

FLAGS = ["--leading-zeros", "--reverse", "--d-ff", "64", "--n-train", "100000", "--n-val", "1000", "--n-test", "2"]


def most_held():
    """The most memory this process has held so far, in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def hard_problems(n):
    """The longest carries there are, and the emptiest problem: (5, 2)."""
    top = 10**n - 1
    ones = int("1" * n)
    half = 5 * 10**(n - 1)
    return torch.tensor([(0, 0), (top, 1), (ones, 10**n - ones), (half, half), (1, top)])


def train_adder(num_digits, steps, threads):
    """One row: milliseconds per step, MB, and what is right of 10,000 fresh problems and of the five hardest."""
    args = add.command_line().parse_args([*FLAGS, "--num-digits", str(num_digits), "--steps", str(steps)])
    args.eval_every = max(1, steps // 4)
    device = common.pick_device("cpu", threads)
    before = most_held()
    sizes = {"train": args.n_train, "val": args.n_val, "test": args.n_test}
    problems = add.draw_problems(num_digits, True, sizes, args.cascades, args.seed)
    data = {split: torch.tensor(pairs) for split, pairs in problems.items()}
    model, history = add.fit(common.config_of(args, add.SCRIPT, "no data", args.model_seed), data, device)
    held = most_held() - before
    fresh = torch.randint(0, 10**num_digits, (10_000, 2), generator=torch.Generator().manual_seed(1))
    right = 100 * add.is_right(model, fresh).double().mean()
    hard = int(add.is_right(model, hard_problems(num_digits)).sum())
    return (f"| {num_digits} | {2 * num_digits + 1} + {num_digits + 1} | {1000 * history.rows[-1]['seconds'] / steps:.1f} "
            f"| {held:.0f} | {right:.2f}% | {hard} of 5 |")


def ask_about_lists(length, n, threads):
    """One row: milliseconds per list, MB, balanced accuracy."""
    common.pick_device("cpu", threads)
    records = sort.draw_records(random.Random(length), n, sort.UNSORTED, 0.5, [length], set())
    lists = sort.pad([record["sequence"] for record in records])
    kinds = torch.tensor([sort.KINDS.index(record["kind"]) for record in records])
    model = sort.load(common.REFERENCE / "sorting" / "alibi-causal" / "best_model.pth")
    before = most_held()
    start = time.time()
    _, accuracy, _ = sort.evaluate(model, (lists, kinds))
    return (f"| {length:,} | {n} | {1000 * (time.time() - start) / n:.2f} | {most_held() - before:.0f} "
            f"| {100 * accuracy:.1f}% |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    tables = {
        "| digits | tokens | ms per training step | MB | right of 10,000 | hardest |\n|-|-|-|-|-|-|":
            [(train_adder, (n, options.steps, options.threads)) for n in (3, 5, 7, 10)],
        "| numbers in a list | lists | ms per list | MB | balanced accuracy |\n|-|-|-|-|-|":
            [(ask_about_lists, (length, 400, options.threads)) for length in (16, 64, 256, 512, 1024, 2048)],
    }
    for head, rows in tables.items():
        print("\n" + head, flush=True)
        for function, arguments in rows:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(function, arguments), flush=True)


if __name__ == "__main__":
    main()
