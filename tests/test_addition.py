"""The adder against things we did not write: PyTorch, integer arithmetic, brute force."""
import copy
import unittest
from dataclasses import replace
from unittest import mock

import torch
import torch.nn.functional as F
from torch.testing import assert_close

import attention_addition as add
import common
from attention_addition import Config, UserError, evaluate, make_data, run, tokenize, train
from tests.reference import GROUPS, gradient, made_up_run, torch_logits

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
    def test_default_data(self):
        """14,000 problems, none twice, mirrored or in two splits."""
        pairs = torch.cat(list(make_data(Config()).values())).sort().values
        assert len(pairs.unique(dim=0)) == 14_000

    def test_training(self):
        """Sums from 100 on, not in training, get worse as it learns: the best weights are early."""
        val = ALL[::300]
        data = {"train": val[val.sum(1) < 100], "val": val}
        config = replace(SMALL, steps=60)
        model, log = train(config, data)
        assert train(config, data)[1] == log
        rows = [(row["val_accuracy"], -row["val_loss"]) for row in log["history"]]
        loss, right = evaluate(model, val)
        assert (right, -loss) == max(rows)
        with self.assertRaisesRegex(UserError, "not finite at step 12"):
            train(replace(config, lr=1e20), data)
        data["train"] = torch.tensor([[12, 95]]).repeat(2000, 1)
        with mock.patch.object(add, "tokenize", wraps=tokenize) as calls:
            train(replace(config, steps=1, batch_size=2000), data)
        a, b = calls.call_args_list[0].args[0].T  # of the first batch
        assert 900 < (a == 95).sum() < 1100
        assert (a + b == 107).all()

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
        """Output, weights and gradients, of scores whose exp overflows."""
        qkv = torch.randn(3, 2, 7, 8).double()
        qkv[1] += 2000  # which moves all scores of a query by as much
        qkv.requires_grad_()
        q, k, v = qkv
        mask = torch.ones(7, 7).tril().bool()
        output, weights = add.scaled_dot_product_attention(q, k, v, mask)
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        assert_close(output, expected)
        assert_close(weights @ v, expected)
        assert_close(gradient(output, qkv), gradient(expected, qkv))

    def test_adder_is_pytorchs_transformer_and_does_not_look_ahead(self):
        ours = add.Adder(replace(SMALL, n_layer=2)).double()
        for p in ours.parameters():
            p.data.normal_(0, 0.5)  # also norms, all alike at first
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
        assert add.solve(MODEL, ALL.tolist()) == numbers.tolist()
        assert_close(add.is_right(MODEL, ALL.tolist()), right)
        assert add.count_wrong(MODEL, ALL) == 8100 - right.sum()
        _, fraction = evaluate(MODEL, ALL)
        assert_close(fraction, right.sum().item() / 8100)
        with self.assertRaisesRegex(add.UserError, "whole numbers from 10 to 99"):
            add.solve(MODEL, ALL.float())

    def test_replaced_heads(self):
        """Removed ones against zeroed weights, patched ones against the other problem."""
        zeroed = copy.deepcopy(MODEL)
        zeroed.encoder[0].self_attention.output.weight.data[:, :16] = 0
        zeroed.decoder[0].self_attention.output.weight.data[:, 48:] = 0
        tokens = tokenize(VAL, 2)
        before = MODEL(*tokens)
        with add.replaced(MODEL, {"enc.L0.H0": 0, "dec.L0.H3": torch.zeros(1, 5, 16)}):
            run(MODEL, VAL, {"enc.L0.H1": 0})  # a block within this one does not end it
            assert_close(MODEL(*tokens), zeroed(*tokens))
            assert add.solve(MODEL, VAL) == add.solve(zeroed, VAL)
        mirror = VAL.flip(1)  # b+a has the same sum: only heads tell the decoder which it is
        _, _, outputs = run(MODEL, mirror)
        with add.replaced(MODEL, outputs):
            assert_close(MODEL(*tokens), MODEL(*tokenize(mirror, 2)))
            wrong = torch.tensor(add.solve(MODEL, VAL)) != VAL.sum(1)
        assert wrong.equal(~add.is_right(MODEL, mirror))
        with self.assertRaisesRegex(UserError, "among enc.L0.H0, enc.L0.H1, .* H9"):
            run(MODEL, VAL, {"enc.L0.H0": 0, "H9": 0})
        assert_close(MODEL(*tokens), before)

    def test_ablate(self):
        _, _, outputs = run(MODEL, VAL)
        right = add.accuracy(MODEL, TEST)
        table = add.ablate(MODEL, DATA, ALL)
        for head, output in outputs.items():
            assert table["zero"][head] == add.accuracy(MODEL, TEST, {head: 0 * output[:1]})
            assert table["mean"][head] == add.accuracy(MODEL, TEST, {head: output.mean(0)[None]})
            assert (head in table["idle"]) == (table["zero"][head] >= right - 0.01)
        left = add.accuracy(MODEL, ALL, dict.fromkeys(table["idle"], 0))
        assert table["wrong_without_idle"] == round(8100 * (1 - left))

    @mock.patch.object(add, "run", made_up_run)
    def test_interchange(self):
        problems = ALL[torch.randperm(8100)]
        table = add.interchange(MODEL, problems, GROUPS)
        control = add.interchange(MODEL, problems, GROUPS, donor=2)["tens"]
        for what in GROUPS:
            assert table["tens"][what][what] == 1
            assert 0.07 < control["both"][what] < 0.13
        assert 0.4 < control["carry"]["carry"] < 0.6
        assert table["hundreds"]["both"]["carry"] == 1
        figure = add.draw_interchange(table, "")
        for ax, (column, rows) in zip(figure.axes, reversed(table.items())):
            assert ax.get_title() == column
            for bars in ax.containers:
                fractions = [row.get(bars.get_label(), 0.0) for row in rows.values()]
                assert_close([bar.get_width() for bar in bars], fractions)
            assert_close([bar.get_bbox().x1 for bar in bars], [1.0] * 4)
        labels = figure.axes[0].get_yticklabels()
        assert [label.get_text() for label in labels] == list(GROUPS)

    def test_who_brings(self):
        """One head if it is enough, else two."""
        rows = {"a": {"carry": 0.89, "column": 0.91}, "a + b": {"carry": 0.9, "column": 1}}
        with mock.patch.object(add, "interchange", return_value={"tens": rows}) as calls:
            who = add.who_brings(MODEL, VAL)
        assert who == {"tens": {"carry": ["a + b", 0.9], "column": ["a", 0.91]}}
        groups = calls.call_args.args[2]
        assert len(groups) == 12 + 66
        assert groups["enc.L0.H1 + cross.L0.H3"] == ("enc.L0.H1", "cross.L0.H3")

    def test_one_bit(self):
        """One problem at a time, in the tens."""
        carries = VAL.remainder(10).sum(1) > 9
        for head, tokens in (("enc.L0.H1", [0, 3]), ("cross.L0.H1", [1])):
            _, _, outputs = run(MODEL, VAL)
            says = {True: outputs[head][carries].mean(0), False: outputs[head][~carries].mean(0)}
            for roll in (0, 1):
                _, _, outputs = run(MODEL, TEST)
                own = outputs[head].clone()
                for i, output in enumerate(own):
                    a, b = TEST[i - roll]
                    output[tokens] = says[bool(a % 10 + b % 10 > 9)][tokens]
                wrong = 400 * (1 - add.accuracy(MODEL, TEST, {head: own}))
                assert add.one_bit(MODEL, VAL, head, [1], TEST, roll) == round(wrong)
        found = add.measure_bits(MODEL, DATA, {"tens": {"carry": [head, 1]}}, TEST)
        assert found[head]["control"] == round(wrong)

    def test_draw_heads(self):
        names = {"enc": "12+9512+95", "dec": "107start10", "cro": "10712+95"}
        figure = add.draw_heads(MODEL, 12, 95)
        _, weights, _ = run(MODEL, [(12, 95)])
        for ax, (head, grid) in zip(figure.axes, weights.items()):
            labels = ax.get_yticklabels() + ax.get_xticklabels()
            text = "".join(label.get_text() for label in labels)
            assert ax.get_title() + text == head + names[head[:3]]
            assert ax.images[0].get_array().tolist() == grid[0].tolist()
