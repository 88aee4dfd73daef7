"""Do the results hold on seeds that had no part in any choice?

    python -m tests.confirm adder|sorter [N]

Trains the default adder on the first N pairs of data seed and model seed and counts the errors
among all 810,000 problems; or the causal ALiBi model, and prints the lowest recall of any kind of
list at any length, of 2,000 lists each. One training after another. Flags of the script may follow.
The results are written to scratch/confirm.json; ours are in out/reference, of both, and of the
first 20 adders with --carry-chains 0.
"""
import sys
import tempfile
from pathlib import Path

import attention_addition as add
import common
import positional_sorting as sort

PAIRS = {  # (data seed, model seed)
    "adder": [*zip(range(16001, 16021), range(2001, 2021)),
              *zip(range(16101, 16121), range(2101, 2121))],
    "sorter": [*zip(range(9801, 9811), range(981, 991))],
}

def confirm_adder(flags):
    """The errors of one model among all problems."""
    args = add.command_line().parse_args(flags)
    add.train(args)
    model = add.load(Path(args.out_dir, "addition", "best_model.pth"))
    return add.count_wrong(model)[0]

def confirm_sorter(flags):
    """The lowest recall in percent of any kind at any length."""
    args = sort.command_line().parse_args([*flags, "--pe", "alibi", "--n-long", "20000"])
    (job,) = sort.settings(args, [(True, None)])
    sort.train(job)
    model = sort.load(Path(args.out_dir, job.folder, "best_model.pth"))
    lowest = 100.0
    for length in args.lengths:
        data = sort.load_data(args, [f"extrapolation/{length}"])[f"extrapolation/{length}"]
        _, _, recall = sort.evaluate(model, data)
        lowest = min(lowest, 100 * min(recall.values()))
    return round(lowest, 2)

def main():
    what = sys.argv[1] if len(sys.argv) > 1 else None
    if what not in PAIRS:
        sys.exit(__doc__)
    n = int(sys.argv[2]) if len(sys.argv) > 2 else len(PAIRS[what])
    confirm = {"adder": confirm_adder, "sorter": confirm_sorter}[what]
    results = []
    common.prepare("train")
    for data_seed, model_seed in PAIRS[what][:n]:
        with tempfile.TemporaryDirectory() as folder:
            seeds = ["--seed", str(data_seed), "--model-seed", str(model_seed)]
            places = ["--data-dir", f"{folder}/data", "--out-dir", f"{folder}/out"]
            results.append(confirm([*seeds, *places, *sys.argv[3:]]))
        print(f"data seed {data_seed}, model seed {model_seed}: {results[-1]}", flush=True)
        found = dict(zip(map(str, PAIRS[what]), results))
        common.save(Path("scratch/confirm.json"), {"flags": sys.argv[3:], "results": found})
    perfect = results.count(0 if what == "adder" else 100.0)
    print(f"{what}: {sorted(results)}; without a single error: {perfect} of {len(results)}")

if __name__ == "__main__":
    main()
