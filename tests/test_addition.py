"""The adder against things we did not write: PyTorch's attention, integer arithmetic, numpy, brute force."""
import contextlib
import copy
import hashlib
import io
import itertools
import json
import random
import tempfile
import unittest
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch.testing import assert_close

import attention_addition as add
import common
from common import UserError
from tests.reference import TorchAdder, torch_attention

TRAINED = []  # without and with --reverse


def setUpModule():
    """Train two models for a second each: they are right on some problems and wrong on others."""
    silence = contextlib.redirect_stderr(io.StringIO())  # of progress; unittest keeps writing
    silence.__enter__()
    unittest.addModuleCleanup(silence.__exit__, None, None, None)
    common.pick_device("cpu", threads=1)
    data = {"train": random_problems(6000, 2), "val": random_problems(1000, 2, seed=1)}
    for typed in (["--steps", "150"], ["--steps", "180", "--reverse"]):
        config = config_of("--num-digits", "2", "--n-head", "2", "--d-model", "32", "--d-ff", "64", "--lr", "0.01",
                           *typed)
        TRAINED.append(add.fit(config, data, "cpu")[0].double())


def config_of(*typed):
    return common.config_of(add.command_line().parse_args(typed), add.SCRIPT, "no data", model_seed=1)


def random_model(*typed):
    torch.manual_seed(0)
    return add.Adder(config_of("--n-layer", "2", "--d-model", "32", "--d-ff", "48", *typed)).double().eval()


def random_problems(n, num_digits=3, seed=0):
    low = 100 if num_digits == 3 else 0
    return torch.randint(low, 10 ** num_digits, (n, 2), generator=torch.Generator().manual_seed(seed))


def run(model, problems, heads=(), values=None):
    """Logits of a teacher-forced run with the outputs of some heads replaced."""
    with torch.no_grad(), add.replacing(model, heads, values):
        return model(*add.tokenize(problems, model.num_digits))


def schoolbook_carries(problems, num_digits):
    """What each column carries, units first, worked out column by column: an array (num_digits, N) of 0 and 1."""
    a, b = problems.numpy().T
    rows = [0 * a]
    for k in range(num_digits):
        rows.append((a // 10 ** k % 10 + b // 10 ** k % 10 + rows[-1]) // 10)
    return np.stack(rows[1:])


class Attention(unittest.TestCase):
    def test_scaled_dot_product_is_pytorchs(self):
        causal = torch.ones(5, 5, dtype=torch.bool).tril()
        padding = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)[:, None, None]
        for mask, scale in itertools.product((None, causal, padding, causal & padding), (1, 30)):  # e^900 overflows
            ours = (scale * torch.randn(3, 3, 2, 5, 8, dtype=torch.float64)).requires_grad_()
            theirs = ours.detach().clone().requires_grad_()
            output, weights = add.scaled_dot_product_attention(*ours, mask)
            expected = F.scaled_dot_product_attention(*theirs, attn_mask=mask)
            grad = torch.randn_like(output)
            output.backward(grad)
            expected.backward(grad)
            assert_close([output, weights @ theirs[2], ours.grad], [expected, expected, theirs.grad])

    def test_a_query_without_keys_gets_zeros(self):
        inputs = torch.randn(3, 1, 3, 4, requires_grad=True)
        mask = torch.tensor([[True, True, False], [False] * 3, [True] * 3])
        output, weights = add.scaled_dot_product_attention(*inputs, mask)
        output.sum().backward()
        self.assertFalse(output[0, 1].any() or weights[0, 1].any())
        self.assertTrue(output.isfinite().all() and inputs.grad.isfinite().all())

    def test_multi_head_attention_is_pytorchs(self):
        ours = add.MultiHeadAttention(d_model=24, n_head=3).double()
        theirs = torch_attention(ours)
        x = torch.randn(2, 5, 24, dtype=torch.float64)
        memory = torch.randn(2, 7, 24, dtype=torch.float64)
        causal = torch.ones(5, 5, dtype=torch.bool).tril()
        present = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
        for source, mask, options in ((x, None, {}), (x, causal, {"attn_mask": ~causal}), (memory, None, {}),
                                      (memory, present[:, None, None], {"key_padding_mask": ~present})):
            with common.recording([ours.hook_weights]) as seen:
                output = ours(x, source, mask)
            expected, weights = theirs(x, source, source, average_attn_weights=False, **options)
            assert_close([output, seen[ours.hook_weights]], [expected, weights])
            *projections, last = torch.autograd.grad(output.square().sum(), list(ours.parameters()))
            grads = torch.autograd.grad(expected.square().sum(), [theirs.in_proj_weight, theirs.out_proj.weight])
            assert_close([torch.cat(projections), last], list(grads))

    def test_whole_model_is_pytorchs_transformer(self):
        source, target = add.tokenize(random_problems(64), 3)
        forward = random_model()
        reverse = random_model("--reverse")
        assert_close(forward(source, target), TorchAdder(forward)(source, target))
        assert_close(reverse(source, target), TorchAdder(reverse)(source, target.flip(1)).flip(1))

    def test_no_look_ahead(self):
        source, target = add.tokenize(random_problems(64), 3)
        model = random_model()
        for t in range(4):
            changed = (target + 3 * (torch.arange(4) == t)) % 10
            same = (model(source, changed) == model(source, target)).all(dim=2)  # (64, 4)
            self.assertTrue((same == (torch.arange(4) <= t)).all())


class Numbers(unittest.TestCase):
    def test_tokens_are_those_of_the_assignment(self):
        source, target = add.tokenize(torch.tensor([[507, 159], [155, 491]]), 3)
        self.assertEqual(source.tolist(), [[5, 0, 7, 10, 1, 5, 9], [1, 5, 5, 10, 4, 9, 1]])
        self.assertEqual(target.tolist(), [[0, 6, 6, 6], [0, 6, 4, 6]])
        digits = add.to_digits(torch.tensor([1_234_567_890_123_456]), 16)
        self.assertEqual(digits.tolist(), [[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6]])

    def test_carries_of_all_problems(self):
        problems = add.all_problems(3, leading_zeros=False)
        self.assertEqual(len(set(map(tuple, problems.tolist()))), 810_000)
        self.assertEqual((problems.min(), problems.max()), (100, 999))
        self.assertTrue((add.carries(problems, 3).numpy().T == schoolbook_carries(problems, 3)).all())

    def test_examples_are_what_they_say(self):
        """How many columns carry, and how many of these sum to nine and so pass a carry on."""
        found = {}
        for name, problem in add.EXAMPLES.items():
            carry = schoolbook_carries(torch.tensor([problem]), 3)[:, 0]
            nine = [sum(number // 10 ** k % 10 for number in problem) == 9 for k in range(3)]
            found[name] = (sum(carry), sum(carry * nine))
        self.assertEqual(found, {"no carry": (0, 0), "one carry": (1, 0), "a carry through a nine": (2, 1),
                                 "a carry through two nines": (3, 2), "three carries": (3, 0)})

    def test_carry_pairs_are_what_they_say(self):
        for origin, column in itertools.combinations(range(4), 2):
            pairs = add.carry_pairs(column, origin, n_pairs=500, num_digits=3)
            sums = [pair.sum(1) // 10 ** column for pair in pairs]
            self.assertTrue(((sums[0] + 1) % 10 == sums[1] % 10).all())  # the digit flips
            self.assertTrue((sums[0] // 10 == sums[1] // 10).all())  # those before it do not
            for k in range(3):
                self.assertEqual((pairs[0] // 10 ** k % 10 == pairs[1] // 10 ** k % 10).all(), k != origin)
            for carry, pair in enumerate(pairs):
                self.assertTrue((schoolbook_carries(pair, 3)[origin:column] == carry).all())
                self.assertTrue((pair >= 100).all() and (pair <= 999).all())
                self.assertGreater(len(pair.unique()), 100)


class Data(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.flags = ["--data-dir", folder.name]
        self.folder = Path(folder.name) / "addition"
        self.folder.mkdir()

    def load(self, *typed):
        args = add.command_line().parse_args([*self.flags, *typed])
        return {split: problems.tolist() for split, problems in add.load_data(args).items()}

    def test_default_files(self):
        data = self.load()
        self.assertIsNone(common.own_data(self.folder))
        files = b"".join((self.folder / f"{split}.jsonl").read_bytes() for split in ("train", "val", "test"))
        self.assertEqual(hashlib.sha256(files).hexdigest(),
                         "823c7c71040d4dd8a6754b3470651b8d5753de729ba538b5e90a9fd83c934635")
        self.assertRegex(files, rb'^\{"input": \[(\d, ){3}10(, \d){3}\], "target": \[(\d, ){3}\d\]\}\n')
        self.assertEqual({split: len(data[split]) for split in data}, {"train": 10_000, "val": 2_000, "test": 2_000})
        pairs = [tuple(sorted(pair)) for problems in data.values() for pair in problems]
        self.assertEqual(len(set(pairs)), 14_000)  # none twice, none mirrored, none in two splits
        self.assertTrue(all(100 <= a and b <= 999 for a, b in pairs))
        for split, problems in data.items():  # tens and units both sum to nine in 1% of random problems
            self.assertEqual((np.array(problems).sum(axis=1) % 100 == 99).mean() > 0.03, split == "train")
        for flag, value in (("--seed", "1"), ("--num-digits", "2"), ("--n-train", "99"), ("--cascades", "0.0")):
            name = flag[2:].replace("-", "_")
            with self.assertRaisesRegex(UserError, rf"made with {name} \S+ \(wanted {value}\).*--mode gendata"):
                self.load(flag, value)

    def test_columns_of_cascades(self):
        """3 of 10 columns keep their digit. The others sum to nine or, if a digit makes it, ten."""
        rng = random.Random(1)
        for x in range(10):
            digits = Counter("".join(str(add.make_cascade(111 * x, 333, 3, rng)).zfill(3) for _ in range(2000)))
            expected = Counter({3: 0.3})
            for total in (9, 10):
                expected[total - x if total - x <= 9 else 9] += 0.7 / 2
            for y in range(10):
                self.assertAlmostEqual(digits[str(y)] / 6000, expected[y], delta=0.03)

    def test_numbers_of_any_length(self):
        sizes = {"train": 25, "val": 10, "test": 10}  # of one digit there are no more
        for num_digits, leading_zeros in itertools.product((1, 2, 3, 10, 15), (False, True)):
            drawn = add.draw_problems(num_digits, leading_zeros, sizes, cascades=0.5, seed=1)
            self.assertNotEqual(drawn, add.draw_problems(num_digits, leading_zeros, sizes, cascades=0.5, seed=2))
            self.assertEqual({split: len(drawn[split]) for split in drawn}, sizes)
            numbers = torch.tensor(drawn["train"] + drawn["val"] + drawn["test"])
            self.assertGreaterEqual(numbers.min(), 0 if leading_zeros else 10 ** (num_digits - 1))
            self.assertLess(numbers.max(), 10 ** num_digits)
        with self.assertRaisesRegex(UserError, "only 45 problems of 1 digits.*--n-train"):
            self.load("--num-digits", "1", "--n-train", "26", "--n-val", "10", "--n-test", "10")

    def test_own_data_are_used_as_they_are(self):
        record = '{"input": [1, 2, 10, 3, 9], "target": [0, 5, 1]}'
        mirror = '{"input": [3, 9, 10, 1, 2], "target": [0, 5, 1]}'
        (self.folder / "train.jsonl").write_text(f"{record}\n{record}\n{mirror}\n")
        (self.folder / "val.json").write_text(f"[{mirror}, {record}]")
        (self.folder / "test.jsonl").write_text(record)
        data = self.load("--num-digits", "2")
        name = common.own_data(self.folder)
        self.assertEqual(list(data.values()), [[[12, 39], [12, 39], [39, 12]], [[39, 12], [12, 39]], [[12, 39]]])
        (self.folder / "test.jsonl").write_text(mirror)
        self.assertNotIn(common.own_data(self.folder), (None, name))  # no model of other data will be used

    def test_a_wrong_record_is_named(self):
        good = {"input": [5, 0, 10, 7, 1], "target": [1, 2, 1]}
        inputs = [[5, 0, 11, 7, 1], [5, 0, 10, 7], [5, 0.0, 10, 7, 1], [5, -1, 10, 7, 1], [50, 1, 0, 7, 1], ["5", "0", 10, 7, 1], [[5]] * 5, "50+71", None]
        wrong = [("input", good | {"input": tokens}) for tokens in inputs]
        wrong += [("target", good | {"target": tokens}) for tokens in ([1, 2, 2], [1, 2], "121", None)]
        wrong += [("input", {}), ("input", []), ("input", good["input"]), ("input", 7), ("target", {"input": good["input"]})]
        for key, record in wrong:
            (self.folder / "train.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(record)}\n")
            with self.assertRaisesRegex(UserError, rf'train\.jsonl, line 2: "{key}": expected .*, found '):
                self.load("--num-digits", "2")
        (self.folder / "train.jsonl").unlink()
        (self.folder / "train.json").write_text(json.dumps([good, good, record]))
        with self.assertRaisesRegex(UserError, r'train\.json, index 2: "target": expected .1, 2, 1., found None'):
            self.load("--num-digits", "2")


class ScoringAndTraining(unittest.TestCase):
    def test_scores_are_those_of_greedy_decoding(self):
        problems = random_problems(4000, 2)
        source, target = add.tokenize(problems, 2)
        for model in TRAINED:
            answer = add.greedy_decode(model, source)
            self.assertTrue(torch.equal(model(source, answer).argmax(dim=-1), answer))  # it reads its own digits
            right = answer == target
            accuracy = right.all(dim=1).double().mean().item()
            self.assertTrue(0.4 < accuracy < 0.99, accuracy)  # it has learned something and not everything
            self.assertTrue(torch.equal(add.is_right(model, problems), right.all(dim=1)))
            probability = model(source, target).softmax(dim=-1).gather(2, target[..., None])
            loss = -probability.log().mean().item()
            assert_close(add.evaluate(model, problems), (loss, accuracy, right.double().mean(dim=0).tolist()))

    def test_everything_is_counted(self):
        """And only the five mistakes that are printed are decoded: a bad model is wrong on nearly every problem."""
        problems = add.all_problems(2, leading_zeros=True)
        n_carries = schoolbook_carries(problems, 2).sum(axis=0)
        for model in (TRAINED[0], random_model("--num-digits", "2")):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                with mock.patch.object(add, "greedy_decode", wraps=add.greedy_decode) as decode:
                    table = add.test_everything(model, leading_zeros=True)
            self.assertEqual(sum(len(call.args[1]) for call in decode.call_args_list), 5)
            wrong = np.array(add.solve(model, problems)) != problems.sum(1).numpy()
            self.assertRegex(printed.getvalue(), f"^10,000 of 10,000 problems tested: {wrong.sum():,} wrong")
            self.assertEqual((table["n"], table["errors"]), (10_000, wrong.sum()))
            for k in range(3):
                expected = {"n": (n_carries == k).sum(), "errors": wrong[n_carries == k].sum()}
                self.assertEqual(table["carries"][str(k)], expected)

    def test_batches_are_epochs(self):
        seen = torch.cat(list(itertools.islice(common.batches(10, 5, seed=0), 4))).tolist()
        self.assertEqual([sorted(seen[:10]), sorted(seen[10:])], [list(range(10))] * 2)
        self.assertNotEqual(seen[:10], seen[10:])
        self.assertEqual(len(next(common.batches(3, 5, seed=0))), 3)

    def test_best_weights_are_put_back(self):
        """Best is the highest accuracy, among equals the lowest loss: not the lowest loss of all, nor the last row."""
        model = nn.Linear(1, 1)
        model.config = {"steps": 5}
        best = common.History(model)
        for step, loss, accuracy in ((1, 0.1, 0.5), (2, 0.5, 0.9), (3, 0.4, 0.9), (4, 0.45, 0.9), (5, 0.3, 0.7)):
            nn.init.constant_(model.weight, step)
            best.losses += [torch.tensor(step + 0.0), torch.tensor(step + 1.0)]
            best.record(step, 0.1, val_loss=loss, val_accuracy=accuracy)
        self.assertEqual([row["train_loss"] for row in best.rows], [1.5, 2.5, 3.5, 4.5, 5.5])
        self.assertEqual((best.restore().weight.item(), best.best["step"], model.training), (3, 3, False))
        best.losses.append(torch.tensor(torch.nan))
        with self.assertRaisesRegex(UserError, "no longer finite at step 6"):
            best.record(6, 0.1, val_loss=0.1, val_accuracy=1.0)

    def test_a_training_follows_the_learning_rate_and_returns_its_best_weights(self):
        """Twenty problems are soon known by heart, and the validation loss rises again."""
        data = {"train": random_problems(20), "val": random_problems(50, seed=1)}
        config = config_of("--steps", "60", "--eval-every", "10", "--lr", "0.02", "--warmup", "20")
        model, best = add.fit(config, data, "cpu")
        expected = [0.02 * 10 / 20, 0.02, 0.02 * 31 / 36, 0.02 * 21 / 36, 0.02 * 11 / 36, 0.02 * 1 / 36]
        np.testing.assert_allclose([row["lr"] for row in best.rows], expected)
        row = max(best.rows, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        self.assertLess(row["step"], 60)
        self.assertEqual(add.evaluate(model, data["val"])[0], row["val_loss"])

    def test_training_shows_a_problem_in_both_orders(self):
        data = dict.fromkeys(("train", "val"), torch.tensor([[12, 34]]))
        with mock.patch.object(add.Adder, "encode", autospec=True, side_effect=add.Adder.encode) as encode:
            add.fit(config_of("--num-digits", "2", "--steps", "40"), data, "cpu")
        shown = [tuple(call.args[1][0].tolist()) for call in encode.call_args_list]
        self.assertEqual(set(shown), {(1, 2, 10, 3, 4), (3, 4, 10, 1, 2)})
        self.assertTrue(10 < shown.count((3, 4, 10, 1, 2)) < 30)

    def test_learning_rate_and_weight_decay(self):
        """Without gradients, weight decay is all that happens: matrices shrink by 1 - rate x decay in each step."""
        for decay, expected in ((0.5, [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]),
                                (1.0, [0.25, 0.5, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])):
            model = random_model()
            before = copy.deepcopy(model.state_dict())
            config = {"lr": 0.1, "warmup": 4, "steps": 10, "weight_decay": 0.5}
            optimizer, schedule = common.optimizer_of(model, config, decay, beta2=0.95)
            self.assertEqual({group["betas"] for group in optimizer.param_groups}, {(0.9, 0.95)})
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            found = []
            for _ in range(10):
                found.append([group["lr"] for group in optimizer.param_groups])
                optimizer.step()
                schedule.step()
            np.testing.assert_allclose(found, [[0.1 * rate] * 2 for rate in expected])
            shrunk = np.prod([1 - 0.5 * 0.1 * rate for rate in expected])
            for name, p in model.state_dict().items():
                spared = "norm" in name or name.endswith("bias")
                assert_close(p, before[name] * (1 if spared else shrunk))


class Hooks(unittest.TestCase):
    def setUp(self):
        self.model = random_model()
        self.problems = random_problems(50)
        self.before = run(self.model, self.problems)

    def test_zeroing_a_head_is_zeroing_its_slice_of_the_output_projection(self):
        for stage, h in itertools.product(("enc", "dec", "cross"), range(4)):
            model = copy.deepcopy(self.model)
            block = model.encoder[1] if stage == "enc" else model.decoder[1]
            attention = block.cross_attention if stage == "cross" else block.self_attention
            attention.output.weight.data[:, 8 * h:8 * h + 8] = 0
            expected = run(model, self.problems)
            self.assertTrue(torch.equal(run(self.model, self.problems, {f"{stage}.L1.H{h}"}), expected))
            self.assertFalse(torch.equal(self.before, expected))

    def test_patching_reproduces_the_other_run(self):
        """Given the same digits so far, here of the same sum, only cross-attention tells the decoder the problem."""
        values = add.record_heads(self.model, self.problems, "hook_heads")
        self.assertEqual(len(values), 24)
        self.assertTrue(torch.equal(run(self.model, self.problems, set(values), values), self.before))
        other = self.problems + torch.tensor([[1, -1]])
        values = add.record_heads(self.model, other, "hook_heads")
        patched = run(self.model, self.problems, {head for head in values if head.startswith("cross")}, values)
        self.assertTrue(torch.equal(patched, run(self.model, other)))
        self.assertFalse(torch.equal(patched, self.before))

    def test_hooks_leave_no_trace(self):
        add.exact_match(self.model, self.problems, add.heads_of(self.model))
        add.gradient_importance(self.model, self.problems)
        for context in (add.replacing(self.model, add.heads_of(self.model)), common.recording(self.model.modules())):
            with self.assertRaises(ZeroDivisionError), context:
                1 / 0
        self.assertTrue(torch.equal(run(self.model, self.problems), self.before))
        self.assertFalse(any(module._forward_hooks for module in self.model.modules()))


class LookingInside(unittest.TestCase):
    """With some heads replaced as Hooks has tested."""

    def setUp(self):
        self.model = TRAINED[0]
        self.heads = ["enc.L0.H0", "enc.L0.H1", "dec.L0.H0", "dec.L0.H1", "cross.L0.H0", "cross.L0.H1"]

    def study(self, name, function, *arguments, **options):
        """What a study returns, which it must also have written; self.figure is what it has drawn, a list of axes."""
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            with mock.patch("matplotlib.figure.Figure.savefig", autospec=True, side_effect=Figure.savefig) as saved:
                table = function(self.model, *arguments, Path(folder), **options)
            self.assertEqual(json.loads(Path(folder, f"{name}.json").read_text()), table)
            self.assertTrue(Path(folder, f"{name}.png").read_bytes().startswith(b"\x89PNG"))
        self.figure = saved.call_args.args[0].axes
        return table

    def accuracy(self, problems, heads=(), values=None):
        answers = run(self.model, problems, heads, values).argmax(dim=-1)
        return (answers == add.to_digits(problems.sum(1), 3)).all(dim=1).double().mean().item()

    def test_ablation(self):
        """The mean is one over problems, and over other ones than those of the test: each token keeps its own."""
        data = {"val": random_problems(150, 2, seed=1), "test": random_problems(300, 2, seed=2)}
        table = self.study("ablation", add.study_ablation, data)
        bars = [bar.get_height() for bar in self.figure[0].patches]
        values = add.record_heads(self.model, data["val"], "hook_heads")
        means = {head: output.mean(dim=0) for head, output in values.items()}
        full = self.accuracy(data["test"])
        self.assertEqual((table["n"], table["baseline"], list(means)), (300, full, self.heads))
        for i, head in enumerate(self.heads):
            row = table["heads"][head]
            self.assertEqual(row["zero"], self.accuracy(data["test"], {head}))
            self.assertEqual(row["mean"], self.accuracy(data["test"], {head}, means))
            assert_close([bars[i], bars[6 + i]], [100 * (full - row["zero"]), 100 * (full - row["mean"])])
        found = self.study("importance", add.study_importance, data)
        lost = {head: self.accuracy(data["val"]) - self.accuracy(data["val"], {head}) for head in self.heads}
        self.assertEqual((found["n"], found["ablation"]), (150, lost))
        self.assertEqual(found["gradient"], add.gradient_importance(self.model, data["val"]))
        pairs = [list(found[key].values()) for key in ("ablation", "gradient")]
        self.assertEqual(found["rank_correlation"], add.rank_correlation(*pairs))

    def test_pruning(self):
        """Made-up accuracies: validation and test rank differently, and two heads stand in for each other on test."""
        data = {"val": ["validation"], "test": ["test"]}
        costs = {"validation": (0.5, 0.0, 0.2, 0.1, 0.3, 0.4), "test": (0.2, 0.02, 0.0, 0.01, 0.005, 0.1)}

        def score(model, problems, without=()):
            both = 0.3 if problems == data["test"] and {"dec.L0.H0", "cross.L0.H0"} <= set(without) else 0.0
            return 1 - both - sum(cost for head, cost in zip(self.heads, costs[problems[0]]) if head in without)

        with mock.patch("attention_addition.exact_match", score):
            found = self.study("pruning", add.study_pruning, data)
        self.assertEqual(found["order"], [self.heads[k] for k in (1, 3, 2, 4, 5, 0)])
        np.testing.assert_allclose(found["accuracy"], [1, 0.98, 0.97, 0.97, 0.665, 0.565, 0.365])
        self.assertEqual((found["prunable"], found["removable_alone"]), (0, [self.heads[k] for k in (2, 3, 4)]))
        self.assertAlmostEqual(found["accuracy_without_all_of_those"], 0.685)
        drawn = self.figure[0].lines[0].get_xydata()
        np.testing.assert_allclose(drawn, [[k, 100 * share] for k, share in enumerate(found["accuracy"])], rtol=1e-6)

    def test_gradient_importance_by_finite_differences(self):
        """Michel et al. define it as |dL/dx| where x = 1 multiplies the output of a head."""
        problems = random_problems(20, 2)
        _, target = add.tokenize(problems, 2)
        outputs = add.record_heads(self.model, problems, "hook_heads")
        slopes = {}
        for head in self.heads:
            more = run(self.model, problems, {head}, {head: 1.00001 * outputs[head]}).transpose(1, 2)
            less = run(self.model, problems, {head}, {head: 0.99999 * outputs[head]}).transpose(1, 2)
            change = F.cross_entropy(more, target, reduction="none") - F.cross_entropy(less, target, reduction="none")
            slopes[head] = change.sum(dim=1).abs().mean().item()
        shares = {head: slope / sum(slopes.values()) for head, slope in slopes.items()}
        assert_close(add.gradient_importance(self.model, problems), shares, rtol=1e-4, atol=0)

    def test_rank_correlation(self):
        self.assertAlmostEqual(add.rank_correlation([1, 2, 2, 4, 5], [5, 6, 7, 8, 7]), 7.25 / 9.5)  # by hand

    def test_flip_rates(self):
        """Half of the pairs are patched in each direction. Only those count that are right unpatched."""
        routes = self.study("carry", lambda model, out: add.study_carry(model, out, n_pairs=400))["routes"]
        self.assertEqual(list(routes), ["units to tens", "units to hundreds", "tens to hundreds"])
        drawn = self.figure[0].images[0].get_array()
        for route, rates, (column, origin) in zip(range(3), routes.values(), ((1, 0), (2, 0), (2, 1))):
            def predicted(*inputs):
                return run(self.model, *inputs)[:, 2 - column].argmax(dim=1)

            without, with_carry = add.carry_pairs(column, origin, n_pairs=400, num_digits=2)
            n_usable = 0
            n_flipped = dict.fromkeys(self.heads, 0)
            for clean, other in ((without[0::2], with_carry[0::2]), (with_carry[1::2], without[1::2])):
                digit = clean.sum(1) // 10 ** column % 10
                flipped = other.sum(1) // 10 ** column % 10
                usable = (predicted(clean) == digit) & (predicted(other) == flipped)
                n_usable += usable.sum().item()
                values = add.record_heads(self.model, other, "hook_heads")
                for head in self.heads:
                    n_flipped[head] += (usable & (predicted(clean, {head}, values) == flipped)).sum().item()
            self.assertTrue(150 < n_usable < 400, n_usable)
            shares = {head: n_flipped[head] / n_usable for head in self.heads}
            stages = {"all of enc": rates["all of enc"], "all of dec": 0, "all of cross": 1}
            self.assertEqual(rates, shares | stages)
            self.assertTrue(any(0.1 < share < 0.9 for share in shares.values()))
            np.testing.assert_allclose(drawn[:, route], list(rates.values()), rtol=1e-6)

    def test_probe(self):
        problems = random_problems(600, 2)
        carry = schoolbook_carries(problems, 2).T
        table = self.study("probe", add.study_probe, {"test": problems})
        torch.manual_seed(1)
        for which, model in (("trained", self.model), ("untrained", add.Adder(self.model.config))):
            memory = model.encode(add.tokenize(problems, 2)[0]).detach().double().numpy()
            for token in range(5):
                x = np.concatenate([memory[:, token], np.ones((600, 1))], axis=1)
                fitted = np.linalg.lstsq(x[:300], carry[:300], rcond=None)[0]
                right = (x[300:] @ fitted > 0.5) == carry[300:]
                np.testing.assert_allclose(table[which][token], right.mean(axis=0))
        self.assertEqual(table["n"], 300)

    def test_figures_have_queries_on_y_and_keys_on_x(self):
        """Of one problem, and of the mean over problems, whose last sheet shows all heads."""
        test = random_problems(50, 2)
        one = add.attention_of(self.model, [(34, 15)])
        mean = {head: weights.mean(0, keepdim=True) for head, weights in add.attention_of(self.model, test).items()}
        with mock.patch.object(common, "heatmap", wraps=common.heatmap) as heatmap:
            with tempfile.TemporaryDirectory() as folder:
                add.draw_example(self.model, 34, 15, "", Path(folder))
                add.study_attention(self.model, {"test": test}, Path(folder))
                written = json.loads(Path(folder, "head_analysis", "attention.json").read_text())
        self.assertEqual(written["n"], 50)
        drawn = [call.args[0] for call in heatmap.call_args_list]
        self.assertEqual(len(drawn), 18)
        for axes, problem, answer, weights in ((drawn[:6], "34+15", "049", one), (drawn[12:], "TU+TU", "HTU", mean)):
            labels = {"enc": [[*problem]] * 2, "dec": [[*answer], ["start", *answer[:-1]]],
                      "cross": [[*answer], [*problem]]}
            for i, (axis, (head, grid)) in enumerate(zip(axes, weights.items(), strict=True)):
                place = axis.get_subplotspec()  # a row per block, its two heads side by side
                self.assertEqual((place.rowspan.start, place.colspan.start), divmod(i, 2))
                ticks = [[label.get_text() for label in axis.get_yticklabels()],
                         [label.get_text() for label in axis.get_xticklabels()]]
                stage = head.split(".")[0]
                self.assertEqual(ticks, labels[stage])
                query = "query" if stage == "enc" else "digit to predict"
                self.assertEqual((axis.get_title(), axis.get_xlabel(), axis.get_ylabel()), (head, "key", query))
                np.testing.assert_allclose(axis.images[0].get_array(), grid[0], atol=1e-6)
                if weights is mean:
                    np.testing.assert_allclose(written["mean_weights"][head], grid[0], atol=1e-4)


if __name__ == "__main__":
    unittest.main()
