"""What the tests of both command lines share: run a script as a user does, and look at what it leaves behind."""
import subprocess
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]


def run(script, *arguments, stdin=None):
    return subprocess.run([sys.executable, script, *arguments], cwd=TOP, capture_output=True, input=stdin, timeout=300)


def side_by_side(commands, stdins=None):
    """Run command lines two at a time: most of each is the import of torch."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda command, stdin: run(*command, stdin=stdin), commands,
                             stdins or [None] * len(commands)))


def contents(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


class CommandLineCase(unittest.TestCase):
    """A test case with a folder of earlier results, self.folder, whose contents were self.before."""

    def assert_error(self, result, sentence):
        message = result.stderr.decode()
        self.assertEqual(result.returncode, 2, message)
        self.assertRegex(message, sentence)
        self.assertTrue(message.startswith("error: ") and message.count("\n") == 1, message)
        self.assertEqual(contents(self.folder), self.before)


def refused_checkpoints(case, script, place, whole, question):
    """The results of asking models that are empty, cut short, foreign, or code; the code must not have been run."""
    with tempfile.TemporaryDirectory() as elsewhere:
        trap = Path(elsewhere) / "trap"
        code = b"cos\nsystem\n(S'touch %s'\ntR." % str(trap).encode()
        bad = [b"", whole[:1000], whole[:-100], b"hello", code]
        for i, content in enumerate(bad):
            path = Path(elsewhere) / str(i) / place / "best_model.pth"
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
        results = side_by_side([[script, "--mode", "infer", "--out-dir", str(Path(elsewhere) / str(i)), question]
                                for i in range(len(bad))])
        case.assertFalse(trap.exists())
    return results
