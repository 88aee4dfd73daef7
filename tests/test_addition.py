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

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.testing import assert_close

import attention_addition as add
import common
from tests.reference import TorchAdder, torch_attention

SMALL = {"num_digits": 2, "n_head": 2, "d_model": 32, "d_ff": 64}
HEADS = ["enc.L0.H0", "enc.L0.H1", "dec.L0.H0", "dec.L0.H1", "cross.L0.H0", "cross.L0.H1"]
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
        SAVED[path.name] = json.loads(path.read_text()) if path.suffix == ".json" else thing

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
        for flag in ("seed", "num_digits", "n_train", "n_val", "n_test", "carry_chains"):
            with self.assertRaisesRegex(common.UserError, f"made with {flag} [0-9.]+; type that, "):
                add.load_data(flags(self.folder, **{flag: 1}))
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

    def test_a_wrong_record_is_named(self):
        good = {"input": [5, 0, 10, 7, 1], "target": [1, 2, 1]}
        wrong = [{"input": good["input"]}, {"target": good["target"]}, [good["input"]], 7, None]
        for tokens in ([5, 0, 11, 7, 1], [5, 0, 10, 7], [5, 0.0, 10, 7, 1], [50, 7, 10, 7, 1],
                       [0, 5, 10, 7, 1], ["5", "0", 10, 7, 1], "50+71", None):
            wrong.append({**good, "input": tokens})
        for tokens in ([1, 2, 2], [1, 2], "121", None):
            wrong.append({**good, "target": tokens})
        for record in wrong:
            common.save(self.folder / "data/addition/train.jsonl", [good, record])
            with self.assertRaisesRegex(common.UserError, "addition/train, record 2: .+; mend it"):
                add.load_data(flags(self.folder, **SMALL))

    def train(self, **changes):
        """Ten steps on 20 problems; the weights that were saved, the log, and the 20 problems."""
        args = flags(self.folder, **SMALL, n_train=20, n_val=6, n_test=7, batch_size=5, steps=10,
                     warmup=4, **changes)
        add.train(args)
        out = self.folder / "out/addition"
        log = json.loads((out / "training_log.json").read_text())
        return add.load(out / "best_model.pth").state_dict(), log, add.load_data(args)["train"]

    def test_a_training(self):
        """By made-up scores the weights of step 3 are the best: by accuracy, then by loss."""
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
            best, log, train = self.train(lr=0.02, eval_every=1)
        expected = [0.005, 0.01, 0.015, 0.02] + [0.02 * rest / 6 for rest in (6, 5, 4, 3, 2, 1)]
        assert_close(rates, [[rate, rate] for rate in expected])  # of matrices and of vectors
        self.assertEqual([row["lr"] for row in log["history"]], [rate for rate, _ in rates])
        self.assertEqual([n for n, _ in seen], [6] * 10 + [7])
        assert_close([best, best], [seen[2][1], seen[10][1]], rtol=0, atol=0)
        self.assertEqual((log["best"], log["test"]["accuracy"]), (log["history"][2], 0.7))
        # An epoch, of four batches, shows every problem once, in either order.
        batches = [call.args[1] for call in spy.call_args_list if len(call.args[1]) == 5]
        shown = torch.cat(batches) @ torch.tensor([[10, 0], [1, 0], [0, 0], [0, 10], [0, 1]])
        self.assertTrue(10 < sum(pair in train.tolist() for pair in shown.tolist()) < 40)
        for epoch in shown[:40].sort().values.split(20):
            self.assertEqual(sorted(epoch.tolist()), sorted(train.sort().values.tolist()))
        last, _, _ = self.train(lr=0.02, eval_every=10)  # evaluating less often changes no weight
        assert_close(last, seen[9][1], rtol=0, atol=0)

    def test_a_loss_that_is_not_finite(self):
        with self.assertRaisesRegex(common.UserError, "not finite at step 10; type a smaller --lr"):
            self.train(lr=1e30)
        self.assertFalse((self.folder / "out").exists())

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
        problems = torch.cartesian_prod(torch.arange(10, 100), torch.arange(10, 100))
        for model in MODELS.values():
            source, target = add.tokenize(problems, model.args)
            answer = torch.zeros_like(target)
            for t in range(3):  # no digit depends on those after it, as tested above
                answer[:, t] = model(source, answer)[:, t].argmax(dim=1)
            answers = answer @ torch.tensor([100, 10, 1])
            right = (answers == problems.sum(1)).double().mean().item()
            self.assertTrue(0.4 < right < 0.95, right)  # it has learned something, not everything
            self.assertTrue(add.solve(model, problems) == answers.tolist())
            self.assertEqual(add.exact_match(model, problems), right)  # teacher-forced
            self.assertEqual(add.count_wrong(model), (round(8100 * (1 - right)), 8100))
            logits = model(source, target).transpose(1, 2)
            loss = torch.nn.functional.cross_entropy(logits, target).item()
            assert_close(add.evaluate(model, problems), (loss, right), rtol=1e-5, atol=0)

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
        with mock.patch.object(model, "decode", side_effect=KeyError), self.assertRaises(KeyError):
            add.run(model, problems, outputs)
        self.assertFalse(any(getattr(module, "replace", {}) for module in model.modules()))
        self.assertTrue(torch.equal(model(*add.tokenize(problems, model.args)), before))

    def test_tables(self):
        def accuracy(replace):
            digits, _, _ = add.run(model, DATA["test"], replace)
            answers = digits @ torch.tensor([100, 10, 1])
            return (answers == DATA["test"].sum(1)).double().mean().item()
        for seed, model in MODELS.items():
            add.run(model, DATA["test"])
            attentions = [m for m in model.modules() if isinstance(m, add.MultiHeadAttention)]
            means = sum([m.weights.double().mean(0).tolist() for m in attentions], [])
            self.assertEqual(SAVED["attention.json"][seed], dict(zip(HEADS, means)))
            _, _, outputs = add.run(model, DATA["val"])
            table = {}
            for head in HEADS:
                mean = outputs[head].mean(dim=0, keepdim=True)  # each token keeps its own
                table[head] = {"zero": accuracy({head: 0}), "mean": accuracy({head: mean})}
            ablation = {"n": 400, "baseline": accuracy({}), "heads": table,
                        "ranking": sorted(HEADS, key=lambda head: table[head]["mean"])}
            self.assertEqual(SAVED["ablation.json"][seed], ablation)
            self.assertEqual(SAVED["pruning.json"][seed], add.prune(model, DATA, ablation))

    def test_pruning(self):
        """With made-up accuracies; of some pairs, each head stands in for the other."""
        costs = {"val": (0.5, 0, 0.2, 0.1, 0.3, 0.45), "test": (0.2, 0.02, -0.015, 0, 0.01, 0.1)}
        def exact_match(model, problems, replace={}):
            zeros = [k for k in range(6) if replace.get(HEADS[k], 1) == 0]
            both = {"val": {1, 3}, "test": {2, 4}}[problems] <= set(zeros)
            return 1 - 0.3 * both - sum(costs[problems][k] for k in zeros)
        heads = {head: {"zero": 1 - cost} for head, cost in zip(HEADS, costs["test"])}
        with mock.patch.object(add, "exact_match", exact_match):
            found = add.prune(None, {"val": "val", "test": "test"}, {"baseline": 1, "heads": heads})
        self.assertEqual(found["order"], [HEADS[k] for k in (1, 2, 4, 3, 5, 0)])
        accuracy = [*found["accuracy"], found["accuracy_without_all_of_those"]]
        assert_close(accuracy, [1, 0.98, 0.995, 0.685, 0.685, 0.585, 0.385, 0.705])
        self.assertEqual((found["prunable"], found["removable_alone"]), (2, HEADS[2:5]))

    def test_carry_pairs_are_what_they_say(self):
        for origin, destination in itertools.combinations(range(4), 2):
            clean, other = add.carry_pairs(destination, origin, num_digits=3, n_pairs=500)
            odd = torch.arange(500)[:, None] % 2 == 1
            pairs = [torch.where(odd, other, clean), torch.where(odd, clean, other)]
            self.assertTrue(clean.min() >= 100 and clean.max() <= 999 and len(clean.unique()) > 100)
            for k in range(3):
                without, with_carry = [problems // 10 ** k % 10 for problems in pairs]
                self.assertTrue(((without == with_carry).all(dim=1) == (k != origin)).all())
            # The other columns are the same, so one more here is the carry from the origin.
            without, with_carry = [problems.sum(1) // 10 ** destination for problems in pairs]
            self.assertTrue((without + 1 == with_carry).all())
            self.assertTrue((without % 10 != 9).all())  # no digit further left changes

    def test_flip_rates(self):
        """Only pairs count of which the model gets both digits right without patching."""
        def predicted(problems, *heads):
            digits, _, _ = add.run(model, problems, {head: outputs[head] for head in heads})
            return digits[:, 2 - destination]
        for seed, model in MODELS.items():
            routes = SAVED["carry.json"][seed]
            self.assertEqual(" ".join(routes), "units to tens units to hundreds tens to hundreds")
            for (origin, destination), rates in zip(((0, 1), (0, 2), (1, 2)), routes.values()):
                clean, other = add.carry_pairs(destination, origin, 2, 1000)
                before, after = [x.sum(1) // 10 ** destination % 10 for x in (clean, other)]
                _, _, outputs = add.run(model, other)
                usable = (predicted(clean) == before) & (predicted(other) == after)
                self.assertTrue(200 < usable.sum() < 1000 + origin)  # tens are easy
                self.assertEqual((rates["all of dec"], rates["all of cross"]), (0, 1))
                for name in ("all of enc", *HEADS):
                    heads = [name] if name in HEADS else HEADS[:2]
                    flipped = (predicted(clean, *heads) == after)[usable]
                    self.assertEqual(rates[name], flipped.double().mean().item())

    def test_figures_show_the_first_model_seed(self):
        self.assertEqual(SAVED["training_log.json"]["args"]["model_seed"], 1)
        weights = SAVED["attention.json"]["1"]
        labels = {"enc": ("34+15", "34+15"), "dec": ("049", "start04"), "cross": ("049", "34+15")}
        fig = add.draw_attention(weights, [*"34+15"], [*"049"], "34+15=049")
        for ax, mean, head in zip(fig.axes[:-1], SAVED["mean.png"].axes[:-1], HEADS, strict=True):
            self.assertEqual(ax.images[0].get_array().tolist(), weights[head])
            self.assertEqual(mean.images[0].get_array().tolist(), weights[head])
            rows = "".join(label.get_text() for label in ax.get_yticklabels())
            columns = "".join(label.get_text() for label in ax.get_xticklabels())
            self.assertEqual((ax.get_title(), (rows, columns)), (head, labels[head.split(".")[0]]))
        table = SAVED["ablation.json"]["1"]
        ax = SAVED["ablation.png"].axes[0]
        self.assertEqual([label.get_text() for label in ax.get_xticklabels()], HEADS)
        for bars, kind, shift in zip(ax.containers, ("zero", "mean"), (-0.2, 0.2), strict=True):
            for i, (bar, head) in enumerate(zip(bars, HEADS, strict=True)):
                lost = 100 * (table["baseline"] - table["heads"][head][kind])
                assert_close([bar.get_center()[0], bar.get_height()], [i + shift, lost])
        ax = SAVED["carry.png"].axes[0]
        self.assertEqual(len(ax.texts), 27)
        for text in ax.texts:
            column, row = text.get_position()
            route = ax.get_xticklabels()[column].get_text().replace("\n", " ")
            rate = SAVED["carry.json"]["1"][route][ax.get_yticklabels()[row].get_text()]
            found = (text.get_text(), ax.images[0].get_array()[row, column])
            self.assertEqual(found, (f"{rate:.2f}", rate))
