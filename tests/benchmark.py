"""How fast is attention written by hand?  python -m tests.benchmark [--threads 1] [--rounds 100]

Our code and PyTorch's own modules of the same sizes take turns in one process, so that a slow moment of the machine hits
both. Printed are medians, and the median of the ratios: below 1.00 ours is the faster one.
"""
import argparse
import statistics
import time
import warnings

import common
import attention_addition as add

import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.reference import TorchAdder

BATCH = 64


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
    ours_ms = statistics.median(a for a, _ in times)
    theirs_ms = statistics.median(b for _, b in times)
    print(f"{name:<52} {ours_ms:8.2f} {theirs_ms:10.2f} {ratio:8.2f}")


def training_step(model, config, source, target):
    """A function that makes one whole training step, as in attention_addition.fit."""
    optimizer, _ = common.optimizer_of(model, config, falling=0.6, beta2=0.95)

    def step():
        loss = F.cross_entropy(model(source, target).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return step


def without_gradients(function):
    def run():
        with torch.inference_mode():
            function()
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    config = vars(add.command_line().parse_args([]))
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message="enable_nested_tensor")
    source, target = add.tokenize(torch.randint(100, 1000, (BATCH, 2)), 3)
    print(f"torch {torch.__version__}, {options.threads} threads, batch {BATCH}, d_model {config['d_model']}, "
          f"{config['n_head']} heads, {config['n_layer']}+{config['n_layer']} layers; times in ms\n")
    print(f"{'':<52} {'ours':>8} {'torch.nn':>10} {'ratio':>8}")
    ours = add.Adder(config)
    theirs = TorchAdder(ours)
    take_turns("transformer: forward, training mode", lambda: ours(source, target), lambda: theirs(source, target),
               options.rounds)
    take_turns("transformer: forward + backward + update", training_step(ours, config, source, target),
               training_step(TorchAdder(add.Adder(config)), config, source, target), options.rounds)
    ours.eval()
    theirs.eval()
    take_turns("transformer: forward, no gradients", without_gradients(lambda: ours(source, target)),
               without_gradients(lambda: theirs(source, target)), options.rounds)


if __name__ == "__main__":
    main()
