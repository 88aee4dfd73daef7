"""Is a student's attention right, and if not, what is wrong? python -m tests.grade student.py says.

scaled_dot_product_attention(q, k, v, mask=None), q (B, n_head, T, d_head), is compared with that of
PyTorch; MultiHeadAttention(d_model, n_head) is tested by what holds for any weights, so its scale
is not. Each is tested up to its first fault. Exit status: 0 right, 1 wrong, 2 cannot be tested.
"""
import argparse
import inspect
import itertools
import runpy
import sys
from pathlib import Path
from unittest import mock

import torch
from torch.autograd.functional import vjp
from torch.nn.functional import scaled_dot_product_attention as attention

B, H, T, D, C = 2, 3, 5, 8, 24  # examples, heads, tokens, d_head, d_model: if mixed up, it shows
CAUSAL = torch.ones(T, T, dtype=torch.bool).tril()  # True where a query may attend
PARTS = "scaled_dot_product_attention", "MultiHeadAttention"

def parameters(function):
    """Return the names of the inputs, of the masks, and of the probabilities of dropout."""
    known = inspect.signature(function).parameters.values()
    masks = [p.name for p in known if "mask" in p.name]
    dropouts = [p.name for p in known if p.name in ("dropout", "dropout_p", "p")
                and p.default is not None]  # if it is, a module may be expected
    others = [p.name for p in known if p.default is p.empty and p.name not in masks + dropouts]
    return others, masks, dropouts

def attend(function, *inputs, **mask):
    names, masks, dropouts = parameters(function)
    if len(inputs) == 1:  # it stands for all, rolled so that q, k and v differ
        inputs = [inputs[0].roll(i, dims=-1) for i in range(len(names))]
    options = {**dict.fromkeys(masks), **dict.fromkeys(dropouts, 0.0), **mask}
    result = function(*map(torch.clone, inputs), **options)
    return result[0] if isinstance(result, tuple) else result  # the weights may come second

def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4)

def check(name, passed, words):
    if not passed:
        raise AssertionError(f"{name}: {words}")
    print(f"ok     {name}")

def check_values(function, x, output):
    q, k, v = [x.roll(i, dims=-1) for i in range(3)]
    scores = q @ k.transpose(-2, -1)
    faults = {
        "the scores are not scaled; divide them by sqrt(d_head)": scores.softmax(-1) @ v,
        "the scores are divided by d_head, not by sqrt(d_head)": (scores / D).softmax(-1) @ v,
        "the softmax is not over the keys (dim=-1)": (scores / D**0.5).softmax(-2) @ v,
        "a causal mask is always on; apply the one that is given": attention(q, k, v, CAUSAL)}
    words = [fault for fault in faults if close(output, faults[fault])]
    check("output", close(output, attention(q, k, v)), *words or ["it differs from PyTorch's"])
    ours, right = [vjp(f, (q, k, v), x)[1] for f in (lambda *xs: attend(function, *xs), attention)]
    check("gradient", all(map(close, ours, right)), "part is lost; leave out detach, data, no_grad")

def check_heads(forward, x, output):
    same = attend(forward, x[:, :1].expand(B, T, C))  # a mean of equal values, at any position
    check("heads", close(same, attend(forward, x[:, :1]).expand(B, T, C)),
          "cut by view(B, T, n_head, d_head).transpose(1, 2), join by transpose(1, 2).flatten(2)")
    check("all tokens", not close(attend(forward, x[:, :-1])[:, 0], output[:, 0]),
          "the first does not see the last; is a mask always on, or transpose(1, 2) left out?")

def check_inputs(function, x):
    """Each input alone must change the output, also if there are more keys than queries."""
    names, _, _ = parameters(function)
    given = [x] + [torch.cat([x, x[..., :2, :]], dim=-2)] * (len(names) - 1)
    try:
        output = attend(function, *given)
        faults = [f"{name} does not change the output" for i, name in enumerate(names)
                  if torch.equal(output, attend(function, *given[:i], -given[i], *given[i + 1:]))]
    except Exception:
        faults = ["more keys than queries fail; take keys, values and their number from memory"]
    check("inputs", not faults, ", ".join(faults))

def check_mask(function, x, causal):
    """A form of the causal mask must give each token's output without the tokens after it."""
    _, masks, _ = parameters(function)
    names = {"mask", "attn_mask"} & set(masks) or masks
    faults = [] if names else ['no parameter has "mask" in its name']
    right = [attend(function, x[..., :i + 1, :])[..., -1, :] for i in range(T)]
    forms = {"mask": causal, "mask, of 1 and 0": causal.float(), "mask, inverted": ~causal,
             "mask, added to the scores": torch.where(CAUSAL, 0.0, -torch.inf)}
    for name, form, shape in itertools.product(names, forms, [(T, T), (B, T, T)]):
        try:
            output = attend(function, x, **{name: forms[form].expand(shape).clone()})
        except Exception as error:  # it may expect another form
            faults.append(f"it raises {error!r}")
            continue
        if close(output, torch.stack(right, dim=-2)):
            return check(form, form != "mask, inverted", "swap True and False, or see --mask-true")
        faults.insert(0, "it is ignored" if close(output, attend(function, x)) else
                      "it leaks; set hidden scores to -infinity, before the softmax")
    check("mask", False, faults[0])

def check_part(part, causal):
    function, x, check_more = part, torch.randn(B, H, T, D), check_values
    if inspect.isclass(part):
        function, x, check_more = part(C, H).eval().forward, torch.randn(B, T, C), check_heads
    output, again = attend(function, x), attend(function, x)
    check("output shape", output.shape == x.shape, f"{tuple(output.shape)}; return output, weights")
    check("two calls", close(output, again), "they differ; let eval() or dropout_p=0 stop dropout")
    check_more(function, x, output)
    check_inputs(function, x)
    check_mask(function, x, causal)

def grade(path, causal):
    """Print about each part what is right, up to its first fault. Return the exit status."""
    folder = Path(path).resolve().parent
    for beside in folder.glob("*.py"):
        sys.modules.pop(beside.stem, None)  # another student's file may have this name
    try:
        with mock.patch.object(sys, "path", [str(folder), *sys.path]):
            student = runpy.run_path(path, run_name="student")  # not __main__: its main is not run
        found = [name for name in PARTS if name in student and not inspect.isbuiltin(student[name])]
        if not found:
            raise NameError(f"it defines neither {' nor '.join(PARTS)}")
    except (Exception, SystemExit) as error:
        print(f"{path} cannot be tested: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    status = 0
    for name in found:
        print(f"{path}, {name}:")
        try:
            check_part(student[name], causal)
        except (Exception, SystemExit) as error:  # the student's code may raise anything
            print("WRONG:", error if isinstance(error, AssertionError) else f"it raises {error!r}")
            status = 1
    return status

def main():
    parser = argparse.ArgumentParser("python -m tests.grade", description=__doc__)
    parser.add_argument("file", nargs="+", help="a student's Python file; it is run")
    parser.add_argument("--mask-true", choices=["attends", "hides"], default="attends",
                        help="what True in a student's mask means")
    options = parser.parse_args()
    causal = CAUSAL if options.mask_true == "attends" else ~CAUSAL
    parser.exit(max([grade(path, causal) for path in options.file]))

if __name__ == "__main__":
    main()
