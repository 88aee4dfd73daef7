"""The sortedness encoder against PyTorch's, closed forms, invariances, brute force."""
import unittest
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
from torch.testing import assert_close

import common
import positional_sorting as sort
from tests.reference import torch_layer

SMALL = sort.Config(d_model=16, steps=20, batch_size=64,
                    n_train=2000, n_val=200, n_test=300)
DATA = sort.make_data(SMALL)
LISTS = DATA["extrapolation/64"][0][:40, :40]
KEY = torch.arange(40)
QUERY = KEY[:, None]

def setUpModule():
    common.prepare()
    mock.patch("builtins.print").start()
    unittest.addModuleCleanup(mock.patch.stopall)

def train(data=DATA, **changes):
    return sort.train(replace(SMALL, **changes), data)

def random_model(pe, **changes):
    torch.manual_seed(8)
    model = sort.SortednessEncoder(replace(SMALL, pe=pe, **changes)).double()
    for p in model.parameters():
        p.data.normal_(0, 0.5)  # none is 0, 1 or small, as they may be at first
    model.to_logit.bias.data -= model(LISTS).median()  # it calls half of LISTS sorted
    return model

class Sorting(unittest.TestCase):
    def test_default_data(self):
        """Pairs of the same numbers, unlike all others."""
        lists, _ = sort.make_data(sort.Config())["train"]
        in_order = lists.sort().values
        assert in_order[0::2].equal(in_order[1::2])
        assert len(in_order.unique(dim=0)) == 5000

    def test_add_constant(self):
        """All constants that keep the numbers from 0 to 99, and no others."""
        lists = torch.tensor([[7, 6, 100]]).repeat(9999, 1)
        found = sort.add_constant(lists, None).unique(dim=0)
        assert found.tolist() == [[i + 1, i, 100] for i in range(99)]

    def test_closed_forms(self):
        """Waves, which RoPE rotates back to 0 and 1; the slopes of ALiBi."""
        angle = QUERY / 10 ** torch.arange(4)
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
        assert_close(sort.sinusoids(KEY, 8), waves)
        back = sort.Rope(SMALL).rotate(waves, KEY)
        assert_close(back[0], torch.tensor([0.0, 1]).repeat(40, 4))
        bias = sort.Alibi(SMALL).bias(torch.zeros(4, 40, 40), KEY)
        assert bias[::3, 9, 6].tolist() == [-12, -0.1875]  # first and last head

    def test_model_is_pytorchs(self):
        """With a bias and a causal mask."""
        ours = random_model("learned", causal=True)
        bias = torch.randn(4, 40, 40).double()
        ours.encoding.bias = lambda scores, position: scores + bias
        theirs = torch_layer(torch.nn.TransformerEncoderLayer, SMALL, ours.blocks[0],
                             ours.blocks[0].attention)
        x = ours.token_embedding(LISTS[:1]) + ours.encoding.table[:40]
        h = ours.norm(theirs(x, bias.masked_fill(KEY > QUERY, -torch.inf)))
        assert_close(ours(LISTS[:1]), ours.to_logit(h.max(1).values)[0])

    def test_what_a_model_sees(self):
        """The mirror image, the start and the order, or not; and no padding."""
        short = LISTS.masked_fill(KEY > QUERY, 100)
        for pe in sort.ENCODINGS:
            for causal in (False, True):
                model = random_model(pe, causal=causal)
                others = [model(LISTS.flip(1)), model(LISTS, 9),
                          model(LISTS.roll(1, 1))]
                sees = [not x.allclose(model(LISTS), 0, 1e-4) for x in others]
                assert sees == [causal or pe not in ("none", "alibi"),
                                pe in ("sinusoidal", "learned"), causal or pe != "none"]
                alone = [model(x[None, :i + 1], i) for i, x in enumerate(short)]
                assert_close(model(short, QUERY), torch.cat(alone))

    def test_evaluate(self):
        """Against one list at a time, and a score by hand; a constant answer gets a half."""
        model = random_model("sinusoidal")
        lists, _ = DATA["extrapolation/64"]
        assert_close(sort.predict(model, lists), torch.cat([model(x[None]) for x in lists]))
        expected = sort.solve(model, lists.tolist())
        assert sort.solve(model, lists) == sort.solve(model, lists.numpy()) == expected
        with self.assertRaisesRegex(common.UserError, "numbers from 0 to 99"):
            sort.solve(model, lists.float())
        data = lists, np.array(["sorted", "swaps", "swaps", "reversed", "sorted"])
        for logits, right in (([1, -1, 1, -1, 1], 0.875), ([1] * 5, 0.5), ([-1] * 5, 0.5)):
            with mock.patch.object(sort, "predict", return_value=torch.tensor(logits).float()):
                assert sort.evaluate(model, data)["accuracy"] == right

    def test_training(self):
        """Twice the same, from starts 0 to 105. With wrong labels in validation, a model is
        best before it has learned."""
        lists, kinds = DATA["val"]
        val = lists, kinds[::-1]
        logs = []
        with mock.patch.object(sort, "sinusoids", wraps=sort.sinusoids) as calls:
            for _ in range(2):
                model, log = train({**DATA, "val": val}, pe="sinusoidal", causal=True,
                                   random_start=True, steps=200)
                logs.append(log)
        assert logs[0] == logs[1]
        starts = [call.args[0][..., 0].flatten() for call in calls.call_args_list]
        assert torch.cat(starts).unique().tolist() == list(range(106))
        best = max(log["history"], key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        assert best["step"] < 200
        assert sort.evaluate(model, val)["loss"] == best["val_loss"]

    def test_settings_and_learning_rate(self):
        configs = sort.settings({})
        assert len(set(map(sort.name_of, configs))) == 12
        assert [(x.random_start, x.n_head) for x in configs] == 10 * [(False, 4)] + 2 * [(True, 1)]
        rates = [sort.learning_rate(step, configs[0]) for step in (1, 1001, 2000)]
        assert_close(rates, [1e-4, 5e-3, 5e-6])

    def test_rows_of_the_table(self):
        model, _ = train(pe="learned", lr=0.1)
        angles = sort.draw_table(model).axes[0].lines[0].get_ydata()
        assert angles[:16].min() > 1 > angles[16:].max()

    def test_slow_waves(self):
        """Those of periods 63 and more; 6, 11, 20 and 35 make two turns in training."""
        encoding = sort.Sinusoidal(sort.Config())
        x = torch.randn(40, 32)
        here = encoding.embed(x, 1000 + KEY)
        moved = sort.slow_waves_at(encoding, 7 + KEY)
        for other, where in ((moved, 7 + KEY), (sort.kept(encoding), 50 + 0 * KEY)):
            slow = encoding.embed(x, where)
            expected = torch.where(KEY[:32] < 8, here, slow)
            assert other.embed(x, 1000 + KEY).equal(expected)

    def test_weights(self):
        """Attention weights are changed by hand, and then divided by their sum."""
        model = random_model("sinusoidal", causal=True)
        encoding = model.encoding
        encoding.bias = lambda scores, position: 3 * scores
        attention = model.blocks[0].attention
        model(LISTS)
        weights = attention.weights
        log_n = (QUERY + 1).log2() / 4
        shown = (QUERY != 30) | (KEY != QUERY[:, None, None])  # key b in list b
        for other, expected in (
                (sort.window(encoding), weights * (QUERY - KEY < 16)),
                (sort.log_n(encoding), weights ** log_n.clamp(min=1)),
                (sort.hide(encoding, 30, KEY), weights * shown)):
            model(LISTS, 0, other)
            assert_close(attention.weights, torch.nn.functional.normalize(expected, 1, -1))

    def test_waves(self):
        """Rows are starts of slow waves, columns those of fast ones."""
        model = random_model("sinusoidal")
        lists, _ = DATA["extrapolation/16"]
        within = sort.slow_waves_at(model.encoding, 50 + KEY[:16])
        kinds = np.where(sort.predict(model, lists, 1000, within) > 0, "sorted", "swaps")
        grid = sort.measure_waves(model, (lists, kinds))
        assert grid[1][4] == 1 > np.delete(grid, 10).max()

    def test_swaps(self):
        """Hidden in one list at a time."""
        model, _ = train(causal=True, steps=180)
        lists, kinds = DATA["train"]
        turned = []
        for x in lists[kinds == "adjacent_swap"]:
            x = x[None, x < 100]
            i = (x.diff() < 0).int().argmax() + 1
            if i > 1 and model(x) <= 0 < model(x.sort().values):
                hidden = [sort.hide(model.encoding, i, j) for j in (i - 1, i - 2)]
                turned.append([model(x, 0, encoding).item() > 0 for encoding in hidden])
        found = sort.inspect_swaps(model, DATA["train"])
        assert_close(np.mean(turned, 0).tolist(), list(found.values()))
        assert found["larger hidden"] > 0.5 > found["other hidden"]

    def test_lengths(self):
        """Each line is labelled as it should be, on its panel."""
        results = {}
        for config in sort.settings({}):
            scores = {"accuracy": len(results)}
            results[sort.name_of(config)] = {str(n): scores for n in sort.LONG}
        for ax, end in zip(sort.draw_lengths(results).axes, ("", "-causal")):
            assert len(ax.lines) == 6  # with that of chance
            for line in ax.lines[:5]:
                scores = results[line.get_label() + end]["16"]
                assert line.get_ydata()[0] == 100 * scores["accuracy"]

    def test_grid(self):
        """Numbers are at their rows and columns."""
        grid = np.random.rand(6, 6)
        texts = sort.draw_waves(grid, SMALL).axes[0].texts
        assert len(texts) == 36
        for text in texts:
            j, i = text.get_position()
            assert text.get_text() == f"{100 * grid[i, j]:.0f}"
