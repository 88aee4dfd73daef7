"""README.md, out/report.md and the scripts against the results and commands they speak of."""
import ast
import collections
import contextlib
import doctest
import io
import os
import re
import shlex
import tempfile
import tokenize
import unittest
from unittest import mock

import attention_addition
import common
import positional_sorting
from tests import tables
from tests.command import TOP, contents, run

SCRIPTS = {"attention_addition.py": attention_addition, "positional_sorting.py": positional_sorting}
BUDGETS = {"attention_addition.py": (5960, 900), "positional_sorting.py": (6520, 990),
           "common.py": (1600, 215), "tests": (15_400, 1_660)}  # code tokens, lines

def tokens_by_line(source):
    """{line: how many code tokens it holds}, without comments and docstrings."""
    docstrings = set()
    kinds = (ast.Module, ast.FunctionDef, ast.ClassDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and ast.get_docstring(node):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    code = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)
    found = collections.Counter()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in code and token.start[0] not in docstrings:
            found[token.start[0]] += 1
    return found

def execute(code, names):
    """Run a snippet; what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        exec(code, names)
    return printed.getvalue()

class Documents(unittest.TestCase):
    def setUp(self):
        self.texts = {name: (TOP / name).read_text() for name in tables.DOCUMENTS + tables.SCRIPTS}
        self.readme = self.texts["README.md"]

    def test_tables_are_those_of_the_results(self):
        """Whoever commits new results types `python -m tests.tables` first."""
        for name, text in self.texts.items():
            self.assertEqual(text, tables.rendered(name), name)
            self.assertNotIn("TABLE", text)

    def test_links_lead_somewhere(self):
        for name in tables.DOCUMENTS:
            links = re.findall(r"\]\((?!http)([^)#]+)", self.texts[name])
            self.assertTrue(links)
            for link in links:
                self.assertTrue((TOP / name).parent.joinpath(link).exists(), link)

    def test_commands_are_understood(self):
        """Every command line of the documents and docstrings parses."""
        count = 0
        for text in self.texts.values():
            for script, words in re.findall(r"python (\w+\.py)((?: [^`\n#&;]*)?)", text):
                module = SCRIPTS[script]
                parser = common.flags(module.Config, module.MODES, module.__doc__)
                parser.parse_args(shlex.split(words.split("   ")[0]))
                count += 1
        self.assertGreater(count, 15)

    def test_transcripts(self):
        """What the README shows of a session is what the commands print, on both streams."""
        session = re.search(r"```console\n(.*?)```", self.readme, re.S)[1]
        shown = re.findall(r"\$ python ([^\n]+)\n((?:[^$\n][^\n]*\n)+)", session)
        self.assertEqual(len(shown), 2)
        for command, lines in shown:
            result = run(*shlex.split(command), "--out-dir", "does-not-exist", cwd=TOP)
            self.assertEqual(result.stderr + result.stdout, lines)

    def test_snippets_run(self):
        """The Python of README and docstrings does what it says, and touches no file."""
        for module in SCRIPTS.values():
            self.assertEqual(doctest.testmod(module).failed, 0)
        encoding, session = re.findall(r"```python\n(.*?)```", self.readme, re.S)
        os.chdir(TOP)
        self.assertIn("[[0, 3, 9, 8]]", execute(session.replace("500", "5"), {}))
        with mock.patch.dict(positional_sorting.ENCODINGS):
            execute(encoding, vars(positional_sorting).copy())
            config = positional_sorting.Config(pe="reversed")
            model = positional_sorting.SortednessEncoder(config)
            self.assertEqual(len(positional_sorting.solve(model, [[3, 1, 2]])), 1)
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            self.addCleanup(os.chdir, TOP)
            for module in SCRIPTS.values():
                snippet = re.search(r"touched|written:\n\n((?:  .*\n)+)", module.__doc__)[1]
                snippet = re.sub(r"^  |   the prob.*", "", snippet, flags=re.M)
                execute(snippet.replace("500", "5"), vars(module).copy())
            self.assertEqual(contents(), {})

    def test_budgets(self):
        lines = len(self.readme.splitlines())
        self.assertTrue(lines <= 150 and len(self.readme.split()) <= 1300, lines)
        total = collections.Counter()
        for path in [*TOP.glob("*.py"), *TOP.glob("tests/*.py")]:
            source = path.read_text()
            name = path.name if path.parent == TOP else "tests"
            found = tokens_by_line(source)
            total[name, 0] += sum(found.values())
            total[name, 1] += len(source.splitlines())
            for number, line in enumerate(source.splitlines(), 1):
                self.assertLessEqual(len(line), 100, (path, number))
                if name in SCRIPTS and line.lstrip().startswith("# "):
                    self.assertLessEqual(len(line), 88, (path, number))
            if name in BUDGETS and name != "tests":
                dense = sum(n >= 25 for n in found.values())
                self.assertLessEqual(dense, 0.045 * len(found), path)
        for name, budget in BUDGETS.items():
            for i in (0, 1):
                self.assertLessEqual(total[name, i], budget[i], name)

if __name__ == "__main__":
    unittest.main()
