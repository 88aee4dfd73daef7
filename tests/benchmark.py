"""How fast is attention written by hand?  python -m tests.benchmark [100]

Our code and PyTorch's own modules of the same sizes take turns in one process, so that a slow
moment of the machine hits both. Printed are medians, and the median of the ratios: below 1.00 ours
is the faster one.
"""
import statistics
import sys
import time

import attention_addition as add
import common

import torch
import torch.nn.functional as F

from tests.reference import TorchAdder

def take_turns(name, ours, theirs, rounds):
    """Time two functions alternately and print one row of the table."""
    times = []
    for _ in range(rounds + 5):
        row = []
        for function in (ours, theirs):
            start = time.perf_counter()
            function()
            row.append(1000 * (time.perf_counter() - start))
        times.append(row)
    times = times[5:]  # the first ones warm up
    ratio = statistics.median(a / b for a, b in times)
    ours_ms, theirs_ms = (statistics.median(column) for column in zip(*times))
    print(f"{name:<40} {ours_ms:8.2f} {theirs_ms:10.2f} {ratio:8.2f}")

def training_step(model, args, source, target):
    """A function that makes one whole training step, as train() does."""
    optimizer = common.adamw(model, args, beta2=0.95)
    def step():
        loss = F.cross_entropy(model(source, target).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return step

def main():
    rounds = int(sys.argv[1]) if sys.argv[1:] else 100
    common.prepare("infer")
    torch.manual_seed(0)
    args = add.command_line().parse_args([])
    source, target = add.tokenize(torch.randint(100, 1000, (args.batch_size, 2)), args)
    print(f"torch {torch.__version__}, one thread, batch {args.batch_size}; times in ms")
    print(f"{'':<40} {'ours':>8} {'torch.nn':>10} {'ratio':>8}")
    ours = add.Adder(args)
    take_turns("forward + backward + update", training_step(ours, args, source, target),
               training_step(TorchAdder(ours), args, source, target), rounds)

if __name__ == "__main__":
    main()
