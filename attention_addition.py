"""How does a transformer add?  Attention from scratch, on a problem small enough to check completely.

An encoder reads a problem such as `347+159` one character at a time, a decoder writes the sum `0506` one digit at a
time, and nobody tells them what a digit is worth, what a column is or what a carry is. The model sees 10,000 problems
for 1,000 steps, some 14 seconds on two cores. Then we try it on all 810,000 that exist, expecting no error, and take it
apart: where does each head look, which can go, and which one moves the carry?

    python attention_addition.py                                the next three, in order
    python attention_addition.py --mode gendata                 write data/addition/*.jsonl
    python attention_addition.py --mode train                   train, then try every problem there is
    python attention_addition.py --mode analyze                 look inside, about a minute
    python attention_addition.py --mode infer 347+159 999+999   ask the trained model
    python attention_addition.py --help                         all flags

Read it from the top: the task, the data, attention, the model, decoding, training, looking inside, the command line.
Comments give the shape of each tensor: N problems in all or B in a batch, n digits in a number, T query tokens, S key
tokens, C = d_model channels, d_head = C / n_head of them for each head.
It runs on torch >= 2.0.
"""
import argparse
import contextlib
import copy
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
# 1. The task and its tokens
#
# Token 0-9 is that digit, 10 is `+`, 11 starts an answer. A problem of two n-digit numbers is a source of
# 2n + 1 tokens and a target of n + 1 digits, zero-padded, the most significant first:
#
#     347+159   source 3 4 7 + 1 5 9    target 0 5 0 6
#
# The decoder is fed the start token and then the digits written so far, and must name the next one. That
# start token matters: without it the decoder is handed the first digit, is asked for the second, and never
# learns to write the first. (--no-start trains one like that. How well it does on the other digits hides it, its own
# answers do not.)

PLUS, START, N_TOKENS = 10, 11, 12


def to_digits(numbers, width):
    """Split integers into decimal digits, most significant first: (N,) -> (N, width)."""
    return numbers[:, None] // 10 ** torch.arange(width - 1, -1, -1) % 10


def to_numbers(digits):
    """The inverse of to_digits: (N, width) -> (N,)."""
    return (digits * 10 ** torch.arange(digits.shape[1] - 1, -1, -1)).sum(1)


def tokenize(a, b, num_digits):
    """Turn the sums a + b, two (N,) tensors, into source (N, 2n+1) and target (N, n+1)."""
    plus = torch.full((len(a), 1), PLUS)
    source = torch.cat([to_digits(a, num_digits), plus, to_digits(b, num_digits)], dim=1)
    return source, to_digits(a + b, num_digits + 1)


# ------------------------------------------------------------------------------------------------
# 2. The data
#
# a+b and b+a count as one problem: were one in training and the other in the test, the test would be a little
# easier than it looks. So each unordered pair is drawn at most once; which number comes first is random. The files are
# JSON Lines:
#
#     {"input": [5, 0, 7, 10, 1, 5, 9], "target": [0, 6, 6, 6]}
#
# What is hard about adding is rare in random problems. A column that sums to nine passes on the carry that
# arrives, if one does: 347+652 is 0999, but 348+652 is 1000, and the first digit hangs on the last. A model
# trained on 10,000 random problems may answer all test problems right and still err, mostly where nines and tens
# meet: 112+387=599, it says. So in about half of the training problems, --cascades, most columns are changed to sum
# to nine or ten. The validation and test problems, which measure, stay purely random.

SPLITS = ("train", "val", "test")


def operand_range(num_digits, leading_zeros):
    """The smallest operand and how many there are: (100, 900) for 3 digits, (0, 1000) with leading zeros."""
    low = 0 if leading_zeros else 10 ** (num_digits - 1)
    return low, 10 ** num_digits - low


def make_cascade(a, b, num_digits, rng):
    """Return b with most of its digits replaced so that their columns sum to nine or to ten."""
    digits = ""
    for x, y in zip(f"{a:0{num_digits}}", f"{b:0{num_digits}}"):
        if rng.random() < 0.7:
            total = 9 + int(2 * rng.random())
            y = str(min(9, total - int(x)))  # with 0 there is no ten: 0 + 9 is as far as it goes
        digits += y
    return int(digits)


def draw_problems(num_digits, leading_zeros, sizes, cascades, seed):
    """Draw different problems, no two of them mirror images: {split: list of (a, b)} for sizes {split: n}.

    Test and validation come first and are plain random problems. Of training, the share `cascades` is changed by
    make_cascade. random.random() is the one generator whose numbers Python promises never to change.
    """
    low, count = operand_range(num_digits, leading_zeros)
    rng, seen, problems = random.Random(seed), set(), {split: [] for split in SPLITS}
    for split in reversed(SPLITS):
        while len(problems[split]) < sizes[split]:
            a, b = low + int(count * rng.random()), low + int(count * rng.random())
            if split == "train" and rng.random() < cascades:
                b = make_cascade(a, b, num_digits, rng)
            pair = (min(a, b), max(a, b))
            if b >= low and pair not in seen:  # a cascade may have put a zero first
                seen.add(pair)
                problems[split].append((a, b))
    return problems


# The files: how many problems, made with which settings, and whether they are what they should be. Nothing about adding
# in here, go on with section 3.

DEFAULT_SIZES = (10_000, 2_000, 2_000)


def split_sizes(args):
    """How many problems to draw for train, val, test. UserError if there are not that many.

    If no flag gives a size, the defaults shrink together where there are too few problems for them.
    """
    _, count = operand_range(args.num_digits, args.leading_zeros)
    n_pairs = count * (count + 1) // 2
    asked = (args.n_train, args.n_val, args.n_test)
    scale = min(1, n_pairs / sum(DEFAULT_SIZES)) if asked == (None, None, None) else 1
    sizes = [int(scale * default) if size is None else size for size, default in zip(asked, DEFAULT_SIZES)]
    if sum(sizes) > n_pairs:
        raise UserError(f"--n-train, --n-val and --n-test come to {sum(sizes):,} problems, but there are only "
                        f"{n_pairs:,} of {args.num_digits} digits (a+b and b+a count as one); ask for fewer")
    return sizes


def data_settings(args):
    """What the data files depend on, kept beside them so that they are never taken for something else."""
    flags = {name: getattr(args, name) for name in ("seed", "num_digits", "leading_zeros", "cascades")}
    return flags | {"sizes": dict(zip(SPLITS, split_sizes(args)))}


def generate_data(args):
    """--mode gendata: write train.jsonl, val.jsonl, test.jsonl and settings.json."""
    folder, settings = common.folder(args.data_dir, "addition"), data_settings(args)
    problems = draw_problems(args.num_digits, args.leading_zeros, settings["sizes"], args.cascades, args.seed)
    records = {}
    for split, pairs in problems.items():
        source, target = tokenize(*torch.tensor(pairs).T, args.num_digits)
        records[split] = [{"input": x, "target": y} for x, y in zip(source.tolist(), target.tolist())]
    common.write_data(folder, records, settings)
    sizes = ", ".join(f"{size:,} {split}" for split, size in settings["sizes"].items())
    log(f"data: wrote {sizes} problems of {args.num_digits} digits to {folder}, seed {args.seed}")


def check_record(record, num_digits):
    """Return the problem (a, b) that one line of a data file holds; ValueError if it is not a right sum."""
    try:
        a, b = (int("".join(map(str, x))) for x in (record["input"][:num_digits], record["input"][num_digits + 1:]))
        source = [*map(int, f"{a:0{num_digits}}"), PLUS, *map(int, f"{b:0{num_digits}}")]
        target = [*map(int, f"{a + b:0{num_digits + 1}}")]
        if (record["input"], record["target"]) == (source, target):
            return a, b
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"expected the tokens of a right sum of {num_digits}-digit numbers, found {str(record)[:80]}")


def load_data(args):
    """Return {split: (N, 2) tensor of problems a, b}, making the files if there are none.

    UserError if the files were made with other settings than the flags ask for, or hold anything but sums.
    """
    folder, wanted = Path(args.data_dir) / "addition", data_settings(args)
    common.ready_data(folder, wanted, lambda: generate_data(args))
    problems = {}
    for split in SPLITS:
        records = common.read_jsonl(folder / f"{split}.jsonl", lambda record: check_record(record, args.num_digits))
        if len(records) != (size := wanted["sizes"][split]):
            raise UserError(f"{folder / split}.jsonl has {len(records):,} problems, expected {size:,}; "
                            f"type --mode gendata to make it anew")
        problems[split] = torch.tensor(records, dtype=torch.long).reshape(-1, 2)
    return problems


# ------------------------------------------------------------------------------------------------
# 3. Attention, in four rungs
#
# Three learned matrices make of each token's vector its query q (what it looks for), its key k (what it is found
# by) and its value v (what it passes on).
#
# Rung 1, one query: a soft look-up. A dictionary compares a query with its keys and returns the value of the
# one that matches. Attention compares with all keys, by dot product, turns the scores into weights that sum
# to 1, and returns the weighted mean of all values. No step is all or nothing, so gradients reach every part.
#
#     weights = softmax(q k^T / sqrt(d))   q (d,), k (S, d): (S,)        output = weights v   v (S, e): (e,)
#
# Rung 2, all queries at once: T queries against S keys are one matrix product, and so are the T means. The
# formulas stay as they are, with q (T, d): the weights are (T, S), the output (T, e).
#
# Rung 3, a mask: a score of -infinity is a weight of 0. That is how a decoder is kept from looking at the
# digits it has yet to write.
#
# Rung 4, several heads: the weights of one softmax sum to 1, so a head that looks at two tokens gives each about
# half and gets a blend. So the channels are cut into n_head groups of d_head = C / n_head, each group looks where
# it wants, and the results are laid side by side again.


def softmax(scores):
    """Turn the scores (..., S) of each row into weights that are positive and sum to 1; if all are -infinity, into 0.

    The largest score is taken off first, which changes nothing and keeps e^score from overflowing. It leaves the
    largest term at e^0 = 1, so the sum is at least 1, and the two clamps act only on rows that are all -infinity.
    (torch.softmax does the same, but makes NaN of such rows. On rows as short as ours these lines happen to be several
    times as fast.)
    """
    # detach: it cancels, so no gradient need pass through it
    largest = scores.detach().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)  # (..., 1)
    weights = (scores - largest).exp()
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1)


def scaled_dot_product_attention(q, k, v, mask=None):
    """Rungs 1 to 3: softmax(q k^T / sqrt(d)) v, "Attention Is All You Need" (Vaswani et al. 2017), section 3.2.1.

    q (..., T, d), k (..., S, d), v (..., S, e); mask, broadcast to (..., T, S), is True where a query may look.
    Returns the output (..., T, e) and the weights (..., T, S). A query that may look nowhere gets zeros.

    By hand: d = 4, so scores are divided by 2. The query scores 2 ln 3 / 2 = ln 3 with the first key and 0 with the
    second. Their weights are as e^(ln 3) : e^0 = 3 : 1, and the output is 3/4 of the first value, 1/4 of the second.

    >>> q = torch.tensor([[2 * math.log(3), 0, 0, 0]])
    >>> k = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    >>> v = torch.tensor([[8.0], [4.0]])
    >>> output, weights = scaled_dot_product_attention(q, k, v)
    >>> weights, output.round()
    (tensor([[0.7500, 0.2500]]), tensor([[7.]]))
    """
    # The dot product of two vectors of d independent entries of mean 0 and variance 1 has variance d. Divided by
    # sqrt(d) it has variance 1 whatever d is, and the softmax is neither flat nor stuck on one key.
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = softmax(scores)  # (..., T, S), rows that sum to 1
    return weights @ v, weights


class MultiHeadAttention(nn.Module):
    """Rung 4: n_head attentions side by side, each on d_model / n_head channels of its own (section 3.2.2).

    The queries come from x (B, T, C), keys and values from `memory` (B, S, C): the same tensor in self-attention,
    the encoder's output in cross-attention. With a causal mask it is the decoder's self-attention.
    """

    def __init__(self, d_model, n_head):
        super().__init__()
        self.n_head = n_head
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key_value = nn.Linear(d_model, 2 * d_model, bias=False)  # two matrices in one, for speed
        self.output = nn.Linear(d_model, d_model, bias=False)
        # nn.Linear draws weights of variance 1/(3C), so q and k start with variance 1/3 and not 1, the scores with a
        # standard deviation of 1/3, and every head looks everywhere alike. Doubled, q and k have variance 4/3: heads
        # differ from the first step on, and the plateau at the start of training is shorter.
        with torch.no_grad():
            self.query.weight.mul_(2)
            self.key_value.weight[:d_model].mul_(2)
        # These two change nothing. They give a name to what passes through, so that section 7 can read or replace it.
        self.weights = nn.Identity()  # (B, n_head, T, S)
        self.heads = nn.Identity()    # (B, n_head, T, d_head)

    def forward(self, x, memory, mask=None):
        def split(y):  # (B, tokens, C) -> (B, n_head, tokens, d_head)
            return y.view(B, -1, self.n_head, C // self.n_head).transpose(1, 2)

        B, T, C = x.shape
        k, v = self.key_value(memory).chunk(2, dim=-1)                   # (B, S, C) each
        q, k, v = split(self.query(x)), split(k), split(v)
        heads, weights = scaled_dot_product_attention(q, k, v, mask)     # (B, n_head, T, d_head), (B, n_head, T, S)
        self.weights(weights)                                            # the result is not used, see above
        heads = self.heads(heads).transpose(1, 2).reshape(B, T, C)       # the heads side by side
        return self.output(heads)                                        # and mixed: (B, T, C)


# ------------------------------------------------------------------------------------------------
# 4. The model
#
# Every part of a block reads a normalised copy of x and adds its result to x (a residual connection). To normalise
# before each part ("pre-norm") trains more stably than to normalise after the addition, as the paper does. Attention
# moves information between tokens, the feed-forward network then works on each token alone.


def feed_forward(d_model, d_ff):
    """Two layers, for each token by itself: (..., C) -> (..., C)."""
    return nn.Sequential(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Linear(d_ff, d_model))


class EncoderBlock(nn.Module):
    """Every token of the problem looks at every other."""

    def __init__(self, d_model, n_head, d_ff):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.self_attention = MultiHeadAttention(d_model, n_head)
        self.feed_forward = feed_forward(d_model, d_ff)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.self_attention(y, y)
        return x + self.feed_forward(self.norm2(x))  # (B, 2n+1, C)


class DecoderBlock(nn.Module):
    """Every token of the answer looks at itself and those before it, then at the whole problem."""

    def __init__(self, d_model, n_head, d_ff):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(d_model) for _ in range(3))
        self.self_attention = MultiHeadAttention(d_model, n_head)
        self.cross_attention = MultiHeadAttention(d_model, n_head)
        self.feed_forward = feed_forward(d_model, d_ff)

    def forward(self, x, memory, causal_mask):
        y = self.norm1(x)
        x = x + self.self_attention(y, y, causal_mask)
        x = x + self.cross_attention(self.norm2(x), memory)
        return x + self.feed_forward(self.norm3(x))  # (B, T, C)


class Adder(nn.Module):
    """An encoder-decoder transformer from problems of num_digits digits to their sums.

    Digits are passed in and out in the order in which we read them. Inside, and in decode(), they stand in the order in
    which they are written: the same or, with `reverse`, units first, as we add on paper. Then a carry is known by the
    time it is needed.
    """

    def __init__(self, num_digits, n_layer, n_head, d_model, d_ff, reverse=False):
        super().__init__()
        self.reverse = reverse
        self.token_embedding = nn.Embedding(N_TOKENS, d_model)
        self.source_position = nn.Embedding(2 * num_digits + 1, d_model)  # attention by itself does not see the order,
        self.target_position = nn.Embedding(num_digits + 1, d_model)      # so each place has a learned vector
        self.encoder = nn.ModuleList(EncoderBlock(d_model, n_head, d_ff) for _ in range(n_layer))
        self.decoder = nn.ModuleList(DecoderBlock(d_model, n_head, d_ff) for _ in range(n_layer))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.to_logits = nn.Linear(d_model, 10, bias=False)  # an answer holds digits only
        for embedding in (self.token_embedding, self.source_position, self.target_position):
            nn.init.normal_(embedding.weight, std=0.5)

    def encode(self, source):
        """source (B, 2n+1) -> memory (B, 2n+1, C)."""
        x = self.token_embedding(source) + self.source_position.weight  # what and where: (B, 2n+1, C) + (2n+1, C)
        for block in self.encoder:
            x = block(x)
        return self.encoder_norm(x)

    def reorder(self, digits):
        """From reading order to writing order, or back: (B, n+1, ...) -> (B, n+1, ...)."""
        return digits.flip(1) if self.reverse else digits

    def decode(self, answer, memory):
        """answer (B, T), the start token and the digits so far -> logits (B, T, 10), for the digit after each."""
        T = answer.shape[1]
        causal_mask = torch.ones(T, T, dtype=torch.bool, device=answer.device).tril()  # (T, T): itself, and to its left
        x = self.token_embedding(answer) + self.target_position.weight[:T]             # (B, T, C)
        for block in self.decoder:
            x = block(x, memory, causal_mask)
        return self.to_logits(self.decoder_norm(x))

    def forward(self, source, target):
        """Teacher forcing: logits (B, n+1, 10) of each digit, given the right digits written before it."""
        start = torch.full_like(target[:, :1], START)
        written = torch.cat([start, self.reorder(target)[:, :-1]], dim=1)  # (B, n+1): before each digit, the right one
        return self.reorder(self.decode(written, self.encode(source)))


# ------------------------------------------------------------------------------------------------
# 5. Decoding and scoring
#
# Teacher forcing flatters: it repairs every mistake before the next digit is asked for. What counts here is
# the answer that the model writes on its own, and it counts only if all of it is right (exact match).


@torch.inference_mode()
def greedy_decode(model, source):
    """Write the answers (B, n+1) to the problems (B, 2n+1): the likeliest digit, again and again."""
    memory = model.encode(source)
    answer = torch.full((len(source), 1), START, device=source.device)  # (B, 1), and a digit more each time
    for _ in range(model.target_position.num_embeddings):
        logits = model.decode(answer, memory)[:, -1]  # (B, 10)
        answer = torch.cat([answer, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return model.reorder(answer[:, 1:])


@torch.inference_mode()
def answers(model, source, target):
    """Return the answers (B, n+1) that greedy_decode gives, faster where they are right, and teacher-forced logits.

    If each digit of the right sum is the likeliest one after the digits before it, then greedy decoding writes that
    sum: it starts with the first digit, hence goes on with the second, and so forth (the mask is causal: what comes
    later cannot matter). One teacher-forced pass tells where this holds. Elsewhere the problem is decoded for real.
    """
    logits = model(source, target)  # (B, n+1, 10)
    answer = logits.argmax(dim=-1)
    wrong = (answer != target).any(dim=1)
    if wrong.any():
        answer[wrong] = greedy_decode(model, source[wrong])
    return answer, logits


def tokens(model, problems, num_digits):
    """Source and target of problems (N, 2), on the model's device."""
    device = next(model.parameters()).device
    return [x.to(device) for x in tokenize(*problems.T, num_digits)]


def solve(model, problems, num_digits, label=None, loss=None):
    """The model's own answers (N, n+1) to the problems (N, 2), and whether each is right (N,).

    If a tensor `loss` (N,) is passed, it is filled with the teacher-forced loss of each problem.
    """
    # Made first: many small results, left between large temporary tensors, would fragment the memory.
    answer = torch.empty(len(problems), num_digits + 1, dtype=torch.long)
    size = 512  # small enough for the processor's caches

    def solve_chunk(i):
        source, target = tokens(model, problems[i:i + size], num_digits)
        written, logits = answers(model, source, target)
        answer[i:i + size] = written.cpu()
        if loss is not None:
            each_digit = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
            loss[i:i + size] = each_digit.mean(dim=1).cpu()

    common.parallel_map(solve_chunk, range(0, len(problems), size), label)
    right = (answer == tokenize(*problems.T, num_digits)[1]).all(dim=1)
    return answer, right


def all_problems(num_digits, leading_zeros):
    """Every problem there is, (N, 2), if there are at most a million; else 100,000 at random, always the same."""
    low, count = operand_range(num_digits, leading_zeros)
    if count ** 2 <= 1_000_000:
        operands = torch.arange(low, low + count)
        return torch.cartesian_prod(operands, operands)
    return torch.randint(low, low + count, (100_000, 2), generator=torch.Generator().manual_seed(0))


def carries(a, b, num_digits):
    """Which columns of a + b carry into the next: (N,), (N,) -> (N, n) booleans, units first.

    A column carries exactly if what stands in it and to its right sums to more than fits there.
    """
    place = 10 ** torch.arange(1, num_digits + 1)
    return a[:, None] % place + b[:, None] % place >= place


def longest_chain(flags):
    """The length of the longest run of True in each row: (N, n) -> (N,)."""
    run = longest = torch.zeros(len(flags), dtype=torch.long)
    for column in flags.T:
        run = (run + 1) * column
        longest = torch.maximum(longest, run)
    return longest


def by_difficulty(problems, right, num_digits):
    """Errors and totals by the number of carries and by the longest run of columns that carry."""
    carry = carries(*problems.T, num_digits)
    table = {}
    for name, level in (("carries", carry.sum(1)), ("longest_chain", longest_chain(carry))):
        table[name] = {str(k): {"n": int((level == k).sum()), "errors": int((~right[level == k]).sum())}
                       for k in range(num_digits + 1)}
    return table


def mistakes(problems, answer, right):
    """The wrong answers in words: ["231+268=599 (499)", ...]."""
    wrong = zip(problems[~right].tolist(), to_numbers(answer[~right]).tolist())
    return [f"{a}+{b}={answer_} ({a + b})" for (a, b), answer_ in wrong]


# ------------------------------------------------------------------------------------------------
# 6. Training


def learning_rate(step, config):
    """Up from zero, level, and down to zero over the last 60% of the steps.

    Up, because Adam knows nothing of the gradients' size at first. Down, because at full rate the weights jump
    about, and exact match with them. Only when the rate falls do the last errors disappear.
    """
    return config.lr * min(1, (step + 1) / config.warmup, (config.steps - step) / (0.6 * config.steps))


# The command line's flags (section 10), by what depends on them.
SCRIPT = "attention_addition.py"
MODEL_FLAGS = ("num_digits", "n_layer", "n_head", "d_model", "d_ff", "reverse")
DATA_FLAGS = ("num_digits", "leading_zeros", "cascades", "seed", "n_train", "n_val", "n_test")
TRAIN_FLAGS = ("model_seed", "steps", "batch_size", "lr", "warmup", "weight_decay", "eval_every", "no_start")
CONFIG_FLAGS = {*MODEL_FLAGS, *DATA_FLAGS, *TRAIN_FLAGS}


def config_of(args):
    """What a model depends on: saved with it, and compared before it is used."""
    return {"script": SCRIPT} | {name: value for name, value in vars(args).items() if name in CONFIG_FLAGS}


def build_model(config):
    """Return an untrained model of a configuration, which must hold a value for every flag; KeyError if not."""
    config = {name: config[name] for name in CONFIG_FLAGS}
    return Adder(**{name: config[name] for name in MODEL_FLAGS})


def fit(config, data, device, unfinished=None, resume=False):
    """Train one model; return it with its best weights, the history of the training and the best row of it.

    config is a Namespace of the flags in CONFIG_FLAGS, data {split: problems (N, 2)}. The best weights are those that
    do best on the validation problems, decoding freely. At each validation the state of the training goes to the file
    `unfinished`, from where `resume` takes it up.
    """
    torch.manual_seed(config.model_seed)
    model = build_model(vars(config)).to(device)
    log(f"train: model seed {config.model_seed}, {common.n_parameters(model):,} parameters, "
        f"{len(data['train']):,} problems, {config.steps:,} steps on {device}; "
        f"the loss of guessing is ln 10 = {math.log(10):.2f}")
    source, target = tokens(model, data["train"], config.num_digits)
    # b+a is a+b: show each problem one way round or the other, which doubles what 10,000 problems teach.
    mirror, _ = tokens(model, data["train"].flip(1), config.num_digits)
    _, val_target = tokenize(*data["val"].T, config.num_digits)
    val_loss = torch.empty(len(val_target))
    optimizer = common.adamw(model, config.lr, config.weight_decay)
    coin = torch.Generator().manual_seed(config.model_seed)
    done, history, best, best_weights, losses = 0, [], None, None, []
    if resume:
        done, history, best, best_weights = common.take_up(unfinished, vars(config), model, optimizer)
    start = time.time() - (history[-1]["seconds"] if history else 0)
    for step, batch in zip(range(config.steps), common.batches(len(source), config.batch_size, config.model_seed)):
        swap = (torch.rand(len(batch), 1, generator=coin) < 0.5).to(device)  # (B, 1)
        if step < done:  # taken up again: the same draws, but not the same work
            continue
        x = torch.where(swap, mirror[batch], source[batch])  # (B, 2n+1)
        logits, labels = model(x, target[batch]), target[batch]  # (B, n+1, 10), (B, n+1)
        if config.no_start:  # as if there were no start token: nobody asks for the first digit
            logits, labels = logits[:, 1:], labels[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # one unlucky batch must not throw the weights far
        lr = learning_rate(step, config)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        losses.append(loss.detach())

        if (step + 1) % config.eval_every == 0 or step + 1 == config.steps:
            answer, right = solve(model, data["val"], config.num_digits, loss=val_loss)
            row = {"step": step + 1, "train_loss": torch.stack(losses).mean().item(),
                   "val_loss": val_loss.mean().item(), "val_accuracy": right.double().mean().item(),
                   "val_digit_accuracy": (answer == val_target).double().mean(dim=0).tolist(),
                   "lr": lr, "seconds": round(time.time() - start, 2)}
            history.append(row)
            losses.clear()
            if not math.isfinite(row["train_loss"]):
                raise UserError(f"the loss is no longer finite at step {step + 1}; try a smaller --lr")
            # Towards the end many evaluations are perfect: among equals, prefer the surest.
            if best is None or (row["val_accuracy"], -row["val_loss"]) > (best["val_accuracy"], -best["val_loss"]):
                best, best_weights = row, {name: tensor.clone() for name, tensor in model.state_dict().items()}
            log(f"step {row['step']:4d}/{config.steps} | train {row['train_loss']:.4f} | val {row['val_loss']:.4f}"
                f" | exact {100 * row['val_accuracy']:5.1f}% | lr {row['lr']:.1e}"
                f" | {1000 * row['seconds'] / row['step']:.0f} ms/step"
                + "".join(f" | {mistake}" for mistake in mistakes(data["val"], answer, right)[:2]))
            if unfinished:
                progress = (step + 1, history, best, best_weights)
                common.save_unfinished(unfinished, vars(config), model, optimizer, progress)
    model.load_state_dict(best_weights)
    return model.eval(), history, best


def train(args):
    """--mode train: fit the model, save it, examine it, draw its learning curves."""
    out, data, start = common.folder(args.out_dir, "addition"), load_data(args), time.time()
    config, unfinished = config_of(args), out / "unfinished.pth"
    model, history, best = fit(argparse.Namespace(**config), data, args.device, unfinished, args.resume)
    common.save_checkpoint(out / "best_model.pth", model, config)
    log(f"best: step {best['step']}, saved to {out / 'best_model.pth'} after {time.time() - start:.1f} s")
    training_log = {"config": config, "n_params": common.n_parameters(model), "history": history,
                    "best": {"step": best["step"], "val_accuracy": best["val_accuracy"]},
                    **final_exam(model, data["test"], args), "seconds": history[-1]["seconds"]}
    common.write_json(out / "training_log.json", training_log)
    plot_training(training_log, out / "training_curves.png")
    unfinished.unlink(missing_ok=True)


def place_names(width):
    """Names of the answer's digits, most significant first."""
    names = ["units", "tens", "hundreds", "thousands"] + [f"10^{k}" for k in range(4, width)]
    return names[:width][::-1]


def final_exam(model, test, args):
    """Try the test problems, then every problem there is. Print the results and return them for the log."""
    accuracy = solve(model, test, args.num_digits)[1].double().mean().item()
    print(f"test: {100 * accuracy:.2f}% of {len(test):,} problems right")
    source, target = tokens(model, test[:2000], args.num_digits)  # all at once, so not too many
    with torch.inference_mode():
        forced = (model(source, target).argmax(dim=-1) == target).double().mean(dim=0).tolist()
    print("  each digit if the right ones before it are given: "
          + ", ".join(f"{name} {100 * share:.2f}%" for name, share in zip(place_names(len(forced)), forced)))
    problems, start = all_problems(args.num_digits, args.leading_zeros), time.time()
    answer, right = solve(model, problems, args.num_digits, label="trying every problem")
    seconds, errors = time.time() - start, int((~right).sum())
    exam = {"n": len(problems), "errors": errors, "seconds": round(seconds, 2),
            "digit_accuracy": (answer == tokenize(*problems.T, args.num_digits)[1]).double().mean(dim=0).tolist(),
            **by_difficulty(problems, right, args.num_digits)}
    every = len(problems) == operand_range(args.num_digits, args.leading_zeros)[1] ** 2
    print(f"{'all' if every else 'a sample of'} {len(problems):,} problems: {errors:,} wrong "
          f"({len(problems) / seconds:,.0f} sums per second)")
    print("  number of      carries: wrong of all      longest chain: wrong of all")
    for k in exam["carries"]:
        cells = [f"{exam[name][k]['errors']:,} of {exam[name][k]['n']:,}" for name in ("carries", "longest_chain")]
        print(f"{k:>11} {cells[0]:>24} {cells[1]:>31}")
    for mistake in mistakes(problems, answer, right)[:5]:
        print(f"  mistake: {mistake}")
    return {"test": {"accuracy": accuracy, "n": len(test), "teacher_forced": forced}, "exhaustive": exam}


def load_model(args, typed):
    """Return (model, config) from the checkpoint; UserError if a flag that was typed says otherwise."""
    path = Path(args.out_dir) / "addition" / "best_model.pth"
    model, config = common.load_checkpoint(path, SCRIPT, build_model)
    conflict = {name: value for name, value in typed.items() if name in CONFIG_FLAGS and config.get(name) != value}
    if conflict:
        raise UserError(f"{path} was trained with {common.difference(config, conflict)}; leave those flags out, or "
                        f"train anew with --mode train")
    return model.to(args.device), config


# ------------------------------------------------------------------------------------------------
# 7. Looking inside
#
# The model was not built to be looked into, and need not be: PyTorch calls a forward hook with the output of
# a module and puts what the hook returns, if anything, in its place. So a hook on `weights` reads what a head
# looks at, and a hook on `heads` reads what it says or makes it say something else. Heads are called enc.L0.H1
# (encoder, layer 0, head 1), dec.L0.H1 (the decoder's self-attention) and cross.L0.H1.


def attention_blocks(model):
    """Return {"enc.L0": the MultiHeadAttention of the encoder's first block, ..., "dec.L0": ..., "cross.L0": ...}."""
    blocks = {f"enc.L{i}": block.self_attention for i, block in enumerate(model.encoder)}
    blocks |= {f"dec.L{i}": block.self_attention for i, block in enumerate(model.decoder)}
    return blocks | {f"cross.L{i}": block.cross_attention for i, block in enumerate(model.decoder)}


def head_names(model, kinds=("enc", "dec", "cross")):
    return [f"{name}.H{h}" for name, block in attention_blocks(model).items() if name.split(".")[0] in kinds
            for h in range(block.n_head)]


@contextlib.contextmanager
def recording(model, place):
    """Collect what passes `place` ("weights" or "heads") of every block: yields a dictionary that fills as you run."""
    def hook(name):
        def keep(module, inputs, output):
            seen[name] = output
        return keep

    seen, blocks = {}, attention_blocks(model)
    handles = [getattr(block, place).register_forward_hook(hook(name)) for name, block in blocks.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def replacing(model, heads, values=None):
    """Replace what some heads say while you run: by zeros, or by values[block] (B or 1, n_head, T, d_head)."""
    def hook(name, mine):
        def replace(module, inputs, output):
            output = output.clone()  # of a prefix, if the answer is being written: then as many tokens of the values
            output[:, mine] = 0.0 if values is None else values[name][:, mine, :output.shape[2]]
            return output
        return replace

    handles = []
    for name, block in attention_blocks(model).items():
        mine = [h for h in range(block.n_head) if f"{name}.H{h}" in heads]
        if mine:
            handles.append(block.heads.register_forward_hook(hook(name, mine)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# 7a. What each head looks at
#
# A head of the encoder looks from a digit of the problem, a head of the decoder from the place where a digit
# of the answer is about to be written. Either stands in a column, and so do the tokens looked at: units are
# column 0, `+` and the start token stand in none. Hypothesis: the carry into a column comes from its
# right-hand neighbour, so a head that takes part in carrying should look there, and more so when a carry
# arrives. (Not a head of the decoder's self-attention: it can only see the higher digits, written before.)


def columns(kind, num_digits):
    """The column of each query and of each key of the blocks of a kind; -1 for `+` and the start token."""
    down = list(reversed(range(num_digits)))  # [2, 1, 0]
    problem, answer = [*down, -1, *down], [num_digits, *down]
    written = [-1, *answer[:-1]]  # the start token, then the digits so far
    return {"enc": (problem, problem), "dec": (answer, written), "cross": (answer, problem)}[kind]


def attention_mass(weights, problems, num_digits):
    """For each head and each column that it looks from: where its attention goes, in shares, and how it is spread.

    weights {block: (N, n_head, T, S)}. `carry_effect` is how much more goes to the next lower column when a carry
    arrives from there than when none does, with the half-width of its 95% interval.
    """
    carry, table = carries(*problems.T, num_digits), {}
    for name, w in weights.items():
        queries, keys = (torch.tensor(x) for x in columns(name.split(".")[0], num_digits))
        for h, column in itertools.product(range(w.shape[1]), range(int(queries.max()) + 1)):
            rows = w[:, h, queries == column].double()  # (N, 1 or 2 queries, S)
            places = {"same_column": keys == column, "next_lower": (keys == column - 1) & (column > 0),  # -1 is `+`
                      "lower": (keys < column - 1) & (keys >= 0), "higher": keys > column, "plus_or_start": keys == -1}
            row = {place: rows[..., here].sum(-1).mean().item() for place, here in places.items()}
            row["entropy_nats"] = -torch.special.xlogy(rows, rows).sum(-1).mean().item()
            if column > 0:
                mass = rows[..., places["next_lower"]].sum(-1).mean(1)  # (N,)
                with_, without = mass[carry[:, column - 1]], mass[~carry[:, column - 1]]
                interval = 1.96 * (with_.var() / len(with_) + without.var() / len(without)).sqrt().item()
                row["carry_effect"] = [(with_.mean() - without.mean()).item(), interval]
            table.setdefault(f"{name}.H{h}", {})[place_names(num_digits + 1)[::-1][column]] = row
    return table


EXAMPLES = {"no carry": (241, 536), "one carry": (347, 128), "a carry through a nine": (347, 159),
            "a carry through two nines": (199, 801), "three carries": (999, 999)}


@torch.inference_mode()
def analyze_attention(model, test, num_digits, out):
    """Heatmaps of every head, averaged over the test problems and on examples; and the same as numbers."""
    def attend(problems):
        with recording(model, "weights") as weights:
            model(*tokens(model, problems, num_digits))
        return {name: block.cpu() for name, block in weights.items()}

    weights = attend(test)
    table = attention_mass(weights, test, num_digits)
    common.write_json(out / "head_analysis" / "attention.json", {"n": len(test), "heads": table})
    names = place_names(num_digits + 1)
    short = [{"thousands": "Th", "hundreds": "H", "tens": "T", "units": "U"}.get(name, name) for name in names]
    problem = [*short[1:], "+", *short[1:]]
    seen_from = {"enc": problem, "dec": short, "cross": short}
    looked_at = {"enc": problem, "dec": ["start", *short[:-1]], "cross": problem}
    for kind, title in (("enc", "Encoder: which tokens of the problem look at which"),
                        ("dec", "Decoder: which earlier digits of the answer each digit looks at"),
                        ("cross", "Cross-attention: which tokens of the problem each digit of the answer looks at")):
        mine = {name: block.mean(0) for name, block in weights.items() if name.startswith(kind)}
        legend = f"mean of {len(test):,} test problems; {', '.join(short)} = {', '.join(names)}"
        plot_attention(mine, seen_from, looked_at, f"{title}\n({legend})", out / "attention_patterns" / f"{kind}.png")
    for name, (a, b) in EXAMPLES.items() if num_digits == 3 else ():
        problem, answer = [*f"{a}+{b}"], [*f"{a + b:04}"]
        plot_attention({block: w[0] for block, w in attend(torch.tensor([[a, b]])).items()},
                       {"enc": problem, "dec": answer, "cross": answer},
                       {"enc": problem, "dec": ["start", *answer[:3]], "cross": problem},
                       f"{a}+{b}={a + b:04}: {name}", out / "attention_patterns" / f"example_{a}+{b}.png")
    return table


# 7b. What each head is worth
#
# Take a head away and see what is lost (ablation). Its output can be replaced by zeros (zero ablation), or by its
# mean over the data (mean ablation), which takes away what it says about this problem and leaves what it always
# says. A head that can go is not yet a head that does nothing: a second one may do the same, and then either can
# go but not both.


def exact(model, problems, num_digits):
    """Which problems are answered wholly right: (N,) booleans.

    Greedy decoding is right exactly if each digit is the likeliest after the right ones before it: one pass tells.
    """
    @torch.inference_mode()
    def right(pair):
        return (model(*pair).argmax(dim=-1) == pair[1]).all(dim=1).cpu()

    chunks = zip(*(x.split(256) for x in tokens(model, problems, num_digits)))
    return torch.cat(common.parallel_map(right, list(chunks)))


def accuracy(model, problems, num_digits):
    return exact(model, problems, num_digits).double().mean().item()


@torch.inference_mode()
def mean_outputs(model, problems, num_digits):
    """What each head says on average at each token: {block: (1, n_head, T, d_head)}."""
    with recording(model, "heads") as heads:
        model(*tokens(model, problems, num_digits))
    return {name: output.mean(0, keepdim=True) for name, output in heads.items()}


def ablate(model, val, test, num_digits):
    """Each head zeroed, and each replaced by its mean over the validation problems: what is still right on the test?"""
    def scores():
        answer, right = solve(model, test, num_digits)
        target = tokenize(*test.T, num_digits)[1]
        return {"accuracy": right.double().mean().item(),
                "digit_accuracy": (answer == target).double().mean(dim=0).tolist(),
                "carries": by_difficulty(test, right, num_digits)["carries"]}

    table, means = {"n": len(test), "baseline": scores(), "heads": {}}, mean_outputs(model, val, num_digits)
    for head in common.progress(head_names(model), "ablation"):
        with replacing(model, {head}):
            zero = scores()
        with replacing(model, {head}, means):
            table["heads"][head] = {"zero": zero, "mean": scores()}
    return table


def gradient_importance(model, problems, num_digits):
    """Michel, Levy & Neubig 2019, section 4.1: the mean of |head output . gradient of the loss|, problem by problem.

    To first order, it is how much the loss changes if the head's output is scaled a little. The scores of each block
    are divided by their Euclidean norm, as in the paper.
    """
    source, target = tokens(model, problems, num_digits)
    with recording(model, "heads") as heads:  # the sum, so that the gradient of each problem is that of its own loss
        loss = F.cross_entropy(model(source, target).flatten(0, 1), target.flatten(), reduction="sum")
    outputs = list(heads.values())
    scores = {}
    for name, output, gradient in zip(heads, outputs, torch.autograd.grad(loss, outputs)):
        score = (output * gradient).sum(dim=(2, 3)).abs().mean(dim=0)  # (n_head,)
        scores |= {f"{name}.H{h}": x for h, x in enumerate((score / score.norm()).tolist())}
    return scores


def rank_correlation(x, y):
    """Spearman's: the correlation of the ranks, equal values sharing their mean rank."""
    def ranks(values):  # how many are smaller, and how many not larger: the sum is twice the mean rank, less one
        values = torch.tensor(values, dtype=torch.double)
        return ((values[:, None] > values).sum(1) + (values[:, None] >= values).sum(1)).double()
    return torch.corrcoef(torch.stack([ranks(x), ranks(y)]))[0, 1].item()


def importance(model, val, num_digits):
    """Rank the heads by ablation and by gradient, on validation; and find pairs that stand in for each other.

    `pair_excess` is what two heads cost together minus the sum of what they cost alone: large if one stands in for
    the other.
    """
    names, full = head_names(model), accuracy(model, val, num_digits)

    def lost(*heads):
        with replacing(model, set(heads)):
            return full - accuracy(model, val, num_digits)

    alone = {head: lost(head) for head in names}
    gradient = gradient_importance(model, val, num_digits)
    excess = {f"{a} {b}": lost(a, b) - alone[a] - alone[b]
              for a, b in common.progress(list(itertools.combinations(names, 2)), "pairs of heads")}
    return {"n": len(val), "ablation": alone, "gradient": gradient, "pair_excess": excess,
            "rank_correlation": rank_correlation([alone[h] for h in names], [gradient[h] for h in names])}


def prune(model, val, test, num_digits, n_random=20, seed=0):
    """Zero the heads one after another, each time the one whose removal hurts validation least; report the test.

    For comparison random orders (on 500 test problems), and the order of the scores of the first round alone.
    `prunable` is the most heads that go one after another for at most 1 point on the test; `removable_alone` are those
    that each cost at most 1 point on validation.
    """
    names, alone = head_names(model), {}

    def curve(order, problems):
        scores = []
        for k in range(len(order) + 1):
            with replacing(model, set(order[:k])):
                scores.append(accuracy(model, problems, num_digits))
        return scores

    removed, left = [], list(names)
    for _ in common.progress(range(len(names)), "pruning"):
        scores = {}
        for head in left:
            with replacing(model, {*removed, head}):
                scores[head] = accuracy(model, val, num_digits)
        alone = alone or scores  # the first round removes each head by itself
        best = max(left, key=scores.get)
        removed.append(best)
        left.remove(best)
    rng = random.Random(seed)
    orders = [rng.sample(names, len(names)) for _ in range(n_random)]
    curves = {"greedy": curve(removed, test), "ranked_once": curve(sorted(names, key=alone.get, reverse=True), test)}
    curves["random"] = [curve(order, test[:500]) for order in common.progress(orders, "pruning in random order")]
    full, val_full = curves["greedy"][0], accuracy(model, val, num_digits)
    prunable = max(k for k, score in enumerate(curves["greedy"]) if score >= full - 0.01)
    singly = [head for head in names if alone[head] >= val_full - 0.01]
    with replacing(model, set(singly)):
        together = accuracy(model, test, num_digits)
    return {"n": len(test), "order": removed, "curves": curves,
            "prunable": prunable, "prunable_share": prunable / len(names),
            "removable_alone": singly, "removable_alone_share": len(singly) / len(names),
            "accuracy_without_all_of_those": together}


# 7c. Who carries the carry
#
# To look somewhere is not to use what is there. The causal test: take two problems that differ in one column
# only, so that it carries in one and not in the other, and with it flips the carry that arrives in a higher
# column, directly or through columns that sum to nine. Run one problem, but let a head say what it says in
# the other (activation patching). Does the digit of the higher column turn into the other problem's? If always
# (1.0), that head is enough to move the carry. 0.0 does not clear a head: two may be needed together, or one stand
# in for another. The encoder may pass the carry on from token to token, the cross-attention must fetch it (all of it
# together flips every digit, for the decoder sees the problem in no other way). So for each stage, encoder, decoder
# self-attention and cross-attention, we look for a small set of heads that moves the carry in at least 90% of the
# pairs, while the rest of the stage moves it in at most 10%.


def carry_pairs(column, origin, n_pairs, num_digits, low=100, seed=0):
    """Draw pairs that differ in column `origin` only: (n_pairs, 2) without, (n_pairs, 2) with a carry into `column`."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.zeros(2, n_pairs, 2, dtype=torch.long)  # without or with the carry, problem, a or b
    for k in range(num_digits):
        first = 1 if k == num_digits - 1 and low > 0 else 0
        digits = torch.cartesian_prod(torch.arange(first, 10), torch.arange(first, 10))
        total = digits.sum(1)
        if k == origin:
            choices = [digits[total <= 8], digits[total >= 10]]  # never carries, even if a carry arrives; always does
        elif origin < k < column:
            choices = [digits[total == 9]]
        else:
            choices = [digits[total != 9] if k == column else digits]  # it stops here: all higher digits agree
        drawn = [pairs[torch.randint(len(pairs), (n_pairs,), generator=generator)] for pairs in choices]
        numbers[0] += drawn[0] * 10 ** k
        numbers[1] += drawn[-1] * 10 ** k  # the same draw, but in the column that differs
    return numbers[0], numbers[1]


@torch.inference_mode()
def patcher(model, pair, column, num_digits):
    """Return a function: set of heads -> share of pairs whose digit flips when these heads speak for the other problem.

    In every other pair the carry is put in, in the rest it is taken away. Answers are teacher-forced: the two right
    answers agree on all digits before the one in question, so what the decoder has written is the same in both runs.
    """
    odd = torch.arange(len(pair[0]))[:, None] % 2 == 1
    mine, other = torch.where(odd, pair[1], pair[0]), torch.where(odd, pair[0], pair[1])
    place = num_digits - column  # where the digit stands in the answer
    source, target = tokens(model, mine, num_digits)
    digit = model(source, target)[:, place].argmax(dim=-1)
    with recording(model, "heads") as values:
        other_source, other_target = tokens(model, other, num_digits)
        other_digit = model(other_source, other_target)[:, place].argmax(dim=-1)
    known = (digit == target[:, place]) & (other_digit == other_target[:, place])  # left alone, both are right

    @torch.inference_mode()
    def effect(heads):
        with replacing(model, heads, values):
            flipped = model(source, target)[:, place].argmax(dim=-1) == other_digit
        return (flipped & known).sum().item() / max(1, known.sum().item())
    return effect


def sufficient_set(effect, heads, alone):
    """A set of heads that moves the carry in 90% of the pairs while the rest moves it in at most 10%.

    Heads are dropped one by one, the weakest alone first, as long as both still hold. (One pass. A head that was needed
    when its turn came might be spared at the end.)
    """
    chosen = set(heads)
    for head in sorted(heads, key=alone.get):
        smaller = chosen - {head}
        if effect(smaller) >= 0.9 and effect(set(heads) - smaller) <= 0.1:
            chosen = smaller
    return sorted(chosen)


def trace_route(model, column, origin, num_digits, low, n_pairs):
    """For a carry from column `origin` to `column`: the effect of each head, and the heads that each stage needs."""
    effect = patcher(model, carry_pairs(column, origin, n_pairs, num_digits, low), column, num_digits)
    case = {"heads": {head: effect({head}) for head in head_names(model)}, "stages": {}}
    for kind in ("enc", "dec", "cross"):
        mine = head_names(model, (kind,))
        stage = {"all": effect(set(mine))}
        if stage["all"] >= 0.9:
            chosen = sufficient_set(effect, mine, case["heads"])
            stage |= {"set": chosen, "effect": effect(set(chosen)), "rest": effect(set(mine) - set(chosen))}
        case["stages"][kind] = stage
    return case


def trace_carry(model, num_digits, leading_zeros, n_pairs=1000):
    """trace_route for each column and each origin, up to three columns away, of the carry that it gets."""
    low, names = operand_range(num_digits, leading_zeros)[0], place_names(num_digits + 1)[::-1]
    routes = [(column, origin) for column in range(1, num_digits + 1) for origin in range(max(0, column - 3), column)]
    cases = common.parallel_map(  # on copies of the model, since hooks of two threads would get in each other's way
        lambda route: trace_route(copy.deepcopy(model), *route, num_digits, low, n_pairs), routes, "carry")
    return {"n_pairs": n_pairs, "routes": {f"{names[origin]} to {names[column]}": case
                                     for (column, origin), case in zip(routes, cases)}}


# 7d. All of it, for one model and for several seeds


def analyze_heads(model, data, config):
    """The parts of the analysis that are repeated for other model seeds. (276 pairs of heads: 500 problems must do.)"""
    return {"importance": importance(model, data["val"][:500], config["num_digits"]),
            "pruning": prune(model, data["val"][:500], data["test"], config["num_digits"]),
            "carry": trace_carry(model, config["num_digits"], config["leading_zeros"])}


def analyze_seeds(args, data, config, found):
    """Train and analyse further models that differ in the model seed only, and summarise them with the first one.

    What seeds/ holds already is not done again.
    """
    folder, seeds = Path(args.out_dir) / "addition" / "seeds", {}
    for seed in range(1, args.model_seeds + 1):
        wanted, path = config | {"model_seed": seed}, folder / f"{seed}.json"
        old = common.read_json(path) if path.exists() else None
        if seed == config["model_seed"]:
            model, result = load_model(args, {})[0], found
        elif isinstance(old, dict) and old.get("config") == wanted:
            seeds[str(seed)] = old
            continue
        else:
            model, _, _ = fit(argparse.Namespace(**wanted), data, args.device)
            common.save_checkpoint(folder / f"{seed}.pth", model, wanted)
            result = analyze_heads(model, data, config)
        problems = all_problems(config["num_digits"], config["leading_zeros"])
        right = solve(model, problems, config["num_digits"], f"seed {seed}: trying every problem")[1]
        seeds[str(seed)] = {"config": wanted, "n": len(problems), "errors": int((~right).sum()), **result}
        common.write_json(path, seeds[str(seed)])
    rows = list(seeds.values())
    stages = {route: {kind: [row["carry"]["routes"][route]["stages"][kind] for row in rows]
                      for kind in ("enc", "dec", "cross")} for route in rows[0]["carry"]["routes"]}
    spread = {route: {kind: {"heads": common.mean_std([len(stage.get("set", [])) for stage in stages_]),
                             "all": common.mean_std([stage["all"] for stage in stages_])}
                      for kind, stages_ in kinds.items()} for route, kinds in stages.items()}
    return {"seeds": seeds, "errors": [row["errors"] for row in rows], "routes": spread,
            **{key: common.mean_std([row["pruning"][key] for row in rows])
               for key in ("prunable_share", "removable_alone_share", "accuracy_without_all_of_those")},
            "rank_correlation": common.mean_std([row["importance"]["rank_correlation"] for row in rows])}


def analyze(args, typed):
    """--mode analyze: sections 7a to 7c for the trained model; with --model-seeds, 7b and 7c for several more."""
    out = common.folder(args.out_dir, "addition")
    if not (out / "best_model.pth").exists():
        log(f"analyze: no model in {out}, training one")
        train(args)
    model, config = load_model(args, typed)
    if config["reverse"]:
        raise UserError(f"{out / 'best_model.pth'} writes its answers in --reverse; --mode analyze follows the carry "
                        f"through answers written from the left, train such a model with --mode train")
    num_digits, folder = config["num_digits"], out / "head_analysis"
    data = load_data(argparse.Namespace(**vars(args) | {name: config[name] for name in DATA_FLAGS}))  # the model's own
    attention = analyze_attention(model, data["test"][:2000], num_digits, out)  # all at once, so not too many
    ablation = ablate(model, data["val"][:2000], data["test"], num_digits)
    common.write_json(folder / "ablation.json", ablation)
    plot_ablation(ablation, folder / "ablation.png")
    found = analyze_heads(model, data, config)
    for name, plot in (("importance", plot_importance), ("pruning", plot_pruning), ("carry", plot_carry)):
        common.write_json(folder / f"{name}.json", found[name])
        plot(found[name], folder / f"{name}.png")
    summarize(attention, ablation, **found)
    if args.model_seeds > 1:
        table = analyze_seeds(args, data, config, found)
        common.write_json(folder / "seeds.json", {key: value for key, value in table.items() if key != "seeds"})
        plot_seeds(table, folder / "seeds.png")
        summarize_seeds(table)


def summarize(attention, ablation, importance, pruning, carry):
    """Print the findings, a line each."""
    names, full = list(ablation["heads"]), ablation["baseline"]["accuracy"]
    effects = {f"{head} at the {column}": row["carry_effect"] for head, columns_ in attention.items()
               for column, row in columns_.items() if "carry_effect" in row}
    print("attention to the next lower column when a carry arrives from it, less that when none does: "
          + ", ".join(f"{where} {effects[where][0]:+.2f} +- {effects[where][1]:.2f}"
                      for where in sorted(effects, key=lambda where: -abs(effects[where][0]))[:3]))
    lost = {name: 100 * (full - row["mean"]["accuracy"]) for name, row in ablation["heads"].items()}
    print("critical heads (points lost when replaced by their mean): "
          + ", ".join(f"{name} {lost[name]:.1f}" for name in sorted(names, key=lost.get, reverse=True)[:4]))
    print(f"importance by ablation and by gradient: rank correlation {importance['rank_correlation']:.2f}")
    pair = max(importance["pair_excess"], key=importance["pair_excess"].get)
    print(f"redundancy: {pair.replace(' ', ' and ')} together cost {100 * importance['pair_excess'][pair]:.1f} points "
          f"more than the sum of each alone")
    shares = {key: f"{100 * pruning[key]:.0f}%" for key in ("prunable_share", "removable_alone_share")}
    print(f"pruning: {pruning['prunable']} of {len(names)} heads ({shares['prunable_share']}) can go one after another "
          f"for at most 1 point; {len(pruning['removable_alone'])} ({shares['removable_alone_share']}) can each go "
          f"alone, but without all of those {100 * pruning['accuracy_without_all_of_those']:.1f}% is right")
    for route, case in carry["routes"].items():
        words = [f"{' '.join(stage['set'])} ({stage['effect']:.2f}, the rest {stage['rest']:.2f})" if "set" in stage
                 else f"all of {kind} {stage['all']:.2f}" for kind, stage in case["stages"].items()]
        print(f"carry, {route}: " + "; ".join(words))


def summarize_seeds(table):
    """Print mean and standard deviation over the model seeds."""
    print(f"{len(table['errors'])} model seeds: errors on every problem {table['errors']}")
    for key, name in (("prunable_share", "heads that can go one after another"),
                      ("removable_alone_share", "heads that can each go alone"),
                      ("accuracy_without_all_of_those", "exact match without all of those")):
        print(f"  {name}: {100 * table[key]['mean']:.0f}% +- {100 * table[key]['std']:.0f}")
    print(f"  rank correlation: {table['rank_correlation']['mean']:.2f} +- {table['rank_correlation']['std']:.2f}")
    for route, stages in table["routes"].items():
        counts = {kind: stage["heads"] for kind, stage in stages.items()}
        print(f"  heads that the carry needs, {route}: "
              + ", ".join(f"{kind} {count['mean']:.1f} +- {count['std']:.1f}" for kind, count in counts.items()))


# ------------------------------------------------------------------------------------------------
# 8. Pictures


def plot_training(training_log, path):
    """Draw loss, exact match and accuracy per digit over the steps."""
    plt, history = common.pyplot(), training_log["history"]
    steps = [row["step"] for row in history]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 4))
    left.plot(steps, [row["train_loss"] for row in history], label="training", color="tab:gray")
    left.plot(steps, [row["val_loss"] for row in history], label="validation", color="tab:blue", linestyle="--")
    left.axhline(math.log(10), color="black", linewidth=1, linestyle=":", label="guessing, ln 10")
    left.set(title="Loss", xlabel="training step", ylabel="cross-entropy per digit (nats)", yscale="log")
    middle.plot(steps, [100 * row["val_accuracy"] for row in history], color="tab:blue", marker=".")
    middle.set(title=f"Whole answer right: {100 * training_log['best']['val_accuracy']:.1f}%", ylim=(-3, 103),
               xlabel="training step", ylabel="validation problems right (%)")
    names = place_names(len(history[0]["val_digit_accuracy"]))
    digits = list(zip(*(row["val_digit_accuracy"] for row in history)))
    for k, (name, values, line) in enumerate(zip(names, digits, 10 * ["-", "--", "-.", ":"])):
        right.plot(steps, [100 * value for value in values], linestyle=line, label=name,
                   color=plt.cm.viridis(0.9 * k / len(names)))
    passed = [next((i for i, value in enumerate(line) if value > 0.9), len(steps)) for line in digits]
    learnt = sorted(range(len(names)), key=passed.__getitem__)
    right.set(title="Digits pass 90% in this order:\n" + ", ".join(names[k] for k in learnt), ylim=(-3, 103),
              xlabel="training step", ylabel="validation digits right (%)")
    left.legend()
    right.legend(loc="lower right")
    common.save_figure(figure, path)


def plot_attention(weights, query_labels, key_labels, title, path):
    """Draw one heatmap a head: weights {block: (n_head, T, S)}, one row of panels a block."""
    plt = common.pyplot()
    n_head = next(iter(weights.values())).shape[0]
    size = (2.5 * n_head + 0.6, 2.5 * len(weights) + 0.8)
    figure, axes = plt.subplots(len(weights), n_head, figsize=size, squeeze=False)
    for (name, block), row in zip(weights.items(), axes):
        kind = name.split(".")[0]
        for h, axis in enumerate(row):
            image = axis.imshow(block[h], vmin=0, vmax=1, cmap="Blues", aspect="auto")
            axis.set(title=f"{name}.H{h}", xticks=range(len(key_labels[kind])), yticks=range(len(query_labels[kind])))
            axis.set_xticklabels(key_labels[kind], fontsize=13)
            axis.set_yticklabels(query_labels[kind], fontsize=13)
            axis.grid(False)
        row[0].set_ylabel({"enc": "looking from", "dec": "about to write", "cross": "about to write"}[kind])
    figure.supxlabel("looking at")
    figure.suptitle(title)
    figure.colorbar(image, ax=axes, label="attention weight", shrink=min(1, 2 / len(weights)))
    common.save_figure(figure, path)


def plot_ablation(table, path):
    """Bars: what the removal of each head costs, zeroed and replaced by its mean."""
    plt, heads = common.pyplot(), table["heads"]
    points = {way: [100 * (table["baseline"]["accuracy"] - row[way]["accuracy"]) for row in heads.values()]
              for way in ("zero", "mean")}
    critical = sum(lost > 10 for lost in points["mean"])
    spare = sum(lost < 1 + 1e-9 for lost in points["mean"])
    figure, axis = plt.subplots(figsize=(10, 4.5))
    for shift, (way, values), colour in zip((-0.2, 0.2), points.items(), ("tab:blue", "tab:orange")):
        what = "zeros" if way == "zero" else "its mean"
        axis.bar([i + shift for i in range(len(heads))], values, width=0.4, label=f"replaced by {what}", color=colour,
                 hatch="" if way == "zero" else "//", edgecolor="white")
    axis.set(title=f"Of {len(heads)} heads, {critical} cost more than 10 points when replaced, {spare} one or less",
             xlabel="the head that is replaced",
             ylabel=f"loss in exact match (points)\non {table['n']:,} test problems")
    axis.set_xticks(range(len(heads)), heads, rotation=90)
    axis.legend()
    common.save_figure(figure, path)


def plot_importance(table, path):
    """Left: the two rankings against each other. Right: what pairs of heads cost beyond the sum of their own."""
    plt, names = common.pyplot(), list(table["ablation"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6.5))
    for marker, kind in zip("os^", ("enc", "dec", "cross")):
        mine = [name for name in names if name.startswith(kind)]
        left.scatter([table["gradient"][name] for name in mine], [100 * table["ablation"][name] for name in mine],
                     marker=marker, s=60, label=kind)
    height = -math.inf
    for name in sorted((name for name in names if table["ablation"][name] > 0.03), key=table["ablation"].get):
        x, y = table["gradient"][name], 100 * table["ablation"][name]
        height = max(height + 4.5, y)  # from the lowest up, far enough apart to be read
        left.annotate(name, (x, y), (1.1, height), fontsize=9, va="center",
                      arrowprops={"arrowstyle": "-", "color": "tab:gray", "linewidth": 0.5})
    left.set(title=f"Two measures of importance, rank correlation {table['rank_correlation']:.2f}",
             xlabel="gradient score (Michel et al. 2019),\ndivided by the norm of its block's scores",
             ylabel="loss in exact match when zeroed (points)", xlim=(-0.05, 1.4))
    left.legend(loc="upper left")
    excess = torch.zeros(len(names), len(names))
    for pair, value in table["pair_excess"].items():
        a, b = (names.index(name) for name in pair.split())
        excess[a, b] = excess[b, a] = 100 * value
    limit = max(1, excess.abs().max().item())
    image = right.imshow(excess, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    right.set_title("Two heads together cost more (red) or less (blue)\nthan the sum of each alone")
    right.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    right.set_yticks(range(len(names)), names, fontsize=8)
    right.grid(False)
    figure.colorbar(image, ax=right, label="excess loss in exact match (points)", shrink=0.8)
    common.save_figure(figure, path)


def plot_pruning(table, path):
    """Exact match against the number of heads removed, in three orders."""
    plt, curves = common.pyplot(), table["curves"]
    random_ = 100 * torch.tensor(curves["random"])
    steps, mean, spread = range(random_.shape[1]), random_.mean(0), random_.std(0)
    figure, axis = plt.subplots(figsize=(9, 5))
    axis.plot(steps, [100 * x for x in curves["greedy"]], marker="o", label="re-ranked after each removal")
    axis.plot(steps, [100 * x for x in curves["ranked_once"]], "s--", label="ranked once, at the start")
    axis.plot(steps, mean, color="tab:gray", linestyle=":", label=f"{len(random_)} random orders on 500, mean and std")
    axis.fill_between(steps, (mean - spread).clamp(min=0), (mean + spread).clamp(max=100), color="tab:gray", alpha=0.2)
    axis.axvline(table["prunable"], color="black", linewidth=1)
    together = 100 * table["accuracy_without_all_of_those"]
    alone = len(table["removable_alone"])
    axis.set(title=f"{table['prunable']} of {len(table['order'])} heads can go one after another for at most 1 point;\n"
                   f"{alone} can each go alone, but without all of those {together:.0f}% is right",
             xlabel="heads removed", ylabel=f"exact match (%) on {table['n']:,} test problems", ylim=(-3, 103))
    figure.legend(loc="outside lower center", ncols=2)
    common.save_figure(figure, path)


def plot_carry(table, path):
    """Heads by routes of the carry: how often a head alone flips the digit."""
    plt, routes = common.pyplot(), table["routes"]
    heads = list(next(iter(routes.values()))["heads"])
    grid = torch.tensor([[case["heads"][head] for case in routes.values()] for head in heads])
    figure, axis = plt.subplots(figsize=(2.5 + 1.1 * len(routes), 1.5 + 0.28 * len(heads)))
    image = axis.imshow(grid, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for (i, j), value in (((i, j), grid[i, j].item()) for i in range(len(heads)) for j in range(len(routes))):
        if value >= 0.05:
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9,
                      color="white" if value > 0.6 else "black")
    axis.set_xticks(range(len(routes)), [name.replace(" to ", "\nto ") for name in routes])
    axis.set_yticks(range(len(heads)), heads, fontsize=9)
    axis.grid(False)
    busy = sum(bool(row.max() >= 0.5) for row in grid)
    axis.set(title=f"Who carries? Heads that alone flip the digit in half of the pairs or more: {busy} of {len(heads)}",
             xlabel=f"where the carry arises, and the digit that it changes ({table['n_pairs']:,} pairs each)",
             ylabel="the one head that speaks for the other problem")
    figure.colorbar(image, ax=axis, label="share of pairs whose digit flips")
    common.save_figure(figure, path)


def plot_seeds(table, path):
    """How much of it all holds for models that differ in nothing but their seed."""
    plt, seeds = common.pyplot(), table["seeds"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5))
    x = range(len(seeds))
    for shift, key, marker, label in ((-0.06, "prunable", "o", "one after another"),
                                      (0.06, "removable_alone", "s", "each alone")):  # side by side where equal
        shares = [100 * row["pruning"][f"{key}_share"] for row in seeds.values()]
        left.plot([i + shift for i in x], shares, marker, markersize=9, label=label)
    left.set(title="Heads that can go for at most 1 point", ylim=(0, 100),
             xlabel="model seed", ylabel="share of heads (%)")
    left.set_xticks(x, seeds)
    left.legend(loc="lower right")
    routes = list(next(iter(seeds.values()))["carry"]["routes"])
    for shift, kind, marker, colour, label in ((-0.15, "enc", "o", "tab:blue", "encoder"),
                                               (0.15, "cross", "^", "tab:green", "cross-attention")):
        for i, route in enumerate(routes):
            sizes = [len(row["carry"]["routes"][route]["stages"][kind].get("set", [])) for row in seeds.values()]
            spread = [0.03 * (k - len(sizes) / 2) for k in range(len(sizes))]  # so that equal values show side by side
            right.plot([i + shift + s for s in spread], sizes, marker, color=colour, label=None if i else label)
    right.set_xticks(range(len(routes)), [name.replace(" to ", "\nto ") for name in routes], fontsize=9)
    right.set(title="Heads that the carry needs, one mark a seed\n(0: all of the stage together move less than 90%)",
              xlabel="where it arises, and the digit that it changes", ylabel="number of heads")
    right.yaxis.get_major_locator().set_params(integer=True)
    right.legend()
    common.save_figure(figure, path)


# ------------------------------------------------------------------------------------------------
# 9. Asking the trained model


def parse_problem(text, num_digits, leading_zeros):
    """Return (a, b) of a text such as "347+159"; UserError if it is no sum, or none of the kind the model has seen."""
    match = re.fullmatch(r"\s*([0-9]+)\s*\+\s*([0-9]+)\s*", text)
    if not match:
        raise UserError(f"expected a problem such as 347+159, found {text.strip()[:40]!r}")
    a, b = (number.lstrip("0") or "0" for number in match.groups())
    low, count = operand_range(num_digits, leading_zeros)
    if not all(len(number) <= num_digits and int(number) >= low for number in (a, b)):
        shorter = "" if leading_zeros else ", with --leading-zeros for shorter ones too"
        raise UserError(f"{text.strip()[:40]}: this model has seen numbers from {low} to {low + count - 1} only; train "
                        f"one on numbers of n digits with --mode all --num-digits n{shorter}")
    return int(a), int(b)


def infer(args, typed):
    """--mode infer: answer the problems on the command line, or those on standard input, one a line, after `-`."""
    model, config = load_model(args, typed)
    num_digits, live = config["num_digits"], args.problems == ["-"] and sys.stdin.isatty()
    if args.problems == ["-"]:
        texts = (line.decode(errors="replace") for line in sys.stdin.buffer if line.strip())
    else:
        texts = iter(args.problems)
    for chunk in iter(lambda: list(itertools.islice(texts, 1 if live else 1024)), []):
        problems, error = [], None
        for text in chunk:
            try:
                problems.append(parse_problem(text, num_digits, config["leading_zeros"]))
            except UserError as first_error:  # what comes before it is still answered
                error = first_error
                break
        if problems:
            source, _ = tokenize(*torch.tensor(problems).T, num_digits)
            sums = to_numbers(greedy_decode(model, source.to(args.device)).cpu())
            for (a, b), answer in zip(problems, sums.tolist()):
                print(f"{a}+{b}={answer}", flush=live)
        if error:
            raise error


# ------------------------------------------------------------------------------------------------
# 10. The command line


def command_line():
    """Declare every flag, once, with its default and its reason."""
    number, parser = common.number, common.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("problems", nargs="*", help="with --mode infer: 347+159 ..., or - to read standard input")
    modes = ["all", "gendata", "train", "analyze", "infer"]
    parser.add_argument("--mode", choices=modes, default="all", help="what to do; all is gendata, train and analyze")
    data = parser.add_argument_group("data")
    data.add_argument("--num-digits", type=number(int, 1, 15), default=3, help="digits of each number")
    data.add_argument("--leading-zeros", action="store_true", help="numbers from 0, not only those of full length")
    some = number(int, 1, 10**7)
    data.add_argument("--n-train", type=some, metavar="N", help="problems to learn from (10,000, or what there is)")
    data.add_argument("--n-val", type=some, metavar="N", help="problems to choose the best weights by (2,000)")
    data.add_argument("--n-test", type=some, metavar="N", help="problems for the final test (2,000)")
    data.add_argument("--cascades", type=number(float, 0, 1), default=0.5,
                      help="share of training problems with columns changed to sum to nine or ten")
    data.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=641, help="which problems are drawn")
    data.add_argument("--data-dir", default="data", help="where the problems are kept")
    data.add_argument("--out-dir", default="out", help="where the results go")
    model = parser.add_argument_group("model")
    model.add_argument("--n-layer", type=number(int, 1, 100), default=2, help="blocks of encoder and of decoder")
    model.add_argument("--n-head", type=number(int, 1, 999), default=4, help="heads of an attention; divides --d-model")
    model.add_argument("--d-model", type=number(int, 1, 8192), default=64, help="channels that represent a token")
    model.add_argument("--d-ff", type=number(int, 1, 65536), default=64, help="hidden units of a feed-forward network")
    model.add_argument("--reverse", action="store_true", help="write the units digit first; not for --mode analyze")
    training = parser.add_argument_group("training")
    training.add_argument("--model-seed", type=number(int, 0, 2**63 - 1), default=1, help="weights and batch order")
    training.add_argument("--steps", type=number(int, 1, 10**9), default=1000, help="batches to learn from")
    training.add_argument("--batch-size", type=number(int, 1, 10**6), default=64, help="problems a batch")
    training.add_argument("--lr", type=number(float, 0), default=5e-3, help="highest learning rate")
    training.add_argument("--warmup", type=number(int, 1, 10**9), default=50, help="steps to reach it")
    training.add_argument("--weight-decay", type=number(float, 0), default=0.3, help="of matrices, not of biases")
    training.add_argument("--eval-every", type=number(int, 1, 10**9), default=100, help="steps between validations")
    training.add_argument("--no-start", action="store_true", help="never ask for the first digit: a common mistake")
    training.add_argument("--model-seeds", type=number(int, 1, 1000), default=1,
                          help="with --mode analyze: repeat for model seeds 1 to this")
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
    if args.d_model % args.n_head:
        fitting = math.ceil(args.d_model / args.n_head) * args.n_head
        raise UserError(f"--d-model {args.d_model} cannot be cut into --n-head {args.n_head} equal heads; "
                        f"try --d-model {fitting}")
    if (args.mode == "infer") != bool(args.problems):
        raise UserError("problems go with --mode infer and it with them, as in --mode infer 347+159")
    if args.reverse and args.mode in ("all", "analyze"):
        raise UserError("--mode analyze follows the carry through answers that are written from the left; with "
                        "--reverse type --mode train")
    if args.no_start and args.reverse:
        raise UserError("--no-start and --reverse do not go together; leave one of them out")
    if args.resume and args.mode != "train":
        raise UserError("--resume goes with --mode train")
    args.device = common.pick_device(args.device, args.threads)
    if args.mode in ("all", "gendata"):
        generate_data(args)
    if args.mode in ("all", "train"):
        train(args)
    if args.mode in ("all", "analyze"):
        analyze(args, typed)
    if args.mode == "infer":
        infer(args, typed)


if __name__ == "__main__":
    common.run(main)
