"""out/explorer.html against PyTorch in Node, and as a user sees it, in headless Chromium."""
import itertools
import json
import random
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
NODE, BROWSER = shutil.which("node"), shutil.which("chromium")
IN_NODE = """
const read = (file) => require("fs").readFileSync(file, "utf8");
const [problems, changes, lists, cases] = JSON.parse(read(0));
const adder = readModel(eval(read("addition/model.js")).addition);
const answers = problems.map(([a, b]) => +answerAdder(adder, a, b).digits.join(""));
const logits = changes.map(([head, x]) => problems.slice(0, 100).map(([a, b]) =>
  [...runAdder(adder, a, b, { [head]: x && Float32Array.from(x.flat(2)) }).logits]));
const ask = (model) => cases.map((given) => lists.map((x) => runSorter(model, x, ...given).logit));
const sorters = Object.values(eval(read("sorting/models.js"))).map(readModel).map(ask);
console.log(JSON.stringify([answers, logits, sorters]));"""
IN_BROWSER = """<script>
const errors = [], H2 = "[name='cross.L0.H2']";
onerror = console.error = (x) => errors.push(x);
const press = (...buttons) => buttons.forEach((button) => document.querySelector(button).click());
const type = (id, value) =>
  Object.assign($(id), { value }).dispatchEvent(new Event("input", { bubbles: true }));
const steps = { opened: () => 0, bad1: () => type("list", "3 100"),
  long: () => [type("length", 256), press("#sinusoidal-random-start")] };  // with a box checked
for (const start of [0, 1000]) ["same", "window", "both", "kept"].forEach((way, i) =>
  steps[`${way} ${start}`] = () => [type("start", start), press(["#kept", "#window"][i % 2])]);
Object.assign(steps, { unknown: () => [sorter.models.none.config.pe = "x", press("#none")],
  "142+259": () => press("#adder-tab"), bad2: () => type("b", "1234"),
  "142+159 off": () => [type("b", "159"), press(H2 + "[value=off]")],
  "142+159 mean": () => press(H2 + "[value=mean]"), "142+159 idle": () => press("[data-off=idle]"),
  "142+256 patch": () => press("[data-other='142+259']", "[data-off]", H2 + "[value=patch]"),
  "199+801 link": () => location.hash = "adder/199+801/off=cross.L0.H2" });
const claims = { opened: /says sorted.*kept,4/, "same 0": /wrong.*,1/, "window 0": /wrong/,
  "kept 0": /wrong/, "both 0": /right/, bad1: /Type 2/, unknown: /not know.*,0/, bad2: /Type two/ };
onload = async () => {
  for (const step in steps) {
    steps[step]();
    await new Promise((done) => setTimeout(done, 6000));
    const shown = [...document.querySelectorAll(".result, .bad")].map((x) => x.textContent);
    steps[step] = `${[...shown, location.hash, $("sorter-heads").children.length]}`;
    if (!steps[step].match(claims[step])) errors.push(step);
  }
  document.body.textContent = JSON.stringify([steps, sorter.numbers, adder.problems, errors]);
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
        lists, _ = sort.draw_data(random.Random(0), 10, [40], set())
        cases = [*itertools.product([0, 130, 472], [False, True], [False, True])]
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
            waves = model.config.pe == "sinusoidal"
            for (start, kept, window), found in zip(cases, torch.tensor(logits)):
                change = sort.WAYS[2 * (kept and waves) + window]
                error = model(lists, start, change(model.encoding)) - found
                self.assertLess(error.abs().max(), 1e-3, (model.config, start, change))

    @unittest.skipUnless(BROWSER, "chromium is not installed")
    def test_page_in_a_browser(self):
        with tempfile.TemporaryDirectory() as folder:
            page, out = Path(folder, "page.html"), Path(folder, "reference")
            page.write_text(PAGE.replace("<title>", IN_BROWSER + "<title>"), "utf-8")
            shutil.copytree(REFERENCE, out, ignore=shutil.ignore_patterns("*.js", "seed*"))
            run("tests/page.py", str(out))
            command = [BROWSER, "--headless=new", "--no-sandbox", "--virtual-time-budget=200000",
                       "--dump-dom", page.as_uri() + "#sorter//kept"]
            seen = subprocess.check_output(command, stderr=subprocess.DEVNULL).decode()
        seen = re.search("<body>(.*)</body>", seen)[1]
        steps, numbers, problems, errors = json.loads(seen)
        self.assertEqual(errors, [])
        model = sort.load(REFERENCE / "sorting/sinusoidal-random-start/best_model.pth")
        for way, start in itertools.product(sort.WAYS, [0, 1000]):
            logit = model(torch.tensor([numbers]), start, way(model.encoding))
            p = logit.sigmoid().item()
            says = f"sorted {p:.3f}: right" if p > 0.5 else f"unsorted {1 - p:.3f}: wrong"
            self.assertIn(f"random-start says {says}", steps[f"{way.__name__} {start}"])
        h2, problems = "cross.L0.H2", torch.tensor(problems)
        idle = json.loads((REFERENCE / "addition/head_analysis/ablation.json").read_text())["idle"]
        changes = {"142+259": {}, "142+159 off": {h2: 0}, "199+801 link": {h2: 0},
                   "142+159 mean": {h2: add.run(ADDER, problems)[2][h2].mean(0, True)},
                   "142+256 patch": {h2: add.run(ADDER, [(142, 259)])[2][h2]},
                   "142+159 idle": dict.fromkeys(idle, 0)}
        for step, change in changes.items():
            a, b = map(int, step[:7].split("+"))
            with add.replaced(ADDER, change):
                answer = add.solve(ADDER, [(a, b)])[0]
            counted = {} if "patch" in step else change  # a patch belongs to one problem
            right = round(500 * add.accuracy(ADDER, problems, counted))
            self.assertRegex(steps[step], f"{a}.{b}: the model answers {answer},.* {right} of 500")
