"""tests/compare.py draws the trainings of a class.    python -m unittest tests.test_class"""
import contextlib
import io
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from common import UserError
from tests import compare

TOP = Path(__file__).resolve().parents[1]


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
