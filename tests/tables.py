"""The tables of README.md and out/report.md, made from the results under out/reference/, so that they cannot drift.

Between `<!-- table: NAME -->` and `<!-- end -->` stands what the function NAME here returns. After new results, type

    python -m tests.tables

to write all of them anew; tests/test_documents.py fails where that was forgotten. All results are made by

    for flags in "" "--causal" "--causal --random-start"; do
      python positional_sorting.py --mode extrapolate --pe all --model-seeds 5 $flags --out-dir out/reference
    done
    python positional_sorting.py --mode analyze --model-seeds 5 --out-dir out/reference
    python attention_addition.py --model-seeds 5 --out-dir out/reference
    python -m tests.seeds --out-dir out/reference

extrapolate, analyze and tests.seeds do not train again what is there. The PDF of the report is made by

    cd out && pandoc report.md -o report.pdf --pdf-engine=xelatex -V geometry:a4paper,margin=2cm -V fontsize=10pt \\
        -V header-includes='\\usepackage{float,etoolbox}\\floatplacement{figure}{H}\\AtBeginEnvironment{longtable}{\\footnotesize}'
"""
import json
import re
from pathlib import Path

import positional_sorting as sort

TOP = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "out/report.md")
BLOCK = re.compile(r"<!-- table: (\w+) -->\n(.*?)<!-- end -->", re.S)
SETTINGS = {"": "no mask", "-causal": "causal mask", "-causal-random-start": "causal mask, random starts"}


def load(name):
    return json.loads((TOP / "out" / "reference" / name).read_text())


def table(head, rows):
    widths = [max(14, *(len(str(row[k])) for row in (head, *rows))) for k in range(len(head))]  # the PDF takes them from dashes
    lines = []
    for row in (head, ["-" * width for width in widths], *rows):
        lines.append("| " + " | ".join(str(cell) for cell in row) + " |\n")
    return "".join(lines)


def percent(value, digits=1):
    return f"{100 * value:.{digits}f}"


def sections():
    """Where each section of the scripts begins."""
    rows = []
    for script in ("attention_addition.py", "positional_sorting.py"):
        for i, line in enumerate((TOP / script).read_text().splitlines(), start=1):
            match = re.match(r"# (\d\. .*)$", line)
            if match:
                rows.append([f"[{script}]({script}#L{i}), line {i}", match[1]])
    return table(["where", "what"], rows)


# ------------------------------------------------------------------------------------------------
# Addition


def adder():
    training_log = load("addition/training_log.json")
    seeds = load("addition/head_analysis/seeds.json")
    errors = ", ".join(str(summary["errors"]) for summary in seeds.values())
    return table(["what", "result"], [
        ["parameters", f"{training_log['n_params']:,}"],
        [f"test problems right, of {training_log['test']['n']:,}", percent(training_log["test"]["accuracy"], 2) + "%"],
        [f"wrong of all {training_log['exhaustive']['n']:,} problems, model seeds {', '.join(seeds)}", errors]])


def attended(head, grid):
    """Where each digit attends to most, in words; the two digits of a column count together."""
    source, target = [*"HTU+HTU"], ["Th", *"HTU"]
    queries = source if head.startswith("enc") else target
    keys = ["start", *target[:-1]] if head.startswith("dec") else source
    parts = []
    for query in dict.fromkeys(query for query in queries if query != "+"):
        rows = [grid[i] for i, name in enumerate(queries) if name == query]
        shares = {}
        for j, key in enumerate(keys):
            shares[key] = shares.get(key, 0) + sum(row[j] for row in rows) / len(rows)
        key = max(shares, key=shares.get)
        parts.append(f"{query}→{key} {shares[key]:.2f}")
    return ", ".join(parts)


def heads():
    attention = load("addition/head_analysis/attention.json")["mean_weights"]
    ablation = load("addition/head_analysis/ablation.json")
    routes = load("addition/head_analysis/carry.json")["routes"]
    rows = []
    for head, grid in attention.items():
        lost = [percent(ablation["baseline"] - ablation["heads"][head][way]) for way in ("mean", "zero")]
        moved = [f"{name} {rates[head]:.2f}" for name, rates in routes.items() if rates[head] >= 0.5]
        rows.append([head, attended(head, grid), *lost, "; ".join(moved) or "none"])
    return table(["head", "query→key that it attends to most", "points lost, mean", "points lost, zeros",
                  "carries that it flips alone (0.5 or more)"], rows)


def importance():
    found = load("addition/head_analysis/importance.json")
    rows = [[head, percent(lost), f"{found['gradient'][head]:.2f}"] for head, lost in found["ablation"].items()]
    rows.sort(key=lambda row: -found["ablation"][row[0]])
    return table(["head", "points lost (zeros)", "gradient score"], rows)


def pruning():
    seeds = load("addition/head_analysis/seeds.json")
    n_heads = len(load("addition/head_analysis/pruning.json")["order"])
    rows = []
    for seed, found in seeds.items():
        alone, prunable = (f"{found[key]} ({100 * found[key] / n_heads:.0f}%)" for key in ("removable_alone", "prunable"))
        rows.append([seed, alone, prunable, percent(found["accuracy_without_all_of_those"]),
                     f"{found['rank_correlation']:.2f}"])
    return table(["model seed", f"of {n_heads} heads, removable each alone", "one after another",
                  "accuracy without all of the former (%)", "rank correlation of ablation and gradient"], rows)


def routes():
    rows = []
    for name, rates in load("addition/head_analysis/carry.json")["routes"].items():
        cells = []
        for stage in ("enc", "cross"):
            heads = sorted((head for head in rates if head.startswith(stage)), key=rates.get, reverse=True)
            cells += [", ".join(f"{head} {rates[head]:.2f}" for head in heads[:2]), f"{rates[f'all of {stage}']:.2f}"]
        rows.append([name, *cells, f"{rates['all of dec']:.2f}"])
    return table(["carry", "strongest of the encoder", "all of it", "strongest of cross-attention", "all of it",
                  "all of decoder self-attention"], rows)


def route_seeds():
    seeds = load("addition/head_analysis/seeds.json")
    rows = []
    for name in load("addition/head_analysis/carry.json")["routes"]:
        cells = []
        for what in ("best of enc", "all of enc", "best of cross"):
            cells.append(", ".join(f"{found[f'{name}: {what}']:.2f}" for found in seeds.values()))
        rows.append([name, *cells])
    return table(["carry", "strongest encoder head", "all encoder heads", "strongest cross-attention head"], rows)


# ------------------------------------------------------------------------------------------------
# Sorting


def entry_of(pe, setting):
    """The results of an encoding in a setting."""
    return load("sorting/extrapolation/extrapolation_results.json")[pe + setting]


def setting_rows(cells_of):
    """A row per setting and encoding: their names, and what cells_of(entry of the results) returns."""
    rows = []
    for setting, name in SETTINGS.items():
        for pe, encoding in sort.encodings().items():
            if encoding.uses_start or not setting.endswith("random-start"):  # else the same as with the mask alone
                rows.append([name, encoding.label, *cells_of(entry_of(pe, setting)["lengths"])])
    return rows


def sorting():
    rows = setting_rows(lambda lengths: [percent(row["mean"]) for row in lengths.values()])
    return table(["setting", "encoding", *entry_of("none", "")["lengths"]], rows)


def extrapolation():
    rows = setting_rows(lambda lengths: [f"{percent(row['mean'])} ± {percent(row['std'])}" for row in lengths.values()])
    return table(["setting", "encoding", *entry_of("none", "")["lengths"]], rows)


def kinds():
    rows = setting_rows(lambda lengths: [percent(x["mean"], 0) for x in lengths["256"]["recall"].values()])
    names = [kind.replace("_", " ") for kind in entry_of("none", "")["lengths"]["256"]["recall"]]
    return table(["setting", "encoding", *names], rows)


def spread(values):
    return f"{percent(sum(values) / len(values))} ({percent(min(values))} to {percent(max(values))})"


def positions():
    found = load("sorting/analysis/analysis.json")["positions"]
    rows = []
    for name, row in found.items():
        means = [sum(column) / len(column) for column in zip(*row["start"])]
        rows.append([name, *(percent(mean) for mean in means), spread(row["full"]), spread(row["window"])])
    return table(["model", *(f"16 from {start}" for start in sort.LATE_STARTS), "256", "256, window of 16"], rows)


def bands():
    found = load("sorting/analysis/analysis.json")["bands"]
    rows = []
    for band, encodings in found.items():
        for pe, seeds in encodings.items():
            means = [sum(column) / len(column) for column in zip(*seeds)]
            rows.append([band, pe, *(percent(mean, 0) for mean in means)])
    return table(["training", "encoding", *sort.BAND_STARTS], rows)


def swaps():
    found = load("sorting/analysis/analysis.json")["swaps"]
    rows = []
    for length, seeds in found.items():
        cells = {"swapped": [], "sorted": [], "only that number": [], "all others": []}
        for row in seeds:
            weights = row["attention_to_previous"]
            head = weights["swapped"].index(max(weights["swapped"]))
            cells["swapped"].append(weights["swapped"][head])
            cells["sorted"].append(weights["sorted"][head])
            for which, share in row["called_unsorted"].items():
                cells[which].append(share)
        rows.append([length, *(f"{min(x):.2f} to {max(x):.2f}" for x in cells.values())])
    return table(["length", "weight on the previous number, swapped list", "the same, sorted list",
                  "turned by that hidden state alone", "by all others"], rows)


def rendered(text):
    """The document with every table made anew."""
    return BLOCK.sub(lambda match: f"<!-- table: {match[1]} -->\n{globals()[match[1]]()}<!-- end -->", text)


if __name__ == "__main__":
    for document in DOCUMENTS:
        path = TOP / document
        path.write_text(rendered(path.read_text()))
