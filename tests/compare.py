"""Which setting trains better? Draws runs into one figure; its legend names what differs.

    python -m tests.compare out/sorting/alibi/training_log.json out/sorting/rope/training_log.json
"""
import json
import sys
from pathlib import Path

import common

def labels_of(logs):
    """Name each run by those of its flags in which not all runs agree."""
    labels = []
    for log in logs:
        parts = []
        for flag, value in log["args"].items():
            if any(other["args"].get(flag) != value for other in logs) and flag != "folder":
                parts.append(f"{flag} {value}")
        labels.append(", ".join(parts) or log["args"]["folder"])
    return labels

def draw(logs):
    """Draw validation loss and accuracy over the steps, a line per run; return the figure."""
    fig, (left, right) = common.subplots(1, 2, 3 + 0.2 * len(logs))
    for i, (label, log) in enumerate(zip(labels_of(logs), logs)):
        style = {"label": label, "linestyle": ["-", "--", "-.", ":"][i % 4], "marker": "."}
        steps = [row["step"] for row in log["history"]]
        left.plot(steps, [row["val_loss"] for row in log["history"]], **style)
        right.plot(steps, [100 * row["val_accuracy"] for row in log["history"]], **style)
    left.set(xlabel="training step", ylabel="validation loss (nats)", yscale="log")
    right.set(xlabel="training step", ylabel="validation accuracy (%)", ylim=(-3, 103))
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower left")
    return fig

def main():
    logs = [json.loads(Path(path).read_text()) for path in sys.argv[1:]]
    common.save(Path("scratch/compare.png"), draw(logs))
    print("wrote scratch/compare.png")

if __name__ == "__main__":
    main()
