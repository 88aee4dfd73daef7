"""The sortedness encoder against PyTorch's, closed forms, invariances, brute force."""
import hashlib
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.testing import assert_close

import common
import positional_sorting as sort
from tests.reference import torch_attention

SMALL = sort.Config(d_model=16, n_train=2000, n_val=200, n_test=300, batch_size=64, steps=20)
DATA = sort.make_data(SMALL)
LISTS = DATA["extrapolation/64"][0][:, :40]  # (300, 40)
KEY = torch.arange(40)
QUERY = KEY[:, None]

def setUpModule():
    mock.patch("builtins.print").start()
    unittest.addModuleCleanup(mock.patch.stopall)

def random_model(pe, **changes):
    """No weight is 0, 1 or small, as it may be at first."""
    torch.manual_seed(0)
    model = sort.SortednessEncoder(replace(SMALL, pe=pe, **changes)).double()
    for p in model.parameters():
        p.data.normal_(0, 0.5)
    return model

class Lesson(unittest.TestCase):
    def test_default_data(self):
        """Pairs of the same numbers, unlike all others; how many of these are moved."""
        with tempfile.TemporaryDirectory() as folder:
            files = sort.load_data(Path(folder, "new"), ["train", "test"], sort.Config())
            paths = sorted(Path(folder).rglob("*.jsonl"))
            texts = b"".join(path.read_bytes() for path in paths)
        found = hashlib.sha256(texts).hexdigest()
        assert found == "99b751fe50c0cc2c97c1207c014b746a3da404c37e5f7a86a9231ef447942586"
        pairs = []
        for lists, kinds in files.values():
            in_order = lists.sort().values
            pairs += map(tuple, in_order.tolist())
            moved = (lists != in_order).sum(1)
            assert moved[0::2].max() == 0 < moved[1::2].min()
            assert moved[1::10].unique() == moved[3::10].unique() == 2
        assert pairs[0::2] == pairs[1::2]
        assert 2 * len(set(pairs)) == len(pairs)

    def test_own_data(self):
        """A kind may be missing. A wrong record is named."""
        good = '{"sequence": [1, 2], "is_sorted": 1, "length": 2}'
        swap = '{"sequence": [9, 4, 7], "is_sorted": 0, "length": 3}'
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "own.json")
            path.write_text(f"[{good}, {swap}]")
            lists, kinds = sort.load_data(path.parent, ["own"], SMALL)["own"]
            for wrong in ("[]", swap.replace("0", "1"), swap.replace("3", "2"), swap.replace("9", "100")):
                path.write_text(f"[{good}, {wrong}]")
                with self.assertRaisesRegex(common.UserError, "own, record 2"):
                    sort.load_data(path.parent, ["own"], SMALL)
        assert lists.tolist() == [[1, 2, sort.PAD], [9, 4, 7]]
        assert kinds == ("sorted", "unsorted")

    def test_add_constant(self):
        """All constants that keep the numbers from 0 to 99, and no others."""
        lists = torch.tensor([[7, 6, sort.PAD]]).repeat(9999, 1)
        found = sort.add_constant(lists, None).unique(dim=0)
        assert found.tolist() == [[i + 1, i, sort.PAD] for i in range(99)]

    def test_closed_forms(self):
        """Waves, which RoPE rotates back to 0 and 1; the slopes of ALiBi."""
        angle = QUERY / 10 ** torch.arange(4)
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
        assert_close(sort.sinusoids(KEY, 8), waves)
        found = sort.Rope(SMALL).rotate(waves[None], KEY)
        assert_close(found, torch.tensor([0.0, 1]).repeat(1, 40, 4))
        found = sort.Alibi(SMALL).bias(torch.zeros(1, 4, 40, 40), KEY)
        assert found[0, :, 9, 6].tolist() == [-3 * 4, -3, -3 / 4, -3 / 16]

    def test_model_is_pytorchs(self):
        """Hidden states, with a bias and a causal mask."""
        ours = random_model("learned", causal=True)
        bias = torch.randn(4, 40, 40).double()
        ours.encoding.bias = lambda scores, position: scores + bias
        theirs = torch.nn.TransformerEncoderLayer(16, 4, 64, 0, batch_first=True, norm_first=True)
        (block,) = ours.blocks
        theirs.self_attn = torch_attention(block.attention)
        theirs.linear1, _, theirs.linear2 = block.feed_forward
        theirs.norm1, theirs.norm2 = block.norm_self, block.norm_ff
        x = ours.token_embedding(LISTS[:1]) + ours.encoding.table[:40]
        expected = ours.norm(theirs(x, bias.masked_fill(KEY > QUERY, -torch.inf)))
        assert_close(ours.hidden_states(LISTS[:1]), expected)

    def test_what_a_model_sees(self):
        """The mirror image, the order and the start, or not; and no padding."""
        short = LISTS[:40].masked_fill(KEY > QUERY, sort.PAD)
        for pe in sort.ENCODINGS:
            for causal in (False, True):
                model = random_model(pe, causal=causal)
                others = [model(LISTS.flip(1)), model(LISTS.roll(1, 1)), model(LISTS, 9)]
                same = [other.allclose(model(LISTS), 0, 1e-4) for other in others]
                blind = [pe in ("none", "alibi") and not causal, pe == "none" and not causal]
                assert same == [*blind, not model.encoding.absolute], (pe, causal)
                alone = [model(x[None, :i + 1], i) for i, x in enumerate(short)]
                assert_close(model(short, QUERY), torch.cat(alone))

    def test_evaluate(self):
        """Against one list at a time; a constant answer is right in half of them."""
        kinds = 75 * ["sorted", "swaps", "swaps", "reversed"]
        model = random_model("sinusoidal")
        answers = torch.tensor([model(x[None]) > 0 for x in LISTS]).double()
        a, b, c, d = answers.view(75, 4).mean(0).tolist()
        recall = {"sorted": a, "swaps": 1 - (b + c) / 2, "reversed": 1 - d}
        found = sort.evaluate(model, (LISTS, kinds))
        assert_close(found["recall"], recall)
        assert_close(found["accuracy"], a / 2 + (recall["swaps"] + recall["reversed"]) / 4)
        assert sort.score(torch.ones(300), kinds)["accuracy"] == 0.5

    def test_training(self):
        """Twice the same without files, from starts 0 to 105; own encoding, smallest data."""
        starts = set()
        class Own(sort.Encoding):
            def embed(self, x, position):
                if position.dim() == 2:
                    starts.update(position[:, 0].tolist())
                return x * (-1) ** position[..., None]
        models = []
        with mock.patch.dict(sort.ENCODINGS, own=Own), mock.patch.object(common, "write", None):
            config = replace(SMALL, pe="own", random_start=True, n_val=2, n_test=2, batch_size=500)
            for _ in range(2):
                model, _ = sort.train(config, sort.make_data(config))
                models.append(model.state_dict())
        assert_close(*models, rtol=0, atol=0)
        assert starts == set(range(106))

    def test_learning_rate(self):
        assert_close(sort.learning_rate(50, sort.Config()), 0.005)
        assert_close(sort.learning_rate(1801, sort.Config()), 0.001)

    def test_best_weights(self):
        """With wrong labels in validation, a model is best before it has learned."""
        lists, kinds = DATA["val"]
        val = lists, kinds[1:] + kinds[:1]
        model, log = sort.train(replace(SMALL, causal=True, steps=200), {**DATA, "val": val})
        best = max(log["history"], key=lambda row: row["val_accuracy"])
        assert best != log["history"][-1]
        assert sort.evaluate(model, val)["loss"] == best["val_loss"]

    def test_rows_of_the_table(self):
        model, _ = sort.train(replace(SMALL, pe="learned", lr=0.1), DATA)
        angles = sort.draw_table(model).axes[0].lines[0].get_ydata()
        assert (angles > 1).tolist() == 16 * [True] + 32 * [False]

    def test_settings(self):
        found = sort.settings({}, 1)
        assert [config.steps for config in found] == 10 * [2000] + 2 * [6000]
        assert sort.settings({"pe": "rope"}, 1) == [sort.Config("rope")]

class Lab(unittest.TestCase):
    def test_embeddings(self):
        """Waves with periods 6, 11, 20 and 35 make two turns in training, that with 63 does not."""
        encoding = sort.Sinusoidal(sort.Config())
        x = torch.randn(40, 32)
        slow = torch.arange(32) >= 2 * 4
        for other, where in ((sort.slow_waves_at(encoding, 7 + KEY), 7 + KEY),
                             (sort.kept(encoding), 50 + 0 * KEY)):
            for start in (7, 1000):
                position = start + KEY
                expected = torch.where(slow, encoding.embed(x, where), encoding.embed(x, position))
                assert other.embed(x, position).equal(expected)

    def test_weights(self):
        """Attention weights are changed by hand, and then divided by their sum."""
        model = random_model("sinusoidal", causal=True)
        model.encoding.bias = lambda scores, position: 3 * scores
        def weights_of(way):
            model(LISTS, 0, way(model.encoding))
            return model.blocks[0].attention.weights
        weights = weights_of(sort.same)
        log_n = ((QUERY + 1).log() / np.log(16)).clamp(min=1)
        for way, changed in ((sort.window, weights * (QUERY - KEY < 16)),
                             (sort.log_n, weights**log_n), (sort.twice, weights**2)):
            assert_close(weights_of(way), changed / changed.sum(-1, keepdim=True))

    def test_parts(self):
        """Against a softmax that gives the weights of the other encoding."""
        data = lists, _ = DATA["extrapolation/16"]
        model = random_model("sinusoidal")
        found = sort.measure_parts(model, data)
        model(lists, 1000, sort.slow_waves_at(model.encoding, 50 + KEY[:16]))
        weights = model.blocks[0].attention.weights
        with mock.patch.object(torch.Tensor, "softmax", lambda *_, **__: weights):
            mixed = sort.evaluate(model, data, 1000)
        assert found["weights within, rest beyond"] == mixed["accuracy"]
        grid = sort.measure_waves(model, data)  # 50 is the second start, 1000 the fifth
        assert found["weights within, rest within"] == grid[1][4]
        beyond = sort.evaluate(model, data, 1000)["accuracy"]
        assert found["weights beyond, rest beyond"] == grid[4][4] == beyond

    def test_swaps(self):
        """One list after the other, with a model that is right on some of them."""
        model, _ = sort.train(replace(SMALL, causal=True, steps=200), DATA)
        data = DATA["extrapolation/16"]
        turned = []
        for x in data[0][1::10]:  # adjacent swaps
            pair = torch.stack([x.sort().values, x])
            i = x.diff().argmin() + 1
            if i > 1 and (model(pair) > 0).tolist() == [True, False]:
                states = model.hidden_states(pair)
                states[:, i] = states[[1, 0], i]
                one, others = model.to_logit(states.amax(1))
                larger = model(x[None], 0, sort.hide(model.encoding, i, i - 1))
                before = model(x[None], 0, sort.hide(model.encoding, i, i - 2))
                turned.append([larger > 0, before > 0, one <= 0, others <= 0])
        found = [*sort.inspect_swaps(model, data).values()]
        np.testing.assert_allclose(found, np.mean(turned, 0)[:, 0])
        assert found[1] < found[0] and found[3] < found[2]

    def test_lengths(self):
        results = {}
        for pe in sort.ENCODINGS:
            for end in ("", "-causal"):
                results[pe + end] = {str(n): [{"accuracy": np.random.rand()}] for n in sort.LONG}
        for ax in sort.draw_lengths(results).axes:
            end = "-causal" if "causal" in ax.get_title() else ""
            for line in ax.lines:
                scores = results[line.get_label() + end].values()
                expected = [100 * x[0]["accuracy"] for x in scores]
                assert line.get_ydata().tolist() == expected

    def test_grid(self):
        """Numbers are at their rows and columns."""
        grid = np.random.rand(2, 3)
        ax = sort.draw_grid(grid, "ab", "cde", "", "", "").axes[0]
        for text in ax.texts:
            j, i = text.get_position()
            assert text.get_text() == f"{100 * grid[i, j]:.0f}"

    def test_heads(self):
        """The first query, in the first row, sees itself alone."""
        model = random_model("none", causal=True)
        grid = sort.draw_heads(model, [3, 1, 2]).axes[0].images[0].get_array()
        assert grid[0].tolist() == [1, 0, 0]
