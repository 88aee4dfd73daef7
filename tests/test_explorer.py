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

import attention_addition as add
import common
import positional_sorting as sort
from tests.command import TOP

common.prepare()  # one thread: all is small, and others may run beside it
REFERENCE = TOP / "out/reference"
ADDER = add.load(REFERENCE / "addition/best_model.pth")
PAGE = (TOP / "out/explorer.html").read_text("utf-8")
MODELS = re.search(r'<script id="models">\n(.*?)</script>', PAGE, re.DOTALL)[1]
# Both scripts below make claims, in lists as Explorer.check reads them.
IN_NODE = """
const fs = require("fs");
const load = (folder) => readModel(eval(fs.readFileSync(folder + "/best_model.js", "utf8")));
const problems = Array.from({ length: 500 }, (_, i) => [100 + i * 7919 % 900, 999 - i * 31 % 900]);
const claims = { sorter: [], adder: [] }, adder = load("addition"), some = problems.slice(0, 100);
const answer = (replace) => ([a, b]) => +answerAdder(adder, a, b, replace).digits.join("");
const second = runAdder(adder, 347, 159), on = problems.map(answer({}));
const right = (answers) => answers.filter((x, i) => x === problems[i][0] + problems[i][1]).length;
claims.adder.push(["cross.L0.H0", "on", problems, on, problems, right(on)]);
for (const head in second.heads) {
  const [off, patch] = [0, second.heads[head].output].map((x) => some.map(answer({ [head]: x })));
  claims.adder.push([head, "off", some, off, some, right(off)],
                    [head, "patch", some, patch, some, right(on.slice(0, 100))]);
}
const lists = [3, 5, 7, 11, 13].map((x) => Array.from({ length: 40 }, (_, i) => x * i % 100));
for (const name of fs.readdirSync("sorting")) {
  if (!fs.existsSync(`sorting/${name}/best_model.js`)) continue;
  const model = load("sorting/" + name);
  for (const way of [[0, 0, 1, 0], [472, 472, 1, 1], [9, 50, 0, 0], [9, 1000, 1, 1]]) {
    const [start, slowStart, slowStep, window] = way, how = { start, slowStart, slowStep, window };
    const p = lists.map((x) => 1 / (1 + Math.exp(-runSorter(model, x, how).logit)));
    claims.sorter.push([name, way, lists, p, p.slice(1).filter((x) => x < 0.5).length]);
  }
}
console.log(JSON.stringify(claims));
"""
# Files of one's own: with an encoding that the page does not know, cut off, and with a conflict.
SET_UP = """
mkdir -p sorting/none sorting/rope sorting/alibi
sed 's/"pe": "none"/"pe": "x"/' reference/sorting/none/best_model.js > sorting/none/best_model.js
head -c 9999 reference/sorting/rope/best_model.js > sorting/rope/best_model.js
(echo '<<<<<<< HEAD'; cat reference/sorting/alibi/best_model.js) > sorting/alibi/best_model.js
timeout 600 chromium --headless=new --no-sandbox --disable-gpu --disable-background-networking \\
  --virtual-time-budget=400000 --dump-dom \\
  "file://$PWD/page.html#sorter/3,15,27,22/open=sinusoidal-random-start/start=20/slow=1000" \\
  2> /dev/null
"""
# Each step does something; then what is shown must fit its claim, and Python below.
IN_BROWSER = r"""<script>
const errors = []; onerror = onunhandledrejection = (x) => errors.push(String(x.reason ?? x));
const note = onerror; onerror = (x) => x === "Script error." || note(x);  // that of a model file
const press = (button) => document.querySelector(button).click();
const input = (element, value) =>
  Object.assign(element, { value }).dispatchEvent(new Event("input", { bubbles: true }));
const type = (id, value) => input($(id), value);
const set = (head, state) => input(document.querySelector(`[data-head="${head}"]`), state);
const down = (head) => $(head).querySelector("canvas").dispatchEvent(
  new KeyboardEvent("keydown", { key: "ArrowDown" }));
const clickBeside = () => {  // must not compute anew, which would lose the focus
  const before = ticket;
  press("h1");
  if (ticket !== before) errors.push("a click beside the controls");
};
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
          /Without the p.*8 \S+ ✗ not 7 the other's carry \| 7 \S+ ✗ not 6 the other's carry \| 7/],
  digit: [() => [clickBeside(), all("#digits input")[1].focus(),
                 all("#digits input")[3].click()], /digit=3.*, focus on digit/],
  mean: [() => set("cross.L0.H2", "mean"), /mean=cross.L0.H2/],
  bit: [() => [set("cross.L0.H2", "bit"), down("dec.L0.H1"), setTimeout(down, 99, "dec.L0.H1")],
        /bit=cross.L0.H2.*row=dec.L0.H1:1/],
  encoderBit: [() => [press("[data-off]"), set("enc.L0.H2", "bit")], /bit=enc/],
  none: [() => press("[data-off]"), /767/],
  bare: [() => location.hash = "sorter", /^learned, causal mask: the model says.*start=0/],
};
// What is claimed of a list (the first) and of 100: setting, how it runs, P(sorted), number right.
function sorterClaim(name, text, mark) {
  const [, un, p, right] = text.match(/(un)?sorted ([\d.]+).*?(\d+) of 100/);
  if (text.includes("✓") !== (!un === isSorted(sorter.numbers))) errors.push(text);
  const start = +$("start").value;
  return [name, [start, +($("slow").value || start), +!$("kept").checked, $("window").checked],
          [sorter.numbers, ...fixedLists(sorter.numbers.length)], [un ? 1 - p : +p], +right];
}
function gridClaim(cell) {
  const [start, slowStart] = cell.dataset.starts.split(",").map(Number), lists = fixedLists(16);
  const { logit } = runSorter(readyModel, lists[0], { start, slowStart });
  return [sorter.open, [start, slowStart, 1, false], [lists[0], ...lists],
          [1 / (1 + Math.exp(-logit))], +text(cell)];
}
const text = (x) => x.innerText.replace(/\s+/g, " ").trim();
onload = async () => {
  const claims = { sorter: [], adder: [] };
  for (const [step, [act, claim]] of Object.entries(steps)) {
    act();
    await new Promise((done) => setTimeout(done, 9000));
    const said = text($("result"));
    const digits = $("digits").innerText && all("#digits label").map(text).join(" | ");
    const found = `${said} ${location.hash} ${$(tab).className} ${digits}, ` +
      `focus on ${document.activeElement.name}`;
    if (!claim.test(found)) errors.push(step, found);
    if ($(tab).className) continue;
    const [, a, b, answer, verdict, right] =
      said.match(/^(\d+).(\d+): the model answers (\d+), (right|wrong) .*?(\d+) of 500/) ?? [];
    const claimed = [[[+a, +b]], [+answer], adder.problems, +right];
    if (step === "yours") claims.yours = claimed;
    else if (tab === "adder") claims.adder.push([...Object.entries(adder.states)[0] ??
                                                 ["cross.L0.H0", "on"], ...claimed]);
    if (tab === "adder" && (verdict === "right") !== (+a + +b === +answer)) errors.push(said);
    if (tab === "sorter") claims.sorter.push(sorterClaim(sorter.open, said));
    if (step === "all") for (const button of all("[data-open]"))
      claims.sorter.push(sorterClaim(button.id, text(button)));
    if (step === "cell") window.readyModel = await load("sorting/" + sorter.open);
    if (step === "cell") claims.sorter.push(...all("[data-starts]").map(gridClaim));
    if (step !== "bit") continue;
    const [, ...rows] = all("tr").map((row) => text(row).replace("−∞", "-Infinity").split(" "));
    const keys = rows.slice(0, -1), powers = keys.map((row) => Math.exp(+row[2] + +row[3]));
    const total = powers.reduce((x, y) => x + y);  // of what is printed as score and mask
    if (keys.some((row, i) => Math.abs(row[5] - powers[i] / total) > 0.01)) errors.push(rows);
    claims.inside = [...keys.map((row) => +row[5]), ...rows.at(-1).slice(3).map(Number)];
  }
  document.body.textContent = JSON.stringify([claims, errors]);
};
</script>"""

def put_in(state, head, problems, fixed):
    """What stands in the place of a head's output on problems (N, 2); fixed are those of means."""
    outputs = add.run(ADDER, fixed)[2][head]
    if state != "bit":
        return {"off": 0, "mean": outputs.mean(0, True),
                "patch": add.run(ADDER, [(347, 159)])[2][head]}[state]
    output = add.run(ADDER, problems)[2][head].clone()
    for t, k in ({0: 2, 1: 1, 4: 2, 5: 1} if "enc" in head else {0: 3, 1: 2, 2: 1}).items():
        carry = add.carry_into(fixed, k)
        means = [outputs[which, t].mean(0) for which in (carry, ~carry)]
        output[:, t] = torch.where(add.carry_into(problems, k)[:, None], *means)
    return output

class Explorer(unittest.TestCase):
    def test_it_is_short(self):
        self.assertRegex(PAGE, r"\A(.{0,100}\n){1,700}\Z")
        self.assertRegex(MODELS, r"\A(.*\n){1,179}\Z")

    def check(self, claims):
        for name, (start, slow, step, window), lists, p, count in claims["sorter"]:
            model = sort.load(REFERENCE / f"sorting/{name}/best_model.pth")
            x = torch.tensor(lists)
            encoding = model.encoding
            if "sinusoidal" in name:
                encoding = sort.slow_waves_at(encoding, slow + step * torch.arange(x.shape[1]))
            if window:
                encoding = sort.window(encoding)
            logits = model(x, start, encoding)
            self.assertLess((logits.sigmoid()[:len(p)] - torch.tensor(p)).abs().max(), 6e-4)
            right = (logits > 0) == (x.diff() >= 0).all(1)
            self.assertEqual(right[1:].sum(), count)
        for head, state, problems, answers, fixed, count in claims["adder"]:
            def change(state, now, fixed=torch.tensor(fixed)):
                now = torch.tensor(now)
                return {} if state == "on" else {head: put_in(state, head, now, fixed)}
            with add.replaced(ADDER, change(state, problems)):
                self.assertEqual(add.solve(ADDER, problems), answers)
            state = state.replace("patch", "on")
            right = add.accuracy(ADDER, torch.tensor(fixed), change(state, fixed))
            self.assertEqual(round(len(fixed) * right), count)

    @unittest.skipUnless(shutil.which("node"), "node is not installed")
    @torch.inference_mode()
    def test_models_are_pytorchs(self):
        command = ["node", "-e", MODELS + IN_NODE]
        self.check(json.loads(subprocess.check_output(command, cwd=REFERENCE)))

    @unittest.skipUnless(shutil.which("chromium"), "chromium is not installed")
    @torch.inference_mode()
    def test_page_in_a_browser(self):
        with tempfile.TemporaryDirectory() as folder:
            page = PAGE.replace("<title>", IN_BROWSER + "<title>")
            Path(folder, "page.html").write_text(page, "utf-8")
            yours = add.Adder(add.Config(num_digits=2))
            with contextlib.redirect_stdout(None):
                common.save_model(Path(folder, "addition/best_model.pth"), yours)
            Path(folder, "reference").symlink_to(REFERENCE)
            seen = subprocess.check_output(SET_UP, shell=True, cwd=folder, text=True)
        claims, errors = json.loads(re.search("<body.*?>(.*)</body>", seen)[1])
        self.assertEqual(errors, [])
        self.check(claims)
        problems, answers, fixed, count = claims["yours"]
        self.assertEqual(add.solve(yours, problems), answers)
        self.assertEqual(round(500 * add.accuracy(yours, torch.tensor(fixed))), count)
        _, weights, outputs = add.run(ADDER, [(241, 526)])
        inside = torch.cat([weights["dec.L0.H1"], outputs["dec.L0.H1"]], dim=-1)[0, 1]
        self.assertLess((torch.tensor(claims["inside"]) - inside).abs().max(), 0.01)
