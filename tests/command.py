"""What the tests of both command lines share: run a script as a user does, and look at what it leaves behind."""
import io
import json
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace

import torch

TOP = Path(__file__).resolve().parents[1]

# Most of a short command's time is the import of torch and of what its optimizers need. So one process imports them and
# then forks, once per command.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "torch._dynamo", "matplotlib.pyplot"])
LOCK = threading.Lock()  # of two threads that ask for the exit code of the same process, one would get 255


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
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(TOP))
    runpy.run_path(script, run_name="__main__")


def run(script, *arguments, stdin=None, kill_when=None, most_bytes=None, timeout=300):
    """Run a command line; return its returncode, stdout and stderr, and whether it was killed.

    It gets SIGKILL as soon as kill_when() is true. With most_bytes no file can grow further than that, as if the disk
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
            running = not ended
            if running:
                process.kill()
            process.join()
        out, err = (Path(folder, name).read_bytes() for name in ("stdout", "stderr"))
        if running and kill_when is None:
            raise TimeoutError(f"{script} {arguments}: still running after {timeout} s\n{err.decode()}")
        return SimpleNamespace(returncode=process.exitcode, stdout=out, stderr=err,
                               killed=process.exitcode == -signal.SIGKILL)


def shell(line, *command, **variables):
    """Let bash run a line in which "$@" stands for python with a command line; a process that imports torch itself."""
    return subprocess.run(["bash", "-c", line, "bash", sys.executable, *command], cwd=TOP, capture_output=True,
                          env=os.environ | variables, timeout=300)


def ctrl_c(sign, *command):
    """Press Ctrl-C when a line with `sign` appears; return the exit code and what is said after that."""
    process = subprocess.Popen([sys.executable, *command], cwd=TOP, stderr=subprocess.PIPE,
                               # a shell's background job, which the tests may be, ignores Ctrl-C
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while sign not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].decode().splitlines()
    return process.returncode, [line for line in said if not line.startswith(("step", "import time"))]


def side_by_side(commands, stdins=None):
    """Run command lines two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda command, stdin: run(*command, stdin=stdin), commands,
                             stdins or [None] * len(commands)))


def contents(folder):
    """Return {path: bytes} of all results: hidden files and folders (locks, half-written files) are none."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            found[path] = path.read_bytes()
    return found


def whole_results(folder):
    """{name: content} of all results; each must be whole. What a clock has measured is left out."""
    found = {}
    for path, content in contents(folder).items():
        if path.suffix == ".json":
            assert b"NaN" not in content and b"Infinity" not in content, path
            json.loads(content)
            content = re.sub(rb'"seconds": [0-9.]+', b"", content)
        elif path.suffix == ".jsonl":
            assert content.endswith(b"}\n") and [json.loads(line) for line in content.splitlines()], path
        elif path.suffix == ".png":
            assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82"), path
        else:
            torch.load(io.BytesIO(content), weights_only=True)
        found[path.relative_to(folder).as_posix()] = content
    return found


class CommandLineCase(unittest.TestCase):
    """A test case with a folder of earlier results, self.folder, whose contents were self.before."""

    def assert_error(self, result, sentence):
        message = result.stderr.decode()
        self.assertEqual(result.returncode, 2, message)
        self.assertRegex(message, sentence)
        self.assertTrue(message.startswith("error: ") and message.count("\n") == 1, message)
        self.assertTrue(contents(self.folder) == self.before)
