"""The tables of README.md and out/report.md, made from the results under out/, so that they cannot drift.

Between `<!-- table: NAME -->` and `<!-- end -->` stands what the function NAME here returns. After new results, type

    python -m tests.tables

to write all of them anew; tests/test_documents.py fails where that was forgotten.
"""
import json
import re
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "out/report.md")
BLOCK = re.compile(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", re.S)


def load(name):
    return json.loads((TOP / "out" / name).read_text())


def table(head, *rows):
    lines = ["| " + " | ".join(map(str, row)) + " |\n" for row in (head, *rows)]
    return "".join([lines[0], "|" + "-|" * len(head) + "\n", *lines[1:]])


def percent(value, digits=1):
    return f"{100 * value:.{digits}f}"


def spread(row, digits=1):
    return f"{percent(row['mean'], digits)} ± {percent(row['std'], digits)}"


def adder():
    log, seeds = load("addition/training_log.json"), load("addition/head_analysis/seeds.json")
    exam = log["exhaustive"]
    return table(["what", "result"],
                 ["parameters", f"{log['n_params']:,}"],
                 [f"test problems right, of {log['test']['n']:,}", f"{percent(log['test']['accuracy'], 2)}%"],
                 [f"wrong of all {exam['n']:,} problems, model seeds 1 to {len(seeds['errors'])}",
                  ", ".join(map(str, seeds["errors"]))],
                 ["seconds to train, on two cores", f"{log['seconds']:.0f}"],
                 [f"seconds to try all {exam['n']:,}", f"{exam['seconds']:.0f}"])


def carries():
    exam = load("addition/training_log.json")["exhaustive"]
    return table(["", *exam["carries"]],
                 *[[f"{name}: wrong of all"] + [f"{row['errors']} of {row['n']:,}" for row in exam[key].values()]
                   for key, name in (("carries", "carries in the sum"), ("longest_chain", "longest chain of carries"))])


def ablation():
    found, scores = load("addition/head_analysis/ablation.json"), load("addition/head_analysis/importance.json")
    names = sorted(found["heads"], key=lambda name: found["heads"][name]["mean"]["accuracy"])[:8]
    return table(["head", "right if replaced by its mean (%)", "right if replaced by zeros (%)",
                  "importance by gradient"],
                 *[[name, percent(found["heads"][name]["mean"]["accuracy"]),
                    percent(found["heads"][name]["zero"]["accuracy"]), f"{scores['gradient'][name]:.3f}"]
                   for name in names])


def pruning():
    one, seeds = load("addition/head_analysis/pruning.json"), load("addition/head_analysis/seeds.json")
    return table(["% of heads", "this model", f"mean ± std of {len(seeds['errors'])} model seeds"],
                 *[[name, percent(one[key]), spread(seeds[key])] for key, name in (
                     ("removable_alone_share", "each removable alone for at most one point"),
                     ("prunable_share", "removable one after another for at most one point"),
                     ("accuracy_without_all_of_those", "(accuracy without all of the first row at once)"))])


def routes():
    found = load("addition/head_analysis/carry.json")["routes"]

    def cell(stage):
        if "set" in stage:
            return f"{', '.join(stage['set'])} ({stage['effect']:.2f}; the rest {stage['rest']:.2f})"
        return f"all together {stage['all']:.2f}"
    return table(["carry from … to …", "encoder", "decoder self-attention", "cross-attention"],
                 *[[route, *(cell(case["stages"][kind]) for kind in ("enc", "dec", "cross"))]
                   for route, case in found.items()])


def route_seeds():
    found = load("addition/head_analysis/seeds.json")["routes"]
    return table(["carry from … to …", "encoder", "decoder self-attention", "cross-attention"],
                 *[[route, *(f"{kinds[kind]['heads']['mean']:.1f} ± {kinds[kind]['heads']['std']:.1f}"
                             for kind in ("enc", "dec", "cross"))] for route, kinds in found.items()])


def extrapolation():
    found = load("sorting/extrapolation/extrapolation_results.json")
    rows = []
    for pe, lengths in found["results"].items():
        every = [found["in_range"][pe], *lengths.values()]
        lowest = min(min(shares) for row in every for shares in row["by_kind_per_seed"].values())
        rows.append([found["labels"][pe], *(f"{percent(row['accuracy'])} ± {percent(row['std'])}" for row in every),
                     percent(lowest)])
    return table(["encoding", "8-16", *found["lengths"], "lowest"], *rows)


def kinds():
    found = load("sorting/extrapolation/extrapolation_results.json")
    last = str(found["lengths"][-1])
    names = list(next(iter(found["results"].values()))[last]["by_kind"])
    return table([f"right at length {last} (%)", *(name.replace("_", " ") for name in names)],
                 *[[found["labels"][pe], *(percent(rows[last]["by_kind"][name]) for name in names)]
                   for pe, rows in found["results"].items()])


def analysis_labels():
    return load("sorting/analysis/analysis.json"), load("sorting/extrapolation/extrapolation_results.json")["labels"]


def by_position(key, head):
    found, labels = analysis_labels()
    rows = found["positions_or_length"][key]
    return table([head, *next(iter(rows.values()))],
                 *[[labels[pe], *(percent(sum(shares) / len(shares)) for shares in row.values())]
                   for pe, row in rows.items()])


def offsets():
    return by_position("offset", "lists of 16 that start at position")


def squeezed():
    return by_position("squeezed", "positions squeezed into 0 to 15, length")


def attention():
    found, labels = analysis_labels()
    rows = []
    for pe, seeds in found["attention"].items():
        cells = {length: [] for length in found["lengths"]}
        for seed in seeds:
            first = seed[str(found["lengths"][0])]
            name = max(first, key=lambda name: max(first[name]["left"], first[name]["right"]))
            side = max(("left", "right"), key=first[name].get)
            for length in cells:
                cells[length].append(seed[str(length)][name][side])
        rows.append([labels[pe], *(f"{sum(values) / len(values):.2f}" for values in cells.values())])
    return table(["weight on the neighbour, length", *found["lengths"]], *rows)


def patching():
    found, _ = analysis_labels()
    rows = []
    for length, seeds in found["algorithm"]["patched"].items():
        cells = []
        for key in ("alone", "all others"):
            shares = [seed[key] for seed in seeds]
            cells.append(f"{percent(sum(shares) / len(shares))} ({percent(min(shares))} to {percent(max(shares))})")
        rows.append([length, *cells])
    return table(["lists of", "only the vector of the second (%)", "all vectors but that one (%)"], *rows)


def looking_back():
    found, _ = analysis_labels()
    looks = found["algorithm"]["looks_back"]
    first = looks[str(found["lengths"][0])]
    heads = [max(look["swapped"], key=lambda head: look["swapped"][head]["before"]) for look in first]
    rows = []
    for length, seeds in looks.items():
        cells = []
        for name, where in (("swapped", "before"), ("sorted", "before"), ("sorted", "itself")):
            weights = [look[name][head][where] for look, head in zip(seeds, heads)]
            cells.append(f"{min(weights):.2f} to {max(weights):.2f}")
        rows.append([length, *cells])
    return table(["lists of", "swapped: on the one before", "sorted: on the one before", "sorted: on itself"], *rows)


def rendered(text):
    """The document with every table made anew."""
    return BLOCK.sub(lambda match: f"<!-- table: {match[1]} -->\n{globals()[match[1]]()}<!-- end -->", text)


if __name__ == "__main__":
    for document in DOCUMENTS:
        path = TOP / document
        path.write_text(rendered(path.read_text()))
