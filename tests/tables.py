"""The tables of README.md and out/report.md, made from the results under out/reference/.

Between `<!-- table: NAME -->` and `<!-- end -->` stands what the function NAME here returns. After
new results type `python -m tests.tables`; tests/test_documents.py fails where that was forgotten.
Each script makes all of its results with one command:

    python attention_addition.py --model-seeds 5 --out-dir out/reference
    python positional_sorting.py --model-seeds 5 --out-dir out/reference

The PDF of the report is made by

    cd out && pandoc report.md -o report.pdf --pdf-engine=xelatex -V geometry:a4paper,margin=2cm \\
        -V fontsize=10pt -V header-includes='\\usepackage{float,etoolbox}\\floatplacement{figure}{H}
        \\AtBeginEnvironment{longtable}{\\footnotesize}'

The picture of the explorer: chromium --headless --window-size=1280,1120 --screenshot=FILE
--virtual-time-budget=6000 'file://TOP/out/explorer.html#adder/142+259/off=cross.L0.H2'
"""
import json
import re
from pathlib import Path
from statistics import mean

import positional_sorting as sort

TOP = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "out/report.md")
BLOCK = re.compile(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", re.S)
STARTS = (0, 104, 112, 124, 240, 1000, 5000)  # of the lists shown
EARLY = "sorting/sinusoidal-random-start-early"
SETTINGS = {"": "no mask", "-causal": "causal mask",
            "-causal-random-start": "causal mask, random starts"}

def load(name):
    return json.loads((TOP / "out" / "reference" / name).read_text())

def table(head, rows):
    rows = [[str(cell) for cell in row] for row in (head, *rows)]
    # The PDF takes the widths of its columns from the dashes.
    dashes = ["-" * max(8, *map(len, column)) for column in zip(*rows)]
    rows.insert(1, dashes)
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)

def percent(value, digits=1):
    return f"{100 * value:.{digits}f}"

# ---- Addition ------------------------------------------------------------------------------------

def adder():
    log = load("addition/training_log.json")
    test, everything = log["test"], log["exhaustive"]
    return table(["what", "result"], [
        ["parameters", f"{log['n_params']:,}"],
        [f"test problems right, of {test['n']:,}", percent(test["accuracy"], 2) + "%"],
        [f"wrong of all {everything['n']:,} problems", everything["errors"]]])

def heads():
    ablation = load("addition/head_analysis/ablation.json")["1"]
    n_routes = len(load("addition/head_analysis/carry.json")["1"])
    rows = []
    for head, found in load("addition/head_analysis/heads.json")["1"].items():
        row = ablation["heads"][head]
        lost = [percent(ablation["baseline"] - row[way]) for way in ("mean", "zero")]
        reads = ", ".join(f"{query}→{key}" for query, key in found["reads"].items())
        said = " / ".join(f"{x:.2f}" for x in found["variance explained"].values())
        rows.append([head, reads, *lost, said or "-", f"{len(found['moves alone'])} of {n_routes}"])
    return table(["head", "query→key of the largest weight", "points lost, mean", "points, zeros",
                  "says the carry: T / H / Th", "routes it moves alone"], rows)

def pruning():
    rows = []
    for seed, found in load("addition/head_analysis/pruning.json").items():
        n_heads = len(found["order"])
        rows.append([seed])
        for count in (len(found["removable_alone"]), found["prunable"]):
            rows[-1].append(f"{count} ({percent(count / n_heads, 0)}%)")
        rows[-1].append(found["wrong_without_those"])
    return table(["model seed", f"of {n_heads} heads, removable each alone", "one after another",
                  f"wrong of all {found['n_problems']:,} without all of the former"], rows)

def carry_digits():
    rows = []
    for head, found in load("addition/head_analysis/ablation.json")["1"]["heads"].items():
        pairs = [found[place] for place in ("tens", "hundreds", "thousands")]
        if min(min(pair) for pair in pairs) < 0.99:
            rows.append([head, *(f"{percent(x, 0)} / {percent(y, 0)}" for x, y in pairs)])
    return table(["head replaced by its mean", "tens right", "hundreds right", "thousands right"],
                 rows)

def route_seeds():
    seeds = load("addition/head_analysis/carry.json")
    rows = []
    for route in seeds["1"]:
        rows.append([route])
        for found in seeds.values():
            flip, control = found[route]["flip"], found[route]["control"]
            more = {head: flip[head] - control[head] for head in flip if ".H" in head}
            best = max(more, key=more.get)
            rows[-1].append(f"{best.replace('.L0.', ' ')} {more[best]:.2f}")
    return table(["route", *(f"model seed {seed}" for seed in seeds)], rows)

# ---- Sorting -------------------------------------------------------------------------------------

def setting_rows(cells_of):
    """A row per setting and encoding: their names, and what cells_of(its results) returns."""
    results = load("sorting/extrapolation/extrapolation_results.json")
    rows = []
    for setting, name in SETTINGS.items():
        for pe in sort.ENCODINGS:
            if f"sorting/{pe}{setting}" in results:
                rows.append([name, pe, *cells_of(results[f"sorting/{pe}{setting}"])])
    return rows

def lengths():
    return list(load("sorting/extrapolation/extrapolation_results.json")["sorting/none"])

def extrapolation():
    def cells_of(found):
        return [f"{percent(row['mean'])} ± {percent(row['std'])}" for row in found.values()]
    return table(["setting", "encoding", *lengths()], setting_rows(cells_of))

def kinds():
    rows = setting_rows(lambda found: [percent(x, 0) for x in found["256"]["recall"].values()])
    names = [kind.replace("_", " ") for kind in sort.UNSORTED]
    return table(["setting", "encoding", "sorted", *names], rows)

def analysis(name):
    return load("sorting/analysis/analysis.json")[name]

def positions():
    rows = []
    for folder, ways in analysis("positions").items():
        name = folder.removeprefix("sorting/").replace("-random-start-", ", ")
        for way, found in ways.items():
            if "above" in way and folder != EARLY:
                continue
            means = [percent(mean(column), 0) for column in zip(*found["accuracy"])]
            means += (len(sort.POSITIONS) - len(means)) * ["-"]
            shown = [means[sort.POSITIONS.index(start)] for start in STARTS]
            rows.append([name, way, *shown])
    return table(["trained on", "waves", *(f"{start:,}" for start in STARTS)], rows)

def neighbours():
    ways = analysis("positions")[EARLY]
    rows = []
    for seed in range(5):
        rows.append([seed + 1])
        for what in ("neighbour", "accuracy"):
            for way, start in (("as it is", 64), ("as it is", 240), ("slow waves held", 240)):
                value = ways[way][what][seed][sort.POSITIONS.index(start)]
                rows[-1].append(f"{value:.2f}")
    places = ["at 64", "at 240", "at 240, held"]
    return table(["model seed", *(f"weight {x}" for x in places), *(f"right {x}" for x in places)],
                 rows)

def long():
    rows = []
    for folder, found in analysis("long").items():
        row = [folder.removeprefix("sorting/")]
        for way in ("late", "as it is", "held", "window", "log n"):
            values = found.get(way)
            spread = values and f"{percent(min(values), 0)}-{percent(max(values), 0)}"
            row.append(f"{percent(mean(values))} ({spread})" if values else "-")
        rows.append(row)
    return table(["model", "16 from 240", "256 as it is", "256 held", "256, window of 16",
                  "256, log n"], rows)

def swaps():
    rows = []
    for length, seeds in load("sorting/analysis/analysis.json")["swaps"].items():
        cells = {"swapped": [], "sorted": [], "that_state": [], "all_others": []}
        for row in seeds:
            weights = row["to_previous_swapped"]
            head = weights.index(max(weights))
            cells["swapped"].append(weights[head])
            cells["sorted"].append(row["to_previous_sorted"][head])
            for which in ("that_state", "all_others"):
                cells[which].append(row[f"turned_by_{which}"])
        rows.append([length, *(f"{min(x):.2f} to {max(x):.2f}" for x in cells.values())])
    return table(["length", "weight on the previous number, swapped list", "the same, sorted list",
                  "turned by that hidden state alone", "by all others"], rows)

def rendered(text):
    """The document with every table made anew."""
    return BLOCK.sub(lambda m: f"<!-- table: {m[1]} -->\n{globals()[m[1]]()}<!-- end -->", text)

if __name__ == "__main__":
    for document in DOCUMENTS:
        path = TOP / document
        path.write_text(rendered(path.read_text()))
