"""Do the results hold on data and model seeds that had no part in any choice?  python -m tests.confirm adder|sorter [N]

Trains the default adder on N pairs of data seed and model seed and counts the errors among all 810,000 problems; or the
causal ALiBi model, and prints the lowest recall of any kind of list at any length. One training after another, each with
one thread. Prints a line per pair and a summary.
"""
import random
import sys
import time

import torch

import attention_addition as add
import common
import positional_sorting as sort

FIRST = {"adder": (8001, 801), "sorter": (6001, 601)}  # data seed and model seed of the first pair


def confirm_adder(data_seed, model_seed, flags):
    """Errors of one model among all problems, and the seconds of its training."""
    args = add.command_line().parse_args(["--seed", str(data_seed), *flags])
    args.own_data = None
    sizes = {"train": args.n_train, "val": args.n_val, "test": args.n_test}
    drawn = add.draw_problems(args.num_digits, args.leading_zeros, sizes, args.cascades, data_seed)
    data = {split: torch.tensor(problems) for split, problems in drawn.items()}
    model, best = add.fit(common.config_of(args, add.SCRIPT, model_seed), data, torch.device("cpu"))
    right = add.is_right(model, add.all_problems(args.num_digits, args.leading_zeros))
    return int((~right).sum()), best.history[-1]["seconds"]


def confirm_sorter(data_seed, model_seed, flags):
    """The lowest recall in percent of any kind at any length from 16 to 256, and the seconds of the training."""
    args = sort.command_line().parse_args(["--seed", str(data_seed), "--causal", *flags])
    args.own_data = None
    seen = set()
    data = {}
    sets = [("val", args.n_val, sort.LENGTHS), ("train", args.n_train, sort.TRAINING_LENGTHS)]
    sets += [(length, args.n_long, [length]) for length in args.lengths]
    for i, (name, n, lengths) in enumerate(sets):
        rng = random.Random(10_000 * data_seed + i)
        records = sort.draw_records(rng, n, sort.UNSORTED, 0.5, lengths, seen)
        kinds = torch.tensor([sort.KINDS.index(record["kind"]) for record in records])
        data[name] = (sort.pad([record["sequence"] for record in records]), kinds)
    model, best = sort.fit(sort.config_of(args, "alibi", model_seed), data, torch.device("cpu"))
    lowest = {}
    for length in args.lengths:
        lists, kinds = data[length]
        recall = sort.recalls(sort.logits_of(model, lists), kinds)
        kind = min(recall, key=recall.get)
        lowest[f"{kind} at {length}"] = 100 * recall[kind]
    where = min(lowest, key=lowest.get)
    print(f"  lowest: {where}")
    return round(lowest[where], 2), best.history[-1]["seconds"]


def main():
    what = sys.argv[1]
    n = int(sys.argv[2]) if len(sys.argv) > 2 else {"adder": 20, "sorter": 10}[what]
    results = []
    torch.set_num_threads(1)
    for i in range(n):
        data_seed, model_seed = FIRST[what][0] + i, FIRST[what][1] + i
        start = time.time()
        run = confirm_adder if what == "adder" else confirm_sorter
        result, seconds = run(data_seed, model_seed, sys.argv[3:])
        results.append(result)
        print(f"data seed {data_seed}, model seed {model_seed}: {result} "
              f"({seconds:.0f} s of training, {time.time() - start:.0f} s in all)", flush=True)
    print(f"{what}: {sorted(results)}; without a single error: {results.count(0 if what == 'adder' else 100.0)} of {n}")


if __name__ == "__main__":
    main()
