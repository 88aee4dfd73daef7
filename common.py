"""What both scripts share and no lesson needs: errors, files, models on disk, training, hooks, figures, flags.

Nothing about attention is in here; a reader of the two tutorials can skip it. It never calls the scripts.
"""
import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

try:
    import fcntl  # locks of files; Windows has none of this kind
except ImportError:
    fcntl = None


def log(line):
    """Print progress. It goes to standard error, so that standard output holds results only."""
    print(line, file=sys.stderr, flush=True)


def report_interruption(kind, error, trace):
    """Let Ctrl-C end in one line and exit code 130, even during the slow import of torch below."""
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, trace)
        return
    log("interrupted; every file on disk is whole: type the same command to start again")
    os._exit(130)


sys.excepthook = report_interruption

import torch  # noqa: E402

warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # torch 2.0 says so of its own torch.load

# ------------------------------------------------------------------------------------------------
# Errors: whatever a user can cause ends in one sentence and exit code 2, never in a traceback


class UserError(Exception):
    """Something the user can put right. The message says what is wrong and what to type next."""


def run(main):
    """Call main() and leave with exit code 0, or 2 and a sentence after an error that the user can put right."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: an error must not end up in the other stream
            setattr(sys, name, open(os.devnull, "w"))
    try:
        main()
        sys.stdout.flush()
        return
    except UserError as error:
        message = str(error)
    except BrokenPipeError:  # the reader of our output went away, as in `... | head -1`: not all was done
        os._exit(141)  # the code of a program that this kills; an ordinary exit would try to write once more
    except OSError as error:
        message = (f"{error.filename or 'a file'}: {error.strerror or error}; "
                   f"make room there or choose another place with --data-dir or --out-dir")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        message = "there is not enough memory; lower --batch-size, --d-model, --d-ff or --n-layer"
    log("error: " + " ".join(message.split()))  # one line, whatever was typed
    sys.exit(2)


# ------------------------------------------------------------------------------------------------
# Files: each is written whole or not at all

CLAIMED = {}  # folder: its lock, held until this process ends


def folder(*parts):
    """Make a folder for results and return its path; UserError if another run is writing to it.

    A folder that cannot be written to is found out here, not after the training.
    """
    path = Path(*parts)
    if (path / "settings.json").exists() or (path.parent / "settings.json").exists():
        raise UserError(f"{path} is inside a data set; choose an --out-dir other than --data-dir")
    path.mkdir(parents=True, exist_ok=True)
    if path.resolve() in CLAIMED:
        return path
    lock = open(path / ".lock", "w")
    if fcntl:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is writing to {path}; wait for it, or choose another --out-dir") from None
    CLAIMED[path.resolve()] = lock
    for left in path.rglob(".*.tmp"):  # by a run that was killed
        left.unlink()
    return path


@contextlib.contextmanager
def whole_file(path):
    """Yield a temporary path that takes the place of `path` if, and only if, the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, value):
    """Write JSON with \\n line ends, so that the same value is the same bytes on every system."""
    with whole_file(path) as temporary:
        temporary.write_bytes((json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def parse_json(text, place):
    """Return the value of a JSON text; UserError names its place if it is no JSON, or holds NaN, which JSON lacks."""
    def refuse(constant):
        raise ValueError(constant)

    try:
        return json.loads(text if isinstance(text, str) else text.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        raise UserError(f"{place} is not JSON; mend it or remove it") from None


# ------------------------------------------------------------------------------------------------
# Data sets: a folder of JSON Lines files and a settings.json that tells how they were made
#
# settings.json holds a hash of each file. Files without it, or changed since, are the user's own: they are used as they
# are, and nothing here ever replaces them.


def has_data(folder):
    """Whether there is any data file, whoever made it."""
    return any(Path(folder).glob("*.json*"))


def data_files(folder):
    """Return {name: sha256 of its bytes} of all files in a data set except settings.json."""
    hashes = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != "settings.json":
            hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def made_with(folder):
    """Return the settings that a data set was made with; None if it is the user's own, or if there is none."""
    try:
        made = json.loads(Path(folder, "settings.json").read_bytes().decode())
        return made["settings"] if made["files"] == data_files(folder) else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None


def own_data(folder):
    """A name for a data set that is the user's own; None if it was made here, or if there is none."""
    if not has_data(folder) or made_with(folder) is not None:
        return None
    return hashlib.sha256(json.dumps(data_files(folder)).encode()).hexdigest()[:16]


def write_data(folder, records, settings):
    """Write {name: list of records} as <name>.jsonl, and settings.json: a new folder takes the old one's place.

    UserError if the old one holds any file that was not made here.
    """
    folder = Path(folder)
    if folder.exists() and made_with(folder) is None and any(folder.iterdir()):
        raise UserError(f"{folder} holds files of your own, which are not replaced; "
                        f"choose another place with --data-dir")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        new = Path(temporary, "new")
        for name, rows in records.items():
            path = new / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
        write_json(new / "settings.json", {"settings": settings, "files": data_files(new)})
        if folder.exists():
            folder.rename(Path(temporary, "old"))
        new.rename(folder)
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in records.items())
    log(f"data: wrote {folder} with seed {settings['seed']}: {sizes}")


def check_settings(folder, wanted):
    """UserError if the data were made with other settings than `wanted`. Data of the user's own are used as they are."""
    found = made_with(folder)
    if found is None:
        log(f"data: {folder} holds files of your own, used as they are")
    elif found != wanted:
        raise UserError(f"{folder} was made with {difference(found, wanted)}; pass the flags it was made with, choose "
                        f"another --data-dir, or replace it: type --mode gendata with the flags you want")


def difference(found, wanted):
    """Name the settings in which two dictionaries differ: "seed 1 (wanted 641), num_digits 2 (wanted 3)"."""
    if not isinstance(found, dict):
        return "unknown settings"
    parts = [f"{name} {found.get(name)} (wanted {wanted[name]})" for name in wanted if found.get(name) != wanted[name]]
    return ", ".join(parts) or "other settings"


def read_records(path):
    """Return [(place, record), ...] of <path>.jsonl, or else of the JSON array in <path>.json.

    The place is for messages: "data/addition/val.jsonl, line 7". UserError if there is neither file or one is no JSON.
    """
    lines, array = Path(f"{path}.jsonl"), Path(f"{path}.json")
    records = []
    if lines.exists():
        for number, line in enumerate(lines.read_bytes().splitlines(), start=1):
            place = f"{lines}, line {number}"
            records.append((place, parse_json(line, place)))
    elif array.exists():
        found = parse_json(array.read_bytes(), array)
        for index, record in enumerate(found if isinstance(found, list) else [found]):
            records.append((f"{array}, index {index}", record))
    else:
        raise UserError(f"{lines} is missing; put it there, choose another --data-dir, or remove {lines.parent} "
                        f"to have all data made anew")
    if not records:
        raise UserError(f"{lines if lines.exists() else array} holds no record; add some or choose another --data-dir")
    return records


# ------------------------------------------------------------------------------------------------
# Models on disk

REFERENCE = Path(os.path.relpath(Path(__file__).resolve().parent)) / "out" / "reference"  # the committed results


def config_of(args, script, data_folder, model_seed):
    """All that a model depends on: saved with it, and compared before it is used."""
    config = vars(args) | {"script": script, "own_data": own_data(data_folder), "model_seed": model_seed}
    for name in ("mode", "questions", "model_seeds", "data_dir", "out_dir", "device", "threads"):
        del config[name]
    return config


def model_name(args, model_seed):
    """The file of a model: --model-seed is the main one; --model-seeds adds others."""
    return "best_model.pth" if model_seed == args.model_seed else f"seeds/{model_seed}.pth"


def save_model(path, model):
    """Write the weights and model.config, as tensors on the CPU, loadable anywhere."""
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    content = io.BytesIO()  # torch.save would store the name of a file, and crash if the disk is full
    torch.save({"config": model.config, "weights": weights}, content)
    with whole_file(path) as temporary:
        temporary.write_bytes(content.getvalue())


def load_model(path, script, build):
    """Return a model as save_model wrote it for `script`; build(config) makes the model that the weights go into.

    Only tensors and plain values are ever unpickled. UserError if there is no such file or it is something else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["config"]["script"] == script:
            model = build(checkpoint["config"])
            model.load_state_dict(checkpoint["weights"])
            return model.eval()
    except FileNotFoundError:
        raise UserError(f"there is no model at {path}; type python {script} --mode train") from None
    except (PermissionError, MemoryError):
        raise
    except Exception:  # torch raises a dozen kinds for a file that is cut short, foreign or hostile
        pass
    raise UserError(f"{path} is not a model of this version of {script}; remove it and type the same command again")


def find_model(args, folder, config, build):
    """Return the model of exactly this configuration, from --out-dir, else from the reference results, else None.

    UserError if none fits and a training would replace a model of other settings.
    """
    seed = config["model_seed"]
    for top in (Path(args.out_dir), REFERENCE):
        for path in (top / folder / "best_model.pth", top / folder / f"seeds/{seed}.pth"):
            if path.exists():
                model = load_model(path, config["script"], build)
                if model.config == config:
                    log(f"model: {path}")
                    return model
    path = Path(args.out_dir, folder, model_name(args, seed))
    if path.exists():
        found = load_model(path, config["script"], build).config
        raise UserError(f"{path} has {difference(found, config)}; pass the settings it has, choose another --out-dir, "
                        f"or type --mode train to replace it")
    log("model: none with these settings, training one")
    return None


# ------------------------------------------------------------------------------------------------
# Machine


def pick_device(name, threads):
    """Return the torch.device for --device; an explicit device that is absent is an error."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # numbers below 1e-38 become 0; sharp softmaxes make many, and they are slow
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if present["cuda"] else "cpu"
    if not present[name]:
        raise UserError(f"--device {name}: this machine has none; type --device cpu")
    return torch.device(name)


def parallel_map(function, items):
    """Return [function(item) for item in items], one item per CPU core at a time.

    Many small tensors go faster this way than by spreading each operation over several threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------
# Training: what is the same whatever the model


def batches(n, batch_size, seed):
    """Yield indices of training examples for ever: each epoch in a new order, less the last n % batch_size."""
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, n)
    while True:
        order = torch.randperm(n, generator=generator)
        yield from order[:n - n % batch_size].split(batch_size)


def n_parameters(model):
    """How many numbers there are to train."""
    return sum(p.numel() for p in model.parameters())


def optimizer_of(model, config, falling, beta2):
    """Return an AdamW optimizer (Loshchilov & Hutter 2019) and the schedule of its learning rate.

    Weight decay is for matrices, neither for biases nor for the scales of LayerNorm. AdamW divides a running mean of the
    gradients by their usual size, which it knows from a running mean of their squares; beta2 is the share of the old mean
    in the new one. The rate rises in a straight line during the warm-up, because these means rest on few gradients at
    first. Over the last part of the steps (`falling` is its share) it falls to 0, because at the full rate each step moves
    the weights too far for the last errors to disappear.
    """
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
    fused = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4)  # one pass; older ones only on GPUs
    optimizer = torch.optim.AdamW(groups, lr=config["lr"], betas=(0.9, beta2), fused=fused)

    def share_of_lr(step):
        return min(1, (step + 1) / config["warmup"], (config["steps"] - step) / (falling * config["steps"]))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_lr)


class History:
    """The history of a training, and the weights that did best on the validation data."""

    def __init__(self, model):
        self.model = model
        self.losses = []  # of the training steps since the last validation
        self.rows = []
        self.best = None
        self.weights = None
        self.start = time.time()

    def record(self, step, lr, val_loss, val_accuracy, **more):
        """Add a row to the history, log it, and keep the weights if they are the best so far.

        Best is the highest accuracy; among equals, the lowest loss. UserError if a loss is not finite.
        """
        row = {"step": step, "train_loss": torch.stack(self.losses).mean().item(), "val_loss": val_loss,
               "val_accuracy": val_accuracy, **more, "lr": lr, "seconds": round(time.time() - self.start, 2)}
        if not math.isfinite(row["train_loss"] + val_loss):
            raise UserError(f"the loss is no longer finite at step {step}; try a smaller --lr")
        self.losses.clear()
        self.rows.append(row)
        log(f"step {step:4d}/{self.model.config['steps']} | train {row['train_loss']:.4f} | val {val_loss:.4f} | "
            f"accuracy {100 * val_accuracy:5.1f}% | lr {lr:.1e} | {1000 * row['seconds'] / step:.1f} ms/step")
        if self.best is None or (val_accuracy, -val_loss) > (self.best["val_accuracy"], -self.best["val_loss"]):
            self.best = row
            self.weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def restore(self):
        """Put the best weights back into the model and return it, ready to be evaluated."""
        self.model.load_state_dict(self.weights)
        return self.model.eval()

    def log_entries(self):
        """The part of training_log.json that is the same for every model."""
        machine = {"torch": str(torch.__version__), "threads": torch.get_num_threads(),
                   "cpu": torch.backends.cpu.get_cpu_capability()}  # what rounding depends on
        return {"config": self.model.config, "n_params": n_parameters(self.model), "machine": machine,
                "history": self.rows, "seconds": self.rows[-1]["seconds"],
                "best": {"step": self.best["step"], "val_accuracy": self.best["val_accuracy"]}}


def mean_std(values):
    """Mean and sample standard deviation (0 for a single value) of a list of numbers, and the numbers."""
    values = torch.tensor(values, dtype=torch.double)
    std = values.std().item() if len(values) > 1 else 0.0
    return {"mean": values.mean().item(), "std": std, "per_seed": values.tolist()}


# ------------------------------------------------------------------------------------------------
# Hooks: PyTorch calls a forward hook with the output of a module, and puts what the hook returns in its place


@contextlib.contextmanager
def patching(hooks):
    """While the block runs, call a forward hook on each module: hooks [(module, hook(module, inputs, output)), ...]."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def recording(modules):
    """Yield a dictionary {module: its latest output} that fills while the block runs."""
    seen = {}

    def keep(module, inputs, output):
        seen[module] = output  # nothing is returned, so the output stays as it is

    with patching([(module, keep) for module in modules]):
        yield seen


# ------------------------------------------------------------------------------------------------
# Figures
#
# All are equally wide, so that their letters are equally large in a report: 7 points or more on a page 17 cm wide.

WIDTH = 8  # inches
STYLE = {
    "font.size": 9, "axes.titlesize": 9.5, "legend.fontsize": 8.5, "figure.titlesize": 10.5, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False, "savefig.dpi": 200,
}


@contextlib.contextmanager
def figure(path, height, rows=1, columns=1, title=None, **options):
    """Yield the axes of a new figure, an array (rows, columns), and write it to `path` when the block ends.

    height is in inches; matplotlib draws no more than 2^16 pixels. The look is the same whatever backend or style the
    user has chosen.
    """
    if "matplotlib" not in sys.modules:
        os.environ.pop("MPLBACKEND", None)  # a backend that is not installed would stop the import
    import matplotlib.style  # here, because it takes a second to import and most modes draw nothing
    from matplotlib.figure import Figure
    with matplotlib.style.context(["default", STYLE]):
        drawing = Figure(figsize=(WIDTH, min(height, 300)), layout="constrained")
        drawing.suptitle(title)
        yield drawing.subplots(rows, columns, squeeze=False, **options)
        with whole_file(path) as temporary:
            drawing.savefig(temporary, format="png")


def heatmap(axis, grid, rows, columns, limits=(0, 1), label=None, digits=None):
    """Draw a grid of numbers with named rows and columns; with `label`, a colour bar; with `digits`, the numbers too."""
    image = axis.imshow(grid, vmin=limits[0], vmax=limits[1], cmap="Blues", aspect="auto")
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.grid(False)
    if label:
        axis.figure.colorbar(image, ax=axis, label=label)
    if digits is not None:
        for i, row in enumerate(grid):
            for j, value in enumerate(row):
                dark = value > limits[0] + 0.6 * (limits[1] - limits[0])
                axis.text(j, i, f"{value:.{digits}f}", ha="center", va="center", color="white" if dark else "black")


def curve(axis, x, values, label, **style):
    """Draw the mean of values (seeds, points) over x, and their range as a band."""
    values = torch.as_tensor(values, dtype=torch.double)
    (line,) = axis.plot(x, values.mean(0), label=label, **style)
    if len(values) > 1:
        axis.fill_between(x, values.amin(0), values.amax(0), color=line.get_color(), alpha=0.15, linewidth=0)


def bars(axis, names, groups):
    """Draw grouped bars: groups {label: one value per name}."""
    width = 0.8 / len(groups)
    for k, (label, values) in enumerate(groups.items()):
        places = [i + (k - (len(groups) - 1) / 2) * width for i in range(len(names))]
        axis.bar(places, values, width, label=label, hatch=["", "//", ".."][k % 3], edgecolor="white")
    axis.set_xticks(range(len(names)), names)
    axis.legend()


def training_curves(path, history, title, guess, chance, parts):
    """Draw the loss, the accuracy and the accuracy of each part over the steps.

    guess is the loss of guessing, chance the accuracy of it in percent, parts {name: shares, one per row of the history}.
    """
    steps = [row["step"] for row in history]
    with figure(path, 2.9, columns=3, title=title) as ((left, middle, right),):
        left.plot(steps, [row["train_loss"] for row in history], color="tab:gray", label="training")
        left.plot(steps, [row["val_loss"] for row in history], "--", color="tab:blue", label="validation")
        left.axhline(guess, color="black", linewidth=1, linestyle=":", label=f"guessing, {guess:.2f}")
        left.set(title="Loss", ylabel="cross-entropy (nats)", yscale="log")
        middle.plot(steps, [100 * row["val_accuracy"] for row in history], marker=".", label="validation")
        middle.axhline(chance, color="black", linewidth=1, linestyle=":", label="chance")
        middle.set(title="Accuracy", ylabel="validation (%)", ylim=(-3, 103))
        for k, (name, shares) in enumerate(parts.items()):
            right.plot(steps, [100 * share for share in shares], linestyle=["-", "--", "-.", ":"][k % 4], label=name)
        right.set(title="Accuracy, part by part", ylabel="validation (%)", ylim=(-3, 103))
        for axis in (left, middle, right):
            axis.set_xlabel("training step")
            axis.legend()


# ------------------------------------------------------------------------------------------------
# Flags and questions


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Add the default to the help of each flag that has one worth showing."""

    def _get_help_string(self, action):
        hidden = action.default in (None, False, argparse.SUPPRESS) or isinstance(action.default, list)
        shown = action.option_strings and not hidden  # a list is written out in the help itself
        return action.help + (" (default: %(default)s)" if shown else "")


class ArgumentParser(argparse.ArgumentParser):
    """argparse, except that a wrong flag is one sentence and that no flag may be shortened."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **settings)

    def error(self, message):
        raise UserError(f"{message} (--help lists the flags)")


def number(kind, low, high=math.inf):
    """An argparse type: a finite `kind` (int or float) from low to high, both included."""
    def parse(text):
        """The number in a text; an argparse error that says what was expected."""
        try:
            value = kind(text)
        except ValueError:
            value = math.nan  # neither below nor above any bound
        if not low <= value <= high or value == math.inf:
            bounds = f"of {low} or more" if high == math.inf else f"from {low} to {high}"
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {noun} {bounds}, found {text[:40]!r}")
        return value
    return parse


def add_common_flags(parser, **defaults):
    """Declare the flags that both scripts have, with the defaults given."""
    group = parser.add_argument_group("data sets")
    group.add_argument("--n-train", type=number(int, 2, 10**7), default=10_000, help="examples to learn from")
    group.add_argument("--n-val", type=number(int, 2, 10**7), default=2_000, help="examples to choose the best weights by")
    group.add_argument("--n-test", type=number(int, 2, 10**7), default=2_000, help="examples for the test")
    group.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=641, help="decides which examples are drawn")
    group = parser.add_argument_group("model")
    group.add_argument("--n-layer", type=number(int, 1, 100), default=1, help="blocks of an encoder or decoder")
    group.add_argument("--n-head", type=number(int, 1, 999), default=4, help="heads of an attention")
    group.add_argument("--d-model", type=number(int, 1, 8192), help="channels of a token")
    group.add_argument("--d-ff", type=number(int, 1, 65536), help="hidden units of a feed-forward network")
    group = parser.add_argument_group("training")
    # torch's generator takes 32 bits of a seed on some devices: larger seeds would repeat smaller ones
    group.add_argument("--model-seed", type=number(int, 0, 10**9), default=1,
                       help="decides the initial weights and the order of the batches")
    group.add_argument("--model-seeds", type=number(int, 1, 1000), default=1, metavar="N",
                       help="repeat for N model seeds, from --model-seed on")
    group.add_argument("--steps", type=number(int, 1, 10**9), help="training steps, one batch each")
    group.add_argument("--batch-size", type=number(int, 1, 10**6), help="examples per batch")
    group.add_argument("--lr", type=number(float, 0), help="highest learning rate")
    group.add_argument("--warmup", type=number(int, 1, 10**9), help="steps until it is reached")
    group.add_argument("--weight-decay", type=number(float, 0), help="of matrices; biases and scales have none")
    group.add_argument("--eval-every", type=number(int, 1, 10**9), help="steps between two validations")
    group = parser.add_argument_group("files and machine")
    group.add_argument("--data-dir", default="data", help="where the data are")
    group.add_argument("--out-dir", default="out", help="where the results go")
    group.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="auto is cuda, else cpu")
    group.add_argument("--threads", type=number(int, 1, 1024), default=1,
                       help="CPU threads of a training step; scoring always uses all cores")
    parser.set_defaults(**defaults)


def questions(words):
    """Yield the questions: the words themselves, the lines of the one file they name, or after `-` of standard input."""
    if words == ["-"]:
        if sys.stdin is None:
            raise UserError("standard input is closed; type the questions after the command")
        lines = sys.stdin.buffer
    elif len(words) == 1 and os.path.isfile(words[0]):
        lines = Path(words[0]).read_bytes().splitlines()
    else:
        lines = [os.fsencode(word) for word in words]
    for line in lines:
        if line.strip():
            yield line.decode(errors="replace").strip()
