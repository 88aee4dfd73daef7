"""Which setting trains better? Draws the training curves of any number of runs into one figure.

    python -m tests.compare out/sorting/alibi/training_log.json out/sorting/rope/training_log.json

Takes training_log.json files of either script. The legend names the settings in which the runs differ.
"""
from pathlib import Path

import common
from common import UserError


def read_log(path):
    """Return the (config, history) of a training; UserError if the file is missing or something else."""
    try:
        found = common.parse_json(Path(path).read_bytes(), path)
        return found["config"], [(row["step"], row["val_loss"], row["val_accuracy"]) for row in found["history"]]
    except (OSError, KeyError, TypeError):
        raise UserError(f"{path} is not the training_log.json of a training; name one that is") from None


def labels_of(paths, configs):
    """Name each run by those of its settings that all runs have and that differ; runs that differ in none by paths."""
    labels = []
    for config in configs:
        parts = []
        for name, value in config.items():
            values = [other[name] for other in configs if name in other]
            if len(values) == len(configs) and any(other != value for other in values):
                parts.append(f"{name} {value}")
        labels.append(", ".join(parts))
    if len(set(labels)) == len(labels):
        return labels
    return [f"{label} {path}".strip() for label, path in zip(labels, paths)]


def draw(path, labels, histories):
    """Draw validation loss and accuracy over the steps, a line per run."""
    with common.figure(path, 3 + 0.2 * len(labels), columns=2) as ((left, right),):
        for i, history in enumerate(histories):
            steps, losses, accuracies = zip(*history)
            style = {"label": labels[i], "linestyle": ["-", "--", "-.", ":"][i % 4]}
            left.plot(steps, losses, **style)
            right.plot(steps, [100 * accuracy for accuracy in accuracies], **style)
        left.set(xlabel="training step", ylabel="validation loss (nats)", yscale="log")
        right.set(xlabel="training step", ylabel="validation accuracy (%)", ylim=(-3, 103))
        left.figure.legend(*left.get_legend_handles_labels(), loc="outside lower left")


def main():
    parser = common.ArgumentParser(prog="python -m tests.compare", description="Compare trainings in one figure.")
    parser.add_argument("logs", nargs="+", help="training_log.json of each")
    parser.add_argument("--out", default="compare.png", help="the figure")
    args = parser.parse_args()
    runs = [read_log(path) for path in args.logs]
    draw(args.out, labels_of(args.logs, [config for config, _ in runs]), [history for _, history in runs])
    common.log(f"wrote {args.out}")


if __name__ == "__main__":
    common.run(main)
