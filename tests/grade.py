"""Is a student's attention right, and if not, what is wrong?    python -m tests.grade student.py

scaled_dot_product_attention(q, k, v, mask=None), q (B, n_head, T, d_head), is compared with that of
PyTorch. MultiHeadAttention(d_model, n_head) is tested by what holds for any weights; its scale does
not show. Exit status 0: all is right, 1: not all, 2: not testable. Grade only code you would run.
"""
import argparse
import contextlib
import functools
import inspect
import runpy

import torch
from torch.nn.functional import scaled_dot_product_attention as attention

B, H, T, D, C = 2, 3, 5, 8, 24  # examples, heads, tokens, d_head, d_model: if mixed up, it shows
CAUSAL = torch.ones(T, T, dtype=torch.bool).tril()  # True where a query may attend
INVERTED = "WRONG: mask: True hides a key; if that is meant, type --mask-true hides"
FORMS = {  # what to print about a form of this mask, and the mask in this form
    "ok     mask, True where a query may attend": CAUSAL,
    "ok     mask, 1 where a query may attend, else 0": CAUSAL.float(),
    INVERTED: ~CAUSAL,
    "note   mask, added to the scores; ours is True or False": torch.where(CAUSAL, 0.0, -torch.inf),
}
close = functools.partial(torch.allclose, rtol=1e-3, atol=1e-4)

def attend(function, x, mask=None):
    """Return the output. Each required parameter gets x, rolled so that q, k and v differ."""
    parameters = inspect.signature(function).parameters.values()
    masks = [p.name for p in parameters if "mask" in p.name]
    required = [p.name for p in parameters if p.default is p.empty and p.name not in masks]
    inputs = [x.roll(i, dims=-1) for i in range(len(required))]
    result = function(*inputs, **{name: mask for name in masks[:1]})
    return result[0] if isinstance(result, tuple) else result  # the weights may come second

def check(name, passed, words, outputs=(), faults={}):
    """Return the line of a check. A fault {words: its output} that gives an output says more."""
    for fault, wrong in faults.items():
        if any(close(output, wrong) for output in outputs):
            words = fault
    return f"ok     {name}" if passed else f"WRONG: {name}: {words}"

def check_mask(function, x, right, faults):
    """Return the line about the mask. The first form that gives the right output counts."""
    outputs = []
    for line, mask in FORMS.items():
        for shape in [(T, T), (B, T, T)]:
            with contextlib.suppress(Exception):  # it may expect another form
                output = attend(function, x, mask.expand(shape).clone())
                if close(output, right):
                    return line
                outputs.append(output)
    if not outputs:
        attend(function, x, CAUSAL)  # it takes no form: let its error be printed
    return check("mask", False, "it leaks; set scores to -infinity before softmax", outputs, faults)

def shorter(function, x):
    """What a causal mask must give: the output of each token without those after it."""
    return torch.stack([attend(function, x[..., :i + 1, :])[..., -1, :] for i in range(T)], dim=-2)

def check_function(function):
    x = torch.randn(B, H, T, D)
    output = attend(function, x)
    words = f"it is {tuple(output.shape)}, that of q {tuple(x.shape)}; return output, then weights"
    yield check("output shape", output.shape == x.shape, words)
    q, k, v = x, x.roll(1, dims=-1), x.roll(2, dims=-1)
    scores = q @ k.transpose(-2, -1) / D**0.5
    late = attention(q, k, v, CAUSAL.T)
    words = "it differs from PyTorch's output"
    yield check("output", close(output, attention(q, k, v)), words, [output], {
        "the scores are not scaled; divide them by sqrt(d_head)": (scores * D**0.5).softmax(-1) @ v,
        "the scores are divided by d_head, not by sqrt(d_head)": (scores / D**0.5).softmax(-1) @ v,
        "scores are divided by sqrt(d_model), not d_head": (scores * (D / C)**0.5).softmax(-1) @ v,
        "the softmax runs over the queries, not over the keys (dim=-1)": scores.softmax(-2) @ v,
        "the softmax runs over the heads, not over the keys (dim=-1)": scores.softmax(1) @ v,
        "a causal mask is always on; apply the mask that is given": attention(q, k, v, CAUSAL),
        "a mask, upside down, is always on; apply the mask that is given": late,
    })
    small = x[:1, :1].double().requires_grad_()
    passed = torch.autograd.gradcheck(functools.partial(attend, function), small,
                                      raise_exception=False)
    yield check("gradient", passed, "it is lost on the way; leave out detach, data and no_grad")
    yield check_mask(function, x, shorter(function, x), {
        "it is ignored": output,
        "it is upside down, queries attend to later keys; leave it as it is given": late,
        "hidden scores are set to 0; set them to -infinity": (scores * CAUSAL).softmax(-1) @ v,
        "it comes after the softmax; it must come before": (scores.softmax(-1) * CAUSAL) @ v,
    })

def check_module(kind):
    forward = kind(C, H).eval().forward
    x = torch.randn(B, T, C)
    output = attend(forward, x)
    yield check("output shape", output.shape == x.shape, f"it is {output.shape}, not {x.shape}")
    yield check("examples", close(attend(forward, x[:1]), output[:1]), "each sees the whole batch")
    first = close(attend(forward, x[:, :-1])[:, 0], output[:, 0])  # it does not see the last one
    last = close(attend(forward, x[:, 1:])[:, -1], output[:, -1])  # it does not see the first one
    words = f"tokens see {'earlier' if first else 'later'} ones only"
    yield check("without a mask", first == last, words)
    same = attend(forward, x[:, :1].expand(B, T, C))  # a mean of equal values, at any position
    yield check("heads", not first and close(same, attend(forward, x[:, :1]).expand(B, T, C)),
                "cut them by view(B, T, n_head, d_head), then transpose(1, 2); join them by "
                "transpose(1, 2), then reshape(B, T, d_model)")
    yield check_mask(forward, x, shorter(forward, x), {"it is ignored": output})

def main():
    parser = argparse.ArgumentParser("python -m tests.grade", description=__doc__)
    parser.add_argument("file", help="the student's Python file")
    parser.add_argument("--mask-true", choices=["attends", "hides"], default="attends",
                        help="what True in the student's mask means")
    path, mask_true = vars(parser.parse_args()).values()
    try:
        student = runpy.run_path(path, run_name="student")  # not __main__: its main is not run
    except (Exception, SystemExit) as error:
        parser.exit(2, f"{path} cannot be loaded: {type(error).__name__}: {error}\n")
    parts = {"scaled_dot_product_attention": check_function, "MultiHeadAttention": check_module}
    found = [name for name in parts if name in student and not inspect.isbuiltin(student[name])]
    if not found:
        parser.exit(2, f"{path} defines neither {' nor '.join(parts)}\n")
    torch.manual_seed(0)
    status = 0
    for name in found:
        print(f"{name}:")
        try:
            for line in parts[name](student[name]):
                if line == INVERTED and mask_true == "hides":
                    line = "ok     mask, True where a key is hidden"
                print(line)
                if line.startswith("WRONG"):
                    status = 1
                    if name == "MultiHeadAttention" or "shape" in line:
                        break  # the checks that follow rely on this one
        except Exception as error:  # the student's code may raise anything
            print(f"WRONG: it raises {type(error).__name__}: {error}")
            status = 1
    parser.exit(status)

if __name__ == "__main__":
    main()
