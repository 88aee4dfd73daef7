"""The adder against things we did not write: PyTorch, integer arithmetic, brute force."""
import copy
import hashlib
import itertools
import json
import math
import random
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.testing import assert_close

import attention_addition as add
import common
from tests.reference import TorchAdder, torch_attention

SMALL = {"num_digits": 2, "n_head": 2, "d_model": 32, "d_ff": 64}
HEADS = ["enc.L0.H0", "enc.L0.H1", "dec.L0.H0", "dec.L0.H1", "cross.L0.H0", "cross.L0.H1"]
ALL = torch.cartesian_prod(torch.arange(10, 100), torch.arange(10, 100))  # two-digit problems
MODELS, DATA, SAVED = {}, {}, {}  # {model seed: model}, {split: problems}, {name of file: content}

def setUpModule():
    """Train two models that are right on some problems and wrong on others, and look inside."""
    unittest.enterModuleContext(mock.patch("builtins.print"))
    folder = unittest.enterModuleContext(tempfile.TemporaryDirectory())
    common.prepare("train")
    args = flags(folder, **SMALL, n_train=3000, n_val=300, n_test=400, steps=260, model_seeds=2)
    DATA.update(add.load_data(args))
    with mock.patch.object(common, "save", wraps=common.save) as save:
        for job in common.each_seed(args):
            add.train(job)
            MODELS[str(job.model_seed)] = add.load(Path(folder, "out/addition", job.file))
        add.analyze(args)
    for path, thing in [call.args for call in save.call_args_list]:
        thing = json.loads(path.read_text()) if path.suffix == ".json" else thing
        SAVED[path.name] = SAVED[f"{path.parent.name}/{path.name}"] = thing  # two are carry.png

def flags(folder, **changes):
    args = add.command_line().parse_args([])
    vars(args).update(data_dir=f"{folder}/data", out_dir=f"{folder}/out", **changes)
    return args

def random_model():
    torch.manual_seed(0)
    return add.Adder(flags("", **SMALL, n_layer=2)).double().eval()

class DataAndTraining(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def test_default_files(self):
        data = add.load_data(flags(self.folder))
        content = b"".join(Path(self.folder, f"data/addition/{x}.jsonl").read_bytes() for x in data)
        self.assertEqual(hashlib.sha256(content).hexdigest(),
                         "823c7c71040d4dd8a6754b3470651b8d5753de729ba538b5e90a9fd83c934635")
        pairs = torch.cat(list(data.values())).sort().values.unique(dim=0)
        self.assertEqual(len(pairs), 14_000)  # none twice, none mirrored, none in two splits
        for split, n in (("train", 10_000), ("val", 2_000), ("test", 2_000)):
            self.assertEqual(len(data[split]), n)
            share = (data[split].sum(1) % 100 == 99).double().mean()  # 1% of random problems
            self.assertEqual(share > 0.03, split == "train")
        with self.assertRaisesRegex(common.UserError, "only 45 pairs; type fewer"):
            add.load_data(flags(self.folder, mode="gendata", num_digits=1))

    def test_columns_of_carry_chains(self):
        """3 of 10 columns keep their digit. The others sum to nine or, if a digit makes it, ten."""
        rng = random.Random(1)
        for x in range(10):
            chains = [f"{add.add_carry_chain(111 * x, 333, 3, rng):03}" for _ in range(2000)]
            for y in range(10):
                share = 0.3 * (y == 3) + 0.35 * (y == 9 - x) + 0.35 * (y == min(10 - x, 9))
                self.assertAlmostEqual("".join(chains).count(str(y)) / 6000, share, delta=0.03)

    def test_own_data_are_used_as_they_are(self):
        record = {"input": [5, 0, 7, 10, 1, 5, 9], "target": [0, 6, 6, 6]}
        mirror = {"input": [1, 5, 9, 10, 5, 0, 7], "target": [0, 6, 6, 6]}
        common.save(self.folder / "data/addition/train.jsonl", [record, record, mirror])
        common.save(self.folder / "data/addition/val.json", [mirror, record])
        common.save(self.folder / "data/addition/test.jsonl", [record])
        train, val, test = add.load_data(flags(self.folder)).values()
        self.assertEqual(train.tolist(), [[507, 159], [507, 159], [159, 507]])
        self.assertEqual([*val.tolist(), *test.tolist()], [[159, 507], [507, 159], [507, 159]])
        source, target = add.tokenize(test, flags(""))
        self.assertEqual({"input": source[0].tolist(), "target": target[0].tolist()}, record)

    def train(self, **changes):
        """Ten steps on 20 problems; the weights that were saved, the log, and the 20 problems."""
        args = flags(self.folder, **SMALL, n_train=20, n_val=6, n_test=7, batch_size=5, steps=10,
                     warmup=4, **changes)
        add.train(args)
        out = self.folder / "out/addition"
        log = json.loads((out / "training_log.json").read_text())
        return add.load(out / "best_model.pth").state_dict(), log, add.load_data(args)["train"]

    def test_a_training(self):
        """By made-up scores the third validation is the best: by accuracy, then by loss."""
        scores = [(0.1, 0.5), (0.5, 0.9), (0.4, 0.9), (0.45, 0.9)] + [(0.3, 0.7)] * 9
        seen, rates = [], []
        forward, evaluate = add.Adder.forward, add.evaluate

        def score(model, problems):
            evaluate(model, problems)
            seen.append((len(problems), copy.deepcopy(model.state_dict())))
            return scores[len(seen) - 1]

        self.enterContext(register_optimizer_step_pre_hook(
            lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])))
        self.enterContext(mock.patch.object(add, "evaluate", score))
        with mock.patch.object(add.Adder, "forward", autospec=True, side_effect=forward) as spy:
            best, log, train = self.train(lr=0.02)
        expected = [0.005, 0.01, 0.015, 0.02] + [0.02 * rest / 6 for rest in (6, 5, 4, 3, 2, 1)]
        assert_close(rates, [[rate, rate] for rate in expected])  # of matrices and of vectors
        self.assertEqual([row["lr"] for row in log["history"]], [x for x, _ in rates[1::2]])
        self.assertEqual([n for n, _ in seen], [6] * 5 + [7])
        assert_close([best, best], [seen[2][1], seen[5][1]], rtol=0, atol=0)
        self.assertEqual((log["best"], log["test"]["accuracy"]), (log["history"][2], 0.7))
        # An epoch, of four batches, shows every problem once, in either order.
        batches = [call.args[1] for call in spy.call_args_list if len(call.args[1]) == 5]
        shown = torch.cat(batches) @ torch.tensor([[10, 0], [1, 0], [0, 0], [0, 10], [0, 1]])
        self.assertTrue(10 < sum(pair in train.tolist() for pair in shown.tolist()) < 40)
        for epoch in shown[:40].sort().values.split(20):
            self.assertEqual(sorted(epoch.tolist()), sorted(train.sort().values.tolist()))
        self.assertNotIn("exhaustive", log)  # exact match is not the 0.7 that evaluate() tells

    def test_weight_decay_is_for_matrices(self):
        """Without gradients it is all that happens: they shrink by 1 - rate x decay in a step."""
        model = random_model()
        before = copy.deepcopy(model.state_dict())
        optimizer = common.adamw(model, flags("", lr=0.1, weight_decay=0.5), beta2=0.95)
        (0 * sum(p.sum() for p in model.parameters())).backward()
        optimizer.step()
        for name, p in model.state_dict().items():
            spared = "norm" in name or name.endswith("bias")
            assert_close(p, before[name] * (1 if spared else 0.95))

class Model(unittest.TestCase):
    def test_scaled_dot_product_is_pytorchs(self):
        causal = torch.ones(5, 5).tril().bool()
        present = torch.arange(5) < torch.tensor([5, 2, 4])[:, None, None, None]
        for mask, scale in itertools.product((None, causal, present, causal & present), (1, 30)):
            ours = (scale * torch.randn(3, 3, 2, 5, 8).double()).requires_grad_()  # e^900 overflows
            theirs = ours.detach().clone().requires_grad_()
            output, weights = add.scaled_dot_product_attention(*ours, mask)
            expected = torch.nn.functional.scaled_dot_product_attention(*theirs, attn_mask=mask)
            (output.square().sum() + expected.square().sum()).backward()
            assert_close([output, weights @ ours[2], ours.grad], [expected, expected, theirs.grad])

    def test_multi_head_attention_is_pytorchs(self):
        ours = add.MultiHeadAttention(d_model=24, n_head=3).double()
        x, memory = torch.randn(2, 5, 24).double(), torch.randn(2, 7, 24).double()
        hidden = torch.ones(5, 5).triu(1).bool()
        for source, mask in ((x, None), (x, hidden), (memory, None)):
            output = ours(x, source, None if mask is None else ~mask)
            expected, weights = torch_attention(ours)(x, source, source, attn_mask=mask,
                                                      average_attn_weights=False)
            assert_close([output, ours.weights], [expected, weights])

    def test_model_is_pytorchs_transformer_and_does_not_look_ahead(self):
        for model in (random_model(), copy.deepcopy(MODELS["1"]).double()):  # its norms differ
            source, target = add.tokenize(DATA["val"], model.args)
            logits = model(source, target)
            theirs = TorchAdder(model)(source, target)
            assert_close(logits, theirs)
            w = model.token_embedding.weight  # of both; its gradient passes everything else
            assert_close(*[torch.autograd.grad(y.square().sum(), w) for y in (logits, theirs)])
            for t in range(3):
                changed = (target + 3 * (torch.arange(3) == t)) % 10
                same = (model(source, changed) == logits).all(dim=2)  # (N, 3)
                self.assertTrue((same == (torch.arange(3) <= t)).all())

    def test_scores_are_those_of_greedy_decoding(self):
        for model in MODELS.values():
            source, target = add.tokenize(ALL, model.args)
            answer = torch.zeros_like(target)
            for t in range(3):  # no digit depends on those after it, as tested above
                answer[:, t] = model(source, answer)[:, t].argmax(dim=1)
            answers = answer @ torch.tensor([100, 10, 1])
            right = (answers == ALL.sum(1)).double().mean().item()
            self.assertTrue(0.4 < right < 0.95, right)  # it has learned something, not everything
            self.assertEqual(add.solve(model, ALL), answers.tolist())
            self.assertEqual(add.exact_match(model, ALL), right)  # teacher-forced
            self.assertEqual(add.count_wrong(model), (round(8100 * (1 - right)), 8100))
            logits = model(source, target).transpose(1, 2)
            loss = torch.nn.functional.cross_entropy(logits, target).item()
            assert_close(add.evaluate(model, ALL), (loss, right), rtol=1e-5, atol=0)

class LookingInside(unittest.TestCase):
    @mock.patch("torch.Tensor.argmax", lambda logits, dim: logits)  # so add.run returns logits
    def test_replacing_heads_which_leaves_no_trace(self):
        model = random_model()
        problems = DATA["val"]
        before = model(*add.tokenize(problems, model.args))
        # Zeroing a head is zeroing its slice of the output projection.
        for stage, layer, h in itertools.product(("enc", "dec", "cross"), range(2), range(2)):
            changed = copy.deepcopy(model)
            block = changed.encoder[layer] if stage == "enc" else changed.decoder[layer]
            attention = block.cross_attention if stage == "cross" else block.self_attention
            attention.output.weight.data[:, 16 * h:16 * h + 16] = 0
            zeroed, _, _ = add.run(model, problems, {f"{stage}.L{layer}.H{h}": 0})
            self.assertTrue(torch.equal(zeroed, add.run(changed, problems)[0]))
            self.assertFalse(torch.equal(zeroed, before))
        # Of problems of the same sum, only cross-attention tells the decoder which one it is.
        other, _, outputs = add.run(model, problems + torch.tensor([[1, -1]]))
        cross = {head: output for head, output in outputs.items() if head.startswith("cross")}
        self.assertTrue(torch.equal(add.run(model, problems, cross)[0], other))
        self.assertFalse(torch.equal(other, before))
        self.assertFalse(any(getattr(module, "replace", {}) for module in model.modules()))
        self.assertTrue(torch.equal(model(*add.tokenize(problems, model.args)), before))

    def test_tables(self):
        def right(replace={}):
            digits, _, _ = add.run(model, DATA["test"], replace)
            return (digits == add.to_digits(DATA["test"].sum(1), 3)).double()  # (400, 3)
        for seed, model in MODELS.items():
            _, weights, _ = add.run(model, DATA["test"])
            _, _, outputs = add.run(model, DATA["val"])
            table = {}
            for head in HEADS:
                mean = right({head: outputs[head].mean(dim=0, keepdim=True)})  # a mean per token
                table[head] = {"zero": right({head: 0}).prod(dim=1).mean().item(),
                               "mean": mean.prod(dim=1).mean().item()}
                for column, name in ((1, "tens"), (2, "hundreds")):
                    carry = add.carry_into(DATA["test"], column)
                    digits = mean[:, 2 - column]
                    table[head][name] = [digits[carry == x].mean().item() for x in (False, True)]
                weights[head] = weights[head].double().mean(dim=0).tolist()
            ablation = {"n": 400, "baseline": right().prod(dim=1).mean().item(), "heads": table,
                        "ranking": sorted(HEADS, key=lambda head: table[head]["mean"])}
            explained, difference = add.compare_carries(model, DATA["test"])
            heads = add.describe(weights, ["Ta", "Ua", "+", "Tb", "Ub"], [*"HTU"], ablation,
                                 explained, SAVED["carry.json"][seed])
            found = {"attention": weights, "ablation": ablation, "heads": heads, "diff": difference,
                     "pruning": add.prune(model, DATA, ablation)}
            self.assertEqual({name: SAVED[f"{name}.json"][seed] for name in found}, found)
        for name in [*found, "carry"]:
            self.assertEqual(list(SAVED[f"{name}.json"]), ["1", "2"])

    def test_pruning(self):
        """With made-up accuracies; on test two heads stand in for each other."""
        costs = {"val": (0.5, 0, 0.2, 0.1, 0.3, 0.4), "test": (0.2, 0.02, 0, -0.015, 0.01, 0.1)}
        def exact_match(model, problems, replace={}):
            zeros = [k for k in range(6) if replace.get(HEADS[k], 1) == 0]
            both = problems == "test" and {2, 4} <= set(zeros)
            return 1 - 0.3 * both - sum(costs[problems][k] for k in zeros)

        model, data = MODELS["1"], {"val": "val", "test": "test"}
        heads = {head: {"zero": 1 - cost} for head, cost in zip(HEADS, costs["test"])}
        with mock.patch.object(add, "exact_match", exact_match):
            found = add.prune(model, data, {"baseline": 1, "heads": heads})
        self.assertEqual(found["order"], [HEADS[k] for k in (1, 3, 2, 4, 5, 0)])
        accuracy = [*found["accuracy"], found["accuracy_without_all_of_those"]]
        assert_close(accuracy, [1, 0.98, 0.995, 0.995, 0.685, 0.585, 0.385, 0.705])
        self.assertEqual((found["prunable"], found["removable_alone"]), (3, HEADS[2:5]))
        self.assertLess(add.count_wrong(model)[0], found["wrong_without_those"])  # all heads again
        digits, _, _ = add.run(model, ALL, dict.fromkeys(HEADS[2:5], 0))  # it is not made up
        wrong = (digits @ torch.tensor([100, 10, 1]) != ALL.sum(1)).sum()
        self.assertEqual([found["wrong_without_those"], found["n_problems"]], [wrong, 8100])

    def test_carry_pairs_are_what_they_say(self):
        ends = itertools.combinations(range(4), 2)
        nines = (None, "put in", "taken out")
        for (origin, end), kind, nine in itertools.product(ends, ("flip", "control"), nines):
            pairs = torch.stack(add.carry_pairs(origin, end, 4, kind, nine))  # (2, 1000, 2)
            self.assertTrue(pairs.min() > 999 and pairs.max() < 10_000)
            for k in range(4):
                clean, other = pairs // 10 ** k % 10
                same = (clean == other).all(dim=1).sum()
                self.assertTrue(same < 100 if k == origin else same == 1000)
                passing = 1000 if origin < k < end or (nine and k == end) else 0
                passes = (clean.sum(1) == 9).sum()
                self.assertTrue(passes == passing if origin <= k <= end else 50 < passes < 200)
            clean, other = (pairs % 10 ** (origin + 1)).sum(2) // 10 ** (origin + 1)  # carries
            self.assertEqual(clean.sum(), {None: 500, "put in": 0, "taken out": 1000}[nine])
            self.assertTrue(((clean != other) == (kind == "flip")).all())
            # From the destination on the sums differ by the carry, further left only with a nine.
            x, y = pairs.sum(2) // 10 ** end
            self.assertTrue((y - x == other - clean).all())
            self.assertTrue(((x // 10 == y // 10) == (kind == "control" or not nine)).all())

    def test_patch_rates(self):
        """Only pairs count of which the model gets both digits right without patching."""
        def predicted(problems, name="none"):
            heads = [head for head in HEADS if head.startswith(name.removeprefix("all of "))]
            digits, _, _ = add.run(model, problems, {head: outputs[head] for head in heads})
            return digits[:, 2 - end]
        routes = {"units to tens": (0, 1, None), "units to tens, nine, put in": (0, 1, "put in"),
                  "units to tens, nine, taken out": (0, 1, "taken out"),
                  "units to hundreds": (0, 2, None), "tens to hundreds": (1, 2, None)}
        for (seed, model), kind in itertools.product(MODELS.items(), ("flip", "control")):
            self.assertEqual(list(SAVED["carry.json"][seed]), list(routes))
            for route, (origin, end, nine) in routes.items():
                clean, other = add.carry_pairs(origin, end, 2, kind, nine)
                before, after = [x.sum(1) // 10 ** end % 10 for x in (clean, other)]
                _, _, outputs = add.run(model, other)
                usable = (predicted(clean) == before) & (predicted(other) == after)
                rates = SAVED["carry.json"][seed][route][kind]
                for name in [*HEADS, "all of enc", "all of dec", "all of cross"]:
                    digit = predicted(clean, name)[usable]
                    hit = digit == after[usable] if kind == "flip" else digit != before[usable]
                    self.assertEqual(rates[name], hit.double().mean().item())
                known = rates["all of dec"], rates["all of cross"]
                self.assertTrue(known == (0, kind == "flip") or (nine and kind == "flip"))

    def test_compare_carries(self):
        """Made-up heads say the carry, the carry and as much noise, noise, and nothing."""
        schoolbook = [ALL[:, 0] < 0, (ALL % 10).sum(1) > 9, ALL.sum(1) > 99]
        for column in range(3):
            self.assertTrue(torch.equal(add.carry_into(ALL, column), schoolbook[column]))
        carry = torch.stack(schoolbook[::-1], dim=1)[..., None].float()  # (8100, 3, 1)
        noise = carry[torch.randperm(8100)]
        said = [2 - 3 * carry, torch.cat([5 * carry, 5 * noise], dim=2), noise, 0 * noise]
        outputs = {f"cross.L0.H{h}": output for h, output in enumerate(said)}
        change = torch.rand(4, 3, 5)  # of the weights, with a carry
        weights = dict(zip(outputs, change[:, None] * carry + 0.01 * torch.randn(4, 8100, 3, 5)))
        made_up = None, weights, {"enc.L0.H0": carry, **outputs}
        with mock.patch.object(add, "run", return_value=made_up):
            explained, difference = add.compare_carries(MODELS["1"], ALL)
        assert_close(explained["cross.L0.H0"], {"tens": 1.0, "hundreds": 1.0}, rtol=0, atol=1e-12)
        shares = [[*row.values()] for row in explained.values()]
        expected = [[x, x] for x in (1.0, 0.5, 0.0, 0.0)]
        assert_close(shares, expected, rtol=0, atol=0.01)
        change[:, 2] = 0
        assert_close(torch.tensor([*difference.values()]), change, rtol=0, atol=2e-3)

    def test_describe(self):
        """On made-up tables. Each head is just above the threshold on a route of its own."""
        reads = {"enc.L0.H0": ["ac", "bb", "ca"], "dec.L0.H0": ["xy", "yx", ["z", "start"]],
                 "cross.L0.H0": ["xc", "yb", "za"]}
        attention = dict.fromkeys(reads, torch.eye(3).flip(0).tolist())
        ablation = {"baseline": 0.75, "heads": dict.fromkeys(reads, {"zero": 0, "mean": 0.5})}
        flip, control = dict.fromkeys(reads, 0.93), dict.fromkeys(reads, 0.031)
        routes = {head: {"flip": flip, "control": {**control, head: 0.029}} for head in reads}
        said = {"cross.L0.H0": {"tens": 7}}
        found = add.describe(attention, "abc", "xyz", ablation, said, routes)
        expected = {head: {"reads": dict(pairs), "points lost": 25, "moves alone": [head],
                           "variance explained": {}} for head, pairs in reads.items()}
        expected["cross.L0.H0"]["variance explained"] = said["cross.L0.H0"]
        self.assertEqual(found, expected)
