"""How does a transformer add?  Attention from scratch, on a problem small enough to check completely.

An encoder reads a problem such as `347+159` one character at a time, a decoder writes the sum `0506` one
digit at a time, and nobody tells them what a digit is worth, what a column is or what a carry is. The
model sees 10,000 problems; then we try it on all 810,000 that exist.

    python attention_addition.py                                everything below, in order
    python attention_addition.py --mode gendata                 write data/addition/*.jsonl
    python attention_addition.py --mode train                   train, then try every problem there is
    python attention_addition.py --mode infer 347+159 999+999   ask the trained model
    python attention_addition.py --help                         all flags

Read it from the top: the task, the data, attention, the model, decoding, training, the command line.
Comments give the shape of each tensor: B problems, T query tokens, S key tokens, C = d_model channels.
It runs on torch >= 2.0.
"""
import itertools
import json
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
# start token matters: drop it by feeding the target itself, and no one ever learns to write the first digit.

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
    return torch.cat([to_digits(a, num_digits), plus, to_digits(b, num_digits)], dim=1), to_digits(a + b, num_digits + 1)


def carries(a, b, num_digits):
    """Which columns of a + b carry into the next: (N,), (N,) -> (N, n) booleans, units first.

    A column carries exactly if what stands in it and to its right sums to more than fits there.
    """
    place = 10 ** torch.arange(1, num_digits + 1)
    return a[:, None] % place + b[:, None] % place >= place


def longest_run(flags):
    """The length of the longest run of True in each row: (N, n) -> (N,)."""
    run = longest = torch.zeros(len(flags), dtype=torch.long)
    for column in flags.T:
        run = (run + 1) * column
        longest = torch.maximum(longest, run)
    return longest


# ------------------------------------------------------------------------------------------------
# 2. The data
#
# a+b and b+a count as one problem: were one in training and the other in the test, the test would be a little
# easier than it looks. So each pair is drawn at most once, in random order. The files are JSON Lines:
#
#     {"input": [5, 0, 7, 10, 1, 5, 9], "target": [0, 6, 6, 6]}
#
# What is hard about adding is rare in random problems. A column that sums to nine passes on the carry that arrives,
# if one does: 347+652 is 0999, but 348+652 is 1000, and the first digit hangs on the last. Two such columns in a row
# are found in 1% of problems, and a model trained on 10,000 random ones errs there and nowhere else. So three in ten of
# the training problems (not of the others, which measure) have some columns changed to sum to nine.

SPLITS = ("train", "val", "test")
DEFAULT_SIZES = (10_000, 2_000, 2_000)


def operand_range(num_digits, leading_zeros):
    """The smallest operand and how many there are: (100, 900) for 3 digits, (0, 1000) with leading zeros."""
    low = 0 if leading_zeros else 10 ** (num_digits - 1)
    return low, 10 ** num_digits - low


def split_sizes(args):
    """How many problems to draw for train, val, test. UserError if there are not that many.

    Sizes that the user did not give shrink where there are too few problems for the defaults.
    """
    _, count = operand_range(args.num_digits, args.leading_zeros)
    n_pairs = count * (count + 1) // 2
    asked = (args.n_train, args.n_val, args.n_test)
    scale = min(1, n_pairs / sum(DEFAULT_SIZES)) if asked == (None, None, None) else 1
    sizes = [int(scale * default) if size is None else size for size, default in zip(asked, DEFAULT_SIZES)]
    if sum(sizes) > n_pairs:
        raise UserError(f"--n-train, --n-val and --n-test ask for {sum(sizes):,} problems, but there are only "
                        f"{n_pairs:,} of {args.num_digits} digits (a+b and b+a count as one); ask for fewer")
    return sizes


def make_cascade(a, b, num_digits, rng):
    """Return b with about half of its digits replaced so that their columns sum to nine."""
    columns = zip(f"{a:0{num_digits}}", f"{b:0{num_digits}}")
    return int("".join(str(9 - int(x)) if rng.random() < 0.5 else y for x, y in columns))


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
            if b >= low and pair not in seen:
                seen.add(pair)
                problems[split].append((a, b))
    return problems


def data_settings(args):
    """What the data files depend on, kept beside them so that they are never taken for something else."""
    flags = {name: getattr(args, name) for name in ("seed", "num_digits", "leading_zeros", "cascades")}
    return flags | {"sizes": dict(zip(SPLITS, split_sizes(args)))}


def generate_data(args):
    """--mode gendata: write train.jsonl, val.jsonl, test.jsonl and, last, settings.json."""
    folder, settings = Path(args.data_dir) / "addition", data_settings(args)
    problems = draw_problems(args.num_digits, args.leading_zeros, settings["sizes"], args.cascades, args.seed)
    common.write_json(folder / "settings.json", "unfinished")  # so that a run killed here is noticed later
    for split, pairs in problems.items():
        source, target = tokenize(*torch.tensor(pairs).T, args.num_digits)
        records = [{"input": x, "target": y} for x, y in zip(source.tolist(), target.tolist())]
        common.write_jsonl(folder / f"{split}.jsonl", records)
    common.write_json(folder / "settings.json", settings)
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
    raise ValueError(f"expected the tokens of a right sum of {num_digits}-digit numbers, found {json.dumps(record)[:80]}")


def load_data(args):
    """Return {split: (N, 2) tensor of problems a, b}, making the files if there are none.

    UserError if the files were made with other settings than the flags ask for, or hold anything but sums.
    """
    folder, wanted = Path(args.data_dir) / "addition", data_settings(args)
    if not folder.exists() or not any(folder.iterdir()) or common.read_json(folder / "settings.json") == "unfinished":
        generate_data(args)
    found = common.read_json(folder / "settings.json")
    if found != wanted:
        raise UserError(f"{folder} was made with {common.difference(found, wanted)}; type --mode gendata with the flags "
                        f"you want to make it anew, pass the flags it was made with, or choose another --data-dir")
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
# Rung 1, one query: a soft look-up. A dictionary compares a query with its keys and returns the value of the one
# that matches. Attention compares with all keys, by dot product, turns the scores into weights that sum to 1, and
# returns the weighted mean of all values. Nothing is hard, so everything can be learned by gradient descent.
#
# Rung 2, all queries at once: T queries against S keys are one matrix product, and so are the T means.
#
# Rung 3, a mask: a score of -infinity is a weight of 0. That is how a decoder is kept from looking at the digits
# it has yet to write.
#
# Rung 4, several heads: one softmax can look at one thing well, or at two things half. So the channels are cut
# into n_head groups, each group looks where it wants, and the results are laid side by side again.


def softmax(scores):
    """Turn the scores (..., S) of each row into weights that are positive and sum to 1; if all are -infinity, into 0.

    The largest score is taken off first, which changes nothing and keeps e^score from overflowing. It leaves the
    largest term at e^0 = 1, so the sum is at least 1 and the last clamp acts on rows of -infinity alone.
    (torch.softmax does the same. On rows as short as ours these lines happen to be several times as fast.)
    """
    largest = scores.detach().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
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
    # Dot products of vectors of d independent entries of variance 1 have variance d. Divided by sqrt(d) they keep
    # variance 1 whatever d is, and the softmax starts out neither flat nor stuck on one key.
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
        with torch.no_grad():  # PyTorch's own start gives scores so small that every head looks everywhere alike
            self.query.weight.mul_(2)
            self.key_value.weight[:d_model].mul_(2)
        # These two do nothing. They are places with a name, where section 7 listens in and intervenes.
        self.weights = nn.Identity()  # (B, n_head, T, S)
        self.heads = nn.Identity()    # (B, n_head, T, d_head)

    def forward(self, x, memory, mask=None):
        B, T, C = x.shape
        split = (self.n_head, C // self.n_head)
        q = self.query(x).view(B, T, *split).transpose(1, 2)             # (B, n_head, T, d_head)
        k, v = self.key_value(memory).view(B, -1, 2, *split).unbind(2)   # (B, S, n_head, d_head) each
        k, v = k.transpose(1, 2), v.transpose(1, 2)                      # (B, n_head, S, d_head)
        heads, weights = scaled_dot_product_attention(q, k, v, mask)     # (B, n_head, T, d_head)
        self.weights(weights)
        heads = self.heads(heads).transpose(1, 2).reshape(B, T, C)       # the heads side by side
        return self.output(heads)                                        # and mixed: (B, T, C)


# ------------------------------------------------------------------------------------------------
# 4. The model
#
# Every block adds something to the running representation x and takes nothing away. It reads a normalised copy
# ("pre-norm", which trains without care; the paper normalises after adding). Attention moves information between
# tokens, the two-layer network then works on each token alone.


def feed_forward(d_model, d_ff):
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
    """Every token of the answer looks at the tokens before it, then at the whole problem."""

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
    """An encoder-decoder transformer from problems of num_digits digits to their sums."""

    def __init__(self, num_digits, n_layer, n_head, d_model, d_ff):
        super().__init__()
        self.token_embedding = nn.Embedding(N_TOKENS, d_model)
        self.source_position = nn.Embedding(2 * num_digits + 1, d_model)
        self.target_position = nn.Embedding(num_digits + 1, d_model)
        self.encoder = nn.ModuleList(EncoderBlock(d_model, n_head, d_ff) for _ in range(n_layer))
        self.decoder = nn.ModuleList(DecoderBlock(d_model, n_head, d_ff) for _ in range(n_layer))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.to_logits = nn.Linear(d_model, 10, bias=False)
        for embedding in (self.token_embedding, self.source_position, self.target_position):
            nn.init.normal_(embedding.weight, std=0.5)

    def encode(self, source):
        """source (B, 2n+1) -> memory (B, 2n+1, C)."""
        x = self.token_embedding(source) + self.source_position.weight  # what stands there + where it stands
        for block in self.encoder:
            x = block(x)
        return self.encoder_norm(x)

    def decode(self, answer, memory):
        """answer (B, T), the start token and the digits so far -> logits (B, T, 10), for the digit after each."""
        T = answer.shape[1]
        causal_mask = torch.ones(T, T, dtype=torch.bool, device=answer.device).tril()
        x = self.token_embedding(answer) + self.target_position.weight[:T]
        for block in self.decoder:
            x = block(x, memory, causal_mask)
        return self.to_logits(self.decoder_norm(x))

    def forward(self, source, target):
        """Teacher forcing: logits (B, n+1, 10) of each digit, given the right digits before it."""
        start = torch.full_like(target[:, :1], START)
        return self.decode(torch.cat([start, target[:, :-1]], dim=1), self.encode(source))


# ------------------------------------------------------------------------------------------------
# 5. Decoding and scoring
#
# Teacher forcing flatters: it repairs every mistake before the next digit is asked for. What counts here is the
# answer that the model writes on its own, and it counts only if all of it is right.


@torch.inference_mode()
def greedy_decode(model, source):
    """Write the answers (B, n+1) to the problems (B, 2n+1): the likeliest digit, again and again."""
    memory = model.encode(source)
    answer = torch.full((len(source), 1), START, device=source.device)
    for _ in range(model.target_position.num_embeddings):
        logits = model.decode(answer, memory)[:, -1]  # (B, 10)
        answer = torch.cat([answer, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return answer[:, 1:]


@torch.inference_mode()
def answers(model, source, target):
    """Return the answers (B, n+1) that greedy_decode gives, faster where they are right, and the loss (B,) of each.

    If each digit of the right sum is the likeliest one after the digits before it, then greedy decoding writes that
    sum: it starts with the first digit, hence goes on with the second, and so forth. One teacher-forced pass tells
    where this holds. Everywhere else nothing follows from it, and the problem is decoded for real.
    """
    logits = model(source, target)
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape).mean(dim=1)
    answer = logits.argmax(dim=-1)
    wrong = (answer != target).any(dim=1)
    if wrong.any():
        answer[wrong] = greedy_decode(model, source[wrong])
    return answer, loss


def solve(model, problems, num_digits, label=None):
    """The model's own answers (N, n+1) to the problems (N, 2), whether each is right (N,), and its loss (N,)."""
    device = next(model.parameters()).device

    def solve_chunk(chunk):
        source, target = tokenize(*chunk.T, num_digits)
        answer, loss = answers(model, source.to(device), target.to(device))
        return answer.cpu(), (answer.cpu() == target).all(dim=1), loss.cpu()

    chunks = problems.split(512)  # small enough for the processor's caches
    return [torch.cat(column) for column in zip(*common.parallel_map(solve_chunk, chunks, label))]


def all_problems(num_digits, leading_zeros):
    """Every problem there is, (N, 2), if there are at most a million; else 100,000 at random, always the same."""
    low, count = operand_range(num_digits, leading_zeros)
    if count ** 2 <= 1_000_000:
        return torch.cartesian_prod(*[torch.arange(low, low + count)] * 2)
    return torch.randint(low, low + count, (100_000, 2), generator=torch.Generator().manual_seed(0))


def by_difficulty(problems, right, num_digits):
    """Errors and totals by the number of carries and by the longest run of columns that carry."""
    carry = carries(*problems.T, num_digits)
    table = {}
    for name, level in (("carries", carry.sum(1)), ("longest_chain", longest_run(carry))):
        table[name] = {str(k): {"n": int((level == k).sum()), "errors": int((~right[level == k]).sum())}
                       for k in range(num_digits + 1)}
    return table


def mistakes(problems, answer, right):
    """The wrong answers in words: ["231+268=599 (499)", ...]."""
    wrong = zip(problems[~right].tolist(), to_numbers(answer[~right]).tolist())
    return [f"{a}+{b}={answer_} ({a + b})" for (a, b), answer_ in wrong]


# ------------------------------------------------------------------------------------------------
# 6. Training


def batches(n, batch_size, seed):
    """Yield indices of training examples for ever: every epoch all of them, in a new order."""
    generator, batch_size = torch.Generator().manual_seed(seed), min(batch_size, n)
    while True:
        order = torch.randperm(n, generator=generator)
        yield from order[:n - n % batch_size].split(batch_size)


def learning_rate(step, args):
    """Up from zero, level, and down to zero over the last 60% of the steps.

    Up, because Adam knows nothing of the gradients' size at first. Down, because at full rate the weights jump
    about: exact match is stuck around 95% until the rate falls, and the last errors go with it.
    """
    return args.lr * min(1, (step + 1) / args.warmup, (args.steps - step) / (0.6 * args.steps))


def train(args):
    """--mode train: learn from the training problems, keep the weights that do best on the validation problems."""
    out, data, device = Path(args.out_dir) / "addition", load_data(args), args.device
    config = {name: value for name, value in vars(args).items() if name in CONFIG_FLAGS} | {"script": SCRIPT}
    torch.manual_seed(args.model_seed)
    model = Adder(**{name: config[name] for name in MODEL_FLAGS}).to(device)
    n_params = sum(p.numel() for p in model.parameters())
    log(f"train: {n_params:,} parameters, {len(data['train']):,} problems, {args.steps:,} steps on {device}; "
        f"the loss of guessing is ln 10 = {math.log(10):.2f}")

    source, target = tokenize(*data["train"].T, args.num_digits)
    mirror, _ = tokenize(*data["train"].flip(1).T, args.num_digits)
    source, mirror, target = source.to(device), mirror.to(device), target.to(device)
    optimizer = common.adamw(model, args.lr, args.weight_decay, betas=(0.9, 0.95))
    coin = torch.Generator().manual_seed(args.model_seed)
    history, best, losses, start = [], None, [], time.time()
    val_target = tokenize(*data["val"].T, args.num_digits)[1]
    for step, batch in zip(range(args.steps), batches(len(source), args.batch_size, args.model_seed)):
        # b+a is a+b: show each problem one way round or the other, which doubles what 10,000 problems can teach.
        swap = torch.rand(len(batch), 1, generator=coin) < 0.5
        x = torch.where(swap.to(device), mirror[batch], source[batch])
        logits = model(x, target[batch])  # (B, n+1, 10)
        loss = F.cross_entropy(logits.flatten(0, 1), target[batch].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        optimizer.step()
        losses.append(loss.detach())

        if (step + 1) % args.eval_every == 0 or step + 1 == args.steps:
            answer, right, val_loss = solve(model, data["val"], args.num_digits)
            row = {"step": step + 1, "train_loss": torch.stack(losses).mean().item(),
                   "val_loss": val_loss.mean().item(), "val_accuracy": right.double().mean().item(),
                   "val_digit_accuracy": (answer == val_target).double().mean(dim=0).tolist(),
                   "lr": group["lr"], "seconds": round(time.time() - start, 2)}
            history.append(row)
            losses.clear()
            # Towards the end many evaluations are perfect: among equals, prefer the surest.
            if best is None or (row["val_accuracy"], -row["val_loss"]) > (best["val_accuracy"], -best["val_loss"]):
                best, weights = row, {name: tensor.clone() for name, tensor in model.state_dict().items()}
            log(f"step {row['step']:4d}/{args.steps} | train {row['train_loss']:.4f} | val {row['val_loss']:.4f}"
                f" | exact {100 * row['val_accuracy']:5.1f}% | lr {row['lr']:.1e}"
                f" | {1000 * row['seconds'] / row['step']:.0f} ms/step"
                + "".join(f" | {sum_}" for sum_ in mistakes(data["val"], answer, right)[:2]))

    model.load_state_dict(weights)
    common.save_checkpoint(out / "best_model.pth", model, config)
    log(f"best: step {best['step']}, saved to {out / 'best_model.pth'} after {time.time() - start:.1f} s")
    training_log = {"config": config, "n_params": n_params, "history": history,
                    "best": {"step": best["step"], "val_accuracy": best["val_accuracy"]},
                    **final_exam(model, data["test"], args), "seconds": history[-1]["seconds"]}
    common.write_json(out / "training_log.json", training_log)
    plot_training(training_log, out / "training_curves.png")


def final_exam(model, test, args):
    """Open the test problems, once; then try every problem there is. Print the results and return them for the log."""
    accuracy = solve(model, test, args.num_digits)[1].double().mean().item()
    print(f"test: {100 * accuracy:.2f}% of {len(test):,} problems right")
    problems, start = all_problems(args.num_digits, args.leading_zeros), time.time()
    answer, right, _ = solve(model, problems, args.num_digits, label="trying every problem")
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
    return {"test": {"accuracy": accuracy, "n": len(test)}, "exhaustive": exam}


def place_names(width):
    """Names of the answer's digits, most significant first."""
    return [{0: "units", 1: "tens", 2: "hundreds", 3: "thousands"}.get(k, f"$10^{{{k}}}$") for k in reversed(range(width))]


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
    learnt = sorted(range(len(names)), key=lambda k: next((i for i, value in enumerate(digits[k]) if value > 0.9), len(steps)))
    right.set(title="Digits pass 90% in this order:\n" + ", ".join(names[k] for k in learnt), ylim=(-3, 103),
              xlabel="training step", ylabel="validation digits right (%)")
    left.legend()
    right.legend(loc="lower right")
    common.save_figure(figure, path)


# ------------------------------------------------------------------------------------------------
# 7. Asking the trained model


def load_model(args, typed):
    """Return (model, config) from the checkpoint; UserError if a flag that was typed says otherwise."""
    path = Path(args.out_dir) / "addition" / "best_model.pth"
    config, weights = common.load_checkpoint(path, SCRIPT)
    conflict = {name: value for name, value in typed.items() if name in CONFIG_FLAGS and config.get(name) != value}
    if conflict:
        raise UserError(f"{path} was trained with {common.difference(config, conflict)}; leave those flags out, or train "
                        f"anew with --mode train")
    model = Adder(**{name: config[name] for name in MODEL_FLAGS})
    model.load_state_dict(weights)
    return model.to(args.device).eval(), config


def parse_problem(text, num_digits, leading_zeros):
    """Return (a, b) of a text such as "347+159"; UserError if it is no sum, or none of the kind the model has seen."""
    match = re.fullmatch(r"\s*([0-9]+)\s*\+\s*([0-9]+)\s*", text)
    if not match:
        raise UserError(f"expected a problem such as 347+159, found {text.strip()[:40]!r}")
    a, b = (number.lstrip("0") or "0" for number in match.groups())
    low, count = operand_range(num_digits, leading_zeros)
    if not all(len(number) <= num_digits and int(number) >= low for number in (a, b)):
        shorter = "" if leading_zeros else ", with --leading-zeros for shorter ones too"
        raise UserError(f"{text.strip()[:40]}: this model has seen numbers from {low} to {low + count - 1} only; train one "
                        f"on numbers of n digits with --mode all --num-digits n{shorter}")
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
# 8. The command line

SCRIPT = "attention_addition.py"
MODEL_FLAGS = ("num_digits", "n_layer", "n_head", "d_model", "d_ff")
CONFIG_FLAGS = (*MODEL_FLAGS, "leading_zeros", "cascades", "seed", "n_train", "n_val", "n_test", "model_seed", "steps", "batch_size",
                "lr", "warmup", "weight_decay", "eval_every")


def command_line():
    number, parser = common.number, common.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("problems", nargs="*", help="with --mode infer: problems such as 347+159, or - for standard input")
    parser.add_argument("--mode", choices=["all", "gendata", "train", "infer"], default="all", help="what to do")
    data = parser.add_argument_group("data")
    data.add_argument("--num-digits", type=number(int, 1, 15), default=3, help="digits of each number")
    data.add_argument("--leading-zeros", action="store_true", help="numbers from 0, not only those of full length")
    data.add_argument("--n-train", type=number(int, 1, 10**7), help="problems to learn from (10,000 where there are enough)")
    data.add_argument("--n-val", type=number(int, 1, 10**7), help="problems to choose the best weights by (2,000)")
    data.add_argument("--n-test", type=number(int, 1, 10**7), help="problems for the final test (2,000)")
    data.add_argument("--cascades", type=number(float, 0, 1), default=0.3,
                      help="share of training problems with columns changed to sum to nine")
    data.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=641, help="which problems are drawn")
    data.add_argument("--data-dir", default="data", help="where the problems are kept")
    data.add_argument("--out-dir", default="out", help="where the results go")
    model = parser.add_argument_group("model")
    model.add_argument("--n-layer", type=number(int, 1, 100), default=2, help="blocks in the encoder, and in the decoder")
    model.add_argument("--n-head", type=number(int, 1, 1024), default=4, help="heads of each attention; divides --d-model")
    model.add_argument("--d-model", type=number(int, 1, 8192), default=64, help="channels that represent a token")
    model.add_argument("--d-ff", type=number(int, 1, 65536), default=128, help="hidden units of the feed-forward networks")
    training = parser.add_argument_group("training")
    training.add_argument("--model-seed", type=number(int, 0, 2**63 - 1), default=1, help="initial weights and batch order")
    training.add_argument("--steps", type=number(int, 1, 10**9), default=1200, help="batches to learn from")
    training.add_argument("--batch-size", type=number(int, 1, 10**6), default=64, help="problems a batch")
    training.add_argument("--lr", type=number(float, 0), default=4e-3, help="highest learning rate")
    training.add_argument("--warmup", type=number(int, 1, 10**9), default=100, help="steps to reach it")
    training.add_argument("--weight-decay", type=number(float, 0), default=0.1, help="of matrices, not of biases")
    training.add_argument("--eval-every", type=number(int, 1, 10**9), default=100, help="steps between validations")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="auto is cuda, else cpu")
    machine.add_argument("--threads", type=number(int, 1, 1024), default=2, help="CPU threads")
    return parser


def main():
    args, typed = command_line().parse()
    if args.d_model % args.n_head:
        raise UserError(f"--d-model {args.d_model} cannot be cut into --n-head {args.n_head} equal heads; try --d-model "
                        f"{math.ceil(args.d_model / args.n_head) * args.n_head}")
    if (args.mode == "infer") != bool(args.problems):
        raise UserError("problems go with --mode infer and it with them, as in --mode infer 347+159")
    args.device = common.pick_device(args.device, args.threads)
    if args.mode in ("all", "gendata"):
        generate_data(args)
    if args.mode in ("all", "train"):
        train(args)
    if args.mode == "infer":
        infer(args, typed)


if __name__ == "__main__":
    common.run(main)
