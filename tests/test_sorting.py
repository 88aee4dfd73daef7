"""The sortedness encoder against PyTorch's attention, closed forms, invariances, brute force."""
import hashlib
import io
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
VARIANTS = list(itertools.product(ALL, ["--pool=max", "--pool=mean"], [[], ["--causal"]]))
SMALL = ["--d-model=16", "--batch-size=64", "--n-train=2000", "--n-val=200", "--n-test=300",
         "--n-long=1000", "--lengths", "16", "32"]
FOLDER = tempfile.TemporaryDirectory()
DATA = {}


def setUpModule():
    for stream in ("sys.stdout", "sys.stderr"):
        silence = mock.patch(stream, io.StringIO())  # what trainings say
        silence.start()
        unittest.addModuleCleanup(silence.stop)
    unittest.addModuleCleanup(FOLDER.cleanup)
    common.prepare("train")
    SMALL.extend([f"--data-dir={FOLDER.name}", f"--out-dir={FOLDER.name}/out"])
    DATA.update(sort.load_data(flags(*SMALL), ["val", "test", "extrapolation/16"]))


def flags(*typed, pe="none"):
    """The flags that train() gets."""
    args = sort.command_line().parse_args(["--pe", pe, *typed])
    return sort.settings(args, [(args.causal, args.random_start)])[0]


def fit(pe, *typed, **changes):
    """Train a small model; return it, as it is on disk, and its log."""
    args = flags(*SMALL, *typed, pe=pe)
    vars(args).update(changes)
    with mock.patch.object(common, "save_log") as save_log:
        sort.train(args)
    return sort.load(Path(args.out_dir, args.folder, args.file)), save_log.call_args.args[1]


def random_model(pe, *typed):
    torch.manual_seed(0)
    sizes = ["--n-layer=2", "--n-head=2", "--d-model=16", "--d-ff=24", "--max-len=256"]
    model = sort.SortednessEncoder(flags(*sizes, *typed, pe=pe))
    nn.init.normal_(model.token_embedding.weight)  # large enough to tell numbers apart
    return model.double().eval()


def some_lists(n=32, length=12, padding=0):
    lists = torch.randint(100, (n, length), generator=torch.Generator().manual_seed(0))
    lists[::2, length - padding:] = sort.PAD
    return lists


class Data(unittest.TestCase):
    def test_records(self):
        """Labels, kinds, pairs and shares of the default data."""
        all_pairs = []
        for name, records in sort.make_data(flags()).items():
            n_moved = {kind: [] for kind in KINDS}
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
            pairs = [tuple(sorted(record["sequence"])) for record in records]
            self.assertTrue(min(pairs)[0] == 0 and max(max(pairs)) == 99)
            self.assertAlmostEqual(np.mean([x[-1] - x[0] < 30 for x in pairs]), 0.36, delta=0.05)
            lengths = [len(x) for x in pairs]
            expected = {"train": 1 / 2, "val": 1 / 9, "test": 1 / 9, "extrapolation/16": 1}
            self.assertAlmostEqual(lengths.count(16) / n, expected.get(name, 0), delta=0.03)
            only = name.removeprefix("extrapolation/")
            self.assertEqual(set(lengths), {int(only)} if only.isdecimal() else {*range(8, 17)})
            all_pairs += pairs
        self.assertEqual(all_pairs[0::2], all_pairs[1::2])
        self.assertEqual(2 * len(set(all_pairs)), len(all_pairs))

    def test_shift_keeps_order_and_range(self):
        lists = sort.pad([[3, 15, 27], [5, 5, 4, 99], [7, 6], [0, 99]])
        present = lists != sort.PAD
        shifted = sort.shift_numbers(lists.repeat(9999, 1), None).view(9999, 4, 4)
        self.assertTrue((shifted[:, ~present] == sort.PAD).all())
        self.assertTrue((shifted[:, present] >= 0).all() and (shifted[:, present] <= 99).all())
        amount = shifted - lists
        self.assertTrue((amount == amount[..., :1])[:, present].all())
        self.assertEqual(set(shifted[:, 2, 1].tolist()), set(range(99)))  # all there is room for


class Files(unittest.TestCase):
    def setUp(self):
        self.folder = Path(FOLDER.name, self.id(), "sorting")
        self.folder.mkdir(parents=True)

    def load(self, *names, typed=(), mode=None):
        args = flags(f"--data-dir={self.folder.parent}", *typed)
        args.mode = mode
        return sort.load_data(args, names)

    def write(self, name, *records):
        (self.folder / name).write_text("\n".join(map(json.dumps, records)))

    def test_default_files_are_the_same_everywhere(self):
        self.load("train")
        files = [path.read_bytes() for path in sorted(self.folder.rglob("*.jsonl"))]
        digest = "99b751fe50c0cc2c97c1207c014b746a3da404c37e5f7a86a9231ef447942586"
        self.assertEqual(hashlib.sha256(b"".join(files)).hexdigest(), digest)

    def test_what_depends_on_which_flag(self):
        typed = ["--n-train=19", "--n-val=20", "--n-test=20", "--n-long=20", "--lengths"]
        files = []
        for other in (["20", "64", "32", "--kinds", "swaps"], ["32"]):
            self.load("val", typed=[*typed, *other], mode="gendata")
            names = ["test", "val", "extrapolation/32", "train"]
            files.append([(self.folder / f"{name}.jsonl").read_text() for name in names])
        self.assertEqual(files[0][:3], files[1][:3])
        self.assertEqual([files[0][3].count(kind) for kind in KINDS], [20, 0, 0, 9, 0, 0])
        self.load("train", "val", typed=[*typed[:3], "--n-long=7", "--lengths=40"])
        for flag in ("--n-train=3", "--n-val=3", "--n-test=3", "--seed=3", "--kinds=swaps"):
            name = flag[2:].split("=")[0].replace("-", "_")
            with self.assertRaisesRegex(UserError, f"was made with {name} [^.;]*; type [^.]*$"):
                self.load("train", typed=[*typed[:3], flag])
        with self.assertRaisesRegex(UserError, "was made with n_long 20; type [^.]*$"):
            self.load("extrapolation/32", typed=typed[:3])
        with self.assertRaisesRegex(UserError, "extrapolation/40.jsonl is missing; type --mode"):
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
        wrong = [long, 7, [1, 2, 2], {"sequence": [1, 2, 2]}]
        values = {"sequence": [[1, 2, 100], [1, -2, 2], [1, 2, 2.0], [1], [], "122", None],
                  "is_sorted": [0, None], "length": [2, None]}
        for key, found in values.items():
            wrong += [good | {key: value} for value in found]
        for record in wrong:
            self.write("train.jsonl", good, record, good)
            with self.assertRaisesRegex(UserError, r"sorting/train, record 2: .*; mend it"):
                self.load("train")
        self.write("val.json", [long, good, good | {"length": 9}])
        with self.assertRaisesRegex(UserError, "val, record 3: is_sorted or length is wrong"):
            self.load("val", typed=["--max-len=513"])


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
        touched = {"everywhere": {*range(256)}, "gap": {*range(100), *range(140, 256)},
                   "early": {*range(121)}}  # positions that are in some list of 16
        expected = {}
        for pe in ALL:
            expected[f"sorting/{pe}"] = (pe, False, None)
            expected[f"sorting/{pe}-causal"] = (pe, True, None)
        for name, starts in sort.STARTS.items():
            self.assertEqual({start + i for start in starts for i in range(16)}, touched[name])
            for pe in ABSOLUTE:
                folder = f"sorting/{pe}-causal-random-start-{name}".removesuffix("-everywhere")
                expected[folder] = (pe, True, name)
        args = sort.command_line().parse_args(["--model-seeds=2"])
        panels = [*sort.PANELS.values(), (True, "gap"), (True, "early")]
        for seed, file in ((1, "best_model.pth"), (2, "seeds/2.pth")):
            jobs = sort.settings(args, panels)[seed - 1::2]
            self.assertEqual({(job.model_seed, job.file) for job in jobs}, {(seed, file)})
            found = {job.folder: (job.pe, job.causal, job.random_start) for job in jobs}
            self.assertEqual(found, expected)
        with self.assertRaisesRegex(UserError, "--pe rpoe: type some of none,sinusoidal"):
            flags(pe="rpoe")


def for_pytorch(ours):
    """The weights of our attention under the names of nn.MultiheadAttention."""
    qkv = ours.query_key_value
    return {"in_proj_weight": qkv.weight, "in_proj_bias": qkv.bias,
            "out_proj.weight": ours.output.weight, "out_proj.bias": ours.output.bias}


class Model(unittest.TestCase):
    def test_attention_is_pytorchs(self):
        ours = sort.MultiHeadAttention(24, 3).double()
        theirs = nn.MultiheadAttention(24, 3, batch_first=True).double()
        theirs.load_state_dict(for_pytorch(ours))
        x = torch.randn(2, 5, 24).double().requires_grad_()
        bias = torch.randn(2, 3, 5, 5).double()
        mask = (torch.rand(2, 1, 5, 5) < 0.5) | torch.eye(5).bool()
        encoding = sort.Encoding(None)
        encoding.bias = lambda scores, position: scores + bias
        found = ours(x, mask, encoding, None)
        added = bias.masked_fill(~mask, -torch.inf).flatten(0, 1)
        expected, weights = theirs(x, x, x, attn_mask=added, average_attn_weights=False)
        assert_close((found, ours.weights), (expected, weights.detach()))
        ours_and_theirs = (found, ours.query_key_value.weight), (expected, theirs.in_proj_weight)
        gradients = [torch.autograd.grad(y.square().sum(), [x, w]) for y, w in ours_and_theirs]
        assert_close(*gradients)

    def test_model_is_pytorchs(self):
        lists = some_lists(padding=3)
        later = torch.ones(12, 12).triu(1).bool()
        layer = nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True, norm_first=True)
        theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
        for pool, causal in itertools.product(("max", "mean"), (False, True)):
            model = random_model("learned", f"--pool={pool}", *["--causal"] * causal)
            for block, layer in zip(model.blocks, theirs.double().layers):
                layer.self_attn.load_state_dict(for_pytorch(block.attention))
                layer.linear1.load_state_dict(block.feed_forward[0].state_dict())
                layer.linear2.load_state_dict(block.feed_forward[2].state_dict())
            x = model.token_embedding(lists) + model.encoding.table[:12]
            h = theirs(x, later if causal else None, src_key_padding_mask=lists == sort.PAD)
            rows = [row[numbers != sort.PAD] for row, numbers in zip(h, lists)]
            pooled = [row.amax(0) if pool == "max" else row.mean(0) for row in rows]
            assert_close(model(lists), model.to_logit(torch.stack(pooled)).squeeze(-1))

    def test_order_and_start(self):
        """Without encoding and mask nothing sees the order, nor the mirror image in ALiBi's bias.

        Each list has its own start; all but sinusoidal and learned encodings see offsets only.
        """
        lists = some_lists()
        start = torch.arange(1, 33)[:, None]
        for pe, pool, mask in VARIANTS:
            model = random_model(pe, pool, *mask)
            alone = [model(x[None], int(first)) for x, first in zip(lists, start)]
            assert_close(model(lists, start), torch.cat(alone))
            others = {pe not in ABSOLUTE: model(lists, start)}
            

    def test_padding_changes_nothing(self):
        lists = [row[:n].tolist() for row, n in zip(some_lists(6, 40), (8, 11, 40, 16, 9, 2))]
        for pe, pool, mask in VARIANTS:
            model = random_model(pe, pool, *mask)
            alone = [model(torch.tensor([numbers])) for numbers in lists]
            assert_close(model(sort.pad(lists)), torch.cat(alone))
