"""The sortedness encoder against things we did not write: PyTorch's attention, closed forms, brute force."""
import argparse
import cmath
import hashlib
import math
import random
import tempfile
import unittest
from collections import Counter
from pathlib import Path

import torch
import torch.nn as nn

import common
import positional_sorting as sort
from common import UserError

ALL = list(sort.NAMES)


def flags(*typed):
    return sort.command_line().parse(typed)[0]


def small_model(pe, causal=False, pool="max", dtype=torch.float64):
    """An untrained model, its embeddings large enough to tell numbers apart."""
    torch.manual_seed(0)
    model = sort.SortednessEncoder(pe, causal, n_layer=2, n_head=2, d_model=16, d_ff=24, pool=pool, max_len=64, slope=4)
    nn.init.normal_(model.token_embedding.weight)
    return model.to(dtype).eval()


def some_lists(n=32, length=12, seed=0):
    return torch.randint(0, 100, (n, length), generator=torch.Generator().manual_seed(seed))


class Data(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.sets = {"train": sort.draw_records(random.Random(1), 4000, sort.KINDS[1:], 0.5, sort.TRAINING_LENGTHS,
                                               seen := set()),
                    "test": sort.draw_records(random.Random(2), 2000, sort.KINDS[1:], 0.5, sort.LENGTHS, seen),
                    "long": sort.draw_records(random.Random(3), 200, sort.KINDS[1:], 0.5, [128], seen)}
        cls.records = [record for records in cls.sets.values() for record in records]

    def test_labels_against_brute_force(self):
        for record in self.records:
            x = record["sequence"]
            self.assertEqual(record["is_sorted"], int(x == sorted(x)))
            self.assertEqual(record["is_sorted"], int(record["kind"] == "sorted"))
            self.assertEqual(record["length"], len(x))
            self.assertTrue(all(0 <= number <= 99 for number in x))

    def test_kinds_are_what_they_say(self):
        moved = {kind: [] for kind in sort.KINDS}
        for record in self.records:
            x, kind = record["sequence"], record["kind"]
            places = [i for i, (a, b) in enumerate(zip(x, sorted(x))) if a != b]
            moved[kind].append(len(places))
            if kind == "adjacent_swap":
                self.assertEqual(len(places), 2)
                self.assertEqual(sum(a > b for a, b in zip(x, x[1:])), 1)
                # ties apart, the two stand side by side: what is between them is equal to one of them
                i, j = places
                self.assertTrue(all(number in (x[i], x[j]) for number in x[i:j]))
            elif kind == "random_swap":
                self.assertEqual(len(places), 2)
            elif kind == "swaps":
                self.assertLessEqual(len(places), 2 * max(2, len(x) // 3))
            elif kind == "reversed":
                self.assertEqual(x, sorted(x, reverse=True))
        mean = {kind: sum(counts) / len(counts) for kind, counts in moved.items()}
        self.assertEqual(mean["sorted"], 0)
        self.assertTrue(2 < mean["swaps"] < mean["shuffled"], mean)

    def test_shares(self):
        for name, n in (("train", 4000), ("test", 2000), ("long", 200)):
            kinds = Counter(record["kind"] for record in self.sets[name])
            self.assertEqual(kinds, {"sorted": n // 2} | {kind: n // 10 for kind in sort.KINDS[1:]})
        lengths = Counter(record["length"] for record in self.sets["train"])
        self.assertEqual(set(lengths), set(range(8, 17)))
        self.assertAlmostEqual(lengths[16] / 4000, 0.5, delta=0.05)
        narrow = sum(max(x := record["sequence"]) - min(x) < 30 for record in self.sets["test"])
        self.assertTrue(0.25 < narrow / 2000 < 0.5, narrow)

    def test_only_the_order_gives_the_answer_away(self):
        """Of a bag of numbers the best one can say is what is more frequent for that bag; that is right on 50%."""
        for records in self.sets.values():
            bags = {}
            for record in records:
                bags.setdefault(tuple(sorted(record["sequence"])), []).append(record["is_sorted"])
            right = sum(max(sum(labels), len(labels) - sum(labels)) for labels in bags.values())
            self.assertEqual(right / len(records), 0.5)

    def test_splits_share_no_numbers(self):
        bags = [tuple(record["sequence"]) for record in self.records if record["is_sorted"]]
        self.assertEqual(len(bags), len(set(bags)))

    def test_files_are_the_same_everywhere(self):
        with tempfile.TemporaryDirectory() as folder:
            args = flags("--data-dir", folder)
            sort.generate_data(args)
            files = sorted(Path(folder).rglob("*.jsonl"))
            self.assertEqual([path.stem for path in files], ["128", "16", "256", "32", "64", "test", "train", "val"])
            digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
            data = sort.load_data(args, [*sort.SPLITS, "extrapolation/256"])
        self.assertEqual(digest, "99b751fe50c0cc2c97c1207c014b746a3da404c37e5f7a86a9231ef447942586")
        self.assertEqual({name: tuple(lists.shape) for name, (lists, _) in data.items()},
                         {"train": (10_000, 16), "val": (2_000, 16), "test": (2_000, 16),
                          "extrapolation/256": (2_000, 256)})
        for lists, kinds in data.values():
            self.assertEqual(int((kinds == 0).sum()), len(lists) // 2)

    def test_the_long_sets_do_not_depend_on_each_other(self):
        with tempfile.TemporaryDirectory() as folder:
            read = {}
            for name, lengths in (("one", ["32"]), ("two", ["64", "32"])):
                sizes = ["--n-train", "20", "--n-val", "10", "--n-test", "10", "--n-long", "10"]
                sort.generate_data(flags("--data-dir", f"{folder}/{name}", *sizes, "--lengths", *lengths))
                read[name] = Path(folder, name, "sorting/extrapolation/32.jsonl").read_bytes()
            self.assertEqual(read["one"], read["two"])

    def test_false_labels_are_refused(self):
        good = {"sequence": [1, 2, 2], "is_sorted": 1, "length": 3, "kind": "sorted"}
        self.assertEqual(sort.check_record(good), ([1, 2, 2], 0))
        for change in ({"sequence": [2, 1, 2]}, {"is_sorted": 0}, {"length": 2}, {"kind": "reversed"}, {"kind": "odd"},
                       {"sequence": [1, 2, 100]}, {"sequence": [1, 2, 2.0]}, {"sequence": "122"}, {"sequence": []}):
            with self.assertRaises(ValueError, msg=change):
                sort.check_record(good | change)
        for record in (3, None, [], {}, {"sequence": None}):
            with self.assertRaises(ValueError, msg=record):
                sort.check_record(record)

    def test_shift_keeps_order_and_range(self):
        lists = sort.pad([[3, 15, 27], [5, 5, 4, 99], [7, 6], [0, 99]])
        generator, seen = torch.Generator().manual_seed(0), set()
        for _ in range(2000):
            shifted = sort.shift(lists, generator)
            self.assertTrue(torch.equal(shifted == sort.PAD, lists == sort.PAD))
            for before, after in zip(lists, shifted):
                change = set((after - before)[before != sort.PAD].tolist())
                self.assertEqual(len(change), 1)
                self.assertTrue(0 <= after[before != sort.PAD].min() and after[before != sort.PAD].max() <= 99)
            seen.add(int(shifted[2, 1]))
        self.assertEqual(seen, set(range(99)))  # every amount there is room for


class Encodings(unittest.TestCase):
    def test_sinusoidal_against_the_closed_form(self):
        table = sort.sinusoidal(torch.arange(300, dtype=torch.float64), 16)
        for position in (0, 1, 15, 16, 299):
            for i in range(8):
                angle = position / 10_000 ** (2 * i / 16)
                self.assertAlmostEqual(table[position, 2 * i].item(), math.sin(angle), places=4)
                self.assertAlmostEqual(table[position, 2 * i + 1].item(), math.cos(angle), places=4)

    def test_sinusoidal_dot_products_depend_on_the_offset_only(self):
        table = sort.sinusoidal(torch.arange(256, dtype=torch.float64), 32)
        dots = table @ table.T
        for offset in (0, 1, 7, 100):
            diagonal = dots.diagonal(offset)
            torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
        self.assertGreater(dots[0, 0] - dots[0, 1], 0.1)

    def test_rotate_is_multiplication_by_a_complex_number(self):
        x, position = torch.randn(2, 3, 5, 8, dtype=torch.float64), torch.tensor([0, 1, 5, 16, 255])
        turned = torch.view_as_complex(sort.rotate(x, position).unflatten(-1, (4, 2)))
        for t, p in enumerate(position.tolist()):
            for i in range(4):
                expected = torch.view_as_complex(x.unflatten(-1, (4, 2)))[:, :, t, i] * cmath.rect(1, p / 10 ** i)
                torch.testing.assert_close(turned[:, :, t, i], expected, rtol=1e-4, atol=1e-4)

    def test_rope_scores_depend_on_the_offset_only(self):
        q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
        position = torch.arange(40)
        scores = sort.rotate(q.expand(1, 1, 40, 16), position) @ sort.rotate(k.expand(1, 1, 40, 16), position).mT
        for offset in (-20, -1, 0, 1, 30):
            diagonal = scores[0, 0].diagonal(offset)
            torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
        self.assertGreater((scores[0, 0, 0] - scores[0, 0, 0, 0]).abs().max(), 0.01)

    def test_alibi_against_its_formula(self):
        bias = sort.alibi(torch.arange(6), n_head=8, slope=2 ** -1)  # the paper's: 1/2, 1/4, ... 1/256
        for h in range(8):
            for i in range(6):
                for j in range(6):
                    self.assertEqual(bias[h, i, j].item(), -abs(i - j) / 2 ** (h + 1))
        self.assertEqual(sort.alibi(torch.arange(2), 2, 4.0)[:, 0, 1].tolist(), [-4, -0.25])

    def test_random_positions(self):
        present = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
        seen = set()
        for seed in range(200):
            positions = sort.random_positions(present, 64, torch.Generator().manual_seed(seed))
            for row, n in zip(positions.tolist(), (6, 4)):
                self.assertEqual(row[:n], sorted(set(row[:n])))
                self.assertTrue(0 <= row[0] and row[n - 1] < 64)
                seen |= set(row[:n])
        self.assertEqual(seen, set(range(64)))

    def test_learned_rows_beyond_training_are_only_decayed(self):
        """No gradient reaches them: all that is left is AdamW's factor of 1 - lr * weight decay for each step."""
        config = argparse.Namespace(**sort.config_of(flags("--steps", "12", "--batch-size", "64"), "learned", 1))
        records = sort.draw_records(random.Random(0), 200, sort.KINDS[1:], 0.5, sort.LENGTHS, set())
        data = {name: (sort.pad([r["sequence"] for r in records]),
                       torch.tensor([sort.KINDS.index(r["kind"]) for r in records])) for name in ("train", "val")}
        torch.manual_seed(1)
        before = sort.SortednessEncoder(**{name: getattr(config, name) for name in sort.MODEL_FLAGS}).position_table
        common_log, common.log, sort.log = common.log, lambda line: None, lambda line: None
        self.addCleanup(lambda: (setattr(common, "log", common_log), setattr(sort, "log", common_log)))
        model, history, best = sort.fit(config, data, torch.device("cpu"))
        factor = math.prod(1 - config.weight_decay * sort.learning_rate(step, config) for step in range(best["step"]))
        torch.testing.assert_close(model.position_table[16:], before[16:] * factor, rtol=1e-5, atol=1e-7)
        self.assertTrue(((model.position_table[:16] - before[:16] * factor).abs().amax(dim=1) > 1e-3).all())


class Model(unittest.TestCase):
    def assert_close(self, ours, theirs):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)

    def test_attention_is_pytorchs(self):
        torch.manual_seed(0)
        ours = sort.MultiHeadAttention(24, 3).double()
        theirs = nn.MultiheadAttention(24, 3, batch_first=True).double()
        theirs.load_state_dict({"in_proj_weight": ours.query_key_value.weight, "out_proj.weight": ours.output.weight,
                                "in_proj_bias": ours.query_key_value.bias, "out_proj.bias": ours.output.bias})
        seen = []
        ours.weights.register_forward_hook(lambda module, inputs, output: seen.append(output))
        x = torch.randn(2, 7, 24, dtype=torch.float64)
        causal = torch.ones(7, 7, dtype=torch.bool).tril()
        present = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
        bias = sort.alibi(torch.arange(7), 3, 4.0).double()
        padded = {"key_padding_mask": torch.zeros(2, 7, dtype=torch.float64).masked_fill(~present, -math.inf)}
        hidden = torch.zeros(7, 7, dtype=torch.float64).masked_fill(~causal, -math.inf)
        cases = {"plain": (torch.ones(7, 7, dtype=torch.bool), None, {}),
                 "causal": (causal, None, {"attn_mask": hidden}),
                 "padded": (present[:, None, None], None, padded),
                 "alibi": (causal & present[:, None, None], bias,
                           {"attn_mask": (bias + hidden).repeat(2, 1, 1), **padded})}
        for name, (mask, bias_, theirs_mask) in cases.items():
            with self.subTest(name):
                output = ours(x, mask, bias_)
                expected, weights = theirs(x, x, x, average_attn_weights=False, **theirs_mask)
                self.assert_close(output, expected)
                self.assert_close(seen[-1], weights)
                grads = torch.autograd.grad(output.square().sum(), list(ours.parameters()))
                expected = torch.autograd.grad(expected.square().sum(), list(theirs.parameters()))
                for x_, y in zip(grads, expected):
                    self.assert_close(x_, y)

    def test_whole_model_is_pytorchs_encoder(self):
        model, lists = small_model("sinusoidal", pool="mean"), some_lists()
        lists[::2, 9:] = sort.PAD
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True, norm_first=True)
        theirs = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False).double().eval()
        names = {"attention.query_key_value.weight": "self_attn.in_proj_weight", "norm.weight": "norm.weight",
                 "attention.query_key_value.bias": "self_attn.in_proj_bias", "norm.bias": "norm.bias",
                 "attention.output": "self_attn.out_proj", "feed_forward.0": "linear1", "feed_forward.2": "linear2"}
        weights = {}
        for name, value in model.state_dict().items():
            for ours, torchs in names.items():
                name = name.replace("blocks", "layers").replace(ours, torchs)
            weights[name] = value
        theirs.load_state_dict({name: value for name, value in weights.items() if name in theirs.state_dict()})
        present = lists != sort.PAD
        x = model.token_embedding(lists) + sort.sinusoidal(torch.arange(12), 16)
        h = theirs(x, src_key_padding_mask=~present) * present[..., None]
        expected = model.to_logit(h.sum(1) / present.sum(1, keepdim=True)).squeeze(-1)
        self.assert_close(model(lists), expected)

    def test_without_positions_and_mask_order_is_invisible(self):
        lists, order = some_lists(), torch.randperm(12, generator=torch.Generator().manual_seed(1))
        for pool in ("max", "mean"):
            model = small_model("none", pool=pool)
            self.assert_close(model(lists[:, order]), model(lists))
        for pe in ALL:  # and visible to everyone else, even without positions if there is a causal mask
            model = small_model(pe, causal=pe == "none")
            self.assertGreater((model(lists[:, order]) - model(lists)).abs().max(), 1e-4, pe)

    def test_a_symmetric_bias_cannot_tell_up_from_down(self):
        """ALiBi without a causal mask sees how far, not on which side: a list and its mirror image look the same.

        So it must call sorted and reversed lists alike. With the mask that ALiBi was made for it need not.
        """
        lists = some_lists()
        symmetric, causal = small_model("alibi"), small_model("alibi", causal=True)
        self.assert_close(symmetric(lists.flip(1)), symmetric(lists))
        self.assertGreater((causal(lists.flip(1)) - causal(lists)).abs().max(), 1e-4)

    def test_causal_mask_hides_what_comes_later(self):
        for pe in ALL:
            model, lists, seen = small_model(pe, causal=True), some_lists(), []
            model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
            changed = lists.clone()
            changed[:, 7:] = (changed[:, 7:] + 13) % 100
            model(lists), model(changed)
            self.assertTrue(torch.equal(seen[0][:, :7], seen[1][:, :7]), pe)
            self.assertFalse(torch.equal(seen[0][:, 7:], seen[1][:, 7:]), pe)

    def test_padding_changes_nothing(self):
        lists = [row[:n].tolist() for row, n in zip(some_lists(6, 40), (8, 11, 40, 16, 9, 1))]
        for pe in ALL:
            for causal in (False, True):
                for pool in ("max", "mean"):
                    model = small_model(pe, causal, pool, torch.float32)
                    alone = torch.cat([model(sort.pad([numbers])) for numbers in lists])
                    torch.testing.assert_close(model(sort.pad(lists)), alone, rtol=0, atol=1e-6)

    def test_answers_do_not_depend_on_chunks_or_threads(self):
        model, lists = small_model("alibi", True), some_lists(700, 16)
        with torch.inference_mode():
            self.assert_close(sort.logits_of(model, lists), model(lists))

    def test_too_long_for_the_table(self):
        for pe in ALL:
            sort.check_length(pe, 64, 64)
            if pe in ("learned", "randomized"):
                self.assertRaisesRegex(UserError, "--max-len 65", sort.check_length, pe, 64, 65)
            else:
                sort.check_length(pe, 64, 65)


class Scores(unittest.TestCase):
    def test_recall_and_balanced_accuracy_against_brute_force(self):
        generator = torch.Generator().manual_seed(0)
        logits, kinds = torch.randn(500, generator=generator), torch.randint(0, 6, (500,), generator=generator)
        recall = sort.recalls(logits, kinds)
        for i, name in enumerate(sort.KINDS):
            right = [(logit > 0) == (kind == 0) for logit, kind in zip(logits.tolist(), kinds.tolist()) if kind == i]
            self.assertAlmostEqual(recall[name], sum(right) / len(right))
        mean = sum(recall[kind] for kind in sort.KINDS[1:]) / 5
        self.assertAlmostEqual(sort.balanced_accuracy(recall), (recall["sorted"] + mean) / 2)
        for constant in (-1, 1):
            recall = sort.recalls(torch.full((500,), constant), kinds)
            self.assertEqual(sort.balanced_accuracy(recall), 0.5)

    def test_a_bag_of_numbers_scores_exactly_half(self):
        records = sort.draw_records(random.Random(0), 400, sort.KINDS[1:], 0.5, sort.LENGTHS, set())
        kinds = torch.tensor([sort.KINDS.index(record["kind"]) for record in records])
        logits = sort.logits_of(small_model("none"), sort.pad([record["sequence"] for record in records]))
        logits = (logits - logits.median()).round(decimals=9)  # so that half are called sorted, and twins alike
        recall = sort.recalls(logits, kinds)
        self.assertTrue(0.3 < recall["sorted"] < 0.7)
        self.assertEqual(round(sort.balanced_accuracy(recall), 12), 0.5)


class Comparer(nn.Module):
    """Does by hand what section 7d says that ALiBi does: its one head and its one flag are known exactly."""

    def __init__(self, stays_up=False):
        super().__init__()
        self.norm, self.stays_up = nn.Identity(), stays_up  # does the flag stay up in all vectors after the fault?
        self.norm.weight = nn.Parameter(torch.zeros(1))
        attention = nn.Module()
        attention.weights, attention.n_head = nn.Identity(), 1
        self.blocks = nn.ModuleList([nn.Module()])
        self.blocks[0].attention = attention

    def forward(self, x, position=None):
        fault = nn.functional.pad(x.diff(dim=1) < 0, (1, 0))  # (B, T): is the number before it larger?
        T = torch.arange(x.shape[1])
        self.blocks[0].attention.weights(nn.functional.one_hot(T - fault.long(), len(T)).float()[:, None])
        flag = fault.long().cumsum(dim=1) > 0 if self.stays_up else fault
        return self.read_out(self.norm(flag.float()[..., None]), x != sort.PAD)

    def read_out(self, h, present):
        return 0.5 - h.amax(dim=(1, 2))


class Analysis(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        records = sort.draw_records(random.Random(3), 400, sort.KINDS[1:], 0.5, [16], set())
        cls.lists = sort.pad([record["sequence"] for record in records])
        cls.kinds = torch.tensor([sort.KINDS.index(record["kind"]) for record in records])

    def test_swapped_pairs_against_brute_force(self):
        pairs = [(a, b) for a, b, kind in zip(self.lists[0::2].tolist(), self.lists[1::2].tolist(),
                                              self.kinds[1::2].tolist()) if sort.KINDS[kind] == "adjacent_swap"]
        clean, corrupt, place = sort.swapped_pairs(self.lists, self.kinds)
        self.assertEqual((clean.tolist(), corrupt.tolist()), ([a for a, _ in pairs], [b for _, b in pairs]))
        for (a, b), i in zip(pairs, place.tolist()):
            b[i - 1], b[i] = b[i], b[i - 1]
            self.assertEqual(a, b)

    def test_a_head_that_compares_is_found(self):
        looks = sort.looks_back(Comparer(), self.lists, self.kinds)
        self.assertEqual(looks, {"sorted": {"L0.H0": {"before": 0, "itself": 1}},
                                 "swapped": {"L0.H0": {"before": 1, "itself": 0}}})

    def test_patching_tells_one_flag_from_many(self):
        for stays_up, others in ((False, 0), (True, 1)):
            clean, corrupt, place = sort.swapped_pairs(self.lists, self.kinds)
            if stays_up:  # a fault at the very end leaves no later vector to tell of it
                others = (place < clean.shape[1] - 1).double().mean().item()
            found = sort.patch_states(Comparer(stays_up), self.lists, self.kinds)
            self.assertEqual(found, {"alone": 1, "all others": others, "n": len(place)})

    def test_patching_a_trained_model_against_a_loop(self):
        """On the reference model of seed 4, where now and then a second vector raises a flag too."""
        path, states = Path(sort.__file__).parent / "out" / "sorting" / "alibi" / "seeds" / "4.pth", []
        model, _ = common.load_checkpoint(path, sort.SCRIPT, sort.build_model)
        turned = {"alone": [], "all others": []}
        handle = model.norm.register_forward_hook(lambda module, inputs, output: states.append(output))
        with torch.inference_mode():
            for clean, corrupt, i in zip(*sort.swapped_pairs(self.lists, self.kinds)):
                states.clear()
                if model(clean[None]) > 0 >= model(corrupt[None]):
                    for name, first, second in (("alone", *states), ("all others", *states[::-1])):
                        mixed = torch.cat([first[0, :i], second[0, i:i + 1], first[0, i + 1:]])
                        turned[name].append((model.to_logit(mixed.amax(dim=0)) <= 0).item())
        handle.remove()
        expected = {name: sum(values) / len(values) for name, values in turned.items()}
        self.assertTrue(0 < expected["all others"] < expected["alone"], expected)
        self.assertEqual(sort.patch_states(model, self.lists, self.kinds), expected | {"n": len(turned["alone"])})

    def test_all_pairs_are_asked(self):
        logits, wrong = sort.pair_table(Comparer())
        self.assertEqual(wrong, 0)
        self.assertEqual([(logits[a, b] > 0).item() for a, b in ((3, 4), (4, 4), (4, 3))], [True, True, False])
        model = small_model("none", dtype=torch.float32)
        with torch.no_grad():
            model.to_logit.weight.zero_()
            model.to_logit.bias.fill_(1)  # says sorted to all
        self.assertEqual(sort.pair_table(model)[1], 100 * 99 // 2)

    def test_attention_by_length_against_closed_forms(self):
        """Without scores, a causal mask leaves 1 / (i + 1) for each of the i + 1 that number i may look at."""
        model = small_model("none", causal=True)
        data = {f"extrapolation/{n}": (some_lists(30, n), None) for n in (9, 40)}
        with torch.no_grad():
            for block in model.blocks:
                block.attention.query_key_value.weight.zero_()
        for length, rows in sort.attention_by_length(model, data, (9, 40)).items():
            n = int(length)
            share = [1 / (i + 1) for i in range(n)]
            expected = {"entropy": sum(math.log(i + 1) for i in range(n)) / n, "self": sum(share) / n,
                        "left": sum(share[1:]) / (n - 1), "right": 0}
            self.assertEqual(list(rows), ["L0.H0", "L0.H1", "L1.H0", "L1.H1"])
            for row in rows.values():
                for name, value in expected.items():
                    self.assertAlmostEqual(row[name], value, places=6)

    def test_sharpest(self):
        rows = {"L0.H0": {"left": 0.2, "right": 0.5, "self": 0.9}, "L0.H1": {"left": 0.6, "right": 0.1, "self": 0.0}}
        self.assertEqual(sort.sharpest(rows), ("L0.H1", "left"))

    def test_offsets_and_squeezing(self):
        """Encodings of distances do not see an offset; at length 16 nothing is squeezed."""
        models = {}
        for pe in ("sinusoidal", "learned", "rope", "alibi"):
            models[pe] = [small_model(pe, causal=True)]
            with torch.no_grad():
                low, high = sort.logits_of(models[pe][0], self.lists).sort().values[199:201]  # so that half are above 0
                models[pe][0].to_logit.bias -= (low + high) / 2
        found = sort.positions_or_length(models, {"extrapolation/16": (self.lists, self.kinds)}, [16])
        for pe, (model,) in models.items():
            plain = sort.accuracy_of(model, self.lists, self.kinds)
            self.assertEqual((found["squeezed"][pe]["16"], found["offset"][pe]["0"]), ([plain], [plain]))
            if pe in ("rope", "alibi"):
                self.assertEqual({tuple(shares) for shares in found["offset"][pe].values()}, {(plain,)})
        self.assertEqual(list(found["offset"]["learned"]), ["0", "16", "32"])  # its table ends at 64
        model = models["sinusoidal"][0]
        moved = sort.logits_of(model, self.lists, position=torch.arange(16) + 32)
        with torch.no_grad():  # the same by hand: what is added to the numbers there, instead of what is added at 0
            wave = [[f(p / 10_000 ** (2 * (c // 2) / 16)) for c, f in enumerate(8 * [math.sin, math.cos])]
                    for p in range(32, 48)]
            model.pe = "none"
            hook = model.token_embedding.register_forward_hook(
                lambda module, inputs, output: output + torch.tensor(wave, dtype=output.dtype))
            torch.testing.assert_close(moved, sort.logits_of(model, self.lists), rtol=1e-5, atol=1e-5)
            hook.remove()


class Training(unittest.TestCase):
    def test_learns_and_extrapolates(self):
        """400 steps of ALiBi on 2,000 lists: short ones and long ones are mostly right."""
        rng, seen = random.Random(5), set()
        sets = {"train": (2000, sort.KINDS[1:], sort.TRAINING_LENGTHS), "val": (200, sort.KINDS[1:], sort.LENGTHS),
                "long": (200, sort.KINDS[1:], [64])}
        data = {}
        for name, (n, kinds, lengths) in sets.items():
            records = sort.draw_records(rng, n, kinds, 0.5, lengths, seen)
            data[name] = (sort.pad([record["sequence"] for record in records]),
                          torch.tensor([sort.KINDS.index(record["kind"]) for record in records]))
        config = argparse.Namespace(**sort.config_of(flags("--steps", "400", "--n-layer", "1", "--batch-size", "128"),
                                                     "alibi", 1))
        log = common.log
        self.addCleanup(lambda: (setattr(common, "log", log), setattr(sort, "log", log)))
        common.log = sort.log = lambda line: None
        model, history, best = sort.fit(config, data, torch.device("cpu"))
        self.assertGreater(best["val_accuracy"], 0.8)
        recall = sort.recalls(sort.logits_of(model, data["long"][0]), data["long"][1])
        self.assertGreater(sort.balanced_accuracy(recall), 0.8, recall)


if __name__ == "__main__":
    unittest.main()
