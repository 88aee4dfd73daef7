"""Do the results hold on seeds that had no part in any choice?

    python -m tests.confirm adder|sorter [--out-dir DIR]

adder: the default adder on 40 pairs of data seed and model seed. Its errors among all
810,000 problems, which heads bring what, and the errors of every 23rd problem if a head that
brings a carry says one bit.
sorter: the model of section 7b on 10 pairs. Its accuracy by length in each experiment of
7c, and the grid of 7b.

One training per core. Writes a file a pair into DIR (scratch), which need not be done again,
and all of them into DIR/addition/confirm.json or DIR/sorting/confirm.json; ours are in
out/reference.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import attention_addition as add
import common
import positional_sorting as sort

def confirm_adder(seeds, path):
    """Train one adder and look inside."""
    config = add.Config(seed=seeds[0], model_seed=seeds[1])
    data = add.make_data(config)
    model, _ = add.train(config, data)
    wrong = add.count_wrong(model, add.all_problems(3))
    who = add.who_brings(model, data["test"])
    bits = add.measure_bits(model, data, who, add.all_problems(3)[::23])
    common.save_json(path, {"seeds": seeds, "wrong": wrong, "who": who, "one_bit": bits})

def confirm_sorter(seeds, path):
    """Train one sinusoidal model and run its experiments."""
    (config,) = sort.settings({"pe": "sinusoidal", "random_start": True})
    config = replace(config, seed=seeds[0], model_seed=seeds[1])
    data = sort.make_data(config)
    model, _ = sort.train(config, data)
    lists = {str(n): data[f"extrapolation/{n}"] for n in sort.LONG}
    grid = sort.measure_waves(model, lists["16"])
    long = sort.measure(model, lists, sort.experiments(model.encoding))
    common.save_json(path, {"seeds": seeds, "grid": grid, "long": long})

TASKS = {  # folder, function, pairs of data seed and model seed
    "adder": ("addition", confirm_adder, [*zip(range(16001, 16021), range(2001, 2021)),
                                          *zip(range(16101, 16121), range(2101, 2121))]),
    "sorter": ("sorting", confirm_sorter, zip(range(9901, 9911), range(1001, 1011))),
}

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=TASKS)
    parser.add_argument("--out-dir", type=Path, default="scratch")
    args = parser.parse_args()
    name, function, pairs = TASKS[args.what]
    folder = args.out_dir / name
    jobs = [(seeds, folder / f"confirm/{seeds[0]}-{seeds[1]}.json") for seeds in pairs]
    common.prepare()
    common.side_by_side(function, [(seeds, path) for seeds, path in jobs if not path.exists()])
    common.save_json(folder / "confirm.json", *(common.load_json(path) for _, path in jobs))

if __name__ == "__main__":
    main()
