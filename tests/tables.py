"""The tables of README.md and out/report.md, made from the results under out/reference/.

Between `<!-- table: NAME -->` and `<!-- end -->` stands what the function NAME here returns. After
new results type `python -m tests.tables`; tests/test_documents.py fails where that was forgotten.
Each script makes all of its results with one command:

    python attention_addition.py --model-seeds 5 --out-dir out/reference
    python positional_sorting.py --model-seeds 5 --out-dir out/reference

The PDF of the report: cd out && pandoc report.md -o report.pdf --pdf-engine=xelatex
-V geometry:a4paper,margin=2cm -V fontsize=10pt -H ../tests/report.tex

The picture of the explorer: chromium --headless --hide-scrollbars --force-device-scale-factor=2
--window-size=880,610 --screenshot=FILE --virtual-time-budget=6000
'file://TOP/out/explorer.html#adder/142+259/digit=1/off=cross.L0.H2'
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

def heads():
    ablation = load("addition/head_analysis/ablation.json")["1"]
    n_routes = len(load("addition/head_analysis/carry.json")["1"])
    rows = []
    for head in ablation["ranking"]:
        found = load("addition/head_analysis/heads.json")["1"][head]
        row = ablation["heads"][head]
        lost = [percent(ablation["baseline"] - row[way]) for way in ("mean", "zero")]
        reads = ", ".join(f"{query}→{key}" for query, key in found["reads"].items())
        said = " / ".join(f"{x:.2f}" for x in found["variance explained"].values())
        rows.append([head, reads, *lost, said or "-", f"{len(found['moves alone'])} of {n_routes}"])
    return table(["head", "query→key of the largest weight", "points lost, mean", "points, zeros",
                  "says the carry: T / H / Th", "routes it moves alone"], rows)

def in_columns(weights, queries, shift):
    """The least weight that the queries {row: column} give to the two digits of a column."""
    return min(weights[row][k + shift] + weights[row][k + shift + 4] for row, k in queries.items())

def seeds():
    attention, heads, pruning = [load(f"addition/head_analysis/{name}.json")
                                 for name in ("attention", "heads", "pruning")]
    rows = []
    for seed, found in pruning.items():
        joins, reads_lower = {}, {}
        for head, w in attention[seed].items():
            if head.startswith("enc"):  # rows and columns Ha Ta Ua + Hb Tb Ub
                joins[head] = in_columns(w, {0: 0, 1: 1, 2: 2, 4: 0, 5: 1, 6: 2}, 0)
                reads_lower[head] = in_columns(w, {0: 0, 1: 1, 4: 0, 5: 1}, 1)
            if head.startswith("cross"):  # rows Th H T U
                reads_lower[head] = in_columns(w, {1: 0, 2: 1}, 1)
        moved = {head: len(row["moves alone"]) for head, row in heads[seed].items()}
        routes = {route for row in heads[seed].values() for route in row["moves alone"]}
        most = max(moved, key=moved.get)
        rows.append([seed])
        for found_heads in (joins, reads_lower):
            head = max(found_heads, key=found_heads.get)
            rows[-1].append(f"{head} ({found_heads[head]:.2f})")
        rows[-1] += [f"{most} ({moved[most]})", len(routes)]
        for count in (len(found["removable_alone"]), found["prunable"]):
            rows[-1].append(f"{count} ({percent(count / len(moved), 0)}%)")
        rows[-1].append(found["wrong_without_those"])
    return table(["model seed", "joins columns", "reads the next lower", "moves most routes",
                  "routes", "idle alone", "in turn", "wrong without"], rows)

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
            name = best.replace(".L0.", " ")
            rates = f"{name} {percent(flip[best], 0)} / {percent(control[best], 0)}"
            rows[-1].append(rates if more[best] > 0.01 else "none")
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

def extrapolation():
    def cells_of(found):
        return [f"{percent(row['mean'])} ± {percent(row['std'])}" for row in found.values()]
    lengths = ["8-16", "16", "32", "64", "128", "256"]
    return table(["setting", "encoding", *lengths], setting_rows(cells_of))

def short():
    rows = {pe: [pe] for pe in sort.ENCODINGS}
    def cells_of(found):
        return [percent(found[length]["mean"], 0) for length in ("16", "32", "256")]
    for setting, pe, *cells in setting_rows(cells_of):
        if "random" not in setting:
            rows[pe] += cells
    head = ["encoding", "no mask, 16", "32", "256", "causal mask, 16", "32", "256"]
    return table(head, rows.values())

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

def long():
    rows = []
    for folder, found in analysis("long").items():
        row = [folder.removeprefix("sorting/").replace("-", " ")]
        for way in ("late", "as it is", "held", "window", "log n"):
            values = found.get(way)
            spread = values and f"{percent(min(values), 0)}-{percent(max(values), 0)}"
            row.append(f"{percent(mean(values))} ({spread})" if values else "-")
        rows.append(row)
    return table(["model", "16 from 240", "256 as it is", "256 held", "256, window of 16",
                  "256, log n"], rows)

def rendered(text):
    """The document with every table made anew."""
    return BLOCK.sub(lambda m: f"<!-- table: {m[1]} -->\n{globals()[m[1]]()}<!-- end -->", text)

if __name__ == "__main__":
    for document in DOCUMENTS:
        path = TOP / document
        path.write_text(rendered(path.read_text()))
