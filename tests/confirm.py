"""Do the results hold on data and model seeds that had no part in any choice?  python -m tests.confirm adder|sorter [N]

Trains the default adder on the first N pairs of data seed and model seed and counts the errors among all 810,000
problems; or the causal ALiBi model, and prints the lowest recall of any kind of list at any length, of 2,000 lists each.
One training after another, each with one thread. Prints a line per pair and a summary. Flags of the script may follow N.
"""
import sys
import tempfile
import time

import attention_addition as add
import common
import positional_sorting as sort

PAIRS = {  # (data seed, model seed)
    "adder": [*zip(range(16001, 16021), range(2001, 2021)), *zip(range(16101, 16121), range(2101, 2121))],
    "sorter": [*zip(range(9801, 9811), range(981, 991))],
}


def confirm_adder(data_seed, model_seed, flags):
    """Errors of one model among all problems, and the seconds of its training."""
    args = add.command_line().parse_args(["--seed", str(data_seed), *flags])
    model, history = add.fit(common.config_of(args, add.SCRIPT, add.data_folder(args), model_seed), add.load_data(args), "cpu")
    right = add.is_right(model, add.all_problems(args.num_digits, args.leading_zeros))
    return int((~right).sum()), history.rows[-1]["seconds"]


def confirm_sorter(data_seed, model_seed, flags):
    """The lowest recall in percent of any kind at any length from 16 to 256, and the seconds of the training."""
    args = sort.command_line().parse_args(["--seed", str(data_seed), "--n-long", "20000", "--causal", *flags])
    data = sort.load_data(args, ["train", "val", *(f"extrapolation/{length}" for length in args.lengths)])
    model, history = sort.fit(sort.make_config(args, "alibi", model_seed, None), data, "cpu")
    lowest = {}
    for length in args.lengths:
        _, _, recall = sort.evaluate(model, data[f"extrapolation/{length}"])
        kind = min(recall, key=recall.get)
        lowest[f"{kind} at {length}"] = 100 * recall[kind]
    where = min(lowest, key=lowest.get)
    print(f"  lowest: {where}")
    return round(lowest[where], 2), history.rows[-1]["seconds"]


def main():
    what = sys.argv[1]
    n = int(sys.argv[2]) if len(sys.argv) > 2 else len(PAIRS[what])
    confirm = {"adder": confirm_adder, "sorter": confirm_sorter}[what]
    results = []
    common.pick_device("cpu", 1)
    for data_seed, model_seed in PAIRS[what][:n]:
        start = time.time()
        with tempfile.TemporaryDirectory() as folder:
            result, seconds = confirm(data_seed, model_seed, [*sys.argv[3:], "--data-dir", folder])
        results.append(result)
        print(f"data seed {data_seed}, model seed {model_seed}: {result} "
              f"({seconds:.0f} s of training, {time.time() - start:.0f} s in all)", flush=True)
    perfect = results.count(0 if what == "adder" else 100.0)
    print(f"{what}: {sorted(results)}; without a single error: {perfect} of {len(results)}")


if __name__ == "__main__":
    common.run(main)
