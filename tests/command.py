"""Run a command line as a user does, in a forked process (run) or in this one (call)."""
import contextlib
import io
import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import common

TOP = Path(__file__).resolve().parents[1]

# Most of a short command's time is the import of torch and of what its optimizers need. So one
# process imports them and then forks, once per command.
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
        Path(streams, "stdin").touch()
        given = (str(TOP / script), arguments, streams, os.getcwd())
        process = PROCESSES.Process(target=be_script, args=given)
        process.start()
        process.join()
        out, err = [Path(streams, name).read_bytes() for name in ("stdout", "stderr")]
    return SimpleNamespace(returncode=process.exitcode, stdout=out, stderr=err)

def call(script, *arguments, stdin=""):
    """The same for an imported script (the module), in this process; the texts in lines."""
    texts = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("sys.argv", [script.__file__, *arguments]))
        stack.enter_context(mock.patch("sys.stdin", io.StringIO(stdin)))
        stack.enter_context(contextlib.redirect_stdout(texts[0]))
        stack.enter_context(contextlib.redirect_stderr(texts[1]))
        try:
            common.run(script.main, script.command_line())
            code = 0
        except SystemExit as end:
            code = end.code
    out, err = [text.getvalue().splitlines() for text in texts]
    return SimpleNamespace(returncode=code, stdout=out, stderr=err)

def contents(folder="."):
    """Return {path: bytes} of all files below a folder."""
    return {path.as_posix(): path.read_bytes() for path in Path(folder).rglob("*")
            if path.is_file()}
