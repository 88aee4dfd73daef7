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
import common
import positional_sorting as sort
from tests.command import TOP

REFERENCE = TOP / "out/reference"
ADDER = add.load(REFERENCE / "addition/best_model.pth")
SORTERS = {path.parent.name: sort.load(path) for path in REFERENCE.glob("sorting/*/*.pth")}
PAGE = (TOP / "out/explorer.html").read_text("utf-8")
MODELS = re.search(r'<script id="models">\n(.*?)</script>', PAGE, re.DOTALL)[1]
IN_NODE = """
const read = (file) => require("fs").readFileSync(file, "utf8");
const [problems, changes, lists, ways, names] = JSON.parse(read(0));
const load = (folder) => readModel(eval(read(folder + "/best_model.js")));
const adder = load("addition");
const answers = problems.map(([a, b]) => +answerAdder(adder, a, b).digits.join(""));
const logits = changes.map(([head, x]) => problems.slice(0, 100).map(([a, b]) =>
  [...runAdder(adder, a, b, { [head]: x && x.flat(2) }).logits]));
const sorters = names.map((name) => load("sorting/" + name)).map((model) =>
  ways.map((how) => lists.map((x) => runSorter(model, x, how).logit)));
console.log(JSON.stringify([answers, logits, sorters]));
"""
# Files of one's own: a model with another encoding, one that is cut off, and one with a conflict.
SET_UP = """
ln -s {reference} reference; cp -r reference/sorting/none reference/sorting/rope . ; mkdir sorting
mv none rope sorting; mkdir sorting/alibi
sed -i 's/"pe": "none"/"pe": "x"/' sorting/none/best_model.js
head -c 9999 reference/sorting/rope/best_model.js > sorting/rope/best_model.js
(echo '<<<<<<< HEAD'; cat reference/sorting/alibi/best_model.js) > sorting/alibi/best_model.js
timeout 200 chromium --headless=new --no-sandbox --disable-gpu --disable-background-networking \
  --virtual-time-budget=400000 --dump-dom \
  "file://$PWD/page.html#sorter/3,15,27,22/open=sinusoidal-random-start/start=20/slow=1000"
"""
# Each step does something; then what is shown must fit its claim, and Python below.
IN_BROWSER = r"""<script>
const errors = []; onerror = onunhandledrejection = (x) => errors.push(String(x.reason ?? x));
const press = (button) => document.querySelector(button).click();
const input = (element, value) =>
  Object.assign(element, { value }).dispatchEvent(new Event("input", { bubbles: true }));
const type = (id, value) => input($(id), value);
const set = (head, state) => input(document.querySelector(`[data-head="${head}"]`), state);
const down = (head) => $(head).querySelector("canvas").dispatchEvent(
  new KeyboardEvent("keydown", { key: "ArrowDown" }));
const steps = {
  linked: [() => 0, /slow=1000/],
  badList: [() => type("list", "3 100"), /^Type 2 to 256.*void/],
  long: [() => [type("list", "3 5"), type("slow", ""), type("length", 256)], /wrong/],
  window: [() => press("#window"), /sorted.*window/],
  both: [() => [type("slow", 50), press("#kept")], /right .*100 of 100.*slow=50.window.kept/],
  kept: [() => press("#window"), /wrong/],
  badStart: [() => type("start", "1.5"), /^Type a whole number.*void/],
  cell: [() => [press("#kept"), type("length", 9), press("[data-starts='1000,200']")], /=200/],
  swap: [() => [press("[data-order=sort]"), press("[data-order=swap]")], /slow=200/],
  all: [() => [type("start", 0), type("slow", ""), press("#all"), press("#alibi-causal"),
               down("L0.H0")], /alibi, causal mask.*start=0.all.row=L0.H0:0/],
  beyond: [() => [press("#learned"), type("start", 504)], /^The learned table.* 511.*void/],
  unknown: [() => [type("source", "yours"), press("#none")], /the encoding x.*yours.*void/],
  cutOff: [() => press("#rope"), /^out.sorting.rope.best_model.js is not there, or broken.*void/],
  merged: [() => press("#alibi"), /^out.*broken.*--pe alibi, .*void/],
  missing: [() => press("#learned-causal"), /^out.*broken.*--pe learned --causal, .*void/],
  yours: [() => press("[data-tab=adder]"), /weights=yours/],
  reference: [() => [type("source", "reference")], /^\d{3}.*500 of 500.*reference/],
  badProblem: [() => type("b", "1234"), /^Type two numbers of 3 digits, .*void/],
  off: [() => location.hash = "adder/142%2B259/off=cross.L0.H2%2Cx", /142.259.*=cross.L0.H2.from/],
  badSecond: [() => [set("cross.L0.H2", "patch"), type("a2", "x")], /digits to patch from.*void/],
  patch: [() => location.hash = "adder/241+526/patch=cross.L0.H2/from=347+159", /Without the p/],
  mean: [() => set("cross.L0.H2", "mean"), /mean=cross.L0.H2/],
  bit: [() => [set("cross.L0.H2", "bit"), down("dec.L0.H1"), setTimeout(down, 99, "dec.L0.H1")],
        /bit=cross.L0.H2.*row=dec.L0.H1:1/],
  none: [() => press("[data-off]"), /767/],
};
onload = async () => {
  const text = (x) => x.innerText.replace(/\s+/g, " ").trim();
  for (const [step, [act, claim]] of Object.entries(steps)) {
    act();
    await new Promise((done) => setTimeout(done, 9000));
    const found = `${text($("result"))} ${location.hash} ${$(tab).className}`;
    if (!claim.test(found)) errors.push(step, found);
    steps[step] = { found, numbers: tab === "sorter" && [sorter.numbers,
      ...fixedLists(sorter.numbers.length)], problems: adder.problems,
      digits: all("#digits label").map(text), rows: all("tr").map((x) => text(x).split(" ")),
      settings: all("[data-open]").map((x) => `${x.id} ${text(x)}`),
      starts: all("[data-starts]").map((x) => [...x.dataset.starts.split(","), text(x)]) };
  }
  document.body.textContent = JSON.stringify([steps, [[1, 2], ...fixedLists(16)], errors]);
};
</script>"""

class Explorer(unittest.TestCase):
    def test_it_is_short(self):
        self.assertTrue(PAGE.count("\n") <= 700 and MODELS.count("\n") < 180)
        self.assertNotRegex(PAGE, ".{101}")

    @unittest.skipUnless(shutil.which("node"), "node is not installed")
    @torch.inference_mode()
    def test_models_are_pytorchs(self):
        problems, changes = add.random_problems(3, 2000), []
        for head, x in add.run(ADDER, problems)[2].items():
            changes += [(head, 0), (head, x[:1])]
        lists = problems.view(100, 40)[:10] % 100
        ways = [({"start": 0}, lambda encoding: encoding), ({"start": 472, "window": 1}, sort.window),
                ({"start": 9, "slowStart": 50, "slowStep": 0}, sort.kept),
                ({"start": 9, "slowStart": 1000}, slow_from(1000, 40))]
        given = [problems, changes, lists, [how for how, _ in ways], list(SORTERS)]
        found = subprocess.check_output(["node", "-e", MODELS + IN_NODE], cwd=REFERENCE, text=True,
                                        input=json.dumps(given, default=torch.Tensor.tolist))
        answers, logits, sorters = json.loads(found)
        self.assertEqual(answers, add.solve(ADDER, problems))
        for (head, x), found in zip(changes, torch.tensor(logits)):
            with add.replaced(ADDER, {head: x}):
                expected = ADDER(*add.tokenize(problems[:100], 3)).flatten(1)
            self.assertLess((found - expected).abs().max(), 1e-3, head)
        for model, logits in zip(SORTERS.values(), sorters):
            for (how, change), found in zip(ways, torch.tensor(logits)):
                if model.config.pe == "sinusoidal" or "slowStart" not in how:
                    expected = model(lists, how["start"], change(model.encoding))
                    self.assertLess((found - expected).abs().max(), 1e-3, (model.config, how))
