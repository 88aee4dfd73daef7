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
  ways.map(([start, slowStart, slowStep, window]) => lists.map((x) =>
    runSorter(model, x, { start, slowStart, slowStep, window }).logit)));
console.log(JSON.stringify([answers, logits, sorters]));
"""
# Files of one's own: with an encoding that the page does not know, cut off, and with a conflict.
SET_UP = """
ln -s {reference} reference
mkdir -p sorting/none sorting/rope sorting/alibi
sed 's/"pe": "none"/"pe": "x"/' reference/sorting/none/best_model.js > sorting/none/best_model.js
head -c 9999 reference/sorting/rope/best_model.js > sorting/rope/best_model.js
(echo '<<<<<<< HEAD'; cat reference/sorting/alibi/best_model.js) > sorting/alibi/best_model.js
timeout 200 chromium --headless=new --no-sandbox --disable-gpu --disable-background-networking \\
  --virtual-time-budget=400000 --dump-dom \\
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
  patch: [() => location.hash = "adder/241+526/patch=cross.L0.H2/from=347+159", 
          /Without the p.* 8 [\d.]+ ✗ not 7 the other's carry \| 7 [\d.]+ ✗ not 6 the other's carry \| /],
  mean: [() => set("cross.L0.H2", "mean"), /mean=cross.L0.H2/],
  bit: [() => [set("cross.L0.H2", "bit"), down("dec.L0.H1"), setTimeout(down, 99, "dec.L0.H1")],
        /bit=cross.L0.H2.*row=dec.L0.H1:1/],
  none: [() => press("[data-off]"), /767/],
};
// What is claimed of a list (the first) and of 100: setting, how it runs, P(sorted), number right.
function sorterClaim(name, text, mark) {
  const [, un, p, right] = text.match(/(un)?sorted ([\d.]+).*?(\d+) of 100/);
  if (text.includes("✓") !== (!un === isSorted(sorter.numbers))) errors.push(text);
  const start = +$("start").value;
  return [name, [start, +($("slow").value || start), +!$("kept").checked, $("window").checked],
          [sorter.numbers, ...fixedLists(sorter.numbers.length)], un ? 1 - p : +p, +right];
}
function gridClaim(cell) {
  const [start, slowStart] = cell.dataset.starts.split(",").map(Number), lists = fixedLists(16);
  return [sorter.open, [start, slowStart, 1, false], [lists[0], ...lists], null, +text(cell)];
}
const text = (x) => x.innerText.replace(/\s+/g, " ").trim();
onload = async () => {
  const claims = { sorter: [], adder: {} };
  for (const [step, [act, claim]] of Object.entries(steps)) {
    act();
    await new Promise((done) => setTimeout(done, 9000));
    const said = text($("result"));
    const digits = $("digits").innerText && all("#digits label").map(text).join(" | ");
    const found = `${said} ${location.hash} ${$(tab).className} ${digits}`;
    if (!claim.test(found)) errors.push(step, found);
    if ($(tab).className) continue;
    const [, a, b, answer, verdict, right] =
      said.match(/^(\d+).(\d+): the model answers (\d+), (right|wrong) .*?(\d+) of 500/) ?? [];
    if (tab === "adder") claims.adder[step] = [[+a, +b], +answer, +right, adder.problems];
    if (tab === "adder" && (verdict === "right") !== (+a + +b === +answer)) errors.push(said);
    if (tab === "sorter") claims.sorter.push(sorterClaim(sorter.open, said));
    if (step === "all") for (const button of all("[data-open]"))
      claims.sorter.push(sorterClaim(button.id, text(button)));
    if (step === "cell") claims.sorter.push(...all("[data-starts]").map(gridClaim));
    if (step !== "bit") continue;
    const [, ...rows] = all("tr").map((row) => text(row).replace("−∞", "-Infinity").split(" "));
    const powers = rows.slice(0, -1).map((row) => Math.exp(+row[2] + +row[3]));
    const total = powers.reduce((x, y) => x + y);
    claims.inside = [powers.map((x) => x / total), rows.slice(0, -1).map((row) => +row[5]),
                     rows.at(-1).slice(3).map(Number)];
  }
  document.body.textContent = JSON.stringify([claims, errors]);
};
</script>"""

def sorter_logits(name, lists, start, slow, step, window):
    """Logits of lists that start at a position, with slow waves at slow, slow + step, ..."""
    encoding = SORTERS[name].encoding
    if "sinusoidal" in name:
        encoding = sort.slow_waves_at(encoding, slow + step * torch.arange(len(lists[0])))
    if window:
        encoding = sort.window(encoding)
    return SORTERS[name](torch.tensor(lists), start, encoding)

class Explorer(unittest.TestCase):
    def test_it_is_short(self):
        self.assertRegex(PAGE, r"\A(.{0,100}\n){1,700}\Z")
        self.assertRegex(MODELS, r"\A(.*\n){1,179}\Z")

    @unittest.skipUnless(shutil.which("node"), "node is not installed")
    @torch.inference_mode()
    def test_models_are_pytorchs(self):
        problems, changes = add.random_problems(3, 2000), []
        for head, x in add.run(ADDER, problems)[2].items():
            changes += [(head, 0), (head, x[:1])]
        lists = (problems.view(100, 40)[:10] % 100).tolist()
        ways = [(0, 0, 1, 0), (472, 472, 1, 1), (9, 50, 0, 0), (9, 1000, 1, 1)]
        given = json.dumps([problems, changes, lists, ways, list(SORTERS)], default=torch.Tensor.tolist)
        found = subprocess.check_output(["node", "-e", MODELS + IN_NODE], cwd=REFERENCE, text=True,
                                        input=given)
        answers, logits, sorters = json.loads(found)
        self.assertEqual(answers, add.solve(ADDER, problems))
        for (head, x), found in zip(changes, torch.tensor(logits)):
            with add.replaced(ADDER, {head: x}):
                expected = ADDER(*add.tokenize(problems[:100], 3)).flatten(1)
            self.assertLess((found - expected).abs().max(), 1e-3, head)
        for name, rows in zip(SORTERS, sorters):
            for way, found in zip(ways, torch.tensor(rows)):
                expected = sorter_logits(name, lists, *way)
                self.assertLess((found - expected).abs().max(), 1e-3, (name, way))

    @unittest.skipUnless(shutil.which("chromium"), "chromium is not installed")
    @torch.inference_mode()
    def test_page_in_a_browser(self):
        with tempfile.TemporaryDirectory() as folder:
            page = PAGE.replace("<title>", IN_BROWSER + "<title>")
            Path(folder, "page.html").write_text(page, "utf-8")
            yours = add.Adder(add.Config(num_digits=2))
            common.save_model(Path(folder, "addition/best_model.pth"), yours)
            seen = subprocess.check_output(SET_UP.format(reference=REFERENCE), shell=True, text=True,
                                           cwd=folder, stderr=subprocess.DEVNULL)
        claims, errors = json.loads(re.search("<body>(.*)</body>", seen)[1])
        self.assertEqual(errors, [])
        for name, way, lists, p, count in claims["sorter"]:
            logits = sorter_logits(name, lists, *way)
            right = (logits > 0) == (torch.tensor(lists).diff(dim=1) >= 0).all(dim=1)
            self.assertEqual(right[1:].sum(), count, (name, way))
            self.assertAlmostEqual(p or logits[0].sigmoid(), logits[0].sigmoid(), delta=6e-4)
        h2, problems = "cross.L0.H2", torch.tensor(claims["adder"]["bit"][3])
        said = add.run(ADDER, problems)[2][h2]
        def bit(now):
            """One of two means at each digit into which a carry can arrive, but for the units."""
            x = add.run(ADDER, now)[2][h2].clone()
            for k in (1, 2, 3):
                carry = add.carry_into(problems, k)
                yes, no = said[carry, 3 - k].mean(0), said[~carry, 3 - k].mean(0)
                x[:, 3 - k] = torch.where(add.carry_into(now, k)[:, None], yes, no)
            return x
        changes = {"off": lambda now: 0, "mean": lambda now: said.mean(0, True), "bit": bit,
                   "patch": lambda now: add.run(ADDER, [(347, 159)])[2][h2]}
        for step, (problem, answer, count, problems_of) in claims["adder"].items():
            model = yours if step == "yours" else ADDER
            def change(now):
                return {h2: changes[step](now)} if step in changes else {}
            with add.replaced(model, change(torch.tensor([problem]))):
                self.assertEqual(add.solve(model, [problem]), [answer], step)
            now = torch.tensor(problems_of)
            right = add.accuracy(model, now, {} if step == "patch" else change(now))
            self.assertEqual(round(500 * right), count, step)
        _, weights, outputs = add.run(ADDER, [(241, 526)])
        for found, expected in zip(claims["inside"], [weights, weights, outputs]):
            expected = expected["dec.L0.H1"][0, 1]
            self.assertLess((torch.tensor(found) - expected).abs().max(), 0.01)
