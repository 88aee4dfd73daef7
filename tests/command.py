"""Run a command line as a user does, in a forked process (run) or in this one (call)."""
import contextlib
import hashlib
import io
import multiprocessing
import os
import runpy
import shlex
import sys
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

TOP = Path(__file__).resolve().parents[1]

# One process imports torch and what its optimizers need, which is slow, and forks per command.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "torch._dynamo", "matplotlib.figure"])

def be_script(script, words, streams, folder):
    """Do, in a process of its own, what `python script words` does in a folder."""
    os.chdir(folder)
    for fd, name in enumerate(["stdin", "stdout", "stderr"]):
        os.dup2(os.open(Path(streams, name), os.O_RDWR | os.O_CREAT), fd)
        setattr(sys, name, open(fd, "w" if fd else "r", closefd=False))
    sys.argv = [script, *words]
    sys.path.insert(0, str(TOP))
    runpy.run_path(script, run_name="__main__")

def run(script, *arguments):
    """Return its returncode, stdout and stderr (bytes)."""
    with tempfile.TemporaryDirectory() as streams:
        given = (str(TOP / script), arguments, streams, os.getcwd())
        process = PROCESSES.Process(target=be_script, args=given)
        process.start()
        process.join()
        out, err = [Path(streams, name).read_bytes() for name in ("stdout", "stderr")]
    return SimpleNamespace(returncode=process.exitcode, stdout=out, stderr=err)

def call(script, words, stdin=""):
    """Do it in this process; script is the imported module. Both streams are lists of lines."""
    import common  # here, so that a test of run can see what its import changes
    argv = mock.patch("sys.argv", [script.__file__, *words])
    keyboard = mock.patch("sys.stdin", io.StringIO(stdin))
    out, err, code = io.StringIO(), io.StringIO(), 0
    with argv, keyboard, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            common.run(script.main, script.command_line())
        except SystemExit as end:
            code = end.code
    lines = [stream.getvalue().splitlines() for stream in (out, err)]
    return SimpleNamespace(returncode=code, stdout=lines[0], stderr=lines[1])

def contents(folder=".", pattern="*"):
    """Return {path: hash} of all files below a folder."""
    paths = filter(Path.is_file, Path(folder).rglob(pattern))
    return {path.as_posix(): hashlib.md5(path.read_bytes()).hexdigest() for path in paths}

class CommandCase(unittest.TestCase):
    def wrong(self, script, sentence, line):
        """A command line that ends in this sentence and changes no file; what it says before."""
        before = contents()
        with self.subTest(line):
            result = call(script, shlex.split(line))
            *said, last = result.stderr
            self.assertRegex(last, rf"^(\w+\.py: )?error: .*{sentence}")
            self.assertEqual(result.returncode, 2)
            self.assertNotRegex("".join(result.stderr), "(?i)remove|delete|traceback|error.*error")
            self.assertEqual(contents(), before)
            return said

    def good(self, script, line, stdin="", train=None):
        """One that works, without a training unless one is given."""
        with mock.patch.object(script, "train", train):
            result = call(script, shlex.split(line), stdin)
        self.assertEqual(result.returncode, 0, (line, result.stderr))
        return result
