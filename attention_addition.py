"""How does a transformer add?  Attention from scratch, on a task small enough to check.

An encoder reads a problem such as `347+159`, a token per character. A decoder writes
the sum `0506` one digit at a time. The model learns from 10,000 problems and is tested
on all 810,000. Then we look inside: what does each attention head read, which heads are
needed, and what does each bring to the sum?

  python attention_addition.py 347+159 999+999           ask: two seconds
  python attention_addition.py                           train, look inside: minutes
  python attention_addition.py --mode analyze 582+417    draw all heads

From Python, no file is read or written:

  config = Config(steps=500)
  model, log = train(config, make_data(config))
  solve(model, [(347, 159)])

Shapes: B problems in a batch or N in all, n digits in a number, C = d_model; T queries,
S keys, d or d_head channels.
"""
import contextlib
import copy
import itertools
import math
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

import common
from common import UserError

@dataclass(frozen=True)
class Config:
    """All that decides what a model becomes. Each is a flag: --num-digits 2."""
    num_digits: int = 3        # of each number
    carry_chains: float = 0.5  # fraction of training problems with them
    n_train: int = 10_000      # problems to learn from,
    n_val: int = 2_000         # to choose the best weights by,
    n_test: int = 2_000        # and to test the model
    seed: int = 641            # of the data
    n_layer: int = 1           # blocks of encoder and decoder
    n_head: int = 4            # heads of each attention
    d_model: int = 64          # C, the width of a hidden state
    d_ff: int = 128            # hidden units of a feed-forward network
    model_seed: int = 1        # of initial weights and batches
    steps: int = 2200          # of training, a batch each
    batch_size: int = 64       # problems in a batch
    lr: float = 5e-3           # highest learning rate,
    warmup: int = 50           # reached after so many steps
    weight_decay: float = 0.3  # of matrices

    def __post_init__(self):
        common.check(self)
        if not 2 <= self.num_digits <= 6:
            raise UserError("type --num-digits 2 to 6")

# ==== Part I, the lesson ==============================================================
# ---- 1. The task and its data --------------------------------------------------------
# Tokens 0 to 9 are digits, 10 is `+`, 11 is the start token of an answer. The source is
# a problem, the target its sum with n + 1 digits:
#     347+159   source 3 4 7 + 1 5 9    target 0 5 0 6
# This order is hard: the first digit depends on carries from all columns to its right.

PLUS, START, N_TOKENS = 10, 11, 12
COLUMNS = ["units", "tens", "hundreds", "thousands", "10^4", "10^5", "10^6"]  # of the sum

def to_digits(number, width):
    """Decimal digits, most significant first: 347 -> [3, 4, 7], of numbers or of tensors."""
    return [number // 10 ** k % 10 for k in reversed(range(width))]

def from_digits(digits):
    """The inverse: [3, 4, 7] -> 347."""
    number = 0
    for digit in digits:
        number = 10 * number + digit
    return number

def tokenize(problems, num_digits):
    """Turn pairs of numbers [(a, b), ...] into source (N, 2n+1) and target (N, n+1)."""
    a, b = torch.as_tensor(problems).T
    plus = torch.full_like(a, PLUS)
    source = [*to_digits(a, num_digits), plus, *to_digits(b, num_digits)]
    target = to_digits(a + b, num_digits + 1)  # what the model is to learn
    return torch.stack(source, dim=1), torch.stack(target, dim=1)

# a+b and b+a count as one problem, drawn at most once. A column that sums to nine
# passes on a carry that arrives: 347+652 is 0999, but 348+652 is 1000. Such carry
# chains are rare in random problems. So in half of the draws for training
# (--carry-chains) most columns are made to sum to nine or ten.
def add_carry_chain(a, b, num_digits, rng):
    """Replace each digit of b, with probability 0.7, so that the column sums to 9 or 10."""
    for k in range(num_digits):
        if rng.random() < 0.7:
            power = 10 ** k
            x = a // power % 10
            y = b // power % 10
            total = 9 + int(2 * rng.random())
            b += (min(9, total - x) - y) * power  # if x is 0, ten is out of reach
    return b

def make_data(config):
    """Draw the problems of each split: {"train": (N, 2), "val": (N, 2), "test": (N, 2)}."""
    low = 10 ** (config.num_digits - 1)
    count = 9 * low  # numbers of this length
    sizes = {"test": config.n_test, "val": config.n_val, "train": config.n_train}
    pairs = count * (count + 1) // 2
    if sum(sizes.values()) > pairs:
        raise UserError(f"only {pairs:,} pairs; type smaller --n-train, --n-val, --n-test")
    rng = random.Random(config.seed)
    seen = set()
    data = {}
    for split, size in sizes.items():
        problems = []
        while len(problems) < size:
            a = low + int(count * rng.random())  # randint() differs between Pythons
            b = low + int(count * rng.random())
            if split == "train" and rng.random() < config.carry_chains:
                b = add_carry_chain(a, b, config.num_digits, rng)
            pair = (min(a, b), max(a, b))
            if b >= low and pair not in seen:  # a chain may begin b with zero
                seen.add(pair)
                problems.append((a, b))
        data[split] = torch.tensor(problems)
    return data

def to_records(problems, num_digits):
    """Lines of a data file: {"input": [5, 0, 7, 10, 1, 5, 9], "target": [0, 6, 6, 6]}."""
    source, target = tokenize(problems, num_digits)
    return [{"input": x, "target": y} for x, y in zip(source.tolist(), target.tolist())]

def load_data(folder, config):
    """Return {split: problems (N, 2)} from the files in a folder, made if there is none."""
    n = config.num_digits
    flags = ["num_digits", "carry_chains", "n_train", "n_val", "n_test", "seed"]
    made_with = {flag: getattr(config, flag) for flag in flags}
    def make():
        return {split: to_records(problems, n) for split, problems in make_data(config).items()}
    def read(record):
        problem = from_digits(record["input"][:n]), from_digits(record["input"][n + 1:])
        if min(problem) < 10 ** (n - 1) or to_records([problem], n) != [record]:
            raise UserError(f"expected two numbers of {n} digits and their sum")
        return problem
    data = common.load_records(folder, ["train", "val", "test"], made_with, make, read)
    return {split: torch.tensor(problems) for split, problems in data.items()}

# ---- 2. Attention, in four steps -----------------------------------------------------
# Each token has a vector of C numbers, its hidden state. Three learned matrices make of
# it a query q (what it looks for), a key k (what it is found by) and a value v (what it
# passes on).
#
# Step 1, one query: a soft dictionary look-up. Attention compares the query with all S
# keys by dot products, turns these scores into weights that sum to 1 (softmax: exp,
# over the sum of all), and returns the weighted mean of all values.
#     weights = softmax(k q / sqrt(d))     q (d,), k (S, d) -> (S,)
#     output = weights v                   v (S, d_v) -> (d_v,)
# Step 2, all T queries at once: weights = softmax(q k^T / sqrt(d)), (T, S).
#
# Step 3, a mask: a score of -infinity becomes a weight of 0. In training the decoder
# reads the correct digits all at once. Without a mask that hides what comes later (a
# causal mask) it would copy the digit that it has to predict, and fail in generation.
#
# Step 4, several heads: a digit needs its column, and whether a carry arrives from the
# next lower one. One softmax gives one mean of both. So q, k and v are cut into n_head
# parts (heads) of d_head = C / n_head channels, each with its own softmax.

def scaled_dot_product_attention(q, k, v, mask=None):
    """Steps 1 to 3: softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, section 3.2.1).

    q (..., T, d), k (..., S, d), v (..., S, d_v); mask, broadcast to (..., T, S), is True
    where a query may attend. Returns the output (..., T, d_v) and the weights (..., T, S).

    >>> q = torch.tensor([[2 * math.log(3), 0, 0, 0]])
    >>> k = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    >>> v = torch.tensor([[8.0], [4.0]])
    >>> output, weights = scaled_dot_product_attention(q, k, v)
    >>> weights, output.round()
    (tensor([[0.7500, 0.2500]]), tensor([[7.]]))

    By hand: the dot products 2 ln 3 and 0, over sqrt(4), are ln 3 and 0. The weights are
    as exp(ln 3) : exp(0) = 3 : 1, so the output is 3/4 * 8 + 1/4 * 4 = 7.
    """
    # Independent entries of variance 1 give dot products of variance d. Over sqrt(d) it
    # is 1, so the softmax starts neither flat nor stuck on one key, whatever d is.
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    # Softmax. The largest score is subtracted so that exp cannot overflow. It is a
    # constant (detach), which changes neither weights nor gradients.
    weights = (scores - scores.detach().amax(dim=-1, keepdim=True)).exp()  # (..., T, S)
    weights = weights / weights.sum(dim=-1, keepdim=True)                  # each row sums to 1
    return weights @ v, weights

class MultiHeadAttention(nn.Module):
    """Step 4: n_head attentions side by side (Vaswani et al. 2017, section 3.2.2).

    Queries come from x, keys and values from memory: the same tensor in self-attention.
    """
    def __init__(self, d_model, n_head):
        super().__init__()
        self.n_head = n_head
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        # sqrt(d) is for q and k of variance 1. nn.Linear's weights give 1/3 at first;
        # doubled, 4/3.
        self.query.weight.data *= 2
        self.key.weight.data *= 2
        self.replace = {}  # {number of a head: what to put in the place of its output}

    def forward(self, x, memory, mask=None):
        """x (B, T, C), memory (B, S, C) -> (B, T, C)."""
        cut = (self.n_head, -1)                               # C channels into n_head x d_head
        q = self.query(x).unflatten(-1, cut).transpose(1, 2)       # (B, n_head, T, d_head)
        k = self.key(memory).unflatten(-1, cut).transpose(1, 2)    # (B, n_head, S, d_head)
        v = self.value(memory).unflatten(-1, cut).transpose(1, 2)  # (B, n_head, S, d_head)
        heads, weights = scaled_dot_product_attention(q, k, v, mask)
        for h, output in self.replace.items():                # by section 6
            if torch.is_tensor(output):                       # (B or 1, T, d_head), in generation
                output = output[:, :x.shape[1]]               # cut to the digits so far
            heads[:, h] = output
        self.outputs = heads.detach()                         # (B, n_head, T, d_head), and
        self.weights = weights.detach()                       # (B, n_head, T, S), to look at
        return self.output(heads.transpose(1, 2).flatten(2))  # concatenated, then mixed: (B, T, C)

# ---- 3. The model --------------------------------------------------------------------
# The encoder runs once per problem; each of its tokens attends to all. Its output, a
# vector per source token, is the memory. In generation the decoder runs once per digit:
# each of its tokens attends to itself and earlier ones (self-attention), then to the
# memory (cross-attention). A sum over keys is the same in any order, so attention
# ignores order. So each position has a learned vector, added to that of its token.
#
# Attention moves information between tokens, the feed-forward network computes on each
# token alone. Every such sublayer adds its result to the hidden state x, also called
# the residual stream. It reads a copy of x that LayerNorm has brought to mean 0 and
# variance 1 (pre-norm; Xiong et al. 2020), so x and its gradients have a path of plain
# additions.

class Block(nn.Module):
    """Self-attention, in the decoder cross-attention too, then a feed-forward network."""
    def __init__(self, config, decoder):
        super().__init__()
        d_model = config.d_model
        self.norm_self = nn.LayerNorm(d_model)
        self.self_attention = MultiHeadAttention(d_model, config.n_head)
        if decoder:
            self.norm_cross = nn.LayerNorm(d_model)
            self.cross_attention = MultiHeadAttention(d_model, config.n_head)
        self.norm_ff = nn.LayerNorm(d_model)
        self.feed_forward = nn.Sequential(nn.Linear(d_model, config.d_ff), nn.ReLU(),
                                          nn.Linear(config.d_ff, d_model))

    def forward(self, x, memory=None, mask=None):
        """x (B, T, C) -> (B, T, C); in the decoder with the memory (B, S, C) and a causal mask."""
        y = self.norm_self(x)
        x = x + self.self_attention(y, y, mask)
        if memory is not None:
            x = x + self.cross_attention(self.norm_cross(x), memory)
        return x + self.feed_forward(self.norm_ff(x))

class Adder(nn.Module):
    """An encoder-decoder transformer from problems to sums."""
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(N_TOKENS, config.d_model)
        self.source_position = nn.Embedding(2 * config.num_digits + 1, config.d_model)
        self.target_position = nn.Embedding(config.num_digits + 1, config.d_model)
        self.encoder = nn.ModuleList(Block(config, False) for _ in range(config.n_layer))
        self.decoder = nn.ModuleList(Block(config, True) for _ in range(config.n_layer))
        self.encoder_norm = nn.LayerNorm(config.d_model)
        self.decoder_norm = nn.LayerNorm(config.d_model)
        self.to_logits = nn.Linear(config.d_model, 10, bias=False)  # an answer holds digits only
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
        causal_mask = torch.ones(T, T, dtype=torch.bool).tril()             # (T, T)
        x = self.token_embedding(so_far) + self.target_position.weight[:T]  # (B, T, C)
        for block in self.decoder:
            x = block(x, memory, causal_mask)
        return self.to_logits(self.decoder_norm(x))

    def forward(self, source, target):
        """Teacher forcing: logits (B, n+1, 10) of each digit, given the correct ones before it."""
        # The decoder reads  START 0 5 0  Nothing is written before the first digit,
        # and predicts           0 5 0 6  so START stands there.
        start = torch.full_like(target[:, :1], START)
        so_far = torch.cat([start, target[:, :-1]], dim=1)  # (B, n+1)
        return self.decode(so_far, self.encode(source))

# ---- 4. Scoring ----------------------------------------------------------------------
# An answer is right if all of its digits are (exact match). In greedy decoding the
# model reads its own digits, in teacher forcing the correct ones. Up to the first
# mistake these are the same, so one teacher-forced pass tells whether an answer is
# right, unless a mask leaks.

@torch.inference_mode()
def greedy_decode(model, source):
    """Answer the problems (B, 2n+1), always with the most likely next digit: (B, n+1)."""
    memory = model.encode(source)
    so_far = torch.full((len(source), 1), START)       # (B, 1), grows by a digit
    for _ in range(model.config.num_digits + 1):
        logits = model.decode(so_far, memory)[:, -1]   # (B, 10)
        digit = logits.argmax(dim=-1, keepdim=True)    # (B, 1)
        so_far = torch.cat([so_far, digit], dim=1)
    return so_far[:, 1:]

def solve(model, problems):
    """The model's own answers to problems [(a, b), ...], as a list of numbers."""
    problems = torch.as_tensor(problems)
    low = 10 ** (model.config.num_digits - 1)
    if problems.is_floating_point() or not ((low <= problems) & (problems < 10 * low)).all():
        raise UserError(f"expected pairs of whole numbers from {low} to {10 * low - 1}")
    source, _ = tokenize(problems, model.config.num_digits)
    return from_digits(greedy_decode(model, source).T).tolist()

@torch.inference_mode()
def evaluate(model, problems):
    """The loss, and the fraction of problems (N, 2) answered right by greedy decoding."""
    source, target = tokenize(problems, model.config.num_digits)
    logits = model(source, target)                               # (N, n+1, 10)
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten()).item()
    right = (greedy_decode(model, source) == target).all(dim=1)  # (N,)
    return loss, right.double().mean().item()

@torch.inference_mode()
def is_right(model, problems):
    """Whether each problem is answered right, by one teacher-forced pass: (N,)."""
    source, target = tokenize(problems, model.config.num_digits)
    return (model(source, target).argmax(dim=-1) == target).all(dim=1)

def all_problems(num_digits):
    """All pairs of numbers: (810000, 2) for three digits."""
    numbers = torch.arange(10 ** (num_digits - 1), 10 ** num_digits)
    return torch.cartesian_prod(numbers, numbers)

def count_wrong(model, problems):
    """How many of the problems are wrong; in chunks, to save memory."""
    return sum((~is_right(model, chunk)).sum().item() for chunk in problems.split(1024))

# ---- 5. Training ---------------------------------------------------------------------
# The loss is the cross-entropy of the correct digits, all predicted at once by teacher
# forcing. AdamW's running means rest on few gradients at first, so the learning rate
# rises in a warm-up. At the end all 810,000 problems are tested: 0 are wrong in each of
# model seeds 1 to 5.

def learning_rate(step, config):
    """Up in a warm-up, then constant, over the last 60% of the steps down to 0."""
    up = step / config.warmup
    down = (config.steps + 1 - step) / (0.6 * config.steps)
    return config.lr * min(1, up, down)

def train(config, data):
    """Train a model. Return it, with the weights best in validation, and its log."""
    torch.manual_seed(config.model_seed)
    model = Adder(config)
    optimizer = common.adamw(model, config, beta2=0.95)
    n_batches = max(1, len(data["train"]) // config.batch_size)  # the rest is left out
    # Two generators: the coin does not change the order of the batches.
    shuffle = torch.Generator().manual_seed(config.model_seed)
    coin = torch.Generator().manual_seed(config.model_seed)
    history, losses = [], []
    every = max(1, config.steps // 5)
    best = None
    for step in range(1, config.steps + 1):
        # the next batch: a new order every epoch, a+b or b+a
        i = (step - 1) % n_batches
        if i == 0:
            order = torch.randperm(len(data["train"]), generator=shuffle)
            batches = order.split(config.batch_size)
        problems = data["train"][batches[i]]                      # (B, 2)
        swap = torch.rand(len(problems), 1, generator=coin) < 0.5  # (B, 1)
        problems = torch.where(swap, problems.flip(1), problems)
        source, target = tokenize(problems, config.num_digits)    # (B, 2n+1), (B, n+1)

        # forward, backward, update
        logits = model(source, target)                            # (B, n+1, 10)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.step()
        losses.append(loss.item())

        # about five times: validate, and keep the best weights
        if step % every == 0 or step == config.steps:
            val_loss, val_accuracy = evaluate(model, data["val"])
            if not math.isfinite(losses[-1] + val_loss):
                raise UserError(f"the loss is not finite at step {step}; type a smaller --lr")
            history.append({"step": step, "val_loss": val_loss, "val_accuracy": val_accuracy})
            print(f"seed {config.model_seed} | step {step} | loss {losses[-1]:.3g} | validation "
                  f"{val_loss:.3g}, right {val_accuracy:.1%}", file=sys.stderr)
            for a, b in data["val"][:3].tolist():
                print(f"    {a}+{b}={solve(model, [(a, b)])[0]}", file=sys.stderr)
            if best is None or (val_accuracy, -val_loss) > best:
                best = (val_accuracy, -val_loss)
                weights = copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    return model.eval(), {"history": history, "losses": losses}

# ==== Part II, the lab ================================================================
# ---- 6. Looking inside ---------------------------------------------------------------
# Heads are called enc.L0.H1 (encoder, block 0, head 1), dec.L0.H1 (self-attention of
# the decoder) and cross.L0.H1. One function runs the model and returns what every head
# attends to and puts out. It can also replace outputs of heads:
#     zero ablation        run(model, problems, {"cross.L0.H1": 0})
#     mean ablation        run(model, problems, {"cross.L0.H1": its mean output})
#     activation patching  run(model, problems, {"cross.L0.H1": that of other problems})
# The heads beside it, and the correct digits that the decoder reads, stay.

def heads_of(model):
    """{"enc.L0.H1": (its MultiHeadAttention, 1), ...} of all heads."""
    heads = {}
    for stage in ("enc", "dec", "cross"):
        for i, block in enumerate(model.encoder if stage == "enc" else model.decoder):
            attention = block.cross_attention if stage == "cross" else block.self_attention
            for h in range(attention.n_head):
                heads[f"{stage}.L{i}.H{h}"] = attention, h
    return heads

@contextlib.contextmanager
def replaced(model, outputs):
    """Put {head: tensor (1 or N, T, d_head) or 0} in place of outputs inside a with block."""
    heads = heads_of(model)
    if outputs.keys() - heads.keys():
        raise UserError(f"expected heads among {', '.join(heads)}, found {', '.join(outputs)}")
    try:
        for head, output in outputs.items():
            attention, h = heads[head]
            attention.replace[h] = output
        yield
    finally:
        for head in outputs:  # not those of an outer block
            attention, h = heads[head]
            attention.replace.pop(h, None)

@torch.inference_mode()
def run(model, problems, replace={}):
    """Run the model, teacher-forced, with some heads replaced.

    Returns digits (N, n+1), {head: weights (N, T, S)} and {head: output (N, T, d_head)}.
    """
    with replaced(model, replace):
        digits = model(*tokenize(problems, model.config.num_digits)).argmax(dim=-1)
    weights, outputs = {}, {}
    for head, (attention, h) in heads_of(model).items():
        weights[head] = attention.weights[:, h]
        outputs[head] = attention.outputs[:, h]
    return digits, weights, outputs

def accuracy(model, problems, replace={}):
    """The fraction of problems answered right, with some heads replaced."""
    with replaced(model, replace):
        return is_right(model, problems).double().mean().item()

# 6a. What does each head attend to?
# In attention_patterns/example_367+159.png (seed 1) enc.L0.H2 joins the two digits of
# each column, and cross.L0.H2 reads the next lower one, where the carry comes from. But
# weights do not say what the model needs.
EXAMPLES = [(241, 536), (347, 128), (367, 159), (199, 801), (999, 999)]

def draw_heads(model, a, b):
    """Draw the attention weights of all heads on a+b."""
    _, weights, _ = run(model, [(a, b)])
    source = list(f"{a}+{b}")
    _, (target,) = tokenize([(a, b)], model.config.num_digits)
    target = target.tolist()
    rows = 3 * model.config.n_layer
    fig, axes = common.subplots(rows, model.config.n_head, 1.8 * rows + 0.5, squeeze=False)
    fig.suptitle(f"{a}+{b}: the model answers {solve(model, [(a, b)])[0]} (model seed "
                 f"{model.config.model_seed}; attention weights, 0 white to 1 blue)")
    for ax, (head, grid) in zip(axes.flat, weights.items()):
        queries = source if head.startswith("enc") else target
        keys = ["start", *target[:-1]] if head.startswith("dec") else source
        ax.imshow(grid[0].numpy(), vmin=0, vmax=1, cmap="Blues", aspect="auto")
        ax.set_xticks(range(len(keys)), keys)
        ax.set_yticks(range(len(queries)), queries)
        ax.set(title=head, xlabel="key", ylabel="query" if queries is source else "query predicts")
    return fig

# 6b. Which heads are needed?
# Ablation: replace a head's output and measure the accuracy that is left. Zeros remove
# all of it. Its mean over validation problems, per position, keeps what all share.
# Result (tests.tables: ablation): percent right without a head, model seed 1
#               enc.L0.H1  enc.L0.H2  cross.L0.H0  cross.L0.H1  cross.L0.H2  the other 7
#     zeros     95         0          2            56           28           100
#     its mean  95         0          3            91           32           100
#
# So for 91% cross.L0.H1 may be a constant. A head is idle if zeros cost at most one
# percentage point. The other 7 are, all of decoder self-attention among them. None
# stands in for another: without all 7, 0 of 810,000 answers are wrong. In five model
# seeds 5 to 7 of the 12 are idle, again with 0 wrong.
def ablate(model, data, problems):
    """Accuracies on test problems without each head, and errors without all idle ones."""
    _, _, outputs = run(model, data["val"])
    right = accuracy(model, data["test"])
    zero, mean = {}, {}
    for head, output in outputs.items():
        zero[head] = accuracy(model, data["test"], {head: 0})
        mean[head] = accuracy(model, data["test"], {head: output.mean(dim=0, keepdim=True)})
    idle = [head for head in zero if zero[head] >= right - 0.01]
    with replaced(model, dict.fromkeys(idle, 0)):
        wrong = count_wrong(model, problems)
    return {"accuracy": right, "zero": zero, "mean": mean, "ranking": sorted(mean, key=mean.get),
            "idle": idle, "wrong_without_idle": wrong}

# 6c. What does each head bring?
# By hand, a digit is the sum of its column plus the carry that arrives, modulo ten.
# Hypothesis: different heads bring the two. Run the model on one problem with a head's
# output on another (activation patching; here an interchange intervention, Geiger et
# al. 2021). In the tens of 241+526 (4+2, no carry) one from 347+159 (4+5, carry) brings
#     nothing: 6 = 4+2   the carry: 7 = 4+2+1   the column: 9 = 4+5   both: 0 of 4+5+1
#
# A pair of test problems counts if these digits all differ. A head brings what fits in
# 90% of the pairs; if none does, two are patched together. The hypothesis fails if a
# head brings both, or if no two bring the carry, or no two the column. Control: outputs
# of a third problem. The second's column then fits by chance in a tenth of the pairs,
# its carry, yes or no, in half.
#
# Result (tests.tables: tens): percent of the pairs
#     model seed  carry                          column
#     1           cross.L0.H2 95                 cross.L0.H0 + cross.L0.H1 95
#     2           cross.L0.H0 100                cross.L0.H1 + cross.L0.H3 100
#     3           cross.L0.H2 100                cross.L0.H0 + cross.L0.H3 100
#     4           enc.L0.H0 100                  enc.L0.H0 + cross.L0.H0 28
#     5           cross.L0.H0 + cross.L0.H1 100  cross.L0.H3 100
#     1, control  cross.L0.H2 47                 cross.L0.H0 9
#
# So the hypothesis holds in seeds 1, 2, 3 and 5: different heads of the decoder bring
# carry and column, and no head brings both in more than 41%. (In seed 1 cross.L0.H0
# brings the column in 84%, in the control 9%.) In seed 4 no two heads bring the column;
# how is not shown. Of 40 fresh models 18 are like the four, 22 like seed 4.
def carry_into(problems, column):
    """Whether a carry arrives in a column, 0 for the units: problems (..., 2) -> (...)."""
    return (problems % 10 ** column).sum(dim=-1) >= 10 ** column

def expected_digits(pairs, column, num_digits):
    """The digit of a column, if a head brings nothing, the carry, ...; pairs (2, N, 2)."""
    sum_1, sum_2 = (pairs // 10 ** column % 10).sum(dim=-1)   # (N,) of the first, the second
    carry_1, carry_2 = carry_into(pairs, column).long()
    digits = {"nothing": sum_1 + carry_1, "carry": sum_1 + carry_2,
              "column": sum_2 + carry_1, "both": sum_2 + carry_2}
    if column == 0:           # no carry arrives in the units
        del digits["carry"], digits["both"]
    if column == num_digits:  # the largest digit is a carry and nothing else
        del digits["column"], digits["both"]
    return {what: digit % 10 for what, digit in digits.items()}

def interchange(model, problems, groups, donor=1):
    """{column: {group: {"nothing": fraction of pairs, "carry": ...}}} of {group: [head, ...]}.

    The second of a pair is the problem before; donor=2: outputs of the one before that.
    """
    n = model.config.num_digits
    pairs = torch.stack([problems, problems.roll(1, 0)])      # (2, N, 2)
    _, _, outputs = run(model, problems)
    table = {column: {} for column in COLUMNS[:n + 1]}
    for group, heads in groups.items():
        patch = {head: outputs[head].roll(donor, 0) for head in heads}
        answer, _, _ = run(model, problems, patch)            # (N, n+1)
        for k, rows in enumerate(table.values()):
            expected = expected_digits(pairs, k, n)
            in_order = torch.stack(list(expected.values())).sort(dim=0).values
            counts = (in_order.diff(dim=0) > 0).all(dim=0)    # (N,), where all differ
            rows[group] = {}
            for what, digit in expected.items():
                fits = (answer[:, -1 - k] == digit)[counts]
                rows[group][what] = fits.double().mean().item()
    return table

def who_brings(model, problems):
    """{column: {"carry": [head, fraction], "column": ...}}; of two heads if none reaches 0.9."""
    groups = {head: [head] for head in heads_of(model)}
    for pair in itertools.combinations(groups, 2):
        groups[" + ".join(pair)] = pair
    found = {}
    for column, rows in interchange(model, problems, groups).items():
        found[column] = {}
        for what in ("carry", "column"):
            fraction = {group: row[what] for group, row in rows.items() if what in row}
            enough = [g for g in fraction if fraction[g] >= 0.9 and "+" not in g]
            pairs = [g for g in fraction if "+" in g]
            if fraction:
                best = max(enough or pairs, key=fraction.get)
                found[column][what] = [best, fraction[best]]
    return found

def draw_interchange(table, title):
    """Draw what each head brings: a panel per digit, a bar per head."""
    fig, axes = common.subplots(1, len(table), 4.5, sharey=True)
    fig.suptitle(title)
    colors = {"nothing": "0.85", "carry": "#E69F00", "column": "#0072B2", "both": "black"}
    for ax, (column, rows) in zip(axes, reversed(table.items())):
        left = torch.zeros(len(rows))
        for what, color in colors.items():
            fractions = torch.tensor([row.get(what, 0) for row in rows.values()])
            ax.barh(list(rows), fractions, left=left, color=color, label=what)
            left = left + fractions
        ax.set(title=column, xlabel="fraction of pairs", xlim=(0, 1))
    axes[0].invert_yaxis()
    fig.legend(*axes[0].get_legend_handles_labels(), ncols=4, loc="outside lower center",
               title="white: another digit")
    return fig

# 6d. Does the model need more from a head than the carry?
# Where one head brings a carry, replace its output by one of two constant vectors: its
# mean over validation problems with a carry into the column, or without. The true carry
# decides which: one bit. Control: the carry of another problem, wrong in half of the
# problems, for two columns in three quarters.
#
# Result: with this bit 0 of all 810,000 problems are wrong in model seeds 1 to 4 (5 has
# no such head), in the control at least 51% of the test problems. 38 of the 40 fresh
# models have such heads, with 0 wrong of every 23rd problem. So for the carry into a
# column one bit from them is enough. How they find it is not shown.
def one_bit(model, val, head, columns, problems, roll=0):
    """How many problems are wrong if a head says one bit about these columns; roll=1: control."""
    _, _, outputs = run(model, val)
    said = outputs[head]                                      # (M, T, d_head)
    n = model.config.num_digits
    wrong = 0
    for chunk in problems.split(4096):
        _, _, outputs = run(model, chunk)
        own = outputs[head].clone()                           # (B, T, d_head)
        for column in columns:
            arrives = carry_into(val, column)                 # (M,)
            carry = carry_into(chunk, column).roll(roll)      # (B,)
            tokens = [n - column]                             # where its digit is predicted
            if head.startswith("enc"):
                tokens = [n - 1 - column, 2 * n - column]     # the two digits of the column
            yes = said[arrives][:, tokens].mean(dim=0)        # (1 or 2, d_head)
            no = said[~arrives][:, tokens].mean(dim=0)
            own[:, tokens] = torch.where(carry[:, None, None], yes, no)
        with replaced(model, {head: own}):
            wrong += (~is_right(model, chunk)).sum().item()
    return wrong

def measure_bits(model, data, who, problems):
    """{head: {"columns", "wrong", "control"}} of the heads that bring a carry alone."""
    found = {}
    inner = range(1, model.config.num_digits)
    for head in heads_of(model):
        columns = [k for k in inner if who[COLUMNS[k]]["carry"][0] == head]
        if columns:
            wrong = one_bit(model, data["val"], head, columns, problems)
            control = one_bit(model, data["val"], head, columns, data["test"], roll=1)
            found[head] = {"columns": columns, "wrong": wrong, "control": control}
    return found

# 6e. So how does it add?
# On 367+159 = 0526, model seed 1: in the encoder enc.L0.H2 lets each digit read the
# other one of its column. Then, by attention weights (6a), the decoder reads:
#     digit         H0, H1 read              H2 reads           left to the network
#     thousands 0   1 of 159, so 3+1         not needed         no carry out: 0
#     hundreds 5    1 of 159, so 3+1         6, so 6+5 carries  4 and a carry: 5
#     tens 2        6 and 5, so 6+5          9, so 7+9 carries  11 and a carry: 2
#     units 6       9 and 7, so 7+9          not needed         16: 6
# In the tens H0 and H1 bring the column and H2 the carry (6c), as one bit (6d). Not
# tested: that the encoder has already found that 7+9 carries, that the feed-forward
# network adds, and how a carry passes through a nine.

# ---- 7. Command line -----------------------------------------------------------------
def path_of(config, out):
    """The file of a model."""
    seed = f"seed{config.model_seed}" if config.model_seed > 1 else ""
    return out / "addition" / seed / "best_model.pth"

def train_and_save(config, data, path):
    """--mode train: one training and its files."""
    model, log = train(config, data)
    _, right = evaluate(model, data["test"])
    log["test_accuracy"] = right
    title = (f"model seed {config.model_seed}: {right:.1%} of {len(data['test']):,} test "
             "problems right")
    print(title, flush=True)
    if accuracy(model, data["test"]) > right:
        print("with the correct digits before it the model is better: it sees ahead", flush=True)
    elif right >= 0.99 and config.num_digits <= 3:
        problems = all_problems(config.num_digits)
        log["wrong"] = count_wrong(model, problems)
        print(f"{log['wrong']:,} of all {len(problems):,} problems wrong", flush=True)
    common.save_training(path, model, log, math.log(10), title)

def load(path, typed={}):
    """The model in a file of --mode train."""
    return common.load_model(path, Adder, Config, typed)

def look_inside(model, data, folder):
    """--mode analyze: the tables and figures of section 6."""
    n = model.config.num_digits
    problems = all_problems(n) if n <= 3 else data["test"]
    common.save_json(folder / "head_analysis/ablation.json", ablate(model, data, problems))
    groups = {head: [head] for head in heads_of(model)}
    brought = interchange(model, data["test"], groups)
    who = who_brings(model, data["test"])
    found = {"brought": brought, "unrelated": interchange(model, data["test"], groups, donor=2),
             "who": who, "one_bit": measure_bits(model, data, who, problems)}
    common.save_json(folder / "head_analysis/brings.json", found)
    carry, column = who["tens"].values()
    title = (f"Tens: {carry[0]} brings the carry in {carry[1]:.0%}, {column[0]} the column in "
             f"{column[1]:.0%}\n(pairs of test problems, model seed {model.config.model_seed})")
    print(title)
    common.write(folder / "head_analysis/brings.png", draw_interchange(brought, title).savefig)
    for a, b in EXAMPLES if n == 3 else []:
        path = folder / f"attention_patterns/example_{a}+{b}.png"
        common.write(path, draw_heads(model, a, b).savefig)

def ask(args, typed):
    """Answer problems; --mode analyze draws all heads on them."""
    path = args.model or path_of(Config(**typed), args.out_dir)
    if not path.exists() and not args.model:
        path = path_of(Config(**typed), Path("out/reference"))
    print(f"model: {path}", file=sys.stderr)
    model = load(path, typed)
    for text in args.questions:
        match = re.fullmatch(r"\s*(\d{1,9})\s*\+\s*(\d{1,9})\s*=?\s*", text, re.ASCII)
        if not match:
            raise UserError(f"expected a problem as in 347+159, or @file, found {text!r}")
        a, b = int(match[1]), int(match[2])
        print(f"{a}+{b}={solve(model, [(a, b)])[0]}")
        if args.mode == "analyze":
            path = args.out_dir / f"addition/attention_patterns/example_{a}+{b}.png"
            common.write(path, draw_heads(model, a, b).savefig)

def main(args, typed):
    """Do what --mode says, for one model seed."""
    if args.questions:
        return ask(args, typed)
    config = Config(**typed)
    folder = args.data_dir / "addition"
    path = path_of(config, args.out_dir)
    if args.mode != "analyze":
        data = load_data(folder, config)
    if args.mode in ("all", "train"):
        train_and_save(config, data, path)
    if args.mode in ("all", "analyze"):
        model = load(path, typed)
        data = load_data(folder, model.config) if folder.exists() else make_data(model.config)
        look_inside(model, data, path.parent)

MODES = ["all", "gendata", "train", "analyze", "infer"]

if __name__ == "__main__":
    common.run(main, common.flags(Config, MODES, __doc__), Config)
