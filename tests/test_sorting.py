"""The sortedness encoder against PyTorch's attention, closed forms, invariances, brute force."""
import hashlib
import itertools
import tempfile
import unittest
from pathlib import Path
from statistics import mean, stdev
from unittest import mock

import numpy as np
import torch
from torch.testing import assert_close

import common
import positional_sorting as sort

ABSOLUTE = ["sinusoidal", "learned"]
KINDS = ["sorted", *sort.UNSORTED]
SMALL = ["--d-model=16", "--batch-size=64", "--n-train=2000", "--n-val=200", "--n-test=300",
         "--n-long=1000", "--lengths", "16", "32"]
DATA = {}

def setUpModule():
    unittest.enterModuleContext(mock.patch("builtins.print"))
    folder = unittest.enterModuleContext(tempfile.TemporaryDirectory())
    SMALL.extend([f"--data-dir={folder}/data", f"--out-dir={folder}/out"])
    common.prepare("train")
    DATA.update(sort.load_data(flags(*SMALL), ["val", "extrapolation/16", "extrapolation/32"]))

def flags(*typed, pe="none", **others):  # others are set as attributes, not typed
    args = sort.command_line().parse_args(["--pe", pe, *typed])
    (args,) = sort.settings(args, [(args.causal, args.random_start)])
    return sort.Namespace(**vars(args) | others)

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
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)  # also what is 0, 1 or small at first
    return model.double().eval()

class Data(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def load(self, *names, typed=(), **others):
        return sort.load_data(flags(f"--data-dir={self.folder}", *typed, **others), names)

    def texts(self):
        return {path.stem: path.read_text() for path in sorted(self.folder.rglob("*.jsonl"))}

    def test_records(self):
        """Labels, kinds, lengths; in pairs of the same numbers, which no two pairs share."""
        pairs = []
        for name, records in sort.make_data(flags()).items():
            n_moved = {kind: [] for kind in KINDS}
            for record in records:
                x, kind = record["sequence"], record["kind"]
                pairs.append(tuple(sorted(x)))
                moved = [i for i in range(len(x)) if x[i] != pairs[-1][i]]
                n_moved[kind].append(len(moved))
                self.assertEqual((record["is_sorted"], record["length"]), (not moved, len(x)))
                most = {"sorted": 0, "adjacent_swap": 2, "random_swap": 2,
                        "swaps": 2 * max(2, len(x) // 3)}
                self.assertLessEqual(len(moved), most.get(kind, len(x)))
                if kind == "adjacent_swap":
                    i, j = moved
                    self.assertLessEqual(set(x[i:j]), {x[i], x[j]})  # neighbours, but for equals
                elif kind == "reversed":
                    self.assertEqual(x, sorted(x, reverse=True))
            n = len(records)
            self.assertEqual([len(n_moved[kind]) for kind in KINDS], [n // 2] + 5 * [n // 10])
            self.assertTrue(2.5 < mean(n_moved["swaps"]) < mean(n_moved["shuffled"]) - 1)
            lengths = [len(x) for x in pairs[-n:]]
            self.assertEqual(set(lengths), {int(name[14:])} if "/" in name else {*range(8, 17)})
            of_16 = {"train": 1 / 2, "val": 1 / 9, "test": 1 / 9, "extrapolation/16": 1}
            self.assertAlmostEqual(lengths.count(16) / n, of_16.get(name, 0), delta=0.03)
            self.assertAlmostEqual(mean(x[-1] - x[0] < 30 for x in pairs[-n:]), 0.36, delta=0.05)
        self.assertEqual(pairs[0::2], pairs[1::2])
        self.assertEqual(2 * len(set(pairs)), len(pairs))
        self.assertEqual(set(itertools.chain(*pairs)), set(range(100)))
        self.load("train")  # writes the same
        found = hashlib.sha256("".join(self.texts().values()).encode()).hexdigest()
        self.assertEqual(found, "99b751fe50c0cc2c97c1207c014b746a3da404c37e5f7a86a9231ef447942586")

    def test_own_data(self):
        """Used as they are, JSON Lines or an array; a wrong record is named."""
        good = {"sequence": [1, 2, 2], "is_sorted": 1, "length": 3}
        swap = {"sequence": [9, 4], "is_sorted": 0, "length": 2}
        common.save(self.folder / "sorting/val.json", [swap, good])
        lists, kinds = self.load("val")["val"]
        self.assertEqual(lists.tolist() + kinds, [[9, 4, 100], [1, 2, 2], "unsorted", "sorted"])
        wrong = [7, [1, 2], {"sequence": [1, 2]}, good | {"is_sorted": 0}, good | {"length": 2}]
        for x in ([1, 2, 100], [-2, 2], [1, 2.0], [1], [], "12", 513 * [7], None):
            wrong.append({"sequence": x, "is_sorted": 1, "length": len(x or [])})
        for record in wrong:
            common.save(self.folder / "sorting/test.jsonl", [good, record, good])
            self.assertRaisesRegex(common.UserError, "jsonl, record 2: .*; mend", self.load, "test")

    def test_a_constant_keeps_order_and_range(self):
        lists = sort.pad([[3, 15, 27], [5, 5, 4, 99], [7, 6], [0, 99]])
        present = lists != sort.PAD
        shifted = sort.add_constant(lists.repeat(9999, 1), None).view(9999, 4, 4)
        self.assertTrue((shifted[:, ~present] == sort.PAD).all())
        self.assertEqual(shifted[:, present].aminmax(), (0, 99))
        self.assertTrue(((shifted - lists).diff() == 0)[:, present[:, 1:]].all())
        self.assertEqual(set(shifted[:, 2, 1].tolist()), set(range(99)))  # all there is room for

class Encodings(unittest.TestCase):
    def test_closed_forms(self):
        """Sinusoids are waves exp(i position frequency), RoPE multiplies by them, ALiBi."""
        position = np.array([0, 1, 5, 16, 255])
        waves = np.exp(1j * position[:, None] / 10.0 ** np.arange(4))
        found = sort.sinusoids(torch.tensor(position), 8).numpy()
        np.testing.assert_allclose(found[:, 1::2] + 1j * found[:, 0::2], waves, atol=3e-5)
        x = np.random.randn(2, 3, 5, 8)
        found = sort.Rope(flags()).rotate(torch.tensor(x), torch.tensor(position)).numpy()
        expected = (x[..., 0::2] + 1j * x[..., 1::2]) * waves
        np.testing.assert_allclose(found[..., 0::2] + 1j * found[..., 1::2], expected, atol=1e-4)
        scores = torch.randint(9, (2, 8, 6, 6)).double()
        found = sort.Alibi(flags("--n-head=8", "--slope=0.5")).bias(scores, torch.arange(6))
        for h, i, j in itertools.product(range(8), range(6), range(6)):  # as in the paper
            self.assertEqual(found[1, h, i, j], scores[1, h, i, j] - abs(i - j) / 2 ** (h + 1))
        ours = sort.Alibi(flags()).bias(torch.zeros(1, 4, 2, 2), torch.arange(2))
        self.assertEqual(ours[0, :, 0, 1].tolist(), [-4, -1, -1 / 4, -1 / 16])

class Model(unittest.TestCase):
    def test_model_is_pytorchs(self):
        """Answers, weights of attention and gradients, with a bias, padding, mask and window."""
        lists = torch.randint(100, (4, 12))
        lists[::2, 9:] = sort.PAD
        bias = torch.randn(4, 2, 12, 12).double()
        layer = torch.nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True, norm_first=True)
        theirs = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        for pool, window in itertools.product(("max", "mean"), (None, 12, 5)):
            ours = random_model("learned", f"--pool={pool}", *["--causal"] * bool(window))
            ours.encoding.bias = lambda scores, position: scores + bias
            for block, layer in zip(ours.blocks, theirs.layers):
                layer.self_attn.in_proj_weight = block.attention.query_key_value.weight
                layer.self_attn.in_proj_bias = block.attention.query_key_value.bias
                layer.self_attn.out_proj = block.attention.output
                layer.linear1, _, layer.linear2 = block.feed_forward
                layer.norm1, layer.norm2 = block.norm1, block.norm2
            theirs.norm = ours.norm
            mask = (lists != sort.PAD)[:, None, None, :]
            if window:
                mask = mask & torch.ones(12, 12).tril().triu(1 - window).bool()
            mask = bias.masked_fill(~mask, -torch.inf).flatten(0, 1)
            x = ours.token_embedding(lists) + ours.encoding.table[:12]
            rows = [h[numbers != sort.PAD] for h, numbers in zip(theirs(x, mask), lists)]
            pooled = [row.amax(0) if pool == "max" else row.mean(0) for row in rows]
            expected = ours.to_logit(torch.stack(pooled)).squeeze(-1)
            answers = [ours(lists, window=window), expected]
            assert_close(*answers)
            x = theirs.layers[0].norm1(x)
            _, weights = theirs.layers[0].self_attn(x, x, x, None, True, mask, False)
            assert_close(ours.blocks[0].attention.weights, weights.detach())
            inputs = [ours.token_embedding.weight, theirs.layers[0].self_attn.in_proj_weight]
            assert_close(*[torch.autograd.grad(answer.sum(), inputs) for answer in answers])

    def test_order_start_and_padding(self):
        """What cannot see the order, its mirror image, or where a list starts; all others do."""
        lists = torch.randint(100, (32, 12), generator=torch.Generator().manual_seed(0))
        start = torch.arange(1, 33)[:, None]
        short = [x[:2 + i % 11].tolist() for i, x in enumerate(lists)]
        for pe, pool, mask in itertools.product(sort.ENCODINGS, ("max", "mean"), ("", "--causal")):
            model = random_model(pe, f"--pool={pool}", *mask.split())
            others = [(lists[:, torch.randperm(12)], 0, pe == "none" and not mask),
                      (lists.flip(1), 0, pe in ("none", "alibi") and not mask),
                      (lists, start, pe not in ABSOLUTE)]
            for *other, is_same in others:
                change = (model(*other) - model(lists)).abs()
                self.assertTrue(change.max() < 1e-5 if is_same else change.min() > 1e-5, (pe, mask))
            alone = [model(torch.tensor([x]), int(first)) for x, first in zip(short, start)]
            assert_close(model(sort.pad(short), start), torch.cat(alone))

    def test_evaluate(self):
        """Against one list at a time; predict() takes 256 of these at once."""
        lists, kinds = DATA["extrapolation/32"]
        chosen = [i for i, kind in enumerate(kinds) if i < 50 * len(kind)]  # unequal shares
        lists, kinds = lists[chosen], np.array(kinds)[chosen]
        data = (lists, kinds.tolist())
        model = random_model("sinusoidal", "--causal")
        model.to_logit.bias.data -= sort.predict(model, lists).median()
        logits = torch.cat([model(x[None], 7, window=9) for x in lists]).detach().numpy()
        loss, accuracy, recall = sort.evaluate(model, data, start=7, window=9)
        sign = np.where(kinds == "sorted", 1, -1)
        self.assertAlmostEqual(loss, np.logaddexp(0, -sign * logits).mean(), places=6)
        right = (logits > 0) == (kinds == "sorted")
        expected = {kind: right[kinds == kind].mean() for kind in KINDS}
        self.assertEqual(recall, expected)
        of_sorted, *of_unsorted = expected.values()
        self.assertAlmostEqual(accuracy, (of_sorted + mean(of_unsorted)) / 2)
        model.to_logit.bias.data += 1000
        self.assertEqual([*sort.score([model], data).values()][:2], [0.5, 0])  # a constant answer

class Training(unittest.TestCase):
    def test_shift_starts_rate_and_best_weights(self):
        gap = {*range(100), *range(140, 256)}
        expected = {"everywhere": {*range(256)}, "gap": gap, "early": {*range(121)}}
        for name, first in sort.STARTS.items():  # lists of 16 touch these positions:
            self.assertEqual({start + i for start in first for i in range(16)}, expected[name])
        answers = [(3, 0.5), (2, 0.7), (1, 0.7), (1, 0.7), (0, 0.6), (0, 0.6), (0, 0.4)]
        starts, biases = [], []
        def forward(model, x, start):
            self.assertTrue((x == 42).all())
            starts.append(start)
            return model.to_logit.bias.expand(len(x))

        def evaluate(model, data):
            self.assertIs(data[0].equal(DATA["val"][0]), len(biases) < 6)
            biases.append(model.to_logit.bias.item())
            return *answers[len(biases) - 1], {}

        shift = mock.patch.object(sort, "add_constant", lambda x, _: torch.full_like(x, 42))
        with mock.patch.object(sort.SortednessEncoder, "forward", forward), shift, \
                mock.patch.dict(sort.STARTS, gap=[3, 4, 5, 9, 10]), \
                mock.patch.object(sort, "evaluate", evaluate):
            typed = ["--random-start", "gap", "--steps=6", "--lr=0.1"]
            model, log = fit("sinusoidal", *typed, warmup=3)
        rates = [0.1 * min(step / 3, (7 - step) / 6) for step in range(1, 7)]
        np.testing.assert_allclose([row["lr"] for row in log["history"]], rates)
        self.assertEqual([biases[6], model.to_logit.bias.item()], 2 * [biases[2]])
        self.assertEqual((len(set(biases)), log["test"]["accuracy"]), (6, 0.4))
        self.assertEqual({start.shape for start in starts}, {(64, 1)})
        self.assertEqual(set(torch.cat(starts)[:, 0].tolist()), {3, 4, 5, 9, 10})
        self.assertRaisesRegex(common.UserError, "finite", fit, "none", "--steps=9", "--lr=1e38")

    def test_training_turns_the_rows_of_16_positions(self):
        model, _ = fit("learned", "--steps=20", "--lr=0.1", warmup=1)
        angles = sort.draw_table(model).axes[0].lines[0].get_ydata()
        self.assertTrue(5 < min(angles[:16]) and max(angles[16:]) < 0.1 and len(angles) == 48)

class Analyses(unittest.TestCase):
    def test_what_is_held(self):
        """Waves of less than two turns, at the last position that lists of all lengths reach."""
        for where, last, n_fast in (("", 15, 1), ("early", 112, 4), ("everywhere", 247, 6)):
            for pe in ABSOLUTE:
                args = flags(*f"--random-start={where}".split() * bool(where), pe=pe)
                channels, found = sort.hold(args)
                fast = 0 if pe == "learned" else n_fast  # periods 6, 11, 20, 35, 63, 112, ...
                self.assertEqual(channels.tolist(), 2 * fast * [False] + (32 - 2 * fast) * [True])
                self.assertEqual(found, last)
        self.assertEqual(sort.hold(flags(), 30)[0].sum(), 32 - 2 * 3)

    def test_held_positions(self):
        """Up to the last one nothing changes; beyond it, what a model sees is the fast phase."""
        lists = torch.randint(100, (9, 8), generator=torch.Generator().manual_seed(0))
        periods = torch.tensor([8.0, 16, 80, 300, 1000, 3000, 9000, 20000])
        with mock.patch.object(sort, "frequencies", lambda width: 2 * torch.pi / periods):
            model = random_model("sinusoidal", "--random-start=early")
            slow, last = held = sort.hold(model.args)
            for way, is_same in ((held, True), (None, False), ((~slow, last), False)):
                near, far = [model(lists, start, hold=way) for start in (120, 120 + 16 * 300)]
                self.assertEqual((near - far).abs().max().item() < 0.01, is_same)
            for start in (105, 106):
                change = model(lists, start, hold=held) - model(lists, start)
                self.assertEqual((change == 0).all(), start + 7 <= last)
        model = random_model("learned", "--random-start=early")
        found = model(lists, 108, hold=sort.hold(model.args))
        model.encoding.table.data[113:] = model.encoding.table.data[112]
        self.assertTrue(torch.equal(found, model(lists, 108)))

    def test_log_n(self):
        """The query of the last number sees all keys. Short lists stay as they are."""
        model = sort.SortednessEncoder(flags("--causal"))
        lists = torch.randint(100, (9, 40))
        found = model.hidden_states(lists, log_n=True)
        self.assertTrue(torch.equal(found[:, :16], model.hidden_states(lists)[:, :16]))
        for p in model.blocks[0].attention.query_key_value.parameters():
            p.data[:32] *= np.log(40) / np.log(16)
        assert_close(found[:, -1], model.hidden_states(lists)[:, -1])

    def test_weight_of_neighbour(self):
        model = random_model("rope")
        weights = torch.rand(20, 2, 16, 16)
        i = torch.arange(15)
        means = [weights[:, h, i + k, i + 1 - k].mean().item() for h in (0, 1) for k in (0, 1)]
        with mock.patch.object(model, "hidden_states"):
            for model.blocks[0].attention.weights in (weights, weights.mT):
                self.assertAlmostEqual(sort.weight_of_neighbour(model, weights), max(means), 6)

    def test_every_number_is_in_its_place(self):
        """Accuracies are made up. There is a sixth encoding, a class and its name."""
        class Sixth(sort.Encoding):
            uses_start = True
            embed = lambda self, x, position: x + position[..., None] % 5

        def made_up(folder, size, **how):
            return [hash(str((folder, size, how, seed))) % 10**6 / 10**6 for seed in (1, 2)]

        def evaluate(model, data, **how):
            args = model.args
            start = "-start" * bool(args.random_start)
            folder = f"sorting/{args.pe}" + "-causal" * args.causal + start
            x = made_up(folder, data[0].numel(), **how)[args.model_seed - 1]
            return 0, x, {"turned_by_that_state": x}  # also in place of inspect_swaps

        self.enterContext(mock.patch.object(sort, "evaluate", evaluate))
        self.enterContext(mock.patch.object(sort, "inspect_swaps", lambda *x: evaluate(*x)[2]))
        self.enterContext(mock.patch.dict(sort.ENCODINGS, sixth=Sixth))
        self.enterContext(mock.patch.object(common, "side_by_side", lambda *x: list(map(*x))))
        self.enterContext(mock.patch.object(common, "save_log"))
        save = self.enterContext(mock.patch.object(common, "save", wraps=common.save))
        args = sort.command_line().parse_args([*SMALL, "--steps=1", "--model-seeds=2"])
        sort.extrapolate(args, sort.settings(args, sort.PANELS.values()))
        sort.analyze(args)
        saved = {call.args[0].name: call.args[1] for call in save.call_args_list}
        results = saved["extrapolation_results.json"]
        positions, long, swaps = saved["analysis.json"].values()
        self.assertEqual((len(results), len(positions), len(long)), (6 + 6 + 3, 4, 6 + 3))
        sizes = {"8-16": 300 * 16, "16": 1000 * 16, "32": 1000 * 32}
        for folder, length in itertools.product(results, sizes):
            x = made_up(folder.replace("-random", ""), sizes[length])
            expected = {"mean": mean(x), "std": stdev(x), "per_seed": x}
            expected["recall"] = {"turned_by_that_state": mean(x)}
            self.assertEqual(results[folder][length], expected)
        args = flags("--d-model=16", "--random-start=early", pe="sinusoidal")
        slow, last = held = sort.hold(args)
        ways = {"as it is": None, "slow waves held": held, "fast waves held": (~slow, last)}
        ways |= {f"held above {period}": sort.hold(args, period) for period in sort.PERIODS}
        self.assertEqual(list(positions["sorting/sinusoidal-random-start-early"]), list(ways))
        for way, hold in ways.items():
            rows = [made_up("sorting/sinusoidal-start", 16_000, start=start, hold=hold)
                    for start in sort.POSITIONS]
            found = positions["sorting/sinusoidal-random-start-early"][way]["accuracy"]
            self.assertEqual(found, [list(row) for row in zip(*rows)])
        found = long["sorting/sinusoidal-causal"]
        args.random_start = None
        for way, length, how in (("late", "16", {"start": 240}), ("log n", "32", {"log_n": True}),
                                 ("window", "32", {"window": 16}), ("as it is", "32", {}),
                                 ("held", "32", {"hold": sort.hold(args)})):
            self.assertEqual(found[way], made_up("sorting/sinusoidal-causal", sizes[length], **how))
        for length, rows in swaps.items():
            expected = made_up("sorting/alibi-causal", sizes[str(length)])
            self.assertEqual([row["turned_by_that_state"] for row in rows], expected)
        for ax, (title, (causal, start)) in zip(saved["extrapolation_curves.png"].axes,
                                                sort.PANELS.items(), strict=True):
            found = (ax.get_title(), [line.get_label() for line in ax.lines])
            self.assertEqual(found, (title, list(sort.ENCODINGS)))
            for pe, line in zip(sort.ENCODINGS, ax.lines):
                end = "-random-start" * bool(start) * sort.ENCODINGS[pe].uses_start
                row = results[f"sorting/{pe}{'-causal' * causal}{end}"]
                means = [100 * row[length]["mean"] for length in ("16", "32")]
                np.testing.assert_allclose(line.get_ydata(), means, rtol=1e-5)
        for ax, band in zip(saved["positions.png"].axes, sort.BANDS, strict=True):
            self.assertEqual(len(ax.lines), 5)
            for line in ax.lines:
                pe, way = line.get_label().split(", ")
                rows = positions[f"sorting/{pe}-random-start-{band}"][way]["accuracy"]
                np.testing.assert_allclose(line.get_ydata(), 100 * np.mean(rows, 0), rtol=1e-5)

    def test_swaps(self):
        """One list after the other, with a model that is right on some of them."""
        model, _ = fit("alibi", "--causal", "--steps=200", warmup=20)
        model.double().to_logit.bias.data -= 0.5  # then it is wrong more often
        lists, kinds = DATA["extrapolation/16"]
        to_previous, turned = [], []
        for swapped in lists[[kind == "adjacent_swap" for kind in kinds]]:
            pair = torch.stack([swapped.sort().values, swapped])
            (i,) = np.flatnonzero(swapped.diff() < 0) + 1
            a, b = model.hidden_states(pair)
            to_previous.append(model.blocks[0].attention.weights[:, :, i, i - 1].numpy())
            if sort.solve(model, pair.tolist()) == [True, False]:
                mixed = [[*a[:i], b[i], *a[i + 1:]], [*b[:i], a[i], *b[i + 1:]]]
                logits = [model.to_logit(torch.stack(states).amax(0)) for states in mixed]
                turned.append([logit.item() <= 0 for logit in logits])
        found = sort.inspect_swaps(model, (lists, kinds))
        found = [[found["to_previous_sorted"], found["to_previous_swapped"]],
                 [found["turned_by_that_state"], found["turned_by_all_others"]]]
        np.testing.assert_allclose(found[0], np.mean(to_previous, 0))
        np.testing.assert_allclose(found[1], np.mean(turned, 0))
        self.assertTrue(2 < len(turned) < 100 and found[1][1] < found[1][0], found)
