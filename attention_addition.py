"""How does a transformer add?  Attention from scratch, on a problem small enough to check completely.

An encoder reads a problem such as `347+159`, a token per character, all at once. A decoder generates the sum `0506` one
digit at a time. Nobody tells them what a digit is worth or what a carry is. The model learns from 10,000 problems. Then
it is tested on all 810,000 that exist (2.5% of them were in training, in one order or the other). Then we look inside:
which tokens does it attend to, which of its attention heads can be removed, and which of them move the carry?

  python attention_addition.py 347+159 999+999           ask the trained model in out/reference, two seconds
  python attention_addition.py                           data, training, analysis: about a minute on two cores
  python attention_addition.py --mode train --steps 500  a shorter training, results in out/addition
  python attention_addition.py --mode analyze            look inside
  python attention_addition.py --mode analyze 582+417    draw all heads on this problem

Comments give the shape of each tensor: B problems in a batch or N in all, n digits in a number, C channels (d_model);
in attention T queries, S keys, and d channels of a query or key.

Left out on purpose: dropout, label smoothing, beam search, and a cache of keys and values. The code runs on torch >= 2.0.
"""
import math
import random
import re
import time
from pathlib import Path

import common
from common import UserError, log

import torch
import torch.nn as nn
import torch.nn.functional as F

SCRIPT = "attention_addition.py"

# ------------------------------------------------------------------------------------------------
# 1. The task and its tokens
#
# Tokens 0 to 9 are digits, 10 is `+`, and 11 is the start token of an answer (often called BOS). A problem of two
# n-digit numbers has 2n + 1 source tokens. Its target has n + 1 digits, the most significant first, so it may begin
# with 0:
#
#     347+159   source 3 4 7 + 1 5 9    target 0 5 0 6
#
# The decoder predicts each digit from the digits before it. The first digit has none before it, hence the start token.

PLUS = 10
START = 11
N_TOKENS = 12


def to_digits(numbers, width):
    """Split integers into decimal digits, most significant first: (N,) -> (N, width)."""
    powers = 10 ** torch.arange(width - 1, -1, -1)  # (width,): 100, 10, 1
    return numbers[:, None] // powers % 10


def tokenize(problems, num_digits):
    """Turn problems (N, 2), the numbers a and b, into source (N, 2n+1) and target (N, n+1)."""
    a, b = problems.T
    plus = torch.full((len(a), 1), PLUS)
    source = torch.cat([to_digits(a, num_digits), plus, to_digits(b, num_digits)], dim=1)
    return source, to_digits(a + b, num_digits + 1)


def carries(problems, num_digits):
    """Which columns carry into the next one: (N, 2) -> (N, n) booleans, units first (unlike digits).

    The tens of 347+159 carry, because 47 + 59 is 100 or more.
    """
    a, b = problems.T
    power = 10 ** torch.arange(1, num_digits + 1)  # (n,): 10, 100, 1000
    return a[:, None] % power + b[:, None] % power >= power


# ------------------------------------------------------------------------------------------------
# 2. The data
#
# a+b and b+a count as one problem: with one in training and the other in the test set, the test would be easier than it
# looks. So each unordered pair is drawn at most once. The files are JSON Lines, one record per line:
#
#     {"input": [5, 0, 7, 10, 1, 5, 9], "target": [0, 6, 6, 6]}
#
# A column that sums to ten or more starts a carry. One that sums to nine passes on a carry that arrives: 347+652 is
# 0999, but 348+652 is 1000. A carry through several columns is called a cascade. Cascades are the hard cases, and rare
# in random problems. So in half of the draws for training (--cascades) most columns are changed to sum to nine or ten.
# Validation and test problems stay random.
# Found (python -m tests.confirm adder): of 40 runs with new seeds for data and model, 39 had no error among all
# problems and one had 8. Without cascades 10 of the first 20 had no error (19 with them), and the worst had 842.

SPLITS = ("train", "val", "test")


def operand_range(num_digits, leading_zeros):
    """The smallest operand and how many there are: (100, 900) for 3 digits, (0, 1000) with leading zeros."""
    low = 0 if leading_zeros else 10 ** (num_digits - 1)
    return low, 10 ** num_digits - low


def make_cascade(a, b, num_digits, rng):
    """Return b with each digit replaced, with probability 0.7, so that its column sums to nine or ten."""
    for k in range(num_digits):
        if rng.random() < 0.7:
            power = 10 ** k
            x = a // power % 10
            y = b // power % 10
            total = 9 + int(2 * rng.random())  # random(), unlike randint(), is the same in every version of Python
            b += (min(9, total - x) - y) * power  # if x is 0 no digit makes ten, so take nine
    return b


def draw_problems(num_digits, leading_zeros, sizes, cascades, seed):
    """Draw different problems, no two of them mirror images: {split: [(a, b), ...]} for sizes {split: how many}."""
    low, count = operand_range(num_digits, leading_zeros)
    rng = random.Random(seed)
    seen = set()
    problems = {split: [] for split in SPLITS}
    for split in ("test", "val", "train"):  # training last: its size changes no other split
        while len(problems[split]) < sizes[split]:
            a = low + int(count * rng.random())
            b = low + int(count * rng.random())
            if split == "train" and rng.random() < cascades:
                b = make_cascade(a, b, num_digits, rng)
            pair = (min(a, b), max(a, b))
            if b >= low and pair not in seen:  # make_cascade may have put a zero in front of b
                seen.add(pair)
                problems[split].append((a, b))
    return problems


# ------------------------------------------------------------------------------------------------
# 3. Attention, in four steps
#
# Each token becomes a vector of C numbers (channels): its embedding plus a vector for its position. This sum is changed
# block by block and is called the hidden state of the token. Three learned matrices turn it into a query q (what the
# token looks for), a key k (what it is found by) and a value v (what it passes on).
#
# Step 1, one query: a soft dictionary look-up. A dictionary compares a query with its keys and returns the value of
# the key that matches. Attention compares the query with all S keys by dot products, turns these scores into weights
# that sum to 1, and returns the weighted mean of all values. Every part of this is differentiable.
#
#     weights = softmax(k q / sqrt(d))     q (d,), k (S, d) -> (S,); the code says why sqrt(d)
#     output = weights v                   v (S, d_v) -> (d_v,)
#
# Step 2, all T queries at once: with q (T, d), weights = softmax(q k^T / sqrt(d)) is (T, S), weights v is (T, d_v).
#
# Step 3, a mask: a score of -infinity becomes a weight of 0. In training the decoder reads the whole correct answer in
# one pass. Without a mask, each position could read the digit that it is to predict.
#
# Step 4, several heads: one softmax gives each query one set of weights. A digit of the sum needs several things at
# once: the two digits of its column, and whether the columns to the right carry. So the channels are cut into n_head
# groups of d_head = C / n_head. Each group (head) has its own weights. The outputs are concatenated, and a fourth
# matrix mixes them.


def softmax(scores):
    """Turn each row of scores (..., S) into positive weights that sum to 1, or into zeros if all are -infinity.

    Subtracting the largest score changes no weight and keeps exp from overflowing.
    """
    largest = scores.detach().amax(dim=-1, keepdim=True)  # (..., 1); no weight depends on it, so neither do gradients
    # A query that may attend to no key, for example if all keys are padding, has scores of -infinity only.
    # torch.softmax gives NaN. Here the first clamp makes its terms exp(-infinity) = 0, the second their sum 1. All
    # other rows contain exp(0) = 1, so neither clamp changes them. (Our own masks leave every query a key.)
    largest = largest.clamp(min=torch.finfo(scores.dtype).min)
    weights = (scores - largest).exp()  # (..., S)
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1)


def scaled_dot_product_attention(q, k, v, mask=None):
    """Steps 1 to 3: softmax(q k^T / sqrt(d)) v, "Attention Is All You Need" (Vaswani et al. 2017), section 3.2.1.

    q (..., T, d), k (..., S, d), v (..., S, d_v); mask, broadcast to (..., T, S), is True where a query may attend.
    Returns the output (..., T, d_v) and the weights (..., T, S).

    >>> q = torch.tensor([[2 * math.log(3), 0, 0, 0]])
    >>> k = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    >>> v = torch.tensor([[8.0], [4.0]])
    >>> output, weights = scaled_dot_product_attention(q, k, v)
    >>> weights, output.round()
    (tensor([[0.7500, 0.2500]]), tensor([[7.]]))

    By hand: the dot products of this query with the two keys are 2 ln 3 and 0. Divided by sqrt(4) they are ln 3 and 0. The
    weights are as exp(ln 3) : exp(0) = 3 : 1, so the output is 3/4 of the first value and 1/4 of the second.
    """
    # If the d entries of q and k are independent with mean 0 and variance 1, their dot product has variance d.
    # Divided by sqrt(d) it has variance 1 for every d, so the softmax starts neither flat nor stuck on one key.
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = softmax(scores)  # (..., T, S), each row sums to 1
    return weights @ v, weights


class MultiHeadAttention(nn.Module):
    """Step 4: n_head attentions side by side, each on its own channels (Vaswani et al. 2017, section 3.2.2).

    The queries come from x (B, T, C), the keys and values from memory (B, S, C). In self-attention both are the same
    tensor. In cross-attention memory is the output of the encoder.
    """

    def __init__(self, d_model, n_head):
        super().__init__()
        self.n_head = n_head
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        # The argument for sqrt(d) assumes that q and k have variance 1. Their input has it (it is normalised, section
        # 4), but with the weights that nn.Linear draws, q and k have 1/3. So the scores are small, and every head
        # attends nearly evenly at first. Doubled weights make it 4/3.
        with torch.no_grad():
            self.query.weight.mul_(2)
            self.key.weight.mul_(2)
        # PyTorch can call a function of ours (a hook) on the output of any module. nn.Identity returns its input. So
        # these two change nothing, but section 7 can record what passes through them, and replace the head outputs.
        self.hook_weights = nn.Identity()  # (B, n_head, T, S)
        self.hook_heads = nn.Identity()    # (B, n_head, T, d_head), the head outputs

    def split_heads(self, x):
        """Cut the channels into heads: (B, tokens, C) -> (B, n_head, tokens, d_head)."""
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)

    def forward(self, x, memory, mask=None):
        """x (B, T, C), memory (B, S, C) -> (B, T, C)."""
        q = self.split_heads(self.query(x))                           # (B, n_head, T, d_head)
        k = self.split_heads(self.key(memory))                        # (B, n_head, S, d_head)
        v = self.split_heads(self.value(memory))                      # (B, n_head, S, d_head)
        heads, weights = scaled_dot_product_attention(q, k, v, mask)
        self.hook_weights(weights)                                    # (B, n_head, T, S), for recording only
        heads = self.hook_heads(heads)                                # (B, n_head, T, d_head)
        return self.output(heads.transpose(1, 2).flatten(2))          # heads concatenated, then mixed: (B, T, C)


# ------------------------------------------------------------------------------------------------
# 4. The model
#
# The encoder runs once per problem. Its output, a vector per source token, is called the memory. To generate an answer,
# the decoder runs once per digit: each of its tokens attends to itself and earlier ones (self-attention), then to the
# memory (cross-attention). By default encoder and decoder have one block each, C = 64 channels, and 4 heads in each of
# the three attentions, 12 heads in all.
#
# A block is made of sublayers: attention moves information between tokens, the feed-forward network works on each
# token alone. Every sublayer adds its result to the hidden state x (a residual connection), so it only has to learn a
# change. This running sum of all results is called the residual stream.
#
# Each sublayer reads a normalised copy of x (pre-norm). The original transformer normalises the sum instead
# (post-norm). There the gradient must pass every later LayerNorm on its way back to an early layer. With pre-norm it
# has a path of plain additions, which makes training more stable (Xiong et al. 2020). But the sum grows from sublayer
# to sublayer, so encoder and decoder each end with a norm.


def feed_forward(d_model, d_ff):
    """Two layers, applied to each token: (B, T, C) -> (B, T, C)."""
    return nn.Sequential(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Linear(d_ff, d_model))


class EncoderBlock(nn.Module):
    """Every token of the problem attends to every token of the problem."""

    def __init__(self, d_model, n_head, d_ff):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.self_attention = MultiHeadAttention(d_model, n_head)
        self.feed_forward = feed_forward(d_model, d_ff)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.self_attention(y, y)
        return x + self.feed_forward(self.norm2(x))  # (B, 2n+1, C)


class DecoderBlock(nn.Module):
    """Every token of the answer attends to itself and to earlier ones, then to the whole problem."""

    def __init__(self, d_model, n_head, d_ff):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.self_attention = MultiHeadAttention(d_model, n_head)
        self.cross_attention = MultiHeadAttention(d_model, n_head)
        self.feed_forward = feed_forward(d_model, d_ff)

    def forward(self, x, memory, causal_mask):
        y = self.norm1(x)
        x = x + self.self_attention(y, y, causal_mask)
        x = x + self.cross_attention(self.norm2(x), memory)
        return x + self.feed_forward(self.norm3(x))  # (B, T, C)


class Adder(nn.Module):
    """An encoder-decoder transformer from problems of n digits to their sums; config is a dictionary of the flags.

    With --reverse it generates the units digit first, as we add on paper. Only decode works in this order; everywhere
    else the most significant digit is the first.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.num_digits = config["num_digits"]
        d_model = config["d_model"]
        sizes = (d_model, config["n_head"], config["d_ff"])
        self.token_embedding = nn.Embedding(N_TOKENS, d_model)
        # Attention ignores the order of its keys, so each position has a learned vector.
        self.source_position = nn.Embedding(2 * self.num_digits + 1, d_model)
        self.target_position = nn.Embedding(self.num_digits + 1, d_model)
        self.encoder = nn.ModuleList(EncoderBlock(*sizes) for _ in range(config["n_layer"]))
        self.decoder = nn.ModuleList(DecoderBlock(*sizes) for _ in range(config["n_layer"]))
        self.encoder_norm = nn.LayerNorm(d_model)
        self.decoder_norm = nn.LayerNorm(d_model)
        self.to_logits = nn.Linear(d_model, 10, bias=False)  # an answer holds digits only
        for embedding in (self.token_embedding, self.source_position, self.target_position):
            nn.init.normal_(embedding.weight, std=0.5)

    def encode(self, source):
        """source (B, 2n+1) -> memory (B, 2n+1, C)."""
        x = self.token_embedding(source) + self.source_position.weight  # (B, 2n+1, C) + (2n+1, C)
        for block in self.encoder:
            x = block(x)
        return self.encoder_norm(x)

    def decode(self, answer, memory):
        """answer (B, T), the start token and the digits so far, as generated -> logits (B, T, 10) of each next digit."""
        T = answer.shape[1]
        causal_mask = torch.ones(T, T, dtype=torch.bool, device=answer.device).tril()  # (T, T)
        x = self.token_embedding(answer) + self.target_position.weight[:T]             # (B, T, C)
        for block in self.decoder:
            x = block(x, memory, causal_mask)
        return self.to_logits(self.decoder_norm(x))

    def reorder(self, digits):
        """From reading order to generation order, or back: (B, n+1, ...) -> (B, n+1, ...)."""
        return digits.flip(1) if self.config["reverse"] else digits

    def forward(self, source, target):
        """Teacher forcing: logits (B, n+1, 10) of each digit, given the correct digits before it."""
        start = torch.full_like(target[:, :1], START)
        answer = torch.cat([start, self.reorder(target)[:, :-1]], dim=1)  # (B, n+1)
        return self.reorder(self.decode(answer, self.encode(source)))


# ------------------------------------------------------------------------------------------------
# 5. Decoding and scoring
#
# An answer counts as right only if all of its digits are (exact match). In greedy decoding the model reads the digits
# that it has generated itself. With teacher forcing it reads the correct ones instead, which corrects each mistake
# before the next digit, so accuracy per digit can be higher. Exact match is the same for both: as long as all digits
# are correct, both read the same input, so they make their first mistake at the same digit. Hence one teacher-forced
# pass tells whether an answer is right. Accuracy per digit needs greedy decoding.


def tokens_of(model, problems):
    """Source (N, 2n+1) and target (N, n+1) of problems (N, 2), on the device of the model."""
    source, target = tokenize(problems, model.num_digits)
    device = model.to_logits.weight.device
    return source.to(device), target.to(device)


@torch.inference_mode()
def greedy_decode(model, source):
    """Answer the problems (B, 2n+1), always with the most likely next digit: (B, n+1)."""
    memory = model.encode(source)
    answer = torch.full((len(source), 1), START, device=source.device)  # (B, 1), one digit longer each time
    for _ in range(model.num_digits + 1):
        logits = model.decode(answer, memory)[:, -1]  # (B, 10)
        answer = torch.cat([answer, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return model.reorder(answer[:, 1:])


def solve(model, problems):
    """Return the model's own answers to problems [(a, b), ...], as a list of numbers."""
    source, _ = tokens_of(model, torch.as_tensor(problems))
    answers = greedy_decode(model, source).tolist()
    return [int("".join(map(str, digits))) for digits in answers]


def is_right(model, problems):
    """Which problems (N, 2) greedy decoding answers with no wrong digit: (N,) booleans, by one teacher-forced pass."""
    @torch.inference_mode()  # here, because it holds for one thread, and parallel_map starts several
    def check(chunk):
        source, target = tokens_of(model, chunk)
        return (model(source, target).argmax(dim=-1) == target).all(dim=1).cpu()

    return torch.cat(common.parallel_map(check, problems.split(1024)))


def evaluate(model, problems):
    """Loss and greedy accuracy on problems (N, 2): of whole answers, and of each digit (n+1 numbers)."""
    @torch.inference_mode()
    def run(chunk):
        source, target = tokens_of(model, chunk)
        logits = model(source, target).transpose(1, 2)              # (B, 10, n+1), as cross_entropy wants it
        losses = F.cross_entropy(logits, target, reduction="none")  # (B, n+1)
        return losses.cpu(), (greedy_decode(model, source) == target).cpu()

    losses, right = zip(*common.parallel_map(run, problems.split(512)))
    loss = torch.cat(losses).mean().item()
    right = torch.cat(right)  # (N, n+1)
    return loss, right.all(dim=1).double().mean().item(), right.double().mean(dim=0).tolist()


def all_problems(num_digits, leading_zeros):
    """All problems (N, 2), or 100,000 random ones, always the same, if there are more than a million."""
    low, count = operand_range(num_digits, leading_zeros)
    if count ** 2 > 1_000_000:
        return torch.randint(low, low + count, (100_000, 2), generator=torch.Generator().manual_seed(0))
    operands = torch.arange(low, low + count)
    return torch.cartesian_prod(operands, operands)


def test_everything(model, leading_zeros):
    """Test the model on all_problems(); print the errors, and return them by the number of carries too.

    2,000 test problems can miss an error rate of one in a thousand: a model that has it is right on all of them with
    probability 0.999^2000 = 14%.
    """
    problems = all_problems(model.num_digits, leading_zeros)
    log(f"testing {len(problems):,} problems")
    start = time.time()
    right = is_right(model, problems)
    seconds = max(time.time() - start, 1e-3)
    errors = int((~right).sum())
    _, count = operand_range(model.num_digits, leading_zeros)
    print(f"{len(problems):,} of {count ** 2:,} problems tested: {errors:,} wrong "
          f"({len(problems) / seconds:,.0f} per second)")
    print("  (with the defaults usually 0; of 40 trainings with fresh data and model seeds 39 had 0 and one 8)")
    for a, b in problems[~right][:5].tolist():
        print(f"  mistake: {a}+{b}={solve(model, [(a, b)])[0]} ({a + b})")
    n_carries = carries(problems, model.num_digits).sum(1)
    table = {}
    for k in range(model.num_digits + 1):
        chosen = n_carries == k
        table[str(k)] = {"n": int(chosen.sum()), "errors": int((chosen & ~right).sum())}
    return {"n": len(problems), "errors": errors, "seconds": round(seconds, 2), "carries": table}


# ------------------------------------------------------------------------------------------------
# 6. Training
#
# In each step the model predicts all digits of a batch by teacher forcing. The loss is the cross-entropy of the correct
# digits. Data augmentation: each problem is shown as a+b or as b+a at random. The optimizer is AdamW, with a weight
# decay of 0.3 and beta2 = 0.95 (the trials: appendix of out/report.md). The learning rate rises to 5e-3 in a warm-up
# and falls to 0 over the last 60% of the steps (common.optimizer_of says why). The weights best in validation are kept.


def fit(config, data, device):
    """Train a model on data {split: problems (N, 2)}; return it with its best weights, and its History."""
    seed = config["model_seed"]
    torch.manual_seed(seed)
    model = Adder(config).to(device)
    log(f"train: model seed {seed}, {common.n_parameters(model):,} parameters, {len(data['train']):,} problems, "
        f"{config['steps']:,} steps on {device}; the loss of guessing is ln 10 = {math.log(10):.2f}")
    source, target = tokens_of(model, data["train"])
    mirror, _ = tokens_of(model, data["train"].flip(1))
    coin = torch.Generator().manual_seed(seed)
    batches = common.batches(len(source), config["batch_size"], seed)
    optimizer, schedule = common.optimizer_of(model, config, falling=0.6, beta2=0.95)
    history = common.History(model)
    for step in range(1, config["steps"] + 1):
        batch = next(batches)                                           # (B,)
        swap = torch.rand(len(batch), 1, generator=coin) < 0.5          # (B, 1), whether to show b+a
        x = torch.where(swap.to(device), mirror[batch], source[batch])  # (B, 2n+1)
        logits = model(x, target[batch])                                # (B, n+1, 10)
        loss = F.cross_entropy(logits.flatten(0, 1), target[batch].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.losses.append(loss.detach())
        if step % config["eval_every"] == 0 or step == config["steps"]:
            val_loss, val_accuracy, by_digit = evaluate(model, data["val"])
            history.record(step, optimizer.param_groups[0]["lr"], val_loss, val_accuracy, val_digit_accuracy=by_digit)
        schedule.step()
    return history.restore(), history


def place_names(width):
    """Names of the digits of an answer, most significant first."""
    names = ["units", "tens", "hundreds", "thousands"] + [f"10^{k}" for k in range(4, width)]
    return names[:width][::-1]


def train(args, data, seed):
    """--mode train: fit a model, save it, test it and return it; the first seed also gets a log and curves."""
    out = common.folder(args.out_dir, "addition")
    model, history = fit(common.config_of(args, SCRIPT, data_folder(args), seed), data, args.device)
    common.save_model(out / common.model_name(args, seed), model)  # before the long test of all problems
    _, accuracy, by_digit = evaluate(model, data["test"])
    print(f"model seed {seed}: {100 * accuracy:.2f}% of {len(data['test']):,} test problems right")
    training_log = history.log_entries()
    training_log["test"] = {"n": len(data["test"]), "accuracy": accuracy, "digit_accuracy": by_digit}
    training_log["exhaustive"] = test_everything(model, args.leading_zeros)
    if seed == args.model_seed:
        common.write_json(out / "training_log.json", training_log)
        by_place = {}
        for k, name in enumerate(place_names(model.num_digits + 1)):
            by_place[name] = [row["val_digit_accuracy"][k] for row in history.rows]
        title = f"{100 * accuracy:.1f}% of {len(data['test']):,} test problems right"
        common.training_curves(out / "training_curves.png", history.rows, title, guess=math.log(10), chance=0,
                               parts=by_place)
    return model


# ------------------------------------------------------------------------------------------------
# 7. Looking inside
#
# Heads are called enc.L0.H1 (encoder, block 0, head 1), dec.L0.H1 (self-attention of the decoder) and cross.L0.H1. The
# nn.Identity modules of section 3 are where we attach: common.recording keeps what passes through them, and
# common.patching replaces it. All runs are teacher-forced (section 5). "Our model" is the one in out/reference, of
# model seed 1. Numbers for five model seeds come from python -m tests.seeds.


def heads_of(model):
    """Return {"enc.L0.H0": (its MultiHeadAttention, its number), ...} of all heads."""
    attentions = {f"enc.L{i}": block.self_attention for i, block in enumerate(model.encoder)}
    attentions |= {f"dec.L{i}": block.self_attention for i, block in enumerate(model.decoder)}
    attentions |= {f"cross.L{i}": block.cross_attention for i, block in enumerate(model.decoder)}
    heads = {}
    for name, attention in attentions.items():
        for h in range(attention.n_head):
            heads[f"{name}.H{h}"] = (attention, h)
    return heads


def record_heads(model, problems, what):
    """Run problems (N, 2); return {head: (N, T, S)} for "hook_weights", {head: (N, T, d_head)} for "hook_heads"."""
    heads = heads_of(model)
    modules = {getattr(attention, what) for attention, _ in heads.values()}
    with torch.inference_mode(), common.recording(modules) as seen:
        model(*tokens_of(model, problems))
    return {head: seen[getattr(attention, what)][:, h] for head, (attention, h) in heads.items()}


def attention_of(model, problems):
    """The attention weights of every head on problems [(a, b), ...]: {"enc.L0.H0": (N, T, S), ...}."""
    weights = record_heads(model, torch.as_tensor(problems), "hook_weights")
    return {head: w.cpu() for head, w in weights.items()}


def replacing(model, heads, values=None):
    """Inside a `with`, replace the outputs of some heads: by zeros, or by values {head: (1 or N, T, d_head)}."""
    every = heads_of(model)

    def change(module, inputs, outputs):  # called for each attention: outputs (N, n_head, T, d_head)
        outputs = outputs.clone()
        for head in heads:
            attention, h = every[head]
            if attention.hook_heads is module:  # a head of this attention
                outputs[:, h] = 0.0 if values is None else values[head]
        return outputs

    modules = {every[head][0].hook_heads for head in heads}
    return common.patching([(module, change) for module in modules])


def exact_match(model, problems, heads=(), values=None):
    """The share of problems answered right (section 5), with the outputs of some heads replaced, as in `replacing`."""
    with replacing(model, heads, values):
        return is_right(model, problems).double().mean().item()


# 7a. What does each head attend to?
#
# In the encoder the queries are the tokens of the problem. In the decoder a query is labelled by the digit that it
# predicts. Hypothesis: a column needs the carry from the column to its right, so some head attends from the tens to the
# two units digits, and from the hundreds to the two tens digits. Refuted if no head does both with most of its weight.
# Attention weights show where a head reads. They do not show that the model needs it; 7b and 7c test that.
# Verdict: supported in all five model seeds. In our model cross.L0.H2 gives more than 0.99 of its weight there. (From
# the tens to the units enc.L0.H1 does, too.) The encoder has another pattern: in one head each digit gives most of its
# weight to its own column (both digits together get at least 0.95 in four seeds, 0.54 in seed 5). In ours it is
# enc.L0.H2: 0.91 to 0.96 go to the other digit of the column. cross.L0.H0 attends from each digit of the sum but the
# thousands to the column of this digit.


def draw_attention(weights, source, target, title, path):
    """Draw a heatmap per head, a row per attention: weights {head: (T, S)}, names of the source and target tokens."""
    n_rows = len({head.split(".H")[0] for head in weights})
    n_columns = len(weights) // n_rows
    with common.figure(path, 1.7 * n_rows + 0.4, n_rows, n_columns, title=title) as axes:
        for axis, (head, grid) in zip(axes.flat, weights.items()):
            queries = source if head.startswith("enc") else target
            keys = ["start", *target[:-1]] if head.startswith("dec") else source
            common.heatmap(axis, grid, queries, keys, label="attention weight" if axis in axes[:, -1] else None)
            axis.set(title=head, xlabel="key", ylabel="query" if head.startswith("enc") else "digit to predict")


def study_attention(model, data, out):
    """Draw the mean attention of every head, a sheet per stage and one of all; write it as numbers."""
    problems = data["test"][:2000]
    mean = {head: weights.double().mean(0) for head, weights in attention_of(model, problems).items()}
    short = {"units": "U", "tens": "T", "hundreds": "H", "thousands": "Th"}
    target = [short.get(name, name) for name in place_names(model.num_digits + 1)]
    source = [*target[1:], "+", *target[1:]]
    sheets = {"attention_patterns/enc": ("enc", "Encoder self-attention"),
              "attention_patterns/dec": ("dec", "Decoder self-attention"),
              "attention_patterns/cross": ("cross", "Cross-attention"),
              "head_analysis/attention": ("", "All heads")}
    for name, (stage, title) in sheets.items():
        chosen = {head: grid for head, grid in mean.items() if head.startswith(stage)}
        draw_attention(chosen, source, target, f"{title}, mean of {len(problems):,} test problems", out / f"{name}.png")
    numbers = {head: grid.tolist() for head, grid in mean.items()}
    common.write_json(out / "head_analysis" / "attention.json", {"n": len(problems), "mean_weights": numbers})


# One problem shows what the mean hides. On average cross.L0.H0 has half of its weight on each of the two digits of a
# column. On one problem it mostly attends to one of them. On 347+159, whose tens sum to nine, enc.L0.H1 attends from
# both tens digits to the 9 of the units, where the carry comes from. (It does so without a carry, too.)

EXAMPLES = {"no carry": (241, 536), "one carry": (347, 128), "a carry through a nine": (347, 159),
            "a carry through two nines": (199, 801), "three carries": (999, 999)}


def draw_example(model, a, b, comment, out):
    """Draw all heads on one problem; return the path of the drawing."""
    n = model.num_digits
    weights = {head: w[0] for head, w in attention_of(model, [(a, b)]).items()}
    path = out / "attention_patterns" / f"example_{a}+{b}.png"
    total = f"{a + b:0{n + 1}}"
    draw_attention(weights, [*f"{a:0{n}}+{b:0{n}}"], [*total], f"{a}+{b}={total}{comment}", path)
    return path


# 7b. How important is each head?
#
# Ablation: replace the output of a head and measure the accuracy that is lost. Zero ablation replaces it by zeros, mean
# ablation by its mean over the validation problems, token by token. Mean ablation keeps the part of the output that is
# the same for every problem (it acts like a bias) and removes the part that depends on the problem.
# Found in our model (mean ablation): without enc.L0.H2 or cross.L0.H0 nearly everything is wrong (99.8 and 96.6 points
# of accuracy lost). cross.L0.H2, which reads the next lower column, costs 68 points, cross.L0.H1 9 and enc.L0.H1 5. The
# other seven heads cost nothing, among them all of the decoder self-attention. Zeros cost much more than the mean for
# cross.L0.H1 (44.5 points): what is needed of its output is mostly a constant. (But it moves a carry, too: 7d.)


def study_ablation(model, data, out):
    """Measure, draw and print how much accuracy on the test problems each head is worth."""
    val, test = data["val"][:2000], data["test"]
    means = {head: outputs.mean(0, keepdim=True) for head, outputs in record_heads(model, val, "hook_heads").items()}
    table = {"n": len(test), "baseline": exact_match(model, test), "heads": {}}
    for head in heads_of(model):
        table["heads"][head] = {"zero": exact_match(model, test, [head]), "mean": exact_match(model, test, [head], means)}
    common.write_json(out / "ablation.json", table)
    points = {}
    for kind in ("zero", "mean"):
        points[f"{kind} ablation"] = [100 * (table["baseline"] - row[kind]) for row in table["heads"].values()]
    critical = sum(lost > 10 for lost in points["mean ablation"])
    spare = sum(lost < 1 + 1e-9 for lost in points["mean ablation"])
    title = f"Of {len(table['heads'])} heads {critical} cost more than 10 points, {spare} at most one (mean ablation)"
    with common.figure(out / "ablation.png", 3.5) as ((axis,),):
        common.bars(axis, list(table["heads"]), points)
        axis.tick_params(axis="x", rotation=90)
        axis.set(title=title, ylabel=f"accuracy lost (points)\non {len(test):,} test problems")
    print(title)
    return table


# A cheaper measure of importance needs one backward pass instead of one evaluation per head. Does it agree with zero
# ablation? Such a ranking would choose the heads to remove, so both are measured on validation problems.
# Found: yes. The rank correlations for five model seeds are 0.86 to 0.93. (In ours seven heads tie at 0 in zero
# ablation, so more than 0.90 is not possible.)


def gradient_importance(model, problems):
    """Michel, Levy & Neubig 2019, section 4.1: the mean of |sum of head output * gradient of the loss|.

    To first order this is how much the loss would change if the output were removed. Returned as shares of the sum over
    all heads. (The paper also divides the scores of each layer by their norm.)
    """
    source, target = tokens_of(model, problems)
    heads = heads_of(model)
    with common.recording({attention.hook_heads for attention, _ in heads.values()}) as seen:
        loss = F.cross_entropy(model(source, target).transpose(1, 2), target)
    gradients = torch.autograd.grad(loss, list(seen.values()))
    gradients = dict(zip(seen, gradients))  # {module: (N, n_head, T, d_head)}
    scores = {}
    for head, (attention, h) in heads.items():
        product = seen[attention.hook_heads][:, h] * gradients[attention.hook_heads][:, h]  # (N, T, d_head)
        scores[head] = product.sum(dim=(1, 2)).abs().mean().item()
    total = sum(scores.values())
    return {head: share / total for head, share in scores.items()}


def rank_correlation(x, y):
    """Spearman's rank correlation of two lists; equal values share their mean rank."""
    def ranks(values):
        values = torch.tensor(values, dtype=torch.double)
        # how many are smaller, plus how many are not larger: 2 * (mean rank) - 1, which correlates as the rank does
        return ((values[:, None] > values).sum(1) + (values[:, None] >= values).sum(1)).double()
    return torch.corrcoef(torch.stack([ranks(x), ranks(y)]))[0, 1].nan_to_num().item()  # NaN if all are equal


def study_importance(model, data, out):
    """Rank the heads on validation problems by zero ablation and by gradient; draw and print how well they agree."""
    val = data["val"]
    full = exact_match(model, val)
    ablation = {head: full - exact_match(model, val, [head]) for head in heads_of(model)}
    gradient = gradient_importance(model, val)
    correlation = rank_correlation(list(ablation.values()), list(gradient.values()))
    table = {"n": len(val), "ablation": ablation, "gradient": gradient, "rank_correlation": correlation}
    common.write_json(out / "importance.json", table)
    title = f"Zero ablation and gradient rank the heads with a rank correlation of {correlation:.2f}"
    ranking = sorted(ablation, key=ablation.get)
    with common.figure(out / "importance.png", 3.2, columns=2, title=title, sharey=True) as ((left, right),):
        left.barh(ranking, [100 * ablation[head] for head in ranking])
        left.set_xlabel(f"zero ablation: accuracy lost (points),\n{len(val):,} validation problems")
        right.barh(ranking, [100 * gradient[head] for head in ranking], color="tab:orange")
        right.set_xlabel("gradient score (Michel et al. 2019),\npercent of the sum of all heads")
    print(title)
    return table


# 7c. How many heads can be removed?
#
# Hypothesis: heads that can each be removed alone cannot all be removed together, because one stands in for another. A
# removed head outputs zeros. Accuracy is measured on the test problems. We count in three ways. (1) Which heads
# cost at most one point alone? (2) How many can be removed one after another for one point, each time the one that
# costs least on the validation problems? (3) What do all heads of (1) cost at once? Refuted if (3) is at most one point.
# Verdict: refuted. For five model seeds 7, 7, 7, 6 and 5 of 12 heads pass (1). As many can be removed one after another
# (2), and without all of those that pass (1) the accuracy is 100.0% (3).


def study_pruning(model, data, out):
    """Remove heads in all three ways; write, draw and print how many cost at most one point."""
    val, test = data["val"], data["test"]
    names = list(heads_of(model))
    order = []
    accuracy = [exact_match(model, test)]  # after 0, 1, 2, ... removals
    for _ in names:
        scores = {head: exact_match(model, val, [*order, head]) for head in names if head not in order}
        order.append(max(scores, key=scores.get))
        accuracy.append(exact_match(model, test, order))
    enough = accuracy[0] - 0.01 - 1e-9  # a loss of exactly one point must not fail by rounding
    prunable = max(k for k in range(len(accuracy)) if accuracy[k] >= enough)
    alone = [head for head in names if exact_match(model, test, [head]) >= enough]
    together = exact_match(model, test, alone)
    table = {"n": len(test), "order": order, "accuracy": accuracy, "prunable": prunable,
             "removable_alone": alone, "accuracy_without_all_of_those": together}
    common.write_json(out / "pruning.json", table)
    title = (f"For at most one point, {prunable} of {len(names)} heads can be removed one after another.\n"
             f"{len(alone)} can each be removed alone; without all of those the accuracy is {100 * together:.1f}%")
    with common.figure(out / "pruning.png", 3.6, title=title) as ((axis,),):
        axis.plot(["none", *order], [100 * share for share in accuracy], "o-")
        axis.tick_params(axis="x", rotation=90)
        axis.set(xlabel="head removed, in this order", ylabel=f"accuracy (%)\non {len(test):,} test problems", ylim=(-3, 103))
    print(title.replace("\n", " "))
    return table


# 7d. Which heads move the carry?
#
# The causal test is activation patching. Take two problems that differ in one column only, the origin, which carries in
# the second problem and not in the first. The carry ends at another digit of the sum, the destination:
#
#     units to tens        132+256=388    132+259=391    the tens digit of the sum changes from 8 to 9
#     units to hundreds    142+256=398    142+259=401    the tens sum to nine and pass the carry on
#
# Run the model on one of them (clean) and on the other (corrupted). Then repeat the clean run with the outputs of some
# heads taken from the corrupted one. Does the digit flip to that of the other problem? If it always does, these heads
# are sufficient to move the carry. The digits of the destination must not sum to nine, so that the carry stops there.
# Then all digits of the sum further left, which the decoder is given, are the same in both problems.
#
# Two rates are known beforehand and check the method. All cross-attention heads together must flip every digit, for the
# decoder knows the problem through them alone. Decoder self-attention can flip none if there is one layer: it has seen
# only the digits further left. Both hold.
# Hypothesis: one head moves the carry. Refuted on a route (from an origin to a destination) if no head alone flips more
# than half of the digits.
# Verdict: supported on every route in all five model seeds. In our model cross.L0.H2 alone flips every digit on all
# routes but the one out of the hundreds, where cross.L0.H1 flips 74%. From the units through the tens enc.L0.H1 alone
# flips every digit, too: the carry passes both heads, one after the other (7e). For carries out of units and tens the
# best head flips at least 93% in four seeds and 58 to 100% in seed 5, for those out of the hundreds 74 to 99% over the
# five. From the units to the tens the best head is a cross-attention head, but in seed 4 an encoder head.


def carry_pairs(destination, origin, n_pairs, num_digits):
    """Draw problems without and with a carry from column `origin` to `destination`: two tensors (n_pairs, 2)."""
    generator = torch.Generator().manual_seed(0)

    def draw(digits):
        return digits[torch.randint(len(digits), (n_pairs,), generator=generator)]  # (n_pairs, 2)

    without = torch.zeros(n_pairs, 2, dtype=torch.long)
    with_carry = torch.zeros(n_pairs, 2, dtype=torch.long)
    for k in range(num_digits):
        smallest = 1 if k == num_digits - 1 else 0  # no zero in front
        digits = torch.cartesian_prod(torch.arange(smallest, 10), torch.arange(smallest, 10))  # (100 or 81, 2)
        total = digits.sum(1)
        if k == origin:
            first = draw(digits[total <= 8])    # never carries, even if a carry arrives
            second = draw(digits[total >= 10])  # always carries
        elif origin < k < destination:
            first = second = draw(digits[total == 9])  # passes the carry on
        elif k == destination:
            first = second = draw(digits[total != 9])  # the carry ends here
        else:
            first = second = draw(digits)
        without += first * 10 ** k
        with_carry += second * 10 ** k
    return without, with_carry


def flip_rates(model, destination, origin, n_pairs, groups):
    """For each group of heads {name: set}: the share of pairs whose digit flips when these heads are patched.

    In half of the pairs the clean run has no carry, in the other half it has one. Pairs whose digit is wrong without
    patching do not count.
    """
    without, with_carry = carry_pairs(destination, origin, n_pairs, model.num_digits)
    odd = torch.arange(n_pairs)[:, None] % 2 == 1
    clean = torch.where(odd, with_carry, without)
    corrupted = torch.where(odd, without, with_carry)
    place = model.num_digits - destination  # of the digit in the answer

    @torch.inference_mode()
    def predicted(problems):
        return model(*tokens_of(model, problems))[:, place].argmax(dim=-1)

    clean_digit = tokens_of(model, clean)[1][:, place]
    other_digit = tokens_of(model, corrupted)[1][:, place]
    usable = (predicted(clean) == clean_digit) & (predicted(corrupted) == other_digit)
    values = record_heads(model, corrupted, "hook_heads")
    rates = {}
    for name, heads in groups.items():
        with replacing(model, heads, values):
            flipped = predicted(clean) == other_digit
        rates[name] = (flipped & usable).sum().item() / max(1, int(usable.sum()))
    return rates


def study_carry(model, out, n_pairs=1000):
    """Measure, draw and print the flip rates of each head alone, and of all heads of each stage, on each route."""
    heads = list(heads_of(model))
    groups = {head: {head} for head in heads}
    for stage in ("enc", "dec", "cross"):
        groups[f"all of {stage}"] = {head for head in heads if head.startswith(stage)}
    names = place_names(model.num_digits + 1)[::-1]
    routes = {}
    for destination in range(1, model.num_digits + 1):
        for origin in range(max(0, destination - 3), destination):  # at most three columns away
            route = f"{names[origin]} to {names[destination]}"
            routes[route] = flip_rates(model, destination, origin, n_pairs, groups)
            best = sorted(heads, key=routes[route].get, reverse=True)[:3]
            print(f"carry, {route}: " + ", ".join(f"{head} alone flips {100 * routes[route][head]:.0f}%" for head in best))
    table = {"n_pairs": n_pairs, "routes": routes}
    common.write_json(out / "carry.json", table)
    grid = [[rates[name] for rates in routes.values()] for name in groups]
    with common.figure(out / "carry.png", 1.2 + 0.22 * len(groups)) as ((axis,),):
        common.heatmap(axis, grid, list(groups), [route.replace(" to ", "\nto ") for route in routes],
                       label="share of pairs whose digit flips", digits=2)
        axis.set(title="Which heads move the carry?", ylabel="patched heads",
                 xlabel=f"from which column to which digit of the sum ({n_pairs:,} pairs each)")
    return table


# 7e. At which tokens does the encoder's output encode a carry?
#
# Hypothesis: at some token a linear probe can tell whether a column carries. The probe is a least-squares fit from the
# encoder's output at one token to "does this column carry?", on half of the problems. It is scored on the other half.
# Control: the same probe on an untrained encoder, whose random attention mixes the digits too. Refuted for a column
# where the best token of the untrained encoder does as well. A probe shows what could be read. Whether the model reads
# it is tested in 7d. And a token that merely holds the sum of its column does well too: the carry from the units
# depends on nothing else. The other carries depend on more only where the column sums to nine. That is a tenth of the
# problems, and half of those are guessed right, so the sum alone gives 0.95.
# Verdict: supported in our model. The carries from units, tens and hundreds are read with an accuracy of 1.00, 0.99 and
# 0.96 at a digit of their own column. The untrained encoder reaches 0.81, 0.86 and 0.85. The tens digits know whether a
# carry arrives (the carry from the units is read there with 1.00): enc.L0.H1 has moved it. The hundreds digits know
# hardly more than their sum (0.96), for the carry from the tens is not moved there (read with 0.80, in the untrained
# encoder with up to 0.86). 7d agrees: cross.L0.H2 moves it into the sum.


@torch.inference_mode()
def probe_carries(model, problems):
    """Accuracy of a linear probe for the carry out of each column (units first), at each token: a list of lists."""
    memory = model.encode(tokens_of(model, problems)[0]).cpu().double()  # (N, 2n+1, C)
    carry = carries(problems, model.num_digits)                          # (N, n), units first
    half = len(problems) // 2
    accuracy = []
    for token in range(memory.shape[1]):
        x = F.pad(memory[:, token], (0, 1), value=1.0)                   # (N, C + 1): a channel of ones is the bias
        fitted = torch.linalg.pinv(x[:half]) @ carry[:half].double()     # (C + 1, n), least squares to 0 or 1
        accuracy.append(((x[half:] @ fitted > 0.5) == carry[half:]).double().mean(0).tolist())
    return accuracy


def study_probe(model, data, out):
    """Probe the model and an untrained one; write, draw and print the accuracy for each token and column."""
    torch.manual_seed(model.config["model_seed"])  # the weights that it had before training
    untrained = Adder(model.config).to(model.to_logits.weight.device)
    n = len(data["test"]) - len(data["test"]) // 2
    table = {"n": n, "trained": probe_carries(model, data["test"]), "untrained": probe_carries(untrained, data["test"])}
    common.write_json(out / "probe.json", table)
    names = place_names(model.num_digits + 1)[1:]
    tokens = [f"{name} of a" for name in names] + ["+"] + [f"{name} of b" for name in names]
    with common.figure(out / "probe.png", 1.2 + 0.25 * len(tokens), columns=2, sharey=True) as (axes,):
        for axis, which in zip(axes, ("trained", "untrained")):
            common.heatmap(axis, table[which], tokens, names[::-1], (0.5, 1), label="accuracy of the probe", digits=2)
            axis.set(title=f"{which} encoder", xlabel=f"carry out of this column ({n:,} problems)")
    for k, name in enumerate(names[::-1]):
        best = [100 * max(row[k] for row in table[which]) for which in ("trained", "untrained")]
        print(f"probe, carry out of the {name}: at best {best[0]:.0f}% right, untrained {best[1]:.0f}%")
    return table


# Together: how does our model add? In the encoder enc.L0.H2 joins the two digits of a column, and enc.L0.H1 tells the
# tens digits the carry from the units, so that they know whether they carry. For the units, tens and hundreds of the
# sum the decoder reads the column of the digit (cross.L0.H0), for tens and hundreds also the carry of the column to its
# right (cross.L0.H2). For the thousands it reads the hundreds (cross.L0.H1 and H0) and the carry of the tens
# (cross.L0.H2). Other model seeds divide the work differently.


def analyze(args):
    """--mode analyze: 7a to 7e for one model."""
    out = common.folder(args.out_dir, "addition")
    data = load_data(args)
    model = obtain_model(args, args.model_seed)
    study_attention(model, data, out)
    if model.num_digits == 3:
        for comment, (a, b) in EXAMPLES.items():
            draw_example(model, a, b, f": {comment}", out)
    study_ablation(model, data, out / "head_analysis")
    study_importance(model, data, out / "head_analysis")
    study_pruning(model, data, out / "head_analysis")
    study_carry(model, out / "head_analysis")
    study_probe(model, data, out / "head_analysis")


# ------------------------------------------------------------------------------------------------
# 8. Data files, models on disk, questions and the command line


def data_folder(args):
    """Where the data files are."""
    return Path(args.data_dir) / "addition"


def data_settings(args):
    """What the data depend on; kept beside them."""
    names = ("seed", "num_digits", "leading_zeros", "cascades", "n_train", "n_val", "n_test")
    return {name: getattr(args, name) for name in names}


def generate_data(args):
    """--mode gendata: write train.jsonl, val.jsonl and test.jsonl. UserError if there are too few problems."""
    sizes = {"train": args.n_train, "val": args.n_val, "test": args.n_test}
    _, count = operand_range(args.num_digits, args.leading_zeros)
    n_pairs = count * (count + 1) // 2
    if sum(sizes.values()) > n_pairs:
        raise UserError(f"there are only {n_pairs:,} problems of {args.num_digits} digits (a+b and b+a count as one); "
                        f"type --n-train {n_pairs * 5 // 7} --n-val {n_pairs // 7} --n-test {n_pairs // 7}")
    records = {}
    for split, problems in draw_problems(args.num_digits, args.leading_zeros, sizes, args.cascades, args.seed).items():
        source, target = tokenize(torch.tensor(problems), args.num_digits)
        records[split] = [{"input": x, "target": y} for x, y in zip(source.tolist(), target.tolist())]
    common.write_data(data_folder(args), records, data_settings(args))


def read_problem(record, num_digits, place):
    """Return the problem (a, b) of a record; UserError names its place and the key at fault."""
    n = num_digits
    tokens = record.get("input") if isinstance(record, dict) else None
    digits = tokens[:n] + tokens[n + 1:] if isinstance(tokens, list) else []
    if len(digits) != 2 * n or tokens[n] != PLUS or not all(type(x) is int and 0 <= x <= 9 for x in digits):
        raise UserError(f'{place}: "input": expected the tokens of two numbers of {n} digits, found {str(tokens)[:60]}; '
                        f"mend it or choose another --data-dir")
    a = int("".join(map(str, digits[:n])))
    b = int("".join(map(str, digits[n:])))
    expected = [int(digit) for digit in f"{a + b:0{n + 1}}"]
    if record.get("target") != expected:
        raise UserError(f'{place}: "target": expected {expected}, found {str(record.get("target"))[:60]}; '
                        f"mend it or choose another --data-dir")
    return a, b


def load_data(args):
    """Return {split: problems (N, 2)}, made first if there are none; UserError if other settings made them."""
    folder = data_folder(args)
    if not common.has_data(folder):
        generate_data(args)
    common.check_settings(folder, data_settings(args))
    data = {}
    for split in SPLITS:
        records = common.read_records(folder / split)
        data[split] = torch.tensor([read_problem(record, args.num_digits, place) for place, record in records])
    return data


def obtain_model(args, seed):
    """Return the model with these settings, from --out-dir or the reference results; if there is none, train it."""
    config = common.config_of(args, SCRIPT, data_folder(args), seed)
    model = common.find_model(args, "addition", config, Adder)
    return (model or train(args, load_data(args), seed)).to(args.device)


def load(path):
    """Return the model in a file that --mode train has written, for use from Python.

    >>> model = load(common.REFERENCE / "addition" / "best_model.pth")
    >>> solve(model, [(347, 159), (999, 101)])
    [506, 1100]
    >>> attention_of(model, [(347, 159), (999, 101)])["cross.L0.H1"].shape  # from 4 digits to 7 tokens, of each problem
    torch.Size([2, 4, 7])
    """
    return common.load_model(path, SCRIPT, Adder)


def parse_problem(text, num_digits, leading_zeros):
    """Return (a, b) of "347+159" or of a record of a data file; UserError if the model was not trained for it."""
    if text.startswith("{"):
        a, b = read_problem(common.parse_json(text, text[:60]), num_digits, text[:60])
        text = f"{a}+{b}"  # checked below, as if it were typed
    match = re.fullmatch(r"0*([0-9]+)\s*\+\s*0*([0-9]+)", text)
    if not match:
        raise UserError(f"expected a problem such as 347+159, found {text[:40]!r}")
    low, count = operand_range(num_digits, leading_zeros)
    for number in match.groups():
        if len(number) > num_digits or int(number) < low:
            raise UserError(f"{text[:40]}: this model was trained on numbers from {low} to {low + count - 1}; type "
                            f"--num-digits (and --leading-zeros) with a new --data-dir and --out-dir to train another")
    return int(match[1]), int(match[2])


def infer(args):
    """--mode infer: print an answer per problem, and on standard error how many are right."""
    model = obtain_model(args, args.model_seed)
    right = []
    for text in common.questions(args.questions):
        a, b = parse_problem(text, model.num_digits, args.leading_zeros)
        answer = solve(model, [(a, b)])[0]
        print(f"{a}+{b}={answer}", flush=True)
        right.append(a + b == answer)
    log(f"{sum(right):,} of {len(right):,} right")


def command_line():
    """Declare the flags."""
    number = common.number
    title, _, examples, *_ = __doc__.split("\n\n")  # paragraphs 1 and 3 of the text at the top
    parser = common.ArgumentParser(description=title, epilog=f"examples:\n{examples}")
    parser.add_argument("questions", nargs="*", metavar="problem", help="problems such as 347+159, a file with one per "
                        "line, or - for standard input; without --mode they are answered")
    parser.add_argument("--mode", choices=["all", "gendata", "train", "analyze", "infer"],
                        help="what to do; all is data, train and analyze (default: all, or infer if there are problems)")
    parser.add_argument("--num-digits", type=number(int, 1, 15), default=3, help="digits of each number")
    parser.add_argument("--leading-zeros", action="store_true", help="numbers from 0, not only those of full length")
    parser.add_argument("--cascades", type=number(float, 0, 1), default=0.5,
                        help="share of training problems with columns changed to sum to nine or ten")
    parser.add_argument("--reverse", action="store_true", help="generate the units digit first (not for --mode analyze)")
    common.add_common_flags(parser, d_model=64, d_ff=128, steps=2200, batch_size=64, lr=5e-3, warmup=50,
                            weight_decay=0.3, eval_every=440)
    return parser


def main():
    """Do what --mode says."""
    args = command_line().parse_args()
    if "+" in args.questions:  # 347 + 159 in three words
        args.questions = [" ".join(args.questions)]
    args.mode = args.mode or ("infer" if args.questions else "all")
    if args.d_model % args.n_head:
        fitting = math.ceil(args.d_model / args.n_head) * args.n_head
        raise UserError(f"--d-model {args.d_model} cannot be cut into --n-head {args.n_head} equal heads; "
                        f"type --d-model {fitting}")
    if (args.mode == "infer" and not args.questions) or (args.mode not in ("infer", "analyze") and args.questions):
        raise UserError("problems go with --mode infer or analyze; type for example --mode infer 347+159")
    if args.reverse and args.mode in ("all", "analyze"):
        raise UserError("--mode analyze follows carries through answers that begin with the highest digit; "
                        "with --reverse type --mode train")
    args.device = common.pick_device(args.device, args.threads)
    if args.mode == "gendata":
        generate_data(args)
    if args.mode in ("all", "train"):
        data = load_data(args)
        for seed in range(args.model_seed, args.model_seed + args.model_seeds):
            train(args, data, seed)
    if args.mode == "infer":
        infer(args)
    elif args.questions:  # --mode analyze with problems
        model = obtain_model(args, args.model_seed)
        for text in common.questions(args.questions):
            a, b = parse_problem(text, args.num_digits, args.leading_zeros)
            print(draw_example(model, a, b, "", common.folder(args.out_dir, "addition")))
    elif args.mode in ("all", "analyze"):
        analyze(args)


if __name__ == "__main__":
    common.run(main)
