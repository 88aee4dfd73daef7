"""The adder against things we did not write: PyTorch, integer arithmetic, brute force."""
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
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.testing import assert_close

import attention_addition as add
import common
from common import UserError
from tests.reference import TorchAdder, torch_attention

HEADS = ["enc.L0.H0", "enc.L0.H1", "dec.L0.H0", "dec.L0.H1", "cross.L0.H0", "cross.L0.H1"]
MODELS = []  # of the model seeds 1 and 2, with these heads


def setUpModule():
    """Train two models for a second each: they are right on some problems and wrong on others."""
    global trained
    for silence in (contextlib.redirect_stderr, contextlib.redirect_stdout):
        silence = silence(io.StringIO())  # of progress; unittest keeps writing
        silence.__enter__()
        unittest.addModuleCleanup(silence.__exit__, None, None, None)
    common.prepare("train")
    folder = tempfile.TemporaryDirectory()
    unittest.addModuleCleanup(folder.cleanup)
    trained = flags("--num-digits", "2", "--n-head", "2", "--d-model", "32", "--d-ff", "64",
                    "--steps", "150", "--lr", "0.01", "--n-train", "3000", "--n-val", "300",
                    "--n-test", "400", "--model-seeds", "2", folder=folder.name)
    for args in common.each_seed(trained):
        add.train(args)
        MODELS.append(add.load(Path(args.out_dir, "addition", args.file)).double())


def flags(*typed, folder="no folder", **others):
    """The flags typed, and others that cannot be typed."""
    folders = ["--data-dir", f"{folder}/data", "--out-dir", f"{folder}/out"]
    args = add.command_line().parse_args([*typed, *folders])
    vars(args).update(others)
    return args


def random_model(*typed):
    torch.manual_seed(0)
    args = flags("--n-layer", "2", "--d-model", "32", "--d-ff", "48", *typed)
    return add.Adder(args).double().eval()


def random_problems(n, num_digits=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10 ** (num_digits - 1), 10 ** num_digits, (n, 2), generator=generator)


def logits_of_run(model, problems, replace={}):
    """What add.run makes its predictions of."""
    seen = []
    hook = model.to_logits.register_forward_hook(lambda module, x, logits: seen.append(logits))
    predictions, _, _ = add.run(model, problems, replace)
    hook.remove()
    assert torch.equal(predictions, seen[0].argmax(dim=2))
    return seen[0]


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.data = self.folder / "data/addition"
        self.data.mkdir(parents=True)

    def load(self, *typed):
        data = add.load_data(flags(*typed, folder=self.folder))
        return {split: problems.tolist() for split, problems in data.items()}


class Attention(unittest.TestCase):
    def test_scaled_dot_product_is_pytorchs(self):
        causal = torch.ones(5, 5, dtype=torch.bool).tril()
        padding = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()
        masks = (None, causal, padding[:, None, None], causal & padding[:, None, None])
        for mask, scale in itertools.product(masks, (1, 30)):  # e^900 overflows
            ours = (scale * torch.randn(3, 3, 2, 5, 8, dtype=torch.float64)).requires_grad_()
            theirs = ours.detach().clone().requires_grad_()
            output, weights = add.scaled_dot_product_attention(*ours, mask)
            expected = F.scaled_dot_product_attention(*theirs, attn_mask=mask)
            grad = torch.randn_like(output)
            output.backward(grad)
            expected.backward(grad)
            assert_close([output, weights @ theirs[2]], [expected, expected])
            assert_close(ours.grad, theirs.grad)

    def test_multi_head_attention_is_pytorchs(self):
        ours = add.MultiHeadAttention(d_model=24, n_head=3).double()
        theirs = torch_attention(ours)
        x = torch.randn(2, 5, 24, dtype=torch.float64)
        memory = torch.randn(2, 7, 24, dtype=torch.float64)
        causal = torch.ones(5, 5, dtype=torch.bool).tril()
        present = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
        for source, mask, options in (
                (x, None, {}), (x, causal, {"attn_mask": ~causal}), (memory, None, {}),
                (memory, present[:, None, None], {"key_padding_mask": ~present})):
            output = ours(x, source, mask)
            expected, weights = theirs(x, source, source, average_attn_weights=False, **options)
            assert_close([output, ours.weights], [expected, weights])
            *projections, last = torch.autograd.grad(output.square().sum(), ours.parameters())
            parameters = [theirs.in_proj_weight, theirs.out_proj.weight]
            grads = torch.autograd.grad(expected.square().sum(), parameters)
            assert_close([torch.cat(projections), last], list(grads))

    def test_whole_model_is_pytorchs_transformer(self):
        model = random_model()
        inputs = add.tokenize(random_problems(64), model.args)
        assert_close(model(*inputs), TorchAdder(model)(*inputs))

    def test_no_look_ahead(self):
        model = random_model()
        source, target = add.tokenize(random_problems(64), model.args)
        for t in range(4):
            changed = (target + 3 * (torch.arange(4) == t)) % 10
            same = (model(source, changed) == model(source, target)).all(dim=2)  # (64, 4)
            self.assertTrue((same == (torch.arange(4) <= t)).all())


class Data(Case):
    def test_tokens_are_those_of_the_assignment(self):
        source, target = add.tokenize(torch.tensor([[507, 159], [155, 491]]), flags())
        self.assertEqual(source.tolist(), [[5, 0, 7, 10, 1, 5, 9], [1, 5, 5, 10, 4, 9, 1]])
        self.assertEqual(target.tolist(), [[0, 6, 6, 6], [0, 6, 4, 6]])
        digits = add.to_digits(torch.tensor([1_234_567_890_123_456]), 16)
        self.assertEqual("".join(map(str, digits[0].tolist())), "1234567890123456")

    def test_default_files(self):
        data = self.load()
        files = b""
        for split, n in (("train", 10_000), ("val", 2_000), ("test", 2_000)):
            self.assertEqual(len(data[split]), n)
            files += (self.data / f"{split}.jsonl").read_bytes()
            # Tens and units both sum to nine in 1% of random problems, in more with carry chains.
            share = (np.array(data[split]).sum(axis=1) % 100 == 99).mean()
            self.assertEqual(share > 0.03, split == "train")
        self.assertEqual(hashlib.sha256(files).hexdigest(),
                         "823c7c71040d4dd8a6754b3470651b8d5753de729ba538b5e90a9fd83c934635")
        pairs = [tuple(sorted(pair)) for problems in data.values() for pair in problems]
        self.assertEqual(len(set(pairs)), 14_000)  # none twice, none mirrored, none in two splits
        self.assertTrue(all(100 <= a and b <= 999 for a, b in pairs))
        self.assertEqual(self.load("--lr", "0.1", "--steps", "7"), data)
        for flag in ("--seed", "--num-digits", "--n-train", "--n-val", "--n-test", "--carry-chains"):
            sentence = rf"made with {flag[2:].replace('-', '_')} \S+; type .*--mode gendata"
            with self.assertRaisesRegex(UserError, sentence):
                self.load(flag, "1")

    def test_columns_of_carry_chains(self):
        """3 of 10 columns keep their digit. The others sum to nine or, if a digit makes it, ten."""
        rng = random.Random(1)
        for x in range(10):
            digits = Counter()
            for _ in range(2000):
                digits.update(f"{add.add_carry_chain(111 * x, 333, 3, rng):03}")
            expected = Counter({3: 0.3})
            expected[9 - x] += 0.35
            expected[10 - x if x else 9] += 0.35
            for y in range(10):
                self.assertAlmostEqual(digits[str(y)] / 6000, expected[y], delta=0.03)

    def test_numbers_of_any_length(self):
        sizes = ["--n-train", "25", "--n-val", "10", "--n-test", "10"]  # all 45 of one digit
        for n in (1, 2, 3, 10, 15):
            typed = ["--num-digits", str(n), *sizes]
            data = self.load("--mode", "gendata", *typed)
            self.assertEqual([len(data[split]) for split in ("train", "val", "test")], [25, 10, 10])
            for number in itertools.chain(*data["train"], *data["val"], *data["test"]):
                self.assertRegex(str(number), rf"\A[1-9]\d{{{n - 1}}}\Z")
            self.assertNotEqual(self.load("--mode", "gendata", *typed, "--seed", "1"), data)
        with self.assertRaisesRegex(UserError, "only 45 pairs; type fewer"):
            self.load("--mode", "gendata", "--num-digits", "1", *sizes, "--n-val", "11")

    def test_own_data_are_used_as_they_are(self):
        record = '{"input": [1, 2, 10, 3, 9], "target": [0, 5, 1]}'
        mirror = '{"input": [3, 9, 10, 1, 2], "target": [0, 5, 1]}'
        (self.data / "train.jsonl").write_text(f"{record}\n{record}\n{mirror}\n")
        (self.data / "val.json").write_text(f"[{mirror}, {record}]")
        (self.data / "test.jsonl").write_text(record)
        data = self.load("--num-digits", "2", "--seed", "7")
        self.assertEqual(data, {"train": [[12, 39], [12, 39], [39, 12]],
                                "val": [[39, 12], [12, 39]], "test": [[12, 39]]})

    def test_a_wrong_record_is_named(self):
        good = {"input": [5, 0, 10, 7, 1], "target": [1, 2, 1]}
        inputs = [[5, 0, 11, 7, 1], [5, 0, 10, 7], [5, 0.0, 10, 7, 1], [5, -1, 10, 7, 1],
                  [50, 7, 10, 7, 1], [50, 10, 71], [0, 5, 10, 7, 1], ["5", "0", 10, 7, 1],
                  [[5]] * 5, "50+71", None]
        wrong = [good | {"input": tokens} for tokens in inputs]
        wrong += [good | {"target": tokens} for tokens in ([1, 2, 2], [1, 2], "121", None)]
        wrong += [{}, {"input": good["input"]}, {"target": good["target"]}, [], good["input"], 7]
        for record in wrong:
            lines = [json.dumps(good), json.dumps(record), json.dumps(good)]
            (self.data / "train.jsonl").write_text("\n".join(lines))
            with self.assertRaisesRegex(UserError, "data/addition/train, record 2: .+; mend it"):
                self.load("--num-digits", "2")
        (self.data / "train.json").write_text(json.dumps([good, good, record]))
        with self.assertRaisesRegex(UserError, "data/addition/train, record 3: .+; mend it"):
            self.load("--num-digits", "2")


class Scoring(unittest.TestCase):
    def test_scores_are_those_of_greedy_decoding(self):
        problems = random_problems(2000, 2)
        source, target = add.tokenize(problems, trained)
        for model in MODELS:
            answer = torch.zeros_like(target)
            for t in range(3):  # no digit depends on those after it, as tested above
                answer[:, t] = model(source, answer)[:, t].argmax(dim=1)
            right = (answer == target).all(dim=1).double().mean().item()
            self.assertTrue(0.4 < right < 0.95, right)  # it has learned something, not everything
            self.assertTrue(torch.equal(add.greedy_decode(model, source), answer))
            chances = model(source, target).softmax(dim=2).gather(2, target[:, :, None])
            assert_close(add.evaluate(model, problems), (-chances.log().mean().item(), right))
            self.assertEqual(add.exact_match(model, problems), right)  # teacher-forced

    def test_all_problems_are_counted(self):
        problems = list(itertools.product(range(10, 100), repeat=2))
        for model in MODELS:
            wrong = 0
            for (a, b), answer in zip(problems, add.solve(model, problems), strict=True):
                wrong += answer != a + b
            self.assertEqual(add.count_wrong(model), (wrong, 8100))


class Training(Case):
    def train(self, problems, *typed, evaluate=add.evaluate, **others):
        """Train on problems, {split: [(a, b), ...]}; returns the saved model and its log."""
        for split in problems:
            records = [add.to_record(int(a), int(b), 2) for a, b in problems[split]]
            common.save(self.data / f"{split}.jsonl", records)
        args = flags("--num-digits", "2", "--d-model", "16", "--d-ff", "32", *typed,
                     folder=self.folder, **others)
        with mock.patch.object(add, "evaluate", evaluate):
            add.train(args)
        out = self.folder / "out/addition"
        log = json.loads((out / "training_log.json").read_text())
        return add.load(out / "best_model.pth"), log

    def test_a_training_that_overfits_returns_its_best_weights(self):
        """And every step has the learning rate that it should have."""
        rates = []
        hook = register_optimizer_step_pre_hook(
            lambda optimizer, *_: rates.append({group["lr"] for group in optimizer.param_groups}))
        self.addCleanup(hook.remove)
        problems = {"train": random_problems(20, 2), "val": random_problems(60, 2, seed=1),
                    "test": random_problems(70, 2, seed=2)}
        model, log = self.train(problems, "--steps", "60", "--lr", "0.02",
                                warmup=20, eval_every=10)
        expected = [0.02 * step / 20 for step in range(1, 21)]  # full from step 20 to step 25
        expected += [0.02] * 5 + [0.02 * rest / 36 for rest in range(35, 0, -1)]
        np.testing.assert_allclose([rate for (rate,) in rates], expected)
        self.assertEqual([row["step"] for row in log["history"]], [10, 20, 30, 40, 50, 60])
        self.assertEqual([{row["lr"]} for row in log["history"]], rates[9::10])
        best = max(log["history"], key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        self.assertLess(best["step"], 60)
        found = (best["val_loss"], best["val_accuracy"])
        self.assertEqual(add.evaluate(model, problems["val"]), found)
        accuracy = add.evaluate(model, problems["test"])[1]
        self.assertEqual(log["test"], {"n": 70, "accuracy": accuracy})
        self.assertEqual(log["exhaustive"], {"n": 8100, "errors": add.count_wrong(model)[0]})

    def test_best_is_the_highest_accuracy_then_the_lowest_loss(self):
        """Not the lowest loss of all, which is that of step 1, nor the last weights."""
        scores = [(0.1, 0.5), (0.5, 0.9), (0.4, 0.9), (0.45, 0.9), (0.3, 0.7), (0.0, 0.123)]
        seen = []

        def evaluate(model, problems):
            seen.append(copy.deepcopy(model.state_dict()))
            return scores[len(seen) - 1]

        problems = dict.fromkeys(("train", "val", "test"), random_problems(20, 2))
        model, log = self.train(problems, "--steps", "5", evaluate=evaluate, eval_every=1)
        assert_close(model.state_dict(), seen[2], rtol=0, atol=0)
        assert_close(model.state_dict(), seen[5], rtol=0, atol=0)  # these are tested
        self.assertEqual(log["test"]["accuracy"], 0.123)

    def test_evaluating_more_often_changes_no_weight(self):
        later = itertools.count()

        def evaluate(model, problems):  # the last weights are the best
            return add_evaluate(model, problems)[0], next(later)

        add_evaluate = add.evaluate
        problems = dict.fromkeys(("train", "val", "test"), random_problems(200, 2))
        models = []
        for eval_every in (2, 3, 50):
            model, _ = self.train(problems, "--steps", "12", evaluate=evaluate,
                                  eval_every=eval_every)
            models.append(model.state_dict())
        assert_close(models[0], models[1], rtol=0, atol=0)
        assert_close(models[0], models[2], rtol=0, atol=0)

    def test_an_epoch_shows_every_problem_once_in_either_order(self):
        train = [(a, a + 10) for a in range(10, 20)]
        problems = {"train": train, "val": [(50, 60)] * 7, "test": [(50, 60)] * 7}
        forward = add.Adder.forward
        with mock.patch.object(add.Adder, "forward", autospec=True, side_effect=forward) as spy:
            self.train(problems, "--steps", "40", "--batch-size", "5")
        batches = [call.args[1] for call in spy.call_args_list if len(call.args[1]) == 5]
        shown = torch.cat(batches) @ torch.tensor([[10, 0], [1, 0], [0, 0], [0, 10], [0, 1]])
        shown = [tuple(pair) for pair in shown.tolist()]
        epochs = [shown[i:i + 10] for i in range(0, 200, 10)]
        orders = set()
        for epoch in epochs:
            pairs = [tuple(sorted(pair)) for pair in epoch]
            self.assertEqual(sorted(pairs), train)
            orders.add(tuple(pairs))
            self.assertTrue(0 < sum(a > b for a, b in epoch) < 10)
        self.assertEqual(len(orders), 20)  # none like another
        self.assertTrue(70 < sum(a > b for a, b in shown) < 130)

    def test_weight_decay_is_for_matrices(self):
        """Without gradients it is all that happens: they shrink by 1 - rate x decay in a step."""
        model = random_model()
        before = copy.deepcopy(model.state_dict())
        optimizer = common.adamw(model, flags(lr=0.1, weight_decay=0.5), beta2=0.95)
        self.assertEqual({group["betas"] for group in optimizer.param_groups}, {(0.9, 0.95)})
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.step()
        for name, p in model.state_dict().items():
            spared = "norm" in name or name.endswith("bias")
            assert_close(p, before[name] * (1 if spared else 0.95 ** 2))

    def test_a_loss_that_is_not_finite(self):
        problems = dict.fromkeys(("train", "val", "test"), random_problems(20, 2))
        with self.assertRaisesRegex(UserError, "not finite at step 10; type a smaller --lr"):
            self.train(problems, "--lr", "1e30", eval_every=10)
        self.assertFalse((self.folder / "out").exists())

    def test_only_the_first_model_seed_writes_a_log(self):
        out = Path(trained.out_dir, "addition")
        log = json.loads((out / "training_log.json").read_text())
        self.assertEqual(log["args"]["model_seed"], 1)
        curves = (out / "training_curves.png").stat()
        self.assertLess(curves.st_mtime_ns, (out / "seeds/2.pth").stat().st_mtime_ns)
        self.assertFalse(torch.equal(MODELS[0].to_logits.weight, MODELS[1].to_logits.weight))


class Patching(unittest.TestCase):
    def setUp(self):
        self.model = random_model()
        self.problems = random_problems(50)
        self.before = self.model(*add.tokenize(self.problems, self.model.args))

    def test_zeroing_a_head_is_zeroing_its_slice_of_the_output_projection(self):
        for stage, layer, h in itertools.product(("enc", "dec", "cross"), range(2), range(4)):
            model = copy.deepcopy(self.model)
            block = model.encoder[layer] if stage == "enc" else model.decoder[layer]
            attention = block.cross_attention if stage == "cross" else block.self_attention
            attention.output.weight.data[:, 8 * h:8 * h + 8] = 0
            expected = logits_of_run(model, self.problems)
            zeroed = logits_of_run(self.model, self.problems, {f"{stage}.L{layer}.H{h}": 0})
            self.assertTrue(torch.equal(zeroed, expected))
            self.assertFalse(torch.equal(zeroed, self.before))

    def test_patching_reproduces_the_other_run(self):
        """Of two problems of the same sum, only cross-attention tells the decoder which it is."""
        other = self.problems + torch.tensor([[1, -1]])
        for problems in (self.problems, other):
            _, _, outputs = add.run(self.model, problems)
            self.assertEqual(len(outputs), 24)
            cross = {head: x for head, x in outputs.items() if head.startswith("cross")}
            expected = self.model(*add.tokenize(problems, self.model.args))
            found = logits_of_run(self.model, self.problems, cross)
            self.assertTrue(torch.equal(found, expected))
        self.assertFalse(torch.equal(found, self.before))

    def test_it_leaves_no_trace(self):
        _, _, outputs = add.run(self.model, self.problems)
        nothing = dict.fromkeys(outputs, 0)
        self.assertFalse(torch.equal(logits_of_run(self.model, self.problems, nothing), self.before))
        with mock.patch.object(self.model, "decode", side_effect=ZeroDivisionError):
            with self.assertRaises(ZeroDivisionError):
                add.run(self.model, self.problems, nothing)
        for module in self.model.modules():
            self.assertFalse(getattr(module, "replace", {}))
        after = self.model(*add.tokenize(self.problems, self.model.args))
        self.assertTrue(torch.equal(after, self.before))


class LookingInside(unittest.TestCase):
    def test_ablation(self):
        """The mean of a head is one over problems of validation: each token keeps its own."""
        model = MODELS[0]
        data = {"val": random_problems(150, 2, seed=1), "test": random_problems(300, 2, seed=2)}

        def accuracy(replace):
            digits = logits_of_run(model, data["test"], replace).argmax(dim=2)
            answers = digits @ torch.tensor([100, 10, 1])
            return (answers == data["test"].sum(1)).double().mean().item()

        found = add.ablate(model, data)
        _, _, outputs = add.run(model, data["val"])
        self.assertEqual((found["n"], found["baseline"]), (300, accuracy({})))
        self.assertEqual(list(found["heads"]), HEADS)
        for head, row in found["heads"].items():
            mean = sum(outputs[head]) / 150
            self.assertEqual(row, {"zero": accuracy({head: 0}), "mean": accuracy({head: mean})})
        means = [found["heads"][head]["mean"] for head in found["ranking"]]
        self.assertEqual((sorted(means), set(found["ranking"])), (means, set(HEADS)))

    def test_pruning(self):
        """Made-up accuracies rank differently in validation and test, where two heads, each of
        which can stand in for the other, are needed."""
        data = {"val": "validation", "test": "test"}
        costs = {"validation": (0.5, 0.0, 0.2, 0.1, 0.3, 0.4),
                 "test": (0.2, 0.02, 0.0, -0.015, 0.01, 0.1)}

        def exact_match(model, problems, replace={}):
            zeros = [head for head, output in replace.items() if output == 0]
            score = 1 - sum(costs[problems][HEADS.index(head)] for head in zeros)
            return score - 0.3 * (problems == "test" and {HEADS[2], HEADS[4]} <= set(zeros))

        heads = {head: {"zero": exact_match(None, "test", {head: 0})} for head in HEADS}
        with mock.patch.object(add, "exact_match", exact_match):
            found = add.prune(None, data, {"baseline": 1.0, "heads": heads})
        self.assertEqual(found["order"], [HEADS[k] for k in (1, 3, 2, 4, 5, 0)])
        np.testing.assert_allclose(found["accuracy"],
                                   [1, 0.98, 0.995, 0.995, 0.685, 0.585, 0.385])
        self.assertEqual(found["prunable"], 3)  # though one removal alone costs two points
        self.assertEqual(found["removable_alone"], [HEADS[k] for k in (2, 3, 4)])
        self.assertAlmostEqual(found["accuracy_without_all_of_those"], 0.705)

    def test_carry_pairs_are_what_they_say(self):
        for origin, destination in itertools.combinations(range(4), 2):
            pairs = add.carry_pairs(destination, origin, num_digits=3, n_pairs=500)
            self.assertGreater(len(pairs[0].unique()), 100)
            for i, pair in enumerate(zip(*(numbers.tolist() for numbers in pairs), strict=True)):
                without, with_carry = pair[::-1] if i % 2 else pair
                self.assertTrue(100 <= min(*without, *with_carry))
                self.assertTrue(999 >= max(*without, *with_carry))
                for k in range(3):
                    columns = [[x // 10 ** k % 10 for x in problem] for problem in (without, with_carry)]
                    self.assertEqual(columns[0] == columns[1], k != origin)
                for k in range(origin, destination):  # what the columns up to k carry
                    carried = [sum(x % 10 ** (k + 1) for x in problem) // 10 ** (k + 1)
                               for problem in (without, with_carry)]
                    self.assertEqual(carried, [0, 1])
                digits = [sum(problem) // 10 ** destination for problem in (without, with_carry)]
                self.assertEqual((digits[0] + 1) % 10, digits[1] % 10)  # this digit changes
                self.assertEqual(digits[0] // 10, digits[1] // 10)      # those before it do not

    def test_flip_rates(self):
        """Only pairs count of which the model gets both digits right without patching."""
        for model in MODELS:
            routes = add.flip_rates(model, n_pairs=400)
            self.assertEqual(list(routes), ["units to tens", "units to hundreds",
                                            "tens to hundreds"])
            for (origin, destination), rates in zip(((0, 1), (0, 2), (1, 2)), routes.values()):
                def predicted(problems, replace={}):
                    return logits_of_run(model, problems, replace)[:, 2 - destination].argmax(1)

                clean, other = add.carry_pairs(destination, origin, 2, 400)
                flipped = other.sum(1) // 10 ** destination % 10
                usable = predicted(other) == flipped
                usable &= predicted(clean) == clean.sum(1) // 10 ** destination % 10
                self.assertTrue(100 < usable.sum() < 400)
                _, _, outputs = add.run(model, other)
                expected = {"all of dec": 0, "all of cross": 1}
                for name in [*HEADS, "all of enc"]:
                    patch = {head: outputs[head] for head in HEADS if head.startswith(name[-3:])}
                    patch = patch or {name: outputs[name]}
                    after = predicted(clean, patch)[usable]
                    expected[name] = (after == flipped[usable]).double().mean().item()
                self.assertEqual(rates, expected)
