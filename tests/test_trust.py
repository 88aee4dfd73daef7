"""What users and machines do to it: killed runs, full disks, files cut short, hostile models, nonsense typed in."""
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import torch

import attention_addition as add
import common
import positional_sorting as sort
from common import UserError
from tests.command import PROCESSES, contents, ctrl_c, run, shell, whole_results

ADD = "attention_addition.py"
SORT = "positional_sorting.py"
SCRIPTS = {ADD: add, SORT: sort}
MODES = {ADD: ["gendata", "train", "analyze"], SORT: ["gendata", "train", "extrapolate", "analyze"]}
TINY = {ADD: ["--num-digits", "2", "--n-train", "300", "--n-val", "30", "--n-test", "50", "--steps", "60", "--lr", "0.02",
              "--eval-every", "30", "--d-model", "16", "--d-ff", "16", "--n-head", "2"],
        SORT: ["--n-train", "40", "--n-val", "20", "--n-test", "20", "--n-long", "12", "--lengths", "16", "20", "--steps",
               "6", "--eval-every", "3", "--d-model", "8", "--d-ff", "8", "--batch-size", "8", "--pe", "alibi"]}
DATA = {ADD: "data/addition", SORT: "data/sorting"}
MODEL = {ADD: "out/addition/best_model.pth", SORT: "out/sorting/alibi/best_model.pth"}
RESULTS = "out/sorting/extrapolation/extrapolation_results.json"
QUESTION = {ADD: "34+15", SORT: "3 15 27 41 52 60 71 88"}

PEACE = tempfile.TemporaryDirectory()  # what undisturbed runs of all modes leave
SECONDS = {}  # (script, mode): how long such a run takes


def setUpModule():
    unittest.addModuleCleanup(PEACE.cleanup)
    run(ADD, "--help")  # starts the process that forks: no part of the times below
    for script, modes in MODES.items():
        for mode in modes:
            start = time.time()
            result = run(script, "--mode", mode, *TINY[script], *places(PEACE.name))
            SECONDS[script, mode] = time.time() - start
            assert result.returncode == 0, result.stderr


def places(folder):
    return ["--data-dir", f"{folder}/data", "--out-dir", f"{folder}/out"]


def quiet():
    """Yield a StringIO that takes the log lines."""
    return contextlib.redirect_stderr(io.StringIO())


class Case(unittest.TestCase):
    """A test case with an empty folder of its own."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def copy_results(self):
        shutil.rmtree(self.folder)
        shutil.copytree(PEACE.name, self.folder)

    def put(self, name, content):
        """Write a file, or remove it (or a folder) if content is None."""
        path = self.folder / name
        if content is not None:
            path.write_text(content)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def go(self, script, mode, *flags, **options):
        return run(script, "--mode", mode, *TINY[script], *places(self.folder), *flags, **options)

    def args(self, script, *flags):
        return SCRIPTS[script].command_line().parse_args([*TINY[script], *places(self.folder), *flags])

    def config(self, script, pe="alibi"):
        args = self.args(script)
        if script == ADD:
            return common.config_of(args, ADD, add.data_folder(args), 1)
        return sort.make_config(args, pe, 1, None)

    def load(self, script):
        args = self.args(script)
        return add.load_data(args) if script == ADD else sort.load_data(args, sort.SPLITS)

    def find_model(self, script, **changes):
        build = add.Adder if script == ADD else sort.SortednessEncoder
        folder = Path(MODEL[script]).relative_to("out").parent
        return common.find_model(self.args(script), folder, self.config(script) | changes, build)

    def assert_works(self, result):
        self.assertEqual(result.returncode, 0, result.stderr)

    def assert_error(self, result, sentence=""):
        """Exit code 2, and one line that says `sentence`, after nothing but progress."""
        *before, last = result.stderr.decode().splitlines()
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertRegex(last, f"^error: .*{sentence}")
        for line in before:
            self.assertRegex(line, "^(data|model|train|step|testing|saved|note)")


def kill_in_whole_file(path):
    with common.whole_file(path) as temporary:
        temporary.write_text("new, but")
        os.kill(os.getpid(), signal.SIGKILL)


@unittest.skipIf(os.name == "nt", "Windows has other signals")
class Interrupted(Case):
    def test_killed_at_random_moments(self):
        """After each kill all files are whole. Then the same commands leave the same bytes as an undisturbed run."""
        rng = random.Random(641)
        kills = 0
        for script, modes in MODES.items():
            for mode in modes:
                for _ in range(2 if mode == "analyze" else 3):
                    end = time.time() + rng.uniform(0, 0.8 * SECONDS[script, mode])
                    result = self.go(script, mode, kill_when=lambda: time.time() > end)
                    self.assertIn(result.returncode, (0, -signal.SIGKILL), result.stderr)
                    kills += result.killed
                    whole_results(self.folder)
                self.assert_works(self.go(script, mode))
        self.assertGreaterEqual(kills, 14)  # of 19
        left = whole_results(self.folder)
        expected = whole_results(PEACE.name)
        self.assertEqual(sorted(left), sorted(expected))
        for name in expected:
            self.assertEqual(left[name], expected[name], name)

    def test_killed_in_the_middle_of_a_file(self):
        """The old file is still there; the half-written one goes when the next run begins to write there."""
        path = self.folder / "out" / "deeper" / "file.json"
        common.write_json(path, "old")
        process = PROCESSES.Process(target=kill_in_whole_file, args=(path,))
        process.start()
        process.join()
        self.assertEqual(process.exitcode, -signal.SIGKILL)
        self.assertEqual(path.read_text(), '"old"\n')
        self.assertEqual(len(list(path.parent.iterdir())), 2)
        common.folder(self.folder, "out")
        self.assertEqual(list(path.parent.iterdir()), [path])

    def test_died_between_two_renames(self):
        """There are the old data or none, never a mixture, and the next run makes what is missing."""
        self.copy_results()
        folder = self.folder / DATA[ADD]
        old = contents(folder)
        rename = Path.rename
        for n_renamed in (0, 1):
            steps = [rename] * n_renamed + [mock.Mock(side_effect=KeyboardInterrupt)]
            with mock.patch.object(Path, "rename", lambda path, target: steps.pop(0)(path, target)):
                with self.assertRaises(KeyboardInterrupt):
                    add.generate_data(self.args(ADD, "--seed", "7"))
            self.assertEqual(contents(folder), {} if n_renamed else old)
        self.assert_works(self.go(ADD, "train"))
        self.assertEqual(contents(folder), old)

    def test_ctrl_c(self):
        code, said = ctrl_c(b"step", SORT, "--mode", "train", *TINY[SORT], "--steps", "100000", *places(self.folder))
        self.assertEqual((code, len(said)), (130, 1), said)
        self.assertRegex(said[0], "^interrupted; every file on disk is whole")
        code, said = ctrl_c(b"torch", "-X", "importtime", ADD, "--mode", "gendata", *places(self.folder))
        self.assertIn(code, (130, -signal.SIGINT))
        self.assertLessEqual(len(said), 1, said)

    def test_full_disk(self):
        """No file may grow beyond some bytes: one sentence, and all that was there is still there."""
        self.copy_results()
        before = whole_results(self.folder)
        for most_bytes, *command in [(8000, ADD, "gendata", "--seed", "5"), (4000, ADD, "train"), (50000, ADD, "train"),
                                     (50000, ADD, "analyze"), (4000, SORT, "gendata", "--seed", "5"),
                                     (15000, SORT, "train", "--pe", "learned"), (2000, SORT, "extrapolate"),
                                     (50000, SORT, "analyze")]:
            with self.subTest(command, most_bytes=most_bytes):
                self.assert_error(self.go(*command, most_bytes=most_bytes), "make room there or choose another place with")
                self.assertEqual(whole_results(self.folder), before)
                self.assertEqual(list(self.folder.rglob(".*.tmp")), [])

    def test_two_runs_in_one_folder(self):
        def second():
            if (self.folder / "out/addition/.lock").exists():
                results.append(self.go(ADD, "train"))
            return bool(results)

        results = []
        self.assertTrue(self.go(ADD, "train", "--steps", "1000000", kill_when=second).killed)
        self.assert_error(results[0], "another run is writing to .*/out/addition; wait for it, or choose another --out-dir")
        self.assert_works(self.go(ADD, "train"))  # the lock has gone with its owner


class SameResult(Case):
    def test_validating_more_often_changes_nothing(self):
        self.copy_results()
        data = {ADD: self.load(ADD), SORT: self.load(SORT)}
        for script, pe in [(ADD, None)] + [(SORT, pe) for pe in sort.encodings()]:
            weights = []
            for every in (12, 1):
                config = self.config(script, pe) | {"steps": 12, "eval_every": every}
                # restore() is left out: it is about the last weights, not the best
                with quiet(), mock.patch.object(common.History, "restore", lambda best: best.model):
                    model, best = SCRIPTS[script].fit(config, data[script], torch.device("cpu"))
                self.assertEqual(len(best.rows), 12 // every)
                weights.append(model.state_dict())
            for name in weights[0]:
                self.assertTrue(torch.equal(weights[0][name], weights[1][name]), (script, pe, name))

    @unittest.skipIf(os.name == "nt", "needs bash")
    def test_figures_depend_on_no_setting_of_matplotlib(self):
        style = self.folder / "matplotlibrc"
        style.write_text("axes.facecolor: red\nfont.size: 30\nno.such.key: 1\n")
        name = "out/addition/training_curves.png"
        for variables in ({"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
                          {"MPLBACKEND": "nonsense", "MATPLOTLIBRC": str(style)}):
            shutil.rmtree(self.folder / "out", ignore_errors=True)
            self.assert_works(shell('"$@"', ADD, "--mode", "train", *TINY[ADD], *places(self.folder), **variables))
            self.assertEqual((self.folder / name).read_bytes(), Path(PEACE.name, name).read_bytes(), variables)


class Models(Case):
    def setUp(self):
        super().setUp()
        self.copy_results()

    def test_order(self):
        """First --out-dir, then the reference results; only the same configuration; a line says which."""
        mine = self.folder / MODEL[ADD]
        second = mine.parent / "seeds" / "2.pth"
        reference = self.folder / "reference/addition/best_model.pth"
        reference.parent.mkdir(parents=True)
        second.parent.mkdir()
        checkpoint = torch.load(mine, weights_only=True)
        with mock.patch.object(common, "REFERENCE", self.folder / "reference"), quiet() as said:
            self.find_model(ADD)
            shutil.move(mine, reference)
            self.find_model(ADD)
            for name, value in (("lr", 3.0), ("model_seed", 4)):
                torch.save(checkpoint | {"config": checkpoint["config"] | {name: value}}, mine)
                self.assertEqual(self.find_model(ADD).config["lr"], 0.02)
                with self.assertRaisesRegex(UserError, rf"best_model.pth has .*{name} {value} \(wanted"):
                    self.find_model(ADD, d_ff=32)  # a training would replace it
            for changes in ({"seed": 7}, {"own_data": "1234"}, {"weight_decay": 0.1}):
                with self.assertRaisesRegex(UserError, "best_model.pth has "):
                    self.find_model(ADD, **changes)
            self.assertIsNone(self.find_model(ADD, model_seed=2))  # it would stand beside it
            torch.save(checkpoint | {"config": checkpoint["config"] | {"model_seed": 2}}, second)
            self.find_model(ADD, model_seed=2)
            with self.assertRaisesRegex(UserError, r"2.pth has d_ff 16 \(wanted 32\); pass the settings it has"):
                self.find_model(ADD, model_seed=2, d_ff=32)
            mine.unlink()
            self.assertIsNone(self.find_model(ADD, seed=7))
        used = [mine, reference, reference, reference, "none with these settings, training one", second,
                "none with these settings, training one"]
        self.assertEqual(said.getvalue().splitlines(), [f"model: {which}" for which in used])

    def test_something_else(self):
        """Files cut short, text, code, models of the other script, of other versions and shapes: none is used or run."""
        trap = self.folder / "trap"

        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(trap),)

        rng = random.Random(641)
        whole = {script: (self.folder / MODEL[script]).read_bytes() for script in SCRIPTS}
        for script, other in ((ADD, SORT), (SORT, ADD)):
            path = self.folder / MODEL[script]
            good = torch.load(path, weights_only=True)
            files = [whole[other], b"hello"]
            for end in [0, 1, len(whole[script]) - 1, *rng.sample(range(len(whole[script])), 20)]:
                files.append(whole[script][:end])
            config = good["config"]
            for wrong in ("hello", [good], {"config": config}, {"weights": good["weights"]}, good | {"config": [1]},
                          good | {"config": {"script": script}}, good | {"config": config | {"script": other}},
                          good | {"config": config | {"d_ff": 4}}, good | {"weights": Evil()}):
                file = io.BytesIO()
                torch.save(wrong, file)
                files.append(file.getvalue())
            for content in files:
                path.write_bytes(content)
                with self.assertRaisesRegex(UserError, f"^{path} is not a model of this version of {script}; remove it"):
                    self.find_model(script)
            self.assert_error(self.go(script, "infer", QUESTION[script]), f"{path} is not a model of this version")
            self.assertFalse(trap.exists())
            torch.load(path, weights_only=False)  # the trap would have worked
            trap.rmdir()


class OwnData(Case):
    def refused(self, script, name, content):
        """Put other bytes into a data file. Return whether they are refused; if not, they must be what is used."""
        folder = self.folder / DATA[script]
        (folder / name).write_bytes(content)
        before = contents(folder)
        with quiet():
            with self.assertRaisesRegex(UserError, f"{folder} holds files of your own, which are not replaced"):
                SCRIPTS[script].generate_data(self.args(script))
            self.assertEqual(contents(folder), before)
            try:
                data = self.load(script)
            except UserError as error:
                self.assertRegex(str(error), f"^{folder}/{name}(, line [0-9]+(:| is not JSON).*mend it| holds no record)")
                return True
        for split, found in data.items():
            records = [json.loads(line) for line in before[folder / f"{split}.jsonl"].splitlines()]
            if script == ADD:
                source, target = add.tokenize(found, 2)
                self.assertEqual([record["input"] for record in records], source.tolist())
                self.assertEqual([record["target"] for record in records], target.tolist())
            else:
                self.assertTrue(torch.equal(found[0], sort.pad([record["sequence"] for record in records])))
                self.assertEqual([record["is_sorted"] for record in records], (found[1] == 0).tolist())
        return False

    def test_changed_bytes(self):
        """A file that was changed after gendata is the user's own: used as it is, or refused by name and line."""
        rng = random.Random(641)
        pieces = [b"\0", b"\xff", b"\xed\xa0\x80", b"9" * 5000, b"[" * 50_000, b"-", b"1e400", b"null", b"NaN", b"\n",
                  b"{}", b"\r\n", b'"', b"true", b"1.0"]
        n_refused = 0
        self.copy_results()
        for script in SCRIPTS:
            for name in ("settings.json", "train.jsonl", "val.jsonl", "test.jsonl"):
                path = self.folder / DATA[script] / name
                whole = path.read_bytes()
                for end in [0, 1, len(whole) - 2, *rng.sample(range(len(whole) - 2), 8)]:
                    refused = self.refused(script, name, whole[:end])
                    self.assertFalse(refused and name == "settings.json")
                    n_refused += refused
                path.write_bytes(whole)
            for piece in pieces:
                for where in (0, rng.randrange(len(whole))):
                    content = whole[:where] + piece + whole[where + rng.choice([0, 1, 3]):]
                    n_refused += self.refused(script, "test.jsonl", content)
        self.assertGreater(n_refused, 90)

    def test_never_replaced(self):
        """Files without settings.json and extra files are used by --mode train, and survive every mode."""
        cases = ((ADD, "settings.json", None), (ADD, "notes.txt", "mine"), (SORT, "notes.txt", "mine"))
        for script, name, content in cases:
            folder = self.folder / DATA[script]
            self.copy_results()
            self.put(folder / name, content)
            before = contents(folder)
            with self.subTest(script=script, name=name):
                self.assert_error(self.go(script, "gendata"), f"{folder} holds files of your own")
                result = self.go(script, "train")
                self.assert_works(result)
                self.assertIn(f"data: {folder} holds files of your own, used as they are", result.stderr.decode())
                if content is None:
                    self.go(script, "all")
                self.assertEqual(contents(folder), before)


class Obstacles(Case):
    def test_help(self):
        for script, modes in MODES.items():
            text = run(script, "--help").stdout.decode()
            for words in (f"--mode {{all,{','.join(modes)},infer}}", "(default: 641)", "examples:", f"python {script} "):
                self.assertIn(words, text)
            for words in ("default: None", "default: False", "['", "[]", "[16"):
                self.assertNotIn(words, text)

    @unittest.skipIf(os.name == "nt", "needs bash")
    def test_closed_streams(self):
        self.copy_results()
        flags = [*TINY[ADD], *places(self.folder)]
        self.assert_error(shell('"$@" <&-', ADD, *flags, "--mode", "infer", "-"), "standard input is closed; type the")
        result = shell('"$@" 2>&-', ADD, "--steps", "0")
        self.assertEqual((result.returncode, result.stdout), (2, b""))
        result = shell('"$@" 2>&1 | head -1; exit ${PIPESTATUS[0]}', ADD, *flags, "--mode", "train", "--eval-every", "1")
        self.assertNotEqual(result.returncode, 0)
        self.assertEqual((result.stdout.count(b"\n"), result.stderr), (1, b""))

    def test_loss_that_is_not_finite(self):
        for script in SCRIPTS:
            self.assert_error(self.go(script, "train", "--steps", "1", "--lr", "1e30"), "no longer finite at step 1")
        self.assertEqual(contents(self.folder / "out"), {})

    def test_clock_that_stands_still(self):
        for script, module in SCRIPTS.items():
            command = [script, "--mode", "train", *TINY[script], *places(self.folder)]
            with mock.patch("time.time", lambda: 0.0), mock.patch("sys.argv", command), quiet():
                with contextlib.redirect_stdout(io.StringIO()):
                    module.main()
            self.assertTrue((self.folder / MODEL[script]).exists())

    def test_too_little_memory(self):
        for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 7 bytes")):
            with quiet() as said, self.assertRaises(SystemExit) as left:
                common.run(mock.Mock(side_effect=error))
            self.assertEqual(left.exception.code, 2)
            self.assertRegex(said.getvalue(), "^error: there is not enough memory; lower --batch-size, .* or --n-layer\n$")
        with self.assertRaises(RuntimeError):  # any other is a fault of ours and must look like one
            common.run(mock.Mock(side_effect=RuntimeError("shapes differ")))

    def test_absent_devices(self):
        present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        for device in [name for name in present if not present[name]]:
            for script in SCRIPTS:
                self.assert_error(self.go(script, "infer", QUESTION[script], "--device", device),
                                  f"--device {device}: this machine has none; type --device cpu$")

    def test_advice(self):
        """Do what the message says, and the same command works, or the one that it names."""
        val, settings = f"{DATA[ADD]}/val.jsonl", f"{DATA[ADD]}/settings.json"
        gendata, ask, long = (ADD, "gendata"), (ADD, "infer", "34+15"), (SORT, "extrapolate")
        train = (ADD, "train")
        elsewhere, seed5, seed3 = ("--data-dir", f"{self.folder}/elsewhere"), ("--seed", "5"), ("--model-seed", "3")
        small = ("--num-digits", "1", "--leading-zeros", "--n-train", "30", "--n-val", "5", "--n-test", "5")
        situations = [  # a file and its new content; a command; its message; what to remove and to type
            (None, None, train + seed5, r"made with seed 641 \(wanted 5\); pass the flags it was made with, choose another "
             "--data-dir, or replace it: type --mode gendata with the flags you want",
             [train, train + seed5 + elsewhere, gendata + seed5, train + seed5]),
            (val, None, train, "val.jsonl is missing; .*, choose another --data-dir, or remove .*/addition to have all data "
             "made anew", [train + elsewhere, DATA[ADD], train]),
            (val, "", train, "val.jsonl holds no record; .* choose another --data-dir", [train + elsewhere]),
            (settings, None, gendata, "choose another place with --data-dir", [gendata + elsewhere]),
            (MODEL[ADD], "hello", ask, "remove it and type the same command again", [MODEL[ADD], ask]),
            (None, None, (ADD, "train", "--lr", "1e30"), "try a smaller --lr", [(ADD, "train", "--lr", "0.1")]),
            (None, None, (ADD, "infer", "3+4"), "from 10 to 99; type --num-digits .and --leading-zeros",
             [(ADD, "infer", "3+4", *small, *elsewhere, "--out-dir", f"{self.folder}/elsewhere/out")]),
            (None, None, ask + seed3, r"has model_seed 1 \(wanted 3\); pass the settings it has, choose another "
             "--out-dir, or type --mode train to replace it",
             [ask, ask + seed3 + ("--out-dir", f"{self.folder}/elsewhere/out"), train + seed3, ask + seed3]),
            (RESULTS, "{", long, f"{RESULTS} .* remove it", [RESULTS, long])]
        for text in ("[]", "3", '{"rope": 3}', '{"rope": {"pe": "rope"}}', '{"rope": NaN}'):
            situations.append((RESULTS, text, long, f"{RESULTS} .* remove it", []))
        for command in [(*gendata, "--n-head", "3"), (*gendata, "--n-train", "9999"), (SORT, "gendata", "--d-model", "10"),
                        (SORT, "gendata", "--lengths", "600")]:
            situations.append((None, None, command, "type --", None))  # the command with what it says to type
        for name, content, command, message, then in situations:
            self.copy_results()
            if name:
                self.put(name, content)
            with self.subTest(command=command, message=message, content=content):
                result = self.go(*command)
                self.assert_error(result, message)
                if then is None:
                    then = [(*command, *re.search("type (--.*)", result.stderr.decode())[1].split())]
                for step in then:
                    if isinstance(step, str):
                        self.put(step, None)
                    else:
                        self.assert_works(self.go(*step))


class Nonsense(Case):
    """Generated with a fixed seed: an error of one sentence, or an answer; no traceback, no hang."""

    STRANGE = ["", " ", "-1", "0", "-0", "1.5", "1e3", "1e999", "nan", "-inf", "None", "[]", "0x10", "\u0663", "\udcff",
               "9" * 20, "9" * 5000, "3,4", "a" * 300, "--", "-", "\n", "../../..", "%s", "{}", "alibi,", "ALIBI",
               "alibi,alibi", "True", "1_0", "+5", "1" + 400 * "0"]

    def setUp(self):
        super().setUp()
        self.copy_results()

    def test_command_lines(self):
        rng = random.Random(641)
        wrong = [(ADD, "train", "--model-seed", "4294967297"), (ADD, "train", "--out-dir", "README.md"),
                 (SORT, "train", "--data-dir", "README.md"), (SORT, "train", "--out-dir", "a" * 300),
                 (ADD, "infer", "\udcff"), (SORT, "infer", "\udcff")]
        commands = []
        for script, module in SCRIPTS.items():
            flags = [action.option_strings[0] for action in module.command_line()._actions
                     if action.option_strings and action.dest not in ("help", "data_dir", "out_dir")]
            for _ in range(25):
                mode = rng.choice(["gendata", "train", "infer"])
                command = [script, mode] + ([QUESTION[script]] if mode == "infer" else [])
                for flag in rng.sample(flags, rng.choice([1, 1, 2])):
                    value = rng.choice([rng.choice(self.STRANGE), rng.choice(["1", "2", "8"])])
                    command += [flag] + [value] * rng.choice([0, 1, 1, 1, 2])
                commands.append(command + rng.choice([[], [], [], [rng.choice(self.STRANGE)]]))
        codes = []
        for command in wrong + commands:
            result = self.go(*command, timeout=60)
            codes.append(result.returncode)
            with self.subTest(command):
                if result.returncode or command in wrong:
                    self.assert_error(result)
        self.assertGreater(codes.count(2), 30)
        self.assertGreater(codes.count(0), 5)

    def test_standard_input(self):
        """Each line is answered up to the first that is no question."""
        rng = random.Random(641)
        good = {ADD: [b"34+15", b" 99 + 10 ", b"0012+13"], SORT: [b"3 15 27", b"1,2,3,4,5,6,7,8", b" 99 0"]}
        bad = [b"\0", b"\xff\xfe", b"9" * 100_000, b"1 +", b"-", b"34+15+1", b"3;4", b"1e2", b"(" * 999, b"[" * 99_999,
               b'{"sequence": 3}', "\u0663+\u0664".encode()]
        for script in SCRIPTS:
            for _ in range(10):
                answered = rng.choices(good[script], k=rng.randrange(5))
                wrong = rng.choices(bad, k=rng.choice([0, 1, 1]))
                lines = answered + [b""] + wrong + rng.choices(good[script], k=2 * len(wrong))
                result = self.go(script, "infer", "-", stdin=b"\n".join(lines), timeout=60)
                with self.subTest(script, lines=lines):
                    self.assertEqual(result.stdout.count(b"\n"), len(answered))
                    self.assert_error(result) if wrong else self.assert_works(result)


if __name__ == "__main__":
    unittest.main()
