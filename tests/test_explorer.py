"""out/explorer.html against PyTorch in Node, and as a user sees it, in headless Chromium."""
import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import torch
from torch.testing import assert_close

import attention_addition as add
import common
import positional_sorting as sort
from tests.command import TOP

common.prepare()  # one thread: all is small, and others may run beside it
REFERENCE = TOP / "out/reference"
ADDER = add.load(REFERENCE / "addition/best_model.pth")
ADDERS = {"reference": ADDER, "yours": add.Adder(add.Config(num_digits=2))}
PAGE = (TOP / "out/explorer.html").read_text("utf-8")
MODELS = re.search(r'<script id="models">\n(.*?)</script>', PAGE, re.DOTALL)[1]
# Both scripts below make claims, in lists as Explorer.check reads them.
IN_NODE = """
const fs = require("fs");
const load = (folder) => readModel(eval(fs.readFileSync(folder + "/best_model.js", "utf8")));
const claims = { sorter: [], adder: [] }, adder = load("addition");
const problems = Array.from({ length: 500 }, (_, i) => [100 + i * 7919 % 900, 999 - i * 31 % 900]);
const claim = (some, head, shown, replace) => claims.adder.push(["reference", head, shown, some,
  some.map(([a, b]) => +answerAdder(adder, a, b, replace).digits.join("")), [], 0]);
claim(problems, "", [], {});
for (const [head, { output }] of Object.entries(runAdder(adder, 347, 159).heads)) {
  claim(problems.slice(0, 100), head, [], { [head]: 0 });
  claim(problems.slice(0, 100), head, [[347, 159]], { [head]: output });
}
const lists = [1, 2, 3, 5, 11].map((x) => Array.from({ length: 40 }, (_, i) => x * i % 100));
for (const name of fs.readdirSync("sorting")) {
  if (!fs.existsSync(`sorting/${name}/best_model.js`)) continue;
  const model = load("sorting/" + name);
  for (const way of [[0, 0, 1, 0], [472, 472, 1, 1], [9, 50, 0, 0], [9, 5000, 1, 1]]) {
    const [start, slowStart, slowStep, window] = way, how = { start, slowStart, slowStep, window };
    const p = lists.map((x) => 1 / (1 + Math.exp(-runSorter(model, x, how).logit)));
    claims.sorter.push([name, way, lists, p, [], 0]);
  }
}
console.log(JSON.stringify(claims));
"""
# Files of one's own: with an encoding that the page does not know, cut off, and with a conflict.
SET_UP = f"""
cat > page.html
ln -s '{REFERENCE}' reference
mkdir -p sorting/none sorting/rope sorting/alibi
sed 's/"pe": "none"/"pe": "x"/' reference/sorting/none/best_model.js > sorting/none/best_model.js
head -c 9999 reference/sorting/rope/best_model.js > sorting/rope/best_model.js
(echo '<<<<<<< HEAD'; cat reference/sorting/alibi/best_model.js) > sorting/alibi/best_model.js
timeout 600 chromium --headless=new --no-sandbox --disable-gpu --disable-background-networking \\
  --virtual-time-budget=400000 --dump-dom 2> /dev/null \\
  "file://$PWD/page.html#sorter/3,15,27,22/open=sinusoidal-random-start/start=20/slow=1000"
"""
# Each step does something; then what is shown must fit its claim, and Python below.
IN_BROWSER = r"""<script>
const claims = { sorter: [], adder: [], bits: [] }, errors = [];
onunhandledrejection = ({ reason }) => errors.push(String(reason));
onerror = (x) => x === "Script error." || errors.push(x);  // that of a model file
const press = (button) => document.querySelector(button).click();
const type = (field, value) => Object.assign(document.querySelector(field), { value })
  .dispatchEvent(new Event("input", { bubbles: true }));
const set = (head, state) => type(`[data-head="${head}"]`, state);
const down = (head) => $(head).querySelector("canvas")
  .dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
const steps = {
  linked: [() => press("h1"), /slow=1000.* 0 updates/],  // more would lose the focus
  badList: [() => type("#list", "3 100"), /^Type 2 to 256.*void/],
  long: [() => [type("#list", "3 5"), type("#slow", ""), type("#length", 256)], /wrong/],
  window: [() => press("#window"), /sorted.*window/],
  both: [() => [type("#slow", 50), press("#kept")], /right .*100 of 100.*slow=50.window.kept/],
  kept: [() => press("#window"), /wrong/],
  badStart: [() => type("#start", "1.5"), /^Type a whole number.*void/],
  cell: [() => [press("#kept"), type("#length", 9), press("[data-starts='1000,200']")], /=200/],
  swap: [() => [press("[data-order=sort]"), press("[data-order=swap]")], /slow=200/],
  all: [() => [type("#start", 0), type("#slow", ""), press("#all"), press("#alibi-causal"),
      down("L0.H0")], /alibi, causal mask.*start=0.all.row=L0.H0:0/],
  beyond: [() => [press("#learned"), type("#start", 504)], /^The learned table.* 511.*void/],
  unknown: [() => [type("#source", "yours"), press("#none")], /the encoding x.*yours.*void/],
  cutOff: [() => press("#rope"), /^out.sorting.rope.best_model.js is not there, or broken.*void/],
  merged: [() => press("#alibi"), /^out.*broken.*--pe alibi, .*void/],
  missing: [() => press("#learned-causal"), /^out.*broken.*--pe learned --causal, .*void/],
  yours: [() => press("[data-tab=adder]"), /of 500.*weights=yours/],
  reference: [() => type("#source", "reference"), /^\d{3}.*500 of 500.*reference/],
  badProblem: [() => type("#b", "1234"), /^Type two numbers of 3 digits, .*void/],
  off: [() => location.hash = "adder/142%2B259/off=cross.L0.H2%2Cx", /142.259.*=cross.L0.H2.from/],
  badSecond: [() => [set("cross.L0.H2", "patch"), type("#a2", "x")], /digits to patch from.*void/],
  patch: [() => location.hash = "adder/241+526/patch=cross.L0.H2/from=347+159",
      /Without.*500 of.*8 \S+ ✗ not 7 the other's carry \| 7 \S+ ✗ not 6 the other's carry \| 7/],
  digit: [() => [all("[name=digit]")[1].focus(), press("[value='3']")], /digit=3.*focus on digit/],
  mean: [() => set("cross.L0.H2", "mean"), /mean=cross.L0.H2/],
  bit: [() => [set("cross.L0.H2", "bit"), down("dec.L0.H1"), setTimeout(down, 99, "dec.L0.H1")],
      /bit=cross.L0.H2.*row=dec.L0.H1:1/],
  encoderBit: [() => [press("[data-off]"), set("enc.L0.H2", "bit")], /bit=enc/],
  none: [() => press("[data-off]"), /767/],
  bare: [() => location.hash = "sorter", /^learned, causal mask: the model says.*start=0/],
};
const text = (x) => x.innerText.replace(/\s+/g, " ").trim();
function claimSorter(name, said) {
  const [, un, p, right] = said.match(/(un)?sorted ([\d.]+).*?(\d+) of 100/);
  const { numbers } = sorter, start = +$("start").value;
  if (said.includes("✓") !== (!un === isSorted(numbers))) errors.push(said);
  const way = [start, +($("slow").value || start), +!$("kept").checked, $("window").checked];
  claims.sorter.push([name, way, [numbers], [un ? 1 - p : +p], fixedLists(numbers.length), +right]);
}
function claimAdder(said) {
  const [, a, b, answer, verdict, right] =
    said.match(/^(\d+).(\d+): the model answers (\d+), (right|wrong) .*?(\d+) of 500/) ?? [];
  if ((verdict === "right") !== (+a + +b === +answer)) errors.push(said);
  const [head, state] = Object.entries(adder.states)[0] ?? [""], { problems } = adder;
  const shown = { mean: problems, patch: [[347, 159]] }[state] ?? [];
  const fixed = state === "patch" ? [] : problems;  // of these the page counts without the patch
  if (state === "bit")
    claims.bits.push([head, [...problems, [+a, +b]], 500 - right + (verdict === "wrong")]);
  else
    claims.adder.push([$("source").value, head, shown, [[+a, +b]], [+answer], fixed, 500 - right]);
}
function claimInside() {
  const [, ...rows] = all("tr").map((row) => text(row).replace("−∞", "-Infinity").split(" "));
  const sum = rows.pop(), powers = rows.map((row) => Math.exp(+row[2] + +row[3]));
  const total = powers.reduce((x, y) => x + y);  // of what is printed as score and mask
  claims.inside = [powers.map((x) => x / total), rows.map((x) => +x[5]), sum.slice(3).map(Number)];
}
onload = async () => {
  for (const [step, [act, claim]] of Object.entries(steps)) {
    const before = ticket;
    act();
    await new Promise((done) => setTimeout(done, 9000));
    const said = text($("result")), digits = all("#digits label").map(text).join(" | ");
    const found = `${said} ${location.hash} ${$(tab).className} ${digits}, ` +
      `focus on ${document.activeElement.name}, ${ticket - before} updates`;
    if (!claim.test(found)) errors.push(step, found);
    if ($(tab).className) continue;
    tab === "adder" ? claimAdder(said) : claimSorter(sorter.open, said);
    if (step === "all") all("[data-open]").forEach((x) => claimSorter(x.id, text(x)));
    if (step === "cell") for (const cell of all("[data-starts]")) {
      const way = [...cell.dataset.starts.split(",").map(Number), 1, false];
      claims.sorter.push([sorter.open, way, [], [], fixedLists(16), +text(cell)]);
    }
    if (step === "bit") claimInside();
  }
  document.body.textContent = JSON.stringify([claims, errors]);
};
</script>"""

class Explorer(unittest.TestCase):
    def test_it_is_short(self):
        self.assertRegex(PAGE, r"\A(.{0,100}\n){1,700}\Z")
        self.assertRegex(MODELS, r"\A(.*\n){1,179}\Z")

    def check(self, claims):
        """What a model says of lists or problems; how many fixed ones it has right, or wrong."""
        for name, (start, slow, step, window), lists, p, fixed, count in claims["sorter"]:
            model = sort.load(REFERENCE / f"sorting/{name}/best_model.pth")
            encoding = model.encoding
            x = torch.tensor(lists + fixed)
            if "sinusoidal" in name:
                encoding = sort.slow_waves_at(encoding, slow + step * torch.arange(x.shape[1]))
            if window:
                encoding = sort.window(encoding)
            logits = sort.predict(model, x, start, encoding)
            assert_close(logits.sigmoid()[:len(p)], torch.Tensor(p), atol=6e-4, rtol=0)
            right = (logits > 0) == (x.diff() >= 0).all(1)
            self.assertEqual(right[len(p):].sum(), count)
        for weights, head, shown, problems, answers, fixed, wrong in claims["adder"]:
            model, replace = ADDERS[weights], {}
            if shown:  # a mean, or of one problem
                _, _, outputs = add.run(model, shown)
                replace[head] = outputs[head].mean(0, True)
            elif head:
                replace[head] = 0
            with add.replaced(model, replace):
                self.assertEqual(add.solve(model, problems), answers)
                if fixed:
                    self.assertEqual(add.count_wrong(model, torch.tensor(fixed)), wrong)

    @unittest.skipUnless(shutil.which("node"), "node is not installed")
    def test_models_are_pytorchs(self):
        command = ["node", "-e", MODELS + IN_NODE]
        self.check(json.loads(subprocess.check_output(command, cwd=REFERENCE)))

    @unittest.skipUnless(shutil.which("chromium"), "chromium is not installed")
    def test_page_in_a_browser(self):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
            common.save_model(Path(folder, "addition/best_model.pth"), ADDERS["yours"])
            seen = subprocess.check_output(SET_UP, shell=True, cwd=folder, encoding="utf-8",
                                           input=PAGE.replace("<title>", IN_BROWSER + "<title>"))
        claims, errors = json.loads(re.search("<body.*?>(.*)</body>", seen)[1])
        self.assertEqual(errors, [])
        self.check(claims)
        for head, problems, wrong in claims["bits"]:
            problems = torch.tensor(problems)
            columns = range(1, 3 if "enc" in head else 4)
            found = add.one_bit(ADDER, problems[:500], head, columns, problems)
            self.assertEqual(found, wrong)
        _, weights, outputs = add.run(ADDER, [(241, 526)])
        for shown, right in zip(claims["inside"], [weights, weights, outputs]):
            assert_close(torch.tensor(shown), right["dec.L0.H1"][0, 1], atol=0.01, rtol=0)
