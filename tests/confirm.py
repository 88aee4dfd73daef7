"""Do the results hold on seeds that had no part in any choice?

    python -m tests.confirm adder|sorter [N] [--out-dir DIR]

adder: the default adder on the first N of 40 pairs of data seed and model seed. Its errors
among all 810,000 problems, which heads bring what, and the errors of 40,000 random problems
if a head that brings a carry says one bit.
sorter: the model of section 7b on the first N of 10 pairs. Its accuracy by length in each
experiment of 7c, and the grid of 7b.

Two trainings side by side. Writes a file a pair into DIR (scratch), and all of them into
DIR/addition/confirm.json or DIR/sorting/confirm.json; ours are in out/reference.
"""
import argparse
import json
from dataclasses import replace
from pathlib import Path

import attention_addition as add
import common
import positional_sorting as sort

PAIRS = {  # (data seed, model seed)
    "adder": [*zip(range(16001, 16021), range(2001, 2021)),
              *zip(range(16101, 16121), range(2101, 2121))],
    "sorter": [*zip(range(9901, 9911), range(1001, 1011))],
}

def confirm_adder(data_seed, model_seed, path):
    """Train one adder and look inside."""
    config = add.Config(seed=data_seed, model_seed=model_seed)
    data = add.make_data(config)
    model, _ = add.train(config, data)
    wrong = add.count_wrong(model, add.all_problems(3))
    who = add.who_brings(add.interchange(model, add.groups_of(model)))
    bits = add.measure_bits(model, data["val"], who, add.random_problems(3, 40_000))
    found = {"seeds": [data_seed, model_seed], "wrong": wrong, "who": who, "one_bit": bits}
    common.save_json(path, found)

def confirm_sorter(data_seed, model_seed, path):
    """Train one sinusoidal model and run its experiments."""
    (config,) = sort.settings({"pe": "sinusoidal", "random_start": True})
    config = replace(config, seed=data_seed, model_seed=model_seed)
    data = sort.make_data(config)
    lists = {str(n): data[f"extrapolation/{n}"] for n in sort.LONG}
    model, _ = sort.train(config, data)
    found = {"seeds": [data_seed, model_seed], "grid": sort.measure_waves(model, lists["16"]),
             "long": sort.measure(model, lists, [sort.as_it_is, sort.window, sort.kept, sort.both])}
    common.save_json(path, found)

def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(PAIRS))
    parser.add_argument("n", nargs="?", type=int, help="the first N pairs (all)")
    parser.add_argument("--out-dir", type=Path, default=Path("scratch"))
    args = parser.parse_args()
    problem = {"adder": "addition", "sorter": "sorting"}[args.what]
    function = {"adder": confirm_adder, "sorter": confirm_sorter}[args.what]
    jobs = []
    for seeds in PAIRS[args.what][:args.n]:
        path = args.out_dir / f"{problem}/confirm/{seeds[0]}-{seeds[1]}.json"
        if not path.exists():  # those that are there need not be done again
            jobs.append((*seeds, path))
    common.prepare()
    if jobs:
        common.side_by_side(function, jobs)
    files = sorted((args.out_dir / problem / "confirm").glob("*.json"))
    found = [json.loads(file.read_text()) for file in files]
    common.save_json(args.out_dir / problem / "confirm.json", *found)

if __name__ == "__main__":
    main()
