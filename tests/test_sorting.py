"""The sortedness encoder against things we did not write: PyTorch's attention, closed forms, brute force."""
import contextlib
import copy
import doctest
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
from torch.testing import assert_close

import common
import positional_sorting as sort
from common import UserError

ALL = list(sort.encodings())
ABSOLUTE = ["sinusoidal", "learned"]
MASKS = [[], ["--causal"]]
TRAINED = []  # ALiBi with a causal mask, after a training of a second


def setUpModule():
    common.pick_device("cpu", threads=1)
    TRAINED.append(fit("alibi", "--causal", "--steps", "200", "--lr", "0.02")[0])


def quiet():
    return contextlib.redirect_stderr(io.StringIO())


def args_of(*typed):
    args = sort.command_line().parse_args(typed)
    args.own_data = None
    return args


def config_of(pe, *typed):
    args = args_of(*typed)
    return sort.config_of(args, pe, 1, args.random_start)


def data_of(n, lengths, seed=0):
    """n lists (N, T) and their kinds (N,)."""
    records = sort.draw_records(random.Random(seed), n, sort.UNSORTED, 0.5, lengths, set())
    kinds = torch.tensor([sort.KINDS.index(record["kind"]) for record in records])
    return sort.pad([record["sequence"] for record in records]), kinds


def fit(pe, *typed):
    """Train a small model on 2,000 lists; return it and its history."""
    data = {"train": data_of(2000, sort.TRAINING_LENGTHS, seed=1), "val": data_of(200, sort.LENGTHS, seed=2)}
    with quiet():
        return sort.fit(config_of(pe, "--d-model", "16", "--batch-size", "64", *typed), data, "cpu")


def random_model(pe, *typed):
    torch.manual_seed(0)
    sizes = ["--n-layer", "2", "--n-head", "2", "--d-model", "16", "--d-ff", "24", "--max-len", "64"]
    model = sort.SortednessEncoder(config_of(pe, *sizes, *typed))
    nn.init.normal_(model.token_embedding.weight)  # large enough to tell numbers apart
    return model.double().eval()


def some_lists(n=32, length=12, padding=False):
    lists = torch.randint(100, (n, length), generator=torch.Generator().manual_seed(0))
    if padding:
        lists[::2, 9:] = sort.PAD
    return lists


def states_of(model, lists, *options):
    """The hidden states (N, T, C) that are pooled."""
    with torch.no_grad(), common.recording([model.norm]) as seen:
        model(lists, *options)
    return seen[model.norm]


def drawn(function, *arguments):
    """Call a function that draws a figure; return what it returns, and the panels."""
    panels = []
    real = common.figure

    @contextlib.contextmanager
    def figure(path, *settings, **options):
        with real(path, *settings, **options) as axes:
            yield axes
            panels.extend(axes[0])

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(common, "figure", figure):
        with contextlib.redirect_stdout(io.StringIO()):
            return function(*arguments, Path(folder)), panels


class Data(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        seen = set()
        cls.sets = []
        for seed, (n, lengths) in enumerate([(4000, sort.TRAINING_LENGTHS), (2000, sort.LENGTHS), (200, [128])]):
            cls.sets.append(sort.draw_records(random.Random(seed), n, sort.UNSORTED, 0.5, lengths, seen))
        cls.records = [record for records in cls.sets for record in records]

    def test_labels(self):
        for record in self.records:
            x = record["sequence"]
            self.assertEqual(record["is_sorted"], int(x == sorted(x)))
            self.assertEqual(record["is_sorted"], int(record["kind"] == "sorted"))
            self.assertEqual(record["length"], len(x))
            self.assertTrue(0 <= min(x) and max(x) <= 99)

    def test_kinds_are_what_they_say(self):
        n_moved = {kind: [] for kind in sort.UNSORTED}
        for record in self.records[1::2]:
            x, kind = record["sequence"], record["kind"]
            moved = [i for i in range(len(x)) if x[i] != sorted(x)[i]]
            n_moved[kind].append(len(moved))
            if kind == "adjacent_swap":
                i, j = moved
                self.assertTrue(set(x[i:j]) <= {x[i], x[j]})  # neighbours, but for equal numbers
                self.assertEqual(sum(a > b for a, b in zip(x, x[1:])), 1)
            elif kind == "random_swap":
                self.assertEqual(len(moved), 2)
            elif kind == "swaps":
                self.assertLessEqual(len(moved), 2 * max(2, len(x) // 3))
            elif kind == "reversed":
                self.assertEqual(x, sorted(x, reverse=True))
        mean = {kind: statistics.mean(counts) for kind, counts in n_moved.items()}
        self.assertTrue(2.5 < mean["swaps"] < mean["shuffled"] - 1, mean)

    def test_shuffled_orders_are_equally_likely(self):
        rng = random.Random(0)
        orders = Counter(tuple(sort.unsort(rng, [1, 2, 3], "shuffled")) for _ in range(5000))
        self.assertEqual(len(orders), 5)
        self.assertTrue(900 < min(orders.values()), orders)

    def test_shares(self):
        for records in self.sets:
            kinds = Counter(record["kind"] for record in records)
            expected = {"sorted": len(records) // 2} | {kind: len(records) // 10 for kind in sort.UNSORTED}
            self.assertEqual(kinds, expected)
        lengths = [Counter(record["length"] for record in records) for records in self.sets]
        self.assertEqual([set(found) for found in lengths], [set(range(8, 17)), set(range(8, 17)), {128}])
        self.assertAlmostEqual(lengths[0][16] / 4000, 1 / 2, delta=0.05)
        self.assertAlmostEqual(lengths[1][16] / 2000, 1 / 9, delta=0.05)
        narrow = sum(max(record["sequence"]) - min(record["sequence"]) < 30 for record in self.sets[1])
        self.assertTrue(0.25 < narrow / 2000 < 0.5, narrow)

    def test_pairs_share_their_numbers_and_no_two_pairs_do(self):
        pairs = [sorted(record["sequence"]) for record in self.records[0::2]]
        self.assertEqual(pairs, [sorted(record["sequence"]) for record in self.records[1::2]])
        self.assertEqual(len(pairs), len(set(map(tuple, pairs))))
        self.assertEqual([record["is_sorted"] for record in self.records], [1, 0] * len(pairs))

    def test_shift_keeps_order_and_range(self):
        lists = sort.pad([[3, 15, 27], [5, 5, 4, 99], [7, 6], [0, 99]])
        generator = torch.Generator().manual_seed(0)
        seen = set()
        for _ in range(2000):
            shifted = sort.shift(lists, generator)
            self.assertTrue(torch.equal(shifted == sort.PAD, lists == sort.PAD))
            for before, after in zip(lists, shifted):
                present = before != sort.PAD
                self.assertEqual(len((after - before)[present].unique()), 1)
                self.assertTrue(after[present].min() >= 0 and after[present].max() <= 99)
            seen.add(int(shifted[2, 1]))
        self.assertEqual(seen, set(range(99)))  # every amount that there is room for


class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.top = Path(folder.name)
        self.folder = self.top / "sorting"

    def load(self, *typed, names=sort.SPLITS):
        """The data, and the name of the user's own."""
        args = args_of("--data-dir", str(self.top), *typed)
        with quiet():
            return sort.load_data(args, names), args.own_data

    def write(self, name, *records):
        self.folder.mkdir(exist_ok=True)
        (self.folder / name).write_text("\n".join(map(json.dumps, records)) + "\n")

    def test_default_files_are_the_same_everywhere(self):
        data, own = self.load(names=[*sort.SPLITS, "extrapolation/256"])
        files = sorted(self.top.rglob("*.jsonl"))
        self.assertEqual([path.stem for path in files], ["128", "16", "256", "32", "64", "test", "train", "val"])
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        self.assertEqual(digest, "99b751fe50c0cc2c97c1207c014b746a3da404c37e5f7a86a9231ef447942586")
        shapes = {name: tuple(lists.shape) for name, (lists, kinds) in data.items()}
        self.assertEqual(shapes, {"train": (10_000, 16), "val": (2_000, 16), "test": (2_000, 16),
                                  "extrapolation/256": (2_000, 256)})
        self.assertIsNone(own)

    def test_each_long_file_is_independent_of_the_others(self):
        files = []
        for lengths in (["32"], ["20", "64", "32"]):
            sizes = ["--n-train", "20", "--n-val", "10", "--n-test", "10", "--n-long", "10", "--lengths", *lengths]
            with quiet():
                sort.generate_data(args_of("--data-dir", str(self.top), *sizes))
            files.append((self.folder / "extrapolation/32.jsonl").read_bytes())
        self.assertEqual(*files)

    def test_own_data_are_used_as_they_are(self):
        """The keys of the assignment, any number, JSON Lines or an array; gendata never replaces them."""
        rising = {"sequence": [1, 2, 2], "is_sorted": 1, "length": 3}
        falling = {"sequence": [9, 4], "is_sorted": 0, "length": 2}
        self.write("train.jsonl", rising, falling, falling)
        self.write("val.json", [falling, rising])
        self.write("test.jsonl", rising, falling)
        before = common.data_files(self.folder)
        data, name = self.load()
        self.assertEqual(data["train"][0].tolist(), [[1, 2, 2], [9, 4, sort.PAD], [9, 4, sort.PAD]])
        unsorted = sort.KINDS.index("unsorted")
        self.assertEqual([kinds.tolist() for lists, kinds in data.values()], [[0, unsorted, unsorted], [unsorted, 0],
                                                                              [0, unsorted]])
        with self.assertRaisesRegex(UserError, "files of your own, which are not replaced"), quiet():
            sort.generate_data(args_of("--data-dir", str(self.top)))
        self.assertEqual(common.data_files(self.folder), before)
        self.write("test.jsonl", falling, rising)
        self.assertNotIn(self.load()[1], (None, name))  # no model of other data will be used
        self.write("test.jsonl", falling)
        with self.assertRaisesRegex(UserError, "test must hold sorted and unsorted lists"):
            self.load()

    def test_a_wrong_record_is_named(self):
        good = {"sequence": [1, 2, 2], "is_sorted": 1, "length": 3}
        sequences = [[1, 2, 100], [1, -2, 2], [1, 2, 2.0], [1], [], "122", None]
        wrong = [("sequence", good | {"sequence": numbers}) for numbers in sequences]
        wrong += [("sequence", record) for record in (3, None, [], {})]
        wrong += [("is_sorted", good | {"is_sorted": 0}), ("is_sorted", good | {"sequence": [2, 1, 2]})]
        wrong += [("is_sorted", {"sequence": [1, 2]}), ("length", good | {"length": 2})]
        wrong += [("kind", good | {"kind": kind}) for kind in ("reversed", "odd", 7)]
        for key, record in wrong:
            with self.subTest(record):
                self.write("train.jsonl", good, record)
                with self.assertRaisesRegex(UserError, rf'train\.jsonl, line 2: "{key}": .*mend it'):
                    self.load()
        (self.folder / "train.jsonl").unlink()
        self.write("train.json", [good, good, good | {"length": 9}])
        with self.assertRaisesRegex(UserError, r'train\.json, index 2: "length": expected 3 for .1, 2, 2., found 9'):
            self.load()


class Encodings(unittest.TestCase):
    def test_sinusoids(self):
        position = torch.tensor([[0, 1, 15], [16, 100, 299]])
        i = np.arange(8)
        angle = position.numpy()[..., None] / 10_000 ** (2 * i / 16)
        found = sort.sinusoids(position, 16).numpy()
        np.testing.assert_allclose(found[..., 0::2], np.sin(angle), atol=3e-5)
        np.testing.assert_allclose(found[..., 1::2], np.cos(angle), atol=3e-5)

    def test_rope_is_multiplication_by_a_complex_number(self):
        x = torch.randn(2, 3, 5, 8)
        position = torch.tensor([0, 1, 5, 16, 255])
        turn = torch.polar(torch.ones(5, 4), position[:, None] / 10.0 ** torch.arange(4))
        expected = torch.view_as_complex(x.unflatten(-1, (4, 2))) * turn
        assert_close(sort.Rope({}).turn(x, position), torch.view_as_real(expected).flatten(-2), rtol=1e-4, atol=1e-4)

    def test_rope_scores_depend_on_the_offset_only(self):
        q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64).expand(2, 1, 1, 40, 16)
        position = torch.arange(40)
        scores = (sort.Rope({}).turn(q, position) @ sort.Rope({}).turn(k, position).mT)[0, 0]
        for offset in (-20, -1, 0, 1, 30):
            diagonal = scores.diagonal(offset)
            assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
        self.assertGreater((scores[0] - scores[0, 0]).abs().max(), 0.1)

    def test_alibi(self):
        paper = sort.Alibi({"n_head": 8, "slope": 1 / 2})
        scores = torch.randint(9, (2, 8, 6, 6)).double()
        found = paper.bias(scores, torch.arange(6))
        for h, i, j in itertools.product(range(8), range(6), range(6)):
            self.assertEqual(found[:, h, i, j].tolist(), (scores[:, h, i, j] - abs(i - j) / 2 ** (h + 1)).tolist())
        self.assertEqual(sort.Alibi(config_of("alibi")).slopes, [4, 1, 1 / 4, 1 / 16])

    def test_randomized_positions(self):
        """Sorted, distinct, all of them used; padding comes last; in training others each time, else always the same."""
        encoding = sort.Randomized({"max_len": 64})
        present = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
        for training in (True, False):
            encoding.train(training)
            with mock.patch.object(sort, "sinusoids", wraps=sort.sinusoids) as sinusoids:
                for _ in range(200):
                    encoding.embed(torch.zeros(2, 6, 8), torch.arange(6), present)
            chosen = [call.args[0].tolist() for call in sinusoids.call_args_list]
            for long, short in chosen:
                for row in (long, short[:4]):
                    self.assertEqual(row, sorted(set(row)))
                    self.assertTrue(0 <= row[0] and row[-1] < 64)
                self.assertEqual(short[4:], [64, 64])
            self.assertEqual(len({tuple(long) for long, short in chosen}) > 100, training)
            self.assertEqual({position for long, short in chosen for position in long} == set(range(64)), training)

    def test_starts(self):
        """Where a list starts matters to sinusoidal and learned encodings only; each list has its own start."""
        lists = some_lists(padding=True)
        start = torch.randint(1, 50, (32, 1))
        for pe, mask in itertools.product(ALL, MASKS):
            model = random_model(pe, *mask)
            moved = model(lists, start)
            alone = torch.cat([model(numbers[None], int(first)) for numbers, first in zip(lists, start)])
            assert_close(moved, alone)
            if pe in ABSOLUTE:
                self.assertGreater((moved - model(lists)).abs().min(), 1e-5)
            else:
                assert_close(moved, model(lists), rtol=0, atol=1e-5)
        model = random_model("learned")
        expected = model(lists, 32)
        model.encoding.table.data = model.encoding.table.roll(-32, dims=0)
        self.assertTrue(torch.equal(model(lists), expected))

    def test_random_starts_are_dropped_where_they_change_nothing(self):
        for pe in ALL:
            config = config_of(pe, "--random-start")
            self.assertEqual(config["random_start"], "0-240" if pe in ABSOLUTE else None)
            self.assertEqual(sort.setting_of(config), pe + "-random-start" * (pe in ABSOLUTE))
        config = config_of("learned", "--causal", "--random-start", "0-4,9-12")
        self.assertEqual(sort.setting_of(config), "learned-causal-random-start-0-4,9-12")

    def test_starts_of(self):
        cases = {None: [0], "0-3": [0, 1, 2, 3], "0-1,5-7": [0, 1, 5, 6, 7], "0-240": list(range(241))}
        for ranges, starts in cases.items():
            self.assertEqual(sort.starts_of(ranges).tolist(), starts)


def weights_for_pytorch(attention):
    return {"in_proj_weight": attention.query_key_value.weight, "in_proj_bias": attention.query_key_value.bias,
            "out_proj.weight": attention.output.weight, "out_proj.bias": attention.output.bias}


class Model(unittest.TestCase):
    def test_attention_is_pytorchs(self):
        torch.manual_seed(0)
        ours = sort.MultiHeadAttention(24, 3).double()
        theirs = nn.MultiheadAttention(24, 3, batch_first=True).double()
        theirs.load_state_dict(weights_for_pytorch(ours))
        x = torch.randn(2, 7, 24, dtype=torch.float64)
        causal = torch.ones(7, 7, dtype=torch.bool).tril()
        present = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
        none, alibi = sort.Encoding({}), sort.Alibi({"n_head": 3, "slope": 4})
        bias = alibi.bias(torch.zeros(2, 3, 7, 7, dtype=torch.float64), torch.arange(7)).flatten(0, 1)
        hidden = torch.zeros(2, 7, dtype=torch.float64).masked_fill(~present, -torch.inf)
        cases = [(none, torch.tensor(True), {}),
                 (none, causal, {"attn_mask": ~causal}),
                 (none, present[:, None, None], {"key_padding_mask": ~present}),
                 (alibi, causal & present[:, None, None],
                  {"attn_mask": bias.masked_fill(~causal, -torch.inf), "key_padding_mask": hidden})]
        for encoding, mask, options in cases:
            with common.recording([ours.weights]) as seen:
                output = ours(x, mask, encoding, torch.arange(7))
            expected, weights = theirs(x, x, x, average_attn_weights=False, **options)
            assert_close(output, expected)
            assert_close(seen[ours.weights], weights)
            grads = torch.autograd.grad(output.square().sum(), list(ours.parameters()))
            assert_close(grads, torch.autograd.grad(expected.square().sum(), list(theirs.parameters())))

    def test_whole_model_is_pytorchs_encoder(self):
        lists = some_lists(padding=True)
        present = lists != sort.PAD
        later = torch.ones(12, 12, dtype=torch.bool).triu(1)
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True, norm_first=True)
        theirs = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False).double()
        for pool, mask in itertools.product(("max", "mean"), MASKS):
            model = random_model("learned", "--pool", pool, *mask)
            theirs.norm.load_state_dict(model.norm.state_dict())
            for block, layer in zip(model.blocks, theirs.layers):
                layer.self_attn.load_state_dict(weights_for_pytorch(block.attention))
                layer.linear1.load_state_dict(block.feed_forward[0].state_dict())
                layer.linear2.load_state_dict(block.feed_forward[2].state_dict())
            x = model.token_embedding(lists) + model.encoding.table[:12]
            h = theirs(x, mask=later if mask else None, src_key_padding_mask=~present)
            pooled = [row[keep].amax(0) if pool == "max" else row[keep].mean(0) for row, keep in zip(h, present)]
            assert_close(model(lists), model.to_logit(torch.stack(pooled)).squeeze(-1))

    def test_without_positions_and_mask_the_order_is_invisible(self):
        lists = some_lists()
        order = torch.randperm(12)
        for pool in ("max", "mean"):
            model = random_model("none", "--pool", pool)
            assert_close(model(lists[:, order]), model(lists))
        for pe in ALL:  # all others see it, and so does a causal mask without positions
            model = random_model(pe, *MASKS[pe == "none"])
            self.assertGreater((model(lists[:, order]) - model(lists)).abs().max(), 1e-4, pe)

    def test_a_symmetric_bias_cannot_tell_a_list_from_its_mirror_image(self):
        lists = some_lists()
        model = random_model("alibi")
        assert_close(model(lists.flip(1)), model(lists))
        model = random_model("alibi", "--causal")
        self.assertGreater((model(lists.flip(1)) - model(lists)).abs().max(), 1e-4)

    def test_causal_mask_hides_later_numbers(self):
        lists = some_lists()
        changed = lists.clone()
        changed[:, 7:] = (changed[:, 7:] + 13) % 100
        for pe in ALL:
            model = random_model(pe, "--causal")
            before, after = states_of(model, lists), states_of(model, changed)
            self.assertTrue(torch.equal(before[:, :7], after[:, :7]), pe)
            self.assertFalse(torch.isclose(before[:, 7:], after[:, 7:]).all(dim=-1).any(), pe)

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
        model = random_model("learned", "--causal")
        lists = some_lists(700, 16)
        for options in ((), (7,), (7, 3)):
            for rows in (9, 10_000):
                with mock.patch.object(sort, "rows_at_once", return_value=rows):
                    assert_close(sort.logits_of(model, lists, *options), model(lists, *options).detach())
        self.assertEqual(sort.solve(model, lists[1:9:2].tolist()), (model(lists[1:9:2]) > 0).tolist())

    @unittest.skipUnless((common.REFERENCE / "sorting/alibi-causal/best_model.pth").exists(), "no reference results yet")
    def test_doctests(self):
        with quiet():
            self.assertEqual(doctest.testmod(sort, extraglobs={"common": common})[0], 0)


class Scores(unittest.TestCase):
    def test_recalls_and_balanced_accuracy(self):
        torch.manual_seed(0)
        logits = torch.randn(500)
        kinds = torch.randint(6, (500,))  # all but "unsorted"
        recall = sort.recalls(logits, kinds)
        self.assertEqual(tuple(recall), sort.KINDS[:6])
        for i, name in enumerate(recall):
            answers = [logit > 0 for logit, kind in zip(logits.tolist(), kinds.tolist()) if kind == i]
            self.assertAlmostEqual(recall[name], answers.count(name == "sorted") / len(answers))
        of_unsorted = statistics.mean(recall[kind] for kind in sort.UNSORTED)
        self.assertAlmostEqual(sort.balanced_accuracy(recall), (recall["sorted"] + of_unsorted) / 2)
        for constant in (-1, 1):
            self.assertEqual(sort.balanced_accuracy(sort.recalls(torch.full((500,), constant), kinds)), 0.5)

    def test_a_model_that_sees_the_numbers_only_scores_exactly_half(self):
        lists, kinds = data_of(400, sort.LENGTHS)
        logits = sort.logits_of(random_model("none"), lists)
        logits = (logits - logits.median()).round(decimals=9)  # half are called sorted, both lists of a pair alike
        recall = sort.recalls(logits, kinds)
        self.assertTrue(0.3 < recall["sorted"] < 0.7)
        self.assertAlmostEqual(sort.balanced_accuracy(recall), 0.5, places=12)


class Training(unittest.TestCase):
    def test_rate_and_weight_decay(self):
        """Rows of a learned table beyond training lists are only decayed: by 1 - rate x decay in each step."""
        flags = ["--steps", "10", "--warmup", "4", "--lr", "0.12", "--weight-decay", "0.5", "--eval-every", "1"]
        with mock.patch.object(common.Best, "restore", lambda best: best.model):  # the last weights, not the best
            model, best = fit("learned", *flags)
        rates = [0.03, 0.06, 0.09, 0.084, 0.072, 0.06, 0.048, 0.036, 0.024, 0.012]
        np.testing.assert_allclose([row["lr"] for row in best.history], rates)
        torch.manual_seed(1)
        drawn = sort.SortednessEncoder(model.config).encoding.table.detach()
        decayed = drawn * np.prod([1 - 0.5 * rate for rate in rates])
        table = model.encoding.table.detach()
        assert_close(table[16:], decayed[16:])
        self.assertTrue(((table - decayed)[:16].abs().amax(dim=1) > 0.01).all())

    def test_weight_decay_is_for_matrices_only(self):
        model = random_model("learned")
        before = copy.deepcopy(model.state_dict())
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        common.adamw(model, lr=0.1, weight_decay=0.5).step()  # without gradients, decay is all that happens
        for name, parameter in model.state_dict().items():
            spared = "norm" in name or name.endswith("bias")
            assert_close(parameter, before[name] * (1 if spared else 0.95))

    def test_the_best_weights_come_back(self):
        model, best = fit("none", "--causal", "--steps", "60", "--eval-every", "5", "--lr", "0.1")
        row = max(best.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        self.assertLess(row["step"], 60)
        self.assertEqual(best.best, row)
        self.assertEqual(sort.validate(model, data_of(200, sort.LENGTHS, seed=2))["val_loss"], row["val_loss"])

    def test_training_lists_are_shifted_and_start_where_the_ranges_say(self):
        """Each list of a batch has its own start. Validation lists are as they are and start at 0."""
        seen = []

        def embed(encoding, h, position, present):
            seen.append((encoding.training, h, position))
            return h

        with mock.patch.object(sort.Sinusoidal, "embed", embed):
            with mock.patch.object(sort, "shift", lambda lists, generator: torch.full_like(lists, 42)):
                fit("sinusoidal", "--random-start", "3-5,9-10", "--steps", "5")
        starts = []
        for training, h, position in seen:
            self.assertEqual(bool((h == h[0, 0]).all()), training)
            self.assertTrue((position.diff() == 1).all())
            if training:
                self.assertEqual(len(position), 64)
                starts += position[:, 0].tolist()
            else:
                self.assertEqual(position.tolist(), list(range(16)))
        self.assertEqual(len(starts), 5 * 64)
        self.assertEqual(set(starts), {3, 4, 5, 9, 10})

    def test_it_learns(self):
        for data, least in ((data_of(200, sort.LENGTHS, seed=2), 0.8), (data_of(200, [64]), 0.7)):
            self.assertGreater(sort.accuracy_of(TRAINED[0], data), least)


class LongLists(unittest.TestCase):
    def test_summary(self):
        tables = [{"16": {"accuracy": a, "recall": {"sorted": a / 2}}} for a in (0.5, 0.75, 1.0)]
        found = sort.summarize(tables)["16"]
        recall = found.pop("recall")
        for row, values in ((found, [0.5, 0.75, 1.0]), (recall["sorted"], [0.25, 0.375, 0.5])):
            expected = {"mean": statistics.mean(values), "std": statistics.stdev(values), "per_seed": values}
            self.assertEqual(row, expected)
        self.assertEqual(sort.summarize(tables[:1])["16"]["std"], 0)

    def test_curves(self):
        """The panel of random starts repeats encodings that they do not change; other settings are not drawn."""
        args = args_of("--lengths", "16", "32")
        results = {}

        def add(pe, causal, random_start, at16, at32, data=sort.data_settings(args)):
            lengths = {"16": common.mean_std(at16), "32": common.mean_std(at32)}
            results[f"{pe} {causal} {random_start}"] = {"pe": pe, "causal": causal, "random_start": random_start,
                                                        "data": data, "lengths": lengths}

        add("sinusoidal", False, None, [0.7], [0.6])
        add("alibi", True, None, [1.0, 0.9], [0.8, 0.5])
        add("learned", True, None, [0.9], [0.5])
        add("learned", True, "0-4", [0.3], [0.3])
        add("rope", True, None, [0.3], [0.3], sort.data_settings(args_of("--seed", "1")))
        alibi = [[16, 95], [32, 65]]
        expected = {"no mask": {"sinusoidal": [[16, 70], [32, 60]]},
                    "causal mask": {"ALiBi": alibi, "learned": [[16, 90], [32, 50]]}}
        for n in (2, 3):
            _, panels = drawn(sort.show_extrapolation, results, args)
            found = {}
            for axis in panels:
                lines = [line for line in axis.lines if not line.get_label().startswith("_")]
                found[axis.get_title()] = {line.get_label(): line.get_xydata().round(9).tolist() for line in lines}
                self.assertEqual(axis.get_xlabel(), "numbers in the list")
            self.assertEqual(found, expected)
            self.assertIn("accuracy (%)", panels[0].get_ylabel())
            add("learned", True, "0-240", [0.8], [0.7])
            expected["causal mask, random starts"] = {"ALiBi": alibi, "learned": [[16, 80], [32, 70]]}

    def test_kinds(self):
        args = args_of("--lengths", "16", "32")
        recall = {kind: common.mean_std([i / 10]) for i, kind in enumerate(sort.KINDS[:6])}
        entry = {"data": sort.data_settings(args), "lengths": {"16": None, "32": {"recall": recall}}}
        _, (axis,) = drawn(sort.show_kinds, {"rope-causal": entry}, args)
        np.testing.assert_allclose(axis.images[0].get_array(), [[0, 10, 20, 30, 40, 50]])
        self.assertEqual([label.get_text() for label in axis.get_yticklabels()], ["rope-causal"])
        self.assertEqual(axis.get_xticklabels()[1].get_text(), "adjacent swap")


class Comparer(nn.Module):
    """Does by hand what section 7d expects of ALiBi: one head compares neighbours, one channel says what it found.

    With many_flags, all numbers after the first fault say it too.
    """

    def __init__(self, many_flags):
        super().__init__()
        self.many_flags = many_flags
        self.norm = nn.Identity()
        self.norm.weight = nn.Parameter(torch.zeros(1))
        attention = nn.Module()
        attention.weights = nn.Identity()
        self.blocks = nn.ModuleList([nn.Module()])
        self.blocks[0].attention = attention

    def forward(self, x, start=0, window=None):
        fault = nn.functional.pad(x.diff(dim=1) < 0, (1, 0))  # (B, T): the number before is larger
        key = torch.arange(x.shape[1]) - fault.long()
        self.blocks[0].attention.weights(nn.functional.one_hot(key, x.shape[1]).double()[:, None])
        flag = fault.long().cumsum(dim=1) > 0 if self.many_flags else fault
        return self.classify(self.norm(flag.float()[..., None]), x != sort.PAD)

    def classify(self, h, present):
        return 0.5 - h.amax(dim=(1, 2))


class Why(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.data = data_of(400, [16], seed=3)
        lists, kinds = cls.data
        cls.swaps = []  # (sorted, swapped, index of the second of the two swapped numbers)
        for clean, corrupted, kind in zip(lists[0::2].tolist(), lists[1::2].tolist(), kinds[1::2].tolist()):
            if sort.KINDS[kind] == "adjacent_swap":
                (second,) = [i for i in range(1, 16) if corrupted[i - 1] > corrupted[i]]
                cls.swaps.append((clean, corrupted, second))

    def test_swaps_of_a_model_that_compares(self):
        later = [second < 15 for _, _, second in self.swaps]  # at the very end there is no other number to say it
        for many_flags, others in ((False, 0), (True, statistics.mean(later))):
            found = sort.inspect_swaps(Comparer(many_flags), self.data)
            self.assertEqual(found, {"n": 40, "called_unsorted": {"only that number": 1, "all others": others},
                                     "attention": {"sorted": {"before": [0], "itself": [1]},
                                                   "swapped": {"before": [1], "itself": [0]}}})

    def test_swaps_of_a_trained_model(self):
        model = TRAINED[0]
        turned = {"only that number": [], "all others": []}
        attention = {name: {"before": [], "itself": []} for name in ("sorted", "swapped")}
        for clean, corrupted, i in self.swaps:
            for name, numbers in (("sorted", clean), ("swapped", corrupted)):
                weights = [grid[0, i] for grid in sort.attention_of(model, [numbers]).values()]
                attention[name]["before"].append([row[i - 1].item() for row in weights])
                attention[name]["itself"].append([row[i].item() for row in weights])
            if sort.solve(model, [clean, corrupted]) == [True, False]:
                states = {numbers: states_of(model, torch.tensor([numbers]))[0] for numbers in (tuple(clean), tuple(corrupted))}
                a, b = states.values()
                for name, one, other in (("only that number", b, a), ("all others", a, b)):
                    mixed = torch.cat([other[:i], one[i:i + 1], other[i + 1:]])
                    turned[name].append(model.to_logit(mixed.amax(dim=0)).item() <= 0)
        found = sort.inspect_swaps(model, self.data)
        self.assertEqual(found["n"], len(turned["all others"]))
        self.assertTrue(0 < found["n"] < len(self.swaps), found)
        expected = {name: statistics.mean(answers) for name, answers in turned.items()}
        self.assertTrue(0 < expected["all others"] < expected["only that number"], expected)
        assert_close(found["called_unsorted"], expected)
        for name, rows in attention.items():
            for key in rows:
                np.testing.assert_allclose(found["attention"][name][key], np.mean(rows[key], axis=0), rtol=1e-4, atol=1e-6)

    def test_wrong_pairs(self):
        logits, wrong = sort.wrong_pairs(Comparer(False))
        a = np.arange(100)[:, None]
        np.testing.assert_array_equal(logits > 0, a <= a.T)
        self.assertEqual(wrong, 0)
        model = random_model("none")
        nn.init.zeros_(model.to_logit.weight)
        nn.init.ones_(model.to_logit.bias)  # calls everything sorted
        self.assertEqual(sort.wrong_pairs(model)[1], 100 * 99 // 2)

    def test_attention_of(self):
        """If all scores are equal, a number that sees n numbers attends to each with 1 / n."""
        model = random_model("none", "--causal")
        for block in model.blocks:
            nn.init.zeros_(block.attention.query_key_value.weight)
        weights = sort.attention_of(model, [[5, 6, 7], [8, 9]])
        self.assertEqual(list(weights), ["L0.H0", "L0.H1", "L1.H0", "L1.H1"])
        third = [1 / 3, 1 / 3, 1 / 3]
        expected = torch.tensor([[[1, 0, 0], [0.5, 0.5, 0], third], [[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]]])
        for grid in weights.values():
            assert_close(grid, expected.double())

    def test_table(self):
        """Training has turned the rows of its 16 positions, and no other."""
        model, _ = fit("learned", "--steps", "20")
        cosines, (left, middle, right) = drawn(lambda folder: sort.show_table(model, folder / "table.png"))
        self.assertEqual(len(cosines), 512)
        self.assertGreater(min(cosines[16:]), 0.99999)
        self.assertLess(max(cosines[:16]), 0.999)
        np.testing.assert_array_equal(left.images[0].get_array(), model.encoding.table.detach()[:48])
        self.assertEqual((left.get_ylabel(), left.get_xlabel()), ("position", "channel"))
        np.testing.assert_allclose(right.lines[0].get_ydata(), cosines[:48])

    def test_positions(self):
        data = {"extrapolation/16": self.data, "extrapolation/32": data_of(200, [32])}
        for pe in ("sinusoidal", "none", "rope", "alibi"):
            models = [TRAINED[0]] if pe == "alibi" else [random_model(pe, "--causal", "--n-layer", "1")]
            for model in models:  # half of the answers must be "sorted"
                model.to_logit.bias.data -= sort.logits_of(model, self.data[0]).median()
            found = sort.measure_positions(models, data, 32)
            plain = [sort.accuracy_of(model, self.data) for model in models]
            self.assertEqual(list(found["start"]), ["0", "16", "32", "64", "128", "240"])
            self.assertEqual(found["start"]["0"], plain)
            self.assertEqual(all(values == plain for values in found["start"].values()), pe != "sinusoidal")


if __name__ == "__main__":
    unittest.main()
