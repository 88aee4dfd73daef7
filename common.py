"""What both scripts share and no lesson needs: files, the optimizer, processes, figures, flags."""
import argparse
import base64
import inspect
import json
import math
import multiprocessing
import os
import pickle
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, fields
from pathlib import Path

import torch

CORES = torch.get_num_threads()  # those that we may use

class UserError(ValueError):
    """Something the user can put right. The message says what is wrong and what to type."""

# ---- Files ---------------------------------------------------------------------------

def write(path, save):
    """save(temporary) writes a file, which is then moved into place: it is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("." + path.name)
    save(temporary)
    temporary.replace(path)
    print(path)

def save_json(path, *things):
    """Write JSON, a line for each thing."""
    text = "".join(json.dumps(thing) + "\n" for thing in things)
    write(path, lambda temporary: temporary.write_text(text))

def load_json(path):
    """What a JSON file holds; of JSON Lines (.jsonl) a list."""
    text = path.read_text("utf-8")
    if path.suffix == ".jsonl":  # one array, in which each record keeps its line
        text = "[" + ",\n".join(text.splitlines()) + "]"
    return json.loads(text)

def load_records(folder, names, made_with, make, read):
    """Return {name: [read(record), ...]} of files in a folder, JSON Lines or a JSON array each.

    If there is no such folder, make() gives the records, which are written there. A folder that
    exists is never written: whoever wants other data deletes it, or names another one.
    """
    where = folder / "settings.json"  # of a folder made here; your own has none
    if not folder.exists():
        for name, records in make().items():
            save_json(folder / f"{name}.jsonl", *records)
        save_json(where, made_with)
    data = {}
    try:
        if where.exists() and load_json(where) != made_with:
            raise UserError("made with other flags; type these, or another --data-dir")
        for name in names:
            where = path = folder / f"{name}.json"
            if not path.exists():
                where = path = folder / f"{name}.jsonl"
            data[name] = []
            for record in load_json(path):
                where = f"{path}, record {len(data[name]) + 1}"
                data[name].append(read(record))
            if not data[name]:
                raise UserError("it holds no record")
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{where}: {error}; see data/README.md") from None
    return data

def save_model(path, model):
    """Write config and weights, and both once more as a script for out/explorer.html."""
    saved = {"config": asdict(model.config), "weights": model.state_dict()}
    write(path, lambda temporary: torch.save(saved, temporary))
    for name, x in saved["weights"].items():
        saved["weights"][name] = x.shape, base64.b64encode(x.numpy()).decode()
    text = f"loaded = {json.dumps(saved)}"
    write(path.with_suffix(".js"), lambda temporary: temporary.write_text(text))

def load_model(path, Model, Config, typed):
    """The model in a file. If it was trained with other values than the typed, it is an error."""
    try:
        saved = torch.load(path, weights_only=True)
        config = Config(**saved["config"])
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError):
        raise UserError(f"{path} is not there, or no model of this script; type --mode train with "
                        "the same flags first") from None
    for name, value in typed.items():
        if getattr(config, name) != value:
            raise UserError(f"{path} has {name} {getattr(config, name)}, not {value}; type that, "
                            "or train another one, with another --out-dir")
    model = Model(config)
    model.load_state_dict(saved["weights"])
    return model.eval()

# ---- Training ------------------------------------------------------------------------

def adamw(model, config, beta2):
    """AdamW (Loshchilov & Hutter 2019); weight decay is for matrices, not for biases and norms."""
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2]},
              {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, config.lr, (0.9, beta2), weight_decay=config.weight_decay,
                             fused=torch.__version__ >= "2.4")  # earlier, only on GPUs

def prepare():
    """One thread, for others train beside it; and no numbers so small that they are slow."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)

def side_by_side(function, jobs):
    """Call function(*job) for each of the jobs, one process per core."""
    if len(jobs) <= 1:
        return [function(*job) for job in jobs]
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(CORES, len(jobs)), spawn, prepare)
    began = time.time()
    try:
        futures = [pool.submit(function, *job) for job in jobs]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            rest = (time.time() - began) * (len(jobs) / done - 1)
            print(f"{done} of {len(jobs)} done, {rest:.0f} seconds to go", file=sys.stderr)
    finally:
        for process in multiprocessing.active_children():
            process.terminate()  # after Ctrl-C they would train on

# ---- Figures and flags ---------------------------------------------------------------

def subplots(rows=1, columns=1, height=3.5, **options):
    """Like plt.subplots, but 8 inches wide, and the same whatever the backend of the user."""
    from matplotlib import figure, style  # here: it takes half a second, and answers draw nothing
    fig = figure.Figure(figsize=(8, height), dpi=200, layout="constrained")
    with style.context("tableau-colorblind10"):
        return fig, fig.subplots(rows, columns, **options)

def save_training(path, model, log, guess, title):
    """Write log and curves beside a model, and the model last: none is without its log.

    guess is the loss of guessing.
    """
    save_json(path.with_name("training_log.json"), {"config": asdict(model.config), **log})
    fig, (left, right) = subplots(1, 2)
    fig.suptitle(title)
    steps = [row["step"] for row in log["history"]]
    left.plot(log["losses"], color="#56B4E9", label="training, each batch")
    left.plot(steps, [row["val_loss"] for row in log["history"]], "ko-", label="validation")
    left.axhline(guess, color="black", linestyle="dotted", label="guessing")
    left.set(yscale="log", xlabel="training step", ylabel="cross-entropy (nats)")
    left.legend()
    right.plot(steps, [100 * row["val_accuracy"] for row in log["history"]], "ko-")
    right.set(xlabel="training step", ylabel="right in validation (%)", ylim=(0, 103))
    write(path.with_name("training_curves.png"), fig.savefig)
    save_model(path, model)

def flags(Config, modes, doc):
    """A parser: what to do and where, and a flag for each field of Config, with its comment."""
    parser = argparse.ArgumentParser(usage="%(prog)s [questions] [flags]; --help lists them",
                                     description=doc.splitlines()[0], allow_abbrev=False,
                                     fromfile_prefix_chars="@")
    flag = parser.add_argument
    flag("questions", nargs="*", help="for the model; @file is a file with one per line")
    flag("--mode", choices=modes, help="infer if there are questions, else all")
    flag("--model", type=Path, help="the file of the model that is asked")
    flag("--model-seeds", type=int, default=1, help="so many, from --model-seed on")
    flag("--data-dir", type=Path, default="data", help="where the data are")
    flag("--out-dir", type=Path, default="out", help="where the results go")
    comments = dict(re.findall(r"(\w+): \w+ = \S+ +# (.+)", inspect.getsource(Config)))
    for field in fields(Config):
        how = {"action": "store_true"} if field.type is bool else {"type": field.type}
        flag("--" + field.name.replace("_", "-"), default=argparse.SUPPRESS, **how,
             help=f"{comments[field.name]} (default: {field.default})")
    return parser

def check(config):
    """UserError if a field is out of range."""
    for name, x in asdict(config).items():
        low = 1 if type(x) is int else 0
        if type(x) in (int, float) and not low <= x < math.inf:  # nor nan
            raise UserError(f"{name} {x}: type a number of {low} or more")
    if config.d_model % (2 * config.n_head):
        raise UserError("type a --d-model that is a multiple of twice --n-head")

def run(main, parser, Config):
    """Call main(args, typed) for each model seed; typed are the flags typed of Config.

    What the user can put right ends in one sentence and exit code 2.
    """
    args = parser.parse_intermixed_args()  # questions may stand between flags
    typed = {name: x for name, x in vars(args).items() if hasattr(Config, name)}
    args.mode = args.mode or ("infer" if args.questions else "all")
    if (args.mode == "infer") != bool(args.questions) and args.mode != "analyze":
        parser.error("questions go with --mode infer, which needs one, or with analyze")
    prepare()
    try:
        for _ in range(max(1, args.model_seeds)):
            main(args, typed)
            typed["model_seed"] = typed.get("model_seed", 1) + 1
    except KeyboardInterrupt:
        print("interrupted; all files are whole: type the same again", file=sys.stderr)
        if sys.version_info < (3, 11):  # which would wait for workers for ever
            os._exit(130)
        sys.exit(130)
    except (UserError, OSError, BrokenProcessPool) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")
