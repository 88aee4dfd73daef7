"""Do positional encodings extrapolate?  Attention trained on short lists and tested on long ones.

A transformer encoder reads a list of numbers and decides whether it is sorted. It learns from
10,000 lists of 8 to 16 numbers and is tested on lists of 32, 64, 128 and 256. Vaswani et al. 2017
chose sinusoidal encodings because they "may allow the model to extrapolate". We measure it for six
encodings, and change one thing at a time: the encoding, the mask, or where training lists start.

  python positional_sorting.py "3 15 27 41 55 61 88 70"    ask the trained model, two seconds
  python positional_sorting.py                             train, test, explain: three minutes
  python positional_sorting.py --mode train --pe rope      train one, into out/sorting/rope
  python positional_sorting.py --mode extrapolate --causal --pe rope,alibi    test on long lists
  python positional_sorting.py --mode analyze              why: four experiments

Comments give the shape of each tensor: B lists in a batch or N in all, T numbers in a list,
C = d_model. Left out on purpose: dropout, a class token (we pool instead), and attention step by
step, which is section 2 of attention_addition.py.
"""
import argparse
import copy
import itertools
import json
import math
import os
import random
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

import common
from common import UserError

# ---- 1. The task and its data --------------------------------------------------------------------
#
# A list is sorted if no number is smaller than the one before it. What a model learns depends on
# which unsorted lists it sees: trained on shuffled lists alone (--kinds shuffled), it misses half of
# the lists with one swap. So there are five kinds of unsorted lists.
#
# The answer must depend on the order only. So lists come in pairs, a sorted one and an unsorted one
# of the same numbers. A model that sees which numbers there are, but not their order, is right on
# exactly one of the two.
#
# In a sorted list of 256 numbers from 0 to 99, nearly all neighbours are equal or one apart; in a
# list of 8 few are. Then long lists would be hard for a second reason, and we would blame the
# encoding. So half of the lists take their numbers from a narrow range, where short lists have
# close neighbours too.

N_NUMBERS = 100  # the numbers 0 to 99 are tokens 0 to 99
PAD = 100        # fills up short lists
UNSORTED = ["adjacent_swap", "random_swap", "swaps", "shuffled", "reversed"]
KINDS = ["sorted", *UNSORTED, "unsorted"]  # the last is for data that do not say how
SORTED = 0                                 # an index into KINDS
LENGTHS = list(range(8, 17))
TRAINING_LENGTHS = [*range(8, 16), *(8 * [16])]  # only lists of 16 reach position 15, the last
DATA_FLAGS = ["seed", "n_train", "n_val", "n_test", "kinds"]

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
    """Draw n records, in pairs of a sorted and an unsorted list, the kinds in turn:

    {"sequence": [3, 15, 27], "is_sorted": 1, "length": 3, "kind": "sorted"}

    No two pairs have the same numbers: `seen` holds those drawn so far.
    """
    records = []
    for kind in itertools.cycle(kinds):
        if len(records) >= n:
            return records[:n]
        numbers = None
        while numbers is None or tuple(numbers) in seen:
            numbers = draw_sorted(rng, lengths[int(len(lengths) * rng.random())])
        seen.add(tuple(numbers))
        for x, name in ((numbers, "sorted"), (unsort(rng, numbers, kind), kind)):
            records.append({"sequence": x, "is_sorted": int(name == "sorted"), "length": len(x),
                            "kind": name})

def make_data(args):
    """--mode gendata: write train, val and test.jsonl, and extrapolation/<length>.jsonl.

    Each file has its own generator, so it does not depend on the other --lengths.
    """
    sets = [("test", args.n_test, LENGTHS, 0), ("val", args.n_val, LENGTHS, 1),
            ("train", args.n_train, TRAINING_LENGTHS, 2)]
    sets += [(f"extrapolation/{length}", args.n_long, [length], length) for length in args.lengths]
    seen = set()
    records = {}
    for name, n, lengths, seed in sets:
        rng = random.Random(10_000 * args.seed + seed)
        kinds = args.kinds if name == "train" else UNSORTED
        records[name] = draw_records(rng, n, kinds, lengths, seen)
    common.write_data("sorting", records, args, [*DATA_FLAGS, "n_long", "lengths"])

def pad(lists):
    """Turn lists of numbers into one tensor (N, T), with PAD after the end of short ones."""
    return pad_sequence([torch.tensor(x) for x in lists], batch_first=True, padding_value=PAD)

def load_data(args, names):
    """Return {name: (lists (N, T), kinds (N,))} from the data files, made if there are none."""
    def read(record):
        x = record["sequence"]
        check_numbers(x)
        kind = record.get("kind", "sorted" if x == sorted(x) else "unsorted")
        if [record["is_sorted"], record["length"]] != [x == sorted(x), len(x)]:
            raise ValueError(f"is_sorted or length is wrong for {x}")
        if (kind == "sorted") != (x == sorted(x)):
            raise ValueError(f"the kind {kind} is wrong for {x}")
        return x, KINDS.index(kind)

    flags = DATA_FLAGS + ["n_long"] * any("extrapolation" in name for name in names)
    data = {}
    for name, pairs in common.read_data("sorting", names, args, flags, make_data, read).items():
        lists, kinds = zip(*pairs)
        data[name] = (pad(lists), torch.tensor(kinds))
    return data

def check_numbers(numbers):
    """ValueError unless this is a list of numbers that a model can read."""
    if len(numbers) < 2 or not all(type(x) is int and 0 <= x < N_NUMBERS for x in numbers):
        raise ValueError(f"expected two or more numbers from 0 to 99, found {numbers}")

# ---- 2. Six positional encodings -----------------------------------------------------------------
#
# Attention gives each token a weighted mean of the values v of all tokens, with weights
# softmax(q k^T / sqrt(d_head)). Without a mask, nothing in this depends on the order: permute the
# tokens, and the outputs are permuted in the same way. Pool them, and the order is gone. A causal
# mask is itself a source of order: a number sees the numbers before it and no others. So even a
# model without encoding can tell orders apart (Kazemnejad et al. 2023).
#
# An encoding can enter at three points: the embedded tokens, the queries and keys, or the scores
# q k^T. Each is one method of the class Encoding. To write your own, add a subclass and its name in
# ENCODINGS; it then works in every mode and figure.

class Encoding(nn.Module):
    """No positional encoding (NoPE). Each of the others overrides one of three methods."""

    uses_start = False  # whether the output changes if all positions grow by the same amount

    def __init__(self, args):
        super().__init__()

    def embed(self, x, position, present):
        """Change the embedded tokens x (B, T, C).

        position (T,), or (B, T) if each list has its own, holds the position of each number;
        present (B, T) is False at padding.
        """
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

    position (..., T) -> (..., T, C). Going k positions further rotates each pair of sine and cosine
    by the same angle, whatever the position. So the dot product of two encodings depends on their
    distance alone. Nothing is trained, and every position has a value.
    """
    angle = position[..., None] * frequencies(d_model).to(position.device)  # (..., T, C/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)      # (..., T, C)

class Sinusoidal(Encoding):
    """Fixed waves, added to the tokens."""

    uses_start = True

    def embed(self, x, position, present):
        return x + sinusoids(position, x.shape[-1])

class Learned(Encoding):
    """A trained vector per position. Rows that no training list reaches get no gradient."""

    uses_start = True

    def __init__(self, args):
        super().__init__(args)
        # mean square 1/2, like the sinusoids
        self.table = nn.Parameter(torch.randn(args.max_len, args.d_model) / math.sqrt(2))

    def embed(self, x, position, present):
        check_length(position.max() + 1, len(self.table))
        return x + self.table[position]

class Randomized(Encoding):
    """Not 0, 1, 2, ... but a random choice, in order, from a longer range (Ruoss et al. 2023).

    16 numbers may get the positions 7, 31, 52, ..., 498 of 512, so over many short lists all
    positions of long ones occur. The model can rely on which of two positions is larger, not on
    their distance. The lists of a batch share one shuffle of the positions; a list of n numbers
    takes the first n of it, in ascending order.
    """

    def __init__(self, args):
        super().__init__(args)
        self.max_len = args.max_len

    def embed(self, x, position, present):
        T = x.shape[1]
        check_length(T, self.max_len)
        generator = None if self.training else torch.Generator().manual_seed(0)
        chosen = torch.randperm(self.max_len, generator=generator)[:T].to(x.device)  # (T,)
        chosen = chosen.masked_fill(~present, self.max_len)  # (B, T); padding comes last
        return x + sinusoids(chosen.sort(dim=-1).values, x.shape[-1])

class Rope(Encoding):
    """RoPE (Su et al. 2021, section 3.2): rotate each pair of channels of q and k.

    Query i is rotated by i times the frequency of the pair, key j by j times. To rotate both back
    by the angle of the key would not change their dot product: the key would be as it was, the
    query rotated by i - j times the frequency. So positions enter a score through i - j alone.
    """

    def rotate(self, x, position):
        angle = position[..., None] * frequencies(x.shape[-1]).to(x.device)  # (..., T, d_head/2)
        angle = angle.unsqueeze(-3)                                          # for all heads
        a = x[..., 0::2]                                             # (B, n_head, T, d_head/2)
        b = x[..., 1::2]
        pairs = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]
        return torch.stack(pairs, dim=-1).flatten(-2)                # (B, n_head, T, d_head)

class Alibi(Encoding):
    """ALiBi (Press et al. 2022): a head of slope m adds -m |i - j| to the score of query i, key j.

    The paper's attention is causal; without a mask we use the distance to both sides. From head to
    head the slopes fall by the paper's factor 2^(-8 / n_head). They start at --slope 4, chosen for
    this task: one step further multiplies a weight by e^-4 = 0.02 in the first of four heads, by
    0.37, 0.78 and 0.94 in the others.
    """

    def __init__(self, args):
        super().__init__(args)
        self.slopes = [args.slope * 2.0 ** (-8 * h / args.n_head) for h in range(args.n_head)]

    def bias(self, scores, position):
        slopes = torch.tensor(self.slopes, device=scores.device)[:, None, None]  # (n_head, 1, 1)
        distance = (position[..., :, None] - position[..., None, :]).abs()       # (..., T, T)
        return scores - slopes * distance.unsqueeze(-3)

def check_length(length, max_len):
    """UserError if there are fewer positions than needed."""
    if length > max_len:
        raise UserError(f"{length} positions are needed; type --max-len {length} to train for them")

ENCODINGS = {"none": Encoding, "sinusoidal": Sinusoidal, "learned": Learned,
             "randomized": Randomized, "rope": Rope, "alibi": Alibi}

# ---- 3. Attention and the model ------------------------------------------------------------------
#
# Without a mask every number attends to all numbers. With a causal mask it attends to itself and to
# earlier ones. At the end the hidden states of all numbers are pooled into one vector. Mean pooling
# dilutes one misplaced number among 256 (try --pool mean). Max pooling, the largest value of each
# channel, does not: one hidden state can decide, however long the list.

class MultiHeadAttention(nn.Module):
    """softmax(q k^T / sqrt(d_head)) v in n_head groups of channels (Vaswani et al. 2017)."""

    def __init__(self, d_model, n_head):
        super().__init__()
        self.n_head = n_head
        self.query_key_value = nn.Linear(d_model, 3 * d_model)  # three matrices in one
        self.output = nn.Linear(d_model, d_model)

    def forward(self, x, mask, encoding, position):
        """x (B, T, C) -> (B, T, C). mask, broadcast to (B, 1, T, T), is True where to attend."""
        q, k, v = self.query_key_value(x).chunk(3, dim=-1)             # (B, T, C) each
        q, k, v = [y.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for y in (q, k, v)]
        q = encoding.rotate(q, position)                               # (B, n_head, T, d_head)
        k = encoding.rotate(k, position)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])      # (B, n_head, T, T)
        scores = encoding.bias(scores, position).masked_fill(~mask, -math.inf)
        weights = scores.softmax(dim=-1)                               # each row sums to 1
        self.weights = weights.detach()                                # for section 7
        return self.output((weights @ v).transpose(1, 2).flatten(2))   # heads concatenated, mixed

class Block(nn.Module):
    """Attention between the numbers, then a feed-forward network on each alone; pre-norm."""

    def __init__(self, args):
        super().__init__()
        self.norm1 = nn.LayerNorm(args.d_model)
        self.norm2 = nn.LayerNorm(args.d_model)
        self.attention = MultiHeadAttention(args.d_model, args.n_head)
        self.feed_forward = nn.Sequential(nn.Linear(args.d_model, args.d_ff), nn.ReLU(),
                                          nn.Linear(args.d_ff, args.d_model))

    def forward(self, x, mask, encoding, position):
        x = x + self.attention(self.norm1(x), mask, encoding, position)
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
        # small beside the encodings, whose mean square is 1/2
        nn.init.normal_(self.token_embedding.weight, std=0.1)
        self.encoding = ENCODINGS[args.pe](args)  # last: the other weights are the same for all

    def hidden_states(self, x, start=0, window=None):
        """x (B, T), PAD after the end of a list -> (B, T, C).

        The numbers stand at positions start, start + 1, ...; start is a number, or (B, 1). With a
        window a query attends to the last `window` numbers only (for causal models, section 7b).
        """
        order = torch.arange(x.shape[1], device=x.device)           # (T,)
        position = start + order                                    # (T,) or (B, T)
        present = x != PAD                                          # (B, T)
        mask = present[:, None, None, :]                            # (B, 1, 1, T): no padding,
        if self.args.causal:
            mask = mask & (order <= order[:, None])                 # (B, 1, T, T): nothing later
        if window:
            mask = mask & (order > order[:, None] - window)
        h = self.encoding.embed(self.token_embedding(x), position, present)
        for block in self.blocks:
            h = block(h, mask, self.encoding, position)
        return self.norm(h)

    def classify(self, h, present):
        """Pool the hidden states h (B, T, C) of the numbers present (B, T) into logits (B,)."""
        present = present[..., None]                                # (B, T, 1)
        if self.args.pool == "max":
            pooled = h.masked_fill(~present, -math.inf).amax(dim=1)  # (B, C)
        else:
            pooled = h.masked_fill(~present, 0).sum(dim=1) / present.sum(dim=1)
        return self.to_logit(pooled).squeeze(-1)

    def forward(self, x, start=0, window=None):
        """x (B, T) -> logits (B,)."""
        return self.classify(self.hidden_states(x, start, window), x != PAD)

# ---- 4. Scoring ----------------------------------------------------------------------------------
#
# A model that calls everything unsorted is right on all unsorted lists. So each kind of list is
# scored by itself: its recall is the fraction of its lists that are answered right. The balanced
# accuracy is the mean of the recall of sorted lists and the mean recall of the unsorted kinds. A
# constant answer, and a model that cannot see the order, get 50%. All accuracies are balanced.

def predict(model, lists, start=0, window=None):
    """The logits (N,) of lists (N, T), in chunks on all cores."""
    @torch.inference_mode()
    def logits_of(chunk):
        return model(chunk.to(model.args.device), start, window).cpu()

    chunks = lists.split(max(1, min(512, 2**18 // lists.shape[1] ** 2)))  # attention takes T x T
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return torch.cat(list(pool.map(logits_of, chunks)))

def evaluate(model, data, start=0, window=None):
    """Loss, balanced accuracy and recall {"sorted": 0.99, ...} on data (lists, kinds)."""
    lists, kinds = data
    model.eval()
    logits = predict(model, lists, start, window)
    loss = F.binary_cross_entropy_with_logits(logits, (kinds == SORTED).float()).item()
    right = ((logits > 0) == (kinds == SORTED)).double()
    recall = {KINDS[i]: right[kinds == i].mean().item() for i in kinds.unique()}
    of_unsorted = mean(share for kind, share in recall.items() if kind != "sorted")
    return loss, (recall["sorted"] + of_unsorted) / 2, recall

def solve(model, lists):
    """Whether the model calls each of the lists sorted."""
    return (predict(model, pad(lists)) > 0).tolist()

def attention_of(model, lists):
    """The attention weights of every head on lists: {"L0.H0": (N, T, T), ...}."""
    predict(model, pad(lists))
    weights = {}
    for i, block in enumerate(model.blocks):
        for h in range(model.args.n_head):
            weights[f"L{i}.H{h}"] = block.attention.weights[:, h].cpu()
    return weights

# ---- 5. Training ---------------------------------------------------------------------------------
#
# Training lists start at position 0, or with --random-start at a random position (Kiyono et al.
# 2021, SHAPE). Then all positions up to 255 occur in training, in lists of at most 16.
#
# Data augmentation: a list stays sorted, or unsorted, if the same amount is added to all of its
# numbers. We add a random amount each time a list is used: the model sees more pairs of numbers.
#
# AdamW divides a running mean of the gradients by their usual size. Both rest on few gradients at
# first, so the learning rate rises in a warm-up. Then it falls to 0, so that the last steps can be
# small. The weights best in validation, on lists as short as in training, are kept.

STARTS = {
    "everywhere": [*range(241)],            # a list of 16 that starts at 240 ends at position 255
    "gap": [*range(85), *range(140, 241)],  # no list touches positions 100 to 139
    "early": [*range(106)],                 # no list goes beyond position 120
}

def shift_numbers(lists, generator):
    """Add a random amount to each list, such that its numbers stay from 0 to 99: (B, T)."""
    present = lists != PAD                                                  # (B, T)
    smallest = lists.amin(dim=1, keepdim=True)                              # (B, 1); PAD is larger
    largest = lists.masked_fill(~present, 0).amax(dim=1, keepdim=True)      # (B, 1)
    room = N_NUMBERS - (largest - smallest)
    low = (torch.rand(len(lists), 1, generator=generator) * room).long()    # the new smallest
    return torch.where(present, lists - smallest + low, PAD)

def train(args):
    """--mode train: train a model, keep the weights best in validation, test and save them."""
    name = f"{args.folder.removeprefix('sorting/')}, model seed {args.model_seed}"
    data = load_data(args, ["train", "val", "test"])
    lists, kinds = data["train"]
    target = (kinds == SORTED).float()  # (N,)
    torch.manual_seed(args.model_seed)
    model = SortednessEncoder(args).to(args.device)
    optimizer = common.adamw(model, args, beta2=0.98)
    n_batches = max(1, len(lists) // args.batch_size)  # the rest of an epoch is left out
    shuffle = torch.Generator().manual_seed(args.model_seed)
    generator = torch.Generator().manual_seed(args.model_seed)
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(lists):,} "
          f"lists; the loss of guessing is ln 2 = {math.log(2):.2f}", file=sys.stderr)
    history = []
    losses = []
    best = (-1, 0)
    began = time.time()
    for step in range(1, args.steps + 1):
        i = (step - 1) % n_batches
        if i == 0:
            order = torch.randperm(len(lists), generator=shuffle)
        batch = order[i * args.batch_size:(i + 1) * args.batch_size]    # (B,)
        x = shift_numbers(lists[batch], generator).to(args.device)      # (B, T)
        start = 0
        if args.random_start:
            starts = torch.tensor(STARTS[args.random_start])
            start = starts[torch.randint(len(starts), (len(batch), 1), generator=generator)]
            start = start.to(args.device)                               # (B, 1)
        model.train()
        logits = model(x, start)                                        # (B,)
        loss = F.binary_cross_entropy_with_logits(logits, target[batch].to(args.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # no batch may move the weights far
        lr = args.lr * min(1, step / args.warmup, (args.steps + 1 - step) / args.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        losses.append(loss.detach())
        if step % args.eval_every == 0 or step == args.steps:
            val_loss, val_accuracy, recall = evaluate(model, data["val"])
            train_loss = torch.stack(losses).mean().item()
            losses = []
            if not math.isfinite(train_loss + val_loss):
                raise UserError(f"the loss is not finite at step {step}; type a smaller --lr")
            row = {"step": step, "train_loss": train_loss, "val_loss": val_loss, "lr": lr,
                   "val_accuracy": val_accuracy, "seconds": time.time() - began}
            values = " | ".join(f"{key} {x:.4g}" for key, x in row.items())
            print(f"{name} | {values}", file=sys.stderr)
            history.append(row | {"val_recall": recall})
            if (val_accuracy, -val_loss) > best:
                best = (val_accuracy, -val_loss)
                weights = copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    _, accuracy, recall = evaluate(model, data["test"])
    print(f"{name}: {100 * accuracy:.2f}% right on test lists of 8 to 16 numbers", flush=True)
    test = {"n": len(data["test"][0]), "accuracy": accuracy, "recall": recall}
    common.save_log(model, {"history": history, "test": test}, guess=math.log(2), chance=50)
    common.save(Path(args.out_dir, args.folder, args.file), model)  # no model is without its log

# ---- 6. Long lists -------------------------------------------------------------------------------
#
# One thing changes at a time. Every encoding is trained without a mask (the usual encoder) and with
# a causal mask, the ones that depend on the start also with random starts. The table and the figure
# that this prints and draws are the main result; the README has ours, over five model seeds.
#
# Why does ALiBi need the causal mask? Without one it cannot tell a list from its mirror image: its
# bias depends on |i - j|, so both get the same hidden states in mirrored order, and after pooling
# the same answer. It cannot be right on both a sorted list and its reverse.
#
# How can a model without encoding see the order? A causal mask lets a head look for an earlier
# number that is larger, wherever it stands: in a sorted list there is none.

PANELS = {"no mask": (False, None), "causal mask": (True, None),
          "causal mask, random starts": (True, "everywhere")}

def setting(args, pe, causal, random_start):
    """The flags of one encoding with one mask and starts; its folder is named after them."""
    random_start = random_start if ENCODINGS[pe].uses_start else None
    name = pe + "-causal" * causal
    if random_start:
        name += "-random-start" + f"-{random_start}" * (random_start != "everywhere")
    return argparse.Namespace(**vars(args) | {"pe": pe, "causal": causal, "folder": f"sorting/{name}",
                                              "random_start": random_start})

def settings(args):
    """The settings that were typed, or all panels of the figure."""
    panels = [(args.causal, args.random_start)]
    if not (args.pe or args.causal or args.random_start):
        panels = PANELS.values()
    found = {}
    for causal, random_start in panels:
        for pe in args.pe or ENCODINGS:
            one = setting(args, pe, causal, random_start)
            found[one.folder] = one  # an encoding that ignores the start is there only once
    return list(found.values())

def models_of(jobs):
    """The models of settings, from disk or trained: {name of the setting: models, one per seed}."""
    jobs = [one for job in jobs for one in common.each_seed(job)]
    groups = {}
    for model in common.find_models(jobs, command_line(), load, train):
        groups.setdefault(model.args.folder.removeprefix("sorting/"), []).append(model)
    return groups

def over_seeds(values):
    """Mean and standard deviation of a list of numbers, and the numbers."""
    std = stdev(values) if len(values) > 1 else 0
    return {"mean": mean(values), "std": std, "per_seed": values}

def extrapolate(args):
    """--mode extrapolate: test encodings on lists of every length; train models that are missing.

    A run adds or replaces its own entries in extrapolation_results.json and leaves the others.
    """
    files = {"8-16": "test"} | {str(length): f"extrapolation/{length}" for length in args.lengths}
    data = load_data(args, list(files.values()))
    path = Path(args.out_dir, "sorting", "extrapolation", "extrapolation_results.json")
    results = json.loads(path.read_text()) if path.exists() else {}
    for name, models in models_of(settings(args)).items():
        results[name] = {"pe": models[0].args.pe, "causal": models[0].args.causal,
                         "random_start": models[0].args.random_start, "lengths": {}}
        for length, file in files.items():
            scores = [evaluate(model, data[file]) for model in models]
            row = over_seeds([accuracy for _, accuracy, _ in scores])
            row["recall"] = {}
            for kind in scores[0][2]:
                row["recall"][kind] = over_seeds([recall[kind] for _, _, recall in scores])
            results[name]["lengths"][length] = row
        common.save(path, results)
        table = results[name]["lengths"].items()
        print(f"{name:<32}" + ", ".join(f"{n}: {100 * row['mean']:.1f}%" for n, row in table))
    common.save(path.with_name("extrapolation_curves.png"), draw_lengths(results, args.lengths))

def draw_curve(ax, x, values, pe, **style):
    """Draw the mean of accuracies values (seeds, points) over x in percent, and their range."""
    values = 100 * torch.tensor(values)
    i = list(ENCODINGS).index(pe)
    style = {"color": f"C{i}", "marker": "^osDv*"[i % 6], "label": pe} | style
    ax.plot(x, values.mean(0), **style)
    ax.fill_between(x, values.amin(0), values.amax(0), color=style["color"], alpha=0.15, lw=0)

def draw_lengths(results, lengths):
    """Draw the accuracy against the length, a panel per setting and a line per encoding."""
    fig, axes = common.subplots(1, 3, 3.6, sharey=True)
    fig.suptitle("Is the list sorted? Trained on 8 to 16 numbers (grey), tested on longer lists")
    for ax, (title, (causal, random_start)) in zip(axes, PANELS.items()):
        ax.axvspan(LENGTHS[0], LENGTHS[-1], color="0.88", zorder=0)
        ax.axhline(50, color="black", linewidth=1, linestyle=":")
        for pe in ENCODINGS:
            one = setting(argparse.Namespace(), pe, causal, random_start)
            entry = results.get(one.folder.removeprefix("sorting/"))
            if entry:
                rows = [entry["lengths"][str(length)]["per_seed"] for length in lengths]
                draw_curve(ax, lengths, list(zip(*rows)), pe)
        ax.set_xscale("log", base=2)
        ax.set_xticks(lengths, lengths)
        ax.set(title=title, xlabel="numbers in the list", ylim=(44, 103))
    axes[0].set_ylabel("balanced accuracy (%), chance is 50")
    fig.legend(*axes[1].get_legend_handles_labels(), ncols=6, loc="outside lower center")
    return fig

# ---- 7. Why --------------------------------------------------------------------------------------
#
# 7a. What does training leave in the table of a learned encoding? Rows beyond position 15 have a
# gradient of 0. Only weight decay changes them: it shrinks them without turning them. So at position
# 16 the model adds a random vector that it has never seen.

def draw_table(model):
    """Draw how similar the rows of the table are, and how far training turned each."""
    table = model.encoding.table.detach().cpu()
    torch.manual_seed(model.args.model_seed)  # as in train(), so the same rows are drawn again
    initial = SortednessEncoder(model.args).encoding.table.detach()
    rows = F.normalize(table[:48], dim=1)
    fig, (left, right) = common.subplots(1, 2, 3.4)
    fig.suptitle("The learned encoding: training turns the rows of positions 0 to 15 only")
    image = left.imshow(rows @ rows.T, cmap="RdBu", vmin=-1, vmax=1)
    fig.colorbar(image, ax=left, label="cosine")
    left.set(title="Similarity of the rows", xlabel="position", ylabel="position")
    right.plot(F.cosine_similarity(table, initial, dim=1)[:48], "o-", markersize=3)
    right.axvspan(-0.5, 15.5, color="0.88", zorder=0)
    right.set(title="Trained and initial row (grey: in training)", xlabel="position", ylabel="cosine")
    return fig

# 7b. Is it the unseen positions, or the unseen length?
#
# Lists of 256 have late positions, and queries with more and farther keys. We test both apart, with
# a causal mask. Lists of 16 that start late have late positions only. Lists of 256 in which each
# number attends to the last 16 only (a sliding window) have no more keys than in training.
# Hypothesis 1: sinusoidal and learned fail at late positions, whatever the length. Refuted if short
# lists that start late are answered right. Hypothesis 2: the others fail by more and farther keys.
# Refuted for an encoding that the window does not help. Result: 1 holds for learned, in part for
# sinusoidal. 2 holds for RoPE and no encoding. It is refuted for randomized: its reason is open.
#
# 7c. Does what is learned at some positions hold at others?
#
# Hypothesis: with sinusoids it does, for all positions share the same few waves; with a table it
# does not. We train with random starts that leave out some positions, and test lists of 16 that
# start before, inside and after them. Refuted if the table stays right there, or if the sinusoids
# fall as far. Result: supported for interpolation (inside a gap). Beyond the last position of
# training the sinusoids fade too, some models to chance.

POSITIONS = (0, 16, 32, 40, 64, 80, 104, 112, 120, 124, 128, 140, 160, 200, 240)
TRAINED_AT = {None: range(1), **STARTS}  # where the lists of a training start

def test_positions(models, data, longest):
    """Accuracy per model of lists of 16 that start late, and of long lists with a window or not."""
    found = {"start": [], "full": [], "window": []}
    for model in models:
        found["start"].append([evaluate(model, data[16], start)[1] for start in POSITIONS])
        found["full"].append(evaluate(model, data[longest])[1])
        found["window"].append(evaluate(model, data[longest], window=16)[1])
    late = mean(accuracy[-1] for accuracy in found["start"])
    print(f"{models[0].args.folder}: lists of 16 that start at {POSITIONS[-1]} {100 * late:.1f}%; of "
          f"{longest} {100 * mean(found['full']):.1f}%, window {100 * mean(found['window']):.1f}%")
    return found

def draw_positions(found):
    """Draw the accuracy of lists of 16 against their start, a panel per kind of training."""
    fig, axes = common.subplots(1, len(TRAINED_AT), 3, sharey=True)
    fig.suptitle("Lists of 16 that start late, causal mask (grey: no training list starts there)")
    for ax, (random_start, trained) in zip(axes, TRAINED_AT.items()):
        for start in set(range(241)) - set(trained):
            ax.axvspan(start - 0.5, start + 0.5, color="0.88", zorder=0, lw=0)
        for pe in ("sinusoidal", "learned"):
            one = setting(argparse.Namespace(), pe, True, random_start)
            draw_curve(ax, POSITIONS, found[one.folder.removeprefix("sorting/")]["start"], pe)
        ax.set(title=f"starts: {random_start or 'always 0'}", xlabel="position of the first number")
    axes[0].set(ylabel="balanced accuracy (%)", ylim=(44, 103))
    axes[0].legend()
    return fig

# 7d. What has the model that works, ALiBi with a causal mask, learned?
#
# Hypothesis: (1) A head attends to an earlier number that is larger: in 3 5 9 7 from 7 to 9, but
# hardly from 9 to 5. (2) The hidden state of the 7 then says "unsorted". (3) Max pooling passes it
# on. We take sorted lists, and the same with two neighbours swapped. (1) is refuted unless a head
# attends from the second swapped number to the previous one, and in the sorted list, at the same
# place, does not. (2) and (3) are refuted if the answer stays "sorted" when the final hidden state
# of that number is copied from the run on the swapped list into the run on the sorted list
# (activation patching; the control copies all others). Result: supported in every training.

def inspect_swaps(model, data):
    """The experiment on lists (N, T) of one length, in pairs (rows 2i and 2i + 1)."""
    lists, kinds = data
    swapped = kinds[1::2] == KINDS.index("adjacent_swap")
    clean = lists[0::2][:len(swapped)][swapped][:200].to(model.args.device)    # (M, T)
    corrupted = lists[1::2][swapped][:200].to(model.args.device)               # (M, T)
    row = torch.arange(len(clean))
    second = (corrupted.diff(dim=1) < 0).int().argmax(dim=1) + 1               # (M,)
    states = []
    to_previous = []
    with torch.inference_mode():
        for x in (clean, corrupted):
            states.append(model.hidden_states(x))                              # (M, T, C)
            weights = model.blocks[0].attention.weights                        # (M, n_head, T, T)
            to_previous.append(weights[row, :, second, second - 1].mean(0).tolist())
        right = (model(clean) > 0) & (model(corrupted) <= 0)                   # only these can turn
        one, others = states[0].clone(), states[1].clone()
        one[row, second] = states[1][row, second]
        others[row, second] = states[0][row, second]
        turned = []
        for patched in (one, others):
            unsorted = model.classify(patched, clean != PAD) <= 0
            turned.append((unsorted & right).sum().item() / max(1, right.sum().item()))
    return {"n": right.sum().item(),
            "attention_to_previous": dict(zip(("sorted", "swapped"), to_previous)),
            "called_unsorted": dict(zip(("only that number", "all others"), turned))}

def draw_heads(model, numbers):
    """Draw the attention of all heads on one list."""
    weights = attention_of(model, [numbers])
    fig, axes = common.subplots(1, len(weights), 2.6, squeeze=False)
    fig.suptitle("ALiBi with a causal mask, on a list in which 58 and 52 are swapped")
    for ax, (head, grid), slope in zip(axes.flat, weights.items(), model.encoding.slopes):
        image = ax.imshow(grid[0], vmin=0, vmax=1)
        ax.set_xticks(range(len(numbers)), numbers, rotation=90)
        ax.set_yticks(range(len(numbers)), numbers)
        ax.set(title=f"{head}, slope {slope:g}", xlabel="key", ylabel="query")
    fig.colorbar(image, ax=axes, label="attention weight")
    return fig

def analyze(args):
    """--mode analyze: the experiments of section 7, over the model seeds of the flags."""
    if not Path(args.data_dir, "sorting", "settings.json").exists():
        print("analyze: left out for data of your own; it needs pairs of lists", file=sys.stderr)
        return
    data = load_data(args, [f"extrapolation/{length}" for length in args.lengths])
    data = {length: data[f"extrapolation/{length}"] for length in args.lengths}
    causal = {}
    for pe in ENCODINGS:
        for random_start in TRAINED_AT:
            one = setting(args, pe, True, random_start)
            causal[one.folder] = one
    groups = models_of(causal.values())
    found = {"positions": {}, "swaps": {}}
    for name, models in groups.items():
        found["positions"][name] = test_positions(models, data, args.lengths[-1])
    for length in args.lengths:
        found["swaps"][length] = [inspect_swaps(model, data[length]) for model in groups["alibi-causal"]]
        for row in found["swaps"][length]:
            swapped = row["attention_to_previous"]["swapped"]
            head = swapped.index(max(swapped))
            print(f"ALiBi, lists of {length}: L0.H{head} attends to the previous number with "
                  f"{swapped[head]:.2f}, in the sorted list with "
                  f"{row['attention_to_previous']['sorted'][head]:.2f}; its hidden state turns "
                  f"{100 * row['called_unsorted']['only that number']:.0f}% of the answers")
    out = Path(args.out_dir, "sorting", "analysis")
    common.save(out / "analysis.json", found)
    common.save(out / "positions.png", draw_positions(found["positions"]))
    numbers = [3, 15, 27, 34, 41, 58, 52, 63, 72, 88]
    common.save(out / "algorithm.png", draw_heads(groups["alibi-causal"][0], numbers))
    learned = models_of([setting(args, "learned", False, None)])["learned"]
    common.save(out.with_name("extrapolation") / "learned_position_embeddings.png", draw_table(learned[0]))

# ---- 8. Command line -----------------------------------------------------------------------------

def load(path):
    """Return the model in a file that --mode train has written."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    args = command_line().parse_args([])
    vars(args).update(saved["args"], device="cpu")
    model = SortednessEncoder(args)
    model.load_state_dict(saved["weights"])
    return model.eval()

def infer(args):
    """--mode infer: print an answer and its probability for each list."""
    one = setting(args, (args.pe or ["alibi"])[0], args.causal or not args.pe, args.random_start)
    (model,) = common.find_models([one], command_line(), load)
    for text in args.questions:
        try:
            numbers = [int(number) for number in re.split(r"[\s,]+", text.strip())]
            check_numbers(numbers)
        except ValueError:
            raise UserError(f'expected a list of numbers from 0 to 99, in quotes, such as "3 15 27", '
                            f"found {text[:40]!r}") from None
        probability = predict(model, pad([numbers])).sigmoid().item()
        answer = f"sorted {probability:.3f}" if probability > 0.5 else f"unsorted {1 - probability:.3f}"
        print(answer)
        if len(numbers) < LENGTHS[0]:
            print("note: this list is shorter than any in training; do not rely on it", file=sys.stderr)

def names_from(known):
    """An argparse type: names from `known`, separated by commas; `all` stands for all of them."""
    def parse(text):
        names = list(known) if text == "all" else text.split(",")
        if not set(names) <= set(known):
            raise argparse.ArgumentTypeError(f"expected some of {','.join(known)}, found {text!r}")
        return names
    return parse

def command_line():
    """Declare the flags."""
    modes = ["all", "gendata", "train", "extrapolate", "analyze", "infer"]
    parser = common.parser(__doc__.splitlines()[0], modes, folder=None, d_model=32, d_ff=64, steps=2000,
                           batch_size=384, lr=1e-2, warmup=100, weight_decay=0.01, eval_every=200)
    flag = parser.add_argument
    flag("--pe", type=names_from(ENCODINGS), help="encodings, separated by commas, or all")
    flag("--causal", action="store_true", help="a causal mask: attend to earlier numbers only")
    flag("--random-start", choices=list(STARTS), nargs="?", const="everywhere",
         help="start each training list at a random position; gap and early leave out some")
    flag("--n-long", type=common.positive, default=2_000, help="lists of each of the --lengths")
    flag("--lengths", type=common.positive, nargs="+", default=[16, 32, 64, 128, 256], metavar="L",
         help="numbers in the long lists")
    flag("--kinds", type=names_from(UNSORTED), default=UNSORTED, help="unsorted lists to learn from")
    flag("--pool", choices=["max", "mean"], default="max", help="how hidden states are pooled")
    flag("--max-len", type=common.positive, default=512, help="positions of learned, randomized")
    flag("--slope", type=float, default=4.0, help="slope of the first head of alibi")
    return parser

def main(args):
    """Do what --mode says."""
    if args.mode == "gendata":
        make_data(args)
    if args.mode in ("all", "train"):
        load_data(args, ["train", "val", "test"])  # made here, not by each of several trainings
        jobs = [one for job in settings(args) for one in common.each_seed(job)]
        common.side_by_side(train, jobs)
    if args.mode in ("all", "extrapolate"):
        extrapolate(args)
    if args.mode in ("all", "analyze"):
        analyze(args)
    if args.mode == "infer":
        infer(args)

if __name__ == "__main__":
    common.run(main, command_line())
