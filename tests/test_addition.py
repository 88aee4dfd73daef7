"""The adder against things we did not write: PyTorch, integer arithmetic, brute force."""
import copy
import hashlib
import os
import random
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch.testing import assert_close

import attention_addition as add
import common
from attention_addition import (Config, UserError, accuracy, evaluate, interchange, load_data,
                                make_data, replaced, run, solve, tokenize, train)
from tests.reference import GROUPS, gradient, made_up_run, torch_attention, torch_logits

SMALL = Config(num_digits=2, n_train=3000, n_val=300, n_test=400, steps=170)
DATA = make_data(SMALL)
VAL, TEST = DATA["val"], DATA["test"]
ALL = add.all_problems(2)

def setUpModule():
    """Train a model that is right on some problems and wrong on others."""
    global MODEL
    unittest.addModuleCleanup(mock.patch.stopall)
    mock.patch("builtins.print").start()
    common.prepare()
    MODEL, _ = train(SMALL, DATA)

class Addition(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)

    def test_files(self):
        """The default ones are the same as ever: 14,000 problems, none twice, mirrored or in
        two splits. Your own are used as they are."""
        data = load_data(Path("new"), Config())
        files = [Path(f"new/{split}.jsonl").read_bytes() for split in data]
        digest = hashlib.sha256(b"".join(files)).hexdigest()
        assert digest == "823c7c71040d4dd8a6754b3470651b8d5753de729ba538b5e90a9fd83c934635"
        Path("train.jsonl").write_bytes(files[2])
        Path("val.json").write_bytes(b"[%s]" % b",".join(files[2].splitlines()))
        Path("test.jsonl").write_bytes(files[2])
        for problems in load_data(Path(), Config()).values():
            assert_close(problems, make_data(Config())["test"])

    def test_carry_chains(self):
        """In 3 of 10 problems 4 and 3 stay. The others get a digit that makes nine or ten."""
        digits = [add.add_carry_chain(4, 3, 1, random) for _ in range(4000)]
        assert set(digits) == {3, 5, 6}
        assert abs(digits.count(3) / 4000 - 0.3) < 0.04

    def test_training(self):
        """Sums from 100 on, not in training, get worse as it learns: the best weights are early."""
        val = ALL[::300]
        data = {"train": val[val.sum(1) < 100], "val": val}
        config = replace(SMALL, steps=60)
        model, log = train(config, data)
        assert train(config, data)[1] == log
        assert not os.listdir()
        rows = [(row["val_accuracy"], -row["val_loss"]) for row in log["history"]]
        loss, right = evaluate(model, val)
        assert (right, -loss) == max(rows)
        with self.assertRaisesRegex(UserError, "not finite at step 12"):
            train(replace(config, lr=1e20), data)

    def test_learning_rate_and_weight_decay_by_hand(self):
        config = Config(steps=100, warmup=10, lr=0.5, weight_decay=0.1)
        rates = [add.learning_rate(step, config) for step in (1, 41, 71, 100)]
        assert_close(rates, [0.05, 0.5, 0.25, 0.5 / 60])
        layer = torch.nn.Linear(1, 1)
        for p in layer.parameters():
            p.data.fill_(1)
            p.grad = 0 * p.data
        common.adamw(layer, config, 0.95).step()  # without gradients, only decay of matrices
        assert_close([p.item() for p in layer.parameters()], [0.95, 1.0])

    def test_attention_is_pytorchs(self):
        """Output, weights and gradients, of scores whose exp overflows; then several heads."""
        qkv = torch.randn(3, 2, 7, 8).double()
        qkv[1] += 2000  # which moves all scores of a query by as much
        qkv.requires_grad_()
        mask = torch.ones(7, 7).tril().bool()
        output, _ = add.scaled_dot_product_attention(*qkv, mask)
        expected = F.scaled_dot_product_attention(*qkv, attn_mask=mask)
        assert_close(output, expected)
        assert_close(gradient(output, qkv), gradient(expected, qkv))
        ours = add.MultiHeadAttention(24, 3)
        x, memory = torch.randn(2, 2, 7, 24)
        output = ours(x, memory)
        expected = torch_attention(ours)(x, memory, memory, average_attn_weights=False)
        assert_close((output, ours.weights), expected)

    def test_adder_is_pytorchs_transformer_and_does_not_look_ahead(self):
        ours = add.Adder(replace(SMALL, n_layer=2)).double()
        for p in ours.parameters():
            torch.nn.init.normal_(p, std=0.5)  # also norms, all alike at first
        source, target = tokenize(VAL, 2)
        logits, expected = ours(source, target), torch_logits(ours, source, target)
        assert_close(logits, expected)
        w = ours.token_embedding.weight  # of both; its gradient passes everything else
        assert_close(gradient(logits, w), gradient(expected, w))
        target[:, 1] += 1
        same = (ours(source, target) == logits).all(2).all(0)
        assert same.tolist() == [True, True, False]

    def test_scores_are_those_of_greedy_decoding(self):
        source, target = tokenize(ALL, 2)
        answer = torch.zeros_like(target)
        for t in range(3):  # no digit depends on those after it, as tested above
            answer[:, t] = MODEL(source, answer)[:, t].argmax(1)
        numbers = add.from_digits(answer.T)
        right = numbers == ALL.sum(1)
        assert 100 < right.sum() < 8000  # it has learned something, not everything
        assert solve(MODEL, ALL.tolist()) == numbers.tolist()
        assert_close(add.is_right(MODEL, ALL.tolist()), right)
        assert add.count_wrong(MODEL, ALL) == 8100 - right.sum()
        loss = F.cross_entropy(MODEL(source, target).transpose(1, 2), target)
        expected = loss.item(), right.sum().item() / 8100
        assert_close(evaluate(MODEL, ALL), expected)

    def test_replaced_heads(self):
        """Removed ones against zeroed weights, patched ones against the other problem."""
        zeroed = copy.deepcopy(MODEL)
        zeroed.encoder[0].self_attention.output.weight.data[:, :16] = 0
        zeroed.decoder[0].self_attention.output.weight.data[:, 48:] = 0
        tokens = tokenize(VAL, 2)
        before = MODEL(*tokens)
        removed = {"enc.L0.H0": 0, "dec.L0.H3": torch.zeros(1, 5, 16)}
        with replaced(MODEL, removed):
            assert_close(MODEL(*tokens), zeroed(*tokens))
            run(MODEL, VAL, {"enc.L0.H1": 0})  # a block within this one does not end it
            assert solve(MODEL, VAL) == solve(zeroed, VAL)
        mirror = VAL.flip(1)  # b+a has the same sum: only heads tell the decoder which it is
        _, _, outputs = run(MODEL, mirror.tolist())
        with replaced(MODEL, outputs):
            patched = MODEL(*tokens)
        assert_close(patched, MODEL(*tokenize(mirror, 2)))
        with self.assertRaises(RuntimeError):  # too many numbers for a head
            run(MODEL, VAL, {"enc.L0.H0": torch.zeros(1, 5, 17)})
        with self.assertRaisesRegex(UserError, "among enc.L0.H0, enc.L0.H1, .* H9"):
            run(MODEL, VAL, {**removed, "H9": 0})
        assert_close(MODEL(*tokens), before)

    def test_ablate(self):
        _, _, outputs = run(MODEL, VAL)
        table = add.ablate(MODEL, DATA)
        for head, output in outputs.items():
            assert table["zero"][head] == accuracy(MODEL, TEST, {head: 0 * output[:1]})
            assert table["mean"][head] == accuracy(MODEL, TEST, {head: output.mean(0)[None]})

    @mock.patch.object(add, "run", made_up_run)
    def test_interchange(self):
        table = interchange(MODEL, GROUPS, nines=False)
        control = interchange(MODEL, GROUPS, donor=2)["tens"]
        for what in GROUPS:
            assert table["tens"][what][what] == 1
            assert 0.07 < control["both"][what] < 0.13
        assert 0.4 < control["carry"]["carry"] < 0.6
        assert table["hundreds"]["both"]["carry"] == 1
        tens = interchange(MODEL, add.groups_of(MODEL))["tens"]
        tens["a + b"] = {"column": 1.1}  # but one head is enough; for the carry it has only 89%
        who = {"carry": ["enc.L0.H0 + enc.L0.H1", 1], "column": ["enc.L0.H2", 1]}
        assert add.who_brings({"tens": tens}) == {"tens": who}
        figure = add.draw_interchange(table, "")
        for ax, (column, rows) in zip(figure.axes, reversed(table.items())):
            assert ax.get_title() == column
            for bars in ax.containers:
                for group, bar in zip(rows, bars):
                    box = bar.get_bbox()
                    assert abs(box.width - rows[group].get(bars.get_label(), 0)) < 1e-9
                    assert box.y0 < ax.convert_yunits(group) < box.y1
            assert_close([bar.get_bbox().x1 for bar in bars], [1.0] * 4)

    def test_one_bit(self):
        """A made-up model, right if cross.L0.H0 says the carry into the hundreds, first."""
        def say(problems):
            carry = (problems.sum(1) > 99).float()
            return torch.stack([carry, 0 * carry], 1)[:, :, None]
        def is_right(model, problems):
            said = model.decoder[0].cross_attention.replace[0]
            return (said == say(problems))[:, 0, 0]
        def made_up(model, problems):
            return None, None, {"cross.L0.H0": say(problems)}
        wrong = []
        with mock.patch.multiple(add, run=made_up, is_right=is_right):
            for control in (None, "no bit", "bits of other problems"):
                wrong.append(add.one_bit(MODEL, VAL, "cross.L0.H0", [1, 2], TEST, control))
        carry = TEST.sum(1) > 99
        assert wrong == [0, 400, (carry != carry.roll(1)).sum()]
        assert add.tokens_of("enc.L0.H0", 1, 3) == [1, 5]

    def test_draw_heads(self):
        names = {"enc": "12+9512+95", "dec": "107start10", "cro": "10712+95"}
        figure = add.draw_heads(MODEL, 12, 95)
        run(MODEL, [(12, 95)])
        for ax, (head, (attention, h)) in zip(figure.axes, add.heads_of(MODEL).items()):
            labels = ax.get_yticklabels() + ax.get_xticklabels()
            text = "".join(label.get_text() for label in labels)
            assert ax.get_title() + text == head + names[head[:3]]
            assert ax.images[0].get_array().tolist() == attention.weights[0, h].tolist()
