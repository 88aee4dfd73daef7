"""The tools for a class: tests/grade.py finds the faults of students, tests/compare.py draws their trainings.

    python -m unittest tests.test_class
"""
import contextlib
import io
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from common import UserError
from tests import compare, grade

TOP = Path(__file__).resolve().parents[1]

IMPORTS = """
import math
import torch
import torch.nn as nn
"""

FUNCTION = """
def scaled_dot_product_attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -math.inf)
    weights = torch.softmax(scores, dim=-1)
    output = weights @ v
    return output, weights
"""

MODULE = """
class MultiHeadAttention(nn.Module):
    def __init__(self, num_heads, embed_dim):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(embed_dim, embed_dim)
        self.to_k = nn.Linear(embed_dim, embed_dim)
        self.to_v = nn.Linear(embed_dim, embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def forward(self, query, key, value, mask=None):
        q, k, v = self.split(self.to_q(query)), self.split(self.to_k(key)), self.split(self.to_v(value))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask.unsqueeze(1) == 0, -1e9)
        mixed = torch.softmax(scores, dim=-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(query.shape))
"""

# Each is correct: {name: (replace this, by this)}.
RIGHT = {
    "plain softmax": ("", ""),
    "output only": ("return output, weights", "return output"),
    "True hides": ("mask == 0", "mask"),
    "mask of numbers": ("scores.masked_fill(mask == 0, -math.inf)", "scores - 1e9 * (1 - mask)"),
    "mask to add": ("scores.masked_fill(mask == 0, -math.inf)", "scores + mask"),
    "no heads": ("q @ k.transpose(-2, -1)", "torch.bmm(q, k.transpose(1, 2))"),
}

# Each has one fault: {words that name it: (replace this, by this)}.
WRONG = {
    "the scores are not scaled": (" / math.sqrt(q.shape[-1])", ""),
    "divided by d, not by sqrt": ("math.sqrt(q.shape[-1])", "q.shape[-1]"),
    "divided by sqrt.d_model": ("math.sqrt(q.shape[-1])", "math.sqrt(q.shape[-1] * q.shape[1])"),
    "wrong axis, the queries": ("dim=-1", "dim=-2"),
    "wrong axis, the heads": ("dim=-1", "dim=1"),
    "mask: it is ignored": ("if mask is not None", "if False"),
    "mask: there is no parameter": ("def scaled_dot_product_attention(q, k, v, mask=None):",
                                    "mask = None\ndef scaled_dot_product_attention(q, k, v):"),
    "mask: with a causal mask it leaks": ("-math.inf", "1e-9"),  # instead of -1e9
    "hidden scores to -infinity, not to 0": ("-math.inf", "0"),
    "mask: it comes after the softmax": ("output =", "weights *= 1 if mask is None else mask\n    output ="),
    "gradients: none reaches q, k:": ("weights @ v", "weights.detach() @ v"),
    "gradients: none reaches q, k, v:": ("weights @ v", "(weights @ v).data"),
    "gradients: they are wrong": ("q @ k", "(q + q.detach()) / 2 @ k"),
    "output shape: .* first; it must be the output": ("return output, weights", "return weights, output"),
    "output shape: .* with the shape of q": ("return output", "return output.mean(-1)"),
    "second value is not the weights": ("return output, weights", "return output, scores"),
    "float32 inputs give torch.float64": ("return output", "return output.double()"),
    "inputs: q changed in place": ("    scores = q", "    q *= 1.5\n    scores = q / 1.5"),
    "it raises NameError": ("return output", "return outputs"),
}
NO_MASK_BEFORE = ("    if mask is not None:\n        scores = scores.masked_fill(mask == 0, -math.inf)\n", "")

WRONG_MODULES = {
    "order: .*without transpose": ("view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)",
                                   "view(x.shape[0], self.num_heads, x.shape[1], -1)"),
    "order: .*joined": ("mixed.transpose(1, 2)", "mixed"),
    "mask: it is ignored": ("if mask is not None", "if False"),
    "with a causal mask it leaks": ("-1e9", "0"),
    "examples: .*mixed up": ("dim=-1", "dim=0"),
    "none reaches to_k.weight": ("self.to_k(key)", "self.to_k(key).detach()"),
    "none reaches out.weight": ("self.out(mixed.transpose(1, 2).reshape(query.shape))",
                                "mixed.transpose(1, 2).reshape(query.shape)"),
    "output shape: .* it must be that of x": ("reshape(query.shape))", "reshape(query.shape))[..., :4]"),
}


class Grade(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "student.py")

    def faults(self, code, *changes):
        """The WRONG lines about some code with changes made."""
        for old, new in changes:
            self.assertIn(old, code)
            code = code.replace(old, new)
        self.path.write_text(IMPORTS + code)
        self.lines = grade.grade(self.path)
        return [line for line in self.lines if line.startswith("WRONG")]

    def test_right(self):
        for name, change in RIGHT.items():
            self.assertEqual(self.faults(FUNCTION, change), [], name)
            self.assertGreater(len(self.lines), 6, name)
        self.assertEqual(self.faults(MODULE), [])
        self.assertEqual(self.faults(FUNCTION + MODULE), [])

    def test_notes(self):
        """What is unusual, but no fault, is said."""
        for change, words in ((RIGHT["plain softmax"], "gets NaN, as from torch.softmax"),
                              (RIGHT["output only"], "to look at attention patterns"),
                              (RIGHT["True hides"], "your mask hides where it is True")):
            self.faults(FUNCTION, change)
            self.assertRegex("\n".join(self.lines), f"note .*{words}")

    def test_wrong(self):
        for words, change in WRONG.items():
            more = [NO_MASK_BEFORE] if "after" in words else []
            self.assertRegex("\n".join(self.faults(FUNCTION, *more, change)), words)

    def test_wrong_modules(self):
        for words, change in WRONG_MODULES.items():
            self.assertRegex("\n".join(self.faults(MODULE, change)), words)

    def test_files_that_cannot_be_tested(self):
        for code, words in (("def f(:", "SyntaxError"), ("import nothing_of_this_name", "nothing_of_this_name"),
                            ("raise SystemExit(3)", "SystemExit"), ("x = 1", "defines neither"),
                            (MODULE.replace("embed_dim):", "embed_dim, graph):"), "num_heads, embed_dim, graph")):
            with self.assertRaisesRegex(UserError, words):
                self.faults(code)
        with self.assertRaisesRegex(UserError, "missing.py cannot be loaded"):
            grade.grade(self.path.with_name("missing.py"))

    def test_command(self):
        """Our own attention is right; a wrong one gives exit code 1. No main is run."""
        self.path.write_text(IMPORTS + FUNCTION.replace("dim=-1", "dim=-2") + "if __name__ == '__main__':\n    1 / 0\n")
        for path, code in ((TOP / "attention_addition.py", None), (self.path, 1)):
            found = None
            output = io.StringIO()
            with mock.patch("sys.argv", ["grade", str(path)]), contextlib.redirect_stdout(output):
                try:
                    grade.main()
                except SystemExit as end:
                    found = end.code
            self.assertEqual(found, code, output.getvalue())
            self.assertEqual("WRONG" in output.getvalue(), code == 1)
            self.assertNotIn("note", output.getvalue() if code is None else "")


class Compare(unittest.TestCase):
    def test_legend(self):
        """It names exactly the settings that differ; where none does, the paths."""
        configs = [{"lr": 0.01, "steps": 20}, {"lr": 0.02, "steps": 20, "slope": 4}]
        self.assertEqual(compare.labels_of(["a", "b"], configs), ["lr 0.01", "lr 0.02"])
        self.assertEqual(compare.labels_of(["a", "b"], configs[:1] * 2), ["a", "b"])

    def test_files(self):
        logs = [str(TOP / f"out/reference/{name}/training_log.json") for name in ("addition", "sorting/rope")]
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            out = Path(folder, "compare.png")
            with mock.patch("sys.argv", ["compare", *logs, "--out", str(out)]):
                compare.main()
            self.assertTrue(out.read_bytes().startswith(b"\x89PNG"))
            for content in ("hello", "[1]", '{"config": {}}'):
                out.write_text(content)
                with self.assertRaisesRegex(UserError, "compare.png is not"):
                    compare.read_log(out)


if __name__ == "__main__":
    unittest.main()
