"""The sortedness encoder against PyTorch's attention, closed forms, invariances, brute force."""
import copy
import hashlib
import io
import itertools
import json
import random
import statistics
import tempfile
import unittest
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.testing import assert_close

import common
import positional_sorting as sort
from common import UserError

ALL = list(sort.ENCODINGS)
ABSOLUTE = ["sinusoidal", "learned"]
MASKS = [[], ["--causal"]]
SMALL = ["--d-model", "16", "--batch-size", "64", "--n-train", "2000", "--n-val", "200",
         "--n-test", "200", "--n-long", "200", "--lengths", "16", "32"]
MADE = {}  # half_right: ALiBi with a causal mask after 150 steps


def setUpModule():
    for stream in ("sys.stdout", "sys.stderr"):
        silence = mock.patch(stream, io.StringIO())  # what trainings say
        silence.start()
        unittest.addModuleCleanup(silence.stop)
    common.prepare("train")
    folder = tempfile.TemporaryDirectory()
    unittest.addModuleCleanup(folder.cleanup)
    SMALL.extend(["--data-dir", f"{folder.name}/data", "--out-dir", f"{folder.name}/out"])
    MADE["half_right"] = fit("alibi", "--causal", "--steps", "150", warmup=20)[0].double()
    MADE["val"] = sort.load_data(flags(*SMALL), ["val"])["val"]


def flags(*typed):
    return sort.command_line().parse_args(typed)


def job(pe, *typed):
    args = flags("--pe", pe, *typed)
    return sort.settings(args, [(args.causal, args.random_start)])[0]


def draw(n, lengths, seed=0):
    """Lists (N, T) and their kinds."""
    records = sort.draw_records(random.Random(seed), n, sort.UNSORTED, lengths, set())
    kinds = [record["kind"] for record in records]
    return sort.pad([record["sequence"] for record in records]), kinds


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


def accuracy(*arguments, **options):
    return sort.evaluate(*arguments, **options)[1]


def lines_of(figure):
    """{title: {label: points}} of the panels."""
    found = {}
    for ax in figure.axes:
        found[ax.get_title()] = {line.get_label(): line.get_xydata() for line in ax.lines}
    return found


class Data(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        """The records of the default files."""
        with tempfile.TemporaryDirectory() as folder:
            sort.load_data(flags("--data-dir", folder), ["train"])
            files = sorted(Path(folder).rglob("*.jsonl"))
            texts = [path.read_text() for path in files]
        cls.digest = hashlib.sha256("".join(texts).encode()).hexdigest()
        cls.sets = {}
        for path, text in zip(files, texts):
            cls.sets[path.stem] = [json.loads(line) for line in text.splitlines()]
        cls.records = list(itertools.chain(*cls.sets.values()))

    def test_default_files_are_the_same_everywhere(self):
        sizes = {name: len(records) for name, records in self.sets.items()}
        others = ["128", "16", "256", "32", "64", "test", "val"]
        self.assertEqual(sizes, {"train": 10_000} | dict.fromkeys(others, 2_000))
        digest = "99b751fe50c0cc2c97c1207c014b746a3da404c37e5f7a86a9231ef447942586"
        self.assertEqual(self.digest, digest)

    def test_labels_and_kinds(self):
        n_moved = {kind: [] for kind in ["sorted", *sort.UNSORTED]}
        for record in self.records:
            x, kind = record["sequence"], record["kind"]
            self.assertTrue(0 <= min(x) and max(x) <= 99)
            self.assertEqual((record["is_sorted"], record["length"]), (x == sorted(x), len(x)))
            moved = [i for i in range(len(x)) if x[i] != sorted(x)[i]]
            n_moved[kind].append(len(moved))
            if kind == "adjacent_swap":
                i, j = moved
                self.assertLessEqual(set(x[i:j]), {x[i], x[j]})  # neighbours, but for equal numbers
            elif kind == "swaps":
                self.assertLessEqual(len(moved), 2 * max(2, len(x) // 3))
            elif kind == "reversed":
                self.assertEqual(x, sorted(x, reverse=True))
        for kind, expected in (("sorted", {0}), ("adjacent_swap", {2}), ("random_swap", {2})):
            self.assertEqual(set(n_moved[kind]), expected)
        self.assertTrue(2.5 < np.mean(n_moved["swaps"]) < np.mean(n_moved["shuffled"]) - 1)

    def test_pairs_share_their_numbers_and_no_two_pairs_do(self):
        pairs = [tuple(sorted(record["sequence"])) for record in self.records]
        self.assertEqual(pairs[0::2], pairs[1::2])
        self.assertEqual(set(Counter(pairs).values()), {2})

    def test_shares(self):
        self.assertEqual(len(draw(7, [8])[1]), 7)
        for records in self.sets.values():
            kinds = Counter(record["kind"] for record in records)
            expected = dict.fromkeys(sort.UNSORTED, len(records) // 10)
            self.assertEqual(kinds, {"sorted": len(records) // 2} | expected)
        for name, of_8_to_15, of_16 in (("train", 1/16, 1/2), ("val", 1/9, 1/9), ("test", 1/9, 1/9)):
            lengths = Counter(record["length"] for record in self.sets[name])
            self.assertEqual(set(lengths), set(range(8, 17)))
            for length, n in lengths.items():
                expected = of_16 if length == 16 else of_8_to_15
                self.assertAlmostEqual(n / len(self.sets[name]), expected, delta=0.03)
        for length in (16, 32, 64, 128, 256):
            self.assertEqual({record["length"] for record in self.sets[str(length)]}, {length})

    def test_half_of_the_lists_have_a_narrow_range(self):
        """Its logarithm is uniform from 2 to 100. A list of 256 numbers shows its range."""
        found = []
        for record in self.sets["256"]:
            found.append(max(record["sequence"]) - min(record["sequence"]) + 1)
        found = np.array(found)
        octave = np.log(2) / np.log(50) / 2
        for low in (2, 5, 10, 20):
            share = np.mean((low <= found) & (found < 2 * low))
            self.assertAlmostEqual(share, octave, delta=0.03)
        self.assertAlmostEqual(np.mean(found > 90), 0.5, delta=0.05)

    def test_shift_keeps_order_and_range(self):
        lists = sort.pad([[3, 15, 27], [5, 5, 4, 99], [7, 6], [0, 99]])
        present = lists != sort.PAD
        shifted = sort.shift_numbers(lists.repeat(20_000, 1), torch.Generator().manual_seed(0))
        shifted = shifted.view(20_000, 4, 4)
        self.assertTrue((shifted[:, ~present] == sort.PAD).all())
        self.assertTrue((shifted[:, present] >= 0).all() and (shifted[:, present] <= 99).all())
        amount = shifted - lists
        self.assertTrue((amount == amount[..., :1])[:, present].all())
        counts = Counter(shifted[:, 2, 1].tolist())  # 0 to 98, each about 202 times
        self.assertEqual(set(counts), set(range(99)))
        self.assertTrue(120 < min(counts.values()) and max(counts.values()) < 300)


class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name, "sorting")
        self.folder.mkdir()

    def load(self, *names, typed=(), mode=None):
        args = flags("--data-dir", str(self.folder.parent), *typed)
        args.mode = mode
        return sort.load_data(args, names)

    def write(self, name, *records):
        (self.folder / name).write_text("\n".join(map(json.dumps, records)))

    def test_what_changes_which_file(self):
        """A long file does not depend on other lengths, and --kinds changes training only."""
        sizes = ["--n-train", "20", "--n-val", "20", "--n-test", "20", "--n-long", "20"]
        files = []
        for other in (["32"], ["20", "64", "32", "--kinds", "shuffled", "reversed"]):
            self.load("train", typed=[*sizes, "--lengths", *other], mode="gendata")
            names = ("test", "val", "extrapolation/32", "train")
            files.append([(self.folder / f"{name}.jsonl").read_text() for name in names])
        self.assertEqual(files[0][:3], files[1][:3])
        n = [files[1][3].count(kind) for kind in ("shuffled", "reversed", "swap")]
        self.assertEqual(n, [5, 5, 0])

    def test_data_of_other_flags_are_refused(self):
        made = {"--n-train": "30", "--n-val": "20", "--n-test": "10", "--n-long": "40"}
        typed = [*itertools.chain(*made.items()), "--lengths", "20"]
        self.load("train", typed=typed)
        self.load("train", typed=[*typed, "--n-long", "7", "--lengths", "32"])  # not used here
        for flag, n in made.items():
            names = ["test", "extrapolation/20"] if flag == "--n-long" else ["train"]
            expected = f"was made with {flag[2:].replace('-', '_')} {n}; type that, another[^.]*$"
            with self.assertRaisesRegex(UserError, expected):
                self.load(*names, typed=[*typed, flag, "50"])
        for other in (["--seed", "1"], ["--kinds", "swaps"]):
            with self.assertRaisesRegex(UserError, f"was made with {other[0][2:]} "):
                self.load("val", typed=[*typed, *other])
        with self.assertRaisesRegex(UserError, "extrapolation/32.jsonl is missing; type --mode"):
            self.load("extrapolation/32", typed=typed)

    def test_own_data_are_used_as_they_are(self):
        """The keys of the assignment, any number of records, JSON Lines or an array."""
        rising = {"sequence": [1, 2, 2], "is_sorted": 1, "length": 3}
        falling = {"sequence": [9, 4], "is_sorted": 0, "length": 2}
        self.write("train.jsonl", rising, falling)
        self.write("val.json", [falling, rising, rising])
        self.write("test.jsonl", falling | {"kind": "swaps"}, rising)
        data = self.load("train", "val", "test")
        self.assertEqual(data["train"][0].tolist(), [[1, 2, 2], [9, 4, sort.PAD]])
        expected = {"train": ["sorted", "unsorted"], "test": ["swaps", "sorted"],
                    "val": ["unsorted", "sorted", "sorted"]}
        self.assertEqual({name: kinds for name, (_, kinds) in data.items()}, expected)
        with self.assertRaisesRegex(UserError, "data of your own"):
            self.load("train", mode="gendata")

    def test_a_wrong_record_is_named(self):
        good = {"sequence": [1, 2, 2], "is_sorted": 1, "length": 3}
        wrong = {"sequence": [[1, 2, 100], [1, -2, 2], [1, 2, 2.0], [1], [], "122", None],
                 "is_sorted": [0, None], "length": [2, None]}
        records = [good | {key: value} for key, values in wrong.items() for value in values]
        for record in [*records, {"sequence": [1, 2, 2]}, [1, 2, 2], 7]:
            self.write("train.jsonl", good, record, good)
            with self.assertRaisesRegex(UserError, r"sorting/train, record 2: .*; mend it"):
                self.load("train")
        (self.folder / "train.jsonl").unlink()
        self.write("train.json", [good, good, good | {"length": 9}])
        with self.assertRaisesRegex(UserError, "train, record 3: is_sorted or length is wrong"):
            self.load("train")

    def test_lists_that_are_too_long(self):
        self.write("val.jsonl", {"sequence": 20 * [7], "is_sorted": 1, "length": 20})
        self.assertEqual(self.load("val", typed=["--max-len", "20"])["val"][0].shape, (1, 20))
        with self.assertRaisesRegex(UserError, "val, record 1: expected 2 to 19 numbers"):
            self.load("val", typed=["--max-len", "19"])


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
        paper = sort.Alibi(flags("--n-head", "8", "--slope", "0.5"))
        found = paper.bias(scores, torch.arange(6))
        for h, i, j in itertools.product(range(8), range(6), range(6)):
            expected = scores[:, h, i, j] - abs(i - j) / 2 ** (h + 1)
            self.assertEqual(found[:, h, i, j].tolist(), expected.tolist())
        ours = sort.Alibi(flags()).bias(torch.zeros(1, 4, 2, 2), torch.arange(2))
        self.assertEqual(ours[0, :, 0, 1].tolist(), [-4, -1, -1 / 4, -1 / 16])

    def test_randomized_positions(self):
        """Sorted, distinct, in range; padding last; new in each step, but fixed in evaluation."""
        encoding = sort.Randomized(flags("--max-len", "64"))
        present = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
        found = {True: [], False: []}
        for training in 200 * [True] + 5 * [False]:
            encoding.train(training)
            with mock.patch.object(sort, "sinusoids", return_value=0) as sinusoids:
                encoding.embed(torch.zeros(2, 6, 8), torch.arange(6), present)
            long, short = sinusoids.call_args.args[0].tolist()
            self.assertEqual([long, short], [sorted(set(long)), sorted(set(short[:4])) + [64, 64]])
            found[training].append(long)
        self.assertEqual(set(itertools.chain(*found[True])), set(range(64)))
        self.assertGreater(len(set(map(tuple, found[True]))), 190)
        self.assertEqual(found[False], 5 * found[False][:1])

    def test_starts(self):
        """Each list has its own. It matters to sinusoidal and learned; all others see offsets."""
        lists = some_lists(padding=3)
        start = torch.arange(1, 33)[:, None]
        for pe, mask in itertools.product(ALL, MASKS):
            model = random_model(pe, *mask)
            moved = model(lists, start)
            alone = [model(x[None], int(first)) for x, first in zip(lists, start)]
            assert_close(moved, torch.cat(alone))
            change = (moved - model(lists)).abs()
            matters = change.min() > 1e-5 if pe in ABSOLUTE else change.max() < 1e-5
            self.assertTrue(matters, (pe, change))
            self.assertEqual(model.encoding.uses_start, pe in ABSOLUTE)

    def test_positions_of_training(self):
        """Which positions lists of 16 touch."""
        found = {}
        for name, starts in sort.STARTS.items():
            found[name] = {start + i for start in starts for i in range(16)}
        gap = {*range(100), *range(140, 256)}
        expected = {"everywhere": {*range(256)}, "gap": gap, "early": {*range(121)}}
        self.assertEqual(found, expected)

    def test_settings(self):
        """A random start is dropped where it changes nothing."""
        found = {}
        for args in sort.settings(flags("--model-seeds", "2"), sort.PANELS.values()):
            found.setdefault(args.folder, []).append((args.pe, args.causal, args.random_start))
            expected = {1: "best_model.pth", 2: "seeds/2.pth"}[args.model_seed]
            self.assertEqual(args.file, expected)
        expected = {}
        for pe in ALL:
            expected[f"sorting/{pe}"] = 2 * [(pe, False, None)]
            expected[f"sorting/{pe}-causal"] = 2 * [(pe, True, None)]
        for pe in ABSOLUTE:
            expected[f"sorting/{pe}-causal-random-start"] = 2 * [(pe, True, "everywhere")]
        self.assertEqual(found, expected)
        found = [args.folder for args in sort.settings(flags("--pe", "rope,learned"), [(0, "gap")])]
        self.assertEqual(found, ["sorting/rope", "sorting/learned-random-start-gap"])
        with self.assertRaisesRegex(UserError, "--pe rpoe: type some of none,sinusoidal"):
            job("rpoe")


def weights_for_pytorch(ours):
    """The weights of our attention under the names of nn.MultiheadAttention."""
    qkv = ours.query_key_value
    return {"in_proj_weight": qkv.weight, "in_proj_bias": qkv.bias,
            "out_proj.weight": ours.output.weight, "out_proj.bias": ours.output.bias}


class Model(unittest.TestCase):
    def test_attention_is_pytorchs(self):
        ours = sort.MultiHeadAttention(24, 3).double()
        theirs = nn.MultiheadAttention(24, 3, batch_first=True).double()
        theirs.load_state_dict(weights_for_pytorch(ours))
        x = torch.randn(2, 5, 24).double().requires_grad_()
        bias = torch.randn(2, 3, 5, 5).double()
        mask = (torch.rand(2, 1, 5, 5) < 0.5) | torch.eye(5).bool()
        encoding = SimpleNamespace(rotate=lambda x, _: x, bias=lambda scores, _: scores + bias)
        added = bias.masked_fill(~mask, -torch.inf).flatten(0, 1)
        expected, weights = theirs(x, x, x, attn_mask=added, average_attn_weights=False)
        found = ours(x, mask, encoding, None)
        assert_close(found, expected)
        assert_close(ours.weights, weights.detach())
        direction = torch.randn(2, 5, 24).double()
        gradients = []
        for output, weight in ((found, ours.query_key_value.weight), (expected, theirs.in_proj_weight)):
            gradients.append(torch.autograd.grad((output * direction).sum(), [x, weight]))
        assert_close(*gradients)

    def test_model_is_pytorchs(self):
        lists = some_lists(padding=3)
        present = lists != sort.PAD
        later = torch.ones(12, 12).triu(1).bool()
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True, norm_first=True)
        theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False).double()
        for pool, mask in itertools.product(("max", "mean"), MASKS):
            model = random_model("learned", "--pool", pool, *mask)
            for block, layer in zip(model.blocks, theirs.layers):
                layer.self_attn.load_state_dict(weights_for_pytorch(block.attention))
                layer.linear1.load_state_dict(block.feed_forward[0].state_dict())
                layer.linear2.load_state_dict(block.feed_forward[2].state_dict())
            x = model.token_embedding(lists) + model.encoding.table[:12]
            h = theirs(x, mask=later if mask else None, src_key_padding_mask=~present)
            rows = [row[keep] for row, keep in zip(h, present)]
            pooled = [row.amax(0) if pool == "max" else row.mean(0) for row in rows]
            assert_close(model(lists), model.to_logit(torch.stack(pooled)).squeeze(-1))

    def test_what_cannot_see_the_order_and_padding(self):
        """Nothing without encoding and mask. A symmetric bias cannot tell a list from its mirror."""
        lists = some_lists()
        mirrored = lists.flip(1)
        shuffled = lists[:, torch.randperm(12)]
        for pe, mask, pool in itertools.product(ALL, MASKS, ("max", "mean")):
            model = random_model(pe, "--pool", pool, *mask)
            answers = model(lists)
            same = torch.isclose(answers, model(shuffled))
            self.assertTrue(same.all() if pe == "none" and not mask else not same.any())
            same = torch.isclose(answers, model(mirrored))
            self.assertTrue(same.all() if pe in ("none", "alibi") and not mask else not same.any())

    def test_padding_changes_nothing(self):
        lists = [row[:n].tolist() for row, n in zip(some_lists(6, 40), (8, 11, 40, 16, 9, 2))]
        for pe, mask, pool in itertools.product(ALL, MASKS, ("max", "mean")):
            model = random_model(pe, "--pool", pool, *mask)
            alone = [model(torch.tensor([numbers])) for numbers in lists]
            assert_close(model(sort.pad(lists)), torch.cat(alone))

    def test_window(self):
        """In one layer, a hidden state is that of its window alone, a list of its own."""
        lists = some_lists(4, 20)
        for pe in ("none", "sinusoidal", "learned", "rope", "alibi"):
            model = random_model(pe, "--n-layer", "1", "--causal")
            states = model.hidden_states(lists, window=5)
            for i in range(20):
                first = max(0, i - 4)
                alone = model.hidden_states(lists[:, first:i + 1], first)
                assert_close(states[:, i], alone[:, -1])
            self.assertFalse(torch.isclose(states, model.hidden_states(lists))[:, 5:].all(-1).any())

    def test_answers_do_not_depend_on_chunks(self):
        model = random_model("sinusoidal", "--causal")
        for lists in (some_lists(600, 16), some_lists(20, 256)):
            for options in ((), (7,), (7, 3)):
                assert_close(sort.predict(model, lists, *options), model(lists, *options).detach())
        self.assertEqual(sort.solve(model, lists.tolist()), (model(lists) > 0).tolist())

    def test_evaluate(self):
        model = nn.Identity()
        names = np.array(["sorted", *sort.UNSORTED])
        kinds = torch.randint(6, (500,)) * torch.randint(1, 3, (500,)) % 6
        for logits in (torch.randn(500), torch.full((500,), -1.0), torch.ones(500)):
            with mock.patch.object(sort, "predict", return_value=logits) as predict:
                loss, balanced, recall = sort.evaluate(model.train(), ("lists", names[kinds].tolist()), 5, 6)
            predict.assert_called_with(model, "lists", 5, 6)
            self.assertFalse(model.training)
            of_sorted, *of_unsorted = [(logits[kinds == i] > 0).double().mean() for i in range(6)]
            expected = [of_sorted] + [1 - share for share in of_unsorted]
            np.testing.assert_allclose([recall[name] for name in names], expected)
            self.assertAlmostEqual(balanced, (expected[0] + np.mean(expected[1:])) / 2)
            probability = torch.where(kinds == 0, logits.sigmoid(), 1 - logits.sigmoid())
            self.assertAlmostEqual(loss, -probability.log().mean().item(), places=5)
        self.assertEqual(balanced, 0.5)  # a constant answer


class LastIsBest:
    """In place of evaluate: the weights of the last evaluation are kept, whatever they are."""
    def __init__(self):
        self.n = 0
        self.evaluate = sort.evaluate

    def __call__(self, model, data):
        self.evaluate(model, data)
        self.n += 1
        return 0.0, self.n, {}


class Training(unittest.TestCase):
    def test_rate_and_best_weights(self):
        typed = ["--causal", "--steps", "60", "--lr", "0.1"]
        model, log = fit("none", *typed, warmup=20, eval_every=5)
        rates = [0.1 * min(step / 20, (61 - step) / 60) for step in range(5, 61, 5)]
        np.testing.assert_allclose([row["lr"] for row in log["history"]], rates)
        best = max(log["history"], key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        self.assertLess(best["step"], 60)
        data = sort.load_data(model.args, ["val", "test"])
        self.assertEqual(sort.evaluate(model, data["val"])[0], best["val_loss"])
        self.assertEqual(accuracy(model, data["test"]), log["test"]["accuracy"])
        with self.assertRaisesRegex(UserError, "loss is not finite at step"):
            fit("none", "--steps", "9", "--lr", "1e38")

    def test_training_is_pytorchs(self):
        """With all lists in each batch, it is gradient descent by AdamW."""
        typed = ["--n-train", "200", "--batch-size", "200", "--steps", "12", "--lr", "0.02", "--data-dir"]
        self.addCleanup(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(sort, "evaluate", LastIsBest()):
            with mock.patch.object(sort, "shift_numbers", lambda lists, _: lists):
                found, _ = fit("learned", *typed, folder, warmup=4, weight_decay=0.5)
            data = sort.load_data(found.args, ["train"])["train"]
"""
"""
