"""What the tests of both command lines share: run a script as a user does, and look at what it leaves behind."""
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace

TOP = Path(__file__).resolve().parents[1]

# Most of a short command's time is the import of torch. So one process imports it and then splits, once a command.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "matplotlib.pyplot"])
# To start one looks after the others, and of two threads that ask for the same exit code one gets 255.
LOCK = threading.Lock()


def _be_script(script, arguments, folder, most_bytes):
    """Do, in a process of its own, what `python script arguments` does."""
    os.chdir(TOP)
    if most_bytes is not None:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(os.open(Path(folder, name), os.O_RDWR), fd)
        errors = "backslashreplace" if name == "stderr" else "strict"  # as Python itself opens them
        setattr(sys, name, open(fd, "r" if fd == 0 else "w", closefd=False, errors=errors))
    sys.argv, sys.path[0:0] = [script, *arguments], [str(TOP)]
    runpy.run_path(script, run_name="__main__")


def run(script, *arguments, stdin=None, kill_when=None, most_bytes=None, timeout=300):
    """Run a command line; return its returncode, stdout and stderr.

    It gets SIGKILL as soon as kill_when() is true; with most_bytes, no file can grow further than that, as if the disk
    were full.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (("stdin", stdin or b""), ("stdout", b""), ("stderr", b"")):
            Path(folder, name).write_bytes(content)
        process = PROCESSES.Process(target=_be_script, args=(script, arguments, folder, most_bytes))
        with LOCK:
            process.start()
        ended = wait([process.sentinel], timeout if kill_when is None else 0)
        while not ended and kill_when and not kill_when():
            ended = wait([process.sentinel], 0.005)
        with LOCK:
            if running := not ended:
                process.kill()
            process.join()
        out, err = (Path(folder, name).read_bytes() for name in ("stdout", "stderr"))
        if running and kill_when is None:
            raise TimeoutError(f"{script} {arguments}: still running after {timeout} s\n{err.decode()}")
        return SimpleNamespace(returncode=process.exitcode, stdout=out, stderr=err,
                               killed=process.exitcode == -signal.SIGKILL)


def side_by_side(commands, stdins=None):
    """Run command lines two at a time."""
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
