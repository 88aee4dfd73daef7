"""What users and machines do to it: runs killed and taken up again, files cut short, full disks, nonsense typed in."""
import argparse
import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import torch

import attention_addition as add
import common
import positional_sorting as sort
from common import UserError
from tests import test_addition_cli, test_sorting_cli
from tests.command import PROCESSES, TOP, contents, run, side_by_side

TINY = {"attention_addition.py": test_addition_cli.TINY, "positional_sorting.py": test_sorting_cli.TINY}
SCRIPTS = {"attention_addition.py": add, "positional_sorting.py": sort}
MODES = {"attention_addition.py": ["gendata", "train", "analyze"],
         "positional_sorting.py": ["gendata", "train", "extrapolate", "analyze"]}
MORE = {"attention_addition.py": [], "positional_sorting.py": ["--pe", "learned,alibi", "--model-seeds", "1"]}
QUESTION = {"attention_addition.py": "34+15", "positional_sorting.py": "3 15 27"}


def without_times(value):
    """A log without what a clock has measured."""
    if isinstance(value, dict):
        return {key: without_times(x) for key, x in value.items() if key != "seconds"}
    return [without_times(x) for x in value] if isinstance(value, list) else value


def comparable(path, content):
    return without_times(json.loads(content)) if path.suffix == ".json" else content


def assert_whole(path, content):
    """Fail unless the file is one that can be read to its end."""
    if path.suffix == ".json":
        json.loads(content)
    elif path.suffix == ".jsonl":
        assert content.endswith(b"\n") and [json.loads(line) for line in content.splitlines()], path
    elif path.suffix == ".png":
        assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82"), path
    else:
        assert path.suffix == ".pth", path
        torch.load(io.BytesIO(content), weights_only=True)


def whole_files(folder):
    """The contents of all files, each of them whole. What a killed run was writing has a name that nobody reads."""
    files = {path.relative_to(folder): content for path, content in contents(folder).items()
             if not re.fullmatch(r"\..*\.tmp", path.name)}
    for path, content in files.items():
        assert_whole(path, content)
    return files


def kill_in_the_middle(path):
    with common.whole_file(path) as temporary:
        temporary.write_text("new, but")
        os.kill(os.getpid(), signal.SIGKILL)


def quiet():
    """Log lines go nowhere."""
    return contextlib.redirect_stderr(io.StringIO())


class Killed(unittest.TestCase):
    def killed_often(self, script, kills):
        """Kill runs at random moments; then finish, and find what a run that was left in peace leaves behind."""
        rng = random.Random(641)
        with tempfile.TemporaryDirectory() as peace, tempfile.TemporaryDirectory() as war:
            commands, seconds = {}, {}
            run(script, "--help")  # so that what comes next is not also the start of the process that splits
            for mode in MODES[script]:
                commands[mode] = [script, "--mode", mode, *TINY[script], *MORE[script]]
                start = time.time()
                result = run(*commands[mode], "--data-dir", peace, "--out-dir", peace)
                seconds[mode] = time.time() - start
                self.assertEqual(result.returncode, 0, result.stderr)
            count = 0
            for mode in MODES[script]:
                for _ in range(kills):
                    end = time.time() + rng.uniform(0.03, seconds[mode])
                    result = run(*commands[mode], "--data-dir", war, "--out-dir", war,
                                 kill_when=lambda: time.time() > end)
                    self.assertIn(result.returncode, (0, -signal.SIGKILL), result.stderr)
                    self.assertNotIn(b"rror", result.stderr)
                    count += result.killed
                    if not result.killed:  # done before its moment: choose earlier ones
                        seconds[mode] *= 0.8
                    whole_files(war)
                result = run(*commands[mode], "--data-dir", war, "--out-dir", war)
                self.assertEqual(result.returncode, 0, result.stderr)
            left = {path: content for path, content in whole_files(war).items() if path.name != "unfinished.pth"}
            expected = whole_files(peace)
            self.assertEqual(left.keys(), expected.keys())
            for path in expected:
                self.assertEqual(comparable(path, left[path]), comparable(path, expected[path]), path)
        return count

    def test_at_fifty_random_moments(self):
        with ThreadPoolExecutor(2) as pool:
            counts = list(pool.map(self.killed_often, SCRIPTS, (12, 10)))
        self.assertGreaterEqual(sum(counts), 50)

    def test_in_the_middle_of_a_file(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            path.write_text("old")
            process = PROCESSES.Process(target=kill_in_the_middle, args=(path,))
            process.start()
            process.join()
            left = [x for x in Path(folder).iterdir() if x != path]
            self.assertEqual((path.read_text(), len(left)), ("old", 1))
            os.utime(left[0], (0, 0))  # long ago
            common.write_text(path, "new")
            self.assertEqual((path.read_text(), list(Path(folder).iterdir())), ("new", [path]))

    def test_between_two_data_files(self):
        """A mixture of old and new data is recognised and made anew."""
        with tempfile.TemporaryDirectory() as folder, quiet():
            args = add.command_line().parse([*TINY["attention_addition.py"], "--data-dir", folder])[0]
            args.seed = 7
            add.generate_data(args)
            args.seed = 641
            replace, done = os.replace, []

            def die_after_three(source, target):
                if len(done) == 3:
                    raise KeyboardInterrupt
                done.append(target)
                replace(source, target)
            with mock.patch("os.replace", die_after_three), self.assertRaises(KeyboardInterrupt):
                add.generate_data(args)
            self.assertEqual([path.name for path in done[:1]], ["settings.json"])
            data = add.load_data(args)
            again = add.load_data(args)
        self.assertTrue(all(torch.equal(data[name], again[name]) for name in add.SPLITS))
        sizes = dict(zip(add.SPLITS, (200, 50, 50)))
        self.assertEqual(data["val"].tolist(), [list(x) for x in add.draw_problems(2, False, sizes, 0.5, 641)["val"]])

    @unittest.skipIf(os.name == "nt", "no SIGINT to send")
    def test_ctrl_c(self):
        for script in SCRIPTS:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, script, "--mode", "train", *TINY[script], "--steps", "100000"]
                process = subprocess.Popen([*command, "--data-dir", folder, "--out-dir", folder], cwd=TOP,
                                           stderr=subprocess.PIPE,  # a shell's background job ignores Ctrl-C
                                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
                said = []
                for line in process.stderr:
                    said.append(line)
                    if line.startswith(b"step"):
                        process.send_signal(signal.SIGINT)
                        break
                said += process.stderr.readlines()
                process.stderr.close()
                self.assertEqual(process.wait(), 130)
                self.assertTrue(said[-1].startswith(b"interrupted; the files on disk are whole"), said)
                self.assertTrue(all(line.startswith((b"data:", b"train:", b"step")) for line in said[:-1]), said)


class Resumed(unittest.TestCase):
    def fit_twice(self, module, config, data):
        """Train in one go, and with an interruption at the first validation: (model, history) of each."""
        class Interruption(Exception):
            pass

        save = common.save_unfinished

        def save_and_stop(*arguments):
            save(*arguments)
            raise Interruption

        with tempfile.TemporaryDirectory() as folder, quiet():
            path, device = Path(folder) / "unfinished.pth", torch.device("cpu")
            model, history, _ = module.fit(config, data, device)
            with mock.patch("common.save_unfinished", save_and_stop), self.assertRaises(Interruption):
                module.fit(config, data, device, path)
            torch.randn(10)  # what happens in between does not matter
            model2, history2, _ = module.fit(config, data, device, path, resume=True)
        self.assertEqual(without_times(history), without_times(history2))
        self.assertEqual(len(history), 2)
        for name, tensor in model.state_dict().items():
            self.assertTrue(torch.equal(tensor, model2.state_dict()[name]), name)

    def test_twenty_steps_are_ten_and_ten(self):
        with tempfile.TemporaryDirectory() as folder, quiet():
            typed = [*TINY["attention_addition.py"], "--steps", "20", "--data-dir", folder]
            args = add.command_line().parse(typed)[0]
            self.fit_twice(add, argparse.Namespace(**add.config_of(args)), add.load_data(args))
            args = sort.command_line().parse([*TINY["positional_sorting.py"], "--data-dir", folder])[0]
            data = sort.load_data(args, sort.SPLITS)
            for pe in sort.NAMES:
                self.fit_twice(sort, argparse.Namespace(**sort.config_of(args, pe, 1)), data)

    def test_killed_and_resumed(self):
        """The same through the command line: the resumed training leaves what an undisturbed one does."""
        for script in SCRIPTS:
            place = "addition" if script.startswith("att") else "sorting/alibi"
            with tempfile.TemporaryDirectory() as peace, tempfile.TemporaryDirectory() as war:
                command = [script, "--mode", "train", *TINY[script], "--steps", "150"]
                command += ["--pe", "alibi"] if "sorting" in script else []
                self.assertEqual(run(*command, "--data-dir", peace, "--out-dir", peace).returncode, 0)
                unfinished = Path(war, place, "unfinished.pth")
                run(*command, "--data-dir", war, "--out-dir", war, kill_when=unfinished.exists)
                self.assertLess(torch.load(unfinished, weights_only=True)["progress"][0], 150)
                result = run(*command, "--data-dir", war, "--out-dir", war, "--resume")
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertNotIn(b"step   10/150", result.stderr)
                one, two = whole_files(peace), whole_files(war)
                self.assertEqual(one.keys(), two.keys())
                for path in one:
                    self.assertEqual(comparable(path, one[path]), comparable(path, two[path]), path)

    def test_nothing_or_something_else_to_resume(self):
        for script in SCRIPTS:
            with tempfile.TemporaryDirectory() as folder:
                more = ["--pe", "alibi"] if "sorting" in script else []
                command = [script, "--mode", "train", *TINY[script], *more, "--data-dir", folder, "--out-dir", folder]
                unfinished = Path(folder, "sorting/alibi" if more else "addition", "unfinished.pth")
                if not more:
                    result = run(*command, "--resume")
                    self.assertEqual(result.returncode, 2)
                    self.assertRegex(result.stderr, b"no interrupted training at .*leave --resume out\n$")
                unfinished.parent.mkdir(parents=True, exist_ok=True)
                for content in (b"hello",):
                    unfinished.write_bytes(content)
                    result = run(*command, "--resume")
                    self.assertEqual(result.returncode, 2)
                    self.assertRegex(result.stderr, b"unfinished.pth is not an interrupted training; .*--resume")
                common.save_tensors(unfinished, {"config": {"lr": 3}})
                result = run(*command, "--resume")
                self.assertRegex(result.stderr, rb"was begun with lr 3 \(wanted 0.0\d+\)|was begun with script None")
                self.assertEqual(run(*command).returncode, 0)  # without --resume it is begun anew
                self.assertFalse(unfinished.exists())
        wrong = run(script, "--mode", "extrapolate", "--resume")
        self.assertEqual((wrong.returncode, wrong.stderr.count(b"\n")), (2, 1))

    def test_several_encodings(self):
        """Finished ones are kept, the interrupted one is taken up, those never begun are trained."""
        with tempfile.TemporaryDirectory() as folder:
            command = ["positional_sorting.py", "--mode", "train", *TINY["positional_sorting.py"], "--data-dir", folder,
                       "--out-dir", folder, "--pe"]
            self.assertEqual(run(*command, "none").returncode, 0)
            before = Path(folder, "sorting/none/best_model.pth").stat().st_mtime_ns
            result = run(*command, "none,alibi", "--resume")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn(b"none is trained already", result.stderr)
            self.assertEqual(Path(folder, "sorting/none/best_model.pth").stat().st_mtime_ns, before)
            self.assertTrue(Path(folder, "sorting/alibi/best_model.pth").exists())


class SameResult(unittest.TestCase):
    def test_validating_more_often_changes_nothing(self):
        with tempfile.TemporaryDirectory() as folder, quiet():
            for module, script in ((add, "attention_addition.py"), (sort, "positional_sorting.py")):
                for pe in [None] if module is add else list(sort.NAMES):
                    rows = []
                    for every in ("20", "4"):
                        args = module.command_line().parse([*TINY[script], "--steps", "20", "--eval-every", every,
                                                            "--data-dir", folder])[0]
                        data = add.load_data(args) if module is add else sort.load_data(args, sort.SPLITS)
                        config = args if module is add else argparse.Namespace(**sort.config_of(args, pe, 1))
                        rows.append(without_times(module.fit(config, data, torch.device("cpu"))[1][-1]))
                    del rows[0]["train_loss"], rows[1]["train_loss"]  # the mean since the last validation
                    self.assertEqual(*rows)

    def test_data_depend_on_their_flags_alone(self):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            for script in SCRIPTS:
                command = [script, "--mode", "gendata", *TINY[script]]
                other = ["--model-seed", "9", "--threads", "2", "--lr", "1"]
                results = side_by_side([[*command, "--data-dir", one], [*command, "--data-dir", two, *other]])
                self.assertEqual([result.returncode for result in results], [0, 0])
            self.assertEqual([*contents(one).values()], [*contents(two).values()])


class ForeignFiles(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = folder.name
        cls.places = ["--data-dir", cls.folder, "--out-dir", cls.folder]
        for script in SCRIPTS:
            more = ["--model-seeds", "2"] if script.startswith("att") else ["--pe", "alibi"]
            result = run(script, *TINY[script], *more, *cls.places)
            assert result.returncode == 0, result.stderr

    @contextlib.contextmanager
    def changed(self, name, content):
        """Yield the path of a file that holds something else for a while."""
        path = Path(self.folder, name)
        whole = path.read_bytes()
        path.write_bytes(content)
        try:
            yield path
        finally:
            path.write_bytes(whole)

    def test_cut_anywhere(self):
        """Models and data that end too early are refused by name, wherever they end."""
        rng, count = random.Random(641), 0
        for script, module in SCRIPTS.items():
            args = module.command_line().parse([*TINY[script], *self.places])[0]
            model = "addition/best_model.pth" if module is add else "sorting/alibi/best_model.pth"
            cases = {model: lambda path: common.load_checkpoint(path, script, module.build_model)}
            folder = model.split("/")[0]
            load = (lambda _: add.load_data(args)) if module is add else (lambda _: sort.load_data(args, sort.SPLITS))
            cases |= {f"{folder}/{name}": load for name in ("settings.json", "train.jsonl", "val.jsonl", "test.jsonl")}
            for name, read in cases.items():
                whole = Path(self.folder, name).read_bytes()
                for end in [0, 1, len(whole) // 2, len(whole) - 2, *rng.sample(range(len(whole) - 1), 20)]:
                    with self.changed(name, whole[:end]) as path, quiet(), self.assertRaisesRegex(UserError, path.stem):
                        read(path)
                    count += 1
        self.assertEqual(count, 2 * 5 * 24)

    def test_other_json(self):
        """Files that are JSON, but not what we write, are refused or made anew."""
        cases = {"addition/settings.json": ["attention_addition.py", "--mode", "train"],
                 "sorting/settings.json": ["positional_sorting.py", "--mode", "train", "--pe", "alibi"],
                 "addition/seeds/2.json": ["attention_addition.py", "--mode", "analyze", "--model-seeds", "2"],
                 "sorting/extrapolation/extrapolation_results.json":
                     ["positional_sorting.py", "--mode", "extrapolate", "--pe", "alibi", "--model-seeds", "1"]}
        before = contents(self.folder)
        for name, command in cases.items():
            for content in (b"[]", b'{"config": 3, "data": []}', b"[" * 100_000):
                with self.subTest(name=name, content=content[:20]), self.changed(name, content):
                    result = run(*command, *TINY[command[0]], *self.places)
                    self.assertIn(result.returncode, (0, 2), result.stderr)
                    if result.returncode:
                        self.assertRegex(result.stderr, rb"error: .*\n$")
                        self.assertNotIn(b"Traceback", result.stderr)
                    else:
                        whole_files(self.folder)
        after = contents(self.folder)
        self.assertEqual({path: comparable(path, content) for path, content in before.items()},
                         {path: comparable(path, content) for path, content in after.items()})

    def test_code_is_not_run(self):
        """A file as torch.save writes it, but with an object whose unpickling runs a command."""
        trap = Path(self.folder) / "trap"

        class Evil:
            def __reduce__(self):
                return os.system, (f"touch {trap}",)

        content = io.BytesIO()
        torch.save({"config": {"script": "attention_addition.py"}, "weights": Evil()}, content)
        for name in ("addition/best_model.pth", "sorting/alibi/best_model.pth"):
            script = "attention_addition.py" if name.startswith("add") else "positional_sorting.py"
            with self.changed(name, content.getvalue()):
                result = run(script, "--mode", "infer", "--out-dir", self.folder, QUESTION[script])
                self.assertEqual(result.returncode, 2)
                self.assertIn(b"is not a model of this version of", result.stderr)
        unfinished = Path(self.folder, "addition/unfinished.pth")
        unfinished.write_bytes(content.getvalue())
        script = "attention_addition.py"
        result = run(script, "--mode", "train", *TINY[script], *self.places, "--resume")
        unfinished.unlink()
        self.assertIn(b"is not an interrupted training", result.stderr)
        self.assertFalse(trap.exists())
        torch.load(io.BytesIO(content.getvalue()), weights_only=False)  # the trap would have worked
        self.assertTrue(trap.exists())
        trap.unlink()

    def test_models_change_places(self):
        """The model of one script is none of the other, nor is one of an older version without all flags."""
        adder, sorter = (Path(self.folder, name).read_bytes() for name in ("addition/best_model.pth",
                                                                          "sorting/alibi/best_model.pth"))
        old = torch.load(io.BytesIO(adder), weights_only=True)
        del old["config"]["num_digits"]
        older = io.BytesIO()
        torch.save(old, older)
        for content in (sorter, older.getvalue()):
            with self.changed("addition/best_model.pth", content):
                result = run("attention_addition.py", "--mode", "infer", "--out-dir", self.folder, "34+15")
                self.assertRegex(result.stderr, b"error: .*best_model.pth is not a model of this version.*--mode train")
        with self.changed("sorting/alibi/best_model.pth", adder):
            result = run("positional_sorting.py", "--mode", "infer", "--out-dir", self.folder, "3 4")
            self.assertRegex(result.stderr, b"^error: .*best_model.pth is not a model of this version .*--mode train")

    @unittest.skipIf(os.name == "nt", "needs resource limits")
    def test_full_disk(self):
        """No file may grow beyond some bytes: one sentence, and all that was there is still there."""
        before = contents(self.folder)
        most_bytes = {"gendata": 8_000, "train": 10_000, "extrapolate": 20_000, "analyze": 20_000}  # for this size
        for script, modes in MODES.items():
            for mode in modes:
                more = ["--seed", "5"] if mode == "gendata" else []
                more += ["--pe", "alibi", "--model-seeds", "1"] if "sort" in script else []
                with self.subTest(script=script, mode=mode):
                    command = [script, "--mode", mode, *TINY[script], *more, *self.places]
                    result = run(*command, most_bytes=most_bytes[mode])
                    self.assertEqual(result.returncode, 2, result.stderr)
                    self.assertRegex(result.stderr, b"error: .*free the disk or choose another place with.*\n$")
                    after = contents(self.folder)
                    for path in before:
                        self.assertEqual(comparable(path, after[path]), comparable(path, before[path]), path)
                    self.assertEqual(before.keys(), after.keys())


class Nonsense(unittest.TestCase):
    """Generated with a fixed seed: an error of one sentence, or a right result; no traceback, no hang."""

    STRANGE = ["", " ", "-1", "0", "-0", "1.5", "1e3", "1e999", "nan", "-inf", "None", "[]", "0x10", "\u0663", "\udcff",
               "9" * 20, "9" * 5000, "3,4", "a" * 300, "--", "-", "\n", "../../..", "%s", "{}", "sinusoidal,", "ALIBI",
               "alibi,alibi", "True", "1_0", "+5", "1" + 400 * "0"]

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.places = ["--data-dir", folder.name, "--out-dir", folder.name]
        for script in SCRIPTS:
            more = ["--pe", "none"] if "sort" in script else []
            result = run(script, "--mode", "train", *TINY[script], *more, *cls.places)
            assert result.returncode == 0, result.stderr

    def test_command_lines(self):
        rng, commands = random.Random(641), []
        for script, module in SCRIPTS.items():
            flags = [action.option_strings[0] for action in module.command_line()._actions
                     if action.option_strings and action.dest not in ("help", "data_dir", "out_dir")]
            for _ in range(50):
                mode = rng.choice(["gendata", "train", "infer"])
                command = [script, *TINY[script], *self.places, "--mode", mode]
                command += [QUESTION[script]] if mode == "infer" else []
                for flag in rng.sample(flags, rng.choice([1, 1, 2])):
                    value = rng.choice([rng.choice(self.STRANGE), rng.choice(["1", "2", "8", "16"])])
                    command += [flag] + [value] * rng.choice([0, 1, 1, 1, 1, 2])
                commands.append(command + rng.choice([[], [], [], [rng.choice(self.STRANGE)]]))
        codes = []
        with tempfile.TemporaryDirectory() as folder:
            for command in commands:
                place = ["--data-dir", folder] if "gendata" in command else []
                result = run(*command, *place, timeout=60)
                codes.append(result.returncode)
                message = result.stderr.decode()
                with self.subTest(command[len(TINY[command[0]]) + 5:]):
                    self.assertIn(result.returncode, (0, 2), message)
                    self.assertNotIn("Traceback", message)
                    if result.returncode == 2:
                        self.assertRegex(message.splitlines()[-1], "^error: ")
        self.assertGreater(codes.count(2), 60)
        self.assertGreater(codes.count(0), 5)

    def test_data_files(self):
        """A damaged data file is refused, unless what it says is still true."""
        rng, refused = random.Random(641), 0
        for script, module in SCRIPTS.items():
            folder = Path(self.places[1], "addition" if module is add else "sorting")
            args = module.command_line().parse([*TINY[script], *self.places])[0]
            whole = (folder / "val.jsonl").read_bytes()
            for _ in range(60):
                content, where = bytearray(whole), rng.randrange(len(whole))
                piece = rng.choice([b"\0", b"\xff", b"\xed\xa0\x80", b"9" * 5000, b"[" * 50_000, b"-", b"1", b"1e400",
                                    b"null", b"NaN", b"\n", b"{}", b"\r\n", b'"', bytes([rng.randrange(256)])])
                content[where:where + rng.choice([0, 1, len(piece)])] = piece
                (folder / "val.jsonl").write_bytes(content)
                try:
                    with quiet():
                        data = add.load_data(args) if module is add else sort.load_data(args, sort.SPLITS)
                except UserError as error:
                    refused += 1
                    self.assertRegex(str(error), r"val\.jsonl")
                    self.assertNotIn("\n", str(error))
                    continue
                if module is add:
                    source, target = add.tokenize(*data["val"].T, args.num_digits)
                    lines = [json.loads(line) for line in bytes(content).splitlines()]
                    self.assertEqual([line["input"] for line in lines], source.tolist())
                    self.assertEqual([line["target"] for line in lines], target.tolist())
                else:
                    lists, kinds = data["val"]
                    self.assertEqual(((lists.diff(dim=1) >= 0).all(1)).tolist(), (kinds == 0).tolist())
            (folder / "val.jsonl").write_bytes(whole)
        self.assertGreater(refused, 90)

    def test_questions(self):
        """Whatever stands in standard input, an answer is printed for each line that is a question, up to the first
        that is not."""
        rng = random.Random(641)
        good = {"attention_addition.py": [b"34+15", b" 99 + 10 ", b"0012+13"],
                "positional_sorting.py": [b"3 15 27", b"1,2,3", b" 99 "]}
        bad = [b"\0", b"\xff\xfe", b"9" * 100_000, b"1 +", b"-", b"34+15+1", b"3;4", b"1e2", b"(" * 999,
               "\u0663+\u0664".encode()]
        for script in SCRIPTS:
            more = ["--pe", "none"] if "sort" in script else []
            for _ in range(20):
                lines = [rng.choice([*good[script], b""] + [rng.choice(bad)] * rng.choice([0, 0, 1]))
                         for _ in range(rng.randrange(6))]
                command = [script, "--mode", "infer", *self.places[2:], *more, "-"]
                result = run(*command, stdin=b"\n".join(lines), timeout=60)
                asked = [line for line in lines if line]
                first = next((i for i, line in enumerate(asked) if line in bad), len(asked))
                self.assertEqual(len(result.stdout.splitlines()), first, (lines, result.stderr))
                self.assertEqual(result.returncode, 2 if first < len(asked) else 0)
                self.assertEqual(result.stderr.count(b"\n"), 1 if first < len(asked) else 0)

    def test_absent_devices(self):
        present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        for script in SCRIPTS:
            for device in [name for name, here in present.items() if not here]:
                result = run(script, "--mode", "train", "--device", device)
                self.assertEqual(result.returncode, 2)
                self.assertEqual(result.stderr.decode(), f"error: --device {device}: this machine has none; type "
                                                         f"--device cpu\n")


if __name__ == "__main__":
    unittest.main()
