"""What both scripts share and no lesson needs: files, models on disk, optimizer, figures, flags."""
import argparse
import base64
import fileinput
import io
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
NOT_OF_A_MODEL = {"mode", "questions", "model_seeds", "file", "folder", "data_dir", "out_dir",
                  "device", "lengths", "n_long"}  # flags that change no weight

class UserError(ValueError):
    """Something the user can put right. The message says what is wrong and what to type next."""

# ---- Files ---------------------------------------------------------------------------------------
def save(path, thing):
    """Write a figure (.png), a model with its flags (.pth), records (.jsonl), JSON (.json, .js)."""
    content = io.BytesIO()
    if path.suffix == ".png":
        thing.savefig(content, format="png", dpi=200)
    elif path.suffix == ".pth":
        args = {name: x for name, x in vars(thing.args).items() if name not in NOT_OF_A_MODEL}
        torch.save({"args": args, "weights": thing.state_dict()}, content)
        print(f"{path} {'is replaced' if path.exists() else 'is new'}", file=sys.stderr)
    elif path.suffix == ".js":
        content.write(f"loaded = {json.dumps(thing)}\n".encode())
    else:
        lines = map(json.dumps, thing) if path.suffix == ".jsonl" else [json.dumps(thing, indent=1)]
        content.write(("\n".join(lines) + "\n").encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content.getvalue())
    os.replace(temporary, path)  # moved into place: a file is whole or not there

def read_data(problem, names, args, flags, make, read):
    """Return {name: [read(record), ...]} of files <name>.jsonl or JSON arrays <name>.json.
    make(args), {name: records}, is written first if there are none, or with --mode gendata.
    """
    folder = Path(args.data_dir, problem)
    settings = folder / "settings.json"  # it tells that the files beside it are ours
    present = any(folder.rglob("*.json*"))
    if present and not settings.exists() and args.mode == "gendata":
        raise UserError(f"{folder} holds data of your own, which stay; type another --data-dir")
    if not present and any(folder.parent.glob("*.json*")):
        raise UserError(f"data files stand in {folder.parent}; move them into {folder}")
    if not present or args.mode == "gendata":
        records = make(args)
        for old in folder.rglob("*.jsonl"):
            old.unlink()
        save(settings, vars(args))
        for name, rows in records.items():
            save(folder / f"{name}.jsonl", rows)
    made = json.loads(settings.read_text()) if settings.exists() else vars(args)
    other = [f"{flag} {made.get(flag)}" for flag in flags if made.get(flag) != vars(args)[flag]]
    if other:
        raise UserError(f"{folder} was made with {', '.join(other)}; type that, another "
                        "--data-dir, or --mode gendata to make it again")
    data = {name: [] for name in names}
    for name, found in data.items():
        paths = [*filter(Path.exists, (folder / f"{name}.json", folder / f"{name}.jsonl"))]
        if len(paths) != 1:
            raise UserError(f"{len(paths)} of {folder / name}.json(l), not 1; try --mode gendata")
        lines = paths[0].read_text().splitlines()
        try:
            whole = paths[0].suffix == ".json"
            for record in json.loads("".join(lines)) if whole else map(json.loads, lines):
                found.append(read(record))
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(f"{paths[0]}, record {len(found) + 1}: {error}; mend it, or type "
                            "another --data-dir") from None
    return data

# ---- Models and figures --------------------------------------------------------------------------
def load_model(path, parser, build):
    """Return build(args) with the weights in a file. Flags that it lacks have their defaults."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    args = parser.parse_args([])
    vars(args).update(saved["args"], device="cpu")
    model = build(args)
    model.load_state_dict(saved["weights"])
    return model.eval()

def for_page(model):
    """A model for out/explorer.html: its flags, and its weights as base64 of float32."""
    args = {flag: x for flag, x in vars(model.args).items() if flag not in NOT_OF_A_MODEL}
    weights = {}
    for name, x in model.state_dict().items():
        weights[name] = {"shape": [*x.shape], "data": base64.b64encode(x.cpu().numpy()).decode()}
    return {"args": args, "weights": weights}

def each_seed(args):
    """Copies of args, one per model seed, with the file of its model."""
    for seed in range(args.model_seed, args.model_seed + args.model_seeds):
        file = "best_model.pth" if seed == args.model_seed else f"seeds/{seed}.pth"
        yield argparse.Namespace(**vars(args) | {"model_seed": seed, "file": file})

def find_model(args, parser, load):
    """Return the model on disk that agrees with every flag that is not the default, or None."""
    default = parser.get_default
    typed = {f: x for f, x in vars(args).items() if x != default(f) and f not in NOT_OF_A_MODEL}
    tops = [Path(args.out_dir)] + [HERE / "out/reference"] * (args.out_dir == default("out_dir"))
    files = dict.fromkeys([args.file, f"seeds/{args.model_seed}.pth"])
    for path in filter(Path.exists, [top / args.folder / file for top in tops for file in files]):
        try:
            model = load(path)
            found = {flag: getattr(model.args, flag) for flag in typed}
        except Exception:  # torch raises a dozen kinds for a file that is not a model
            found = "no model of this script"
        name = path.relative_to(HERE) if HERE in path.parents else path
        print(f"model: {name}" + f" passed over: {found}" * (found != typed), file=sys.stderr)
        if found == typed:
            vars(model.args).update((f, x) for f, x in vars(args).items() if f in NOT_OF_A_MODEL)
            return model.to(args.device)

def find_models(jobs, parser, load, train=None):
    """Return {folder: models, one per seed} of jobs, from disk; train() those that are missing."""
    models = [find_model(args, parser, load) for args in jobs]
    missing = [args for args, model in zip(jobs, models) if model is None]
    if missing and not train:
        raise UserError("no model on disk has these flags; type --mode train with them first")
    side_by_side(train, missing)
    groups = {}
    for args, model in zip(jobs, models):
        groups.setdefault(args.folder, []).append(model or find_model(args, parser, load))
    return groups

def side_by_side(function, jobs):
    """Call function(job) for each of the jobs, one process per core."""
    if len(jobs) == 1:
        function(jobs[0])
    elif jobs:
        with multiprocessing.get_context("spawn").Pool(None, prepare, ["train"]) as pool:
            list(pool.imap(function, jobs))

def adamw(model, args, beta2):
    """AdamW (Loshchilov & Hutter 2019); weight decay is for matrices, not for biases and norms."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, args.lr, (0.9, beta2), weight_decay=args.weight_decay,
                             fused=torch.__version__ >= "2.4")  # older versions: only on GPUs

def subplots(rows=1, columns=1, height=3.5, **options):
    """Like plt.subplots, but 8 inches wide, and the same whatever the backend of the user."""
    from matplotlib.figure import Figure  # here: it takes half a second, and answers draw nothing
    fig = Figure(figsize=(8, height), layout="constrained")
    return fig, fig.subplots(rows, columns, **options)

def save_log(model, results, guess):
    """Write training_log.json and training_curves.png; guess is the loss of guessing."""
    out = Path(model.args.out_dir, model.args.folder)
    if model.args.file != "best_model.pth":
        return  # it is one of more model seeds
    machine = {"torch": str(torch.__version__), "platform": sys.platform}
    log = {"args": vars(model.args), "n_params": sum(p.numel() for p in model.parameters())}
    save(out / "training_log.json", {**log, "machine": machine, **results})
    rows = {name: [row[name] for row in results["history"]] for name in results["history"][0]}
    fig, (left, right) = subplots(1, 2, height=3.2)
    what = f"{model.args.folder.replace('-', ' ')}, model seed {model.args.model_seed}"
    fig.suptitle(f"{what}: best validation accuracy {100 * results['best']['val_accuracy']:.1f}%")
    left.plot(rows["step"], rows["train_loss"], label="training")
    left.plot(rows["step"], rows["val_loss"], "--", label="validation")
    left.axhline(guess, color="black", linestyle=":", label="guessing")
    left.set(xlabel="training step", ylabel="cross-entropy (nats)", ylim=(0, 1.2 * guess))
    fig.legend(loc="outside lower center", ncols=3)
    right.plot(rows["step"], [100 * x for x in rows["val_accuracy"]], ".-")
    right.set(xlabel="training step", ylabel="validation accuracy (%)", ylim=(-3, 103))
    save(out / "training_curves.png", fig)

# ---- Flags ---------------------------------------------------------------------------------------
def positive(text):
    """An argparse type: a whole number of 1 or more."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return int(text)

def parser(title, modes, **defaults):
    """Return a parser with the flags that both scripts have."""
    parser = argparse.ArgumentParser(usage="%(prog)s [questions] [flags]; --help lists them",
                                     description=title, allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flag = parser.add_argument
    flag("questions", nargs="*", help="for the model: words, a file with one per line, or -")
    flag("--mode", choices=modes, help="what to do: infer if there are questions, else all")
    flag("--n-train", type=positive, default=10_000, help="examples to learn from")
    flag("--n-val", type=positive, default=2_000, help="examples to choose the best weights by")
    flag("--n-test", type=positive, default=2_000, help="examples for the test")
    flag("--seed", type=int, default=641, help="of the data: others need their own --data-dir")
    flag("--n-layer", type=positive, default=1, help="blocks of an encoder or decoder")
    flag("--n-head", type=positive, default=4, help="heads of an attention")
    flag("--d-model", type=positive, help="width of the hidden state of a token")
    flag("--d-ff", type=positive, help="hidden units of a feed-forward network")
    flag("--model-seed", type=int, default=1, help="decides initial weights and batches")
    flag("--model-seeds", type=positive, default=1, help="so many seeds, from --model-seed on")
    flag("--steps", type=positive, help="training steps, one batch each")
    flag("--batch-size", type=positive, help="examples per batch")
    flag("--lr", type=float, help="highest learning rate")
    flag("--data-dir", default="data", help="where the data are")
    flag("--out-dir", default="out", help="where the results go")
    flag("--device", choices=["cpu"] + ["cuda"] * torch.cuda.is_available(), default="cpu")
    parser.set_defaults(file="best_model.pth", **defaults)
    return parser

def prepare(mode):
    """Set up a process: one thread, for others train beside it, and our look of figures."""
    torch.set_num_threads(1)
    if multiprocessing.parent_process():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that began
    if mode != "infer":
        os.environ.pop("MPLBACKEND", None)  # one that is not installed would stop the import
        import matplotlib
        matplotlib.rcdefaults()
    torch.set_flush_denormal(True)  # a sharp softmax makes numbers so small that they are slow

def run(main, parser):
    """Call main(args). What the user can put right ends in one sentence and exit code 2."""
    try:
        args = parser.parse_args()
        args.mode = args.mode or ("infer" if args.questions else "all")
        if args.questions == ["-"] or any(map(os.path.isfile, args.questions)):
            args.questions = [line for line in fileinput.input(args.questions) if line.strip()]
        if (args.mode == "infer") != bool(args.questions) and args.mode != "analyze":
            raise UserError("questions go with --mode infer, which needs one")
        if args.d_model % (2 * args.n_head):
            raise UserError("type a --d-model that is a multiple of twice --n-head")
        prepare(args.mode)
        main(args)
    except KeyboardInterrupt:
        print("interrupted; all files are whole: type the same again", file=sys.stderr)
        sys.exit(130)
    except (UserError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
