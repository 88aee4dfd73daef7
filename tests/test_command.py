"""Both command lines as users meet them. Each test begins in a copy of a small training."""
import hashlib
import os
import pickle
import re
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
MODEL = {add: Path("out/addition/best_model.pth"),
         sort: Path("out/sorting/alibi-causal/best_model.pth")}
ASK = {add: "34+15", sort: "'3 15 27 41 52 60 71 88'"}
DONE = tempfile.TemporaryDirectory()

def setUpModule():
    unittest.addModuleCleanup(DONE.cleanup)
    unittest.addModuleCleanup(os.chdir, TOP)
    os.chdir(DONE.name)
    for script, flags in TINY.items():
        good(script, f"--mode all {flags}")

def good(script, line):
    result = call(script, line)
    assert result.returncode == 0, (line, result)
    return result.stdout

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

    def wrong(self, script, line, sentence):
        """It ends in this sentence, with exit code 2, and changes no file."""
        before = contents()
        result = call(script, line)
        last = result.stderr.splitlines()[-1]
        assert re.match(rf"(\w+\.py: )?error: .*{sentence}", last), (line, result)
        assert result.returncode == 2
        assert contents() == before, line

    def test_default_data(self):
        """The same as ever."""
        for script in TINY:
            good(script, "--mode gendata --data-dir new")
        files = repr(sorted(contents("new").items())).encode()
        assert hashlib.md5(files).hexdigest() == "8901e59fcd2d3c439b7e6f1cff3bbddb"

    def test_side_by_side_is_as_alone(self):
        line = TINY[sort].replace("--pe alibi --causal", "--mode train --out-dir x")
        result = run("positional_sorting.py", *line.split())
        assert result.returncode == 0, result
        beside = Path("x/sorting/alibi-causal/best_model.js")
        assert beside.read_text() == MODEL[sort].with_suffix(".js").read_text()

    def test_model_seeds(self):
        good(add, f"--mode train {TINY[add]} --model-seeds 2 --out-dir x")
        good(add, f"--mode train {TINY[add]} --model-seed 2")
        files = [Path(out, "addition/seed2/best_model.js").read_text() for out in ("x", "out")]
        assert files[0] == files[1]

    def test_answers(self):
        a, b = add.solve(add.load(MODEL[add]), [(34, 15), (99, 10)])
        Path("file").write_text("34+15\n99 + 10\n")
        for line in ("34+15= --d-ff 8 '99 + 10'", "@file"):
            assert good(add, line) == f"34+15={a}\n99+10={b}\n"
        (p,) = sort.solve(sort.load(MODEL[sort]), [[9, 4, 7]])
        said = f"sorted {p:.3f}" if p > 0.5 else f"unsorted {1 - p:.3f}"
        assert good(sort, "'[9, 4, 7]' '9,4, 7'") == f"[9, 4, 7]: {said}\n9,4, 7: {said}\n"
        good(add, "--mode analyze 34+15")
        good(sort, "--mode analyze '9 4 7'")
        assert Path("out/addition/attention_patterns/example_34+15.png").exists()
        assert Path("out/sorting/analysis/9-4-7.png").exists()

    def test_results_do_not_come_from_the_reference(self):
        for script, path in MODEL.items():
            shutil.rmtree(path.parent)
            self.wrong(script, "--mode analyze", "type --mode train")
        shutil.copytree(TOP / "out/reference/addition", "out/reference/addition")
        self.wrong(add, "--mode analyze", "type --mode train")

    def test_what_is_typed_is_compared_with_the_model(self):
        for script, ask in ASK.items():
            good(script, f"{ask} --d-ff 8")
            self.wrong(script, f"{ask} --d-ff 64", "has d_ff 8, not 64; type that, or train")
            self.wrong(script, f"{ask} --model-seed 2", "seed2.* is not there")
        good(sort, "--mode extrapolate --pe alibi --causal")
        good(sort, f"--mode extrapolate {TINY[sort]} --pe rope")  # trains this one
        assert len(list(Path("out").rglob("*.pth"))) == 3
        good(sort, "--mode extrapolate")  # takes both

    def test_own_data(self):
        """They are used, in either form and without kinds, and never written."""
        bad = ["", "[1", "[{}]", "[3]", "[]", "\xff",
               '[{"sequence": [2, 1], "is_sorted": 1, "length": 2}]',
               '[{"input": [1, 1, 10, 1, 1], "target": [0, 2, 3]}]']
        for script, folder in ((add, Path("data/addition")), (sort, Path("data/sorting"))):
            own, made = folder / "train.json", folder / "train.jsonl"
            train = f"--mode train {TINY[script]}"
            self.wrong(script, f"{train} --seed 7", "made with other flags")
            (folder / "settings.json").unlink()
            lines = re.sub(', "kind": "[a-z_]+"', "", made.read_text()).splitlines()
            own.write_text(f"[{','.join(lines)}]")
            made.unlink()
            before = contents(folder)
            good(script, f"--mode gendata {TINY[script]} --seed 7")
            good(script, train)
            assert contents(folder) == before
            for text in bad:
                own.write_text(text, "latin-1")
                self.wrong(script, train, "train.json")
            own.unlink()
            self.wrong(script, train, f"No such file .*{folder}/train.json")
        own.write_text(f"[{lines[0]}]")
        self.wrong(sort, train, "one sorted and one unsorted")

    def test_what_is_no_model(self):
        for script, path in MODEL.items():
            whole = path.read_bytes()
            for content in (b"", b"hello", whole[:500], pickle.dumps({"config": Evil()})):
                path.write_bytes(content)
                self.wrong(script, ASK[script], "no model of this script")
        assert not Path("evil").exists()

    def test_a_file_is_whole_or_as_it_was(self):
        def fail(path):
            path.write_text("half")
            raise OSError("disk is full")
        Path("file").write_text("whole")
        with self.assertRaises(OSError):
            common.write(Path("file"), fail)
        assert Path("file").read_text() == "whole"

    def test_a_leak_is_said(self):
        config = replace(add.load(MODEL[add]).config, d_model=32, steps=300, lr=0.01)
        with mock.patch.object(torch.Tensor, "tril", lambda mask: mask):
            with mock.patch("builtins.print") as said:
                add.train_and_save(config, add.make_data(config), Path("leak/best_model.pth"))
        assert "it sees ahead" in str(said.mock_calls)

    def test_an_error_in_an_own_encoding_is_shown(self):
        class Own(sort.Encoding):
            def embed(self, x, position):
                return x + undefined_name  # noqa: F821
        with mock.patch.dict(sort.ENCODINGS, own=Own), self.assertRaises(NameError):
            call(sort, f"--mode train {TINY[sort]} --pe own")

    def test_a_worker_that_dies_and_ctrl_c(self):
        with self.assertRaises(common.BrokenProcessPool):
            common.side_by_side(kill_itself, [(1,), (2,)])
        words = TINY[sort].replace("--pe alibi --causal", "--mode train --out-dir x").split()
        words = [sys.executable, TOP / "positional_sorting.py", *words, "--steps", "5000"]
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        process.stderr.readline()  # one of them trains
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "interrupted; all files are whole" in said, said
        assert not Path("x").exists()

    def test_wrong_words(self):
        both = {"--mode dance": "invalid choice: 'dance'", "--step 10": "unrecognized",
                "--steps 0": "1 or more", "--lr inf": "0 or more",
                "--n-head 3": "multiple of twice --n-head", "--mode infer": "questions go with",
                "--mode train 34+15": "questions go with", "'5 6;7'": "expected",
                "--mode train --lr 1e30 {}": "type a smaller --lr"}
        of_one = {add: {"--num-digits 2 --data-dir new": "only 4,095 pairs; type smaller --n-train",
                        "--num-digits 1": "type --num-digits 2 to 6",
                        "34": "as in 347.159", "1+2": "from 10 to 99", "34+150": "from 10 to 99"},
                  sort: {"--pe sinus": "type one of none, sinus", "'3'": "2 to 512 numbers",
                         "'3 100'": "from 0 to 99", "--max-len 100": "256 or more",
                         "--mode analyze --pe rope": "needs all settings"}}
        for script, more in of_one.items():
            for line, sentence in {**both, **more}.items():
                self.wrong(script, line.replace("{}", TINY[script]), sentence)
