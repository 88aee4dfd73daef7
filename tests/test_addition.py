"""The adder against things we did not write: PyTorch, integer arithmetic, brute force."""
import copy
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
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.testing import assert_close

import attention_addition as add
import common
from common import UserError
from tests.reference import TorchAdder, torch_attention

HEADS = ["enc.L0.H0", "enc.L0.H1", "dec.L0.H0", "dec.L0.H1", "cross.L0.H0", "cross.L0.H1"]
MODELS = []  # of model seeds 1 and 2
DATA, TABLES, FIGURES = {}, {}, {}  # {split: problems}, and what an analysis of both has written


def setUpModule():
    """Train two models that are right on some problems and wrong on others, and look inside."""
    unittest.enterModuleContext(mock.patch("builtins.print"))
    folder = unittest.enterModuleContext(tempfile.TemporaryDirectory())
    common.prepare("train")
    args = flags(folder, "--n-train", "3000", "--n-val", "300", "--n-test", "400",
                 "--steps", "180", "--lr", "0.01", "--model-seeds", "2")
    for job in common.each_seed(args):
        add.train(job)
        MODELS.append(add.load(Path(folder, "out/addition", job.file)))
    DATA.update(add.load_data(args))
    with mock.patch.object(common, "save", wraps=common.save) as save:
        add.analyze(args)
    FIGURES.update({call.args[0].name: call.args[1] for call in save.call_args_list})
    for path in Path(folder, "out/addition").rglob("*.json"):
        TABLES[path.stem] = json.loads(path.read_text())


def flags(folder, *typed, **others):
    """The flags of a small adder of two digits; others are set as attributes, not typed."""
    small = ["--num-digits", "2", "--n-head", "2", "--d-model", "32", "--d-ff", "64"]
    folders = ["--data-dir", f"{folder}/data", "--out-dir", f"{folder}/out"]
    args = add.command_line().parse_args([*small, *folders, *typed])
    vars(args).update(others)
    return args


def random_model():
    torch.manual_seed(0)
    return add.Adder(flags("", "--n-layer", "2")).double().eval()


def random_problems(n):
    return torch.randint(10, 100, (n, 2), generator=torch.Generator().manual_seed(0))


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.data = self.folder / "data/addition"
        self.data.mkdir(parents=True)

    def load(self, *typed):
        data = add.load_data(flags(self.folder, *typed))
        return {split: problems.tolist() for split, problems in data.items()}


class Attention(unittest.TestCase):
    def test_scaled_dot_product_is_pytorchs(self):
        causal = torch.ones(5, 5).tril().bool()
        padding = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()
        padding = padding[:, None, None]
        masks = [None, causal, padding, causal & padding]
        for mask, scale in itertools.product(masks, (1, 30)):  # e^900 overflows
            ours = (scale * torch.randn(3, 3, 2, 5, 8).double()).requires_grad_()
            theirs = ours.detach().clone().requires_grad_()
            output, weights = add.scaled_dot_product_attention(*ours, mask)
            expected = F.scaled_dot_product_attention(*theirs, attn_mask=mask)
            output.square().sum().backward()
            expected.square().sum().backward()
            assert_close([output, weights @ theirs[2]], [expected, expected])
            assert_close(ours.grad, theirs.grad)

    def test_multi_head_attention_is_pytorchs(self):
        ours = add.MultiHeadAttention(d_model=24, n_head=3).double()
        theirs = torch_attention(ours)
        x = torch.randn(2, 5, 24).double()
        memory = torch.randn(2, 7, 24).double()
        hidden = torch.ones(5, 5).triu(1).bool()
        for source, mask in ((x, None), (x, hidden), (memory, None)):
            output = ours(x, source, None if mask is None else ~mask)
            expected, weights = theirs(x, source, source, attn_mask=mask, average_attn_weights=False)
            assert_close([output, ours.weights], [expected, weights])
            *grads, last = torch.autograd.grad(output.square().sum(), ours.parameters())
            parameters = [theirs.in_proj_weight, theirs.out_proj.weight]
            expected = torch.autograd.grad(expected.square().sum(), parameters)
            assert_close([torch.cat(grads), last], list(expected))

    def test_model_is_pytorchs_transformer_and_does_not_look_ahead(self):
        model = random_model()
        source, target = add.tokenize(random_problems(64), model.args)
        logits = model(source, target)
        assert_close(logits, TorchAdder(model)(source, target))
        for t in range(3):
            changed = (target + 3 * (torch.arange(3) == t)) % 10
            same = (model(source, changed) == logits).all(dim=2)  # (64, 3)
            self.assertTrue((same == (torch.arange(3) <= t)).all())


class Data(Case):
    def test_tokens_are_those_of_the_assignment(self):
        problems = torch.tensor([[507, 159], [155, 491]])
        source, target = add.tokenize(problems, flags("", "--num-digits", "3"))
        self.assertEqual(source.tolist(), [[5, 0, 7, 10, 1, 5, 9], [1, 5, 5, 10, 4, 9, 1]])
        self.assertEqual(target.tolist(), [[0, 6, 6, 6], [0, 6, 4, 6]])

    def test_default_files(self):
        data = self.load("--num-digits", "3")
        files = b"".join((self.data / f"{split}.jsonl").read_bytes() for split in data)
        self.assertEqual(list(data), ["train", "val", "test"])
        self.assertEqual(hashlib.sha256(files).hexdigest(),
                         "823c7c71040d4dd8a6754b3470651b8d5753de729ba538b5e90a9fd83c934635")
        pairs = {tuple(sorted(pair)) for problems in data.values() for pair in problems}
        self.assertEqual(len(pairs), 14_000)  # none twice, none mirrored, none in two splits
        for split, problems in data.items():  # 99 comes of 1% of random columns of tens and units
            self.assertEqual(len(problems), 10_000 if split == "train" else 2_000)
            self.assertEqual((np.sum(problems, axis=1) % 100 == 99).mean() > 0.03, split == "train")
        for flag in ("seed", "num-digits", "n-train", "n-val", "n-test", "carry-chains"):
            other = f"made with {flag.replace('-', '_')} [0-9.]+; type that, .*--mode gendata"
            with self.assertRaisesRegex(UserError, other):
                self.load("--num-digits", "3", f"--{flag}", "1")

    def test_columns_of_carry_chains(self):
        """3 of 10 columns keep their digit. The others sum to nine or, if a digit makes it, ten."""
        rng = random.Random(1)
        for x in range(10):
            drawn = [add.add_carry_chain(111 * x, 333, 3, rng) for _ in range(2000)]
            digits = "".join(f"{b:03}" for b in drawn)
            for y in range(10):
                share = 0.3 * (y == 3) + 0.35 * (y == 9 - x) + 0.35 * (y == min(10 - x, 9))
                self.assertAlmostEqual(digits.count(str(y)) / 6000, share, delta=0.03)

    def test_numbers_of_any_length(self):
        for n in (1, 2, 15):  # of one digit there are 45 pairs
            typed = ["--mode", "gendata", "--num-digits", str(n), "--n-train", "25",
                     "--n-val", "10", "--n-test", "10"]
            problems = sum(self.load(*typed).values(), [])
            self.assertEqual({len(str(number)) for number in sum(problems, [])}, {n})
            self.assertNotEqual(sum(self.load(*typed, "--seed", "1").values(), []), problems)
        with self.assertRaisesRegex(UserError, "only 45 pairs; type fewer"):
            self.load(*typed, "--num-digits", "1", "--n-val", "11")

    def test_own_data_are_used_as_they_are(self):
        record = '{"input": [1, 2, 10, 3, 9], "target": [0, 5, 1]}'
        mirror = '{"input": [3, 9, 10, 1, 2], "target": [0, 5, 1]}'
        (self.data / "train.jsonl").write_text(f"{record}\n{record}\n{mirror}\n")
        (self.data / "val.json").write_text(f"[{mirror}, {record}]")
        (self.data / "test.jsonl").write_text(record)
        self.assertEqual(self.load(), {"train": [[12, 39], [12, 39], [39, 12]],
                                       "val": [[39, 12], [12, 39]], "test": [[12, 39]]})

    def test_a_wrong_record_is_named(self):
        good = {"input": [5, 0, 10, 7, 1], "target": [1, 2, 1]}
        wrong = [{}, {"input": good["input"]}, {"target": good["target"]}, [], 7, None, "5"]
        for tokens in ([5, 0, 11, 7, 1], [5, 0, 10, 7], [5, 0.0, 10, 7, 1], [5, -1, 10, 7, 1],
                       [50, 7, 10, 7, 1], [0, 5, 10, 7, 1], ["5", "0", 10, 7, 1], "50+71", None):
            wrong.append(good | {"input": tokens})
        for tokens in ([1, 2, 2], [1, 2], ["1", "2", "1"], "121", None):
            wrong.append(good | {"target": tokens})
        for record in wrong:
            (self.data / "train.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(record)}")
            with self.assertRaisesRegex(UserError, "addition/train, record 2: .+; mend it"):
                self.load()
        (self.data / "train.json").write_text(json.dumps([good, good, record]))
        with self.assertRaisesRegex(UserError, "addition/train, record 3: .+; mend it"):
            self.load()


class ScoringAndTraining(Case):
    def test_scores_are_those_of_greedy_decoding(self):
        problems = torch.cartesian_prod(torch.arange(10, 100), torch.arange(10, 100))
        for model in MODELS:
            model = copy.deepcopy(model).double()
            source, target = add.tokenize(problems, model.args)
            answer = torch.zeros_like(target)
            with torch.no_grad():
                for t in range(3):  # no digit depends on those after it, as tested above
                    answer[:, t] = model(source, answer)[:, t].argmax(dim=1)
                chances = model(source, target).softmax(dim=2).gather(2, target[:, :, None])
            answers = answer @ torch.tensor([100, 10, 1])
            right = (answers == problems.sum(1)).double().mean().item()
            self.assertTrue(0.4 < right < 0.95, right)  # it has learned something, not everything
            self.assertEqual(add.solve(model, problems), answers.tolist())
            assert_close(add.evaluate(model, problems), (-chances.log().mean().item(), right))
            self.assertEqual(add.exact_match(model, problems), right)  # teacher-forced
            self.assertEqual(add.count_wrong(model), (round((1 - right) * 8100), 8100))

    def train(self, *typed, **others):
        args = flags(self.folder, "--n-train", "20", "--n-val", "6", "--n-test", "7",
                     "--batch-size", "5", "--steps", "60", *typed, **others)
        add.train(args)
        out = self.folder / "out/addition"
        log = json.loads((out / "training_log.json").read_text())
        return add.load(out / "best_model.pth").state_dict(), log

    def test_training(self):
        """With made-up scores: the best by accuracy, then by loss, are those after step 30."""
        scores = [(0.1, 0.5), (0.5, 0.9), (0.4, 0.9), (0.45, 0.9), (0.3, 0.7), (0.2, 0.1),
                  (0.0, 0.123), (0.0, 0.0), (0.0, 0.0)]  # of the test, and of a second training
        seen = []
        rates = []
        evaluate = add.evaluate

        def score(model, problems):
            evaluate(model, problems)
            seen.append((len(problems), copy.deepcopy(model.state_dict())))
            return scores[len(seen) - 1]

        def note_rates(optimizer, *_):
            rates.append({group["lr"] for group in optimizer.param_groups})

        forward = add.Adder.forward
        hook = register_optimizer_step_pre_hook(note_rates)
        self.enterContext(mock.patch.object(add, "evaluate", score))
        with mock.patch.object(add.Adder, "forward", autospec=True, side_effect=forward) as spy:
            best, log = self.train("--lr", "0.02", warmup=20, eval_every=10)
        hook.remove()
        expected = [0.02 * step / 20 for step in range(1, 21)]  # full from step 20 to step 25
        expected += [0.02] * 5 + [0.02 * rest / 36 for rest in range(35, 0, -1)]
        np.testing.assert_allclose([rate for (rate,) in rates], expected)
        self.assertEqual([{row["lr"]} for row in log["history"]], rates[9::10])
        self.assertEqual([n for n, _ in seen], [6, 6, 6, 6, 6, 6, 7])
        assert_close([best, best], [seen[2][1], seen[6][1]], rtol=0, atol=0)
        self.assertEqual(log["best"], log["history"][2])
        self.assertEqual(log["test"], {"n": 7, "accuracy": 0.123})

        # An epoch, of four batches, shows every problem once, in either order.
        batches = [call.args[1] for call in spy.call_args_list if len(call.args[1]) == 5]
        shown = torch.cat(batches) @ torch.tensor([[10, 0], [1, 0], [0, 0], [0, 10], [0, 1]])
        train = add.load_data(flags(self.folder, "--n-train", "20", "--n-val", "6", "--n-test", "7"))["train"].tolist()
        swapped = [pair not in train for pair in shown.tolist()]
        self.assertTrue(100 < sum(swapped) < 200)
        for epoch in shown.sort(dim=1).values.split(20):
            self.assertEqual(sorted(epoch.tolist()), sorted(sorted(pair) for pair in train))

        # Evaluating less often changes no weight.
        last, _ = self.train("--lr", "0.02", warmup=20, eval_every=60)
        assert_close(last, seen[5][1], rtol=0, atol=0)

    def test_a_loss_that_is_not_finite(self):
        with self.assertRaisesRegex(UserError, "not finite at step 60; type a smaller --lr"):
            self.train("--lr", "1e30")
        self.assertFalse((self.folder / "out").exists())

    def test_weight_decay_is_for_matrices(self):
        """Without gradients it is all that happens: they shrink by 1 - rate x decay in a step."""
        model = random_model()
        before = copy.deepcopy(model.state_dict())
        optimizer = common.adamw(model, flags("", lr=0.1, weight_decay=0.5), beta2=0.95)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        for name, p in model.state_dict().items():
            spared = "norm" in name or name.endswith("bias")
            assert_close(p, before[name] * (1 if spared else 0.95))


class LookingInside(unittest.TestCase):
    def logits(self, model, problems, replace={}):
        """What add.run makes its predictions of."""
        seen = []
        hook = model.to_logits.register_forward_hook(lambda _, x, logits: seen.append(logits))
        predictions, _, _ = add.run(model, problems, replace)
        hook.remove()
        self.assertTrue(torch.equal(predictions, seen[0].argmax(dim=2)))
        return seen[0]

    def test_zeroing_a_head_is_zeroing_its_slice_of_the_output_projection(self):
        model = random_model()
        problems = random_problems(50)
        before = self.logits(model, problems)
        for stage, layer, h in itertools.product(("enc", "dec", "cross"), range(2), range(2)):
            changed = copy.deepcopy(model)
            block = changed.encoder[layer] if stage == "enc" else changed.decoder[layer]
            attention = block.cross_attention if stage == "cross" else block.self_attention
            attention.output.weight.data[:, 16 * h:16 * h + 16] = 0
            expected = self.logits(changed, problems)
            zeroed = self.logits(model, problems, {f"{stage}.L{layer}.H{h}": 0})
            self.assertTrue(torch.equal(zeroed, expected))
            self.assertFalse(torch.equal(zeroed, before))

    def test_patching_reproduces_the_other_run_and_leaves_no_trace(self):
        """Of problems of the same sum, only cross-attention tells the decoder which one it is."""
        model = random_model()
        problems = random_problems(50)
        other = problems + torch.tensor([[1, -1]])
        before = model(*add.tokenize(problems, model.args))
        expected = model(*add.tokenize(other, model.args))
        _, _, outputs = add.run(model, other)
        cross = {head: output for head, output in outputs.items() if head.startswith("cross")}
        self.assertEqual((len(outputs), len(cross)), (12, 4))
        self.assertTrue(torch.equal(self.logits(model, problems, cross), expected))
        self.assertFalse(torch.equal(before, expected))
        with mock.patch.object(model, "decode", side_effect=ZeroDivisionError):
            with self.assertRaises(ZeroDivisionError):
                add.run(model, problems, outputs)
        self.assertTrue(torch.equal(model(*add.tokenize(problems, model.args)), before))
        for module in model.modules():
            self.assertFalse(getattr(module, "replace", {}))

    def test_ablation(self):
        """The mean of a head is one over problems of validation: each token keeps its own."""
        for model, found in zip(MODELS, TABLES["ablation"].values()):
            def accuracy(replace):
                digits = self.logits(model, DATA["test"], replace).argmax(dim=2)
                answers = digits @ torch.tensor([100, 10, 1])
                return (answers == DATA["test"].sum(1)).double().mean().item()

            _, _, outputs = add.run(model, DATA["val"])
            expected = {"n": 400, "baseline": accuracy({}), "heads": {}}
            for head in HEADS:
                mean = outputs[head].mean(dim=0, keepdim=True)
                expected["heads"][head] = {"zero": accuracy({head: 0}), "mean": accuracy({head: mean})}
            expected["ranking"] = sorted(HEADS, key=lambda head: expected["heads"][head]["mean"])
            self.assertEqual(found, expected)

    def test_pruning(self):
        """Made-up accuracies: validation and test rank differently, and two heads stand in for
        each other on test."""
        costs = {"val": (0.5, 0.0, 0.2, 0.1, 0.3, 0.4), "test": (0.2, 0.02, 0.0, -0.015, 0.01, 0.1)}

        def exact_match(model, problems, replace={}):
            zeros = [head for head, output in replace.items() if output == 0]
            score = 1 - sum(costs[problems][HEADS.index(head)] for head in zeros)
            return score - 0.3 * (problems == "test" and {HEADS[2], HEADS[4]} <= set(zeros))

        heads = {head: {"zero": exact_match(None, "test", {head: 0})} for head in HEADS}
        with mock.patch.object(add, "exact_match", exact_match):
            found = add.prune(None, {"val": "val", "test": "test"}, {"baseline": 1, "heads": heads})
        self.assertEqual(found["order"], [HEADS[k] for k in (1, 3, 2, 4, 5, 0)])
        np.testing.assert_allclose(found["accuracy"],
                                   [1, 0.98, 0.995, 0.995, 0.685, 0.585, 0.385])
        self.assertEqual(found["prunable"], 3)  # though one removal alone costs two points
        self.assertEqual(found["removable_alone"], [HEADS[k] for k in (2, 3, 4)])
        self.assertAlmostEqual(found["accuracy_without_all_of_those"], 0.705)

    def test_carry_pairs_are_what_they_say(self):
        for origin, destination in itertools.combinations(range(4), 2):
            clean, other = add.carry_pairs(destination, origin, num_digits=3, n_pairs=500)
            odd = torch.arange(500)[:, None] % 2 == 1
            pairs = [torch.where(odd, other, clean), torch.where(odd, clean, other)]
            self.assertTrue((clean >= 100).all() and (clean <= 999).all())
            self.assertGreater(len(clean.unique()), 100)
            for k in range(3):
                digits = [problems // 10 ** k % 10 for problems in pairs]
                self.assertTrue(((digits[0] == digits[1]).all(dim=1) == (k != origin)).all())
                if origin <= k < destination:
                    for carry, problems in enumerate(pairs):
                        carries = (problems % 10 ** (k + 1)).sum(1) // 10 ** (k + 1)
                        self.assertTrue((carries == carry).all())
            without, with_carry = [problems.sum(1) // 10 ** destination for problems in pairs]
            self.assertTrue((with_carry == without + 1).all())  # this digit changes
            self.assertTrue((without % 10 != 9).all())          # and none before it

    def test_flip_rates(self):
        """Only pairs count of which the model gets both digits right without patching."""
        for model, routes in zip(MODELS, TABLES["carry"].values()):
            self.assertEqual(" ".join(routes), "units to tens units to hundreds tens to hundreds")
            for (origin, destination), rates in zip(((0, 1), (0, 2), (1, 2)), routes.values()):
                clean, other = add.carry_pairs(destination, origin, 2, 1000)
                before, after = [x.sum(1) // 10 ** destination % 10 for x in (clean, other)]
                _, _, outputs = add.run(model, other)

                def predicted(problems, *heads):
                    digits, _, _ = add.run(model, problems, {head: outputs[head] for head in heads})
                    return digits[:, 2 - destination]

                usable = (predicted(clean) == before) & (predicted(other) == after)
                self.assertTrue(200 < usable.sum() < 1000)
                expected = {"all of enc": predicted(clean, *HEADS[:2])}
                expected |= {head: predicted(clean, head) for head in HEADS}
                for name, digits in expected.items():
                    share = (digits == after)[usable].double().mean().item()
                    self.assertEqual(rates.pop(name), share)
                self.assertEqual(rates, {"all of dec": 0, "all of cross": 1})

    def test_figures_show_the_first_model_seed(self):
        with mock.patch.object(common, "save") as save:
            add.draw_examples(MODELS[0], [(34, 15)], flags("no folder"))
        path, example = save.call_args.args
        self.assertEqual(path.name, "example_34+15.png")
        labels = {"enc": ("34+15", "34+15"), "dec": ("049", ["start", "0", "4"]), "cross": ("049", "34+15")}
        weights = add.attention_of(MODELS[0], [(34, 15)])
        for ax, head in zip(example.axes, HEADS):
            ticks = [[text.get_text() for text in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis)]
            self.assertEqual(ticks, [list(labels) for labels in labels[head.split(".")[0]]])
            self.assertEqual(ax.get_title(), head)
            np.testing.assert_allclose(ax.images[0].get_array(), weights[head][0], atol=1e-6)
        mean = TABLES["attention"]["1"]
