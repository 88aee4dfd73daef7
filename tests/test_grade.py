"""tests/grade.py finds the faults of students.    python -m unittest tests.test_grade"""
import contextlib
import io
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from tests import grade

FUNCTION = """
def scaled_dot_product_attention(q, k, v, mask=None, causal=False):
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -torch.inf)
    weights = torch.softmax(scores, dim=-1)
    return weights @ v
"""
MODULE = """
class MultiHeadAttention(torch.nn.Module):
    def __init__(self, d_model, n_head):
        super().__init__()
        self.n_head = n_head
        self.to_q, self.to_k, self.to_v = [torch.nn.Linear(d_model, d_model) for _ in "qkv"]
    def forward(self, query, key, value, mask=None):
        B, T, C = query.shape
        qkv = self.to_q(query), self.to_k(key), self.to_v(value)
        q, k, v = [x.view(B, T, self.n_head, -1).transpose(1, 2) for x in qkv]
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -1e9)
        heads = torch.dropout(torch.softmax(scores, dim=-1), 0.5, self.training) @ v
        return heads.transpose(1, 2).reshape(B, T, C)
"""
SCALE = " / q.shape[-1] ** 0.5"
TRIL = " + torch.ones(q.shape[-2], q.shape[-2]).tril().log()"  # of a causal mask: 0 or -infinity
FILL = "scores.masked_fill(mask == 0, -torch.inf)"

# Code, what to replace in it, by what, and the last line: about the mask, or about the fault.
RIGHT = [
    (FUNCTION, "", "", "ok     mask, True where a query may attend"),
    (FUNCTION, FILL, "scores - 1e9 * (1 - mask)", "ok     mask, 1 where a query may attend.*"),
    (FUNCTION, FILL, "scores + mask", "note   mask, added to the scores; .*"),
    (MODULE, "mask == 0", "mask.unsqueeze(1) == 0", "ok     mask, True where .* may attend"),
    (MODULE, SCALE, " - torch.arange(T)", "ok     mask, True .*"),  # with positions inside
    (MODULE, "key, value, mask=None):", "mask):\n        key = value = query", "ok .*"),
    ("from torch.nn.functional import scaled_dot_product_attention" + MODULE, "", "", "ok .*"),
]
WRONG = [
    (FUNCTION, SCALE, "", "output: the scores are not scaled; .*"),
    (FUNCTION, SCALE, " / q.shape[-1]", "output: the scores are divided by d_head, .*"),
    (FUNCTION, SCALE, " / 24 ** 0.5", "output: scores are divided by sqrt.d_model.*"),
    (FUNCTION, "dim=-1", "dim=-2", "output: the softmax runs over the queries, .*"),
    (FUNCTION, "dim=-1", "dim=1", "output: the softmax runs over the heads, .*"),
    (FUNCTION, "@ v", "@ k", "output: it differs from PyTorch's output"),
    (FUNCTION, "weights @ v", "weights, weights @ v", "output shape: .*; return .*"),
    (FUNCTION, "weights @ v", "weights.detach() @ v", "gradient: .*"),
    (FUNCTION, "weights @ v", "(weights @ v).data", "gradient: .*"),
    (FUNCTION, "is not None", "is 0", "mask: it is ignored"),
    (FUNCTION, "-torch.inf", "0", "mask: hidden scores are set to 0; .*"),
    (FUNCTION, FILL, "scores\n        return scores.softmax(-1) * mask @ v", "mask: it comes .*"),
    (FUNCTION, FILL, "score", "it raises NameError: name 'score' is not defined"),
    (MODULE, "T, self.n_head, -1).transpose(1, 2)", "self.n_head, T, -1)", "heads: cut them .*"),
    (MODULE, "-1).transpose(1, 2)", "-1)", "heads: cut them .*"),
    (MODULE, ".transpose(1, 2)", "", "heads: cut them .*"),
    (MODULE, "heads.transpose(1, 2)", "heads", "heads: .*; join them .*"),
    (MODULE, SCALE, SCALE + TRIL, "without a mask: tokens see earlier ones only"),
    (MODULE, SCALE, SCALE + TRIL + ".mT", "without a mask: tokens see later ones only"),
    (FUNCTION, SCALE, SCALE + TRIL, "output: a causal mask is always on; .*"),
    (FUNCTION, SCALE, SCALE + TRIL + ".mT", "output: a mask, upside down, is always on; .*"),
    (FUNCTION, "mask == 0", "mask.mT == 0", "mask: it is upside down, .*"),
    (FUNCTION, "mask == 0", "mask", "mask: True hides a key; .* --mask-true hides"),
    (MODULE, "is not None", "is 0", "mask: it is ignored"),
    (MODULE, "-1e9", "0", "mask: it leaks; .*"),
    (MODULE, "dim=-1", "dim=0", "examples: .*"),
    (MODULE, "(B, T, C)", "(B, T, C)[..., :4]", "output shape: it is .*4.*"),
]

class Grade(unittest.TestCase):
    def grade(self, path, *words):
        output, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            argv = mock.patch("sys.argv", ["grade", str(path), *words])
            with argv, self.assertRaises(SystemExit) as end:
                grade.main()
        return end.exception.code, output.getvalue(), errors.getvalue()

    def grade_code(self, code, old="", new="", *words):
        self.assertIn(old, code)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "student.py")
            path.write_text("import torch\n" + (code.replace(old, new) if old else code))
            return self.grade(path, *words)

    def test_one_part(self):
        for cases, start, expected in [(RIGHT, "", 0), (WRONG, "WRONG: ", 1)]:
            for code, old, new, line in cases:
                status, output, _ = self.grade_code(code, old, new)
                self.assertRegex(output, rf"\A\w+:\n(ok .*\n)*{start}{line}\n(.*\n)*\Z", new)
                self.assertEqual(status, expected)

    def test_both_parts_but_no_main(self):
        code = FUNCTION + MODULE + "if __name__ == '__main__':\n    1 / 0\n"
        status, output, _ = self.grade_code(code, "weights @ v", "weights @ k")
        self.assertEqual((status, output.count("WRONG"), output.count("ok ")), (1, 1, 8), output)

    def test_the_masks_meaning_and_two_faults(self):
        status, output, _ = self.grade_code(FUNCTION, "mask == 0", "mask", "--mask-true", "hides")
        self.assertEqual((status, output.count("ok ")), (0, 4), output)
        _, output, _ = self.grade_code(FUNCTION.replace(SCALE, ""), "mask is not None", "False")
        self.assertRegex(output, "(?s)not scaled; .*ok     gradient\nWRONG: mask: it is ignored\n")

    def test_files_that_cannot_be_tested(self):
        for code, words in [("def f(:", "SyntaxError"), ("raise SystemExit(0)", "SystemExit"),
                            ("import no_such_module", "no_such_module"), ("", "defines neither")]:
            status, output, errors = self.grade_code(code)
            self.assertRegex(errors, rf"\A.*student.py .*{words}.*\n\Z")
            self.assertEqual((status, output), (2, ""))
        self.assertEqual(self.grade("missing.py")[0], 2)

    def test_our_own(self):
        status, output, errors = self.grade(Path(__file__).parents[1] / "attention_addition.py")
        self.assertEqual((status, output.count("ok "), "note" in output), (0, 9, False), errors)
