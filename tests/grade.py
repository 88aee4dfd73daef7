"""Is a student's attention right, and if not, what is wrong? python -m tests.grade student.py says.

scaled_dot_product_attention(q, k, v, mask=None), q (B, n_head, T, d_head), is compared with that of
PyTorch; MultiHeadAttention(d_model, n_head) is tested by what holds for any weights, so its scale
is not. Each is tested up to its first fault. Exit status: 0 right, 1 wrong, 2 cannot be tested.
"""
import argparse
import inspect
import runpy
import sys
from itertools import product
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention as attention

B, H, T, D, C = 2, 3, 5, 8, 24  # examples, heads, tokens, d_head, d_model: if mixed up, it shows
CAUSAL = torch.ones(T, T, dtype=torch.bool).tril()  # True where a query may attend
PARTS = "scaled_dot_product_attention", "MultiHeadAttention"
PATH = sys.path

def adapt(function):
    """Return the names of its inputs, its options with their values, and a function to call it."""
    names, options = [], {}
    for name, parameter in inspect.signature(function).parameters.items():
        if "mask" in name:
            options[name] = None
        elif name in ("dropout", "dropout_p", "p") and parameter.default is not None:
            options[name] = 0.0  # if the default is None, a module may be expected
        elif parameter.default is parameter.empty:
            names.append(name)
    def attend(inputs, **mask):  # of these as many as it expects
        result = function(*map(torch.clone, inputs[:len(names)]), **{**options, **mask})
        return result[0] if isinstance(result, tuple) else result  # the weights may come second
    return names, options, attend

def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4)

def check(name, passed, words):
    if not passed:
        raise AssertionError(f"{name}: {words}")
    print(f"ok     {name}")

def check_values(attend, x, output):
    q, k, v = x[:3]
    scores = q @ k.transpose(-2, -1)
    faults = {
        "the scores are not scaled; divide them by sqrt(d_head)": scores.softmax(-1) @ v,
        "the scores are divided by d_head, not by sqrt(d_head)": (scores / D).softmax(-1) @ v,
        "the softmax is not over the keys (dim=-1)": (scores / D**0.5).softmax(-2) @ v,
        "a causal mask is always on; apply the one that is given": attention(q, k, v, CAUSAL)}
    words = [fault for fault in faults if close(output, faults[fault])]
    check("output", close(output, attention(q, k, v)), *words or ["it differs from PyTorch's"])

def check_heads(attend, x, output):
    one = x[..., :1, :]
    same = attend(one.expand_as(x))  # a mean of equal values, at any position
    check("heads", close(same, attend(one).expand_as(same)),
          "cut by view(B, T, n_head, d_head).transpose(1, 2), join by transpose(1, 2).flatten(2)")
    check("all tokens", not close(attend(x[..., :-1, :])[:, 0], output[:, 0]),
          "the first does not see the last; is a mask always on, or transpose(1, 2) left out?")

def check_inputs(attend, names, x):
    """Each input alone must change the output, also if there are more keys than queries."""
    given = [x[0], *torch.cat([x, x[..., :2, :]], dim=-2)[1:]]
    try:
        output = attend(given)
        faults = [f"{name} does not change the output" for i, name in enumerate(names)
                  if torch.equal(output, attend(given[:i] + [-given[i]] + given[i + 1:]))]
    except Exception:
        faults = ["more keys than queries fail; take keys, values and their number from memory"]
    check("inputs", not faults, ", ".join(faults))

def check_mask(attend, options, x, output, causal):
    """A form of the causal mask must give each token's output without the tokens after it."""
    names = {"mask", "attn_mask"} & options.keys() or [name for name in options if "mask" in name]
    faults = [] if names else ['no parameter has "mask" in its name']
    right = torch.stack([attend(x[..., :i + 1, :])[..., -1, :] for i in range(T)], dim=-2)
    forms = {"mask": causal, "mask, of 1 and 0": causal.float(), "mask, inverted": ~causal,
             "mask, added to the scores": torch.where(CAUSAL, 0.0, -torch.inf)}
    for name, form, shape in product(names, forms, [(T, T), (B, T, T)]):
        try:
            masked = attend(x, **{name: forms[form].expand(shape).clone()})
        except Exception as error:  # it may expect another form
            faults.append(f"it raises {error!r}")
            continue
        if close(masked, right):
            return check(form, form != "mask, inverted", "swap True and False, or see --mask-true")
        faults.insert(0, "it is ignored" if close(masked, output) else
                      "it leaks; set hidden scores to -infinity, before the softmax")
    check("mask", False, faults[0])

def check_part(part, causal):
    x, check_more = torch.randn(9, B, H, T, D), check_values  # no one expects so many inputs
    if inspect.isclass(part):
        part = part(C, H).eval().forward
        x, check_more = torch.randn(9, B, T, C), check_heads
    names, options, attend = adapt(part)
    output, again = attend(x), attend(x)
    shape = tuple(output.shape)
    check("output shape", shape == x[0].shape, f"{shape}; return output, weights")
    check("two calls", close(output, again), "they differ; let eval() or dropout_p=0 stop dropout")
    check_more(attend, x, output)
    check_inputs(attend, names, x)
    check_mask(attend, options, x, output, causal)

def grade(path, causal):
    """Print about each part what is right, up to its first fault. Return the exit status."""
    folder = Path(path).resolve().parent
    for beside in folder.glob("*.py"):
        sys.modules.pop(beside.stem, None)  # another student's file may have this name
    sys.path = [str(folder), *PATH]
    try:
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

if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.grade", description=__doc__)
    parser.add_argument("file", nargs="+", help="a student's Python file; it is run")
    parser.add_argument("--mask-true", choices=["attends", "hides"], default="attends",
                        help="what True in a student's mask means")
    options = parser.parse_args()
    causal = CAUSAL if options.mask_true == "attends" else ~CAUSAL
    parser.exit(max(grade(path, causal) for path in options.file))
