"""Both command lines as users meet them. Each test begins in a copy of a small training."""
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

import attention_addition as add
import common
import positional_sorting as sort
from tests.command import TOP, call, contents, run

SMALL = "--d-model 8 --d-ff 8 --n-head 2 --steps 6"
TINY = {add: f"--num-digits 2 --n-train 200 --n-val 30 --n-test 30 {SMALL}",
        sort: f"--n-train 40 --n-val 20 --n-test 20 --pe alibi --causal {SMALL}"}
DATA = {add: "data/addition", sort: "data/sorting"}
MODEL = {add: "out/addition/best_model.pth", sort: "out/sorting/alibi-causal/best_model.pth"}
ASK = {add: "34+15", sort: "'3 15 27 41 52 60 71 88'"}
DONE = tempfile.TemporaryDirectory()

def setUpModule():
    unittest.addModuleCleanup(DONE.cleanup)
    unittest.addModuleCleanup(os.chdir, TOP)
    os.chdir(DONE.name)
    for script, flags in TINY.items():
        result = call(script, f"--mode all {flags}")
        assert result.returncode == 0, result

def kill_itself(*_):
    os.kill(os.getpid(), signal.SIGKILL)

class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)

class Commands(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, TOP)
        shutil.copytree(DONE.name, folder.name, dirs_exist_ok=True)
        os.chdir(folder.name)

    def good(self, script, line):
        result = call(script, line)
        self.assertEqual(result.returncode, 0, (line, result))
        return result.stdout

    def wrong(self, script, line, sentence):
        """It ends in this sentence, with exit code 2, and changes no file."""
        before = contents()
        with self.subTest(line):
            result = call(script, line)
            self.assertRegex(result.stderr.splitlines()[-1], rf"^(\w+\.py: )?error: .*{sentence}")
            self.assertEqual(result.returncode, 2)
            self.assertEqual(contents(), before)

    def test_files(self):
        training = {"best_model.pth", "best_model.js", "training_log.json", "training_curves.png"}
        expected = {
            "out/addition": training,
            "out/addition/head_analysis": {"ablation.json", "attention.json", "brings.json",
                                           "brings.png"},
            "out/sorting/alibi-causal": training,
            "out/sorting/extrapolation": {"extrapolation_results.json",
                                          "extrapolation_curves.png"}}
        found = {}
        for path in Path("out").rglob("*.*"):
            found.setdefault(path.parent.as_posix(), set()).add(path.name)
        self.assertEqual(found, expected)

    def test_two_seeds_side_by_side_are_those_alone(self):
        line = f"--mode train {TINY[add]}"
        result = run("attention_addition.py", *line.split(), "--model-seeds", "2", "--out-dir", "x")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("2 of 2 done", result.stderr)
        self.good(add, f"{line} --model-seed 2")
        for path in ("best_model.pth", "seed2/best_model.pth"):
            alone, beside = [add.load(Path(top, "addition", path)) for top in ("out", "x")]
            self.assertEqual(alone.config, beside.config)
            torch.testing.assert_close(alone.state_dict(), beside.state_dict(), rtol=0, atol=0)

    def test_answers(self):
        model = add.load(Path(MODEL[add]))
        expected = [f"{a}+{b}={c}" for (a, b), c in
                    zip([(34, 15), (99, 10)], add.solve(model, [(34, 15), (99, 10)]))]
        Path("file").write_text("34+15\n99 + 10\n")
        for line in ("34+15= --d-ff 8 '99 + 10'", "@file"):
            self.assertEqual(self.good(add, line).split(), expected)
        (p,) = sort.solve(sort.load(Path(MODEL[sort])), [[9, 4, 7]])
        said = f"sorted {p:.3f}" if p > 0.5 else f"unsorted {1 - p:.3f}"
        self.assertEqual(self.good(sort, "'9,4, 7'"), said + "\n")
        for script, folder in ((add, "addition/attention_patterns"), (sort, "sorting/analysis")):
            self.good(script, f"--mode analyze {ASK[script]}")
            self.assertEqual(len(list(Path("out", folder).glob("*.png"))), 1)

    def test_results_do_not_come_from_the_reference(self):
        for script, path in MODEL.items():
            shutil.rmtree(Path(path).parent)
            self.wrong(script, "--mode analyze", "type --mode train")
        shutil.copytree(TOP / "out/reference/addition", "out/reference/addition")
        self.wrong(add, "--mode analyze", "type --mode train")
        self.assertEqual(self.good(add, "347+159"), "347+159=506\n")  # asking looks there

    def test_what_is_typed_is_compared_with_the_model(self):
        for script, ask in ASK.items():
            self.good(script, f"{ask} --d-ff 8")
            self.wrong(script, f"{ask} --d-ff 64", "has d_ff 8, not 64; type that, or train")
            self.wrong(script, f"{ask} --model-seed 2", "seed2.* is not there")
        self.good(sort, "--mode extrapolate --pe alibi --causal")  # takes the one on disk
        self.assertEqual(len(list(Path("out").rglob("*.pth"))), 2)
        self.good(sort, f"--mode extrapolate {TINY[sort]} --pe rope")  # trains this one
        self.assertEqual(len(list(Path("out").rglob("*.pth"))), 3)

    def test_data_of_a_folder_are_never_written(self):
        for script, folder in DATA.items():
            own = contents(folder)
            self.wrong(script, f"--mode train {TINY[script]} --seed 7", "made with other flags")
            Path(folder, "settings.json").unlink()
            Path(folder, ".train.jsonl.swp").touch()
            lines = Path(folder, "train.jsonl").read_text().splitlines()
            Path(folder, "train.jsonl").unlink()
            Path(folder, "train.json").write_text(f"[{','.join(lines)}]")
            self.good(script, f"--mode gendata {TINY[script]} --seed 7")
            self.good(script, f"--mode train {TINY[script]}")
            changed = {path for path, _ in own.items() - contents(folder).items()}
            self.assertEqual(changed, {f"{folder}/settings.json", f"{folder}/train.jsonl"})
            for text in (b"\xff\xfe3", b"", b"[1", b"[{}]", b"[3]", b"[]"):
                Path(folder, "train.json").write_bytes(text)
                self.wrong(script, f"--mode train {TINY[script]}", "train")

    def test_what_is_no_model(self):
        for script, path in MODEL.items():
            whole = Path(path).read_bytes()
            for content in (b"", b"hello", whole[:500], pickle.dumps({"config": Evil()})):
                Path(path).write_bytes(content)
                self.wrong(script, ASK[script], "no model of this script")
        self.assertFalse(Path("evil").exists())

    def test_a_file_is_whole_or_as_it_was(self):
        def fail(path):
            path.write_text("half")
            raise OSError("disk is full")
        Path("file").write_text("whole")
        with self.assertRaises(OSError):
            common.write(Path("file"), fail)
        self.assertEqual(Path("file").read_text(), "whole")

    def test_a_leak_is_said(self):
        config = replace(add.load(Path(MODEL[add])).config, d_model=32, steps=300, lr=0.01)
        with mock.patch.object(torch.Tensor, "tril", lambda mask: mask):
            with mock.patch("builtins.print") as said:
                add.train_and_save(config, add.make_data(config), Path("leak/best_model.pth"))
        self.assertIn("it sees ahead", str(said.mock_calls))

    def test_an_error_in_an_own_encoding_is_shown(self):
        class Own(sort.Encoding):
            def embed(self, x, position):
                return x + undefined_name  # noqa: F821
        with mock.patch.dict(sort.ENCODINGS, own=Own), self.assertRaises(NameError):
            call(sort, f"--mode train {TINY[sort]} --pe own")

    def test_a_worker_that_dies_and_ctrl_c(self):
        with self.assertRaises(common.BrokenProcessPool):
            common.side_by_side(kill_itself, [(1,), (2,)])
        words = [sys.executable, TOP / "attention_addition.py", "--mode", "train", "--model-seeds",
                 "2", *TINY[add].split(), "--steps", "5000", "--out-dir", "x"]
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        process.stderr.readline()  # one of them trains
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        self.assertEqual(process.returncode, 130, said)
        self.assertRegex(said.splitlines()[-1], "interrupted; all files are whole")
        self.assertFalse(Path("x").exists())

    def test_wrong_words(self):
        both = {"--mode dance": "invalid choice: 'dance'", "--step 10": "unrecognized",
                "--steps 0": "1 or more", "--lr nan": "0 or more", "--warmup -1": "1 or more", "--n-head 3": "multiple of twice --n-head",
                "--mode infer": "questions go with", "--mode train 34+15": "questions go with",
                "'5 6;7'": "expected", "--mode train --lr 1e30 {}": "type a smaller --lr"}
        of_one = {add: {"--num-digits 1 --data-dir new": "only 45 pairs; type --n-train",
                        "34": "as in 347.159", "--carry-chains 50": "from 0 to 1", "1+2": "from 10 to 99", "34+150": "from 10 to 99"},
                  sort: {"--pe sinus": "type one of none, sinus", "'3'": "2 to 512 numbers",
                         "'3 100'": "from 0 to 99", "'3 -1'": "from 0 to 99",
                         "{} --n-val 1 --data-dir new": "one sorted and one unsorted"}}
        for script, more in of_one.items():
            for line, sentence in {**both, **more}.items():
                self.wrong(script, line.replace("{}", TINY[script]), sentence)

if __name__ == "__main__":
    unittest.main()
