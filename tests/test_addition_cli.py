"""attention_addition.py as its users meet it: every case is a command of its own."""
import json
import tempfile
import unittest
from pathlib import Path

import attention_addition as add
from tests.command import CommandLineCase, contents, run

SCRIPT = "attention_addition.py"
TINY = ["--num-digits", "2", "--steps", "30", "--eval-every", "10", "--d-model", "16", "--d-ff", "16", "--n-head", "2",
        "--n-train", "200", "--n-val", "50", "--n-test", "50"]


def adder(folder, *typed, stdin=None):
    return run(SCRIPT, *TINY, "--data-dir", f"{folder}/data", "--out-dir", f"{folder}/out", *typed, stdin=stdin)


class CommandLine(CommandLineCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.trained = adder(cls.folder, "--mode", "train")
        cls.before = contents(cls.folder)
        cls.used = f"model: {cls.folder}/out/addition/best_model.pth\n".encode()

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.empty = Path(folder.name)

    def test_training_log(self):
        self.assertIn("step   20/30 | train ", self.trained.stderr.decode())
        self.assertIn("8,100 of 8,100 problems tested: ", self.trained.stdout.decode())
        log = json.loads(self.before[self.folder / "out/addition/training_log.json"])
        self.assertEqual(" ".join(sorted(log)), "best config exhaustive history machine n_params seconds test")
        self.assertEqual(set(log["machine"]), {"torch", "threads", "cpu"})
        row = "step train_loss val_loss val_accuracy val_digit_accuracy lr seconds"
        self.assertEqual([" ".join(found) for found in log["history"]], [row] * 3)
        self.assertEqual([row["step"] for row in log["history"]], [10, 20, 30])
        best = max(log["history"], key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        self.assertEqual(log["best"], {"step": best["step"], "val_accuracy": best["val_accuracy"]})
        self.assertEqual((log["test"]["n"], len(log["test"]["digit_accuracy"]), log["exhaustive"]["n"]), (50, 3, 8100))

    def test_questions(self):
        model = add.load(self.folder / "out/addition/best_model.pth")
        first, second = add.solve(model, [(34, 15), (99, 10)])
        file = self.empty / "questions"
        file.write_text("34+15\n\n 099 + 10 \r\n")
        for typed in (["34+15", "99+10"], ["--mode", "infer", "34+15", "99+10"], [str(file)], ["-"]):
            result = adder(self.folder, *typed, stdin=file.read_bytes())
            self.assertEqual((result.stdout.decode(), result.returncode), (f"34+15={first}\n99+10={second}\n", 0))
            self.assertEqual(result.stderr, self.used + b"%d of 2 right\n" % ((first == 49) + (second == 109)))
        self.assertEqual(adder(self.folder, "34", "+", "15").stdout.decode(), f"34+15={first}\n")
        self.assertEqual(adder(self.folder, "-").stdout, b"")
        records = self.folder / "data/addition/train.jsonl"
        problems = []
        for line in records.read_text().splitlines():
            a1, a2, _, b1, b2 = json.loads(line)["input"]
            problems.append((10 * a1 + a2, 10 * b1 + b2))
        expected = [f"{a}+{b}={answer}" for (a, b), answer in zip(problems, add.solve(model, problems))]
        self.assertEqual(adder(self.folder, str(records)).stdout.decode().splitlines(), expected)
        self.assertEqual(contents(self.folder), self.before)

    def test_wrong_problems(self):
        cases = {"12+3": "numbers from 10 to 99; type --num-digits", "123+45": "from 10 to 99",
                 "1a+22": "expected a problem such as 347.159, found", "12-13": "expected a", "1+2+3": "expected a",
                 "\u0661\u0662+13": "expected a problem", "9" * 100_000 + "+12": "from 10 to 99", "{": "is not JSON",
                 '{"input": [0, 2, 10, 1, 3], "target": [0, 1, 5]}': "from 10 to 99",
                 '{"input": [1, 2, 10, 1, 3], "target": [0, 2, 6]}': '"target": expected .0, 2, 5., found .0, 2, 6.'}
        for problem, sentence in cases.items():
            result = adder(self.folder, "--mode", "infer", "--", problem)
            result.stderr = result.stderr.removeprefix(self.used)
            self.assert_error(result, sentence)

    def test_wrong_flags(self):
        cases = {
            "--mode dance": "invalid choice",
            "--steps 0": "whole number from 1 to",
            "--steps 1.5": "whole number",
            "--lr nan": "a number of 0 or more",
            "--lr inf": "a number of 0 or more",
            "--num-digits 16": "from 1 to 15",
            "--step 10": "unrecognized",
            "--mode infer": "type for example --mode infer 347",
            "--mode train 34+15": "problems go with --mode infer or analyze",
            "--mode analyze --reverse": "--mode analyze follows carries .*--mode train",
            f"--mode train --out-dir {self.folder}/data": "inside a data set; choose an --out-dir",
        }
        for typed, sentence in cases.items():
            with self.subTest(typed):
                self.assert_error(adder(self.folder, *typed.split()), sentence)

    def test_analyze(self):
        """From nothing to figures, with a second model; then again, with nothing left to train; then one problem."""
        first = adder(self.empty, "--model-seeds", "2")
        self.assertEqual(first.returncode, 0, first.stderr)
        files = contents(self.empty)
        again = adder(self.empty, "--mode", "analyze")
        self.assertNotIn(b"train:", again.stderr)
        self.assertEqual(contents(self.empty), files)
        for said in (b"heads 0 cost more", b"rank correlation", b"can be removed", b"carry, units", b"probe, carry"):
            self.assertIn(said, again.stdout)
        out = self.empty / "out/addition"
        names = ["best_model.pth", "training_log.json", "training_curves.png", "seeds/2.pth"]
        names += [f"attention_patterns/{stage}.png" for stage in ("enc", "dec", "cross")]
        for table in ("ablation", "importance", "pruning", "carry", "probe", "attention"):
            names += [f"head_analysis/{table}.json", f"head_analysis/{table}.png"]
        data = {self.empty / "data/addition" / f"{split}.jsonl" for split in add.SPLITS}
        data.add(self.empty / "data/addition/settings.json")
        self.assertEqual(set(files), {out / name for name in names} | data)
        drawn = adder(self.empty, "--mode", "analyze", "34+15")
        self.assertEqual(drawn.stdout.decode(), f"{out}/attention_patterns/example_34+15.png\n")
        self.assertTrue((out / "attention_patterns/example_34+15.png").read_bytes().startswith(b"\x89PNG"))

    def test_infer_trains_what_it_does_not_find(self):
        result = adder(self.empty, "--reverse", "--leading-zeros", "--model-seed", "7", "7+15")
        self.assertRegex(result.stdout.decode(), r"7\+15=\d{1,3}\n\Z")
        self.assertRegex(result.stderr, rb"^model: none with these settings.*\n(data: .*\n)?train: model seed 7")


if __name__ == "__main__":
    unittest.main()
