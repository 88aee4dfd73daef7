"""Bookkeeping that both scripts share: errors, files, devices, progress and the look of the figures.

Nothing about attention is in here. A reader of the tutorials can skip this file and miss no idea.
"""
import argparse
import contextlib
import io
import json
import os
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

# ------------------------------------------------------------------------------------------------
# Errors: whatever a user can cause ends in one sentence and exit code 2, never in a traceback


warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # torch 2.0 says so of its own torch.load


class UserError(Exception):
    """Something the user can put right. The message says what is wrong and what to type next."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse, except that a wrong flag is one sentence and that no flag may be shortened."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **settings)

    def error(self, message):
        raise UserError(f"{message} (--help lists the flags)")

    def parse(self, argv=None):
        """Return (all flags with their defaults filled in, {flag: value} of those that were typed)."""
        args = self.parse_args(argv)
        untouched = argparse.Namespace(**{name: None for name in vars(args)})  # argparse keeps what is set
        typed = vars(self.parse_args(argv, untouched))
        return args, {name: value for name, value in typed.items() if value is not None}


def number(kind, low, high=float("inf")):
    """An argparse type: a finite `kind` (int or float) from low to high, both included."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high or value == float("inf"):
            bounds = f"of {low} or more" if high == float("inf") else f"from {low} to {high}"
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {noun} {bounds}, found {text[:40]!r}")
        return value
    return parse


def run(main):
    """Call main() and leave with exit code 0, 2 after an error with a sentence, 130 after Ctrl-C."""
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        log("error: " + " ".join(str(error).split()))  # one line, whatever was typed
        sys.exit(2)
    except KeyboardInterrupt:
        log("interrupted; the files on disk are whole: type the same command to start again (--mode train --resume "
            "takes up a training where it last validated)")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, as in `... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        log(f"error: {error.filename or 'a file'}: {error.strerror or error}; "
            f"free the disk or choose another place with --data-dir or --out-dir")
        sys.exit(2)


# ------------------------------------------------------------------------------------------------
# Files: each is written whole or not at all


def folder(*parts):
    """Make a folder and return its path. One that cannot be written to is found out now, not after the training."""
    path = Path(*parts)
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".{os.getpid()}.tmp"
    probe.touch()
    probe.unlink()
    return path


@contextlib.contextmanager
def whole_file(path):
    """Yield a temporary path that takes the place of `path` if, and only if, the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # by a run that was killed; no file takes a minute to write
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > 60:
                left.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write UTF-8 with \\n line ends, so that the same text is the same bytes on every system."""
    with whole_file(path) as temporary:
        temporary.write_bytes(text.encode())


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path):
    """Return the JSON value in a file; UserError if there is no such file or it holds something else."""
    try:
        return json.loads(Path(path).read_bytes().decode())
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not a whole JSON file; remove it and make it again") from None


def read_jsonl(path, check):
    """Return the records of a JSON Lines file, each passed through check(record).

    check returns what to keep and raises ValueError(reason) for a record it does not accept.
    UserError names the file and the line of the first bad one.
    """
    kept = []
    for number_, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        try:
            kept.append(check(json.loads(line.decode())))
        except (ValueError, RecursionError) as error:
            reason = "not JSON" if isinstance(error, (json.JSONDecodeError, UnicodeError, RecursionError)) else error
            raise UserError(f"{path}, line {number_}: {reason}; repair the line or type --mode gendata") from None
    return kept


def save_tensors(path, value):
    """Write nested dictionaries and lists of tensors and plain values."""
    content = io.BytesIO()  # torch.save(path) stores the file's name too; so the same model is always the same bytes
    torch.save(value, content)
    with whole_file(path) as temporary:
        temporary.write_bytes(content.getvalue())


def save_checkpoint(path, model, config):
    """Write weights and configuration, as tensors on the CPU, loadable anywhere."""
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    save_tensors(path, {"config": config, "weights": weights, "torch": str(torch.__version__)})


def load_checkpoint(path, script, build):
    """Return (model, config) as saved by `script`; build(config) makes the model that the weights go into.

    Only tensors and plain values are ever unpickled. UserError if there is no such file or it is something else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["config"]["script"] == script:
            model = build(checkpoint["config"])
            model.load_state_dict(checkpoint["weights"])
            return model.eval(), checkpoint["config"]
    except FileNotFoundError:
        raise UserError(f"there is no model at {path}; type python {script} --mode train") from None
    except PermissionError:
        raise
    except Exception:  # torch raises a dozen kinds for a file that is cut short, foreign or hostile
        pass
    raise UserError(f"{path} is not a model of this version of {script}; type --mode train to make one")


def difference(found, wanted):
    """Name the settings in which two dictionaries differ: "seed 1 (wanted 641), num_digits 2 (wanted 3)"."""
    if not isinstance(found, dict):
        return "unknown settings"
    names = [name for name in wanted if found.get(name) != wanted[name]]
    return ", ".join(f"{name} {found.get(name)} (wanted {wanted[name]})" for name in names) or "other settings"


def write_data(folder, records, settings):
    """Write {name: records} as <name>.jsonl, and settings.json: all of it or, when the disk is full, nothing.

    The files are complete before the first of them takes its place. Between the first and the last, settings.json says
    "unfinished", so that ready_data knows of a run that was killed there.
    """
    with contextlib.ExitStack() as files:
        for name, rows in records.items():
            temporary = files.enter_context(whole_file(folder / f"{name}.jsonl"))
            temporary.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
        write_json(folder / "settings.json", "unfinished")
    write_json(folder / "settings.json", settings)


def ready_data(folder, wanted, generate):
    """Call generate() if there are no data in the folder or only half-made ones.

    UserError if they were made with other settings than those wanted, as settings.json tells.
    """
    settings = folder / "settings.json"
    if read_json(settings) == "unfinished" if settings.exists() else not any(folder.glob("*.jsonl")):
        generate()
    found = read_json(settings)
    if found != wanted:
        raise UserError(f"{folder} was made with {difference(found, wanted)}; type --mode gendata with the flags you "
                        f"want, pass the flags it was made with, or choose another --data-dir")


# ------------------------------------------------------------------------------------------------
# Machine


def pick_device(name, threads):
    """Return the torch.device for --device; an explicit device that is absent is an error."""
    torch.set_num_threads(threads)
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if present["cuda"] else "cpu"
    if not present[name]:
        raise UserError(f"--device {name}: this machine has none; type --device cpu")
    return torch.device(name)


def parallel_map(function, items, label=None):
    """Return [function(item) for item in items], one item per CPU thread at a time, with progress if labelled.

    Many small tensors go faster this way than by spreading each operation over the threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            results = pool.map(function, items)
            return list(progress(results, label, len(items)) if label else results)
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------
# Training: what is the same whatever the model


def batches(n, batch_size, seed):
    """Yield indices of training examples for ever: each epoch in a new order, less the last n % batch_size."""
    generator, batch_size = torch.Generator().manual_seed(seed), min(batch_size, n)
    while True:
        order = torch.randperm(n, generator=generator)
        yield from order[:n - n % batch_size].split(batch_size)


def n_parameters(model):
    """How many numbers there are to train."""
    return sum(p.numel() for p in model.parameters())


def adamw(model, lr, weight_decay):
    """AdamW (Loshchilov & Hutter 2019) that decays matrices but neither biases nor the scales of LayerNorm.

    The betas are those of Vaswani et al. 2017, section 5.3.
    """
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    fused = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4)  # in one pass; older ones only on GPUs
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=fused)


def save_unfinished(path, config, model, optimizer, progress):
    """Keep all that a training needs to be taken up again; `progress` is whatever its loop counts and collects."""
    save_tensors(path, {"config": config, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "random": torch.get_rng_state(), "progress": progress})


def take_up(path, config, model, optimizer):
    """Put model, optimizer and random numbers back to where save_unfinished was called; return its `progress`."""
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        if kept["config"] == config:
            model.load_state_dict(kept["model"])
            optimizer.load_state_dict(kept["optimizer"])
            torch.set_rng_state(kept["random"])
            return kept["progress"]
        reason = f"was begun with {difference(kept['config'], config)}"
    except FileNotFoundError:
        raise UserError(f"there is no interrupted training at {path}; leave --resume out") from None
    except Exception:  # a file that is cut short, or something else altogether
        reason = "is not an interrupted training"
    raise UserError(f"{path} {reason}; pass the flags it was begun with or leave --resume out to begin anew")


def mean_std(values):
    """Mean and sample standard deviation (0 for a single value) of a list of numbers, and the numbers."""
    values = torch.tensor(values, dtype=torch.double)
    std = values.std().item() if len(values) > 1 else 0.0
    return {"mean": values.mean().item(), "std": std, "per_seed": values.tolist()}


# ------------------------------------------------------------------------------------------------
# What the user sees: progress and log lines on standard error, results on standard output


def log(line):
    print(line, file=sys.stderr, flush=True)


def progress(items, label, total=None):
    """Yield each of the items, showing how far we are: live on a terminal, else a line every 10 s."""
    total = total or len(items)
    live, start, shown = sys.stderr.isatty(), time.time(), time.time()
    for done, item in enumerate(items):
        if time.time() - shown > (0.2 if live else 10):
            shown = time.time()
            left = (shown - start) * (total - done) / max(done, 1)
            text = f"{label}: {100 * done // total}%, {left:.0f} s left"
            print(f"\r{text}\033[K" if live else text, end="" if live else "\n", file=sys.stderr, flush=True)
        yield item
    if live:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def pyplot():
    """Return matplotlib.pyplot, drawing to files only, in the style of this project."""
    import matplotlib  # here, because it takes a second to import and most modes draw nothing
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({
        "figure.dpi": 100, "savefig.dpi": 150, "figure.constrained_layout.use": True, "font.size": 11,
        "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.alpha": 0.3, "legend.frameon": False, "lines.linewidth": 2,
    })
    return plt


def save_figure(figure, path):
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
    pyplot().close(figure)
