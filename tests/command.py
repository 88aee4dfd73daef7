"""Run a command line as a user does: in this process (call), or in one of its own (run)."""
import contextlib
import hashlib
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

TOP = Path(__file__).resolve().parents[1]

def run(script, *words, **options):
    """The result of `python script words`, with returncode, stdout and stderr."""
    env = {**os.environ, "PYTHONPATH": str(TOP), "PYTHONWARNINGS": "ignore"}
    return subprocess.run([sys.executable, TOP / script, *words], capture_output=True, text=True,
                          env=env, **options)

def call(script, line):
    """The same, of an imported script."""
    import common  # here, so that a test can see what its import changes
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = mock.patch("sys.argv", [script.__file__, *shlex.split(line)])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            parser = common.flags(script.Config, script.MODES, script.__doc__)
            common.run(script.main, parser, script.Config)
        except SystemExit as end:
            code = end.code
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())

def contents(folder="."):
    """{path: hash} of all files below a folder."""
    paths = filter(Path.is_file, Path(folder).rglob("*"))
    return {path.as_posix(): hashlib.md5(path.read_bytes()).hexdigest() for path in paths}
