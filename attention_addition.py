"""How does a transformer add?  Attention from scratch, on a problem small enough to check in full.

An encoder reads a problem such as `347+159`, a token per character, all at once. A decoder
generates the sum `0506` one digit at a time. Nobody tells them what a digit is worth or what a
carry is. The model learns from 10,000 problems and is tested on all 810,000, these among them. Then
we look inside: what does each attention head read, which can be removed, which move the carry?

  python attention_addition.py 347+159 999+999           ask the trained model, two seconds
  python attention_addition.py                           data, training, analysis: two minutes
  python attention_addition.py --mode train --steps 500  a shorter training, into out/addition
  python attention_addition.py --mode analyze 582+417    draw all heads on this problem

Comments give tensor shapes: B problems in a batch or N in all, n digits in a number, C = d_model;
in attention T queries, S keys, and d or d_head channels. No dropout, no beam search.
"""
import copy
import itertools
import math
import random
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import common
from common import UserError

# ---- 1. The task and its data --------------------------------------------------------------------
# Tokens 0 to 9 are digits, 10 is `+`, and 11 is the start token of an answer.
# A problem of two n-digit numbers has 2n + 1 tokens, the source. Its target has n + 1 digits, the
# most significant first, so it may begin with 0:
#
#     347+159   source 3 4 7 + 1 5 9    target 0 5 0 6

PLUS = 10
START = 11
PLACES = ["units", "tens", "hundreds", "thousands"] + [f"10^{k}" for k in range(4, 16)]
SHORT = [f"10^{k}" for k in range(15, 3, -1)] + ["Th", "H", "T", "U"]

def to_digits(numbers, width):
    """Split integers into decimal digits, most significant first: (N,) -> (N, width)."""
    powers = 10 ** torch.arange(width - 1, -1, -1)  # (width,): 100, 10, 1
    return numbers[:, None] // powers % 10

def tokenize(problems, args):
    """Turn problems (N, 2), the numbers a and b, into source (N, 2n+1) and target (N, n+1)."""
    a, b = problems.T
    n = args.num_digits
    plus = torch.full((len(a), 1), PLUS)
    source = torch.cat([to_digits(a, n), plus, to_digits(b, n)], dim=1)
    return source.to(args.device), to_digits(a + b, n + 1).to(args.device)

# a+b and b+a count as one problem, drawn at most once. Otherwise the test would be too easy.
# A column that sums to ten or more starts a carry. One that sums to nine passes on a carry that
# arrives: 347+652 is 0999, but 348+652 is 1000. Such carry chains are the hard cases, and rare in
# random problems. So in half of the training problems (--carry-chains) most columns are made to
# sum to nine or ten.

def add_carry_chain(a, b, num_digits, rng):
    """Replace each digit of b, with probability 0.7, so that the column sums to 9 or 10."""
    for k in range(num_digits):
        if rng.random() < 0.7:
            power = 10 ** k
            x = a // power % 10
            y = b // power % 10
            total = 9 + int(2 * rng.random())
            b += (min(9, total - x) - y) * power  # if x is 0 no digit makes ten, so take nine
    return b

def to_record(a, b, num_digits):
    """A line of a data file: {"input": [5, 0, 7, 10, 1, 5, 9], "target": [0, 6, 6, 6]}."""
    tokens = [*map(int, str(a)), PLUS, *map(int, str(b))]
    return {"input": tokens, "target": [*map(int, str(a + b).zfill(num_digits + 1))]}

def make_data(args):
    """Draw the records of each split: {"train": [...], "val": [...], "test": [...]}."""
    low = 10 ** (args.num_digits - 1)
    count = 9 * low  # numbers of this length
    sizes = {"test": args.n_test, "val": args.n_val, "train": args.n_train}
    if sum(sizes.values()) > count * (count + 1) // 2:
        raise UserError(f"there are only {count * (count + 1) // 2:,} pairs; type fewer examples")
    rng = random.Random(args.seed)
    seen = set()
    records = {}
    for split, size in sizes.items():
        records[split] = []
        while len(records[split]) < size:
            a = low + int(count * rng.random())  # unlike randint(), the same in every Python
            b = low + int(count * rng.random())
            if split == "train" and rng.random() < args.carry_chains:
                b = add_carry_chain(a, b, args.num_digits, rng)
            pair = (min(a, b), max(a, b))
            if b >= low and pair not in seen:  # a carry chain may have put a zero in front of b
                seen.add(pair)
                records[split].append(to_record(a, b, args.num_digits))
    return records

def load_data(args):
    """Return {split: problems (N, 2)} from the data files, which are made if there are none."""
    n = args.num_digits
    def read(record):
        a = int("".join(map(str, record["input"][:n])))
        b = int("".join(map(str, record["input"][n + 1:])))
        if to_record(a, b, n) != {"input": record["input"], "target": record["target"]}:
            raise ValueError(f"expected the tokens of two numbers of {n} digits and of their sum")
        return a, b
    flags = ["seed", "num_digits", "carry_chains", "n_train", "n_val", "n_test"]
    data = common.read_data("addition", ["train", "val", "test"], args, flags, make_data, read)
    return {split: torch.tensor(problems) for split, problems in data.items()}

# ---- 2. Attention, in four steps -----------------------------------------------------------------
# Each token becomes a vector of C numbers: its embedding plus a vector for its position. Block by
# block this vector, the hidden state of the token, is changed. Three learned matrices make of it a
# query q (what it looks for), a key k (what it is found by) and a value v (what it passes on).
#
# Step 1, one query: a soft dictionary look-up. A dictionary returns the value of the key that
# matches a query. Attention compares the query with all S keys by dot products, turns these scores
# into weights that sum to 1, and returns the weighted mean of all values.
#     weights = softmax(k q / sqrt(d))     q (d,), k (S, d) -> (S,)
#     output = weights v                   v (S, d_v) -> (d_v,)
# Step 2, all T queries at once: q is (T, d), weights = softmax(q k^T / sqrt(d)) is (T, S).
# Step 3, a mask: a score of -infinity becomes a weight of 0. In training the decoder reads the
# whole correct answer at once. Without a mask, a position could read the digit that it predicts.
# Step 4, several heads: one softmax gives each query one set of weights, and one mean. A digit of
# the sum needs several things: its column, and whether the columns to the right carry. So q, k and
# v are cut into n_head parts (heads) of d_head = C / n_head channels, each with its own attention
# weights. They are cut after the C x C matrices, so every head reads all channels of the hidden
# state. The outputs are concatenated, and a fourth matrix mixes them.

def scaled_dot_product_attention(q, k, v, mask=None):
    """Steps 1 to 3: softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, section 3.2.1).

    q (..., T, d), k (..., S, d), v (..., S, d_v); mask, broadcast to (..., T, S), is True where a
    query may attend. Returns the output (..., T, d_v) and the weights (..., T, S).

    >>> q = torch.tensor([[2 * math.log(3), 0, 0, 0]])
    >>> k = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    >>> v = torch.tensor([[8.0], [4.0]])
    >>> output, weights = scaled_dot_product_attention(q, k, v)
    >>> weights, output.round()
    (tensor([[0.7500, 0.2500]]), tensor([[7.]]))

    By hand: the dot products 2 ln 3 and 0, over sqrt(4), are ln 3 and 0. The weights are as
    exp(ln 3) : exp(0) = 3 : 1, so the output is 3/4 of the first value and 1/4 of the second.
    """
    # If the d entries of q and k are independent with mean 0 and variance 1, their dot product has
    # variance d. Divided by sqrt(d) it has variance 1, so the softmax starts neither flat nor stuck
    # on one key, whatever d is.
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    # Softmax. Subtracting the largest score changes no weight, but exp cannot overflow then.
    weights = (scores - scores.detach().amax(dim=-1, keepdim=True)).exp()  # (..., T, S)
    weights = weights / weights.sum(dim=-1, keepdim=True)                  # each row sums to 1
    return weights @ v, weights

class MultiHeadAttention(nn.Module):
    """Step 4: n_head attentions side by side (Vaswani et al. 2017, section 3.2.2).
    The queries come from x, the keys and values from memory: in self-attention the same tensor, in
    cross-attention the output of the encoder.
    """
    def __init__(self, d_model, n_head):
        super().__init__()
        self.n_head = n_head
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        # The argument for sqrt(d) assumes q and k of variance 1. The input has it (LayerNorm), but
        # nn.Linear draws weights of variance 1/(3C). So q and k, sums of C terms, have 1/3, with
        # doubled weights 4/3.
        with torch.no_grad():
            self.query.weight.mul_(2)
            self.key.weight.mul_(2)
        self.replace = {}  # {number of a head: what to put in the place of its output}

    def forward(self, x, memory, mask=None):
        """x (B, T, C), memory (B, S, C) -> (B, T, C)."""
        cut = (self.n_head, -1)                               # C channels into n_head x d_head
        q = self.query(x).unflatten(-1, cut).transpose(1, 2)       # (B, n_head, T, d_head)
        k = self.key(memory).unflatten(-1, cut).transpose(1, 2)    # (B, n_head, S, d_head)
        v = self.value(memory).unflatten(-1, cut).transpose(1, 2)  # (B, n_head, S, d_head)
        heads, weights = scaled_dot_product_attention(q, k, v, mask)
        for h, output in self.replace.items():
            heads[:, h] = output
        self.outputs = heads.detach()                         # (B, n_head, T, d_head)
        self.weights = weights.detach()                       # (B, n_head, T, S)
        return self.output(heads.transpose(1, 2).flatten(2))  # concatenated, then mixed: (B, T, C)

# ---- 3. The model --------------------------------------------------------------------------------
# The encoder runs once per problem. Its output, a vector per source token, is called the memory.
# The decoder runs once per digit of the answer: each of its tokens attends to itself and earlier
# ones (self-attention), then to the memory (cross-attention). By default both have one block, with
# 4 heads in each of the three attentions.
# A block is made of sublayers: attention moves information between tokens, the feed-forward network
# works on each token alone. Every sublayer adds its result to the hidden state x (a residual
# connection), so it only has to learn a change; x is also called the residual stream.
# Each sublayer reads a normalised copy of x (pre-norm). LayerNorm subtracts the mean of the C
# numbers of a token, divides by their standard deviation, and has a trained scale and shift. So the
# next reader meets the same size, however x grows. If x itself is normalised (post-norm), every
# norm rescales the gradients on their way back. With pre-norm they have a path of plain additions,
# so training is more stable (Xiong et al. 2020).

class Block(nn.Module):
    """Self-attention, in the decoder cross-attention too, then a feed-forward network."""
    def __init__(self, args, decoder):
        super().__init__()
        d_model = args.d_model
        self.norm1 = nn.LayerNorm(d_model)
        self.self_attention = MultiHeadAttention(d_model, args.n_head)
        if decoder:
            self.norm2 = nn.LayerNorm(d_model)
            self.cross_attention = MultiHeadAttention(d_model, args.n_head)
        self.norm3 = nn.LayerNorm(d_model)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, args.d_ff), nn.ReLU(),
                                          nn.Linear(args.d_ff, d_model))

    def forward(self, x, memory=None, mask=None):
        """x (B, T, C) -> (B, T, C); in the decoder with the memory (B, S, C) and a causal mask."""
        y = self.norm1(x)
        x = x + self.self_attention(y, y, mask)
        if memory is not None:
            x = x + self.cross_attention(self.norm2(x), memory)
        return x + self.feed_forward(self.norm3(x))

class Adder(nn.Module):
    """An encoder-decoder transformer from problems to sums; args are the flags."""
    def __init__(self, args):
        super().__init__()
        self.args = args
        self.token_embedding = nn.Embedding(START + 1, args.d_model)
        # Attention ignores order, so each position has a learned vector.
        self.source_position = nn.Embedding(2 * args.num_digits + 1, args.d_model)
        self.target_position = nn.Embedding(args.num_digits + 1, args.d_model)
        self.encoder = nn.ModuleList(Block(args, False) for _ in range(args.n_layer))
        self.decoder = nn.ModuleList(Block(args, True) for _ in range(args.n_layer))
        self.encoder_norm = nn.LayerNorm(args.d_model)
        self.decoder_norm = nn.LayerNorm(args.d_model)
        self.to_logits = nn.Linear(args.d_model, 10, bias=False)  # an answer holds digits only
        for embedding in (self.token_embedding, self.source_position, self.target_position):
            nn.init.normal_(embedding.weight, std=0.5)

    def encode(self, source):
        """source (B, 2n+1) -> memory (B, 2n+1, C)."""
        x = self.token_embedding(source) + self.source_position.weight  # (B, 2n+1, C) + (2n+1, C)
        for block in self.encoder:
            x = block(x)
        return self.encoder_norm(x)

    def decode(self, so_far, memory):
        """so_far (B, T), the start token and the digits so far -> logits (B, T, 10) of the next."""
        T = so_far.shape[1]
        causal_mask = torch.ones(T, T, dtype=torch.bool, device=so_far.device).tril()  # (T, T)
        x = self.token_embedding(so_far) + self.target_position.weight[:T]             # (B, T, C)
        for block in self.decoder:
            x = block(x, memory, causal_mask)
        return self.to_logits(self.decoder_norm(x))

    def forward(self, source, target):
        """Teacher forcing: logits (B, n+1, 10) of each digit, given the correct ones before it."""
        # Shifted by START, or it would only copy: the decoder reads  START 0 5 0
        #                                          and predicts           0 5 0 6
        start = torch.full_like(target[:, :1], START)
        so_far = torch.cat([start, target[:, :-1]], dim=1)  # (B, n+1)
        return self.decode(so_far, self.encode(source))

# ---- 4. Scoring ----------------------------------------------------------------------------------
# An answer counts as right only if all of its digits are (exact match). In greedy decoding the
# model reads the digits that it has generated itself, with teacher forcing the correct ones. Until
# the first mistake both read the same, so both make it. Hence one teacher-forced pass decides exact
# match, unless the mask leaks. After the mistake, teacher-forced digits look better than they are.

@torch.inference_mode()
def greedy_decode(model, source):
    """Answer the problems (B, 2n+1), always with the most likely next digit: (B, n+1)."""
    memory = model.encode(source)
    so_far = torch.full((len(source), 1), START, device=source.device)  # (B, 1), grows by a digit
    for _ in range(model.args.num_digits + 1):
        logits = model.decode(so_far, memory)[:, -1]  # (B, 10)
        so_far = torch.cat([so_far, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return so_far[:, 1:]

def solve(model, problems):
    """Return the model's own answers to problems [(a, b), ...], as a list of numbers."""
    problems = torch.as_tensor(problems)
    power = 10 ** model.args.num_digits
    if problems.shape[1:] != (2,) or not ((power // 10 <= problems) & (problems < power)).all():
        raise UserError(f"expected pairs of numbers of {model.args.num_digits} digits")
    source, _ = tokenize(problems, model.args)
    answers = greedy_decode(model, source).tolist()
    return [int("".join(map(str, digits))) for digits in answers]

@torch.inference_mode()
def evaluate(model, problems):
    """The loss, and the fraction of problems (N, 2) answered right by greedy decoding."""
    source, target = tokenize(problems, model.args)
    loss = F.cross_entropy(model(source, target).flatten(0, 1), target.flatten()).item()
    right = (greedy_decode(model, source) == target).all(dim=1)  # (N,)
    return loss, right.double().mean().item()

def count_wrong(model):
    """Test all problems there are, on all cores: (how many are wrong, how many there are)."""
    numbers = torch.arange(10 ** model.args.num_digits)[10 ** (model.args.num_digits - 1):]
    problems = torch.cartesian_prod(numbers, numbers)  # (810000, 2) for three digits
    @torch.inference_mode()
    def wrong_in(chunk):
        source, target = tokenize(chunk, model.args)
        return (model(source, target).argmax(dim=-1) != target).any(dim=1).sum().item()
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(wrong_in, problems.split(1024))), len(problems)

# ---- 5. Training ---------------------------------------------------------------------------------
# The loss is the cross-entropy of the correct digits, all predicted at once by teacher forcing.
# Problems are shown as a+b or b+a at random. AdamW divides a running mean of the gradients by their
# usual size. Both rest on few gradients at first, so the learning rate rises in a warm-up. Over the
# last 60% of the steps it falls to 0: at the full rate the last errors do not disappear.
# 2,000 test problems without an error bound the error rate, with 95% confidence, by 3/2,000: still
# 1,200 of all problems. A model with one error in a thousand passes with probability 0.999^2000 =
# 14%. So at the end all are tested.

def train(args):
    """--mode train: train a model, keep the weights best in validation, save and test them."""
    name = f"model seed {args.model_seed}"
    data = load_data(args)
    torch.manual_seed(args.model_seed)
    model = Adder(args).to(args.device)
    optimizer = common.adamw(model, args, beta2=0.95)
    source, target = tokenize(data["train"], model.args)
    mirror, _ = tokenize(data["train"].flip(1), model.args)  # b+a
    n_batches = max(1, len(source) // args.batch_size)  # the rest of an epoch is left out
    shuffle = torch.Generator().manual_seed(args.model_seed)
    coin = torch.Generator().manual_seed(args.model_seed)
    print(f"{name}: {len(source):,} problems; guessing has a loss of ln 10", file=sys.stderr)
    history = []
    losses = []
    best = {"val_accuracy": -1, "val_loss": 0}
    began = time.time()
    for step in range(1, args.steps + 1):
        i = (step - 1) % n_batches
        if i == 0:
            order = torch.randperm(len(source), generator=shuffle)
        batch = order[i * args.batch_size:(i + 1) * args.batch_size]         # (B,)
        swap = torch.rand(len(batch), 1, generator=coin) < 0.5               # (B, 1)
        x = torch.where(swap.to(args.device), mirror[batch], source[batch])  # (B, 2n+1)
        logits = model(x, target[batch])                                     # (B, n+1, 10)
        loss = F.cross_entropy(logits.flatten(0, 1), target[batch].flatten())
        optimizer.zero_grad()
        loss.backward()
        lr = args.lr * min(1, step / args.warmup, (args.steps + 1 - step) / (0.6 * args.steps))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        losses.append(loss.detach())
        if step % max(1, args.steps // 5) == 0 or step == args.steps:
            val_loss, val_accuracy = evaluate(model, data["val"])
            train_loss = torch.stack(losses).mean().item()
            losses = []
            if not math.isfinite(train_loss + val_loss):
                raise UserError(f"the loss is not finite at step {step}; type a smaller --lr")
            row = {"step": step, "train_loss": train_loss, "val_loss": val_loss, "lr": lr,
                   "val_accuracy": val_accuracy, "seconds": time.time() - began}
            values = " | ".join(f"{key} {x:.4g}" for key, x in row.items())
            print(f"{name} | {values}", file=sys.stderr)
            history.append(row)
            if (val_accuracy, -val_loss) > (best["val_accuracy"], -best["val_loss"]):
                best = row
                weights = copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    common.save(Path(args.out_dir, "addition", args.file), model)
    _, accuracy = evaluate(model, data["test"])
    test = {"n": len(data["test"]), "accuracy": accuracy}
    results = {"history": history, "best": best, "test": test}
    print(f"{name}: {100 * accuracy:.2f}% of {len(data['test']):,} test problems right")
    # exact_match() is teacher-forced. Were it higher, the decoder would see what it is to predict.
    if args.num_digits <= 3 and exact_match(model, data["test"]) == accuracy:
        wrong, n = count_wrong(model)
        results["exhaustive"] = {"n": n, "errors": wrong}
        print(f"{name}: {wrong:,} of all {n:,} problems wrong")
    common.save_log(model, results, guess=math.log(10))

# ---- 6. Looking inside ---------------------------------------------------------------------------
# Heads are called enc.L0.H1 (encoder, block 0, head 1), dec.L0.H1 (self-attention of the decoder)
# and cross.L0.H1. One function runs the model and returns what every head attends to and puts out.
# It can also replace a head's output. Everything that follows is then computed anew. Three uses:
#     zero ablation         run(model, problems, {"cross.L0.H1": 0})
#     mean ablation         run(model, problems, {"cross.L0.H1": its mean output})
#     activation patching   run(model, problems, {"cross.L0.H1": its output on other problems})

def attentions_of(model):
    """{"enc.L0": its MultiHeadAttention, ...} of all blocks."""
    attentions = {f"enc.L{i}": block.self_attention for i, block in enumerate(model.encoder)}
    attentions |= {f"dec.L{i}": block.self_attention for i, block in enumerate(model.decoder)}
    return attentions | {f"cross.L{i}": b.cross_attention for i, b in enumerate(model.decoder)}

def replace_heads(model, replace):
    """From now on, put these in the place of head outputs: {"cross.L0.H1": output}; {} ends it."""
    for name, attention in attentions_of(model).items():
        heads = {h: f"{name}.H{h}" for h in range(attention.n_head)}
        attention.replace = {h: replace[head] for h, head in heads.items() if head in replace}

@torch.inference_mode()
def run(model, problems, replace={}):
    """Run the model, teacher-forced, on problems (N, 2), with the outputs of some heads replaced.
    replace is {head: 0 or (1 or N, T, d_head)}. Returns the digits predicted (N, n+1), {head:
    attention weights (N, T, S)}, and {head: output (N, T, d_head)}.
    """
    replace_heads(model, replace)
    predictions = model(*tokenize(problems, model.args)).argmax(dim=-1)
    replace_heads(model, {})
    weights = {}
    outputs = {}
    for name, attention in attentions_of(model).items():
        for h in range(attention.n_head):
            weights[f"{name}.H{h}"] = attention.weights[:, h]
            outputs[f"{name}.H{h}"] = attention.outputs[:, h]
    return predictions, weights, outputs

def exact_match(model, problems, replace={}):
    """The fraction of problems answered right, with the outputs of some heads replaced."""
    predictions, _, _ = run(model, problems, replace)
    _, target = tokenize(problems, model.args)
    return (predictions == target).all(dim=1).double().mean().item()

# 6a. What does each head attend to?
# A row of the decoder is named by the digit that it predicts. Hypothesis: since a column needs the
# carry from its right, some head of the encoder or of cross-attention reads the units for the tens
# and the tens for the hundreds. Refuted if no head does both with most of its weight. Result: all
# five model seeds have one, here cross.L0.H2 on 347+159:
#                          3    4    7    +    1    5    9
#     hundreds, 5                                   1.0
#     tens, 0                                            1.0
# With a carry it reads the larger of the two digits, else the smaller (enc.L0.H2 joined them).

EXAMPLES = [(241, 536), (347, 128), (347, 159), (199, 801), (999, 999)]  # from no carry to three

def draw_attention(weights, source, target, title, low=0, cmap="Blues"):
    """Draw a heatmap per head: weights {head: (T, S)}, names of the source and target tokens."""
    n_rows = len({head.split(".H")[0] for head in weights})
    fig, axes = common.subplots(n_rows, len(weights) // n_rows, 1.8 * n_rows + 0.5, squeeze=False)
    fig.suptitle(title)
    for ax, (head, grid) in zip(axes.flat, weights.items()):
        queries = source if head.startswith("enc") else target
        keys = ["start", *target[:-1]] if head.startswith("dec") else source
        image = ax.imshow(grid, vmin=low, vmax=1, cmap=cmap, aspect="auto")
        ax.set_xticks(range(len(keys)), keys)
        ax.set_yticks(range(len(queries)), queries)
        ax.tick_params(labelsize=8)
        ax.set(title=head, xlabel="key", ylabel="query" if queries is source else "query predicts")
    fig.colorbar(image, ax=axes, label="attention weight")
    return fig

def draw_examples(model, problems, args):
    """Draw all heads on each of the problems [(a, b), ...]."""
    for a, b in problems:
        _, weights, _ = run(model, torch.tensor([(a, b)]))
        weights = {head: grid[0].tolist() for head, grid in weights.items()}
        digits = f"{a + b:0{model.args.num_digits + 1}}"
        target = [f"{place} {digit}" for place, digit in zip(SHORT[-len(digits):], digits)]
        title = f"{a}+{b}: the model answers {solve(model, [(a, b)])[0]}"
        fig = draw_attention(weights, [*f"{a}+{b}"], target, title)
        common.save(Path(args.out_dir, f"addition/attention_patterns/example_{a}+{b}.png"), fig)

# 6b. Which heads are needed? Ablation: replace the output of a head and measure the accuracy that
# is lost. Zeros remove all of it. Its mean over validation problems, per position, keeps what is
# the same for all, like a bias. How much a head costs depends on how many problems need it: one for
# all carries 70% (out of the units or tens), one for carries that pass through a nine 9%.
# Pruning. A removed head puts out zeros. Hypothesis: heads stand in for one another, so those that
# each cost at most one point of accuracy cost more together. Refuted in all five model seeds: about
# half of the heads can go together. In four seeds all of decoder self-attention is among them: the
# problem alone determines every digit. We also remove one by one, by the cost in validation.

def carry_into(problems, column):
    """Whether a carry arrives in a column, 0 for the units: problems (N, 2) -> (N,) booleans."""
    return (problems % 10 ** column).sum(dim=1) >= 10 ** column

def ablate(model, data):
    """The accuracy on test problems without each head, and of digits without and with a carry."""
    test = data["test"]
    _, target = tokenize(test, model.args)
    _, _, outputs = run(model, data["val"])
    table = {"n": len(test), "baseline": exact_match(model, test), "heads": {}}
    for head, output in outputs.items():
        mean = {head: output.mean(dim=0, keepdim=True)}  # (1, T, d_head)
        row = {"zero": exact_match(model, test, {head: 0}), "mean": exact_match(model, test, mean)}
        right = run(model, test, mean)[0] == target      # (N, n+1)
        for column in range(1, target.shape[1]):
            digit = right[:, -1 - column].double()
            carry = carry_into(test, column)
            row[PLACES[column]] = [digit[~carry].mean().item(), digit[carry].mean().item()]
        table["heads"][head] = row
    table["ranking"] = sorted(outputs, key=lambda head: table["heads"][head]["mean"])
    return table

def prune(model, data, ablation):
    """Remove heads together and one after another; the accuracy on test problems of both."""
    enough = ablation["baseline"] - 0.01 - 1e-9  # one point exactly is enough
    alone = [head for head, row in ablation["heads"].items() if row["zero"] >= enough]
    removed = {}
    accuracy = [ablation["baseline"]]  # after 0, 1, 2, ... removals
    while len(accuracy) <= len(ablation["heads"]):
        rest = [head for head in ablation["heads"] if head not in removed]
        best = max(rest, key=lambda head: exact_match(model, data["val"], {**removed, head: 0}))
        removed[best] = 0
        accuracy.append(exact_match(model, data["test"], removed))
    together = dict.fromkeys(alone, 0)
    found = {"order": list(removed), "accuracy": accuracy, "removable_alone": alone,
             "prunable": max(k for k, share in enumerate(accuracy) if share >= enough),
             "accuracy_without_all_of_those": exact_match(model, data["test"], together)}
    if model.args.num_digits <= 3:
        replace_heads(model, together)
        found["wrong_without_those"], found["n_problems"] = count_wrong(model)
        replace_heads(model, {})
    return found

def draw_ablation(table, seed):
    """Draw the accuracy that is lost without each head."""
    fig, ax = common.subplots()
    for kind, shift in (("zero", -0.2), ("mean", 0.2)):
        lost = [100 * (table["baseline"] - row[kind]) for row in table["heads"].values()]
        bars = ax.bar(np.arange(len(lost)) + shift, lost, 0.4, label=f"{kind} ablation")
        ax.bar_label(bars, fmt="%.0f", fontsize=8)
    ax.set_xticks(range(len(lost)), table["heads"], rotation=45)
    needed = sum(points > 10 for points in lost)
    ax.set(title=f"{needed} of {len(lost)} heads cost more than 10 points (mean ablation, {seed})",
           ylim=(0, 112), ylabel=f"accuracy lost (points)\non {table['n']:,} test problems")
    ax.legend()
    return fig

# 6c. Which heads move the carry?
# Weights show what a head reads, ablation that it is needed, patching what it brings. Take two
# problems that differ in one column only, the origin, which carries in one of them. The carry ends
# in the destination, a column that does not sum to nine:
#     units to tens        132+256=388    137+255=392    the tens digit changes from 8 to 9
#     units to hundreds    142+256=398    147+255=402    the tens sum to nine and pass it on
# Run the model on one of them (clean) and on the other (corrupted). Repeat the clean run with the
# outputs of some heads from the corrupted one. Does the digit of the destination flip to that of
# the other problem? The digits further left, which the decoder reads, are the same in both. So two
# rates are known: all of cross-attention, the only view of the problem, flips 100%; all of decoder
# self-attention, with one layer, 0%. But a head may bring the digits of the origin, not the carry.
# In the control both have the same carry, as 132+256 and 134+253: the tens must stay. Hypothesis:
# one head alone moves the carry. Refuted on a route (origin to destination) if no rate of flips is
# 0.9 above the same head's rate of changes in the control. If the destination sums to nine, the
# digit to its left changes too, but the decoder still reads the clean one, which speaks against the
# carry. So nines are routes of their own, one per direction, in which that digit differs. Result:
# on most routes one head does it, in four of five model seeds; in the fifth on few.

def carry_pairs(origin, destination, num_digits, kind, nine=None, n_pairs=1000):
    """Draw pairs of problems, clean and corrupted: two tensors (n_pairs, 2)."""
    generator = torch.Generator().manual_seed(0)
    def draw(digits):
        return digits[torch.randint(len(digits), (n_pairs,), generator=generator)]  # (n_pairs, 2)
    carries = torch.arange(n_pairs)[:, None] % 2 == 1  # (n_pairs, 1), whether the clean one does
    if nine:
        carries = torch.full_like(carries, nine == "taken out")
    clean = torch.zeros(n_pairs, 2, dtype=torch.long)
    corrupted = torch.zeros(n_pairs, 2, dtype=torch.long)
    for k in range(num_digits):
        smallest = 1 if k == num_digits - 1 else 0  # no zero in front
        digits = torch.cartesian_prod(torch.arange(smallest, 10), torch.arange(smallest, 10))
        total = digits.sum(1)  # (100 or 81,)
        if k == origin:
            high, low = digits[total >= 10], digits[total <= 8]  # carry or not, whatever arrives
            first = torch.where(carries, draw(high), draw(low))
            second = torch.where(carries == (kind == "control"), draw(high), draw(low))
        else:
            if origin < k < destination or (nine and k == destination):
                digits = digits[total == 9]  # passes the carry on
            elif k == destination:
                digits = digits[total != 9]  # the carry ends here
            first = second = draw(digits)
        clean += first * 10 ** k
        corrupted += second * 10 ** k
    return clean, corrupted

def patch_rates(model, origin, destination, nine=None):
    """Patch each head, and all of enc, dec or cross: {"flip": {head: rate}, "control": {...}}."""
    place = model.args.num_digits - destination  # of the digit in the answer
    rates = {"flip": {}, "control": {}}
    for kind, found in rates.items():
        clean, corrupted = carry_pairs(origin, destination, model.args.num_digits, kind, nine)
        _, target = tokenize(clean, model.args)
        _, other_target = tokenize(corrupted, model.args)
        before, _, _ = run(model, clean)
        other, _, outputs = run(model, corrupted)
        usable = ((before == target) & (other == other_target))[:, place]  # right without patching
        groups = {head: [head] for head in outputs}
        for stage in ("enc", "dec", "cross"):
            groups[f"all of {stage}"] = [head for head in outputs if head.startswith(stage)]
        for name, heads in groups.items():
            after, _, _ = run(model, clean, {head: outputs[head] for head in heads})
            hit = after == other_target if kind == "flip" else after != target
            found[name] = (hit[:, place] & usable).sum().item() / max(1, usable.sum().item())
    return rates

def trace_carries(model):
    """The rates of every route: {"units to tens": {"flip": {...}, "control": {...}}, ...}."""
    routes = {}
    for origin, destination in itertools.combinations(range(model.args.num_digits + 1), 2):
        route = f"{PLACES[origin]} to {PLACES[destination]}"
        routes[route] = patch_rates(model, origin, destination)
        if destination == origin + 1 < model.args.num_digits:
            for nine in ("put in", "taken out"):
                routes[f"{route}, nine, {nine}"] = patch_rates(model, origin, destination, nine)
    return routes

def draw_carries(routes, heads, seed):
    """Draw how often each head flips the digit, and how often it changes in the control."""
    names = list(routes["units to tens"]["flip"])
    fig, axes = common.subplots(2, 1, 1.5 + 0.4 * len(routes), sharex=True)
    alone = {route for row in heads.values() for route in row["moves alone"]}
    fig.suptitle(f"One head alone moves the carry on {len(alone)} of {len(routes)} routes ({seed})")
    for ax, kind in zip(axes, ("flip", "control")):
        grid = [list(rates[kind].values()) for rates in routes.values()]
        ax.imshow(grid, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for (i, j), rate in np.ndenumerate(grid):
            color = "w" if rate > 0.6 else "k"
            ax.text(j, i, f"{100 * rate:.0f}", ha="center", va="center", color=color)
        ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
        ax.set_yticks(range(len(routes)), routes)
        ax.set_title("digits changed (%): " + {"flip": "carry differs", "control": "control"}[kind])
    return fig

# 6d. What does a head say? At the query of a digit: how much of the variance of its output does the
# carry into that column explain, and how does its attention depend on that carry? A large share
# shows that the carry can be read there, not that anything reads it.

def compare_carries(model, problems):
    """{head: {"tens": variance explained, ...}} and {head: difference of weights (T, S)}."""
    _, weights, outputs = run(model, problems)
    explained = {}
    difference = {}
    for head in [head for head in outputs if head.startswith("cross")]:
        explained[head] = {}
        w = weights[head].double()                                  # (N, T, S)
        difference[head] = torch.zeros_like(w[0]).tolist()
        for column in range(1, model.args.num_digits + 1):
            carry = carry_into(problems, column).to(model.args.device)  # (N,)
            x = outputs[head][:, -1 - column].double()              # (N, d_head)
            x = x - x.mean(dim=0)
            means = torch.where(carry[:, None], x[carry].mean(dim=0), x[~carry].mean(dim=0))
            share = means.square().sum() / x.square().sum().clamp(min=1e-12)
            explained[head][PLACES[column]] = share.item()
            change = w[carry, -1 - column].mean(dim=0) - w[~carry, -1 - column].mean(dim=0)
            difference[head][-1 - column] = change.tolist()
    return explained, difference

def describe(attention, source, target, ablation, explained, routes):
    """Print and return what each head reads, costs, says and moves: {"enc.L0.H0": {...}, ...}."""
    found = {}
    for head, row in ablation["heads"].items():
        queries = source if head.startswith("enc") else target
        keys = ["start", *target] if head.startswith("dec") else source
        reads = {q: keys[w.index(max(w))] for q, w in zip(queries, attention[head])}
        lost = 100 * (ablation["baseline"] - row["mean"])
        moved = [route for route, rates in routes.items()
                 if rates["flip"][head] - rates["control"][head] >= 0.9 - 1e-9]
        found[head] = {"reads": reads, "points lost": lost, "moves alone": moved,
                       "variance explained": explained.get(head, {})}
        print(f"  {head:<12}", *(f"{q}<{k}" for q, k in reads.items()), f"| costs {lost:.1f} "
              f"points | alone moves {'; '.join(moved) or 'none'}")
    return found

# ---- 7. Command line -----------------------------------------------------------------------------

def analyze(args):
    """--mode analyze: all of section 6. Tables hold every model seed, figures show the first."""
    jobs = list(common.each_seed(args))
    models = common.find_models(jobs, command_line(), load, train)["addition"]
    data = load_data(models[0].args)
    target = SHORT[-1 - models[0].args.num_digits:]
    source = [f"{place}a" for place in target[1:]] + ["+"] + [f"{place}b" for place in target[1:]]
    tables = {"attention": {}, "ablation": {}, "pruning": {}, "carry": {}, "diff": {}, "heads": {}}
    for model in models:
        _, weights, _ = run(model, data["test"])
        mean = {head: w.double().mean(dim=0).tolist() for head, w in weights.items()}
        ablation = ablate(model, data)
        pruning = prune(model, data, ablation)
        routes = trace_carries(model)
        explained, difference = compare_carries(model, data["test"])
        print(f"model seed {model.args.model_seed}: {pruning['prunable'] / len(mean):.0%} of heads "
              "can be removed; query<key of the largest weight of each:")
        heads = describe(mean, source, target, ablation, explained, routes)
        for name, found in zip(tables, (mean, ablation, pruning, routes, difference, heads)):
            tables[name][model.args.model_seed] = found
    out = Path(args.out_dir, "addition")
    for name, found in tables.items():
        common.save(out / f"head_analysis/{name}.json", found)
    first = {name: found[models[0].args.model_seed] for name, found in tables.items()}
    page = {"addition": common.for_page(models[0]), "pruning": first["pruning"]}
    common.save(out / "model.js", page)  # for out/explorer.html
    seed = f"model seed {models[0].args.model_seed}"
    common.save(out / "head_analysis/ablation.png", draw_ablation(first["ablation"], seed))
    common.save(out / "head_analysis/carry.png", draw_carries(first["carry"], first["heads"], seed))
    title = f"Mean over test problems; most needed: {first['ablation']['ranking'][0]} ({seed})"
    fig = draw_attention(first["attention"], source, target, title)
    common.save(out / "attention_patterns/mean.png", fig)
    most = max(first["diff"], key=lambda head: np.abs(first["diff"][head]).max())
    title = f"With a carry into the column, minus without: {most} changes most ({seed})"
    fig = draw_attention(first["diff"], source, target, title, -1, "RdBu")
    common.save(out / "attention_patterns/carry.png", fig)
    if models[0].args.num_digits == 3:
        draw_examples(models[0], EXAMPLES, args)

def load(path):
    """Return the model in a file that --mode train has written."""
    return common.load_model(path, command_line(), Adder)

def ask(args):
    """Print the answer to each problem, or with --mode analyze draw all heads on it."""
    (model,) = common.find_models([args], command_line(), load)["addition"]
    n = model.args.num_digits
    for text in args.questions:
        match = re.fullmatch(rf"\s*([1-9][0-9]{{{n - 1}}})\s*\+\s*([1-9][0-9]{{{n - 1}}})\s*", text)
        if not match:
            raise UserError(f"expected numbers of {n} digits, as in 347+159, found {text[:40]!r}")
        a, b = int(match[1]), int(match[2])
        if args.mode == "analyze":
            draw_examples(model, [(a, b)], args)
        else:
            print(f"{a}+{b}={solve(model, [(a, b)])[0]}")

def command_line():
    """Declare the flags."""
    parser = common.parser(__doc__.splitlines()[0], ["all", "gendata", "train", "analyze", "infer"],
                           folder="addition", d_model=64, d_ff=128, steps=2200, batch_size=64,
                           lr=5e-3, warmup=50, weight_decay=0.3)
    flag = parser.add_argument
    flag("--num-digits", type=int, choices=range(1, 16), default=3, metavar="N", help="of a number")
    flag("--carry-chains", type=float, default=0.5, help="fraction of training problems with them")
    return parser

def main(args):
    """Do what --mode says."""
    if args.mode in ("all", "gendata", "train"):
        load_data(args)  # made here, not by each training
    if args.mode in ("all", "train"):
        common.side_by_side(train, list(common.each_seed(args)))
    if args.questions:
        ask(args)
    elif args.mode in ("all", "analyze"):
        analyze(args)

if __name__ == "__main__":
    common.run(main, command_line())
