"""README.md and out/report.md against the results and the command lines that they speak of."""
import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import attention_addition
import positional_sorting
from tests import growth, tables
from tests.command import run

SCRIPTS = {"attention_addition.py": attention_addition, "positional_sorting.py": positional_sorting}


def results_are_committed():
    """Whether out/ holds the results that the documents speak of; whoever has run a script has results of their own."""
    command = ["git", "status", "--porcelain", "--", "out", ":!out/report.*"]
    status = shutil.which("git") and subprocess.run(command, cwd=tables.TOP, capture_output=True)
    return bool(status) and status.returncode == 0 and not status.stdout


class Documents(unittest.TestCase):
    def setUp(self):
        self.texts = {name: (tables.TOP / name).read_text() for name in tables.DOCUMENTS}

    @unittest.skipUnless(results_are_committed(), "out/ holds other results than the committed ones")
    def test_tables_are_those_of_the_results(self):
        """Whoever commits new results types `python -m tests.tables` first."""
        for name, text in self.texts.items():
            self.assertEqual(text, tables.rendered(text), name)

    def test_every_table_of_the_report_is_made_from_results(self):
        rest = tables.BLOCK.sub("", self.texts["out/report.md"])
        self.assertNotRegex(rest, r"(?m)^\|")
        self.assertGreater(len(tables.BLOCK.findall(self.texts["out/report.md"])), 10)

    def test_a_changed_number_is_noticed(self):
        text = self.texts["out/report.md"]
        for block in tables.BLOCK.finditer(text):
            place = block.start(2) + re.search(r"\d(?=\D*$)", block[2]).start()  # its last digit
            changed = text[:place] + str(9 - int(text[place])) + text[place + 1:]
            self.assertNotEqual(changed, tables.rendered(changed), block[1])

    def test_links_lead_somewhere(self):
        for name, text in self.texts.items():
            links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
            self.assertTrue(links)
            for link in links:
                self.assertTrue((tables.TOP / name).parent.joinpath(link).exists(), f"{name}: {link}")

    def test_commands_are_understood(self):
        """Every command line of the documents parses, flags, values and all."""
        count = 0
        for text in self.texts.values():
            for script, arguments in re.findall(r"python (attention_addition|positional_sorting)\.py([^`\n#&]*)", text):
                typed = shlex.split(arguments.split("  ")[0])
                with contextlib.redirect_stdout(io.StringIO()):
                    SCRIPTS[f"{script}.py"].command_line().parse(typed)
                count += 1
        self.assertGreater(count, 10)

    def test_answers_are_as_promised(self):
        """Where the README says that a command prints something, it does."""
        promises = re.findall(r"`python (\w+\.py) ([^`]+)` prints `([^`]+)`", self.texts["README.md"])
        self.assertGreater(len(promises), 1)
        for script, arguments, printed in promises:
            self.assertEqual(run(script, *shlex.split(arguments)).stdout.decode(), printed + "\n")

    def test_tools_run(self):
        """The tools that are run by hand, in small."""
        with contextlib.redirect_stderr(io.StringIO()):
            row = growth.train_adder(3, 4, 1)
        self.assertRegex(row, r"^\| 3 \| 7 \+ 4 \| [\d.]+ \| \d+ \| [\d.]+% \| \d of 5 \|$")
        self.assertRegex(growth.ask_about_lists(16, 100, 1), r"^\| 16 \| 100 \| [\d.]+ \| \d+ \| 100.0% \|$")
        words = [sys.executable, "-m", "tests.benchmark", "--rounds", "1"]
        result = subprocess.run(words, cwd=tables.TOP, capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, r"forward \+ backward \+ update +[\d.]+ +[\d.]+ +[\d.]+\n")

    @unittest.skipUnless(shutil.which("pandoc") and shutil.which("weasyprint"), "pandoc or weasyprint is not installed")
    def test_report_becomes_a_pdf(self):
        command = re.search(r"```sh\ncd out && (pandoc .*)\n```", self.texts["README.md"])[1]
        with tempfile.TemporaryDirectory() as folder:
            ignore = shutil.ignore_patterns("*.pth", "*.pdf")
            shutil.copytree(tables.TOP / "out", folder, ignore=ignore, dirs_exist_ok=True)
            subprocess.run(command, shell=True, cwd=folder, capture_output=True, check=True)
            self.assertTrue(Path(folder, "report.pdf").read_bytes().startswith(b"%PDF"))


if __name__ == "__main__":
    unittest.main()
