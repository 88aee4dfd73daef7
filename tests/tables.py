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
    python positional_sorting.py --mode analyze "3 15 27 22 60 71" --out-dir out/reference

(confirm_errors.json is from an earlier run of the first confirmation on another processor.)

The PDF of the report: cd out && pandoc report.md -o report.pdf --pdf-engine=xelatex
-V geometry:a4paper,margin=2cm -V fontsize=10pt -H ../tests/report.tex

The picture of the explorer: out/explorer.html#adder/142+259/digit=1/off=cross.L0.H2 in Chromium,
800 pixels wide at a scale of 1.5, from "A problem" on.
"""
import argparse
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

import attention_addition as add
import positional_sorting as sort

TOP = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "out/report.md"]
SCRIPTS = ["attention_addition.py", "positional_sorting.py"]
IN_DOCUMENT = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(?=<!-- end -->)", re.S)
IN_SCRIPT = re.compile(r"(# Result \(tests\.tables: (\w+)\).*\n)((?:#     .*\n)+)")
LENGTHS = ["8-16", *map(str, sort.LONG)]

def lines_of(name):
    """What the lines of a file of results hold."""
    return [json.loads(line) for line in (TOP / "out/reference" / name).read_text().splitlines()]

def models(folder, name):
    """What a file of results holds, for each of five model seeds."""
    found = []
    for seed in ("", "/seed2", "/seed3", "/seed4", "/seed5"):
        found += lines_of(f"{folder}{seed}/{name}.json")
    return found

def each(found, *keys):
    """What stands under these keys, one within the other, in each of the results found."""
    for key in keys:
        found = [result[key] for result in found]
    return found

def percent(value):
    return f"{100 * value:.0f}"

def spread(values):
    """The range of some fractions in percent: 98-100."""
    ends = [percent(min(values)), percent(max(values))]
    return "-".join(dict.fromkeys(ends))

def merged(found):
    """The same things of several models in one, with the range of each number in them."""
    first, *_ = found
    if isinstance(first, dict):
        return {key: merged(each(found, key)) for key in first}
    if isinstance(first, list):
        return [merged(values) for values in zip(*found)]
    return spread(found)

# Each table below is its first row and its other rows.

# ---- Addition ------------------------------------------------------------------------

def ablation():
    found, *_ = models("addition", "head_analysis/ablation")
    rest = found["idle"]
    heads = [head for head in found["zero"] if head not in rest]
    rows = []
    for kind, name in (("zero", "zeros"), ("mean", "its mean")):
        left = found[kind]
        others = spread([left[head] for head in rest])
        rows.append([name, *(percent(left[head]) for head in heads), others])
    return ["", *heads, f"the other {len(rest)}"], rows

def brings():
    return models("addition", "head_analysis/brings")

def who():
    """And the control of seed 1."""
    rows = []
    for seed, found in enumerate(brings(), 1):
        for column in ("tens", "hundreds"):
            heads = [found["who"][column][what] for what in ("carry", "column")]
            rows.append([seed, column, *(f"{head} {percent(x)}" for head, x in heads)])
    for column in ("tens", "hundreds"):
        control = brings()[0]["unrelated"][column]
        carry, others = control["cross.L0.H2"]["carry"], control["cross.L0.H0"]["column"]
        rows.append(["1, control", column, f"cross.L0.H2 {percent(carry)}",
                     f"cross.L0.H0 {percent(others)}"])
    return ["model seed", "digit", "carry", "column"], rows

def tens():
    _, rows = who()
    rows = [[seed, *heads] for seed, digit, *heads in rows if digit == "tens"]
    return ["model seed", "carry", "column"], rows

def bits():
    rows = []
    for seed, said in enumerate(each(brings(), "one_bit"), 1):
        for head, found in said.items():
            columns = ", ".join(add.COLUMNS[k] for k in found["columns"])
            rows.append([seed, head, columns, found["wrong"], percent(found["control"] / 2000)])
    return ["model seed", "head", "carry into", "wrong", "control, %"], rows

def confirmed():
    """How many models of tests.confirm bring it by such heads in 90% of the pairs."""
    kinds = ["cross", "enc", "enc + cross", "cross + cross", "no two"]
    who = each(lines_of("addition/confirm.json"), "who")
    rows = []
    for column, what in (("tens", "carry"), ("tens", "column"), ("hundreds", "carry")):
        ways = Counter()
        for heads, fraction in each(who, column, what):
            ways[re.sub(r"\.L0\.H\d", "", heads) if fraction >= 0.9 else "no two"] += 1
        rows.append([f"{column}, {what}", *(ways[kind] for kind in kinds)])
    return [f"of {len(who)} models by", *kinds], rows

# ---- Sorting -------------------------------------------------------------------------

def accuracies(setting, lengths, folder="sorting"):
    """Of a setting at some lengths, over the models."""
    found = each(models(folder, "extrapolation/extrapolation_results"), setting)
    return [spread(each(found, length, "accuracy")) for length in lengths]

def analysis(name):
    return merged(each(models("sorting", "analysis/analysis"), name))

def all_lengths():
    rows = []
    for end, mask in (("", "no mask"), ("-causal", "causal mask")):
        for pe in sort.ENCODINGS:
            rows.append([mask, pe, *accuracies(pe + end, LENGTHS)])
    return ["setting", "encoding", *LENGTHS], rows

def lengths():
    rows = []
    for pe in sort.ENCODINGS:
        both = [accuracies(name, ["8-16", "32", "256"]) for name in (pe, f"{pe}-causal")]
        rows.append([pe, *both[0], *both[1]])
    return ["encoding", "no mask, 8-16", "32", "256", "causal mask, 8-16", "32", "256"], rows

def mirror():
    found = models("sorting", "extrapolation/extrapolation_results")
    recall = merged(each(found, "alibi", "8-16", "recall"))
    return [kind.replace("_", " ") for kind in recall], [recall.values()]

def waves():
    starts = [f"{start:,}" for start in sort.STARTS]
    rows = [[f"slow from {start}", *row] for start, row in zip(starts, analysis("waves"))]
    return ["", f"fast from {starts[0]}", *starts[1:]], rows

def experiments(key, name):
    """Rows of experiments on a model: accuracy by length."""
    found = analysis(key)
    return [[name, way.replace("_", " "), *row.values()] for way, row in found.items()]

def long():
    rows = experiments("sinusoidal", "sinusoidal") + experiments("learned", "learned")
    return ["encoding", "experiment", *LENGTHS], rows

def causal():
    rows = []
    for pe in ("none", "rope"):
        rows.append([pe, "as it is", *accuracies(f"{pe}-causal", ["256"])])
        rows += [[*row[:2], row[-1]] for row in experiments(f"{pe}-causal", pe)]
    return ["encoding", "experiment", "256"], rows

def gaps(grids):
    """By how much slow waves from within training are better than from beyond, at least."""
    grids = np.array(grids)
    return spread(grids[:, :3].min((1, 2)) - grids[:, 3:].max((1, 2)))

def fresh():
    """The experiments on the models of tests.confirm."""
    found = lines_of("sorting/confirm.json")
    long = merged(each(found, "long"))
    row = [len(found), *each(long.values(), "256"), gaps(each(found, "grid"))]
    return ["models", *(f"256 {way.replace('_', ' ')}" for way in long), "gap, points"], [row]

def facts():
    """Numbers in the texts that are in no table; of the 40 fresh adders those with "fresh"."""
    fresh = lines_of("addition/confirm.json")
    apart = 0  # models in which cross-attention alone brings both, by at most two heads each
    for (heads, x), (others, y) in [who.values() for who in each(fresh, "who", "tens")]:
        apart += min(x, y) >= 0.9 and "enc" not in heads + others
    said = list(filter(None, each(fresh, "one_bit")))  # of models with such heads
    heads = [found for heads in said for found in heads.values()]
    ablated = models("addition", "head_analysis/ablation")
    idle = [len(heads) for heads in each(ablated, "idle")]
    both = [max(each(rows.values(), "both")) for rows in each(brings(), "brought", "tens")]
    found = models("sorting", "analysis/analysis")
    waves = np.array(each(found, "waves"))
    both_256 = each(lines_of("sorting/confirm.json"), "long", "both", "256")
    swaps = [each(found, f"swaps, {pe}", n) for pe in ("alibi", "none") for n in ("16", "256")]
    return ["fact", "value"], [
        ["idle", f"{min(idle)}-{max(idle)}"],
        ["wrong", max(each(models("addition", "training_log"), "wrong")),
         max(each(ablated, "wrong_without_idle"))],
        ["both by one head, at most", percent(max(both))],
        ["fresh, right", each(fresh, "wrong").count(0)],
        ["fresh, apart", apart],
        ["fresh, bits", f"{len(said)} of {len(fresh)}", max(each(heads, "wrong"))],
        ["slow waves", spread(waves[:, :3].ravel()), spread(waves[:, 3:].ravel()), gaps(waves)],
        ["fresh sorters, both", *map(percent, both_256)],
        ["slopes of the paper", *accuracies("alibi-causal", ["256"], "paper_slopes/sorting")],
        ["swaps", *merged(sum(swaps, [])).values()]]

# ---- Where they go -------------------------------------------------------------------

def markdown(rows):
    # The PDF takes the widths of its columns from the dashes.
    dashes = ["-" * max(8, *map(len, column)) for column in zip(*rows)]
    return "".join("| " + " | ".join(row) + " |\n" for row in (rows[0], dashes, *rows[1:]))

def comment(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths)).rstrip() for row in rows]
    return "".join(f"#     {line}\n" for line in lines)

def rendered(name):
    """A document or script with every table made anew."""
    pattern, form = (IN_SCRIPT, comment) if name in SCRIPTS else (IN_DOCUMENT, markdown)
    def table(found):
        head, rows = globals()[found[2]]()
        return found[1] + form([[str(cell) for cell in row] for row in (head, *rows)])
    return pattern.sub(table, (TOP / name).read_text())

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name in DOCUMENTS + SCRIPTS:
        (TOP / name).write_text(rendered(name))
