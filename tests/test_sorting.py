"""The sortedness encoder against things we did not write: PyTorch's attention, closed forms, brute force."""
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
from unittest import mock

import numpy as np
import torch
import torch.nn as nn
from matplotlib.figure import Figure
from torch.testing import assert_close

import common
import positional_sorting as sort
from common import UserError

ALL = list(sort.encodings())
ABSOLUTE = ["sinusoidal", "learned"]
MASKS = [[], ["--causal"]]
TRAINED = []  # ALiBi with a causal mask, after a training of a second


def setUpModule():
    for stream in ("sys.stdout", "sys.stderr"):
        silence = mock.patch(stream, io.StringIO())  # what trainings say
        silence.start()
        unittest.addModuleCleanup(silence.stop)
    common.pick_device("cpu", threads=1)
    TRAINED.append(fit("alibi", "--causal", "--steps", "150", "--warmup", "20")[0])


def args_of(*typed):
    return sort.command_line().parse_args(["--data-dir", "no data", *typed])


def config_of(pe, *typed):
    args = args_of(*typed)
    return sort.make_config(args, pe, 1, args.random_start)


def data_of(n, lengths, seed=0):
    """n lists (N, T) and their kinds (N,)."""
    records = sort.draw_records(random.Random(seed), n, sort.UNSORTED, 0.5, lengths, set())
    kinds = torch.tensor([sort.KINDS.index(record["kind"]) for record in records])
    return sort.pad([record["sequence"] for record in records]), kinds


def fit(pe, *typed):
    """Train a small model on 2,000 lists; return it and its history."""
    data = {"train": data_of(2000, sort.TRAINING_LENGTHS, seed=1), "val": data_of(200, sort.LENGTHS, seed=2)}
    return sort.fit(config_of(pe, "--d-model", "16", "--batch-size", "64", *typed), data, "cpu")


def random_model(pe, *typed):
    torch.manual_seed(0)
    sizes = ["--n-layer", "2", "--n-head", "2", "--d-model", "16", "--d-ff", "24", "--max-len", "256"]
    model = sort.SortednessEncoder(config_of(pe, *sizes, *typed))
    nn.init.normal_(model.token_embedding.weight)  # large enough to tell numbers apart
    return model.double().eval()


def some_lists(n=32, length=12, padding=0):
    lists = torch.randint(100, (n, length), generator=torch.Generator().manual_seed(0))
    lists[::2, length - padding:] = sort.PAD
    return lists


def accuracy(*arguments, **options):
    return sort.evaluate(*arguments, **options)[1]


def states_of(model, lists, *options):
    """The hidden states (N, T, C) that are pooled."""
    with torch.no_grad(), common.recording([model.norm]) as seen:
        model(lists, *options)
    return seen[model.norm]


class Data(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        seen = set()
        cls.sets = []
        for seed, (n, lengths) in enumerate([(4000, sort.TRAINING_LENGTHS), (2000, sort.LENGTHS), (200, [128])]):
            cls.sets.append(sort.draw_records(random.Random(seed), n, sort.UNSORTED, 0.5, lengths, seen))
        cls.records = [record for records in cls.sets for record in records]

    def test_labels_and_kinds(self):
        n_moved = {kind: [] for kind in sort.KINDS[:6]}
        for record in self.records:
            x, kind = record["sequence"], record["kind"]
            self.assertTrue(0 <= min(x) and max(x) <= 99)
            self.assertEqual((record["is_sorted"], record["length"]), (x == sorted(x), len(x)))
            moved = [i for i in range(len(x)) if x[i] != sorted(x)[i]]
            n_moved[kind].append(len(moved))
            if kind == "adjacent_swap":
                i, j = moved
                self.assertTrue(set(x[i:j]) <= {x[i], x[j]})  # neighbours, but for equal numbers
            elif kind == "swaps":
                self.assertLessEqual(len(moved), 2 * max(2, len(x) // 3))
            elif kind == "reversed":
                self.assertEqual(x, sorted(x, reverse=True))
        self.assertEqual([set(n_moved[kind]) for kind in sort.KINDS[:3]], [{0}, {2}, {2}])
        self.assertTrue(2.5 < np.mean(n_moved["swaps"]) < np.mean(n_moved["shuffled"]) - 1)

    def test_shares(self):
        self.assertEqual(len(sort.draw_records(random.Random(0), 7, sort.UNSORTED, 0.5, [8], set())), 7)
        for records, n in zip(self.sets, (4000, 2000, 200)):
            kinds = Counter(record["kind"] for record in records)
            self.assertEqual(kinds, {"sorted": n // 2} | {kind: n // 10 for kind in sort.UNSORTED})
        for records, share in zip(self.sets, (1 / 2, 1 / 9)):
            lengths = Counter(record["length"] for record in records)
            self.assertEqual(set(lengths), set(range(8, 17)))
            self.assertAlmostEqual(lengths[16] / len(records), share, delta=0.05)
            narrow = [max(record["sequence"]) - min(record["sequence"]) < 30 for record in records]
            self.assertAlmostEqual(np.mean(narrow), 0.36, delta=0.05)

    def test_pairs_share_their_numbers_and_no_two_pairs_do(self):
        pairs = [tuple(sorted(record["sequence"])) for record in self.records]
        self.assertEqual(pairs[0::2], pairs[1::2])
        self.assertEqual(set(Counter(pairs).values()), {2})

    def test_shift_keeps_order_and_range(self):
        lists = sort.pad([[3, 15, 27], [5, 5, 4, 99], [7, 6], [0, 99]])
        present = lists != sort.PAD
        shifted = torch.stack([sort.shift(lists, None) for _ in range(2000)])  # (2000, 4, 4)
        self.assertTrue((shifted[:, ~present] == sort.PAD).all())
        self.assertTrue((shifted[:, present] >= 0).all() and (shifted[:, present] <= 99).all())
        amount = shifted - lists
        self.assertTrue((amount == amount[..., :1])[:, present].all())
        self.assertEqual(set(shifted[:, 2, 1].tolist()), set(range(99)))  # every amount that there is room for


class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name, "sorting")
        self.folder.mkdir()

    def args(self, *typed):
        return args_of("--data-dir", str(self.folder.parent), *typed)

    def write(self, name, *records):
        (self.folder / name).write_text("\n".join(map(json.dumps, records)))

    def test_default_files_are_the_same_everywhere(self):
        data = sort.load_data(self.args(), [*sort.SPLITS, "extrapolation/256"])
        files = sorted(self.folder.rglob("*.jsonl"))
        self.assertEqual([path.stem for path in files], ["128", "16", "256", "32", "64", "test", "train", "val"])
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        self.assertEqual(digest, "99b751fe50c0cc2c97c1207c014b746a3da404c37e5f7a86a9231ef447942586")
        shapes = [tuple(lists.shape) for lists, kinds in data.values()]
        self.assertEqual(shapes, [(10_000, 16), (2_000, 16), (2_000, 16), (2_000, 256)])

    def test_what_changes_which_file(self):
        """A long file does not depend on the others; the kinds to learn from change the training lists only."""
        files = []
        for typed in (["32"], ["20", "64", "32", "--kinds", "shuffled,reversed"]):
            sort.generate_data(self.args("--n-train", "20", "--n-val", "20", "--n-long", "20", "--lengths", *typed))
            names = ("test", "val", "extrapolation/32", "train")
            files.append([(self.folder / f"{name}.jsonl").read_text() for name in names])
        self.assertEqual(files[0][:3], files[1][:3])
        self.assertEqual([files[1][3].count(kind) for kind in ("shuffled", "reversed", "swap")], [5, 5, 0])

    def test_own_data_are_used_as_they_are(self):
        """The keys of the assignment, any number of records, JSON Lines or an array."""
        rising = {"sequence": [1, 2, 2], "is_sorted": 1, "length": 3}
        falling = {"sequence": [9, 4], "is_sorted": 0, "length": 2}
        self.write("train.jsonl", rising, falling)
        self.write("val.json", [falling, rising, rising])
        self.write("test.jsonl", falling | {"kind": "swaps"}, rising)
        args = self.args("--steps", "1", "--out-dir", f"{self.folder.parent}/out")
        data = sort.load_data(args, sort.SPLITS)
        self.assertEqual(data["train"][0].tolist(), [[1, 2, 2], [9, 4, sort.PAD]])
        self.assertEqual([kinds.tolist() for lists, kinds in data.values()], [[0, 6], [6, 0, 0], [3, 0]])
        args.device = "cpu"
        model = sort.train(args, sort.make_config(args, "none", 1, None), data)
        self.assertEqual(len(model.config["own_data"]), 16)  # so that it is not used with other data

    def test_lists_that_need_more_positions_than_there_are(self):
        falling = {"sequence": [9, 4], "is_sorted": 0, "length": 2}
        for length, typed in ((257, []), (17, ["--causal", "--random-start"])):  # 17 that start at 240
            self.write("train.jsonl", falling, {"sequence": length * [7], "is_sorted": 1, "length": length})
            sort.load_data(self.args("--pe", "alibi,rope", "--max-len", "256", *typed), ["train"])
            for pe in ("learned", "alibi,randomized"):
                with self.assertRaisesRegex(UserError, "train needs 257 positions; type --max-len 257"):
                    sort.load_data(self.args("--pe", pe, "--max-len", "256", *typed), ["train"])

    def test_a_wrong_record_is_named(self):
        good = {"sequence": [1, 2, 2], "is_sorted": 1, "length": 3}
        wrong = {"sequence": [[1, 2, 100], [1, -2, 2], [1, 2, 2.0], [1], [], "122", None], "is_sorted": [0, None],
                 "length": [2, None], "kind": ["reversed", "odd", 7]}
        for key, values in wrong.items():
            for value in values:
                self.write("train.jsonl", good, good | {key: value})
                with self.assertRaisesRegex(UserError, rf'train\.jsonl, line 2: "{key}": .*mend it'):
                    sort.load_data(self.args(), sort.SPLITS)
        (self.folder / "train.jsonl").unlink()
        self.write("train.json", [good, good, good | {"length": 9}])
        with self.assertRaisesRegex(UserError, r'train\.json, index 2: "length": expected 3 for .1, 2, 2., found 9'):
            sort.load_data(self.args(), sort.SPLITS)


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
        expected = torch.view_as_complex(x.unflatten(-1, (4, 2))) * factor
        assert_close(sort.Rope({}).rotate(x, position), torch.view_as_real(expected).flatten(-2), rtol=1e-4, atol=1e-4)

    def test_alibi(self):
        scores = torch.randint(9, (2, 8, 6, 6)).double()
        found = sort.Alibi({"n_head": 8, "slope": 1 / 2}).bias(scores, torch.arange(6))  # as in the paper
        for h, i, j in itertools.product(range(8), range(6), range(6)):
            self.assertEqual(found[0, h, i, j], scores[0, h, i, j] - abs(i - j) / 2 ** (h + 1))
        self.assertEqual(sort.Alibi(config_of("alibi")).slopes, [4, 1, 1 / 4, 1 / 16])

    def test_randomized_positions(self):
        """Sorted, distinct, in range, new ones in each training step; padding comes last."""
        present = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
        with mock.patch.object(sort, "sinusoids", wraps=sort.sinusoids) as sinusoids:
            for _ in range(200):
                sort.Randomized({"max_len": 64}).embed(torch.zeros(2, 6, 8), torch.arange(6), present)
        used = set()
        for call in sinusoids.call_args_list:
            long, short = call.args[0].tolist()
            self.assertEqual([long, short], [sorted(set(long)), sorted(set(short[:4])) + [64, 64]])
            used.update(long)
        self.assertEqual(used, set(range(64)))

    def test_starts(self):
        """Each list has its own start. It matters to sinusoidal and learned encodings; all others see offsets only."""
        lists = some_lists(padding=3)
        start = torch.arange(1, 33)[:, None]
        for pe, mask in itertools.product(ALL, MASKS):
            model = random_model(pe, *mask)
            moved = model(lists, start)
            assert_close(moved, torch.cat([model(x[None], int(first)) for x, first in zip(lists, start)]))
            change = (moved - model(lists)).abs()
            self.assertTrue(change.min() > 1e-5 if pe in ABSOLUTE else change.max() < 1e-5, (pe, change))

    def test_random_starts(self):
        """Which positions lists of 16 touch; and the flag is dropped where it changes nothing."""
        touched = {"everywhere": {*range(256)}, "gap": {*range(100), *range(140, 256)}, "early": {*range(121)}}
        found = {name: {start + i for start in starts for i in range(16)} for name, starts in sort.STARTS.items()}
        self.assertEqual(found, touched)
        for word, pe in itertools.product(([], ["everywhere"], ["gap"], ["early"]), ALL):
            config = config_of(pe, "--random-start", *word)
            self.assertEqual(config["random_start"], (word or ["everywhere"])[0] if pe in ABSOLUTE else None)
            name = "-".join([pe, "random-start", *word]).removesuffix("-everywhere")
            self.assertEqual(sort.setting_name(config), name if pe in ABSOLUTE else pe)
        config = config_of("learned", "--causal", "--random-start", "early")
        self.assertEqual(sort.setting_name(config), "learned-causal-random-start-early")


def weights_for_pytorch(attention):
    return {"in_proj_weight": attention.query_key_value.weight, "in_proj_bias": attention.query_key_value.bias,
            "out_proj.weight": attention.output.weight, "out_proj.bias": attention.output.bias}


class Model(unittest.TestCase):
    def test_attention_is_pytorchs(self):
        ours = sort.MultiHeadAttention(24, 3).double()
        theirs = nn.MultiheadAttention(24, 3, batch_first=True).double()
        theirs.load_state_dict(weights_for_pytorch(ours))
        x = torch.randn(2, 7, 24, dtype=torch.float64)
        mask = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
        mask[1, :, :, 4:] = False  # padding
        alibi = sort.Alibi({"n_head": 3, "slope": 4})
        bias = alibi.bias(torch.zeros(2, 3, 7, 7).double(), torch.arange(7)).masked_fill(~mask, -torch.inf)
        with common.recording([ours.hook_weights]) as seen:
            output = ours(x, torch.where(mask, 0.0, -torch.inf), alibi, torch.arange(7))
        expected, weights = theirs(x, x, x, attn_mask=bias.flatten(0, 1), average_attn_weights=False)
        assert_close([output, seen[ours.hook_weights]], [expected, weights])
        grads = torch.autograd.grad(output.square().sum(), list(ours.parameters()))
        assert_close(grads, torch.autograd.grad(expected.square().sum(), list(theirs.parameters())))

    def test_whole_model_is_pytorchs_encoder(self):
        lists = some_lists(padding=3)
        present = lists != sort.PAD
        later = torch.ones(12, 12, dtype=torch.bool).triu(1)
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True, norm_first=True)
        theirs = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False).double()
        for pool, mask in itertools.product(("max", "mean"), MASKS):
            model = random_model("learned", "--pool", pool, *mask)
            for block, layer in zip(model.blocks, theirs.layers):
                layer.self_attn.load_state_dict(weights_for_pytorch(block.attention))
                layer.linear1.load_state_dict(block.feed_forward[0].state_dict())
                layer.linear2.load_state_dict(block.feed_forward[2].state_dict())
            x = model.token_embedding(lists) + model.encoding.table[:12]
            h = theirs(x, mask=later if mask else None, src_key_padding_mask=~present)
            rows = [row[keep] for row, keep in zip(h, present)]
            pooled = torch.stack([row.amax(0) if pool == "max" else row.mean(0) for row in rows])
            assert_close(model(lists), model.to_logit(pooled).squeeze(-1))

    def test_what_cannot_see_the_order(self):
        """Nothing without positions and mask. A symmetric bias cannot tell a list from its mirror image."""
        lists = some_lists()
        mirrored = lists.flip(1)
        shuffled = lists[:, torch.randperm(12)]
        for pe, mask, pool in itertools.product(ALL, MASKS, ("max", "mean")):
            model = random_model(pe, *mask, "--pool", pool)
            answers = model(lists)
            self.assertEqual(torch.allclose(model(shuffled), answers), pe == "none" and not mask)
            self.assertEqual(torch.allclose(model(mirrored), answers), pe in ("none", "alibi") and not mask)

    def test_padding_changes_nothing(self):
        lists = [row[:n].tolist() for row, n in zip(some_lists(6, 40), (8, 11, 40, 16, 9, 2))]
        for pe, mask, pool in itertools.product(ALL, MASKS, ("max", "mean")):
            model = random_model(pe, *mask, "--pool", pool)
            assert_close(model(sort.pad(lists)), torch.cat([model(torch.tensor([numbers])) for numbers in lists]))

    def test_window(self):
        """In one layer, a hidden state is that of its window alone, a list of its own."""
        lists = some_lists(4, 20)
        for pe in ("none", "sinusoidal", "learned", "rope", "alibi"):
            model = random_model(pe, "--n-layer", "1", "--causal")
            states = states_of(model, lists, 0, 5)
            for i in range(20):
                first = max(0, i - 4)
                assert_close(states[:, i], states_of(model, lists[:, first:i + 1], first)[:, -1])
            self.assertFalse(torch.isclose(states, states_of(model, lists))[:, 5:].all(dim=-1).any())

    def test_answers_do_not_depend_on_chunks(self):
        model = random_model("sinusoidal", "--causal")
        for lists, options in itertools.product((some_lists(600, 16), some_lists(20, 256)), ((), (7,), (7, 3))):
            assert_close(sort.predict(model, lists, *options), model(lists, *options).detach())
        lists = some_lists()
        self.assertEqual(sort.solve(model, lists.tolist()), (model(lists) > 0).tolist())

    def test_evaluate(self):
        model = nn.Identity()
        kinds = torch.randint(6, (500,))  # all but "unsorted"
        for logits in (torch.randn(500), torch.full((500,), -1.0), torch.ones(500)):
            with mock.patch.object(sort, "predict", return_value=logits) as predict:
                loss, balanced, recall = sort.evaluate(model, ("lists", kinds), 5, 6)
            predict.assert_called_with(model, "lists", 5, 6)
            of_sorted, *of_unsorted = [(logits[kinds == i] > 0).double().mean().item() for i in range(6)]
            expected = [of_sorted] + [1 - share for share in of_unsorted]
            np.testing.assert_allclose([recall[name] for name in sort.KINDS[:6]], expected)
            self.assertAlmostEqual(balanced, (expected[0] + np.mean(expected[1:])) / 2)
            probability = torch.where(kinds == 0, logits.sigmoid(), 1 - logits.sigmoid())
            self.assertAlmostEqual(loss, -probability.log().mean().item(), places=5)
        self.assertEqual(balanced, 0.5)  # a constant answer


class Training(unittest.TestCase):
    def test_rate_and_best_weights(self):
        model, best = fit("none", "--causal", "--steps", "60", "--eval-every", "5", "--lr", "0.1", "--warmup", "20")
        rates = [0.1 * min(step / 20, (61 - step) / 60) for step in range(5, 61, 5)]
        np.testing.assert_allclose([row["lr"] for row in best.rows], rates)
        row = max(best.rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        self.assertLess(row["step"], 60)
        self.assertEqual(sort.evaluate(model, data_of(200, sort.LENGTHS, seed=2))[0], row["val_loss"])

    def test_training_lists_are_shifted_and_start_where_the_flag_says(self):
        """Each list of a batch has its own start. Validation lists are as they are and start at 0."""
        starts = []

        def embed(encoding, h, position, present):
            self.assertEqual((h == h[0, 0]).all(), encoding.training)
            self.assertTrue((position.diff() == 1).all())
            if encoding.training:
                starts.extend(position[:, 0].tolist())
            else:
                self.assertEqual(position.tolist(), list(range(16)))
            return h

        with mock.patch.object(sort.Sinusoidal, "embed", embed), mock.patch.dict(sort.STARTS, gap=[3, 4, 5, 9, 10]):
            with mock.patch.object(sort, "shift", lambda lists, generator: torch.full_like(lists, 42)):
                fit("sinusoidal", "--random-start", "gap", "--steps", "5")
        self.assertEqual((len(starts), set(starts)), (5 * 64, {3, 4, 5, 9, 10}))

    def test_it_learns(self):
        for data in (data_of(200, sort.LENGTHS, seed=2), data_of(200, [64])):
            self.assertGreater(accuracy(TRAINED[0], data), 0.7)


class LongLists(unittest.TestCase):
    def test_mean_and_standard_deviation(self):
        self.assertEqual(common.mean_std([0.5]), {"mean": 0.5, "std": 0, "per_seed": [0.5]})
        values = [0.5, 0.75, 1.0]
        with mock.patch.object(sort, "evaluate", side_effect=[(0, x, {"sorted": 1 - x}) for x in values]):
            found = sort.score_lengths([None] * 3, {"16": None})["16"]
        self.assertEqual([found["mean"], found["std"]], [statistics.mean(values), statistics.stdev(values)])
        self.assertEqual((found["per_seed"], found["recall"]["sorted"]["per_seed"]), (values, [0.5, 0.25, 0]))

    def test_curves(self):
        """The panel of random starts repeats encodings that they do not change; some starts only are not drawn."""
        results = {}
        for pe, causal, random_start, at16 in (("sinusoidal", False, None, [0.75]), ("alibi", True, None, [1, 0.5]),
                                               ("learned", True, "everywhere", [1]), ("learned", True, "gap", [0.25])):
            lengths = {"16": {"per_seed": at16}, "32": {"per_seed": [x / 2 for x in at16]}}
            results[len(results)] = {"pe": pe, "causal": causal, "random_start": random_start, "lengths": lengths}
        with mock.patch.object(common, "curve", wraps=common.curve) as curve, tempfile.TemporaryDirectory() as folder:
            sort.show_extrapolation(results, [16, 32], Path(folder))
        found = {}
        for axis in [call.args[0] for call in curve.call_args_list]:
            lines = [line for line in axis.lines if line.get_label()[0] != "_"]
            found[axis.get_title()] = {line.get_label(): line.get_xydata().tolist() for line in lines}
            self.assertEqual(axis.get_xlabel(), "numbers in the list")
        alibi = {"ALiBi": [[16, 75], [32, 37.5]]}
        self.assertEqual(found, {"no mask": {"sinusoidal": [[16, 75], [32, 37.5]]}, "causal mask": alibi,
                                 "causal mask, random starts": alibi | {"learned": [[16, 100], [32, 50]]}})

    def test_kinds(self):
        results = {}
        for name, shares in (("a", (0.1, 0.2)), ("b", (0.3, 0.4))):
            recall = {kind: {"mean": share} for kind, share in zip(("swaps", "sorted"), shares)}
            results[name] = {"lengths": {"16": {}, "32": {"recall": recall}}}
        with mock.patch.object(common, "heatmap", wraps=common.heatmap) as heatmap:
            with tempfile.TemporaryDirectory() as folder:
                sort.show_kinds(results, "32", Path(folder))
        _, grid, rows, columns, *_ = heatmap.call_args.args
        self.assertEqual((grid, rows, columns), ([[20, 10], [40, 30]], ["a", "b"], ["sorted", "swaps"]))


class Why(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.data = data_of(1000, [16], seed=3)
        lists, kinds = [tensor.tolist() for tensor in cls.data]
        cls.swaps = []  # (sorted, swapped, index of the second of the two swapped numbers)
        for clean, corrupted, kind in zip(lists[0::2], lists[1::2], kinds[1::2]):
            if sort.KINDS[kind] == "adjacent_swap":
                (second,) = [i for i in range(1, 16) if corrupted[i - 1] > corrupted[i]]
                cls.swaps.append((clean, corrupted, second))

    def test_swaps(self):
        """One pair after the other, on a model that is right on some of them and not on others."""
        model = TRAINED[0]
        turned = {"only that number": [], "all others": []}
        to_previous = {"sorted": [], "swapped": []}
        for clean, corrupted, i in self.swaps:
            for name, x in (("sorted", clean), ("swapped", corrupted)):
                to_previous[name].append([grid[0, i, i - 1] for grid in sort.attention_of(model, [x]).values()])
            if sort.solve(model, [clean, corrupted]) == [True, False]:
                a, b = states_of(model, torch.tensor([clean, corrupted]))
                for name, one, rest in (("only that number", b, a), ("all others", a, b)):
                    mixed = torch.cat([rest[:i], one[i:i + 1], rest[i + 1:]])
                    turned[name].append(model.to_logit(mixed.amax(dim=0)).item() <= 0)
        expected = {name: statistics.mean(answers) for name, answers in turned.items()}
        self.assertTrue(0 < expected["all others"] < expected["only that number"] < 1, expected)
        found = sort.inspect_swaps(model, self.data)
        self.assertEqual(found["n"], len(turned["all others"]))
        assert_close(found["called_unsorted"], expected)
        for name, weights in to_previous.items():
            np.testing.assert_allclose(found["attention_to_previous"][name], np.mean(weights, axis=0), rtol=1e-4)

    def test_table(self):
        """Training has turned the rows of its 16 positions, and no other."""
        model, _ = fit("learned", "--steps", "20", "--warmup", "1", "--lr", "0.1")
        with tempfile.TemporaryDirectory() as folder:
            cosines = sort.study_table(model, Path(folder, "table.png"))
        self.assertEqual(len(cosines), 512)
        self.assertGreater(min(cosines[16:]), 0.99999)
        self.assertLess(max(cosines[:16]), 0.99)

    def models(self, args, pe, causal, random_start=None):
        """In place of obtain_models: two of each setting, which call half of the lists sorted."""
        if (pe, random_start) not in self.made:
            flags = ["--causal", "--n-layer", "1"] + ["--random-start", random_start] * bool(random_start)
            self.made[pe, random_start] = [random_model(pe, *flags), random_model(pe, *flags)]
            for model, start in zip(self.made[pe, random_start], (0, 100)):
                logits = sort.predict(model, self.data[0], start).sort().values
                model.to_logit.bias.data -= logits[499:501].mean()
        return self.made[pe, random_start]

    def study(self, function, data):
        """Return what a study finds, and its axes."""
        self.made = {}
        with mock.patch.object(sort, "obtain_models", self.models), tempfile.TemporaryDirectory() as folder:
            with mock.patch("matplotlib.figure.Figure.savefig", autospec=True, side_effect=Figure.savefig) as saved:
                found = function(args_of("--lengths", "16", "32"), data, Path(folder, "figure.png"))
        return found, saved.call_args.args[0].axes

    def test_positions(self):
        data = {16: self.data, 32: data_of(200, [32])}
        found, (upper, lower) = self.study(sort.study_positions, data)
        self.assertEqual(len(found), 8)
        self.assertEqual([label.get_text() for label in upper.get_xticklabels()], [*map(str, sort.LATE_STARTS)])
        for row, line, models in zip(found.values(), upper.lines, self.made.values()):
            for k, model in enumerate(models):
                first, *others = row["start"][k]
                self.assertEqual(others == 5 * [first], not model.encoding.uses_start)
                self.assertEqual(row["start"][k], [accuracy(model, self.data, start) for start in sort.LATE_STARTS])
                self.assertEqual(row["full"][k], accuracy(model, data[32]))
                self.assertEqual(row["window"][k], accuracy(model, data[32], window=16))
            np.testing.assert_allclose(line.get_ydata(), 100 * np.mean(row["start"], axis=0))
        heights = [bar.get_height() for bar in lower.patches]
        means = [100 * np.mean(row[key]) for key in ("full", "window") for row in found.values()]
        np.testing.assert_allclose(heights, means)

    def test_bands(self):
        found, axes = self.study(sort.study_bands, {16: self.data})
        for (band, table), axis, (first, last) in zip(found.items(), axes, ((85, 139), (106, 240))):
            for (pe, values), line in zip(table.items(), axis.lines[1:]):
                for model, row in zip(self.made[pe, band], values):
                    self.assertEqual(row, [accuracy(model, self.data, start) for start in sort.BAND_STARTS])
                self.assertEqual((line.get_label(), line.get_xdata().tolist()), (pe, [*sort.BAND_STARTS]))
                np.testing.assert_allclose(line.get_ydata(), 100 * np.mean(values, axis=0))
            grey = axis.patches[0].get_extents().transformed(axis.transData.inverted())
            np.testing.assert_allclose([grey.x0, grey.x1], [first, last])


if __name__ == "__main__":
    unittest.main()
