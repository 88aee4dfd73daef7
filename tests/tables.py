"""The tables of README.md, out/report.md and both scripts, from the files in out/reference.

    python -m tests.tables          writes every table anew into these four files

In a document the function NAME here fills what stands between `<!-- table: NAME -->` and
`<!-- end -->`, in a script the indented lines below `# Result (tests.tables: NAME)`.
tests/test_documents.py fails where this was forgotten. Each script makes all of its results
with one command, and the confirmations have one each:

    python attention_addition.py --model-seeds 5 --out-dir out/reference
    python positional_sorting.py --model-seeds 5 --out-dir out/reference
    python -m tests.confirm adder --out-dir out/reference
    python -m tests.confirm sorter --out-dir out/reference
    python positional_sorting.py --mode extrapolate --pe alibi --causal --slope 0.25
        --model-seeds 5 --out-dir out/reference/paper_slopes

The PDF of the report: cd out && pandoc report.md -o report.pdf --pdf-engine=xelatex
-V geometry:a4paper,margin=2cm -V fontsize=10pt -H ../tests/report.tex

The picture of the explorer: chromium --headless --hide-scrollbars --force-device-scale-factor=2
--window-size=880,610 --screenshot=FILE --virtual-time-budget=6000
'file://TOP/out/explorer.html#adder/142+259/digit=1/off=cross.L0.H2'
"""
import argparse
import collections
import json
import re
from pathlib import Path
from statistics import mean, median

import attention_addition as add
import positional_sorting as sort

TOP = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "out/report.md"]
SCRIPTS = ["attention_addition.py", "positional_sorting.py"]
IN_DOCUMENT = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(?=<!-- end -->)", re.S)
IN_SCRIPT = re.compile(r"(# Result \(tests\.tables: (\w+)\).*\n)((?:#     .*\n)+)")
SEEDS = range(1, 6)

def load(name):
    return json.loads((TOP / "out/reference" / name).read_text())

def lines_of(name):
    return [json.loads(line) for line in (TOP / "out/reference" / name).read_text().splitlines()]

def percent(value, digits=0):
    return f"{100 * value:.{digits}f}"

def spread(values, digits=0):
    """The range of some fractions in percent: 98-100."""
    ends = [percent(min(values), digits), percent(max(values), digits)]
    return ends[0] if ends[0] == ends[1] else "-".join(ends)

# ---- Addition ------------------------------------------------------------------------

def adders(name):
    """{model seed: what a file of the adder's results holds}."""
    folders = ["addition", *(f"addition/seed{seed}" for seed in SEEDS[1:])]
    return {seed: load(f"{folder}/{name}.json") for seed, folder in zip(SEEDS, folders)}

def errors():
    wrong = [log["wrong"] for log in adders("training_log").values()]
    return ["model seed", *SEEDS], [["wrong", *wrong]]

def least(weights, queries, keys):
    """The least weight that queries give to the keys of each: {query: [key, ...]}."""
    return min(sum(weights[q][k] for k in keys[q]) for q in queries)

def reads():
    """Of the best head in each model, the least mean weight of any digit."""
    joins, lower = [], []
    for attention in adders("head_analysis/attention").values():
        other, below = [], []
        for head, w in attention.items():
            if head.startswith("enc"):  # rows and columns Ha Ta Ua + Hb Tb Ub
                pairs = {0: [4], 1: [5], 2: [6], 4: [0], 5: [1], 6: [2]}
                other.append(least(w, pairs, pairs))
                below.append(least(w, [0, 1, 4, 5], {0: [1, 5], 4: [1, 5], 1: [2, 6], 5: [2, 6]}))
            if head.startswith("cross"):  # rows Th H T U
                below.append(least(w, [1, 2], {1: [1, 5], 2: [2, 6]}))
        joins.append(f"{max(other):.2f}")
        lower.append(f"{max(below):.2f}")
    rows = [["encoder, other digit of the column", *joins], ["next lower column", *lower]]
    return ["model seed", *SEEDS], rows

def ablation():
    found = adders("head_analysis/ablation")[1]
    heads = [head for head in found["zero"] if head not in found["idle"]]
    rows = []
    for kind, name in (("zero", "zeros"), ("mean", "its mean")):
        others = [found[kind][head] for head in found["idle"]]
        rows.append([name, *(percent(found[kind][head]) for head in heads), spread(others)])
    return ["", *heads, f"the other {len(found['idle'])}"], rows

def idle():
    found = adders("head_analysis/ablation").values()
    idle = [len(ablation["idle"]) for ablation in found]
    wrong = [ablation["wrong_without_idle"] for ablation in found]
    row = [f"{min(idle)}-{max(idle)} of {len(next(iter(found))['zero'])}", max(wrong)]
    return ["idle heads", "wrong of 810,000 without them, at most"], [row]

def who(columns=("tens", "hundreds")):
    rows = []
    for seed, brings in adders("head_analysis/brings").items():
        for column in columns:
            row = [seed, column]
            for what in ("carry", "column"):
                head, fraction = brings["who"][column][what]
                row.append(f"{head} {percent(fraction)}")
            rows.append(row)
    return ["model seed", "digit", "carry", "column"], rows

def tens():
    """Of the tens only; with all of cross-attention, and with heads of unrelated problems."""
    found = adders("head_analysis/brings")
    rows = [[seed, carry, column, percent(found[seed]["brought"]["tens"]["all of cross"]["both"])]
            for seed, _, carry, column in who(["tens"])[1]]
    unrelated = found[1]["unrelated"]["tens"]
    rows.append(["1, control", f"cross.L0.H2 {percent(unrelated['cross.L0.H2']['carry'])}",
                 f"cross.L0.H0 {percent(unrelated['cross.L0.H0']['column'])}", ""])
    return ["model seed", "carry", "column", "both"], rows

def nines():
    brings = adders("head_analysis/brings")[1]
    rows = []
    for column in ("tens", "hundreds"):
        head, fraction = brings["who"][column]["carry"]
        no_nines = brings["no nines"][column][head]["carry"]
        two = {g: x["carry"] for g, x in brings["pairs"][column].items() if f"+ {head}" in g}
        best = max(two, key=two.get)
        cells = [percent(x) for x in (fraction, no_nines, two[best])]
        rows.append([column, head, *cells, best.split(" + ")[0]])
    return ["carry into", "head", "all pairs", "first no nine", "with a second", "which"], rows

def bits():
    rows = []
    for seed, brings in adders("head_analysis/brings").items():
        for head, found in brings["one_bit"].items():
            columns = ", ".join(add.COLUMNS[k] for k in found["columns"])
            controls = [percent(found[x] / 40_000) for x in ("no bit", "bits of other problems")]
            rows.append([seed, head, columns, found["wrong"], *controls])
    return ["model seed", "head", "carry into", "wrong", "no bit, %", "other bits, %"], rows

def confirmed():
    """Over the models of tests.confirm: who brings the carry into the tens."""
    ways = collections.Counter()
    models = lines_of("addition/confirm.json")
    for found in models:
        heads, fraction = found["who"]["tens"]["carry"]
        stages = [head.split(".")[0] for head in heads.split(" + ")]
        ways[" + ".join(stages) if fraction >= 0.9 else "more heads"] += 1
    ways = dict(ways.most_common())
    return ["carry into the tens by", *ways], [[f"of {len(models)} models", *ways.values()]]

def one_bit():
    """Over the models of tests.confirm: errors of 40,000 if a head says one bit."""
    models = [found["one_bit"] for found in lines_of("addition/confirm.json") if found["one_bit"]]
    heads = [bit for found in models for bit in found.values()]
    row = [f"{len(heads)} in {len(models)} models", max(bit["wrong"] for bit in heads)]
    for control in ("no bit", "bits of other problems"):
        row.append(percent(median(bit[control] / 40_000 for bit in heads)))
    return ["heads", "wrong of 40,000, at most", "no bit, %", "other bits, %"], [row]

# ---- Sorting -------------------------------------------------------------------------

def sorters(name, folder="sorting"):
    """[what a file of the sorter's results holds, of each model seed]."""
    folders = [folder, *(f"{folder}/seed{seed}" for seed in SEEDS[1:])]
    return [load(f"{folder}/{name}.json") for folder in folders]

def extrapolation():
    return sorters("extrapolation/extrapolation_results")

def analysis(name):
    return [found[name] for found in sorters("analysis/analysis")]

def lengths():
    rows = []
    for pe in sort.ENCODINGS:
        row = [pe]
        for name in (pe, f"{pe}-causal"):
            for length in ("8-16", "32", "256"):
                values = [seed[name][length]["accuracy"] for seed in extrapolation()]
                row.append(percent(mean(values)))
        rows.append(row)
    head = ["encoding", "no mask, 8-16", "32", "256", "causal mask, 8-16", "32", "256"]
    return head, rows

def all_lengths():
    rows = []
    for end, mask in (("", "no mask"), ("-causal", "causal mask")):
        for pe in sort.ENCODINGS:
            cells = [found[pe + end] for found in extrapolation()]
            means = [mean(row[n]["accuracy"] for row in cells) for n in cells[0]]
            rows.append([mask, pe, *(percent(x, 1) for x in means)])
    return ["setting", "encoding", "8-16", *map(str, sort.LONG)], rows

def mirror():
    recalls = [seed["alibi"]["8-16"]["recall"] for seed in extrapolation()]
    rows = [spread([recall[kind] for recall in recalls]) for kind in recalls[0]]
    return [kind.replace("_", " ") for kind in recalls[0]], [rows]

def slopes():
    """ALiBi with a causal mask: the slopes of this task, and those of the paper."""
    rows = []
    for name, folder in (("4, of this task", "sorting"),
                         ("0.25, of the paper", "paper_slopes/sorting")):
        seeds = sorters("extrapolation/extrapolation_results", folder)
        cells = [spread([found["alibi-causal"][n]["accuracy"] for found in seeds])
                 for n in ("8-16", "32", "256")]
        rows.append([name, *cells])
    return ["first slope", "8-16", "32", "256"], rows

def waves():
    rows = []
    for i, start in enumerate(sort.STARTS):
        cells = [spread([grid[i][j] for grid in analysis("waves")]) for j in range(6)]
        rows.append([f"slow from {start:,}", *cells])
    return ["", "fast from 0", *(f"{start:,}" for start in sort.STARTS[1:])], rows

def starts():
    rows = [spread(column) for column in zip(*analysis("starts"))]
    return ["start", *map(str, sort.STARTS[:4])], [["right", *rows]]

def parts():
    found, rows = analysis("parts"), []
    for weights in ("beyond", "within"):
        neighbour = spread([row[f"weight of the neighbour, {weights}"] for row in found])
        for rest in ("beyond", "within"):
            right = spread([row[f"weights {weights}, rest {rest}"] for row in found])
            rows.append([weights, rest, right, neighbour])
    return ["for the weights", "for the rest", "right, %", "weight of the neighbour, %"], rows

def experiments(key, name):
    """Rows of experiments of a model: ranges of accuracy over model seeds by length."""
    seeds = analysis(key)
    rows = []
    for way in seeds[0]:
        cells = [spread([found[way][n] for found in seeds]) for n in seeds[0][way]]
        rows.append([name, way.replace("_", " "), *cells])
    return rows

def as_it_is(setting, name):
    seeds = [found[setting] for found in extrapolation()]
    cells = [spread([found[n]["accuracy"] for found in seeds]) for n in seeds[0]]
    return [name, "as it is", *cells]

def long():
    rows = experiments("sinusoidal", "sinusoidal")
    rows += [as_it_is("learned-random-start", "learned"), *experiments("learned", "learned")]
    return ["encoding", "experiment", "8-16", *map(str, sort.LONG)], rows

def far():
    rows = [*experiments("far", "sinusoidal"), *experiments("far, alibi", "alibi, causal")]
    return ["encoding", "experiment", "1,024", "4,096"], rows

def causal():
    rows = []
    for pe in sort.CAUSAL:
        for row in (as_it_is(f"{pe}-causal", pe), *experiments(f"{pe}-causal", pe)):
            rows.append([*row[:3], row[-1]])
    return ["encoding", "experiment", "8-16", "256"], rows

def swaps():
    rows = []
    for pe in ("alibi", "none"):
        found = analysis(f"swaps, {pe}")
        for length in ("16", "256"):
            cells = [spread([x[length][name] for x in found]) for name in found[0][length]]
            rows.append([pe, length, *cells])
    shown = ["larger hidden", "other hidden", "state copied", "others copied"]
    return ["encoding", "numbers", *shown], rows

def fresh():
    """The grid and the experiments on the fresh seeds of tests.confirm: all, and those that
    have learned the task in training (99% of lists of 16)."""
    models = lines_of("sorting/confirm.json")
    rows = []
    for chosen in (models, [m for m in models if m["long"]["as_it_is"]["16"] >= 0.99]):
        row = [len(chosen)]
        for half in (slice(0, 3), slice(3, 6)):
            row.append(spread([x for m in chosen for cells in m["grid"][half] for x in cells]))
        row.append(spread([m["long"]["as_it_is"]["16"] for m in chosen]))
        row += [spread([m["long"][way]["256"] for m in chosen]) for way in models[0]["long"]]
        rows.append(row)
    ways = [f"256 {way.replace('_', ' ')}" for way in models[0]["long"]]
    return ["models", "slow within", "beyond", "16", *ways], rows

# ---- Where they go -------------------------------------------------------------------

def markdown(head, rows):
    rows = [[str(cell) for cell in row] for row in (head, *rows)]
    # The PDF takes the widths of its columns from the dashes.
    dashes = ["-" * max(8, *map(len, column)) for column in zip(*rows)]
    return "".join("| " + " | ".join(row) + " |\n" for row in (rows[0], dashes, *rows[1:]))

def comment(head, rows):
    rows = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths)).rstrip() for row in rows]
    return "".join(f"#     {line}\n" for line in lines)

def rendered(name):
    """A document or script with every table made anew."""
    pattern, form = (IN_SCRIPT, comment) if name in SCRIPTS else (IN_DOCUMENT, markdown)
    text = (TOP / name).read_text()
    return pattern.sub(lambda found: found[1] + form(*globals()[found[2]]()), text)

def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for name in DOCUMENTS + SCRIPTS:
        (TOP / name).write_text(rendered(name))

if __name__ == "__main__":
    main()
