"""Do positional encodings extrapolate?  Attention trained on short lists and tested on long ones.

A transformer encoder reads a list of numbers and decides whether it is sorted. It learns from
10,000 lists of 8 to 16 numbers and is tested on lists of up to 256 (length generalization). Vaswani
et al. 2017 chose sinusoidal encodings because they "may allow the model to extrapolate". We compare
five encodings and change one thing at a time. Sinusoids fail where their slow waves take values
that training hardly showed: held constant there, they let lists of 16 start far beyond.

  python positional_sorting.py "3 15 27 41 55 61 88 70"    ask the trained model, two seconds
  python positional_sorting.py                             train, test, explain: five minutes
  python positional_sorting.py --mode train --pe rope      train one, into out/sorting/rope
  python positional_sorting.py --mode extrapolate --causal --pe rope,alibi    test on long lists

Comments give tensor shapes: B lists in a batch or N in all, T numbers in a list, C = d_model (the
hidden dimension). For attention step by step see section 2 of attention_addition.py.
"""
import copy
import json
import math
import random
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn as nn
import torch.nn.functional as F
import common
from common import UserError

# ---- 1. The task and its data --------------------------------------------------------------------
# A list is sorted if no number is smaller than the one before it. A model trained on shuffled lists
# alone (--kinds shuffled) misses half of the lists with one swap. So there are five kinds of
# unsorted lists.
# The answer must depend on the order only. So lists come in pairs, a sorted one and an unsorted one
# of the same numbers. A model that does not see their order is right on exactly one of the two.
# In a sorted list of 256 numbers from 0 to 99, nearly all neighbours are equal or one apart. To be
# fair, short lists must have such neighbours too. So half of all lists take their numbers from a
# narrow range.

N_NUMBERS = 100  # the numbers 0 to 99 are tokens 0 to 99
PAD = 100        # fills up short lists
UNSORTED = ["adjacent_swap", "random_swap", "swaps", "shuffled", "reversed"]
LENGTHS = list(range(8, 17))
TRAINING_LENGTHS = [*range(8, 16), *(8 * [16])]  # half have 16: only they reach position 15

def draw_sorted(rng, length):
    """Draw `length` numbers, not all equal, and sort them; half of the lists in a narrow range."""
    while True:
        width = N_NUMBERS
        if rng.random() < 0.5:
            width = int(2 * 50 ** rng.random())  # 2 to 3 is as likely as 20 to 39
        low = int((N_NUMBERS + 1 - width) * rng.random())
        numbers = sorted(low + int(width * rng.random()) for _ in range(length))
        if numbers[0] < numbers[-1]:
            return numbers

def unsort(rng, numbers, kind):
    """Return sorted numbers in an unsorted order.

    adjacent_swap: two unequal neighbours change places. random_swap: any two numbers. swaps: any
    two, length // 3 times, at least twice. shuffled: at random. reversed: from large to small.
    """
    x = list(numbers)
    length = len(x)
    while x == numbers:  # again if equal numbers have changed places
        if kind == "adjacent_swap":
            rises = [i for i in range(length - 1) if x[i] < x[i + 1]]
            i = rises[int(len(rises) * rng.random())]
            x[i], x[i + 1] = x[i + 1], x[i]
        elif kind in ("random_swap", "swaps"):
            for _ in range(1 if kind == "random_swap" else max(2, length // 3)):
                i = int(length * rng.random())
                j = int(length * rng.random())
                x[i], x[j] = x[j], x[i]
        elif kind == "shuffled":
            x.sort(key=lambda _: rng.random())
        else:
            x.reverse()
    return x

def draw_records(rng, n, kinds, lengths, seen):
    """Draw n records, in pairs of a sorted and an unsorted list, the kinds in turn, such as

    {"sequence": [3, 15, 27], "is_sorted": 1, "length": 3, "kind": "sorted"}
    """
    records = []
    while len(records) < n:
        kind = kinds[len(records) // 2 % len(kinds)]
        numbers = draw_sorted(rng, lengths[int(len(lengths) * rng.random())])
        if tuple(numbers) not in seen:  # no two pairs have the same numbers, in all files
            seen.add(tuple(numbers))
            for x, name in ((numbers, "sorted"), (unsort(rng, numbers, kind), kind)):
                records.append({"sequence": x, "is_sorted": int(name == "sorted"),
                                "length": len(x), "kind": name})
    return records[:n]

def make_data(args):
    """Draw the records of each file: {"train": [...], "extrapolation/32": [...], ...}."""
    sets = [("test", args.n_test, LENGTHS, 0), ("val", args.n_val, LENGTHS, 1),
            ("train", args.n_train, TRAINING_LENGTHS, 2)]
    sets += [(f"extrapolation/{length}", args.n_long, [length], length) for length in args.lengths]
    seen = set()
    records = {}
    for name, n, lengths, number in sets:
        rng = random.Random(10_000 * args.seed + number)  # a stream of its own
        kinds = args.kinds if name == "train" else UNSORTED
        records[name] = draw_records(rng, n, kinds, lengths, seen)
    return records

def check_numbers(x, args):
    """ValueError unless x is a list that a model can read."""
    in_range = all(type(number) is int and 0 <= number < N_NUMBERS for number in x)
    if not in_range or not 2 <= len(x) <= args.max_len:
        raise ValueError(f"expected 2 to {args.max_len} numbers from 0 to 99")

def pad(lists):
    """Turn lists of numbers into one tensor (N, T), with PAD after the end of short ones."""
    return nn.utils.rnn.pad_sequence([torch.tensor(x) for x in lists], True, PAD)

def load_data(args, names):
    """Return {name: (lists (N, T), kinds)} from the data files, made if there are none."""
    def read(record):
        x = record["sequence"]
        check_numbers(x, args)
        if [record["is_sorted"], record["length"]] != [x == sorted(x), len(x)]:
            raise ValueError("is_sorted or length is wrong")
        return x, "sorted" if x == sorted(x) else record.get("kind", "unsorted")
    flags = ["seed", "n_train", "n_val", "n_test", "kinds"] + ["n_long"] * ("train" not in names)
    records = common.read_data("sorting", names, args, flags, make_data, read)
    return {name: (pad(x for x, _ in found), [kind for _, kind in found])
            for name, found in records.items()}

# ---- 2. Five positional encodings ----------------------------------------------------------------
# Attention gives each token a weighted mean of the values v of all tokens. Without a mask, nothing
# in it depends on the order: permute the tokens, and the outputs are permuted in the same way. Pool
# them, and the order is gone. A causal mask is itself a source of order (Kazemnejad et al. 2023): a
# head can look for an earlier number that is larger. A sorted list has none. So order is seen even
# without an encoding (NoPE).
# An encoding can enter at three points: the embedded tokens, the queries and keys, or the scores
# q k^T. Each is one method of the class Encoding. To write your own, add a subclass, and its name
# to ENCODINGS; it then works in every mode and figure.

class Encoding(nn.Module):
    """No positional encoding. Each of the others overrides one of three methods."""
    uses_start = False  # whether the output changes if all positions grow by the same amount

    def __init__(self, args):
        super().__init__()
        self.args = args

    def embed(self, x, position):
        """Change the embedded tokens x (B, T, C)."""
        return x

    def rotate(self, x, position):
        """Change the queries or keys x (B, n_head, T, d_head)."""
        return x

    def bias(self, scores, position):
        """Change the scores (B, n_head, T, T) of queries (rows) and keys (columns)."""
        return scores

def frequencies(width):
    """The angular frequencies of width / 2 pairs of channels: from 1 down towards 1/10,000."""
    return 10_000.0 ** (-torch.arange(0, width, 2) / width)  # (width/2,), radians per position

def sinusoids(position, d_model):
    """Sine and cosine of the position at C / 2 frequencies (Vaswani et al. 2017, section 3.5).

    position (..., T) -> (..., T, C). With the frequencies 1 and 0.1 positions 0 to 3 would get

        0:  0.00  1.00 | 0.00 1.00        2:  0.91 -0.42 | 0.20 0.98
        1:  0.84  0.54 | 0.10 1.00        3:  0.14 -0.99 | 0.30 0.96

    The fast wave tells neighbours apart, but comes round after 6 positions. The slow one tells far
    positions apart. Going k positions further rotates each pair by the same angle, whatever the
    position: one trained W_q can turn the waves of i into those of i - 1 (the token only adds
    W_q token). Then q k^T is largest for the previous number, whose waves are the same.
    """
    angle = position[..., None] * frequencies(d_model).to(position.device)  # (..., T, C/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)      # (..., T, C)

class Sinusoidal(Encoding):
    """Fixed waves, added to the tokens."""
    uses_start = True

    def embed(self, x, position):
        return x + sinusoids(position, x.shape[-1])

class Learned(Encoding):
    """A trained vector per position, at first as large as the waves."""
    uses_start = True

    def __init__(self, args):
        super().__init__(args)
        self.table = nn.Parameter(torch.randn(args.max_len, args.d_model) / math.sqrt(2))

    def embed(self, x, position):
        return x + self.table[position]

class Rope(Encoding):
    """RoPE (Su et al. 2021, section 3.2): rotate each pair of channels of q and k.

    Query i is rotated by i times the frequency of the pair, key j by j times. A dot product does
    not change if both vectors are rotated back, by j times. Then the key is as it was, the query
    rotated by i - j times. So positions enter a score through i - j alone.
    """
    def rotate(self, x, position):
        angle = position[..., None] * frequencies(x.shape[-1]).to(x.device)  # (..., T, d_head/2)
        angle = angle.unsqueeze(-3)                                          # for all heads
        a = x[..., 0::2]                                                     # (..., T, d_head/2)
        b = x[..., 1::2]
        pairs = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]
        return torch.stack(pairs, dim=-1).flatten(-2)                        # (..., T, d_head)

class Alibi(Encoding):
    """ALiBi (Press et al. 2022): a head of slope m adds -m |i - j| to the score of query i, key j.

    As in the paper, slopes fall by 2^(-8 / n_head) from head to head, but they start at 4, not 1/4:
    chosen on validation lists, in an earlier version on long ones too. Four heads multiply the
    weight of a key one step further by 0.02, 0.37, 0.78, 0.94: steep ones see near numbers only.
    """
    def bias(self, scores, position):
        heads = torch.arange(self.args.n_head, device=scores.device)
        slopes = self.args.slope * 2.0 ** (-8 * heads / self.args.n_head)   # (n_head,)
        distance = (position[..., :, None] - position[..., None, :]).abs()  # (..., T, T)
        return scores - slopes[:, None, None] * distance.unsqueeze(-3)

ENCODINGS = {"none": Encoding, "sinusoidal": Sinusoidal, "learned": Learned, "rope": Rope,
             "alibi": Alibi}

# ---- 3. Attention and the model ------------------------------------------------------------------
# Without a mask every number attends to all numbers, with a causal mask to itself and earlier ones.
# At the end the hidden states of all numbers are pooled into one vector. Mean pooling dilutes one
# misplaced number among 256 (try --pool mean). Max pooling, the largest value of each channel, does
# not: one hidden state can say "unsorted" at any length. Its price: so can one false alarm.

class MultiHeadAttention(nn.Module):
    """softmax(q k^T / sqrt(d_head)) v in n_head groups of channels (Vaswani et al. 2017)."""
    def __init__(self, d_model, n_head):
        super().__init__()
        self.n_head = n_head
        self.query_key_value = nn.Linear(d_model, 3 * d_model)  # three matrices in one
        self.output = nn.Linear(d_model, d_model)

    def forward(self, x, mask, encoding, position, scale):
        """x (B, T, C) -> (B, T, C); mask (B, 1, T, T) is True where to attend; scale of scores."""
        qkv = self.query_key_value(x).unflatten(-1, (3, self.n_head, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                           # (B, n_head, T, d_head)
        q = encoding.rotate(q, position)
        k = encoding.rotate(k, position)
        scores = scale * q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, n_head, T, T)
        scores = encoding.bias(scores, position).masked_fill(~mask, -math.inf)
        weights = scores.softmax(dim=-1)                               # each row sums to 1
        self.weights = weights.detach()                                # for section 7
        return self.output((weights @ v).transpose(1, 2).flatten(2))   # concatenated, then mixed

class Block(nn.Module):
    """Attention between the numbers, then a feed-forward network on each alone; pre-norm."""
    def __init__(self, args):
        super().__init__()
        self.norm1 = nn.LayerNorm(args.d_model)
        self.norm2 = nn.LayerNorm(args.d_model)
        self.attention = MultiHeadAttention(args.d_model, args.n_head)
        self.feed_forward = nn.Sequential(nn.Linear(args.d_model, args.d_ff), nn.ReLU(),
                                          nn.Linear(args.d_ff, args.d_model))

    def forward(self, x, mask, encoding, position, scale):
        x = x + self.attention(self.norm1(x), mask, encoding, position, scale)
        return x + self.feed_forward(self.norm2(x))  # (B, T, C)

class SortednessEncoder(nn.Module):
    """A transformer encoder from lists to one logit each; above 0 means sorted. args: the flags."""
    def __init__(self, args):
        super().__init__()
        self.args = args
        self.token_embedding = nn.Embedding(N_NUMBERS + 1, args.d_model)  # 1 more for PAD
        self.blocks = nn.ModuleList(Block(args) for _ in range(args.n_layer))
        self.norm = nn.LayerNorm(args.d_model)
        self.to_logit = nn.Linear(args.d_model, 1)
        nn.init.normal_(self.token_embedding.weight, std=0.1)  # small, so positions stand out
        self.encoding = ENCODINGS[args.pe](args)  # last: the other weights are the same for all

    def hidden_states(self, x, start=0, window=None, log_n=False, hold=None):
        """x (B, T), PAD after the end of a list -> (B, T, C).

        Positions are start, start + 1, ...; start is a number, or (B, 1). For section 7: window, a
        query attends to so many numbers up to its own; log_n, scores grow with the number of keys;
        hold = (channels (C,), last), beyond position last these channels stay as they are there.
        """
        order = torch.arange(x.shape[1], device=x.device)            # (T,)
        position = start + order                                     # (T,) or (B, T)
        present = x != PAD                                           # (B, T)
        mask = present[:, None, None, :]                             # (B, 1, 1, T): no padding
        if self.args.causal:
            mask = mask & (order <= order[:, None])                  # (B, 1, T, T): nothing later
        if window:
            mask = mask & (order > order[:, None] - window)
        scale = 1
        if log_n:
            scale = mask.sum(-1, keepdim=True).log().div(math.log(16)).clamp(min=1)  # (B, 1, T, 1)
        tokens = self.token_embedding(x)                             # (B, T, C)
        h = self.encoding.embed(tokens, position)
        if hold:
            channels, last = hold
            h_last = self.encoding.embed(tokens, position.clamp(max=last))
            h = torch.where(channels.to(x.device), h_last, h)
        for block in self.blocks:
            h = block(h, mask, self.encoding, position, scale)
        return self.norm(h)

    def classify(self, h, present):
        """Pool the hidden states h (B, T, C) of the numbers present (B, T) into logits (B,)."""
        present = present[..., None]                                 # (B, T, 1)
        if self.args.pool == "max":
            pooled = h.masked_fill(~present, -math.inf).amax(dim=1)  # (B, C)
        else:
            pooled = h.masked_fill(~present, 0).sum(dim=1) / present.sum(dim=1)
        return self.to_logit(pooled).squeeze(-1)

    def forward(self, x, start=0, **experiment):
        """x (B, T) -> logits (B,)."""
        return self.classify(self.hidden_states(x, start, **experiment), x != PAD)

# ---- 4. Scoring ----------------------------------------------------------------------------------
# A model that calls everything unsorted is right on all unsorted lists. So each kind of list is
# scored by itself: its recall is the fraction of its lists that are answered right. The balanced
# accuracy is the mean of the recall of sorted lists and the mean recall of the unsorted kinds. A
# constant answer, and a model that cannot see the order, get 50%.

def predict(model, lists, **experiment):
    """The logits (N,) of lists (N, T), in chunks on all cores."""
    @torch.inference_mode()
    def logits_of(chunk):
        return model(chunk.to(model.args.device), **experiment).cpu()
    chunks = lists.split(max(1, min(512, 2**18 // lists.shape[1] ** 2)))  # attention takes T x T
    with ThreadPoolExecutor() as pool:
        return torch.cat(list(pool.map(logits_of, chunks)))

def evaluate(model, data, **experiment):
    """Loss, balanced accuracy, and recall {"sorted": 0.99, ...} on data (lists, kinds)."""
    lists, kinds = data
    logits = predict(model, lists, **experiment)
    is_sorted = torch.tensor([kind == "sorted" for kind in kinds])
    loss = F.binary_cross_entropy_with_logits(logits, is_sorted.float()).item()
    right = ((logits > 0) == is_sorted).double()
    recall = {}
    for kind in dict.fromkeys(kinds):
        recall[kind] = right[[k == kind for k in kinds]].mean().item()
    unsorted = [share for kind, share in recall.items() if kind != "sorted"]
    return loss, (recall["sorted"] + sum(unsorted) / len(unsorted)) / 2, recall

def solve(model, lists):
    """Whether the model calls each of the lists sorted."""
    for x in lists:
        check_numbers(x, model.args)
    return (predict(model, pad(lists)) > 0).tolist()

# ---- 5. Training ---------------------------------------------------------------------------------
# Training lists start at position 0, or with --random-start at a random position (Kiyono et al.
# 2021, SHAPE): everywhere, so that all positions up to 255 occur, or as section 7 needs them.
# Data augmentation: a list stays sorted, or unsorted, if the same amount is added to all of its
# numbers. So we add a random amount at each use. The learning rate rises in a warm-up, since
# AdamW's means rest on few gradients at first. Then it falls to 0.

STARTS = {"everywhere": [*range(241)],            # a list of 16 that starts at 240 ends at 255
          "gap": [*range(85), *range(140, 241)],  # no list touches positions 100 to 139
          "early": [*range(106)]}                 # no list goes beyond position 120

def add_constant(lists, generator):
    """Add a random amount to each list (B, T), such that its numbers stay from 0 to 99."""
    present = lists != PAD
    smallest = lists.amin(dim=1, keepdim=True)                               # (B, 1)
    largest = lists.masked_fill(~present, 0).amax(dim=1, keepdim=True)       # (B, 1)
    room = N_NUMBERS - (largest - smallest)
    new_smallest = (torch.rand(len(lists), 1, generator=generator) * room).long()
    return torch.where(present, lists - smallest + new_smallest, PAD)

def train(args):
    """--mode train: train a model, keep the weights best in validation, test and save them."""
    name = f"{Path(args.folder).name}, model seed {args.model_seed}"
    data = load_data(args, ["train", "val", "test"])
    lists, kinds = data["train"]
    target = torch.tensor([float(kind == "sorted") for kind in kinds])  # (N,)
    torch.manual_seed(args.model_seed)
    model = SortednessEncoder(args).to(args.device)
    optimizer = common.adamw(model, args, beta2=0.98)
    n_batches = max(1, len(lists) // args.batch_size)  # the rest of an epoch is left out
    shuffle = torch.Generator().manual_seed(args.model_seed)
    generator = torch.Generator().manual_seed(args.model_seed)
    print(f"{name}: {len(lists):,} lists; guessing has a loss of ln 2", file=sys.stderr)
    history = []
    losses = []
    best = {"val_accuracy": -1, "val_loss": 0}
    began = time.time()
    for step in range(1, args.steps + 1):
        i = (step - 1) % n_batches
        if i == 0:
            order = torch.randperm(len(lists), generator=shuffle)
        batch = order[i * args.batch_size:(i + 1) * args.batch_size]  # (B,)
        x = add_constant(lists[batch], generator).to(args.device)    # (B, T)
        start = 0
        if args.random_start:
            starts = torch.tensor(STARTS[args.random_start])
            start = starts[torch.randint(len(starts), (len(batch), 1), generator=generator)]
            start = start.to(args.device)                             # (B, 1)
        logits = model(x, start)                                      # (B,)
        loss = F.binary_cross_entropy_with_logits(logits, target[batch].to(args.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # no batch may move the weights far
        lr = args.lr * min(1, step / args.warmup, (args.steps + 1 - step) / args.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        losses.append(loss.detach())
        if step % max(1, min(200, args.steps // 10)) == 0 or step == args.steps:
            val_loss, val_accuracy, recall = evaluate(model, data["val"])
            train_loss = torch.stack(losses).mean().item()
            losses = []
            if not math.isfinite(train_loss + val_loss):
                raise UserError(f"the loss is not finite at step {step}; type a smaller --lr")
            row = {"step": step, "train_loss": train_loss, "val_loss": val_loss, "lr": lr,
                   "val_accuracy": val_accuracy, "seconds": time.time() - began}
            history.append(row)
            values = " | ".join(f"{key} {x:.4g}" for key, x in row.items())
            print(f"{name} | {values}", file=sys.stderr)
            if (val_accuracy, -val_loss) > (best["val_accuracy"], -best["val_loss"]):
                best = row
                weights = copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    _, accuracy, recall = evaluate(model, data["test"])
    print(f"{name}: {100 * accuracy:.2f}% balanced accuracy, 8 to 16 numbers", flush=True)
    test = {"n": len(data["test"][0]), "accuracy": accuracy, "recall": recall}
    common.save_log(model, {"history": history, "best": best, "test": test}, guess=math.log(2))
    common.save(Path(args.out_dir, args.folder, args.file), model)  # no model is without its log

# ---- 6. Long lists -------------------------------------------------------------------------------
# Encodings are trained without and with a causal mask, sinusoidal and learned then also with random
# starts. Result at 256 numbers: with the mask ALiBi is right on nearly all lists, the model without
# encoding on most; random starts on fewer. All others are at chance, but ALiBi without the mask:
# its bias depends on |i - j| and pooling ignores the order, so mirror images get the same answer.

PANELS = {"no mask": (False, None), "causal mask": (True, None),
          "causal mask, random starts": (True, "everywhere")}

def settings(args, panels):
    """The flags of each encoding in each panel (causal, random_start), for each model seed."""
    jobs = {}
    for causal, random_start in panels:
        for pe in ENCODINGS if args.pe in (None, "all") else args.pe.split(","):
            if pe not in ENCODINGS:
                raise UserError(f"--pe {pe}: type some of {','.join(ENCODINGS)}, or all")
            start = random_start if ENCODINGS[pe].uses_start else None
            name = pe + "-causal" * causal + f"-random-start-{start}" * bool(start)
            folder = "sorting/" + name.removesuffix("-everywhere")
            changes = {"pe": pe, "causal": causal, "random_start": start, "folder": folder}
            jobs[folder] = list(common.each_seed(Namespace(**vars(args) | changes)))
    return sum(jobs.values(), [])

def score(models, data):
    """Balanced accuracy over models, and the mean recall of each kind."""
    scores = [evaluate(model, data) for model in models]
    values = [accuracy for _, accuracy, _ in scores]
    recall = {kind: mean(found[kind] for _, _, found in scores) for kind in scores[0][2]}
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0,
            "per_seed": values, "recall": recall}

def extrapolate(args, jobs):
    """--mode extrapolate: test models on lists of every length; train those that are missing."""
    files = {"8-16": "test"} | {str(length): f"extrapolation/{length}" for length in args.lengths}
    data = load_data(args, list(files.values()))
    path = Path(args.out_dir, "sorting/extrapolation/extrapolation_results.json")
    results = json.loads(path.read_text()) if path.exists() else {}  # other settings stay
    for folder, models in common.find_models(jobs, command_line(), load, train).items():
        results[folder] = {length: score(models, data[file]) for length, file in files.items()}
        print(folder, *(f"{n}: {100 * row['mean']:.1f}%" for n, row in results[folder].items()))
    common.save(path, results)
    common.save(path.with_name("extrapolation_curves.png"), draw_lengths(results, args.lengths))

def draw_lengths(results, lengths):
    """Draw the accuracy against the length, a panel per setting."""
    fig, axes = common.subplots(1, len(PANELS), 3.6, sharey=True)
    results = {name: row for name, row in results.items() if row.keys() >= set(map(str, lengths))}
    best = max(results, key=lambda folder: results[folder][str(lengths[-1])]["mean"])
    fig.suptitle(f"Trained on 8 to 16 numbers (grey): {best[8:].replace('-', ' ')} goes furthest")
    for ax, (title, panel) in zip(axes, PANELS.items()):
        ax.axvspan(LENGTHS[0], LENGTHS[-1], color="0.88", zorder=0)
        for job in settings(command_line().parse_args([]), [panel]):
            if job.folder in results:
                rows = [results[job.folder][str(length)]["per_seed"] for length in lengths]
                values = 100 * torch.tensor(rows)                            # (lengths, models)
                i = list(ENCODINGS).index(job.pe)
                x = [length * 1.06 ** (i - 2) for length in lengths]  # no line hides another
                ax.plot(x, values.mean(1), f"C{i}-" + "^osvD*"[i % 6], label=job.pe)
                ax.fill_between(x, values.amin(1), values.amax(1), color=f"C{i}", alpha=0.15)
        ax.set_xscale("log", base=2)
        ax.set_xticks(lengths, lengths)
        ax.set(title=title, xlabel="numbers in the list", ylim=(44, 103))
    axes[0].set_ylabel(f"balanced accuracy (%)\nmean and range, model seeds: {len(rows[0])}")
    lines = max((list(ax.lines) for ax in axes), key=len)
    fig.legend(handles=lines, ncols=6, loc="outside lower center")
    return fig

# ---- 7. Why --------------------------------------------------------------------------------------
# 7a. The rows of a learned table beyond position 15 get no gradient: they stay random vectors.

def draw_table(model):
    """Draw how far training turned each row of the table, and the rows."""
    torch.manual_seed(model.args.model_seed)  # as in train(), so the same rows are drawn again
    initial = SortednessEncoder(model.args).encoding.table.detach()
    table = model.encoding.table.detach().cpu()
    cosine = F.cosine_similarity(table, initial, dim=1)
    fig, (upper, lower) = common.subplots(2, 1, 4.5, sharex=True)
    upper.plot(cosine[:48].clamp(max=1).acos().rad2deg(), "o-")
    upper.axvline(LENGTHS[-1] - 0.5, color="black")
    upper.set(title="Training turns rows 0 to 15 only", ylabel="angle to initial\nrow (degrees)")
    fig.colorbar(lower.imshow(table[:48].T.numpy(), cmap="RdBu", aspect="auto"), label="value")
    lower.set(xlabel="position", ylabel="channel of the row")
    return fig

# 7b. Why do sinusoids go on further than a table, and why not for ever?
# Here training has no mask (so order comes from positions alone), three times the steps, and random
# starts, but no list goes beyond position 120. Then lists of 16 start anywhere from 0 to 5,000. A
# head that has learned the rotation to the previous position (section 2) can use it anywhere. But
# slow waves, of less than two turns within the positions of training, take values beyond them that
# are rare in training. Hypothesis: only these fail. With them held beyond 112, the last position
# that many training lists reach, the same weights should be right at any start. Control: hold the
# other, fast waves. Supported if at starts 240 and 5,000 the mean accuracy is within five points of
# start 0, and in the control at neither. In a table, to hold is to copy the last trained row.
# Result: supported; not for other models, which leave out a gap, 100 to 139. A table is at chance
# beyond 120; held too, as equal rows leave no order. Three of five seeds look at a neighbour.

BANDS = {"gap": (100, 139), "early": (121, 255)}  # positions that no training list touches
POSITIONS = (0, 32, 64, 80, 96, 104, 112, 120, 124, 128, 140, 160, 200, 240, 1000, 5000)
PERIODS = (300, 150, 80, 50, 30, 15)  # other thresholds, for analysis.json

def hold(args, longer_than=None):
    """What to hold: channels (C,), of a table all, and from which position on."""
    last = LENGTHS[-1] - 1
    if args.random_start:
        last = max(STARTS[args.random_start]) + LENGTHS[0] - 1  # few lists reach further
    period = 2 * math.pi / frequencies(args.d_model)            # (C/2,), positions per turn
    held = (period > (longer_than or last / 2)).repeat_interleave(2)
    return held | (args.pe == "learned"), last

@torch.inference_mode()
def weight_of_neighbour(model, lists, **experiment):
    """The mean weight on the previous or on the next number, of the head that gives most."""
    model.hidden_states(lists.to(model.args.device), **experiment)
    weights = model.blocks[0].attention.weights                 # (N, n_head, T, T)
    return max(weights.diagonal(k, 2, 3).mean((0, 2)).max().item() for k in (-1, 1))

def test_positions(models, data):
    """By what is held: accuracy, and weight of the neighbour, a list per model by start."""
    args = models[0].args
    channels, last = hold(args)
    if args.pe == "learned":
        held = {"as it is": None, "last row copied": (channels, last)}
    else:
        held = {"as it is": None, "slow waves held": (channels, last),
                "fast waves held": (~channels, last)}
        held |= {f"held above {period}": hold(args, period) for period in PERIODS}
    starts = [x for x in POSITIONS if args.pe != "learned" or x + LENGTHS[-1] <= args.max_len]
    in_order = data[0][[kind == "sorted" for kind in data[1]]]
    found = {}
    for way, what in held.items():
        found[way] = {"accuracy": [], "neighbour": []}
        for model in models:
            row = [evaluate(model, data, start=x, hold=what)[1] for x in starts]
            found[way]["accuracy"].append(row)
            row = [weight_of_neighbour(model, in_order, start=x, hold=what) for x in starts]
            found[way]["neighbour"].append(row)
        means = (f"{100 * mean(column):.0f}" for column in zip(*found[way]["accuracy"]))
        print(f"{args.folder}, {way}, 16 numbers from {starts}: {' '.join(means)}%")
    return found

def draw_positions(found):
    """Draw the accuracy of lists of 16 against their start, a panel per kind of training."""
    fig, axes = common.subplots(1, 2, 3.9, sharey=True)
    early = found["sorting/sinusoidal-random-start-early"]
    right, held = [100 * mean(x[-1] for x in early[way]["accuracy"]) for way in list(early)[:2]]
    fig.suptitle(f"Sinusoids far beyond training: {right:.0f}% right, slow waves held {held:.0f}%")
    for ax, (band, (first, last)) in zip(axes, BANDS.items()):
        for x, start in enumerate(POSITIONS):
            if first < start + LENGTHS[-1] and (start <= last or start > 255):
                ax.axvspan(x - 0.5, x + 0.5, color="0.9", zorder=0)
        for pe, color in (("sinusoidal", "C1"), ("learned", "C2")):
            ways = found[f"sorting/{pe}-random-start-{band}"]
            for style, (way, rows) in zip(("^-", "o--", "x:"), ways.items()):  # three ways
                means = 100 * torch.tensor(rows["accuracy"]).mean(0)
                ax.plot(means, style, color=color, label=f"{pe}, {way}")
        ax.set_xticks(range(len(POSITIONS)), POSITIONS, rotation=90)
        ax.set(title=f"trained without positions {first} to {last} (grey)",
               xlabel="position of the first of 16 numbers")
    axes[0].set(ylim=(44, 103), ylabel=f"mean accuracy (%), model seeds: {len(rows['accuracy'])}")
    fig.legend(*axes[0].get_legend_handles_labels(), ncols=3, loc="outside lower center")
    return fig

def draw_waves(args):
    """Draw the waves of the sinusoidal encoding over the positions."""
    fig, ax = common.subplots(height=3)
    sines = sinusoids(torch.arange(256), args.d_model)[:, ::2].T         # (C/2, 256)
    fig.colorbar(ax.imshow(sines.numpy(), cmap="RdBu", aspect="auto"), label="value of the wave")
    ax.axvline(max(STARTS["early"]) + LENGTHS[-1] - 1, color="black")
    ax.set(title="Beyond the line, where training ends, only fast waves repeat what it has shown",
           xlabel="position", ylabel="wave, from fast to slow")
    return fig

# 7c. What is new in a long list: positions, distances, or the number of keys?
# Each has its experiment on the same weights, with a causal mask. Positions: waves or rows held
# beyond those of training. Distances: a sliding window, in which each number attends to the last 16
# only. Number of keys: a softmax over more keys gives each of them less (dilution). So scores of n
# > 16 keys are multiplied by log n / log 16 (Chen et al. 2025). The window limits the number of
# keys too. Hypotheses: sinusoidal and learned fail by positions, RoPE by distances, the model
# without encoding by the number of keys. An experiment explains a loss if it restores at least half
# of it. Result: the window restores RoPE, log n the latter, holding sinusoidal in three of five
# model seeds and learned in two. ALiBi loses nothing. With random starts nothing restores half.

def test_long(models, data, longest):
    """Accuracies of lists of 256 in each experiment; late: of 16 numbers from 240; per model."""
    args = models[0].args
    ways = {"as it is": {}, "window": {"window": LENGTHS[-1]}, "log n": {"log_n": True}}
    if models[0].encoding.uses_start:
        ways["held"] = {"hold": hold(args)}
    found = {"late": [evaluate(model, data[16], start=240)[1] for model in models]}
    for way, experiment in ways.items():
        found[way] = [evaluate(model, data[longest], **experiment)[1] for model in models]
    print(f"{args.folder}, {longest} numbers:",
          *(f"{way} {100 * mean(row):.1f}%" for way, row in found.items()))
    return found

# 7d. What has the model that works, ALiBi with a causal mask, learned?
# Hypothesis: (1) A head attends to an earlier number that is larger: in 3 5 9 7 from 7 to 9, but in
# 3 5 7 9 not from 9 to 7. (2) The hidden state of that place then says "unsorted". (3) Max pooling
# passes it on. We take sorted lists, and the same with two neighbours swapped, and measure (1) at
# the second of the two. (2) and (3) are refuted if copying the final hidden state of that place
# from the swapped into the sorted list (activation patching) leaves the answer "sorted", or if
# copying all others turns it (control). Result: supported in all five model seeds.

@torch.inference_mode()
def inspect_swaps(model, data):
    """The experiment on data (lists, kinds) of one length."""
    lists, kinds = data
    chosen = [kind == "adjacent_swap" for kind in kinds]
    swapped = lists[chosen][:200].to(model.args.device)                    # (M, T)
    clean = swapped.sort(dim=1).values                                     # (M, T)
    row = torch.arange(len(clean))
    second = (swapped.diff(dim=1) < 0).int().argmax(dim=1) + 1             # (M,)
    found = {}
    states = {}
    for name, x in (("sorted", clean), ("swapped", swapped)):
        states[name] = model.hidden_states(x)                              # (M, T, C)
        weights = model.blocks[0].attention.weights                        # (M, n_head, T, T)
        found[f"to_previous_{name}"] = weights[row, :, second, second - 1].mean(0).tolist()
    right = (model(clean) > 0) & (model(swapped) <= 0)                     # only these can turn
    for name, base, source in (("that_state", "sorted", "swapped"),
                               ("all_others", "swapped", "sorted")):
        patched = states[base].clone()
        patched[row, second] = states[source][row, second]
        turned = right & (model.classify(patched, clean != PAD) <= 0)
        found[f"turned_by_{name}"] = turned.sum().item() / max(1, right.sum().item())
    return found

def analyze(args):
    """--mode analyze: the experiments of section 7, over the model seeds of the flags."""
    every = Namespace(**vars(args) | {"pe": None})
    jobs = settings(every, PANELS.values())
    pair = Namespace(**vars(args) | {"pe": "sinusoidal,learned", "steps": 3 * args.steps})
    jobs += settings(pair, [(False, band) for band in BANDS])  # 3 times: for enough accuracy
    groups = common.find_models(jobs, command_line(), load, train)
    files = [f"extrapolation/{length}" for length in args.lengths]
    data = dict(zip(args.lengths, load_data(args, files).values()))
    found = {"positions": {}, "long": {}, "swaps": {}}
    for folder, models in groups.items():
        if models[0].args.causal:
            found["long"][folder] = test_long(models, data, args.lengths[-1])
        elif models[0].args.random_start:
            found["positions"][folder] = test_positions(models, data[16])
    for length in args.lengths:
        rows = [inspect_swaps(model, data[length]) for model in groups["sorting/alibi-causal"]]
        found["swaps"][length] = rows
        turned = 100 * mean(row["turned_by_that_state"] for row in rows)
        print(f"ALiBi, {length} numbers: one hidden state turns {turned:.1f}% of the answers")
    out = Path(args.out_dir, "sorting")
    common.save(out / "analysis/analysis.json", found)
    page = {folder: common.for_page(models[0]) for folder, models in groups.items()}
    common.save(out / "models.js", page)  # for out/explorer.html
    common.save(out / "analysis/positions.png", draw_positions(found["positions"]))
    common.save(out / "analysis/waves.png", draw_waves(args))
    table = draw_table(groups["sorting/learned"][0])
    common.save(out / "extrapolation/learned_position_embeddings.png", table)

# ---- 8. Command line -----------------------------------------------------------------------------

def load(path):
    """Return the model in a file that --mode train has written."""
    return common.load_model(path, command_line(), SortednessEncoder)

def command_line():
    """Declare the flags."""
    modes = ["all", "gendata", "train", "extrapolate", "analyze", "infer"]
    parser = common.parser(__doc__.splitlines()[0], modes, d_model=32, d_ff=64, steps=2000,
                           batch_size=384, lr=1e-2, warmup=100, weight_decay=0.01)
    flag = parser.add_argument
    flag("--pe", help="encodings, separated by commas, or all")
    flag("--causal", action="store_true", help="a causal mask: attend to earlier numbers only")
    flag("--random-start", choices=list(STARTS), nargs="?", const="everywhere", help="in training")
    flag("--n-long", type=int, default=2_000, help="lists of each of the --lengths")
    flag("--lengths", type=int, nargs="+", default=[16, 32, 64, 128, 256], help="of the long lists")
    flag("--kinds", nargs="+", choices=UNSORTED, default=UNSORTED, help="what to learn from")
    flag("--pool", choices=["max", "mean"], default="max", help="how hidden states are pooled")
    flag("--max-len", type=int, default=512, help="positions of learned")
    flag("--slope", type=float, default=4.0, help="slope of the first head of alibi")
    return parser

def main(args):
    """Do what --mode says. Without --pe, --causal and --random-start it is done for all panels."""
    typed = args.pe or args.causal or args.random_start
    jobs = settings(args, [(args.causal, args.random_start)] if typed else PANELS.values())
    if args.mode in ("all", "gendata", "train"):
        load_data(args, ["train", "val", "test"])  # made here, not by each of the trainings
    if args.mode in ("all", "train"):
        common.side_by_side(train, jobs)
    if args.mode in ("all", "extrapolate"):
        extrapolate(args, jobs)
    if args.mode in ("all", "analyze"):
        analyze(args)
    if args.questions:
        asked = [job for job in jobs if typed or job.folder == "sorting/alibi-causal"][:1]
        ((model,),) = common.find_models(asked, command_line(), load).values()
    short = False
    for text in args.questions:
        try:
            numbers = [int(x) for x in text.split("," if "," in text else None)]
            check_numbers(numbers, model.args)
        except ValueError as error:
            raise UserError(f'{text[:40]!r}: {error}; type a list as in "3 15 27"') from None
        p = predict(model, pad([numbers])).sigmoid().item()
        print(f"sorted {p:.3f}" if p > 0.5 else f"unsorted {1 - p:.3f}")
        short = short or len(numbers) < LENGTHS[0]
    if short:
        print("note: some lists are shorter than any in training", file=sys.stderr)

if __name__ == "__main__":
    common.run(main, command_line())
