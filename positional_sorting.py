"""Do positional encodings extrapolate?  Attention trained on short lists and asked about long ones.

A transformer encoder is shown a list of numbers and says whether it is sorted. It learns from 10,000 lists of 8 to 16
numbers and is then asked about lists of 32, 64, 128 and 256. Data, training and network are always the same; what
differs is how the model is told where a number stands. Six ways are written out below, a few lines each, among them
the three that everybody compares: sinusoidal, learned, and none. (One of the others, ALiBi, differs in two things
more, a causal mask as in its paper and slopes chosen for this task. It needs both, see the README's experiments.)
Sinusoidal encodings are said to extrapolate. We measure it, on disorder that is easy to see and on a single pair of
neighbours swapped.

    python positional_sorting.py                                 data, four encodings, figures: about three minutes
    python positional_sorting.py --mode gendata                  write data/sorting/*.jsonl
    python positional_sorting.py --mode train --pe sinusoidal    train one encoding, about half a minute
    python positional_sorting.py --mode extrapolate --pe all     all six on long lists, five trainings of each
    python positional_sorting.py --mode analyze                  why: what the models attend to, under a minute
    python positional_sorting.py --mode infer "3 15 27 41"       ask the trained model
    python positional_sorting.py --help                          all flags

Read it from the top: the task and its data, the encodings, attention and the model, scoring, training, long lists, why;
then the pictures, asking, the command line. Comments give the shape of each tensor: N lists in all or B in a batch, T
numbers in each, C = d_model channels.
It runs on torch >= 2.0.
"""
import argparse
import contextlib
import hashlib
import itertools
import math
import random
import re
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

import common
from common import UserError, log

# ------------------------------------------------------------------------------------------------
# 1. The task and its data
#
#     {"sequence": [3, 15, 27], "is_sorted": 1, "length": 3, "kind": "sorted"}
#
# A list is sorted if no number is smaller than the one before it. What makes a list unsorted decides what is learned:
# a model that has only seen shuffled lists can get by on a vague impression of order, and answers a list with two
# neighbours swapped as if it were sorted. So there are five kinds of disorder, from the barely visible to the gross.
#
# Nothing but the order may give the answer away. Each draw of numbers therefore yields two lists, the sorted one and
# the same numbers in disorder. A model that sees only which numbers there are, and how many, is right on exactly one
# of the two.
#
# Of 256 numbers from 0 to 99, sorted, 97% of the neighbours are equal or one apart, of 8 numbers 12%. Half of the draws
# take their numbers from a narrow window, so that short lists too have neighbours as close as long ones have.

N_NUMBERS, PAD = 100, 100  # numbers 0 to 99; token 100 fills up short lists
KINDS = ("sorted", "adjacent_swap", "random_swap", "swaps", "shuffled", "reversed")
SPLITS = ("train", "val", "test")
LENGTHS = [*range(8, 17)]  # of the lists to learn from
TRAINING_LENGTHS = LENGTHS[:-1] + 8 * LENGTHS[-1:]  # half have 16 numbers: in no others does the last position occur


def draw_sorted(rng, length, narrow):
    """Draw `length` numbers, not all equal, and sort them; with probability `narrow` from a window 2 to 99 wide."""
    # int(n * rng.random()), not rng.randrange(n): Python promises for random() alone that its numbers never change.
    width = int(2 * 50 ** rng.random()) if rng.random() < narrow else N_NUMBERS  # as often 2 or 3 as 20 to 39
    low = int((N_NUMBERS + 1 - width) * rng.random())
    numbers = sorted(low + int(width * rng.random()) for _ in range(length))
    return numbers if numbers[0] < numbers[-1] else draw_sorted(rng, length, narrow)


def disorder(rng, numbers, kind):
    """Return the sorted `numbers` in disorder of the given kind, with at least one number smaller than the one before.

    adjacent_swap: two unequal neighbours change places. random_swap: any two numbers do. swaps: any two do, a third as
    often as there are numbers, at least twice. shuffled: all orders are equally likely. reversed: from large to small.
    """
    x, length = list(numbers), len(numbers)
    while is_sorted(x):  # two equal numbers may have changed places
        if kind == "adjacent_swap":
            rises = [i for i in range(length - 1) if x[i] < x[i + 1]]
            i = rises[int(len(rises) * rng.random())]
            x[i], x[i + 1] = x[i + 1], x[i]
        elif kind in ("random_swap", "swaps"):
            for _ in range(1 if kind == "random_swap" else max(2, length // 3)):
                i, j = int(length * rng.random()), int(length * rng.random())
                x[i], x[j] = x[j], x[i]
        elif kind == "shuffled":
            x.sort(key=lambda _: rng.random())
        else:
            x.reverse()
    return x


def is_sorted(numbers):
    return int(all(a <= b for a, b in zip(numbers, numbers[1:])))


def draw_records(rng, n, kinds, narrow, lengths, seen):
    """Draw n records, n / 2 pairs of a sorted and an unsorted list of the same numbers, the kinds in turn.

    No two pairs consist of the same numbers: `seen` holds those drawn so far, in other splits too, and grows.
    """
    records = []
    for kind in itertools.islice(itertools.cycle(kinds), n // 2):
        numbers = None
        while numbers is None or tuple(numbers) in seen:
            numbers = draw_sorted(rng, lengths[int(len(lengths) * rng.random())], narrow)
        seen.add(tuple(numbers))
        for x, name in ((numbers, "sorted"), (disorder(rng, numbers, kind), kind)):
            records.append({"sequence": x, "is_sorted": is_sorted(x), "length": len(x), "kind": name})
    return records


SIZES = ("n_train", "n_val", "n_test", "n_long")


def data_settings(args):
    """What the data files depend on, kept beside them so that they are never taken for something else."""
    return {name: getattr(args, name) for name in ("seed", *SIZES, "kinds", "narrow", "lengths")}


def generate_data(args):
    """--mode gendata: write train, val and test.jsonl, extrapolation/<length>.jsonl and settings.json.

    --kinds and --narrow concern the lists to learn from. Those that measure are always of all kinds in equal shares.
    """
    folder, seen, records = common.folder(args.data_dir, "sorting"), set(), {}
    sets = [("test", args.n_test, LENGTHS), ("val", args.n_val, LENGTHS), ("train", args.n_train, TRAINING_LENGTHS)]
    sets += [(f"extrapolation/{length}", args.n_long, [length]) for length in args.lengths]
    for i, (name, n, lengths) in enumerate(sets):
        # A generator for each file, so that the size of one hardly matters to the next (draws that occurred before are
        # skipped). The test comes first: what it draws depends on nothing else.
        rng = random.Random(10_000 * args.seed + (i if name in SPLITS else lengths[0]))
        kinds, narrow = (args.kinds, args.narrow) if name == "train" else (KINDS[1:], 0.5)
        records[name] = draw_records(rng, n, kinds, narrow, lengths, seen)
    common.write_data(folder, records, data_settings(args))
    log(f"data: wrote {args.n_train:,} train, {args.n_val:,} val and {args.n_test:,} test lists of {LENGTHS[0]} to "
        f"{LENGTHS[-1]} numbers, {args.n_long:,} for each of the lengths {args.lengths}, to {folder}, seed {args.seed}")


def check_record(record):
    """Return (numbers, index of the kind) of one line of a data file; ValueError if its label is not true."""
    try:
        numbers, kind = record["sequence"], KINDS.index(record["kind"])
        if (all(type(x) is int and 0 <= x < N_NUMBERS for x in numbers) and record["length"] == len(numbers) > 0
                and record["is_sorted"] == is_sorted(numbers) == (kind == 0)):
            return numbers, kind
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"expected a list of numbers from 0 to 99 and its right label, found {str(record)[:80]}")


def load_data(args, names):
    """Return {name: (lists (N, T), kinds (N,))} of the named files, making all data if there are none.

    A kind is an index into KINDS, so a list is sorted exactly if its kind is 0. UserError if the files were made with
    other settings than the flags ask for, or a label is not true.
    """
    folder, wanted = Path(args.data_dir) / "sorting", data_settings(args)
    common.ready_data(folder, wanted, lambda: generate_data(args))
    data = {}
    for name in names:
        records = common.read_jsonl(folder / f"{name}.jsonl", check_record)
        size = wanted[f"n_{name}" if name in SPLITS else "n_long"]
        if len(records) != size:
            raise UserError(f"{folder / name}.jsonl has {len(records):,} lists, expected {size:,}; "
                            f"type --mode gendata to make it anew")
        lists, kinds = zip(*records)
        data[name] = pad(lists), torch.tensor(kinds)
    return data


def pad(lists):
    """Turn lists of different lengths into one tensor (N, T), short ones filled up with PAD at the end."""
    longest = max(map(len, lists))
    return torch.tensor([[*numbers] + (longest - len(numbers)) * [PAD] for numbers in lists])


# ------------------------------------------------------------------------------------------------
# 2. Six answers to the question where a number stands
#
# Attention gives each token a mean of the values v of all tokens, weighted by the softmax of the scores q k^T of its
# query with their keys (section 3 writes it out). Nothing in that depends on where a token stands: permute the tokens,
# and the outputs are permuted alike; pool them, and the order is gone. So without help, and without a mask that hides
# some tokens from others, the model sees a bag of numbers, and is right half of the time.
#
#     none         no help
#     sinusoidal   fixed waves                                                added to the tokens
#     learned      a trained vector for each position                         added to the tokens
#     randomized   sinusoidal, at positions drawn at random from a longer range     "
#     rope         queries and keys are turned by angles that grow with the position
#     alibi        scores are lowered by the distance between query and key, in every layer

NAMES = {"sinusoidal": "sinusoidal", "learned": "learned", "none": "no encoding", "rope": "RoPE", "alibi": "ALiBi",
         "randomized": "randomized sinusoidal"}


def frequencies(width):
    """Angles per position, in radians, for width / 2 pairs of channels: 1 and then less and less, towards 1/10,000."""
    return 10_000.0 ** (-torch.arange(0, width, 2) / width)  # (width/2,)


def sinusoidal(position, d_model):
    """Vaswani et al. 2017, section 3.5: sine and cosine of the position at d_model / 2 frequencies.

    position (..., T) -> (..., T, C). The step from a position to one k further on is the same rotation everywhere, so
    a dot product of two encodings depends on k alone. Nothing is trained, and there is a value for every position.
    """
    angle = position[..., None] * frequencies(d_model).to(position.device)   # (..., T, C/2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)       # (..., T, C)


def learned(position, table):
    """A vector for each position, added to the tokens and trained with everything else.

    position (T,), table (max_len, C) -> (T, C). Rows that no training list reaches get no gradient: they stay as they
    were drawn, if a little smaller from weight decay.
    """
    return table[position]


def random_positions(present, max_len, generator=None):
    """Randomized positions (Ruoss et al. 2023): not 0, 1, 2, ... but a random choice, in order, from a longer range.

    present (B, T), True where there is a number -> positions (B, T) for sinusoidal(). Spread out like this, short lists
    meet every position that a long list has. What the model can rely on is which of two is larger, not by how much.
    """
    chosen = torch.randperm(max_len, generator=generator)[:present.shape[1]].to(present.device)  # (T,), for all
    # A list of n numbers gets the first n of them, in order. Padding gets max_len, the largest, and so stays last.
    return chosen.masked_fill(~present, max_len).sort(dim=-1).values                             # (B, T)


def rotate(x, position):
    """RoPE (Su et al. 2021, section 3.2): turn each pair of channels of q or k, in proportion to the position.

    x (B, n_head, T, d_head), position (T,). A dot product of two vectors turned alike does not change, so the score of
    query i and key j depends on what they say and on i - j.
    """
    angle = position[:, None] * frequencies(x.shape[-1]).to(position.device)  # (T, d_head/2)
    a, b = x[..., 0::2], x[..., 1::2]                                         # (B, n_head, T, d_head/2)
    turned = a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()  # (B, n_head, T, d_head/2) each
    return torch.stack(turned, dim=-1).flatten(-2)                            # (B, n_head, T, d_head)


def alibi(position, n_head, slope):
    """ALiBi (Press et al. 2022): a head of slope m adds -m |i - j| to the score of query i and key j.

    position (T,) -> (n_head, T, T). The slopes fall by the paper's factor 2^(-8/n_head) from head to head. The paper
    starts with that factor itself, for language, where much that counts is far away; for two heads that is 1/16 and
    1/256. What counts here is near, so we start at 4 and get 4 and 1/4. All else equal, a key one step further off has
    1/55 of the weight with 4 (e^-4), so that head hardly looks beyond itself, and 78% with 1/4, so what the key says
    can still decide. Section 7d shows that the second kind does the work.
    """
    slopes = slope * 2.0 ** (-8 * torch.arange(n_head, device=position.device) / n_head)  # (n_head,)
    distance = (position[:, None] - position).abs()                                       # (T, T)
    return -slopes[:, None, None] * distance                                              # (n_head, T, T)


# ------------------------------------------------------------------------------------------------
# 3. Attention and the model
#
# Every number looks at all (or, with a causal mask, at itself and those before it), layer after layer, and then one
# vector for the whole list is pooled from those of all numbers. Mean pooling would weigh one fault in 256 numbers 32
# times less than one in 8. Taking the largest value of each channel does not: any vector that knows of a fault can say
# so, however long the list.


class MultiHeadAttention(nn.Module):
    """softmax(q k^T / sqrt(d_head) + bias) v in n_head groups of channels (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, d_model, n_head):
        super().__init__()
        self.n_head = n_head
        self.query_key_value = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(d_model, d_model)
        self.weights = nn.Identity()  # does nothing: a name for the attention weights, so that section 7 can read them

    def forward(self, x, mask, bias=None, rope_position=None):
        """x (B, T, C) -> (B, T, C). mask, broadcast to (B, n_head, T, T), is True where a query may look.

        bias (n_head, T, T) is added to the scores, rope_position (T,) is for rotate().
        """
        B, T, C = x.shape
        qkv = self.query_key_value(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                       # (B, n_head, T, d_head) each
        if rope_position is not None:
            q, k = rotate(q, rope_position), rotate(k, rope_position)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, n_head, T, T)
        if bias is not None:
            scores = scores + bias
        weights = self.weights(scores.masked_fill(~mask, -math.inf).softmax(dim=-1))
        heads = (weights @ v).transpose(1, 2).reshape(B, T, C)     # (B, T, C), the heads side by side
        return self.output(heads)


class Block(nn.Module):
    """Attention between the numbers, then a feed-forward network on each alone; pre-norm, with residual connections."""

    def __init__(self, d_model, n_head, d_ff):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attention = MultiHeadAttention(d_model, n_head)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Linear(d_ff, d_model))

    def forward(self, x, mask, bias, rope_position):
        x = x + self.attention(self.norm1(x), mask, bias, rope_position)
        return x + self.feed_forward(self.norm2(x))  # (B, T, C)


class SortednessEncoder(nn.Module):
    """A transformer encoder from lists of numbers to one logit each: above 0 it says sorted."""

    def __init__(self, pe, causal, n_layer, n_head, d_model, d_ff, pool, max_len, slope):
        super().__init__()
        self.pe, self.causal, self.pool, self.max_len, self.slope = pe, causal, pool, max_len, slope
        self.token_embedding = nn.Embedding(N_NUMBERS + 1, d_model)
        self.blocks = nn.ModuleList(Block(d_model, n_head, d_ff) for _ in range(n_layer))
        self.norm = nn.LayerNorm(d_model)
        self.to_logit = nn.Linear(d_model, 1)
        nn.init.normal_(self.token_embedding.weight, std=0.1)  # small beside the encodings, whose mean square is 1/2
        if pe == "learned":
            self.position_table = nn.Parameter(torch.randn(max_len, d_model) / math.sqrt(2))  # as large as sinusoids

    def forward(self, x, position=None):
        """x (B, T), PAD after the end of a list -> logits (B,).

        The numbers stand at 0, 1, 2, ... unless `position` (T,) says otherwise, as it does in section 7b alone.
        (randomized draws its own, none has no use for them.)
        """
        T, C = x.shape[1], self.token_embedding.embedding_dim
        present = x != PAD                                                 # (B, T)
        order = torch.arange(T, device=x.device)                           # (T,)
        position = order if position is None else position
        bias = rope_position = None
        h = self.token_embedding(x)                                        # (B, T, C)
        if self.pe == "sinusoidal":
            h = h + sinusoidal(position, C)
        elif self.pe == "learned":
            h = h + learned(position, self.position_table)
        elif self.pe == "randomized":  # anew in every training step; always the same choice afterwards
            generator = None if self.training else torch.Generator().manual_seed(0)
            h = h + sinusoidal(random_positions(present, self.max_len, generator), C)
        elif self.pe == "rope":
            rope_position = position
        elif self.pe == "alibi":
            bias = alibi(position, self.blocks[0].attention.n_head, self.slope)
        mask = present[:, None, None, :]                                   # (B, 1, 1, T): nobody looks at padding
        if self.causal:
            mask = mask & (order <= order[:, None])                        # (B, 1, T, T): nor at what comes later
        for block in self.blocks:
            h = block(h, mask, bias, rope_position)
        return self.read_out(self.norm(h), present)

    def read_out(self, h, present):
        """Pool the vectors of a list, h (B, T, C) where present (B, T), and turn them into its logit: (B,)."""
        present = present[..., None]                                       # (B, T, 1)
        if self.pool == "max":
            h = h.masked_fill(~present, -math.inf).amax(dim=1)             # (B, C)
        else:
            h = h.masked_fill(~present, 0).sum(dim=1) / present.sum(dim=1)
        return self.to_logit(h).squeeze(-1)


# ------------------------------------------------------------------------------------------------
# 4. Scoring
#
# A model that calls everything unsorted is right on 100% of the unsorted lists. So the lists of each kind are counted
# by themselves: the share of them that is right is the recall of that kind. The balanced accuracy is the mean of two,
# the recall of sorted lists and the mean recall of the kinds of disorder. Chance, and a model blind to order, is 50%.


def rows_at_once(lists):
    """How many lists (N, T) to ask at once: attention takes n_head x T x T numbers for each."""
    return max(1, min(512, 2**20 // lists.shape[1] ** 2))


def logits_of(model, lists, label=None, position=None):
    """The model's logits (N,) for the lists (N, T), in pieces, so that memory does not depend on how many they are."""
    device, size = model.norm.weight.device, rows_at_once(lists)
    position = None if position is None else position.to(device)
    # Made first: many small results, left between large temporary tensors, would fragment the memory.
    logits = torch.empty(len(lists), dtype=model.norm.weight.dtype)

    @torch.inference_mode()  # here, since it holds for one thread only, and parallel_map has several
    def ask(i):
        logits[i:i + size] = model(lists[i:i + size].to(device), position).cpu()

    common.parallel_map(ask, range(0, len(lists), size), label)
    return logits


def recalls(logits, kinds):
    """The share of right answers for each kind that occurs: {"sorted": 0.99, "adjacent_swap": 0.5, ...}."""
    right = (logits > 0) == (kinds == 0)
    return {name: right[kinds == i].double().mean().item() for i, name in enumerate(KINDS) if (kinds == i).any()}


def balanced_accuracy(recall):
    """The mean of the recall of sorted lists and the mean recall of all kinds of disorder."""
    disordered = [share for name, share in recall.items() if name != "sorted"]
    return (recall["sorted"] + sum(disordered) / len(disordered)) / 2


# ------------------------------------------------------------------------------------------------
# 5. Training
#
# A list stays sorted, or unsorted, if the same amount is added to all of its numbers. So we do that, by a random
# amount, each time a list is shown. Without it the model learns by heart which pairs of numbers it has seen in order,
# and misses single swaps of others.


def shift(lists, generator):
    """Add a random amount to each list, the same to all of its numbers, such that they stay from 0 to 99: (B, T)."""
    present = lists != PAD                                                        # (B, T)
    smallest = lists.amin(dim=1, keepdim=True)                                    # (B, 1); PAD is larger than any
    room = N_NUMBERS - (lists.masked_fill(~present, 0).amax(dim=1, keepdim=True) - smallest)
    start = (torch.rand(len(lists), 1, generator=generator) * room).long()        # where the smallest will be
    return torch.where(present, lists - smallest + start, PAD)


def learning_rate(step, config):
    """Up in a straight line during the warm-up, and down in another one, to nearly zero at the last step."""
    return config.lr * min((step + 1) / config.warmup, (config.steps - step) / config.steps)


# The command line's flags (section 10), by what depends on them.
SCRIPT = "positional_sorting.py"
MODEL_FLAGS = ("pe", "causal", "n_layer", "n_head", "d_model", "d_ff", "pool", "max_len", "slope")
DATA_FLAGS = ("seed", "n_train", "n_val", "n_test", "kinds", "narrow")
TRAIN_FLAGS = ("model_seed", "steps", "batch_size", "lr", "warmup", "weight_decay", "shift", "eval_every")
CONFIG_FLAGS = {*MODEL_FLAGS, *DATA_FLAGS, *TRAIN_FLAGS}


def config_of(args, pe, model_seed):
    """What a model depends on: saved with it, and compared before it is used. Only ALiBi is causal unless told."""
    config = {"script": SCRIPT} | {name: value for name, value in vars(args).items() if name in CONFIG_FLAGS}
    causal = pe == "alibi" if args.causal is None else args.causal
    return config | {"pe": pe, "causal": causal, "model_seed": model_seed}


def build_model(config):
    """Return an untrained model of a configuration, which must hold a value for every flag; KeyError if not."""
    config = {name: config[name] for name in CONFIG_FLAGS}
    return SortednessEncoder(**{name: config[name] for name in MODEL_FLAGS})


def describe(config):
    """The name of a curve: the encoding, and whether it is causal."""
    return NAMES[config["pe"]] + (", causal" if config["causal"] else "")


def fit(config, data, device, unfinished=None, resume=False):
    """Train one model; return it with its best weights, the history of the training and the best row of it.

    The best weights are those that do best on the validation lists, which are as short as those to learn from: no long
    list has a say. At each validation the state of the training goes to the file `unfinished`, from where `resume`
    takes it up.
    """
    torch.manual_seed(config.model_seed)
    model = build_model(vars(config)).to(device)
    log(f"train: {describe(vars(config))}, model seed {config.model_seed}, {common.n_parameters(model):,} parameters, "
        f"{len(data['train'][0]):,} lists, {config.steps:,} steps on {device}; the loss of guessing is ln 2 = "
        f"{math.log(2):.2f}")
    lists, target = data["train"][0], (data["train"][1] == 0).float()  # (N, T), (N,)
    val_lists, val_kinds = data["val"]
    optimizer = common.adamw(model, config.lr, config.weight_decay)
    shifts = torch.Generator().manual_seed(config.model_seed)
    done, history, best, best_weights, losses = 0, [], None, None, []
    if resume:
        done, history, best, best_weights = common.take_up(unfinished, vars(config), model, optimizer)
    start = time.time() - (history[-1]["seconds"] if history else 0)
    for step, batch in zip(range(config.steps), common.batches(len(lists), config.batch_size, config.model_seed)):
        x = shift(lists[batch], shifts) if config.shift else lists[batch]          # (B, T)
        if step < done:  # taken up again: the same draws, but not the same work
            continue
        logits = model(x.to(device))                                               # (B,)
        loss = F.binary_cross_entropy_with_logits(logits, target[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # one unlucky batch must not throw the weights far
        lr = learning_rate(step, config)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        losses.append(loss.detach())

        if (step + 1) % config.eval_every == 0 or step + 1 == config.steps:
            logits = logits_of(model.eval(), val_lists)
            model.train()
            recall = recalls(logits, val_kinds)
            row = {"step": step + 1, "train_loss": torch.stack(losses).mean().item(),
                   "val_loss": F.binary_cross_entropy_with_logits(logits, (val_kinds == 0).float()).item(),
                   "val_accuracy": balanced_accuracy(recall), "val_recall": recall,
                   "lr": lr, "seconds": round(time.time() - start, 2)}
            history.append(row)
            losses.clear()
            if not math.isfinite(row["train_loss"]):
                raise UserError(f"the loss is no longer finite at step {step + 1}; try a smaller --lr")
            if best is None or (row["val_accuracy"], -row["val_loss"]) > (best["val_accuracy"], -best["val_loss"]):
                best, best_weights = row, {name: tensor.clone() for name, tensor in model.state_dict().items()}
            log(f"step {row['step']:4d}/{config.steps} | train {row['train_loss']:.4f} | val {row['val_loss']:.4f}"
                f" | accuracy {100 * row['val_accuracy']:5.1f}% | sorted {100 * recall['sorted']:5.1f}%"
                f" | lr {row['lr']:.1e} | {1000 * row['seconds'] / row['step']:.0f} ms/step")
            if unfinished:
                progress = (step + 1, history, best, best_weights)
                common.save_unfinished(unfinished, vars(config), model, optimizer, progress)
    model.load_state_dict(best_weights)
    return model.eval(), history, best


def train(args, pe, data):
    """--mode train: fit a model with the encoding, save it, test it, draw its learning curves."""
    out, config = common.folder(args.out_dir, "sorting", pe), config_of(args, pe, args.model_seed)
    unfinished = out / "unfinished.pth"
    resume = args.resume and unfinished.exists()
    model, history, best = fit(argparse.Namespace(**config), data, args.device, unfinished, resume)
    common.save_checkpoint(out / "best_model.pth", model, config)
    recall = recalls(logits_of(model, data["test"][0]), data["test"][1])
    accuracy = balanced_accuracy(recall)
    training_log = {"config": config, "n_params": common.n_parameters(model), "history": history,
                    "best": {"step": best["step"], "val_accuracy": best["val_accuracy"]},
                    "test": {"accuracy": accuracy, "n": len(data["test"][0]), "recall": recall},
                    "seconds": history[-1]["seconds"]}
    common.write_json(out / "training_log.json", training_log)
    plot_training(training_log, out / "training_curves.png")
    unfinished.unlink(missing_ok=True)
    print(f"{describe(config)}: test accuracy {100 * accuracy:.2f}% on lists of {LENGTHS[0]} to {LENGTHS[-1]} ("
          + ", ".join(f"{name} {100 * share:.1f}" for name, share in recall.items()) + ")", flush=True)


# ------------------------------------------------------------------------------------------------
# 6. Long lists
#
# Now the question. Models of several seeds, which have seen nothing longer than 16, are asked about long lists.


def score_lengths(args, model, data, label):
    """Return {"test": {"accuracy": balanced, "recall": {kind: share}}, "16": ..., ...}: as trained, then longer."""
    table = {}
    for name in ["test", *args.lengths]:
        lists, kinds = data[name if name == "test" else f"extrapolation/{name}"]
        recall = recalls(logits_of(model, lists, f"{label}, length {name}"), kinds)
        table[str(name)] = {"accuracy": balanced_accuracy(recall), "recall": recall}
    log(f"{label}: " + ", ".join(f"{100 * row['accuracy']:.1f}% at {name}" for name, row in table.items()))
    return table


def summarize(tables):
    """Mean and spread over seeds of what score_lengths returns for each."""
    summary = {}
    for length, row in tables[0].items():
        by_kind = {kind: common.mean_std([table[length]["recall"][kind] for table in tables]) for kind in row["recall"]}
        accuracy = common.mean_std([table[length]["accuracy"] for table in tables])
        summary[length] = {"accuracy": accuracy["mean"], "std": accuracy["std"], "per_seed": accuracy["per_seed"],
                           "by_kind": {kind: value["mean"] for kind, value in by_kind.items()},
                           "by_kind_per_seed": {kind: value["per_seed"] for kind, value in by_kind.items()}}
    return summary


# Models on disk: which are there, which must be trained. Nothing about encodings in here.


def check_length(pe, max_len, length):
    """UserError if a model has no positions for a list of this length."""
    if pe in ("learned", "randomized") and length > max_len:
        raise UserError(f"--pe {pe} has positions for {max_len} numbers, a list has {length}; leave that encoding out "
                        f"or train it with --max-len {length}")


def find_model(args, pe, seed):
    """Return (path, model) of this encoding and model seed if it is on disk, else None. UserError if other settings."""
    folder, wanted = Path(args.out_dir) / "sorting" / pe, config_of(args, pe, seed)
    for path in (folder / "best_model.pth", folder / "seeds" / f"{seed}.pth"):
        if path.exists():
            model, config = common.load_checkpoint(path, SCRIPT, build_model)
            if config == wanted:
                return path, model.to(args.device)
            if config | {"model_seed": seed} != wanted or path.parent.name == "seeds":
                raise UserError(f"{path} was trained with {common.difference(config, wanted)}; pass the flags it was "
                                f"trained with, choose another --out-dir, or remove {folder}")
    return None


def is_finished(args, pe):
    """Whether --mode train has left a model and nothing to resume. UserError if it was trained with other settings."""
    folder = Path(args.out_dir) / "sorting" / pe
    return (folder / "best_model.pth").exists() and not (folder / "unfinished.pth").exists() and bool(
        find_model(args, pe, args.model_seed))


def obtain_model(args, pe, seed, data):
    """Return (path, model) of this encoding and model seed, trained now if it is not on disk."""
    if (found := find_model(args, pe, seed)) is None:
        log(f"no model of {pe} with model seed {seed}, training one")
        if seed == args.model_seed and not (Path(args.out_dir) / "sorting" / pe / "best_model.pth").exists():
            train(args, pe, data)
        else:
            config = config_of(args, pe, seed)
            model, _, _ = fit(argparse.Namespace(**config), data, args.device)
            common.save_checkpoint(Path(args.out_dir) / "sorting" / pe / "seeds" / f"{seed}.pth", model, config)
        found = find_model(args, pe, seed)
    return found


def complete(args, pe, seeds):
    """Whether the models of all seeds are there, made with the settings of the flags, and have positions enough."""
    try:
        check_length(pe, args.max_len, max(args.lengths))
        return all(find_model(args, pe, seed) for seed in seeds)
    except UserError:
        return False


def choose_seeds(args):
    """--model-seeds of them, from --model-seed on; if not given, five to extrapolate, else one, or all on disk."""
    n = args.model_seeds
    if n is None:
        n = 5 if args.mode == "extrapolate" else 1
        while all(complete(args, pe, [args.model_seed + n]) for pe in args.pe):
            n += 1
    return [*range(args.model_seed, args.model_seed + n)]


def extrapolate(args):
    """--mode extrapolate: every encoding and model seed on lists of every length, training the models that are missing.

    What is there is not made again: models, and the scores of a model whose file is still the same. Encodings that were
    not asked for are shown too if all their models are there.
    """
    for pe in args.pe:
        check_length(pe, args.max_len, max(args.lengths))
    out, seeds = common.folder(args.out_dir, "sorting", "extrapolation"), choose_seeds(args)
    data = load_data(args, [*SPLITS, *(f"extrapolation/{length}" for length in args.lengths)])
    path, settings = out / "extrapolation_results.json", {"lengths": args.lengths, "seeds": seeds,
                                                          "data": data_settings(args)}
    old = common.read_json(path) if path.exists() else {}
    scores = old.get("scores", {}) if isinstance(old, dict) and old.get("data") == settings["data"] else {}
    labels, in_range, results, used = {}, {}, {}, set()
    for pe in NAMES:
        if pe not in args.pe and not complete(args, pe, seeds):
            continue
        tables = []
        for seed in seeds:
            file, model = obtain_model(args, pe, seed, data)
            fingerprint = hashlib.sha256(file.read_bytes()).hexdigest()
            if fingerprint not in scores:
                scores[fingerprint] = score_lengths(args, model, data, f"{pe}, model seed {seed}")
            used.add(fingerprint)
            tables.append(scores[fingerprint])
        labels[pe], results[pe] = describe(config_of(args, pe, args.model_seed)), summarize(tables)
        in_range[pe] = results[pe].pop("test")
        found = settings | {"labels": labels, "in_range": in_range, "results": results}
        common.write_json(path, found | {"scores": scores})
    scores = {fingerprint: scores[fingerprint] for fingerprint in scores if fingerprint in used}
    common.write_json(path, found | {"scores": scores})
    plot_extrapolation(found, out / "extrapolation_curves.png")
    plot_kinds(found, out / "extrapolation_by_kind.png")
    print_extrapolation(found)


def print_extrapolation(found):
    """Print the accuracy at every length, and the worst of all kinds and seeds."""
    print(f"balanced accuracy (%), mean +- standard deviation over model seeds {found['seeds']}, on lists as "
          f"trained on and longer ones; and the lowest recall of any kind, seed and length")
    lengths = [f"{LENGTHS[0]}-{LENGTHS[-1]}", *found["lengths"]]
    print(" " * 22 + "".join(f"{length:>15}" for length in lengths) + f"{'lowest':>10}")
    for pe, rows in found["results"].items():
        rows = [found["in_range"][pe], *rows.values()]
        cells = [f"{100 * row['accuracy']:6.2f} +- {100 * row['std']:4.2f}" for row in rows]
        lowest = min(min(values) for row in rows for values in row["by_kind_per_seed"].values())
        print(f"{found['labels'][pe]:<22}" + "".join(f"{cell:>15}" for cell in cells) + f"{100 * lowest:10.1f}")


# ------------------------------------------------------------------------------------------------
# 7. Why
#
# Stories about encodings are hypotheses. After a check of the tables (7a) here are three, with what would refute them.


def models_on_disk(args, seeds):
    """{encoding: [model of each seed]} of the encodings whose models are all there."""
    return {pe: [find_model(args, pe, seed)[1] for seed in seeds] for pe in NAMES if complete(args, pe, seeds)}


def accuracy_of(model, lists, kinds, position=None):
    """Balanced accuracy, the numbers standing where `position` (T,) tells."""
    return balanced_accuracy(recalls(logits_of(model, lists, position=position), kinds))


@contextlib.contextmanager
def recording(*modules):
    """Yield a list for each module, to which every forward pass adds its output (by PyTorch's forward hooks)."""
    def keep_in(outputs):
        return lambda module, inputs, output: outputs.append(output)

    seen = [[] for _ in modules]
    handles = [module.register_forward_hook(keep_in(outputs)) for module, outputs in zip(modules, seen)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def head_names(model):
    """The first head of the first layer is L0.H0."""
    return [f"L{i}.H{h}" for i, block in enumerate(model.blocks) for h in range(block.attention.n_head)]


@torch.inference_mode()
def attention_of(model, lists):
    """The attention weights of all heads, in the order of head_names: lists (B, T) -> (B, all heads, T, T)."""
    with recording(*(block.attention.weights for block in model.blocks)) as layers:
        model(lists.to(next(model.parameters()).device))
    return torch.cat([w.cpu() for (w,) in layers], dim=1)


# 7a. What training left in the tables
#
# A learned vector is as good as the examples that needed it. Rows beyond the longest list were never used and have no
# gradient, so they must still be what they were drawn as, times what weight decay takes from every weight, and can tell
# nothing of order. The check: a row from 16 on points exactly where it did at the start.


def table_change(args, model, seed):
    """How far training turned the rows of the learned table: cosine of trained and initial row, (max_len,)."""
    torch.manual_seed(seed)  # as fit() does, so the same rows are drawn again
    drawn = build_model(config_of(args, "learned", seed)).position_table
    return F.cosine_similarity(model.position_table.detach().cpu(), drawn.detach(), dim=1)


# 7b. Unseen positions or unseen length?
#
# A list of 256 is new in three ways: it has positions above 15, distances above 15, and more keys for each query. Lists
# of 16 that start at position 16, 32, ... are new in the first way only: if they are answered as well as those that
# start at 0, unseen positions do no harm. (RoPE and ALiBi know distances only: for them nothing may change, a check.)
# Long lists with all positions squeezed into 0 to 15 (position interpolation, Chen et al. 2023) have neither new
# positions nor new distances: if they are answered badly, length itself does harm. (Not quite a clean cut: the steps
# between neighbours shrink too, to nothing in a learned table, and with them ALiBi's distances.)

OFFSETS = (0, 16, 32, 64, 128, 240)


def positions_or_length(models, data, lengths):
    """Balanced accuracy of lists of 16 by where they start, and of long lists with squeezed positions, per seed."""
    lists, kinds = data["extrapolation/16"]
    found = {"n": {"offset": len(lists), "squeezed": min(400, len(lists))}, "offset": {}, "squeezed": {}}
    for pe in ("sinusoidal", "learned", "rope", "alibi"):
        for model in models.get(pe, []):
            for offset in OFFSETS:
                if pe == "learned" and offset + lists.shape[1] > model.max_len:
                    continue
                accuracy = accuracy_of(model, lists, kinds, torch.arange(lists.shape[1]) + offset)
                found["offset"].setdefault(pe, {}).setdefault(str(offset), []).append(accuracy)
            for length in lengths:
                position = torch.linspace(0, LENGTHS[-1] - 1, length)
                position = position.round().long() if pe == "learned" else position  # a table has no row 3.5
                few, their_kinds = (x[:400] for x in data[f"extrapolation/{length}"])
                accuracy = accuracy_of(model, few, their_kinds, position)
                found["squeezed"].setdefault(pe, {}).setdefault(str(length), []).append(accuracy)
    return found


# 7c. Attention that thins out
#
# Hypothesis: a softmax over more keys spreads, and a head that finds the neighbour among 16 keys loses it among 256.
# Refuted, for an encoding, if the weight on the neighbour stays what it was. We follow the head with the most weight on
# one neighbour at length 16. That its weight falls does not yet prove that this is what breaks the answers.


def attention_by_length(model, data, lengths):
    """{length: {head: entropy of its attention (nats), and mean weight on self and neighbours}}, over 100 lists."""
    table = {}
    for length in lengths:
        lists, total = data[f"extrapolation/{length}"][0][:100], 0
        for chunk in lists.split(rows_at_once(lists)):
            w = attention_of(model, chunk).double()                                       # (B, all heads, T, T)
            left, itself, right = (w.diagonal(offset, dim1=2, dim2=3) for offset in (-1, 0, 1))
            entropy = -torch.special.xlogy(w, w).sum(-1)                                  # (B, all heads, T)
            total += torch.stack([x.mean(-1).sum(0) for x in (entropy, left, itself, right)], dim=1)
        rows = (total / len(lists)).tolist()                                              # (all heads, 4)
        table[str(length)] = {head: dict(zip(("entropy", "left", "self", "right"), row))
                              for head, row in zip(head_names(model), rows)}
    return table


def sharpest(rows):
    """The head, and its side ("left" or "right"), with most weight on one neighbour, of the rows of one length."""
    return max(itertools.product(rows, ("left", "right")), key=lambda place: rows[place[0]][place[1]])


# 7d. What the encoding that works has learned
#
# Hypothesis (for ALiBi): a head looks back from a number only if the one before it is larger, and at the number itself
# otherwise; a vector that has found a larger one raises a flag; the max pool asks whether any flag is up. So take a
# list with two neighbours swapped, and the same list sorted. The first part is refuted if no head looks back from the
# second of the two, and at itself in the sorted list. The rest is tested by activation patching: refuted if the vector
# of that number, put among those of the sorted list, does not turn the answer, or if all the others do without it.


def swapped_pairs(lists, kinds):
    """Of list pairs (N, T) those with two neighbours swapped: sorted and swapped (M, T), place of the second (M,)."""
    swapped = kinds[1::2] == KINDS.index("adjacent_swap")
    clean, corrupt = lists[0::2][swapped], lists[1::2][swapped]
    return clean, corrupt, (corrupt.diff(dim=1) < 0).int().argmax(dim=1) + 1


def looks_back(model, lists, kinds):
    """How the second of two swapped numbers looks back, and how its place does in the sorted list.

    Returns {"sorted" or "swapped": {head: {"before": mean weight on the number before, "itself": on itself}}}.
    """
    *both, place = swapped_pairs(lists, kinds)
    table, size = {}, rows_at_once(lists)
    for name, x in zip(("sorted", "swapped"), both):
        weights = []
        for chunk, here in zip(x.split(size), place.split(size)):
            w, row = attention_of(model, chunk), torch.arange(len(chunk))                # (B, all heads, T, T), (B,)
            weights.append(torch.stack([w[row, :, here, here - 1], w[row, :, here, here]], dim=-1))
        mean = torch.cat(weights).double().mean(0).tolist()                              # (all heads, 2)
        table[name] = {head: dict(zip(("before", "itself"), pair)) for head, pair in zip(head_names(model), mean)}
    return table


@torch.inference_mode()
def patch_states(model, lists, kinds):
    """Mix the vectors before pooling of a sorted list and of the same list with two neighbours swapped.

    lists (N, T), in pairs. Returns the share called unsorted for the vector of the second swapped number alone and for
    all others without it; and the number of pairs, only those that the model gets right.
    """
    clean, corrupt, place = swapped_pairs(lists, kinds)
    clean, corrupt, place = (x.to(next(model.parameters()).device) for x in (clean, corrupt, place))
    with recording(model.norm) as (states,):
        says = [torch.cat([model(chunk) for chunk in x.split(rows_at_once(x))]) > 0 for x in (clean, corrupt)]
    states = torch.cat(states).view(2, *clean.shape, -1)                           # (2, M, T, C)
    right = says[0] & ~says[1]
    clean_states, corrupt_states = states[:, right]
    second = F.one_hot(place, clean.shape[1]).bool()[right][..., None]             # (M, T, 1)
    share = {}
    for name, where in (("alone", second), ("all others", ~second)):
        mixed = torch.where(where, corrupt_states, clean_states)                   # (M, T, C)
        logits = model.read_out(mixed, torch.ones_like(mixed[..., 0], dtype=torch.bool))
        share[name] = (logits.cpu() <= 0).double().mean().item() if right.any() else None
    return share | {"n": int(right.sum())}


# If the answer is made of comparisons of neighbours, each of the 10,000 pairs has to be compared rightly. So ask about
# all of them, in lists whose only step is from a to b.


def pair_table(model):
    """Ask about four times a, then four times b, for all a and b: the logits (100, 100), and how many are wrong."""
    a, b = torch.cartesian_prod(torch.arange(N_NUMBERS), torch.arange(N_NUMBERS)).T
    lists = torch.cat([a[:, None].expand(-1, 4), b[:, None].expand(-1, 4)], dim=1)
    logits = logits_of(model, lists)
    return logits.view(N_NUMBERS, N_NUMBERS), int(((logits > 0) != (a <= b)).sum())


def analyze(args):
    """--mode analyze: the measurements of 7a to 7d, over all model seeds that are there (of one at least)."""
    for pe in args.pe:
        check_length(pe, args.max_len, max(args.lengths))
    out, seeds = common.folder(args.out_dir, "sorting", "analysis"), choose_seeds(args)
    data = load_data(args, [*SPLITS, *(f"extrapolation/{length}" for length in args.lengths)])
    for pe in args.pe:
        for seed in seeds:
            obtain_model(args, pe, seed, data)
    models = models_on_disk(args, seeds)
    labels = {pe: describe(config_of(args, pe, args.model_seed)) for pe in models}
    found = {"seeds": seeds, "lengths": args.lengths}
    if "learned" in models:
        changes = [table_change(args, model, seed) for model, seed in zip(models["learned"], seeds)]
        found["learned_table"] = {"cosine_with_initial_row": [change.tolist() for change in changes]}
        plot_tables(models["learned"][0], changes[0],
                    common.folder(args.out_dir, "sorting", "extrapolation") / "learned_position_embeddings.png")
    plot_sinusoids(args.d_model, out / "sinusoidal_table.png")
    if 16 in args.lengths:
        found["positions_or_length"] = positions_or_length(models, data, args.lengths)
        plot_positions(found["positions_or_length"], labels, out / "positions_or_length.png")
    found["attention"] = {pe: [attention_by_length(model, data, args.lengths) for model in of_seeds]
                          for pe, of_seeds in models.items()}
    plot_attention(found["attention"], labels, args.lengths, out / "attention_by_length.png")
    if "alibi" in models:
        some = {str(length): [x[:2000] for x in data[f"extrapolation/{length}"]] for length in args.lengths}
        patched = {length: [patch_states(model, *some[length]) for model in models["alibi"]] for length in some}
        looks = {length: [looks_back(model, *some[length]) for model in models["alibi"]] for length in some}
        pairs = [pair_table(model) for model in models["alibi"]]
        found["algorithm"] = {"looks_back": looks, "patched": patched, "wrong_pairs": [wrong for _, wrong in pairs]}
        plot_algorithm(models["alibi"][0], *pairs[0], patched, out / "algorithm.png")
    common.write_json(out / "analysis.json", found)
    print_analysis(found)


def print_analysis(found):
    """Print the findings, means over the model seeds, a line each."""
    def mean(values):
        return sum(values) / len(values)

    first, last = str(found["lengths"][0]), str(found["lengths"][-1])
    if "learned_table" in found:
        cosines = torch.tensor(found["learned_table"]["cosine_with_initial_row"])  # (seeds, max_len)
        print(f"learned table: cosine of trained and initial row at least {cosines[:, LENGTHS[-1]:].amin():.4f} for "
              f"untrained rows, at most {cosines[:, :LENGTHS[-1]].amax():.4f} for trained ones")
    if "positions_or_length" in found:
        for key, name, title in (("offset", "16", "lists of 16 that start at position 16"),
                                 ("squeezed", last, f"lists of {last} with positions squeezed into 0 to 15")):
            print(f"{title}: " + ", ".join(f"{pe} {100 * mean(rows[name]):.1f}%"
                                           for pe, rows in found["positions_or_length"][key].items()))
    for pe, tables in found["attention"].items():
        places = [sharpest(table[first]) for table in tables]
        weight = [mean([table[length][head][side] for table, (head, side) in zip(tables, places)])
                  for length in (first, last)]
        print(f"weight on a neighbour, {pe}: {weight[0]:.2f} at {first}, {weight[1]:.2f} at {last}")
    if "algorithm" in found:
        looks = found["algorithm"]["looks_back"][last]
        heads = [max(look["swapped"], key=lambda head: look["swapped"][head]["before"]) for look in looks]
        back = [mean([look[name][head][where] for look, head in zip(looks, heads)])
                for name, where in (("swapped", "before"), ("sorted", "before"), ("sorted", "itself"))]
        print(f"alibi, {' '.join(sorted(set(heads)))}, lists of {last}: the second of two swapped numbers looks at the "
              f"one before with weight {back[0]:.2f}, in the sorted list with {back[1]:.2f}, there at itself with "
              f"{back[2]:.2f}")
        rows = [row for row in found["algorithm"]["patched"][last] if row["n"]]
        if rows:
            shares = [mean([row[key] for row in rows]) for key in ("alone", "all others")]
            print(f"alibi calls a sorted list unsorted with only the vector of that number in {100 * shares[0]:.1f}%, "
                  f"with all vectors but that one in {100 * shares[1]:.1f}%")
        print(f"alibi errs on {found['algorithm']['wrong_pairs']} of {N_NUMBERS ** 2:,} lists a a a a b b b b")


# ------------------------------------------------------------------------------------------------
# 8. Pictures
#
# No new ideas in here: the figures of sections 5 to 7, in that order.

def draw_recalls(axis, plt, x, recalls_):
    """Draw one line for each kind over x: recalls_ is a list of {kind: share}."""
    for i, (name, marker) in enumerate(zip(KINDS, "os^vD*")):
        axis.plot(x, [100 * recall.get(name, math.nan) for recall in recalls_], marker=marker, markersize=4,
                  linewidth=1.5, color="black" if name == "sorted" else plt.cm.viridis((i - 1) / 4.5),
                  label=name.replace("_", " "))


def plot_training(training_log, path):
    """Draw loss, balanced accuracy and the recall of every kind over the steps."""
    plt, history, config = common.pyplot(), training_log["history"], training_log["config"]
    steps = [row["step"] for row in history]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 4))
    left.plot(steps, [row["train_loss"] for row in history], label="training", color="tab:gray")
    left.plot(steps, [row["val_loss"] for row in history], label="validation", color="tab:blue", linestyle="--")
    left.axhline(math.log(2), color="black", linewidth=1, linestyle=":", label="guessing, ln 2")
    left.set(title="Loss", xlabel="training step", ylabel="cross-entropy (nats)", yscale="log")
    middle.plot(steps, [100 * row["val_accuracy"] for row in history], color="tab:blue", marker=".")
    middle.axhline(50, color="black", linewidth=1, linestyle=":", label="chance")
    middle.set(title=f"{describe(config)}: test accuracy {100 * training_log['test']['accuracy']:.1f}%",
               xlabel="training step", ylabel="validation, balanced accuracy (%)", ylim=(45, 102))
    draw_recalls(right, plt, steps, [row["val_recall"] for row in history])
    right.set(title="By kind of list", xlabel="training step", ylabel="validation lists right (%)", ylim=(-3, 103))
    for axis in (left, middle, right):
        axis.legend(fontsize=9)
    common.save_figure(figure, path)


LOOKS = {"sinusoidal": ("tab:blue", "o", "-"), "learned": ("tab:orange", "s", "--"), "none": ("black", "^", "-."),
         "rope": ("tab:purple", "v", "--"), "alibi": ("tab:green", "*", "-"), "randomized": ("tab:red", "D", ":")}


def draw_lengths(axis, found, pick):
    """Draw mean and range over the seeds against the length, of what pick(row of the results) returns for each seed."""
    axis.axvspan(LENGTHS[0], LENGTHS[-1], color="0.88", zorder=0)
    for pe, rows in found["results"].items():
        colour, marker, line = LOOKS[pe]
        asked = pe in ("sinusoidal", "learned", "none")  # the three that everybody compares
        shares = 100 * torch.tensor([pick(rows[str(length)]) for length in found["lengths"]])  # (lengths, seeds)
        axis.plot(found["lengths"], shares.mean(1), color=colour, marker=marker, linestyle=line,
                  label=found["labels"][pe], linewidth=3 if asked else 1.5, markersize=8 if marker == "*" else 5)
        axis.fill_between(found["lengths"], shares.amin(1), shares.amax(1), color=colour, linewidth=0,
                          alpha=0.04 if pe == "none" else 0.15)
    axis.set_xscale("log", base=2)
    axis.set_xticks(found["lengths"], found["lengths"])
    axis.minorticks_off()


def plot_extrapolation(found, path):
    """Draw the balanced accuracy of every encoding against the length of the lists."""
    plt, n, longest = common.pyplot(), len(found["seeds"]), found["lengths"][-1]
    figure, axis = plt.subplots(figsize=(9, 4.8))
    draw_lengths(axis, found, lambda row: row["per_seed"])
    axis.axhline(50, color="black", linewidth=1, linestyle=":")
    axis.text(LENGTHS[0], 50.6, " chance")
    axis.text(math.sqrt(LENGTHS[0] * LENGTHS[-1]), 103, "trained on", ha="center", color="0.4")
    holds = [found["labels"][pe] for pe, rows in found["results"].items() if rows[str(longest)]["accuracy"] > 0.9]
    axis.set(title=f"Is the list sorted?  Above 90% at length {longest}: {' and '.join(holds) or 'none'}",
             xlabel="numbers in the list", ylabel="balanced accuracy (%)", ylim=(44, 106))
    axis.legend(title=f"{n} model seed{'s: mean and range' if n > 1 else ''}", fontsize=10, loc="center left",
                bbox_to_anchor=(1, 0.5))
    common.save_figure(figure, path)


def plot_kinds(found, path):
    """Draw the recall of every kind of list against its length, a panel for each kind."""
    plt = common.pyplot()
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), sharex=True, sharey=True)
    for axis, kind in zip(axes.flat, KINDS):
        draw_lengths(axis, found, lambda row: row["by_kind_per_seed"].get(kind, [math.nan]))
        axis.set(title=kind.replace("_", " "), ylim=(-4, 104))
    figure.supxlabel("numbers in the list (shaded: those trained on)")
    figure.supylabel("lists of this kind right (%)")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names),
                  title="Who sees what: sorted lists, and five kinds of disorder")
    common.save_figure(figure, path)


def plot_tables(model, change, path):
    """Draw the learned table, the similarity of its rows, and how far training turned them."""
    plt, table = common.pyplot(), model.position_table.detach().cpu()
    shown, last = min(len(table), 3 * LENGTHS[-1]), LENGTHS[-1] - 0.5
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.6))
    image = left.imshow(table[:shown], cmap="RdBu", vmin=-2, vmax=2, aspect="auto", interpolation="nearest")
    left.set(title="The learned table", xlabel="channel", ylabel="position")
    figure.colorbar(image, ax=left, label="value")
    rows = F.normalize(table[:shown], dim=1)
    image = middle.imshow(rows @ rows.T, cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
    middle.set(title="Similarity of its rows", xlabel="position", ylabel="position")
    figure.colorbar(image, ax=middle, label="cosine")
    right.plot(range(shown), change[:shown], marker="o", markersize=4, linewidth=1)
    right.set(title="How far training turned each row", xlabel="position", ylim=(0, 1.05),
              ylabel="cosine of trained and initial row")
    for axis in (left, middle):
        axis.axhline(last, color="black", linewidth=1.5)
        axis.grid(False)
    middle.axvline(last, color="black", linewidth=1.5)
    right.axvspan(-0.5, last, color="0.88", zorder=0, label="positions in training")
    right.legend(loc="lower left")
    common.save_figure(figure, path)


def plot_sinusoids(d_model, path):
    """Draw the sinusoidal table and the dot product of two of its rows by their offset."""
    plt, table = common.pyplot(), sinusoidal(torch.arange(256), d_model)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6))
    image = left.imshow(table, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    left.axhline(LENGTHS[-1] - 0.5, color="black", linewidth=1.5)
    left.text(d_model / 2, LENGTHS[-1] + 8, "not trained on from here", ha="center", va="top",
              bbox={"facecolor": "white", "edgecolor": "none"})
    left.set(title="The sinusoidal table", xlabel="channel (sine and cosine in turn)", ylabel="position")
    left.grid(False)
    figure.colorbar(image, ax=left, label="value")
    for start, style in ((0, "-"), (100, "--")):
        dots = table[start:start + 65] @ table[start]
        right.plot(range(65), dots, linestyle=style, label=f"rows {start} and {start} + offset")
    right.axvspan(0, LENGTHS[-1] - 1, color="0.88", zorder=0, label="offsets in training")
    right.set(title="Two rows' dot product depends on the offset only", xlabel="offset (positions)",
              ylabel="dot product")
    right.legend()
    common.save_figure(figure, path)


def plot_positions(found, labels, path):
    """Draw both halves of positions_or_length."""
    plt = common.pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), sharey=True)
    for axis, key in zip(axes, ("offset", "squeezed")):
        for pe, rows in found[key].items():
            colour, marker, line = LOOKS[pe]
            shares = torch.tensor([[100 * share for share in row] for row in rows.values()])
            x = range(len(rows))
            axis.plot(x, shares.mean(1), color=colour, marker=marker, linestyle=line, label=labels[pe])
            axis.fill_between(x, shares.amin(1), shares.amax(1), color=colour, alpha=0.15, linewidth=0)
            axis.set_xticks(x, rows)
        axis.axhline(50, color="black", linewidth=1, linestyle=":")
    axes[0].set(title="Unseen positions: lists of 16 that start further on", xlabel="position of the first number",
                ylabel="balanced accuracy (%)", ylim=(44, 103))
    axes[1].set(title="Unseen length: positions squeezed into 0 to 15", xlabel="numbers in the list")
    axes[0].legend(title="mean and range over model seeds", fontsize=10, loc="center right")
    common.save_figure(figure, path)


def plot_attention(tables, labels, lengths, path):
    """Draw, for the head of each model that looks most at a neighbour at length 16, its mass there and its entropy."""
    plt = common.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6))
    for pe, of_seeds in tables.items():
        masses, entropies = [], []
        for table in of_seeds:
            name, side = sharpest(table[str(lengths[0])])
            masses.append([table[str(length)][name][side] for length in lengths])
            entropies.append([table[str(length)][name]["entropy"] for length in lengths])
        colour, marker, line = LOOKS[pe]
        for axis, values in ((left, masses), (right, entropies)):
            values = torch.tensor(values)
            axis.plot(lengths, values.mean(0), color=colour, marker=marker, linestyle=line, label=labels[pe])
            axis.fill_between(lengths, values.amin(0), values.amax(0), color=colour, alpha=0.15, linewidth=0)
    right.plot(lengths, [math.log(length) for length in lengths], color="0.6", linewidth=1,
               label="uniform, no mask: ln L")
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, lengths)
        axis.minorticks_off()
        axis.set_xlabel("numbers in the list")
    left.set(title=f"Attention of the head that looks most at a neighbour\n(chosen at length {lengths[0]})",
             ylabel="mean weight on that neighbour", ylim=(-0.03, 1.03))
    right.set(title="Entropy of its attention\n", ylabel="entropy (nats)")
    right.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    common.save_figure(figure, path)


def plot_algorithm(model, pairs, wrong, patched, path):
    """Draw what every head attends to in a list with one swap, the answers for all pairs, and the patching."""
    plt, numbers = common.pyplot(), [3, 15, 27, 34, 41, 58, 52, 63, 72, 88]
    heads = zip(head_names(model), attention_of(model, torch.tensor([numbers]))[0])  # (T, T) each
    figure, axes = plt.subplots(2, 3, figsize=(13.5, 9))
    for axis, (name, w) in zip(axes[:, :2].flat, heads):  # the first four
        image = axis.imshow(w, vmin=0, vmax=1, cmap="Blues")
        axis.set_xticks(range(len(numbers)), numbers)
        axis.set_yticks(range(len(numbers)), numbers)
        axis.set(title=f"Head {name}", xlabel="looking at", ylabel="looking from")
        axis.grid(False)
    figure.colorbar(image, ax=axes[:, :2], label="attention weight", location="bottom", shrink=0.6, pad=0.02)
    figure.suptitle("ALiBi: what its heads look at in a list with 58 and 52 swapped; all pairs of numbers; patching")
    top, bottom = axes[:, 2]
    image = top.imshow(pairs.sigmoid(), vmin=0, vmax=1, cmap="PiYG", origin="lower")
    top.set(title=f"a a a a b b b b: {wrong:,} of {N_NUMBERS ** 2:,} wrong", xlabel="b", ylabel="a")
    top.grid(False)
    figure.colorbar(image, ax=top, label="probability of sorted")
    names = ("alone", "all others")
    for i, (length, row) in enumerate(patched.items()):
        shares = [[100 * share[name] for name in names] for share in row if share["n"]]
        if not shares:  # no pair to mix that the models get right
            continue
        shares = torch.tensor(shares)  # (seeds, 2)
        x = [k + (i - (len(patched) - 1) / 2) * 0.8 / len(patched) for k in range(len(names))]
        bottom.bar(x, shares.mean(0), width=0.7 / len(patched), color=plt.cm.viridis(i / len(patched)),
                   label=f"lists of {length}", yerr=[shares.mean(0) - shares.amin(0), shares.amax(0) - shares.mean(0)])
    bottom.set_xticks(range(len(names)), ["only the vector of the\nsecond swapped number", "all vectors\nbut that one"])
    bottom.set(title="Vectors of a swapped list\nput into the sorted one", ylabel="now called unsorted (%)",
               ylim=(0, 119))
    if bottom.patches:
        bottom.legend(loc="upper right", fontsize=9)
    common.save_figure(figure, path)


# ------------------------------------------------------------------------------------------------
# 9. Asking the trained model

MOST_ASKED = 4096  # numbers in one list


def parse_list(text):
    """Return the numbers in a text such as "3 15 27" or "3, 15, 27"; UserError if it holds anything else."""
    if not re.fullmatch(r"\s*[0-9]{1,9}(?:(?:\s*,\s*|\s+)[0-9]{1,9})*\s*", text):
        raise UserError(f'expected numbers such as "3 15 27 41", found {text.strip()[:40]!r}')
    numbers = [int(number) for number in re.findall(r"[0-9]+", text)]
    if max(numbers) >= N_NUMBERS:
        raise UserError(f"{max(numbers)} in {text.strip()[:40]!r}: this model knows the numbers from 0 to "
                        f"{N_NUMBERS - 1} only")
    if len(numbers) > MOST_ASKED:
        raise UserError(f"{len(numbers):,} numbers in one list; {MOST_ASKED:,} are the most, for attention compares "
                        f"each with each")
    return numbers


def infer(args, typed):
    """--mode infer: answer the lists on the command line, or those on standard input, one a line, after `-`."""
    pe = args.pe[0] if "pe" in typed else "alibi"
    path = Path(args.out_dir) / "sorting" / pe / "best_model.pth"
    model, config = common.load_checkpoint(path, SCRIPT, build_model)
    conflict = {name: typed[name] for name in CONFIG_FLAGS & typed.keys() - {"pe"} if config.get(name) != typed[name]}
    if conflict:
        raise UserError(f"{path} was trained with {common.difference(config, conflict)}; leave those flags out, or "
                        f"train anew with --mode train")
    model = model.to(args.device)
    live = args.sequences == ["-"] and sys.stdin.isatty()
    if args.sequences == ["-"]:
        texts = (line.decode(errors="replace") for line in sys.stdin.buffer if line.strip())
    else:
        texts = iter(args.sequences)
    for chunk in iter(lambda: list(itertools.islice(texts, 1 if live else 256)), []):
        lists, error = [], None
        for text in chunk:
            try:
                numbers = parse_list(text)
                check_length(pe, config["max_len"], len(numbers))
                lists.append(numbers)
            except UserError as first_error:  # what comes before it is still answered
                error = first_error
                break
        if lists:
            for probability in logits_of(model, pad(lists)).double().sigmoid().tolist():
                answer = "sorted" if probability > 0.5 else "unsorted"
                print(f"{answer} {max(probability, 1 - probability):.3f}", flush=live)
        if error:
            raise error


# ------------------------------------------------------------------------------------------------
# 10. The command line


def names_from(known, everything=None):
    """An argparse type: names out of `known`, separated by commas; `everything` stands for all of them."""
    def parse(text):
        names = [*known] if text == everything else text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0][:40]!r} is none of {', '.join(known)}")
        return names
    return parse


def command_line():
    """Declare every flag, once, with its default and its reason."""
    number, parser = common.number, common.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sequences", nargs="*", help='with --mode infer: "3 15 27" ..., or - to read standard input')
    modes = ["all", "gendata", "train", "extrapolate", "analyze", "infer"]
    parser.add_argument("--mode", choices=modes, default="all", help=f"what to do; all is {', '.join(modes[1:5])}")
    parser.add_argument("--pe", type=names_from(NAMES, "all"), default="sinusoidal,learned,none,alibi",
                        help=f"encodings, separated by commas: {', '.join(NAMES)}; or all; with infer one")
    data = parser.add_argument_group("data")
    some = number(int, 2, 10**7)
    data.add_argument("--n-train", type=some, default=10_000, metavar="N", help="lists to learn from")
    data.add_argument("--n-val", type=some, default=2_000, metavar="N", help="lists to choose the best weights by")
    data.add_argument("--n-test", type=some, default=2_000, metavar="N", help="lists of the same lengths for the test")
    data.add_argument("--n-long", type=some, default=2_000, metavar="N", help="lists of each of the --lengths")
    data.add_argument("--lengths", type=number(int, 8, 4096), nargs="+", default=[16, 32, 64, 128, 256], metavar="L",
                      help="numbers in the lists of --mode extrapolate")
    data.add_argument("--kinds", type=names_from(KINDS[1:]), default=[*KINDS[1:]], metavar="KIND,...",
                      help="kinds of disorder to learn from, in turn")
    data.add_argument("--narrow", type=number(float, 0, 1), default=0.5,
                      help="share of the lists to learn from with numbers out of a narrow window")
    data.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=641, help="which lists are drawn")
    data.add_argument("--data-dir", default="data", help="where the lists are kept")
    data.add_argument("--out-dir", default="out", help="where the results go")
    model = parser.add_argument_group("model")
    boolean = argparse.BooleanOptionalAction
    model.add_argument("--causal", action=boolean, help="look at earlier numbers only (only alibi does unless told)")
    model.add_argument("--n-layer", type=number(int, 1, 100), default=2, help="blocks")
    model.add_argument("--n-head", type=number(int, 1, 999), default=2, help="heads of an attention")
    model.add_argument("--d-model", type=number(int, 2, 8192), default=32, help="channels that represent a number")
    model.add_argument("--d-ff", type=number(int, 1, 65536), default=64, help="hidden units of a feed-forward network")
    model.add_argument("--pool", choices=["max", "mean"], default="max", help="how one vector is made of the list")
    model.add_argument("--max-len", type=number(int, 16, 65536), default=256,
                       help="positions that learned and randomized have")
    model.add_argument("--slope", type=number(float, 0), default=4.0, help="of the first head of alibi")
    training = parser.add_argument_group("training")
    training.add_argument("--model-seed", type=number(int, 0, 2**63 - 1), default=1, help="weights and batch order")
    training.add_argument("--steps", type=number(int, 1, 10**9), default=3000, help="batches to learn from")
    training.add_argument("--batch-size", type=number(int, 1, 10**6), default=192, help="lists a batch")
    training.add_argument("--lr", type=number(float, 0), default=1e-2, help="highest learning rate")
    training.add_argument("--warmup", type=number(int, 1, 10**9), default=100, help="steps to reach it")
    training.add_argument("--weight-decay", type=number(float, 0), default=0.01, help="of matrices, not of biases")
    training.add_argument("--shift", action=boolean, default=True, help="add a random amount to all numbers of a list")
    training.add_argument("--eval-every", type=number(int, 1, 10**9), default=100, help="steps between validations")
    training.add_argument("--model-seeds", type=number(int, 1, 1000), metavar="N",
                          help="how many model seeds to compare, counted from --model-seed "
                               "(as many as there are models of; at least 1, with --mode extrapolate 5)")
    training.add_argument("--resume", action="store_true",
                          help="with --mode train: take up an interrupted training where it last validated")
    machine = parser.add_argument_group("machine")
    devices = ["auto", "cpu", "cuda", "mps"]
    machine.add_argument("--device", choices=devices, default="auto", help="auto is cuda, else cpu")
    machine.add_argument("--threads", type=number(int, 1, 1024), default=2, help="CPU threads")
    return parser


def main():
    """Check what argparse cannot check, then do what --mode says."""
    args, typed = command_line().parse()
    if args.d_model % (2 * args.n_head):
        fitting = math.ceil(args.d_model / (2 * args.n_head)) * 2 * args.n_head
        raise UserError(f"--d-model {args.d_model} cannot be cut into --n-head {args.n_head} heads with an even number "
                        f"of channels each; try --d-model {fitting}")
    if (args.mode == "infer") != bool(args.sequences):
        raise UserError('lists go with --mode infer and it with them, as in --mode infer "3 15 27 41"')
    if args.mode == "infer" and "pe" in typed and len(args.pe) > 1:
        raise UserError("--mode infer asks one model; name one --pe")
    if odd := [name for name in SIZES if getattr(args, name) % 2]:
        raise UserError(f"--{odd[0].replace('_', '-')} must be even: each sorted list goes with an unsorted one")
    if args.resume and args.mode != "train":
        raise UserError("--resume goes with --mode train; extrapolate and analyze use finished models anyway")
    args.lengths = sorted(set(args.lengths))
    args.device = common.pick_device(args.device, args.threads)
    if args.mode in ("all", "gendata"):
        generate_data(args)
    if args.mode in ("all", "train"):
        data = load_data(args, SPLITS)
        for pe in args.pe:
            if args.resume and is_finished(args, pe):
                log(f"{pe} is trained already")
            else:
                train(args, pe, data)
    if args.mode in ("all", "extrapolate"):
        extrapolate(args)
    if args.mode in ("all", "analyze"):
        analyze(args)
    if args.mode == "infer":
        infer(args, typed)


if __name__ == "__main__":
    common.run(main)
