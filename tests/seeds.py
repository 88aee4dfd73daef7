"""Which findings about the adder hold for other model seeds?  python -m tests.seeds [flags of attention_addition.py]

Repeats section 7 for five model seeds, whose models are trained if they are not there, and writes the findings as single
numbers into head_analysis/seeds.json. The figures that this draws are thrown away.
"""
import sys
import tempfile
from pathlib import Path

import attention_addition as add
import common


def findings(model, data):
    """Section 7 of the script as single numbers: {"errors": 0, "prunable": 6, ...}."""
    with tempfile.TemporaryDirectory() as out:
        pruning = add.study_pruning(model, data, Path(out))
        importance = add.study_importance(model, data, Path(out))
        routes = add.study_carry(model, Path(out))["routes"]
        problems = data["test"][:2000]
        mean = {head: w.mean(0) for head, w in add.attention_of(model, problems).items()}
    pairing = {}  # the lowest weight that a digit gives to the two digits of its column
    lower = {}    # the lowest weight that hundreds and tens give to the two digits of the next lower column
    for head, weights in mean.items():
        if head.startswith("enc"):
            pairing[head] = min((weights[i, k] + weights[i, k + 4]).item() for k in range(3) for i in (k, k + 4))
            lower[head] = min((weights[i, k + 1] + weights[i, k + 5]).item() for k in (0, 1) for i in (k, k + 4))
        if head.startswith("cross"):  # row 0 predicts the thousands
            lower[head] = min((weights[k + 1, k + 1] + weights[k + 1, k + 5]).item() for k in (0, 1))
    right = add.is_right(model, add.all_problems(model.num_digits, model.config["leading_zeros"]))
    summary = {"errors": int((~right).sum()), "removable_alone": len(pruning["removable_alone"]),
               "prunable": pruning["prunable"], "accuracy_without_all_of_those": pruning["accuracy_without_all_of_those"],
               "rank_correlation": importance["rank_correlation"], "pairing": max(pairing.values()),
               "next_lower_column": max(lower.values())}
    for route, rates in routes.items():
        for stage in ("enc", "cross"):
            summary[f"{route}: best of {stage}"] = max(rates[head] for head in mean if head.startswith(stage))
        summary[f"{route}: all of enc"] = rates["all of enc"]
    return summary


def main():
    args = add.command_line().parse_args(["--model-seeds", "5", *sys.argv[1:]])
    args.device = common.pick_device(args.device, args.threads)
    data = add.load_data(args)
    seeds = {}
    for seed in range(args.model_seed, args.model_seed + args.model_seeds):
        seeds[str(seed)] = findings(add.obtain_model(args, seed), data)
        print(f"model seed {seed}: {seeds[str(seed)]}", flush=True)
    common.write_json(common.folder(args.out_dir, "addition") / "head_analysis" / "seeds.json", seeds)


if __name__ == "__main__":
    common.run(main)
