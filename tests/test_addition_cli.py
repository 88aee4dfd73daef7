"""attention_addition.py as its users meet it: a subprocess a case."""
import json
import tempfile
import unittest
from pathlib import Path

from tests.command import CommandLineCase, contents, refused_checkpoints, run, side_by_side

SCRIPT = "attention_addition.py"
TINY = ["--num-digits", "2", "--steps", "30", "--eval-every", "10", "--d-model", "16", "--d-ff", "16", "--n-head", "2",
        "--n-layer", "1", "--n-train", "200", "--n-val", "50", "--n-test", "50", "--threads", "1"]


def adder(*arguments, stdin=None):
    return run(SCRIPT, *arguments, stdin=stdin)


def adders(commands, stdins=None):
    return side_by_side([[SCRIPT, *command] for command in commands], stdins)


class CommandLine(CommandLineCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.places = ["--data-dir", str(cls.folder / "data"), "--out-dir", str(cls.folder / "out")]
        cls.run_ = adder("--mode", "train", *TINY, *cls.places)
        cls.before = contents(folder.name)

    def test_train_makes_what_it_needs(self):
        self.assertEqual(self.run_.returncode, 0, self.run_.stderr)
        data, out = ("train.jsonl", "val.jsonl", "test.jsonl", "settings.json"), ("best_model.pth", "training_log.json",
                                                                                "training_curves.png")
        self.assertEqual({str(path.relative_to(self.folder)) for path in self.before},
                         {f"data/addition/{name}" for name in data} | {f"out/addition/{name}" for name in out})
        self.assertIn("step   20/30 | train ", self.run_.stderr.decode())
        self.assertIn("8,100 problems", self.run_.stdout.decode())

    def test_training_log(self):
        log = json.loads((self.folder / "out/addition/training_log.json").read_text())
        self.assertEqual([row["step"] for row in log["history"]], [10, 20, 30])
        for key in ("train_loss", "val_loss", "val_accuracy", "val_digit_accuracy", "lr", "seconds"):
            self.assertIn(key, log["history"][0])
        self.assertEqual(len(log["history"][0]["val_digit_accuracy"]), 3)
        self.assertEqual((log["test"]["n"], log["exhaustive"]["n"]), (50, 8100))
        self.assertEqual(len(log["test"]["teacher_forced"]), 3)
        best = max(log["history"], key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        self.assertEqual(log["best"], {"step": best["step"], "val_accuracy": best["val_accuracy"]})
        for table in ("carries", "longest_chain"):
            rows = log["exhaustive"][table].values()
            self.assertEqual(sum(row["n"] for row in rows), 8100)
            self.assertEqual(sum(row["errors"] for row in rows), log["exhaustive"]["errors"])

    def test_same_command_same_bytes(self):
        other = self.folder / "again"
        self.addCleanup(lambda: [path.unlink() for path in other.rglob("*.*")])
        places = ["--data-dir", str(other / "data"), "--out-dir", str(other / "out")]
        self.assertEqual(adder("--mode", "train", *TINY, *places).returncode, 0)
        for name in ("train", "val", "test"):
            path = f"data/addition/{name}.jsonl"
            self.assertEqual((other / path).read_bytes(), self.before[self.folder / path])
        logs = [json.loads((place / "out/addition/training_log.json").read_text()) for place in (self.folder, other)]
        for log in logs:
            del log["seconds"], log["exhaustive"]["seconds"]
            for row in log["history"]:
                del row["seconds"]
        self.assertEqual(*logs)

    def test_analyze(self):
        """--mode all analyses too; here a second model seed, then again with nothing left to train."""
        with tempfile.TemporaryDirectory() as folder:
            command = ["--data-dir", folder, "--out-dir", folder, "--model-seeds", "2"]
            first = adder("--mode", "all", *TINY, *command)
            self.assertEqual(first.returncode, 0, first.stderr)
            out = Path(folder) / "addition"
            seed2 = (out / "seeds/2.json").stat().st_mtime_ns
            again = adder("--mode", "analyze", *command, "--threads", "1")
            self.assertEqual(again.returncode, 0, again.stderr)
            self.assertEqual((out / "seeds/2.json").stat().st_mtime_ns, seed2)
            # a summary line for every finding, the same both times
            self.assertTrue(first.stdout.decode().endswith(again.stdout.decode()))
            for name in ("ablation", "importance", "pruning", "carry", "seeds"):
                json.loads((out / f"head_analysis/{name}.json").read_text())
                self.assertTrue((out / f"head_analysis/{name}.png").read_bytes().startswith(b"\x89PNG"))
            ablation = json.loads((out / "head_analysis/ablation.json").read_text())
            names = [f"{kind}.L0.H{h}" for kind in ("enc", "dec", "cross") for h in (0, 1)]
            self.assertEqual(list(ablation["heads"]), names)
            for row in (ablation["baseline"], *(way for head in ablation["heads"].values() for way in head.values())):
                errors = sum(level["errors"] for level in row["carries"].values())
                self.assertAlmostEqual(row["accuracy"], 1 - errors / ablation["n"])

    def test_infer(self):
        command = ["--mode", "infer", *self.places]
        arguments, stream = adders([[*command, "34+15", "99+99"], [*command, "-"]],
                                         [None, b"34+15\n\n 099 + 99 \r\n"])
        self.assertRegex(arguments.stdout.decode(), r"\A34\+15=\d{1,3}\n99\+99=\d{1,3}\n\Z")
        self.assertEqual((arguments.stderr, arguments.returncode), (b"", 0))
        self.assertEqual(stream.stdout, arguments.stdout)

    def test_infer_many_and_none(self):
        stdins = [b"".join(b"%d+55\n" % (10 + i % 90) for i in range(3000)), b""]
        many, none = adders([["--mode", "infer", *self.places, "-"]] * 2, stdins)
        self.assertEqual(len(many.stdout.splitlines()), 3000)
        self.assertEqual((none.stdout, none.returncode), (b"", 0))

    def test_infer_answers_what_comes_before_a_bad_line(self):
        result = adder("--mode", "infer", *self.places, "-", stdin=b"34+15\nx\n20+20\n")
        self.assertRegex(result.stdout.decode(), r"\A34\+15=\d+\n\Z")
        self.assert_error(result, "expected a problem such as 347.159, found 'x'")

    def test_bad_problems(self):
        cases = {"12+3": "numbers from 10 to 99 only", "123+45": "numbers from 10 to 99", "12-13": "expected a problem",
                 "1a+22": "expected a problem", "": "expected a problem", "12+13+14": "expected a problem",
                 "\u0661\u0662+13": "expected a problem", "9" * 100_000 + "+12": "numbers from 10"}
        results = adders([["--mode", "infer", *self.places, "--", problem] for problem in cases])
        for result, sentence in zip(results, cases.values()):
            self.assert_error(result, sentence)
        stdins = [b"\x00\xff\n", b"9" * 10_000_000 + b"+1\n", b"0" * 1_000_000 + b"x"]
        for result in adders([["--mode", "infer", *self.places, "-"]] * 3, stdins):
            self.assert_error(result, "error: ")

    def test_bad_flags(self):
        cases = {
            ("--d-model", "10", "--n-head", "4"): "--d-model 12",
            ("--mode", "dance"): "invalid choice",
            ("--steps", "0"): "whole number from 1 to",
            ("--steps", "1.5"): "whole number",
            ("--lr", "nan"): "a number of 0 or more",
            ("--lr", "inf"): "a number of 0 or more",
            ("--num-digits", "16"): "from 1 to 15",
            ("--num-digits", "2", "--n-train", "4000"): "there are only 4,095 of 2 digits",
            ("--step", "10"): "unrecognized",
            ("347+159",): "--mode infer",
            ("--mode", "infer"): "--mode infer 347",
            ("--mode", "infer", "347+159", "--out-dir", str(self.folder / "nowhere")): "no model at .*--mode train",
            ("--mode", "infer", "34+15", "--d-model", "32", *self.places): "d_model 16 .wanted 32",
            ("--mode", "train", *TINY, *self.places, "--seed", "1"): "made with seed 641 .wanted 1.*gendata",
            ("--mode", "train", *TINY, *self.places, "--device", "mps"): "--device cpu",
            ("--mode", "train", *TINY, "--data-dir", str(self.folder / "data"), "--out-dir", __file__): "out-dir",
            ("--mode", "gendata", "--data-dir", __file__): "data-dir",
            ("--mode", "analyze", "--reverse"): "--mode analyze follows the carry .*--mode train",
            ("--mode", "infer", "34+15", "--reverse", *self.places): "reverse False .wanted True",
            ("--mode", "gendata", "--resume"): "--resume goes with --mode train",
            ("--mode", "train", "--no-start", "--reverse"): "leave one of them out",
        }
        for result, sentence in zip(adders(cases), cases.values()):
            with self.subTest(sentence):
                self.assert_error(result, sentence)

    def test_a_bad_checkpoint_is_refused(self):
        whole = self.before[self.folder / "out/addition/best_model.pth"]
        results = refused_checkpoints(self, SCRIPT, "addition", whole, "34+15")
        for result in results:
            self.assert_error(result, "not a model of this version of.*--mode train")

    def test_reverse(self):
        with tempfile.TemporaryDirectory() as folder:
            places = ["--data-dir", folder, "--out-dir", folder]
            trained = adder("--mode", "train", *TINY, *places, "--reverse", "--leading-zeros")
            self.assertEqual(trained.returncode, 0, trained.stderr)
            asked, analysed = adders([["--mode", "infer", *places, "7+15"], ["--mode", "analyze", *places]])
            self.assertRegex(asked.stdout.decode(), r"\A7\+15=\d{1,3}\n\Z")
            self.assertEqual(analysed.returncode, 2)
            self.assertRegex(analysed.stderr, b"leading_zeros False|written from the left")

    def test_a_diverging_training_says_so(self):
        with tempfile.TemporaryDirectory() as folder:
            result = adder("--mode", "train", *TINY, "--data-dir", folder, "--out-dir", folder, "--lr", "1e30")
            self.assertEqual(result.returncode, 2)
            self.assertRegex(result.stderr, b"error: the loss is no longer finite at step \\d+; try a smaller --lr")
            self.assertFalse((Path(folder) / "addition/best_model.pth").exists())

    def test_help(self):
        text = adder("--help").stdout.decode()
        for flag in ("--mode", "--num-digits", "--d-model", "--model-seed", "--device", "(default: 641)"):
            self.assertIn(flag, text)


class RealTraining(unittest.TestCase):
    def test_two_digits_are_learned(self):
        """The default model, 2-digit numbers, 2,925 of the 8,100 problems, a third of the default steps."""
        with tempfile.TemporaryDirectory() as folder:
            result = adder("--mode", "train", "--num-digits", "2", "--steps", "400", "--threads", "1",
                           "--data-dir", folder, "--out-dir", folder)
            self.assertEqual(result.returncode, 0, result.stderr)
            log = json.loads((Path(folder) / "addition/training_log.json").read_text())
        self.assertGreaterEqual(log["test"]["accuracy"], 0.95)
        self.assertLessEqual(log["exhaustive"]["errors"], 400)


if __name__ == "__main__":
    unittest.main()
