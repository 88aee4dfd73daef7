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
            args = flags("--num-digits", str(n), *sizes)
            records = add.make_data(args)
            self.assertEqual([len(records[split]) for split in ("train", "val", "test")], [25, 10, 10])
            for record in itertools.chain(*records.values()):
                numbers = "".join(map(str, record["input"])).split("10", 1) if n > 9 else None
        with self.assertRaisesRegex(UserError, "only 45 pairs; type fewer"):
            self.load("--num-digits", "1", *sizes, "--n-val", "11")
