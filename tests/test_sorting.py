"""The sortedness encoder against PyTorch's attention, closed forms, invariances, brute force."""
import hashlib
import itertools
import json
import random
import tempfile
import unittest
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
SMALL = ["--d-model=16", "--batch-size=64", "--n-train=2000", "--n-val=200", "--n-test=300",
         "--n-long=1000", "--lengths", "16", "32"]
DATA = {}
HALF_RIGHT = []  # ALiBi with a causal mask, after a training of a second


def setUpModule():
    unittest.enterModuleContext(mock.patch("builtins.print"))
    folder = unittest.enterModuleContext(tempfile.TemporaryDirectory())
    SMALL.extend([f"--data-dir={folder}/data", f"--out-dir={folder}/out"])
    common.prepare("train")
    HALF_RIGHT.append(fit("alibi", "--causal", "--steps=150", warmup=20)[0].double())
    names = ["val", "test", "extrapolation/16", "extrapolation/32"]
    DATA.update(sort.load_data(flags(*SMALL), names))


def flags(*typed, pe="none", **others):
    """What train() gets; others are set as attributes, not typed."""
    args = sort.command_line().parse_args(["--pe", pe, *typed])
    (args,) = sort.settings(args, [(args.causal, args.random_start)])
    vars(args).update(others)
    return args


def fit(pe, *typed, **others):
    """Train a small model; return it, as it is on disk, and its log."""
    args = flags(*SMALL, *typed, pe=pe, **others)
    with mock.patch.object(common, "save_log") as save_log:
        sort.train(args)
    return sort.load(Path(args.out_dir, args.folder, args.file)), save_log.call_args.args[1]


def random_model(pe, *typed):
    torch.manual_seed(0)
    sizes = ["--n-layer=2", "--n-head=2", "--d-model=16", "--d-ff=24", "--max-len=256"]
    model = sort.SortednessEncoder(flags(*sizes, *typed, pe=pe))
    nn.init.normal_(model.token_embedding.weight)  # large enough to tell numbers apart
    return model.double().eval()


def some_lists(n, length):
    return torch.randint(100, (n, length), generator=torch.Generator().manual_seed(0))


class Data(unittest.TestCase):
    def load(self, *names, typed=(), **others):
        return sort.load_data(flags(f"--data-dir={self.folder}", *typed, **others), names)

    def setUp(self):
        self.folder = self.enterContext(tempfile.TemporaryDirectory())

    def write(self, name, *records):
        text = "\n".join(map(json.dumps, records))
        Path(self.folder, "sorting").mkdir(exist_ok=True)
        Path(self.folder, "sorting", name).write_text(text)

    def read(self):
        paths = sorted(Path(self.folder).rglob("*.jsonl"))
        return {path.stem: path.read_text() for path in paths}

    def test_default_data(self):
        """Labels, kinds and lengths and their shares; pairs of the same numbers, all different."""
        self.load("train")
        all_pairs = []
        for name, text in self.read().items():
            n_moved = {kind: [] for kind in KINDS}
            records = [json.loads(line) for line in text.splitlines()]
            for record in records:
                x, kind = record["sequence"], record["kind"]
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
            n = len(records)
            self.assertEqual([len(n_moved[kind]) for kind in KINDS], [n // 2] + 5 * [n // 10])
            self.assertEqual([set(n_moved[kind]) for kind in KINDS[:3]], [{0}, {2}, {2}])
            self.assertTrue(2.5 < np.mean(n_moved["swaps"]) < np.mean(n_moved["shuffled"]) - 1)
            lengths = [record["length"] for record in records]
            expected = {int(name)} if name.isdecimal() else {*range(8, 17)}
            self.assertEqual(set(lengths), expected)
            expected = {"train": 1 / 2, "val": 1 / 9, "test": 1 / 9, "16": 1}.get(name, 0)
            self.assertAlmostEqual(lengths.count(16) / n, expected, delta=0.03)
            pairs = [tuple(sorted(record["sequence"])) for record in records]
            narrow = [x[-1] - x[0] < 30 for x in pairs]
            self.assertAlmostEqual(np.mean(narrow), 0.36, delta=0.05)
            all_pairs += pairs
        self.assertEqual(set(itertools.chain(*all_pairs)), set(range(100)))
        self.assertEqual(all_pairs[0::2], all_pairs[1::2])
        self.assertEqual(2 * len(set(all_pairs)), len(all_pairs))
        digest = "99b751fe50c0cc2c97c1207c014b746a3da404c37e5f7a86a9231ef447942586"
        found = hashlib.sha256("".join(self.read().values()).encode()).hexdigest()
        self.assertEqual(found, digest)

    def test_what_depends_on_which_flag(self):
        typed = ["--n-train=19", "--n-val=20", "--n-test=20", "--n-long=20", "--lengths"]
        found = []
        for other in (["20", "64", "32", "--kinds", "swaps"], ["32"]):
            self.load("val", typed=[*typed, *other], mode="gendata")
            found.append(self.read())
        self.assertEqual([found[0].pop("train").count(kind) for kind in KINDS], [10, 0, 0, 9, 0, 0])
        del found[1]["train"], found[0]["20"], found[0]["64"]
        self.assertEqual(found[0], found[1])
        self.load("train", "val", typed=[*typed[:3], "--n-long=7", "--lengths", "40"])
        for name in ("n_train", "n_val", "n_test", "seed", "n_long"):
            flag = f"--{name.replace('_', '-')}=3"
            with self.assertRaisesRegex(UserError, rf"was made with {name} \d+; type [^.]*$"):
                self.load("extrapolation/32", typed=[*typed[:4], flag])
        with self.assertRaisesRegex(UserError, r"was made with kinds \[.*\]; type [^.]*$"):
            self.load("train", typed=[*typed[:4], "--kinds", "swaps"])
        with self.assertRaisesRegex(UserError, "extrapolation/40.jsonl is missing; type [^.]*$"):
            self.load("extrapolation/40", typed=typed[:4])

    def test_own_data_are_used_as_they_are(self):
        """The keys of the assignment, any number of records, JSON Lines or an array."""
        rising = {"sequence": [1, 2, 2], "is_sorted": 1, "length": 3}
        falling = {"sequence": [9, 4], "is_sorted": 0, "length": 2}
        self.write("train.jsonl", rising, falling, falling | {"kind": "swaps"})
        self.write("val.json", [falling, rising])
        (lists, kinds), val = self.load("train", "val").values()
        self.assertEqual(lists.tolist(), [[1, 2, 2], [9, 4, sort.PAD], [9, 4, sort.PAD]])
        self.assertEqual([kinds, val[1]], [["sorted", "unsorted", "swaps"], ["unsorted", "sorted"]])
        with self.assertRaisesRegex(UserError, "holds data of your own"):
            self.load("train", mode="gendata")

    def test_a_wrong_record_is_named(self):
        good = {"sequence": [1, 2, 2], "is_sorted": 1, "length": 3}
        long = {"sequence": 513 * [7], "is_sorted": 1, "length": 513}  # --max-len is 512
        wrong = [long, 7, [1, 2, 2], {"sequence": [1, 2, 2]}, good | {"is_sorted": 0}]
        wrong += [good | {"length": 2}, good | {"length": None}]
        for x in ([1, 2, 100], [1, -2, 2], [1, 2, 2.0], [1], [], "122", None):
            wrong.append({"sequence": x, "is_sorted": 1, "length": len(x or [])})
        for record in wrong:
            self.write("train.jsonl", good, record, good)
            with self.assertRaisesRegex(UserError, r"sorting/train, record 2: .*; mend it"):
                self.load("train")
        self.write("val.json", [long, good, good | {"length": 9}])
        with self.assertRaisesRegex(UserError, "val, record 3: is_sorted or length is wrong"):
            self.load("val", typed=["--max-len=513"])

    def test_shift_keeps_order_and_range(self):
        lists = sort.pad([[3, 15, 27], [5, 5, 4, 99], [7, 6], [0, 99]])
        present = lists != sort.PAD
        shifted = sort.shift_numbers(lists.repeat(9999, 1), None).view(9999, 4, 4)
        self.assertTrue((shifted[:, ~present] == sort.PAD).all())
        self.assertTrue((shifted[:, present] >= 0).all() and (shifted[:, present] <= 99).all())
        amount = shifted - lists
        self.assertTrue((amount == amount[..., :1])[:, present].all())
        self.assertEqual(set(shifted[:, 2, 1].tolist()), set(range(99)))  # all there is room for


class Encodings(unittest.TestCase):
    def test_sinusoids(self):
        position = torch.tensor([[0, 1, 15], [16, 100, 299]])
        angle = position.numpy()[..., None] / 10_000 ** (2 * np.arange(8) / 16)
        found = sort.sinusoids(position, 16).numpy()
        np.testing.assert_allclose(found[..., 0::2], np.sin(angle), atol=3e-5)
        np.testing.assert_allclose(found[..., 1::2], np.cos(angle), atol=3e-5)

    def test_rope_is_multiplication_by_a_complex_number(self):
        x = torch.randn(2, 3, 5, 8)
        position = torch.tensor([0, 1, 5, 16, 255])
        factor = torch.polar(torch.ones(5, 4), position[:, None] / 10.0 ** torch.arange(4))
        expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2))) * factor)
        found = sort.Rope(flags()).rotate(x, position)
        assert_close(found, expected.flatten(-2), rtol=1e-4, atol=1e-4)

    def test_alibi(self):
        scores = torch.randint(9, (2, 8, 6, 6)).double()
        found = sort.Alibi(flags("--n-head=8", "--slope=0.5")).bias(scores, torch.arange(6))
        for h, i, j in itertools.product(range(8), range(6), range(6)):  # as in the paper
            self.assertEqual(found[1, h, i, j], scores[1, h, i, j] - abs(i - j) / 2 ** (h + 1))
        ours = sort.Alibi(flags()).bias(torch.zeros(1, 4, 2, 2), torch.arange(2))
        self.assertEqual(ours[0, :, 0, 1].tolist(), [-4, -1, -1 / 4, -1 / 16])

    def test_randomized_positions(self):
        """Sorted, distinct, in range; padding last; new in training, the same in evaluation."""
        encoding = sort.Randomized(flags("--max-len=64"))
        present = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
        found = {True: [], False: []}
        for i in range(400):
            encoding.train(i % 2 == 0)
            with mock.patch.object(sort, "sinusoids", return_value=0) as sinusoids:
                encoding.embed(torch.zeros(2, 6, 8), torch.arange(6), present)
            long, short = sinusoids.call_args.args[0].tolist()
            self.assertEqual([long, short], [sorted(set(long)), sorted(set(short[:4])) + [64, 64]])
            found[encoding.training].append(long)
        self.assertEqual(set(sum(found[True], [])), set(range(64)))
        self.assertEqual(found[False], 200 * found[False][:1])

    def test_settings(self):
        """Folders and flags; a random start is dropped where it changes nothing."""
        gap = {*range(100), *range(140, 256)}
        touched = {"everywhere": {*range(256)}, "gap": gap, "early": {*range(121)}}
        expected = []
        for pe in ALL:
            expected += [(f"sorting/{pe}", pe, False, None), (f"sorting/{pe}-causal", pe, True, None)]
        for name, starts in sort.STARTS.items():
            found = {start + i for start in starts for i in range(16)}
            self.assertEqual(found, touched[name])  # positions that are in some list of 16
            for pe in ABSOLUTE:
                folder = f"sorting/{pe}-causal-random-start-{name}".removesuffix("-everywhere")
                expected.append((folder, pe, True, name))
        args = sort.command_line().parse_args(["--model-seeds=2"])
        jobs = sort.settings(args, [*sort.PANELS.values(), (True, "gap"), (True, "early")])
        found = [(job.folder, job.pe, job.causal, job.random_start) for job in jobs]
        self.assertEqual(sorted(found, key=str), sorted(2 * expected, key=str))
        found = {(job.model_seed, job.file) for job in jobs}
        self.assertEqual(found, {(1, "best_model.pth"), (2, "seeds/2.pth")})
        with self.assertRaisesRegex(UserError, "--pe rpoe: type some of none,sinusoidal"):
            flags(pe="rpoe")


class Model(unittest.TestCase):
    def test_model_is_pytorchs(self):
        """Answers, weights of attention and gradients, with padding, causal mask, window, bias."""
        lists = some_lists(4, 12)
        lists[::2, 9:] = sort.PAD
        bias = torch.randn(4, 2, 12, 12).double()
        later = torch.arange(12) - torch.arange(12)[:, None]
        layer = nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True, norm_first=True)
        theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
        for pool, window in itertools.product(("max", "mean"), (None, 99, 5)):
            ours = random_model("learned", f"--pool={pool}", *["--causal"] * bool(window))
            ours.encoding.bias = lambda scores, position: scores + bias
            for block, layer in zip(ours.blocks, theirs.double().layers):
                qkv, output = block.attention.query_key_value, block.attention.output
                layer.self_attn.load_state_dict({
                    "in_proj_weight": qkv.weight, "in_proj_bias": qkv.bias,
                    "out_proj.weight": output.weight, "out_proj.bias": output.bias})
                layer.linear1.load_state_dict(block.feed_forward[0].state_dict())
                layer.linear2.load_state_dict(block.feed_forward[2].state_dict())
            hidden = (lists == sort.PAD)[:, None, None, :]
            if window:
                hidden = hidden | (later > 0) | (later <= -window)
            mask = bias.masked_fill(hidden, -torch.inf).flatten(0, 1)
            x = ours.token_embedding(lists) + ours.encoding.table[:12]
            rows = [h[numbers != sort.PAD] for h, numbers in zip(theirs(x, mask), lists)]
            pooled = [row.amax(0) if pool == "max" else row.mean(0) for row in rows]
            expected = ours.to_logit(torch.stack(pooled)).squeeze(-1)
            assert_close(ours(lists, 0, window), expected)
