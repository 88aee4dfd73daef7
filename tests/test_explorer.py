"""out/explorer.html against PyTorch in Node, and as a user sees it, in headless Chromium."""
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import torch

import attention_addition as add
import positional_sorting as sort
from tests.command import TOP, run

REFERENCE = TOP / "out/reference"
ADDER = add.load(REFERENCE / "addition/best_model.pth")
PAGE = (TOP / "out/explorer.html").read_text("utf-8")
MODELS = re.search(r'<script id="models">\n(.*?)</script>', PAGE, re.DOTALL)[1]
WAYS = [lambda encoding: encoding, sort.window, sort.kept, sort.both]
NODE, BROWSER = shutil.which("node"), shutil.which("chromium")
IN_NODE = """
const read = (file) => require("fs").readFileSync(file, "utf8");
const [problems, changes, lists, cases] = JSON.parse(read(0));
const adder = readModel(eval(read("addition/model.js")).addition);
const answers = problems.map(([a, b]) => +answerAdder(adder, a, b).digits.join(""));
const logits = changes.map(([head, x]) => problems.slice(0, 100).map(([a, b]) =>
  [...runAdder(adder, a, b, { [head]: x && Float32Array.from(x.flat(2)) }).logits]));
const sorters = Object.values(eval(read("sorting/models.js"))).map(readModel).map((model) =>
  cases.map(([start, i]) => lists.map((x) => runSorter(model, x, start, i > 1, i % 2 > 0).logit)));
console.log(JSON.stringify([answers, logits, sorters]));
"""
IN_BROWSER = """<script>
const errors = [], H2 = "[name='cross.L0.H2']"; onerror = console.error = (x) => errors.push(x);
const press = (...buttons) => buttons.forEach((button) => document.querySelector(button).click());
const type = (id, value) =>
  Object.assign($(id), { value }).dispatchEvent(new Event("input", { bubbles: true }));
const steps = { linked: () => 0, moved: () => type("start", 10), bad1: () => type("list", "3 100"),
  window: () => [type("length", 256), type("start", 0), press("#sinusoidal-random-start")],
  both: () => press("#kept"), kept: () => press("#window"), same: () => press("#kept"),
  unknown: () => [sorter.models.none.config.pe = "x", press("#none")],
  "142+259": () => press("#adder-tab"), bad2: () => type("b", "1234"),
  "142+159 mean": () => [type("b", "159"), press(H2 + "[value=mean]")],
  "142+159 idle": () => press("[data-off=idle]"),
  "142+256 patch": () => press("[data-other='142+259']", "[data-off]", H2 + "[value=patch]"),
  "199+801 off": () => location.hash = "adder/199+801/off=cross.L0.H2" };
const claims = { linked: /says sorted .*: right.*window,4$/, moved: /: wrong.*start=10/,
  window: /: wrong.*,1$/, both: /: right/, kept: /: wrong/, same: /: wrong/, bad1: /Type 2/,
  unknown: /not know the encoding of none.*,0$/, "142+159 idle": /off=enc/, bad2: /Type two/ };
onload = async () => {
  for (const step in steps) {
    steps[step]();
    await new Promise((done) => setTimeout(done, 6000));
    const shown = [...document.querySelectorAll(".result, .bad")].map((x) => x.textContent);
    steps[step] = `${[...shown, location.hash, $("sorter-heads").children.length]}`;
    if (!steps[step].match(claims[step])) errors.push(step, steps[step]);
  }
  document.body.textContent = JSON.stringify([steps, adder.problems, errors]);
};
</script>"""

class Explorer(unittest.TestCase):
    def test_it_is_short(self):
        self.assertTrue(PAGE.count("\n") <= 650 and MODELS.count("\n") <= 170)
        self.assertNotRegex(PAGE, ".{101}")

    @unittest.skipUnless(NODE, "node is not installed")
    @torch.inference_mode()
    def test_models_are_pytorchs(self):
        problems, changes = add.random_problems(3, 2000), []
        for head, x in add.run(ADDER, problems)[2].items():
            changes += [(head, 0), (head, x.mean(0, True)), (head, x[:1])]
        lists = problems.view(100, 40)[:10] % 100
        cases = [*itertools.product([0, 130, 472], range(4))]  # start, one of WAYS
        given = json.dumps([problems, changes, lists, cases], default=torch.Tensor.tolist)
        found = subprocess.check_output([NODE, "-e", MODELS + IN_NODE], cwd=REFERENCE, text=True,
                                        input=given)
        answers, logits, sorters = json.loads(found)
        self.assertEqual(answers, add.solve(ADDER, problems))
        for (head, x), found in zip(changes, torch.tensor(logits)):
            with add.replaced(ADDER, {head: x}):
                expected = ADDER(*add.tokenize(problems[:100], 3)).flatten(1)
            self.assertLess((found - expected).abs().max(), 1e-3, head)
        models = map(sort.load, sorted(REFERENCE.glob("sorting/*/best_model.pth")))
        for model, logits in zip(models, sorters):
            for (start, i), found in zip(cases, torch.tensor(logits)):
                change = WAYS[i if model.config.pe == "sinusoidal" else i % 2]
                expected = model(lists, start, change(model.encoding))
                self.assertLess((found - expected).abs().max(), 1e-3, model.config)

    @unittest.skipUnless(BROWSER, "chromium is not installed")
    def test_page_in_a_browser(self):
        with tempfile.TemporaryDirectory() as folder:
            page, out = Path(folder, "page.html"), Path(folder, "reference")
            page.write_text(PAGE.replace("<title>", IN_BROWSER + "<title>"), "utf-8")
            shutil.copytree(REFERENCE, out, ignore=shutil.ignore_patterns("*.js", "seed*"))
            run("tests/page.py", str(out))
            command = [BROWSER, "--headless=new", "--no-sandbox", "--virtual-time-budget=200000",
                       "--dump-dom", page.as_uri() + "#sorter//open=sinusoidal/window"]
            seen = subprocess.check_output(command, stderr=subprocess.DEVNULL).decode()
        steps, problems, errors = json.loads(re.search("<body>(.*)</body>", seen)[1])
        self.assertEqual(errors, [])
        h2, problems = "cross.L0.H2", torch.tensor(problems)
        mean = add.run(ADDER, problems)[2][h2].mean(0, True)
        patch = add.run(ADDER, [(142, 259)])[2][h2]
        idle = json.loads((REFERENCE / "addition/head_analysis/ablation.json").read_text())["idle"]
        changes = {"142+259": {}, "142+159 mean": {h2: mean}, "142+256 patch": {h2: patch},
                   "142+159 idle": dict.fromkeys(idle, 0), "199+801 off": {h2: 0}}
        for step, change in changes.items():
            a, b = map(int, step[:7].split("+"))
            with add.replaced(ADDER, change):
                answer = add.solve(ADDER, [(a, b)])[0]
            right = round(500 * add.accuracy(ADDER, problems, {} if "patch" in step else change))
            self.assertRegex(steps[step], f"{a}.{b}: the model answers {answer},.* {right} of 500")
