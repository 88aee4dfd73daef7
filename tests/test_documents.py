"""README.md and out/report.md against the results and the command lines that they speak of."""
import contextlib
import io
import re
import shlex
import unittest

import attention_addition
import positional_sorting
from tests import tables

SCRIPTS = {"attention_addition.py": attention_addition, "positional_sorting.py": positional_sorting}


class Documents(unittest.TestCase):
    def setUp(self):
        self.texts = {name: (tables.TOP / name).read_text() for name in tables.DOCUMENTS}

    def test_tables_are_those_of_the_results(self):
        """Whoever makes new results types `python -m tests.tables`."""
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


if __name__ == "__main__":
    unittest.main()
