"""What both scripts share and no lesson needs: files, models on disk, the optimizer, figures, flags.

Nothing about attention is in here. Importing it changes nothing outside itself.
"""
import argparse
import io
import json
import multiprocessing
import os
import platform
import signal
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
REFERENCE = HERE / "out" / "reference"  # the committed results
NOT_OF_A_MODEL = {"mode", "questions", "model_seeds", "file", "folder", "data_dir", "out_dir",
                  "device", "lengths", "n_long"}  # flags that change no weight

class UserError(ValueError):
    """Something the user can put right. The message says what is wrong and what to type next."""

# ---- Files ---------------------------------------------------------------------------------------

def save(path, thing):
    """Write a figure (.png), a model with its flags (.pth), records (.jsonl) or a value (.json).

    It is written to a temporary name, then moved into place: a file is whole or not there.
    """
    content = io.BytesIO()
    if path.suffix == ".png":
        thing.savefig(content, format="png", dpi=200)
    elif path.suffix == ".pth":
        args = {name: x for name, x in vars(thing.args).items() if name not in NOT_OF_A_MODEL}
        weights = {name: tensor.cpu() for name, tensor in thing.state_dict().items()}
        torch.save({"args": args, "weights": weights}, content)
    elif path.suffix == ".jsonl":
        content.write("".join(json.dumps(record) + "\n" for record in thing).encode())
    else:
        content.write((json.dumps(thing, indent=1) + "\n").encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.getvalue())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

def write_data(problem, records, args, flags):
    """Write {name: records} as <name>.jsonl, after a settings.json with the flags that made them.

    UserError if there are data without settings.json: they are the user's own.
    """
    folder = Path(args.data_dir, problem)
    if any(folder.rglob("*.json*")) and not (folder / "settings.json").exists():
        raise UserError(f"{folder} holds data of your own, which stay; type another --data-dir")
    for old in folder.rglob("*.jsonl"):
        old.unlink()
    save(folder / "settings.json", {name: getattr(args, name) for name in flags})
    for name, rows in records.items():
        save(folder / f"{name}.jsonl", rows)
    print(f"data: wrote {folder}", file=sys.stderr)

def read_data(problem, names, args, flags, make, read):
    """Return {name: [read(record), ...]} of <name>.jsonl, or of the array in <name>.json.

    make(args) writes them if there are none. UserError if they were made with other flags, if a
    file is missing, or if read() raises for a record.
    """
    folder = Path(args.data_dir, problem)
    if not any(folder.rglob("*.json*")):
        make(args)
    if (folder / "settings.json").exists():
        made = json.loads((folder / "settings.json").read_text())
        other = [f"{name} {made.get(name)}" for name in flags if made.get(name) != getattr(args, name)]
        if other:
            raise UserError(f"{folder} was made with {', '.join(other)}; type that, another "
                            "--data-dir, or --mode gendata to make it with your flags")
    data = {}
    for name in names:
        lines, array = folder / f"{name}.jsonl", folder / f"{name}.json"
        path = lines if lines.exists() else array
        if not path.exists():
            raise UserError(f"{lines} is missing; put it there, or type --mode gendata")
        text = path.read_text()
        data[name] = []
        try:
            for record in map(json.loads, text.splitlines()) if path is lines else json.loads(text):
                data[name].append(read(record))
            if not data[name]:
                raise ValueError("there is none")
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(f"{path}, record {len(data[name]) + 1}: {error}; fix it, or type another "
                            "--data-dir") from None
    return data

# ---- Models on disk ------------------------------------------------------------------------------

def each_seed(args):
    """A copy of args per model seed, with the file of its model: best_model.pth, seeds/2.pth, ..."""
    copies = []
    for seed in range(args.model_seed, args.model_seed + args.model_seeds):
        file = "best_model.pth" if seed == args.model_seed else f"seeds/{seed}.pth"
        copies.append(argparse.Namespace(**vars(args) | {"model_seed": seed, "file": file}))
    return copies

def find_model(args, parser, load):
    """Return the model on disk that agrees with every flag that was typed, or None.

    A flag counts as typed if it differs from its default. In all others args follow the model.
    """
    tops = [Path(args.out_dir)] + [REFERENCE] * (args.out_dir == parser.get_default("out_dir"))
    for top in tops:
        for file in dict.fromkeys([args.file, f"seeds/{args.model_seed}.pth"]):
            path = top / args.folder / file
            if not path.exists():
                continue
            name = str(path).removeprefix(f"{HERE}{os.sep}")
            try:
                model = load(path)
            except Exception:  # torch raises a dozen kinds for a file that is not a model
                print(f"model: {name} is none of this script: passed over", file=sys.stderr)
                continue
            other = []
            for flag in vars(args).keys() - NOT_OF_A_MODEL:
                found, typed = getattr(model.args, flag), getattr(args, flag)
                if typed not in (found, parser.get_default(flag)):
                    other.append(f"{flag} {found}")
            if other:
                print(f"model: {name} has {', '.join(other)}: passed over", file=sys.stderr)
                continue
            print(f"model: {name}", file=sys.stderr)
            for flag in vars(args).keys() & NOT_OF_A_MODEL:
                setattr(model.args, flag, getattr(args, flag))
            return model.to(args.device)
    return None

def find_models(jobs, parser, load, train=None):
    """Return the models of jobs (each the flags of one) from disk; train() those that are missing.

    Without train() a missing one is a UserError.
    """
    models = [find_model(args, parser, load) for args in jobs]
    missing = [args for args, model in zip(jobs, models) if model is None]
    if missing and not train:
        raise UserError("no model on disk has these flags; type --mode train with them first")
    side_by_side(train, missing)
    trained = [find_model(args, parser, load) for args in missing]
    return [model or trained.pop(0) for model in models]

def side_by_side(function, jobs):
    """Call function(job) for each of the jobs, one process per core."""
    if len(jobs) == 1:
        function(jobs[0])
    elif jobs:
        processes = multiprocessing.get_context("spawn")
        with processes.Pool(min(len(jobs), os.cpu_count()), prepare, ["train"]) as pool:
            list(pool.imap(function, jobs))

def adamw(model, args, beta2):
    """AdamW (Loshchilov & Hutter 2019); weight decay is for matrices, not for biases and norms."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": args.weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    fused = torch.__version__ >= "2.4"  # all of an update at once; older versions only on GPUs
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, beta2), fused=fused)

# ---- Figures -------------------------------------------------------------------------------------

def subplots(rows=1, columns=1, height=3.5, **options):
    """Like plt.subplots, but 8 inches wide, and the same whatever the backend of the user."""
    from matplotlib.figure import Figure  # here: it takes half a second, and answers draw nothing
    fig = Figure(figsize=(8, height), layout="constrained")
    return fig, fig.subplots(rows, columns, **options)

def save_log(model, results, guess, chance):
    """Write training_log.json and training_curves.png of the first of several model seeds.

    guess is the loss of guessing, chance its accuracy; results has "history" and "test".
    """
    args, history = model.args, results["history"]
    if args.file != "best_model.pth":
        return
    machine = {"torch": str(torch.__version__), "platform": platform.platform()}
    n_params = sum(p.numel() for p in model.parameters())
    log = {"args": vars(args), "n_params": n_params, "machine": machine, **results}
    save(Path(args.out_dir, args.folder, "training_log.json"), log)
    steps = [row["step"] for row in history]
    fig, (left, right) = subplots(1, 2, height=3)
    fig.suptitle(f"{100 * results['test']['accuracy']:.1f}% right on the test set")
    left.plot(steps, [row["train_loss"] for row in history], label="training")
    left.plot(steps, [row["val_loss"] for row in history], "--", label="validation")
    left.axhline(guess, color="black", linestyle=":", label=f"guessing, {guess:.2f}")
    left.set(xlabel="training step", ylabel="cross-entropy (nats)", yscale="log")
    right.plot(steps, [100 * row["val_accuracy"] for row in history], ".-", label="validation")
    right.axhline(chance, color="black", linestyle=":", label="chance")
    right.set(xlabel="training step", ylabel="accuracy (%)", ylim=(-3, 103))
    left.legend()
    right.legend()
    save(Path(args.out_dir, args.folder, "training_curves.png"), fig)

# ---- Flags ---------------------------------------------------------------------------------------

class Parser(argparse.ArgumentParser):
    """argparse, except that a wrong flag is one sentence."""

    def error(self, message):
        raise UserError(f"{message}; --help lists the flags")

def positive(text):
    """An argparse type: a whole number of 1 or more."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return int(text)

def parser(title, modes, **defaults):
    """Return a parser with the flags that both scripts have."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    parser = Parser(description=title, allow_abbrev=False,
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flag = parser.add_argument
    flag("questions", nargs="*", help="for the model: words, a file with one per line, or -")
    flag("--mode", choices=modes, help="what to do: infer if there are questions, else all")
    flag("--n-train", type=positive, default=10_000, help="examples to learn from")
    flag("--n-val", type=positive, default=2_000, help="examples to choose the best weights by")
    flag("--n-test", type=positive, default=2_000, help="examples for the test")
    flag("--seed", type=int, default=641, help="decides which examples are drawn")
    flag("--n-layer", type=positive, default=1, help="blocks of an encoder or decoder")
    flag("--n-head", type=positive, default=4, help="heads of an attention")
    flag("--d-model", type=positive, help="width of the hidden state of a token")
    flag("--d-ff", type=positive, help="hidden units of a feed-forward network")
    flag("--model-seed", type=int, default=1, help="decides initial weights and batches")
    flag("--model-seeds", type=positive, default=1, help="so many seeds, from --model-seed on")
    flag("--steps", type=positive, help="training steps, one batch each")
    flag("--batch-size", type=positive, help="examples per batch")
    flag("--lr", type=float, help="highest learning rate")
    flag("--warmup", type=positive, help="steps until it is reached")
    flag("--weight-decay", type=float, help="of matrices")
    flag("--eval-every", type=positive, help="steps between two validations")
    flag("--data-dir", default="data", help="where the data are")
    flag("--out-dir", default="out", help="where the results go")
    flag("--device", choices=["cpu"] + ["cuda"] * cuda + ["mps"] * mps,
         default="cuda" if cuda else "cpu", help="where to compute")
    parser.set_defaults(file="best_model.pth", **defaults)
    return parser

def prepare(mode):
    """Set up a process: one thread, for others train beside it, and our look of figures."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # a sharp softmax makes numbers so small that they are slow
    if multiprocessing.parent_process():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that began
    if mode != "infer":
        import matplotlib
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 9.5, "image.cmap": "Blues",
                                    "axes.spines.top": False, "axes.spines.right": False})

def run(main, parser):
    """Call main(args). What the user can put right ends in one sentence and exit code 2."""
    try:
        args = parser.parse_args()
        args.mode = args.mode or ("infer" if args.questions else "all")
        if args.questions == ["-"]:
            args.questions = sys.stdin.read().splitlines()
        elif len(args.questions) == 1 and os.path.isfile(args.questions[0]):
            args.questions = Path(args.questions[0]).read_text().splitlines()
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
