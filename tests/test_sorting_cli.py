"""positional_sorting.py as its users meet it: every case is a command of its own."""
import gc
import io
import json
import shutil
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import torch.nn.functional as F

import common
import positional_sorting as sort
from tests.command import CommandLineCase, contents, run, side_by_side

SCRIPT = "positional_sorting.py"
TINY = ["--n-train", "200", "--n-val", "100", "--n-test", "100", "--n-long", "20", "--lengths", "16", "32", "--steps",
        "20", "--eval-every", "10", "--d-model", "8", "--d-ff", "8", "--batch-size", "32"]
RESULTS = "extrapolation/extrapolation_results.json"
RECORD = '{"sequence": [9, 4, 7], "is_sorted": 0, "length": 3}'


def places(folder):
    return ["--data-dir", f"{folder}/data", "--out-dir", f"{folder}/out"]


def read(top, name):
    return json.loads((top / "out/sorting" / name).read_text())


def names_in(top):
    return {path.relative_to(top).as_posix() for path in contents(top)}


class CommandLine(CommandLineCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.made = run(SCRIPT, *TINY, *places(cls.folder))
        cls.before = contents(cls.folder)

    def elsewhere(self, copy=False):
        """A new folder for what must not change the results, or a copy of them."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        if copy:
            shutil.copytree(self.folder, folder.name, dirs_exist_ok=True)
        return Path(folder.name)

    def ask(self, commands, stdins=None):
        return side_by_side([[SCRIPT, *TINY, *places(self.folder), *command] for command in commands], stdins)

    def test_all_is_every_step(self):
        self.assertEqual(self.made.returncode, 0, self.made.stderr)
        data = {f"{name}.jsonl" for name in (*sort.SPLITS, "extrapolation/16", "extrapolation/32")}
        self.assertEqual(names_in(self.folder / "data/sorting"), data | {"settings.json"})
        settings = ["sinusoidal", "learned", "none", "alibi"] + [f"{pe}-causal" for pe in sort.encodings()]
        for pe in ("sinusoidal", "learned"):
            settings += [f"{pe}-causal-random-start{starts}" for starts in ("", "-gap", "-early")]
        expected = {RESULTS, "extrapolation/learned_position_embeddings.png"}
        expected |= {f"extrapolation/extrapolation_{name}.png" for name in ("curves", "by_kind")}
        expected |= {f"analysis/{name}" for name in ("analysis.json", "positions.png", "bands.png", "algorithm.png")}
        for name in ("best_model.pth", "training_log.json", "training_curves.png"):
            expected |= {f"{setting}/{name}" for setting in settings}
        self.assertEqual(names_in(self.folder / "out/sorting"), expected)

    def test_training_log(self):
        log = read(self.folder, "learned/training_log.json")
        self.assertEqual(log.keys(), {"config", "n_params", "machine", "history", "best", "test", "seconds"})
        keys = {"step", "train_loss", "val_loss", "val_accuracy", "val_recall", "lr", "seconds"}
        self.assertEqual([(row["step"], row.keys()) for row in log["history"]], [(10, keys), (20, keys)])
        self.assertEqual((log["config"]["pe"], log["config"]["causal"], log["test"]["n"]), ("learned", False, 100))
        entry = read(self.folder, RESULTS)["learned"]
        self.assertEqual([entry["causal"], entry["seeds"], *entry["lengths"]], [False, [1], "8-16", "16", "32"])
        self.assertEqual(entry["lengths"]["8-16"]["per_seed"], [log["test"]["accuracy"]])
        accuracy = 100 * entry["lengths"]["32"]["mean"]
        self.assertRegex(self.made.stdout.decode(), f"\nlearned +8-16: .* 32: {accuracy:.1f} ")

    def test_extrapolate_trains_what_is_missing_and_keeps_the_rest(self):
        top = self.elsewhere(copy=True)
        command = [SCRIPT, "--mode", "extrapolate", "--causal", *TINY, *places(top), "--pe"]
        self.assertEqual(run(*command, "alibi,rope", "--model-seeds", "2").stderr.count(b"training one"), 2)
        new = {f"out/sorting/{pe}-causal/seeds/2.pth" for pe in ("alibi", "rope")}
        self.assertEqual(names_in(top), names_in(self.folder) | new)
        two_seeds = read(top, RESULTS)
        self.assertNotIn(b"training one", run(*command, "alibi").stderr)
        found = read(top, RESULTS)
        alibi = found.pop("alibi-causal")
        self.assertEqual(found, read(self.folder, RESULTS) | {"rope-causal": two_seeds["rope-causal"]})
        accuracy = alibi["lengths"]["16"]["per_seed"]
        self.assertEqual(accuracy, two_seeds["alibi-causal"]["lengths"]["16"]["per_seed"][:1])
        analysis = read(top, "analysis/analysis.json")
        self.assertEqual(accuracy, [row[0] for row in analysis["positions"]["alibi-causal"]["start"]])

    def test_results_of_other_data_are_kept_but_not_drawn(self):
        top = self.elsewhere(copy=True)
        path = top / "out/sorting" / RESULTS
        found = json.loads(path.read_text())
        found["rope"] = found["alibi"] | {"pe": "rope", "data": {"seed": 1}}
        path.write_text(json.dumps(found))
        args = sort.command_line().parse_args(["--pe", "alibi", *TINY, *places(top)])
        args.device = "cpu"
        with mock.patch.object(sort, "show_kinds") as drawn, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            sort.extrapolate(args)
        self.assertEqual(json.loads(path.read_text()), found)
        self.assertEqual(set(drawn.call_args.args[0]), set(found) - {"rope"})

    def test_a_seventh_encoding_is_one_class(self):
        """It works in training, on long lists, in the experiments and in their figures."""

        class Seventh(sort.Encoding):
            name = "seventh"
            label = "the position itself"
            style = {"color": "tab:brown"}
            uses_start = True

            def embed(self, h, position, present):
                return h + F.pad(position[..., None], (0, h.shape[-1] - 1))  # in the first channel

        self.addCleanup(gc.collect)  # the class goes, and the encoding with it
        top = self.elsewhere(copy=True)
        for mode in (["extrapolate", "--causal", "--pe", "seventh"], ["analyze"]):
            with mock.patch("sys.argv", [SCRIPT, *TINY, *places(top), "--mode", *mode]), redirect_stdout(io.StringIO()):
                with redirect_stderr(io.StringIO()), mock.patch.object(common, "curve", wraps=common.curve) as curve:
                    sort.main()
            drawn = [call.args[3] for call in curve.call_args_list if call.kwargs["color"] == "tab:brown"]
            names = ["the position itself"] + ["the position itself, random starts"] * (mode == ["analyze"])
            self.assertEqual(drawn, names)
        self.assertIn("seventh-causal", read(top, RESULTS))
        self.assertIn("seventh-causal-random-start", read(top, "analysis/analysis.json")["positions"])

    def test_questions(self):
        """As arguments, in a file, from standard input, as records of the data; ALiBi with a causal mask answers."""
        path = "out/sorting/alibi-causal/best_model.pth"
        lists = ["3 15 27 41 55 61 70 88", "9,4,7"]
        model = sort.load(self.folder / path)
        rising, falling = sort.predict(model, sort.pad([[3, 15, 27, 41, 55, 61, 70, 88], [9, 4, 7]])).sigmoid().tolist()
        answers = [f"sorted {p:.3f}" if p > 0.5 else f"unsorted {1 - p:.3f}" for p in (rising, falling)]
        said = [f"model: {self.folder}/{path}",
                "note: [9, 4, 7] is shorter than any training list (8 numbers); do not rely on it",
                f"{(rising > 0.5) + (falling <= 0.5)} of 2 right"]
        file = self.elsewhere() / "questions"
        file.write_text("3 15 27 41 55 61 70 88\n\n 9 , 4 7 \r\n")
        records = self.folder / "data/sorting/train.jsonl"
        commands = [lists, ["--mode", "infer", lists[0], RECORD], ["--pe", "alibi", "--causal", *lists], [str(file)], ["-"],
                    [str(records)], ["-"]]
        stdins = [None, None, None, None, file.read_bytes(), None, b""]
        *results, lines, none = self.ask(commands, stdins)
        for result in results:
            self.assertEqual([result.stdout.decode().splitlines(), result.stderr.decode().splitlines()], [answers, said])
        self.assertEqual(lines.stdout.count(b"sorted"), 200)
        self.assertEqual((none.stdout, none.returncode), (b"", 0))
        self.assertEqual(contents(self.folder), self.before)

    def test_wrong_lists(self):
        long = json.dumps({"sequence": [5] * 513, "is_sorted": 1, "length": 513})
        cases = {"3 100": "100 in '3 100': this model was trained on numbers from 0 to 99", "{": "is not JSON",
                 "3": "one number; put the whole list in quotes", RECORD.replace("0", "1"): '"is_sorted": expected 0',
                 "1 " * 5000: "takes 4,096 at most; shorten it"}
        cases |= dict.fromkeys(["3 -1", "3 1.5", "3;4", "\u0663 \u0664", "9" * 100_000], "expected numbers such as")
        commands = [["--mode", "infer", "--", case] for case in cases]
        commands += [["3", "15", "27"], ["--lr", "0.5", "3 4"], ["--pe", "learned", "5 " * 513], ["--pe", "learned", long]]
        sentences = [*cases.values(), "in quotes", "has lr 0.01 .wanted 0.5.; pass"] + 2 * ["learned takes 512 at most"]
        for result, sentence in zip(self.ask(commands), sentences, strict=True):
            result.stderr = result.stderr[result.stderr.find(b"error:"):]
            with self.subTest(sentence):
                self.assert_error(result, sentence)

    def test_wrong_flags(self):
        cases = {
            ("--pe", "absolute"): "'absolute' is none of none, sinusoidal, learned, randomized, rope, alibi",
            ("--pe", ""): "'' is none of",
            ("--kinds", "sorted"): "'sorted' is none of adjacent_swap",
            ("--max-len", "128"): "expected a whole number from 256",
            ("--mode", "analyze", "--lengths", "32"): "type --lengths 16",
            ("--mode", "train", "3 4"): "--mode infer, and no other, answers lists",
            ("--mode", "infer"): "--mode infer, and no other, answers lists",
            ("--pe", "alibi,none", "3 4"): "with one --pe",
            ("--random-start", "late"): "invalid choice: 'late'",
            ("--mode", "extrapolate", "--lengths", "64"): "lengths .16, 32. .wanted .64.",
        }
        for result, sentence in zip(self.ask(cases), cases.values()):
            with self.subTest(sentence):
                self.assert_error(result, sentence)


if __name__ == "__main__":
    unittest.main()
