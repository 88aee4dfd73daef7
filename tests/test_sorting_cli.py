"""positional_sorting.py as its users meet it: a subprocess a case."""
import json
import re
import tempfile
import unittest
from pathlib import Path

from tests.command import CommandLineCase, contents, refused_checkpoints, run, side_by_side

SCRIPT = "positional_sorting.py"
TINY = ["--n-train", "200", "--n-val", "100", "--n-test", "100", "--n-long", "20", "--lengths", "16", "32", "--steps",
        "20", "--eval-every", "10", "--d-model", "8", "--d-ff", "8", "--batch-size", "32", "--threads", "1"]


class CommandLine(CommandLineCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.places = ["--data-dir", str(cls.folder / "data"), "--out-dir", str(cls.folder / "out")]
        cls.run_ = run(SCRIPT, *TINY, *cls.places)
        cls.before = contents(cls.folder)

    def test_all_is_every_step_in_order(self):
        self.assertEqual(self.run_.returncode, 0, self.run_.stderr)
        data = ["train", "val", "test", "extrapolation/16", "extrapolation/32"]
        expected = {f"data/sorting/{name}.jsonl" for name in data} | {"data/sorting/settings.json"}
        for pe in ("sinusoidal", "learned", "none", "alibi"):
            expected |= {f"out/sorting/{pe}/{name}" for name in ("best_model.pth", "training_log.json",
                                                                 "training_curves.png")}
        expected |= {f"out/sorting/extrapolation/{name}" for name in (
            "extrapolation_results.json", "extrapolation_curves.png", "extrapolation_by_kind.png",
            "learned_position_embeddings.png")}
        expected |= {f"out/sorting/analysis/{name}" for name in (
            "analysis.json", "sinusoidal_table.png", "positions_or_length.png", "attention_by_length.png",
            "algorithm.png")}
        self.assertEqual({str(path.relative_to(self.folder)) for path in self.before}, expected)
        self.assertIn("step   20/20 | train ", self.run_.stderr.decode())
        output = self.run_.stdout.decode()
        for name in ("sinusoidal: test accuracy", "ALiBi, causal: test accuracy"):
            self.assertIn(name, output)

    def test_training_log(self):
        log = json.loads((self.folder / "out/sorting/learned/training_log.json").read_text())
        self.assertEqual([row["step"] for row in log["history"]], [10, 20])
        for key in ("train_loss", "val_loss", "val_accuracy", "val_recall", "lr", "seconds"):
            self.assertIn(key, log["history"][0])
        best = max(log["history"], key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        self.assertEqual(log["best"], {"step": best["step"], "val_accuracy": best["val_accuracy"]})
        self.assertEqual((log["config"]["pe"], log["config"]["causal"], log["test"]["n"]), ("learned", False, 100))

    def test_extrapolation_results(self):
        """What is printed, the JSON and the models say the same; without positions it is 50% at every length."""
        results = json.loads((self.folder / "out/sorting/extrapolation/extrapolation_results.json").read_text())
        self.assertEqual((results["lengths"], results["seeds"]), ([16, 32], [1]))
        self.assertEqual(list(results["results"]), ["sinusoidal", "learned", "none", "alibi"])
        for rows in results["results"].values():
            for row in rows.values():
                recall = row["by_kind"]
                kinds = [recall[kind] for kind in recall if kind != "sorted"]
                self.assertEqual(len(kinds), 5)
                self.assertAlmostEqual(row["accuracy"], (recall["sorted"] + sum(kinds) / 5) / 2)
                self.assertEqual(row["per_seed"], [row["accuracy"]])
        none = results["results"]["none"]
        self.assertTrue(all(abs(none[length]["accuracy"] - 0.5) < 0.051 for length in none), none)
        printed = re.search(r"^learned +(\S+) \+- 0.00 +(\S+) \+- ", self.run_.stdout.decode(), re.M).groups()
        learned = [results["in_range"]["learned"], results["results"]["learned"]["16"]]
        self.assertEqual(printed, tuple(f"{100 * row['accuracy']:.2f}" for row in learned))
        log = json.loads((self.folder / "out/sorting/learned/training_log.json").read_text())
        self.assertEqual(log["test"]["accuracy"], learned[0]["accuracy"])

    def test_extrapolate_trains_what_is_missing_and_keeps_the_rest(self):
        with tempfile.TemporaryDirectory() as folder:
            command = ["--mode", "extrapolate", *TINY, "--data-dir", folder, "--out-dir", folder]
            first = run(SCRIPT, *command, "--pe", "learned,rope", "--model-seeds", "2")
            self.assertEqual(first.returncode, 0, first.stderr)
            self.assertEqual(first.stderr.decode().count("training one"), 4)
            out = Path(folder) / "sorting"
            before = contents(out)
            (out / "rope/seeds/2.pth").unlink()
            again = run(SCRIPT, *command, "--pe", "rope", "--model-seeds", "2")
            self.assertEqual(again.stderr.decode().count("training one"), 1)
            self.assertTrue(first.stdout.endswith(again.stdout))  # learned, not asked for, is still in the table
            self.assertEqual(contents(out).keys(), before.keys())
            same = [path for path, content in contents(out).items() if content == before[path]]
            self.assertGreaterEqual(len(same), len(before) - 1)  # the new model may differ in a time stamp
            stays = run(SCRIPT, *command, "--pe", "learned,rope")  # five are the default
            self.assertEqual(stays.stderr.decode().count("training one"), 6)
            one = run(SCRIPT, *command, "--pe", "learned,rope", "--model-seed", "4", "--model-seeds", "1")
            self.assertNotIn("training one", one.stderr.decode())
            results = json.loads((out / "extrapolation/extrapolation_results.json").read_text())
            self.assertEqual(results["seeds"], [4])
            other = run(SCRIPT, *command, "--pe", "learned", "--model-seed", "9", "--model-seeds", "1")
            self.assertEqual(other.stderr.decode().count("training one"), 1)
            log = json.loads((out / "learned/training_log.json").read_text())
            self.assertEqual(log["config"]["model_seed"], 1)  # best_model.pth is replaced by --mode train alone

    def test_analyze(self):
        """What analyze finds agrees with what extrapolate found, where both measure the same."""
        out = self.folder / "out/sorting"
        found = json.loads((out / "analysis/analysis.json").read_text())
        results = json.loads((out / "extrapolation/extrapolation_results.json").read_text())["results"]
        self.assertEqual(found["seeds"], [1])
        for pe, rows in found["positions_or_length"]["offset"].items():
            self.assertAlmostEqual(rows["0"][0], results[pe]["16"]["accuracy"])
        alibi = [row[0] for row in found["positions_or_length"]["offset"]["alibi"].values()]
        self.assertEqual(alibi, alibi[:1] * len(alibi))  # distances stay what they are
        cosine = found["learned_table"]["cosine_with_initial_row"][0]
        self.assertGreater(min(cosine[16:]), max(cosine[:16]))
        self.assertAlmostEqual(min(cosine[16:]), 1, places=6)
        for pe, (table,) in found["attention"].items():
            for row in table["32"].values():
                self.assertTrue(0 <= row["entropy"] <= 3.4658, pe)  # ln 32
                total = 31 * (row["left"] + row["right"]) + 32 * row["self"]  # over the 31 pairs and the 32 numbers
                self.assertLess(total, 32.001, pe)
        self.assertEqual(max(row["right"] for row in found["attention"]["alibi"][0]["32"].values()), 0)  # causal

    def test_every_encoding_and_flag_trains(self):
        with tempfile.TemporaryDirectory() as folder:
            places = ["--data-dir", folder, "--out-dir", folder]
            self.assertEqual(run(SCRIPT, "--mode", "gendata", *TINY, *places).returncode, 0)
            commands = [[SCRIPT, "--mode", "train", *TINY, *places, "--pe", "rope,randomized"],
                        [SCRIPT, "--mode", "train", *TINY, *places, "--pe", "none", "--causal", "--pool", "mean",
                         "--no-shift", "--max-len", "16", "--n-layer", "1", "--n-head", "1", "--model-seed", "3",
                         "--weight-decay", "0", "--warmup", "5", "--lr", "0.1"]]
            for result in side_by_side(commands):
                self.assertEqual(result.returncode, 0, result.stderr)
            log = json.loads((Path(folder) / "sorting/none/training_log.json").read_text())
            self.assertEqual({"causal": True, "pool": "mean", "shift": False, "n_layer": 1, "lr": 0.1},
                             {name: log["config"][name] for name in ("causal", "pool", "shift", "n_layer", "lr")})

    def test_same_command_same_bytes(self):
        with tempfile.TemporaryDirectory() as folder:
            result = run(SCRIPT, *TINY, "--pe", "alibi", "--data-dir", folder, "--out-dir", folder)
            self.assertEqual(result.returncode, 0, result.stderr)
            for path in Path(folder, "sorting").rglob("*.jsonl"):
                name = path.relative_to(folder)
                self.assertEqual(path.read_bytes(), self.before[self.folder / "data" / name])
            logs = [json.loads((place / "sorting/alibi/training_log.json").read_text())
                    for place in (Path(folder), self.folder / "out")]
            for log in logs:
                del log["seconds"]
                for row in log["history"]:
                    del row["seconds"]
            self.assertEqual(*logs)

    def test_infer(self):
        command = [SCRIPT, "--mode", "infer", *self.places]
        arguments, stream, learned = side_by_side(
            [[*command, "3 15 27 41", "9,8"], [*command, "-"], [*command, "--pe", "learned", "5 " * 255 + "5"]],
            [None, b"3 15 27 41\n\n 9 , 8 \r\n", None])
        self.assertRegex(arguments.stdout.decode(), r"\A((sorted|unsorted) (0\.[5-9]\d\d|1\.000)\n){2}\Z")
        self.assertEqual((arguments.stderr, arguments.returncode), (b"", 0))
        self.assertEqual(stream.stdout, arguments.stdout)
        self.assertEqual(len(learned.stdout.splitlines()), 1)

    def test_infer_many_and_none(self):
        stdins = [b"".join(b"%d 5 7\n" % (i % 100) for i in range(600)), b""]
        many, none = side_by_side([[SCRIPT, "--mode", "infer", *self.places, "-"]] * 2, stdins)
        self.assertEqual(len(many.stdout.splitlines()), 600)
        self.assertEqual((none.stdout, none.returncode), (b"", 0))

    def test_infer_answers_what_comes_before_a_bad_line(self):
        result = run(SCRIPT, "--mode", "infer", *self.places, "-", stdin=b"3 4\nx\n5 6\n")
        self.assertEqual(len(result.stdout.splitlines()), 1)
        self.assert_error(result, "expected numbers such as .3 15 27 41., found 'x'")

    def test_bad_lists(self):
        cases = {"3 100": "100 in '3 100': this model knows the numbers from 0 to 99", "3 -1": "expected numbers",
                 "3 1.5": "expected numbers", "": "expected numbers", "3;4": "expected numbers",
                 "\u0663 \u0664": "expected numbers", "9" * 100_000: "expected numbers",
                 "1 " * 5000: "4,096 are the most"}
        results = side_by_side([[SCRIPT, "--mode", "infer", *self.places, "--", case] for case in cases])
        for result, sentence in zip(results, cases.values()):
            self.assert_error(result, sentence)
        stdins = [b"\x00\xff\n", b"1" * 10_000_000 + b"\n"]
        for result in side_by_side([[SCRIPT, "--mode", "infer", *self.places, "-"]] * 2, stdins):
            self.assert_error(result, "error: ")

    def test_bad_flags(self):
        data = self.places[:2]
        cases = {
            ("--d-model", "10", "--n-head", "4"): "--d-model 16",
            ("--pe", "absolute"): "'absolute' is none of sinusoidal, learned",
            ("--pe", ""): "'' is none of",
            ("--kinds", "sorted"): "'sorted' is none of adjacent_swap",
            ("--narrow", "1.5"): "from 0 to 1",
            ("--n-val", "3"): "--n-val must be even",
            ("--lengths", "7"): "from 8 to 4096",
            ("--lengths",): "expected at least one argument",
            ("--max-len", "8"): "from 16 to",
            ("3 4",): "--mode infer",
            ("--mode", "infer"): "--mode infer .3 15",
            ("--mode", "infer", "--pe", "alibi,none", "3 4"): "name one --pe",
            ("--mode", "infer", "3 4", "--out-dir", str(self.folder / "nowhere")): "no model at .*--mode train",
            ("--mode", "infer", "3 4", "--d-model", "32", *self.places): "d_model 8 .wanted 32",
            ("--mode", "infer", "3 4", "--no-causal", *self.places): "causal True .wanted False",
            ("--mode", "infer", "--pe", "learned", "1 " * 257, *self.places): "has positions for 256 numbers.*257",
            ("--mode", "train", *TINY, *self.places, "--seed", "1"): "made with seed 641 .wanted 1.*gendata",
            ("--mode", "extrapolate", *TINY, *self.places, "--pool", "mean"): "pool max .wanted mean",
            ("--mode", "extrapolate", *TINY, *self.places, "--lengths", "64"): "lengths .16, 32. .wanted .64.",
            ("--mode", "train", *TINY, *self.places, "--device", "mps"): "--device cpu",
            ("--mode", "train", *TINY, *data, "--out-dir", __file__): "out-dir",
            ("--mode", "gendata", "--data-dir", __file__): "data-dir",
        }
        for result, sentence in zip(side_by_side([[SCRIPT, *case] for case in cases]), cases.values()):
            with self.subTest(sentence):
                self.assert_error(result, sentence)

    def test_a_malformed_line_names_file_and_line(self):
        lines = (self.folder / "data/sorting/val.jsonl").read_bytes().splitlines()
        with tempfile.TemporaryDirectory() as folder:
            places = ["--data-dir", folder, "--out-dir", folder]
            self.assertEqual(run(SCRIPT, "--mode", "gendata", *TINY, *places).returncode, 0)
            for bad in (b"{", b"[]", b'{"sequence": [2, 1], "is_sorted": 1, "length": 2, "kind": "sorted"}', b"\xff"):
                Path(folder, "sorting/val.jsonl").write_bytes(b"\n".join([lines[0], bad, *lines[2:]]))
                result = run(SCRIPT, "--mode", "train", *TINY, *places, "--pe", "none")
                self.assert_error(result, r"val\.jsonl, line 2: ")

    def test_a_bad_checkpoint_is_refused(self):
        whole = self.before[self.folder / "out/sorting/alibi/best_model.pth"]
        for result in refused_checkpoints(self, SCRIPT, "sorting/alibi", whole, "3 4"):
            self.assert_error(result, "not a model of this version of.*--mode train")

    def test_help(self):
        text = run(SCRIPT, "--help").stdout.decode()
        for flag in ("--mode", "--pe", "--causal", "--pool", "--model-seeds", "--device", "(default: 641)"):
            self.assertIn(flag, text)


if __name__ == "__main__":
    unittest.main()
