"""out/explorer.html against PyTorch in Node, and as a user sees it, in headless Chromium."""
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
from tests.command import TOP

PAGE = (TOP / "out/explorer.html").read_text()
MODELS = re.search(r'<script id="models">\n(.*?)</script>', PAGE, re.DOTALL)[1]
REFERENCE = TOP / "out/reference"
NODE, BROWSER = shutil.which("node"), shutil.which("chromium")
IN_NODE = """
const { addition, sorting, runs, lists } = JSON.parse(require("fs").readFileSync(0));
const adder = readModel(addition);
const logits = runs.map(([problems, head, x]) => problems.map(([a, b]) =>
  [...runAdder(adder, a, b, { [head]: x && Float32Array.from(x.flat()) }).logits]));
const answers = runs[0][0].map(([a, b]) => +answerAdder(adder, a, b).digits.join(""));
const sorter = Object.values(sorting).map(readModel).map((model) =>
  lists.map((given) => runSorter(model, ...given).logit));
console.log(JSON.stringify({ logits, answers, sorter }));
"""
ERRORS = "<script>const errors = []; onerror = console.error = (x) => errors.push(x);</script>"
IN_BROWSER = """<script>
const type = (id, text) => {
  $(id).value = text;
  $(id).dispatchEvent(new Event("input", { bubbles: true }));
};
const press = (...buttons) => buttons.forEach((button) => document.querySelector(button).click());
const steps = { opened: () => 0, bad1: () => type("b", "12x"), bad2: () => type("b", "1234"),
  typed: () => type("b", "159"), off: () => press("[name='cross.L0.H2'][value=off]"),
  mean: () => press("[name='cross.L0.H2'][value=mean]"),
  removed: () => press("[data-off=removable]"),
  patched: () => press("[data-other='142+259']", "[data-off]", "[name='cross.L0.H2'][value=patch]"),
  sorter: () => press("[data-tab=sorter]", "[data-open=sinusoidal-random-start-gap]"),
  moved: () => type("start", "1000"), held: () => press("#waves"), bad3: () => type("list", ""),
  bad4: () => type("list", "3 100"), link: () => location.hash = "adder/199+801/off=cross.L0.H2" };
onload = async () => {
  for (const step in steps) {
    steps[step]();
    await new Promise((done) => setTimeout(done, 6000));
    steps[step] = [...document.querySelectorAll(".result, .bad")].map((x) => x.textContent).join();
  }
  document.body.textContent = `SEEN${JSON.stringify([steps, adder.problems, errors])}SEEN`;
};
</script>"""

class Explorer(unittest.TestCase):
    def setUp(self):
        self.saved = [json.loads((REFERENCE / file).read_text().removeprefix("loaded = "))
                      for file in ("addition/model.js", "sorting/models.js")]
        self.model = add.load(REFERENCE / "addition/best_model.pth")

    def test_it_is_short(self):
        self.assertTrue(PAGE.count("\n") <= 650 and MODELS.count("\n") <= 170)
        self.assertLessEqual(max(map(len, PAGE.splitlines())), 100)

    @unittest.skipUnless(NODE, "node is not installed")
    @torch.inference_mode()
    def test_models_are_pytorchs(self):
        """2,000 problems as they are; 100 with each head off, at its mean, and patched."""
        problems = torch.randint(100, 1000, (2000, 2), generator=torch.Generator().manual_seed(0))
        outputs = add.run(self.model, problems)[2]
        runs = [(problems, "none", torch.tensor(0))]
        for i, (head, x) in enumerate(outputs.items()):
            runs += [(problems[:100], head, y) for y in (torch.tensor(0), x.mean(0), x[100 + i])]
        lists = [(problems[i:i + n].flatten() % 100, [0, 40, 130, 448][i % 4], i // 4 % 2 == 1)
                 for i, n in enumerate([1, 4, 6, 8, 10, 16, 32, 5, 7, 8] * 20)]
        lists = [(x.sort().values if i % 3 else x, *rest) for i, (x, *rest) in enumerate(lists)]
        asked = {"addition": self.saved[0]["addition"], "sorting": self.saved[1],
                 "runs": [(some.tolist(), head, x.tolist()) for some, head, x in runs],
                 "lists": [(x.tolist(), *rest) for x, *rest in lists]}
        found = json.loads(subprocess.run(["node", "-e", MODELS + IN_NODE], check=True, text=True,
                                          input=json.dumps(asked), stdout=subprocess.PIPE).stdout)
        self.assertEqual(found["answers"], add.solve(self.model, problems))
        for (some, head, x), logits in zip(runs, found["logits"]):
            add.replace_heads(self.model, {head: x})
            expected = self.model(*add.tokenize(some, self.model.args))  # (N, n+1, 10)
            logits = torch.tensor(logits).view_as(expected)
            self.assertLess((logits - expected).abs().max(), 1e-3, head)
            self.assertTrue((logits.argmax(-1) == expected.argmax(-1)).all())
        for folder, logits in zip(self.saved[1], found["sorter"]):
            model = sort.load(REFERENCE / folder / "best_model.pth")
            for (x, start, held), logit in zip(lists, logits):
                hold = sort.hold(model.args) if held and model.encoding.uses_start else None
                difference = model(x[None], start=start, hold=hold).item() - logit
                self.assertLess(abs(difference), 1e-3, (folder, x, start, held))

    @unittest.skipUnless(BROWSER, "chromium is not installed")
    def test_page_in_a_browser(self):
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (folder / "reference").symlink_to(REFERENCE)
        page = folder / "page.html"
        page.write_text(PAGE.replace("<title>", ERRORS + "<title>") + IN_BROWSER)
        flags = ["--headless=new", "--no-sandbox", "--virtual-time-budget=200000", "--dump-dom"]
        ran = subprocess.run([BROWSER, *flags, page.as_uri()], capture_output=True, check=True)
        seen, problems, errors = json.loads(ran.stdout.decode().split("SEEN")[1])
        self.assertEqual(errors, [])
        problems, h2 = torch.tensor(problems), "cross.L0.H2"
        mean = add.run(self.model, problems)[2][h2].mean(0)
        gone = dict.fromkeys(self.saved[0]["pruning"]["removable_alone"], 0)
        patch = add.run(self.model, torch.tensor([(142, 259)]))[2][h2]
        for step, b, x, counted in (("opened", 259, {}, {}), ("off", 159, {h2: 0}, {h2: 0}),
                                    ("mean", 159, {h2: mean}, {h2: mean}),
                                    ("removed", 159, gone, gone),
                                    ("patched", 256, {h2: patch}, {})):
            digits = add.run(self.model, torch.tensor([(142, b)]), x)[0][0]
            answer = digits @ torch.tensor([1000, 100, 10, 1])
            right = round(500 * add.exact_match(self.model, problems, counted))
            self.assertIn(f"142+{b}: the model answers {answer},", seen[step])
            self.assertIn(f"{right} of 500 random problems right.", seen[step])
        add.replace_heads(self.model, {h2: 0})
        answer = add.solve(self.model, [(199, 801)])[0]
        self.assertIn(f"1: the model answers {answer},", seen["link"])
        model = sort.load(REFERENCE / "sorting/sinusoidal-random-start-gap/best_model.pth")
        numbers = torch.tensor([[2, 9, 14, 20, 27, 33, 41, 46, 52, 58, 63, 69, 75, 82, 88, 95]])
        hold = sort.hold(model.args)
        for step, start, held in (("sorter", 0, None), ("moved", 1000, None), ("held", 1000, hold)):
            p = sort.predict(model, numbers, start=start, hold=held).sigmoid().item()
            says = f"unsorted {1 - p:.3f}: wrong" if p < 0.5 else f"sorted {p:.3f}: right"
            self.assertIn(says, seen[step])
        self.assertEqual([seen[f"bad{i}"].count(",Type") for i in (1, 2, 3, 4)], [1, 1, 1, 1])
