"""tests/grade.py finds the faults of students.    python -m unittest tests.test_grade"""
import tempfile
import unittest
from pathlib import Path

from tests.command import TOP, run

STUDENT = """
import torch
def scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.5):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if attn_mask is not None:
        scores = scores.masked_fill(attn_mask == 0, -torch.inf)
    return torch.dropout(scores.softmax(dim=-1), dropout_p, True) @ v
class MultiHeadAttention(torch.nn.Module):
    def __init__(self, d_model, n_head):
        super().__init__()
        self.n_head = n_head
        self.to_q, self.to_k, self.to_v = [torch.nn.Linear(d_model, d_model) for _ in "qkv"]
    def forward(self, x, key, value, attn_mask=None):
        qkv = [self.to_q(x), self.to_k(key), self.to_v(value)]
        q, k, v = [y.view(*y.shape[:2], self.n_head, -1).transpose(1, 2) for y in qkv]
        heads = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=0)
        return heads.transpose(1, 2).reshape(x.shape)
"""
FILL = "scores.masked_fill(attn_mask == 0, -torch.inf)"
RIGHT = [  # what to replace, and by what
    (FILL, "scores - 1e9 * (1 - attn_mask)"),
    (FILL, "scores + attn_mask"),
    ("scores.softmax(dim=-1)", "torch.zeros(scores.shape).copy_(scores.softmax(dim=-1))"),
    ("dim=-1", "dim=-1, dtype=torch.float32"),
    ("attn_mask=None", "key_padding_mask=None, attn_mask=None"),
    ("key, value, attn_mask=None):", "attn_mask):\n        key = value = x"),
    ("class", "from torch.nn.functional import scaled_dot_product_attention\nclass"),
]
WRONG = [  # the same, and what is said
    (" / q.shape[-1] ** 0.5", "", "output: the scores are not scaled; .*"),
    ("dropout_p, True", "0.5, True", "two calls: they differ; .*"),
    ("-torch.inf", "0", "mask: it leaks; .*"),
    ("attn_mask == 0", "attn_mask", "mask, inverted: .* --mask-true"),
    ("attn_mask", "hidden", 'mask: no parameter has "mask" in its name'),
    (FILL, "score", "mask: it raises NameError.*"),
    ("-1).transpose(1, 2)", "-1)", "heads: cut .*"),
    ("=attn_mask,", "=torch.ones(x.shape[1], x.shape[1]).tril(),", "all tokens: .*"),
    ("*y.shape[:2]", "*x.shape[:2]", "inputs: more keys than queries fail; .*"),
    ("to_k(key)", "to_k(x)", "inputs: more keys than queries fail; .*"),
    ("qkv = [", "key = value = x\n        qkv = [", "inputs: .*value does not change the output"),
]

class Grade(unittest.TestCase):
    def grade(self, files, *words):
        with tempfile.TemporaryDirectory() as folder:
            for path, code in files.items():
                Path(folder, path).parent.mkdir(exist_ok=True)
                Path(folder, path).write_text(code)
            return run("tests/grade.py", *files, *words, cwd=folder)

    def test_right(self):
        files = {f"{i}.py": STUDENT.replace(*case) for i, case in enumerate(RIGHT)}
        result = self.grade(files, TOP / "attention_addition.py")
        self.assertEqual((result.returncode, result.stdout.count("ok     mask")), (0, 15), result)

    def test_wrong(self):
        result = self.grade({f"{i}.py": STUDENT.replace(*row[:2]) for i, row in enumerate(WRONG)})
        self.assertEqual(result.returncode, 1)
        for i, (_, _, line) in enumerate(WRONG):
            self.assertRegex(result.stdout, rf"(?m)^{i}\.py, \w+:\n(ok .*\n)*WRONG: {line}$")

    def test_files_and_flags(self):
        files = {"a/beside.py": STUDENT, "b/beside.py": STUDENT.replace(FILL, "scores"),
                 "a/0.py": "from beside import *", "b/0.py": "from beside import *",
                 "c/0.py": "def f(:", "d/0.py": ""}
        result = self.grade(files, "missing.py")
        self.assertEqual((result.returncode, result.stdout.count("it is ignored")), (2, 4), result)
        self.assertRegex(result.stderr, r"\Ac/.* SyntaxError.*\nd/.* neither .*\nmissing.*\n\Z")
        files = {"0.py": STUDENT.replace("attn_mask == 0", "attn_mask")}
        self.assertEqual(self.grade(files, "--mask-true", "hides").returncode, 0)
        self.assertRegex(self.grade({}, "--help").stdout, "is compared with")
