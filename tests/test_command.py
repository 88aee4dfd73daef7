"""Both command lines as users meet them. Each test begins in a copy of what --mode all leaves."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import torch

import attention_addition as add
import common
import positional_sorting as sort
from tests.command import TOP, CommandCase, call, contents, run

SMALL = "--d-model 8 --d-ff 8 --n-head 2 --steps 6"
TINY = {add: f"--num-digits 2 --n-train 200 --n-val 30 --n-test 30 {SMALL}",
        sort: f"--n-train 40 --n-val 20 --n-test 20 --n-long 12 --lengths 16 20 {SMALL}"}
ONE = {add: TINY[add], sort: TINY[sort] + " --pe alibi --causal"}  # trains one model
DATA = {add: "data/addition", sort: "data/sorting"}
MODEL = {add: "addition/best_model.pth", sort: "sorting/alibi-causal/best_model.pth"}
ASK = {add: "34+15", sort: "'3 15 27 41 52 60 71 88'"}
ADDER = [sys.executable, TOP / "attention_addition.py", *TINY[add].split()]
DONE = tempfile.TemporaryDirectory()

def setUpModule():
    unittest.addModuleCleanup(DONE.cleanup)
    unittest.addModuleCleanup(os.chdir, os.getcwd())
    os.chdir(DONE.name)
    with mock.patch("common.side_by_side", lambda function, jobs: [*map(function, jobs)]):
        made = [call(add, [*TINY[add].split(), "--model-seeds", "2"])]
        with mock.patch("matplotlib.figure.Figure.savefig"):  # empty files, which is quicker
            made.append(call(sort, TINY[sort].split()))
    assert [result.returncode for result in made] == [0, 0], made

class Commands(CommandCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, TOP)
        shutil.copytree(DONE.name, folder.name, dirs_exist_ok=True)
        os.chdir(folder.name)

    def test_all_makes_what_is_documented(self):
        data = "settings.json test.jsonl train.jsonl val.jsonl"
        training = "best_model.pth training_curves.png training_log.json"
        heads = ("ablation.json ablation.png attention.json carry.json carry.png diff.json "
                 "heads.json pruning.json")
        long = "extrapolation_curves.png extrapolation_results.json learned_position_embeddings.png"
        folders = {"data/addition": data, "data/sorting": data,
                   "out/addition": training + " model.js",
                   "out/addition/seeds": "2.pth", "out/sorting": "models.js",
                   "out/addition/attention_patterns": "carry.png mean.png",
                   "out/addition/head_analysis": heads, "out/sorting/extrapolation": long,
                   "out/sorting/analysis": "analysis.json positions.png waves.png",
                   "data/sorting/extrapolation": "16.jsonl 20.jsonl"}
        for pe, encoding in sort.ENCODINGS.items():
            starts = ["-causal-random-start", "-random-start-gap", "-random-start-early"]
            for mask in ["", "-causal"] + starts * encoding.uses_start:
                folders[f"out/sorting/{pe}{mask}"] = training
        expected = {f"{top}/{name}" for top, names in folders.items() for name in names.split()}
        self.assertEqual(contents().keys(), expected)
        small = mock.patch.multiple(add, count_wrong=lambda model: (1, 2), EXAMPLES=[(347, 159)])
        with small, mock.patch("matplotlib.figure.Figure.savefig"):
            self.good(add, f"{TINY[add]} --num-digits 3 --data-dir d --out-dir o", train=add.train)
        self.assertEqual(len(contents("o/addition/attention_patterns", "example_347+159.png")), 1)

    def test_two_seeds_side_by_side(self):
        words = f"{TINY[add]} --mode train --model-seeds 2 --out-dir new".split()
        self.assertEqual(run("attention_addition.py", *words).returncode, 0)
        for seed, file in ((1, "best_model.pth"), (2, "seeds/2.pth")):
            beside = torch.load(f"new/addition/{file}", weights_only=True)
            alone = torch.load(f"out/addition/{file}", weights_only=True)
            self.assertEqual((alone["args"], seed), (beside["args"], beside["args"]["model_seed"]))
            self.assertFalse(alone["args"].keys() & common.NOT_OF_A_MODEL)
            torch.testing.assert_close(beside["weights"], alone["weights"], rtol=0, atol=0)

    def test_analyses_train_what_is_missing(self):
        before = contents("out/addition") | contents("out", "*[nh]")  # all .json and .pth
        self.good(add, f"{TINY[add]} --model-seeds 2 --mode analyze")
        self.good(sort, f"{TINY[sort]} --mode analyze")
        self.good(sort, f"{TINY[sort]} --mode extrapolate")
        self.assertEqual(contents("out/addition") | contents("out", "*[nh]"), before)
        path = Path("out/sorting/extrapolation/extrapolation_results.json")
        path.write_text(path.read_text().replace('"mean": 0.', '"mean": 0.123', 1))
        results = json.loads(path.read_text())
        shutil.rmtree("out/sorting/rope")
        train = mock.Mock(wraps=sort.train)
        self.good(sort, f"{TINY[sort]} --mode extrapolate --pe alibi,rope", train=train)
        self.assertEqual([used.args[0].folder for used in train.call_args_list], ["sorting/rope"])
        self.assertEqual(json.loads(path.read_text()), results)

    def test_import_changes_nothing(self):
        Path("probe.py").write_text("""
import os, sys, torch
state = lambda: [sys.excepthook, dict(os.environ), torch.get_num_threads(), os.listdir()]
before = state()
import attention_addition, positional_sorting
print(state() == before)""")
        result = run(os.path.abspath("probe.py"))
        self.assertEqual((result.stdout, result.stderr), (b"True\n", b""))

    def test_ctrl_c(self):
        before = contents()
        listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # also in the background
        process = subprocess.Popen([*ADDER, "--mode", "train", "--steps", "1000000"],
                                   stderr=subprocess.PIPE, preexec_fn=listen)
        process.stderr.readline()  # it has begun to train
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
        self.assertRegex(said, rb"\A(model .*\n)*interrupted; all files are whole.*\n\Z")
        self.assertEqual(process.returncode, 130)
        self.assertEqual(contents(), before)

    def test_made_with_other_flags(self):
        cases = {add: "seed 7, n-train 190, n-val 29, n-test 29, carry-chains 0, num-digits 3",
                 sort: "seed 7, n-train 38, n-val 18, n-test 18, kinds swaps"}
        for script, flags in cases.items():
            train = f"{ONE[script]} --mode train"
            for flag in flags.split(", "):
                name = flag.split()[0].replace("-", "_")
                sentence = f"made with {name} .*; type that, another --data-dir, or --mode gendata "
                self.wrong(script, sentence, f"{train} --{flag}")
            self.good(script, f"{train} --seed 7 --data-dir other", train=script.train)
            self.good(script, f"{ONE[script]} --mode gendata --seed 7")
            self.good(script, f"{train} --seed 7", train=script.train)
        self.wrong(sort, "made with .*n_long 12;", f"{ONE[sort]} --mode extrapolate --n-long 10")

    def test_own_data_are_used_and_never_replaced(self):
        for script, folder in DATA.items():
            path = Path(folder, "train.jsonl")
            lines = path.read_text().splitlines()[:10]
            path.with_suffix(".json").write_text(f"[{','.join(lines)}]")
            path.with_name("settings.json").unlink()
            self.wrong(script, "2 of .*train.json.l., not 1;", f"{ONE[script]} --mode train")
            path.unlink()
            said = self.good(script, f"{ONE[script]} --seed 7 --mode train", train=script.train)
            self.assertRegex(said.stderr[0], r"\b10 (problems|lists)\b")
            sentence = f"{folder} holds data of your own, which stay; type another --data-dir"
            self.wrong(script, sentence, f"{ONE[script]} --mode gendata")
            common.save(Path("stray/train.json"), [])
            self.wrong(script, "move them into", f"{ONE[script]} --mode train --data-dir stray")

    def test_wrong_records(self):
        right = '{"input": [1, 2, 10, 1, 3], "target": [0, 2, 5]}'
        pairs = [("5", "6"), ("1", "0"), ("[1, ", "["), ("get", ""), ("[0, 2, 5]", "25"),
                 ("10", "11"), ("3", "3.0"), ("2, 5", "2, 5, 0"), ("[1, 2, 10, 1, 3]", "null")]
        path = Path(DATA[add], "train.jsonl")
        first = path.read_text().splitlines()[0]
        for text in ["hello", "", "3", "[]", "{}", *(right.replace(*pair) for pair in pairs)]:
            path.write_text(f"{first}\n{text}\n")
            sentence = f"{path}, record 2: .*; mend it, or type another --data-dir"
            self.wrong(add, sentence, f"{ONE[add]} --mode train")
        self.good(add, ASK[add])
        self.good(add, "--mode analyze 34+15")
        self.assertTrue(Path("out/addition/attention_patterns/example_34+15.png").exists())

    def test_which_model_is_used(self):
        for script, file in MODEL.items():
            own, reference, ask = f"model: out/{file}", f"model: out/reference/{file}", ASK[script]
            self.assertEqual(self.good(script, f"{ask} --d-ff 8 --steps 6").stderr, [own])
            said = self.wrong(script, "no model .* type --mode train with", f"{ask} --d-ff 9")
            self.assertEqual([line.split(" passed")[0] for line in said], [own, reference])
            shutil.move("out", "mine")
            self.assertEqual(self.wrong(script, "no model", f"{ask} --out-dir new"), [])
            said = self.good(script, f"{ask} --out-dir mine").stderr
            self.assertEqual(said, [own.replace("out", "mine")])
            said = self.good(script, ask.replace("34+15", "347+159")).stderr
            self.assertEqual((said, Path("out").exists()), ([reference], False))
            shutil.move("mine", "out")
        for line, file in (("34+15 --model-seed 2", "out/addition/seeds/2.pth"),
                           ("347+159 --model-seed 3", "out/reference/addition/seeds/3.pth")):
            self.assertEqual(self.good(add, line).stderr[-1], f"model: {file}")

    def test_every_flag_of_a_model_counts(self):
        flags = ("n-train 7,n-val 7,n-test 7,seed 7,n-layer 7,d-ff 7,model-seed 7,steps 7,"
                 "batch-size 7,lr 7,n-head 8,d-model 128,")
        more = {add: "carry-chains 7,num-digits 7", sort: "max-len 7,slope 7,kinds swaps,pool mean"}
        for script, ask in ASK.items():
            for flag in (flags + more[script]).split(","):
                said = self.wrong(script, "no model", f"{ask} --{flag}")
                self.assertIn(flag.split()[0].replace("-", "_") + "': ", said[0])

    def test_what_is_no_model_is_passed_over(self):
        for script, other in ((add, sort), (sort, add)):
            path = Path("out", MODEL[script])
            saved = torch.load(path, weights_only=True)
            texts = [path.read_bytes()[:-1], path.read_bytes()[:500], b"hello", b"",
                     Path(DONE.name, "out", MODEL[other]).read_bytes()]
            torch.save(saved | {"args": saved["args"] | {"d_ff": 9}}, path)
            texts.append(path.read_bytes())
            for text in texts:
                path.write_bytes(text)
                said = self.wrong(script, "no model on disk", f"{ASK[script]} --steps 6")
                self.assertRegex(said[0], f"{path} passed over: no model of this script")

    def test_answers(self):
        sums = add.solve(add.load(f"out/{MODEL[add]}"), [(34, 15), (99, 10)])
        lists = [[3, 15, 27, 41, 52, 60, 71, 88], [9, 4, 7]]
        found = sort.solve(sort.load(f"out/{MODEL[sort]}"), lists)
        for script, x in ((add, [(100, 10)]), (add, [(9, 99)]), (add, (34, 15)), (sort, [[3, -1]])):
            with self.assertRaisesRegex(ValueError, "expected"):
                script.solve(script.load(f"out/{MODEL[script]}"), x)
        answers = {add: [f"34+15={sums[0]}", f"99+10={sums[1]}"],
                   sort: [("unsorted", "sorted")[x] for x in found]}
        notes = {add: [], sort: ["note: some lists are shorter than any in training"]}
        for script, second in ((add, "' 99 + 10 '"), (sort, "'9,4, 7'")):
            text = f"{ASK[script]}\n\n{second}\r\n".replace("'", "")
            Path("file").write_text(text)
            asked = f"{ASK[script]} {second}"
            for line in (asked, f"--mode infer {asked}", "file", "-"):
                result = self.good(script, line, stdin=text)
                self.assertEqual([line.split()[0] for line in result.stdout], answers[script])
                self.assertEqual(result.stderr[1:], notes[script])

    def test_wrong_words(self):
        Path("empty").touch()
        both = {"--mode dance": "invalid choice: 'dance'", "--step 10": "unrecognized .* --step",
                "--steps 0": "a whole number of 1 or more, found '0'",
                "--n-head 3": "type a --d-model that is a multiple of twice --n-head",
                "--mode infer": "questions go with --mode infer, which needs one",
                "--mode train {}": "questions go with", "empty": "infer, which needs one",
                "{train} --lr 1e30": "type a smaller --lr", "{} --device tpu": "choice: 'tpu'",
                "{train} --data-dir empty": "empty", "{train} --out-dir empty": "empty"}
        cases = {add: {"--num-digits 16": "choice: 16", "{} --num-digits 4": "no model on disk has",
                       "--mode gendata --num-digits 2": "only 4,095 pairs; type fewer examples"},
                 sort: {"3 15 27": "'3': expected", "'5 6;7'": "type a list as in",
                        "'5 1,5'": "type a list as in", "{} --pe sinus": "type some of none,sinus"}}
        for pair in ("347+159", "1+2", "34-15", "34+15+1", "34", "''", "empt", "9" * 9999):
            cases[add][pair] = "expected numbers of 2 digits, as in .*, found "
        for numbers in ("3", "", "3 100", "3 -1", "5 " * 513):
            cases[sort][f"'{numbers}'"] = "expected 2 to 512 numbers from 0 to 99; type a list"
        for script, more in cases.items():
            for line, sentence in (both | more).items():
                line = line.replace("{train}", f"{ONE[script]} --mode train")
                line = line.replace("{}", ASK[script])
                self.wrong(script, sentence, line)
