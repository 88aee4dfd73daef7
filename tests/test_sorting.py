"""The sortedness encoder against PyTorch's attention, closed forms, invariances, brute force."""
import hashlib
import io
import json
import tempfile
import unittest
from collections import Counter
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn as nn
from torch.testing import assert_close

import common
import positional_sorting as sort
from common import UserError

ALL = list(sort.ENCODINGS)
ABSOLUTE = ["sinusoidal", "learned"]
KINDS = ["sorted", *sort.UNSORTED]
MASKS = [[], ["--causal"]]
POOLS = ["max", "mean"]
SMALL = ["--d-model", "16", "--batch-size", "64", "--n-train", "2000", "--n-val", "200",
         "--n-test", "200", "--n-long", "1000", "--lengths", "16", "32"]
DATA = {}
HALF_RIGHT = []  # ALiBi with a causal mask, after a training of a second


def setUpModule():
    for stream in ("sys.stdout", "sys.stderr"):
        silence = mock.patch(stream, io.StringIO())  # what trainings say
        silence.start()
        unittest.addModuleCleanup(silence.stop)
    common.prepare("train")
    folder = tempfile.TemporaryDirectory()
    unittest.addModuleCleanup(folder.cleanup)
    SMALL.extend(["--data-dir", folder.name, "--out-dir", f"{folder.name}/out"])
    HALF_RIGHT.append(fit("alibi", "--causal", "--steps", "150", warmup=20)[0].double())
    names = ["val", "test", "extrapolation/16", "extrapolation/32"]
    DATA.update(sort.load_data(flags(*SMALL), names))


def flags(*typed):
    return sort.command_line().parse_args(typed)


def job(pe, *typed):
    args = flags("--pe", pe, *typed)
    return sort.settings(args, [(args.causal, args.random_start)])[0]


def fit(pe, *typed, **changes):
    """Train a small model; return it, as it is on disk, and its log."""
    args = job(pe, *SMALL, *typed)
    vars(args).update(changes)
    with mock.patch.object(common, "save_log") as save_log:
        sort.train(args)
    return sort.load(Path(args.out_dir, args.folder, args.file)), save_log.call_args.args[1]


def random_model(pe, *typed):
    torch.manual_seed(0)
    sizes = ["--n-layer", "2", "--n-head", "2", "--d-model", "16", "--d-ff", "24"]
    model = sort.SortednessEncoder(job(pe, *sizes, "--max-len", "256", *typed))
    nn.init.normal_(model.token_embedding.weight)  # large enough to tell numbers apart
    return model.double().eval()


def some_lists(n=32, length=12, padding=0):
    lists = torch.randint(100, (n, length), generator=torch.Generator().manual_seed(0))
    lists[::2, length - padding:] = sort.PAD
    return lists


class Data(unittest.TestCase):
    def test_labels_and_kinds(self):
        n_moved = {kind: [] for kind in KINDS}
        for record in sum(sort.make_data(flags()).values(), []):
            x, kind = record["sequence"], record["kind"]
            self.assertTrue(0 <= min(x) and max(x) <= 99)
            self.assertEqual((record["is_sorted"], record["length"]), (x == sorted(x), len(x)))
            moved = [i for i in range(len(x)) if x[i] != sorted(x)[i]]
            n_moved[kind].append(len(moved))
            if kind == "adjacent_swap":
                i, j = moved
                self.assertLessEqual(set(x[i:j]), {x[i], x[j]})  # neighbours, but for equals
            elif kind == "swaps":
                self.assertLessEqual(len(moved), 2 * max(2, len(x) // 3))
            elif kind == "reversed":
                self.assertEqual(x, sorted(x, reverse=True))
        self.assertEqual([set(n_moved[kind]) for kind in KINDS[:3]], [{0}, {2}, {2}])
        self.assertTrue(2.5 < np.mean(n_moved["swaps"]) < np.mean(n_moved["shuffled"]) - 1)

    def test_pairs_and_shares(self):
        pairs = []
        for name, records in sort.make_data(flags("--n-val", "1999")).items():
            self.assertEqual(len(records), {"train": 10_000, "val": 1_999}.get(name, 2_000))
            shares = {"sorted": 0.5} | dict.fromkeys(sort.UNSORTED, 0.1)
            self.assert_shares([record["kind"] for record in records], shares, 0.001)
            of_16 = {"train": 1 / 2, "val": 1 / 9, "test": 1 / 9}.get(name)
            shares = {16: of_16} | dict.fromkeys(range(8, 16), (1 - (of_16 or 1)) / 8)
            shares = shares if of_16 else {int(Path(name).name): 1}
            self.assert_shares([record["length"] for record in records], shares, 0.03)
            pairs += [tuple(sorted(record["sequence"])) for record in records[:1998]]
            narrow = [numbers[-1] - numbers[0] < 30 for numbers in pairs[-1998:]]
            self.assert_shares(narrow, {True: 0.36, False: 0.64}, 0.05)
        self.assertEqual(pairs[0::2], pairs[1::2])
        self.assertEqual(set(Counter(pairs).values()), {2})
