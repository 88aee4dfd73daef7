"""README.md, out/report.md and the scripts against the results and commands they speak of."""
import collections
import doctest
import io
import re
import shlex
import sys
import tempfile
import tokenize
import unittest
from pathlib import Path

import attention_addition
import common
import positional_sorting
from tests import tables
from tests.command import TOP, contents, run

SCRIPTS = {"attention_addition.py": attention_addition, "positional_sorting.py": positional_sorting}
TEXTS = {name: (TOP / name).read_text() for name in tables.DOCUMENTS + tables.SCRIPTS}
README = TEXTS["README.md"]
BUDGETS = {"attention_addition.py": (5500, 830), "positional_sorting.py": (5700, 870),
           "common.py": (1610, 212), "tests": (13_500, 1_600)}  # code tokens, lines

def tokens_by_line(source):
    """{line: how many code tokens it holds}, without comments and docstrings."""
    code = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)
    found = collections.Counter()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in code and not token.string.startswith('"""'):
            found[token.start[0]] += 1
    return found

class Documents(unittest.TestCase):
    def test_tables_are_those_of_the_results(self):
        """Whoever commits new results types `python -m tests.tables` first."""
        for name, text in TEXTS.items():
            self.assertEqual(text, tables.rendered(name))

    def test_numbers_outside_of_tables(self):
        fresh = tables.lines_of("addition/confirm.json")
        wrong = tables.each(fresh, "wrong")
        apart = 0  # models in which cross-attention alone brings both, by at most two heads each
        for (heads, x), (others, y) in [who.values() for who in tables.each(fresh, "who", "tens")]:
            apart += min(x, y) >= 0.9 and "enc" not in heads + others
        _, ((_, cross, encoder, *_), (*_, none), _) = tables.confirmed()
        _, ((heads, wrong_bits, _),) = tables.one_bit()
        assert wrong_bits == 0
        single = [found["tens"] for found in tables.each(tables.brings(), "brought")]
        most = tables.percent(max(max(tables.each(rows.values(), "both")) for rows in single))
        alone = tables.percent(single[0]["cross.L0.H0"]["column"])
        _, ((_, adjacent, *_, mirrored),) = tables.mirror()
        (slopes,) = tables.accuracies("alibi-causal", ["256"], "paper_slopes/sorting")
        _, ((_, *_, both, _), (*_, other, _)) = tables.fresh()
        gaps = [min(map(min, g[:3])) - max(map(max, g[3:])) for g in tables.each(
            tables.models("sorting", "analysis/analysis"), "waves")]
        for name, sentences in {
            "README.md": [f"in {wrong.count(0)} of {len(wrong)} fresh ones",
                          f"{cross} bring the carry into the tens by one such head, {encoder} by",
                          f"Of ten fresh models nine are then right on {both}%, one on {other}%"],
            "attention_addition.py": [f"{apart} are like the four, and {none} like seed 4",
                                      f"{heads[-9:-7]} have such heads, {heads[:2]} in all",
                                      f"in more than {most}%", f"in {alone}%"],
            "positional_sorting.py": [f"reversed lists {mirrored}% are", f"swaps {adjacent}%",
                                      f"is right on {slopes}% at 256",
                                      f"beyond, by {tables.spread(gaps)} points"]}.items():
            text = " ".join(TEXTS[name].replace("\n#", "").replace(" to ", "-").split())
            for sentence in sentences:
                assert sentence in text, sentence

    def test_links_lead_somewhere(self):
        for name in tables.DOCUMENTS:
            links = re.findall(r"\]\((?!http)([^)#]+)", TEXTS[name])
            assert links
            for link in links:
                assert (TOP / name).parent.joinpath(link).exists(), link

    def test_commands_are_understood(self):
        """Every command line of the documents and docstrings parses."""
        count = 0
        for text in TEXTS.values():
            for script, words in re.findall(r"python (\w+\.py)((?: [^`\n#&;]*)?)", text):
                module = SCRIPTS[script]
                parser = common.flags(module.Config, module.MODES, module.__doc__)
                parser.parse_args(shlex.split(words.split("   ")[0]))
                count += 1
        assert count > 15

    def test_transcripts(self):
        """What the README shows of a session is what the commands print, on both streams."""
        session = re.search(r"```console\n(.*?)```", README, re.S)[1]
        shown = re.findall(r"\$ python ([^\n]+)\n((?:[^$\n][^\n]*\n)+)", session)
        assert len(shown) == 2
        for command, lines in shown:
            result = run(*shlex.split(command), "--out-dir", "does-not-exist", cwd=TOP)
            self.assertEqual(result.stderr + result.stdout, lines)

    def test_snippets_run(self):
        """The Python of README and docstrings does what it says, and touches no file."""
        encoding, session = re.findall(r"```python\n(.*?)```", README, re.S)
        code = session
        for module in SCRIPTS.values():
            assert doctest.testmod(module).failed == 0
            lines = re.search(r"written:\n\n((?:  .*\n)+)", module.__doc__)[1]
            lines = re.sub(r"^  |   the prob.*", "", lines, flags=re.M)
            code += f"from {module.__name__} import *\n{lines}"
        code += f"{encoding}\nsolve(SortednessEncoder(Config('reversed')), [[3, 1, 2]])"
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "out").symlink_to(TOP / "out")
            path = Path(folder, "snippets.py")
            path.write_text(code.replace("500", "5"))
            before = contents(folder)
            result = run(path, cwd=folder)
            assert result.returncode == 0, result
            self.assertIn("[[0, 3, 9, 8]]", result.stdout)
            assert contents(folder) == before

    @unittest.skipIf(sys.version_info >= (3, 12), "f-strings are no longer one token")
    def test_budgets(self):
        assert len(README.splitlines()) <= 150
        assert len(README.split()) <= 1300
        total = collections.Counter()
        for path in [*TOP.glob("*.py"), *TOP.glob("tests/*.py")]:
            source = path.read_text()
            name = path.name if path.parent == TOP else "tests"
            assert not re.search(".{101}", source), path
            assert name == "tests" or not re.search("^ *# .{87}", source, re.M), path
            found = tokens_by_line(source)
            total[name, 0] += sum(found.values())
            total[name, 1] += len(source.splitlines())
            if name != "tests":
                dense = sum(n >= 25 for n in found.values())
                assert dense <= 0.04 * len(found), path
        for name, budget in BUDGETS.items():
            for i in (0, 1):
                self.assertLessEqual(total[name, i], budget[i], name)
