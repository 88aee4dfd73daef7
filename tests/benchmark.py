"""How fast is attention written by hand?  Run by hand: python -m tests.benchmark [--threads 1] [--rounds 100]

Our code and PyTorch's own modules of the same sizes take turns in one process, so that a slow moment of the machine
hits both. Printed are medians, and the median of the ratios of neighbours: below 1.00, ours is the faster one.
"""
import argparse
import statistics
import time
import warnings

import torch
import torch.nn as nn
import torch.nn.functional as F

import attention_addition as add
import common
from tests.reference import TorchAdder, torch_attention


def take_turns(name, ours, theirs, rounds):
    """Time two functions alternately, print one row of the table."""
    times = []
    for round_ in range(rounds + 5):
        row = []
        for function in (ours, theirs):
            start = time.perf_counter()
            function()
            row.append(1000 * (time.perf_counter() - start))
        if round_ >= 5:  # the first ones warm up
            times.append(row)
    ours_ms, theirs_ms = (statistics.median(column) for column in zip(*times))
    ratio = statistics.median(a / b for a, b in times)
    print(f"{name:<52} {ours_ms:8.2f} {theirs_ms:10.2f} {ratio:8.2f}")


def training_step(model, lr=1e-3):
    """A function that makes one whole training step, as in attention_addition.train."""
    optimizer = common.adamw(model, lr, 0.1)

    def step():
        loss = F.cross_entropy(model(SOURCE, TARGET).flatten(0, 1), TARGET.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return step


def without_gradients(function):
    def run():
        with torch.inference_mode():
            function()
    return run


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=100)
args, flags = parser.parse_args(), add.command_line().parse([])[0]
torch.set_num_threads(args.threads)
torch.manual_seed(0)
warnings.filterwarnings("ignore", message="enable_nested_tensor")

problems = torch.randint(100, 1000, (flags.batch_size, 2))
SOURCE, TARGET = add.tokenize(*problems.T, 3)


def pair():
    ours = add.Adder(**{name: getattr(flags, name) for name in add.MODEL_FLAGS})
    return ours, TorchAdder(ours)


print(f"torch {torch.__version__}, {args.threads} threads, batch {flags.batch_size}, d_model {flags.d_model}, "
      f"{flags.n_head} heads, {flags.n_layer}+{flags.n_layer} layers, {args.rounds} rounds; times in ms\n")
print(f"{'':<52} {'ours':>8} {'torch.nn':>10} {'ratio':>8}")
ours, theirs = pair()
forwards = (lambda: ours(SOURCE, TARGET)), (lambda: theirs(SOURCE, TARGET))
take_turns("transformer: forward, training mode", *forwards, args.rounds)
steps = training_step(ours), training_step(TorchAdder(pair()[0]))
take_turns("transformer: forward + backward + update", *steps, args.rounds)
ours.eval(), theirs.eval()
take_turns("transformer: forward, no gradients", *map(without_gradients, forwards), args.rounds)
scores = torch.randn(flags.batch_size, flags.n_head, 7, 7)
take_turns("softmax of the encoder's scores", lambda: add.softmax(scores), lambda: scores.softmax(-1), args.rounds)
attention = add.MultiHeadAttention(flags.d_model, flags.n_head)
reference, x = torch_attention(attention), torch.randn(flags.batch_size, 7, flags.d_model, requires_grad=True)
for need_weights in (True, False):
    def torch_forward():
        return reference(x, x, x, need_weights=need_weights, average_attn_weights=False)[0]
    what = "ours and theirs with weights" if need_weights else "theirs without weights"
    take_turns(f"attention: forward, {what}", lambda: attention(x, x), torch_forward, args.rounds)
    take_turns(f"attention: forward + backward, {what}", lambda: attention(x, x).sum().backward(),
               lambda: torch_forward().sum().backward(), args.rounds)

problems = torch.randint(100, 1000, (500 * args.rounds, 2))
source, _ = add.tokenize(*problems.T, 3)
print("\nsums per second: ", end="")
start = time.perf_counter()
for chunk in source.split(512):
    add.greedy_decode(ours, chunk)
print(f"{len(problems) / (time.perf_counter() - start):,.0f} decoded digit by digit, ", end="")
own = common.parallel_map(lambda chunk: add.answers(ours, chunk, chunk[:, :4] % 10)[0], source.split(512))
start = time.perf_counter()
common.parallel_map(lambda pair: add.answers(ours, *pair), list(zip(source.split(512), own)))
print(f"{len(problems) / (time.perf_counter() - start):,.0f} where one pass shows that the answer is right")
