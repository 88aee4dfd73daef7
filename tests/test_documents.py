"""README.md and out/report.md against the results, scripts and command lines they speak of."""
import contextlib
import doctest
import io
import re
import shlex
import unittest
from unittest import mock

import torch

import attention_addition
import positional_sorting
from tests import tables
from tests.command import run

SCRIPTS = {"attention_addition.py": attention_addition, "positional_sorting.py": positional_sorting}

class Documents(unittest.TestCase):
    def setUp(self):
        self.texts = {name: (tables.TOP / name).read_text() for name in tables.DOCUMENTS}
        self.readme = self.texts["README.md"]

    def test_tables_are_those_of_the_results(self):
        """Whoever commits new results types `python -m tests.tables` first."""
        for name, text in self.texts.items():
            self.assertEqual(text, tables.rendered(text), name)
            self.assertEqual(text.count("<!-- table"), len(tables.BLOCK.findall(text)))

    def test_links_lead_somewhere(self):
        for name, text in self.texts.items():
            links = re.findall(r"\]\((?!http)([^)#]+)", text)
            self.assertTrue(links)
            for link in links:
                self.assertTrue((tables.TOP / name).parent.joinpath(link).exists(), link)

    def test_commands_are_understood(self):
        """Every command line of the documents parses, flags, values and all."""
        count = 0
        for text in self.texts.values():
            for script, arguments in re.findall(r"python (\w+\.py)([^`\n#&;]*)", text):
                with contextlib.redirect_stdout(io.StringIO()):
                    SCRIPTS[script].command_line().parse_args(shlex.split(arguments))
                count += 1
        self.assertGreater(count, 10)

    def test_transcripts(self):
        """What the README shows of a session is what the commands print, on both streams."""
        session = re.search(r"```console\n(.*?)```", self.readme, re.S)[1]
        count = 0
        for command, shown in re.findall(r"\$ python ([^\n]+)\n((?:[^$\n][^\n]*\n)+)", session):
            script, *arguments = shlex.split(command)
            folders = ["--data-dir", "does-not-exist", "--out-dir", "out/reference"]
            result = run(script, *arguments, *folders)
            printed = result.stderr.decode() + result.stdout.decode()
            for line in shown.splitlines():
                self.assertIn(line, printed.splitlines())
            count += 1
        self.assertGreater(count, 1)
        self.assertFalse((tables.TOP / "does-not-exist").exists())  # asking makes nothing

    def test_snippets_run(self):
        """The Python snippets of the README and the docstrings do what their comments say."""
        for module in SCRIPTS.values():
            self.assertEqual(doctest.testmod(module).failed, 0)
        encoding, session = re.findall(r"```python\n(.*?)```", self.readme, re.S)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            exec(session, {})
        expected = re.findall(r"# (\[.*\])$", session, re.M)
        self.assertTrue(expected)
        for line in expected:
            self.assertIn(line, printed.getvalue().splitlines())
        with mock.patch.dict(positional_sorting.ENCODINGS):
            exec(encoding, vars(positional_sorting).copy())
            args = positional_sorting.command_line().parse_args(["--pe", "reversed"])
            (job,) = positional_sorting.settings(args, [(True, None)])
            model = positional_sorting.SortednessEncoder(job)
            self.assertEqual(model(torch.tensor([[3, 1, 2]])).shape, (1,))

    def test_budgets_of_lines(self):
        budgets = {**dict.fromkeys(SCRIPTS, 750), "common.py": 240, "README.md": 150}
        tools = 0
        for path in [*map(tables.TOP.joinpath, budgets), *tables.TOP.glob("tests/*.py")]:
            lines = path.read_text().splitlines()
            if path.parent.name == "tests":
                tools += len(lines)
            else:
                self.assertLessEqual(len(lines), budgets[path.name], path.name)
            if path.suffix == ".py":
                self.assertLessEqual(max(map(len, lines), default=0), 100, path.name)
        self.assertLessEqual(tools, 1900)
