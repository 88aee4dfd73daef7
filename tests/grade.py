"""Is an attention written by a student right, and if not, what is wrong?     python -m tests.grade student.py

Loads any Python file. Its scaled_dot_product_attention(q, k, v, mask=None) is compared with PyTorch's. The matrices
inside its MultiHeadAttention are laid out differently by everyone, so that is tested by what must hold for any of
them. Whether it scales its scores, and how many heads it has, cannot be seen from outside.

Prints a line per check: ok, note (no fault, but worth knowing) or WRONG with what to mend. How masks are written and
whether weights are returned is up to the student; None must mean no mask. Exit code 0: nothing is wrong, 1: something
is, 2: the file cannot be tested. The student's code is run as it is: grade only files that you would run yourself.
"""
import inspect
import math
import runpy
import sys
from pathlib import Path

import common
from common import UserError

import torch
import torch.nn.functional as F

B, H, T, S, D = 2, 3, 5, 6, 8  # examples, heads, queries, keys, channels of a head: if two are mixed up, it shows
C = H * D                      # d_model
CAUSAL = torch.ones(T, T, dtype=torch.bool).tril()

# How students write masks, made from a mask that is True where a query may attend, and the sizes before (T, T).
MASKS = {
    "is True where a query may attend": lambda allowed: allowed,
    "is 1 where a query may attend, else 0": lambda allowed: allowed.float(),
    "hides where it is True": lambda allowed: ~allowed,
    "hides where it is 1": lambda allowed: (~allowed).float(),
    "is added to the scores, 0 or -infinity": lambda allowed: (~allowed).float().masked_fill(~allowed, -math.inf),
}
FORMS = [(meaning, lead) for meaning in MASKS for lead in [(), (B,), (B, 1), (B, H)]]  # the first that fits counts

# What to give for the parameters of MultiHeadAttention.
SIZES = {
    **dict.fromkeys("d_model embed_dim embed_size emb_dim n_embd dim hidden_dim hidden_size d_in d_out".split(), C),
    **dict.fromkeys("n_head n_heads num_heads num_head nhead nheads heads h".split(), H),
    **dict.fromkeys("d_head head_dim head_size dim_head d_k d_q d_v".split(), D),
    **dict.fromkeys("block_size context_length context_size max_len max_seq_len seq_len".split(), T),
    **dict.fromkeys("dropout dropout_p dropout_rate p_dropout".split(), 0.0),
}


def write_mask(allowed, form):
    """Write the mask `allowed` (T, T) in the form that the student wants."""
    meaning, lead = form
    return MASKS[meaning](allowed).expand(*lead, T, T).clone()


def close(a, b):
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-4)


def told(error):
    return f"it raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def parameters_of(function):
    """The names of all parameters but *args and **kwargs, and of those without a default."""
    found = inspect.signature(function).parameters.values()
    found = [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [p.name for p in found], [p.name for p in found if p.default is p.empty]


class Student:
    """A function or module of a student, and the lines to print about it."""

    def __init__(self, title, lines, function):
        self.title = title
        self.lines = lines
        self.function = function
        names, required = parameters_of(getattr(function, "forward", function))
        masks = [name for name in names if "mask" in name.lower() and "pad" not in name.lower()]
        self.mask_name = masks[0] if masks else None
        self.inputs = [name for name in required if name not in masks]

    def __call__(self, *inputs, mask=None):
        """All that it returns, the output first. It gets copies, so that we can see whether it changes them."""
        copies = [x.clone() for x in inputs]
        more = {self.mask_name: mask} if self.mask_name else {}
        result = self.function(*copies, **more)
        self.changed = [name for name, x, copy in zip(self.inputs, inputs, copies) if not torch.equal(x, copy)]
        return list(result) if isinstance(result, (tuple, list)) else [result]

    def attend(self, x, mask=None):
        """The output of self-attention: queries, keys and values are all made from x."""
        return self(*[x for _ in self.inputs], mask=mask)[0]

    def check(self, name, passed, words=""):
        """Add the line of a check; the words say what to mend."""
        self.lines.append(f"ok     {self.title}, {name}" if passed else f"WRONG: {self.title}, {name}: {words}")
        return passed

    def note(self, name, words):
        self.lines.append(f"note   {self.title}, {name}: {words}")


def grade_mask(student, x, wrong):
    """With a causal mask, a token must get what it gets as the last of a shorter text without a mask.

    All forms of masks are tried until one is right. wrong: {words for a fault: the output then}.
    """
    if student.mask_name is None:
        return student.check("mask", False, "there is no parameter for it; add mask=None")
    right = torch.stack([student.attend(x[..., :i + 1, :])[..., -1, :] for i in range(T)], dim=-2)
    wrong = {"it is ignored: the output with a mask is that without": student.attend(x)} | wrong
    raised = []
    words = "with a causal mask it leaks: set hidden scores to -infinity, not to 0, before a softmax over the keys"
    for form in FORMS:
        try:
            seen = student.attend(x, write_mask(CAUSAL, form))
        except Exception as error:  # the student's code may raise anything
            raised.append(told(error))
            continue
        if close(seen, right):
            return describe_mask(student, x, form)
        for fault, output in wrong.items():
            if close(seen, output):
                words = fault
    if len(raised) == len(FORMS):
        words = f"whatever mask it is given, {raised[0]}"
    student.check("mask", False, words)


def describe_mask(student, x, form):
    """Say how the student writes masks, and whether there is NaN where all is hidden."""
    words = f"your mask {form[0]}"
    if "may attend" in words:
        student.check(f"mask: {words}", True)
    else:
        student.note("mask", f"{words}. In F.scaled_dot_product_attention True is where a query may attend")
    if student.attend(x, write_mask(torch.zeros_like(CAUSAL), form)).isnan().any():
        student.note("no key", "a query without any key gets NaN, as from torch.softmax; mind examples of padding only")


def find_shapes(student):
    """Return q, k, v as (B, n_head, T, d), (B, T, d) or (T, d), the first that it takes; None if it takes none."""
    problem = None
    for lead in [(B, H), (B,), ()]:
        inputs = [torch.randn(*lead, tokens, D) for tokens in (T, S, S)]
        shape = tuple(inputs[0].shape)
        try:
            found = tuple(student(*inputs)[0].shape)
        except Exception as error:  # the student's code may raise anything
            problem = problem or f"for q {shape} {told(error)}"
            continue
        if found == shape:
            if problem:
                student.note("shapes", f"q {shape} works, but {problem}")
            return inputs
        problem = problem or f"for q {shape} it returns {found} first; it must be the output, with the shape of q"
    student.check("output shape", False, problem)


def grade_weights(student, q, k, seen):
    """Are they softmax(q k^T / sqrt(d)), over the keys? Return whether they are."""
    dots = q @ k.transpose(-2, -1)
    scores = dots / math.sqrt(D)
    wrong = {
        "the scores are not scaled": torch.softmax(dots, dim=-1),
        "the scores are divided by d, not by sqrt(d)": torch.softmax(dots / D, dim=-1),
        "the scores are divided by sqrt(d_model)": torch.softmax(dots / math.sqrt(C), dim=-1),
        "the softmax runs over the wrong axis, the queries": torch.softmax(scores, dim=-2),
    }
    if q.dim() > 2:
        wrong["the softmax runs over the wrong axis, the heads or examples"] = torch.softmax(scores, dim=-3)
    words = "they are something else"
    for fault, weights in wrong.items():
        if close(seen, weights):
            words = fault
    return student.check("weights", close(seen, torch.softmax(scores, dim=-1)),
                         f"{words}; right is softmax(q k^T / sqrt(d)) over the keys, dim=-1, where d = q.shape[-1]")


def grade_output(student, inputs, seen):
    """Output and gradients, against PyTorch's; the weights returned, against those seen."""
    inputs = [x.requires_grad_() for x in inputs]
    output, *more = student(*inputs)
    right = F.scaled_dot_product_attention(*inputs)
    student.check("inputs", not student.changed, f"{', '.join(student.changed)} changed in place (by /=, say)")
    student.check("output type", output.dtype == right.dtype, f"float32 inputs give {output.dtype}; keep their type")
    student.check("output", close(output, right), "it is not that of F.scaled_dot_product_attention")
    if more:
        same = torch.is_tensor(more[0]) and close(more[0], seen)
        student.check("returned weights", same, "the second value is not the weights that the values are averaged with")
    else:
        student.note("returned weights", "there are none; to look at attention patterns, return output, weights")
    expected = torch.autograd.grad(right.square().sum(), inputs)
    if output.requires_grad:
        output.square().sum().backward()
    found = [x.grad for x in inputs]
    missing = [name for name, gradient in zip("qkv", found) if gradient is None]
    words = "they are wrong: is a part of the way detached?"
    if missing:
        words = f"none reaches {', '.join(missing)}: is something detached (detach, data)?"
    student.check("gradients", not missing and all(map(close, found, expected)), words)


def grade_function(function, lines):
    """All checks of a scaled_dot_product_attention, as far as the ones before allow."""
    student = Student("scaled_dot_product_attention", lines, function)
    inputs = find_shapes(student)
    if inputs:
        q, k, _ = inputs
        # If the values are unit vectors, the output is the weights: no function can hide them.
        seen = student(q, k, torch.eye(S, D).expand(k.shape))[0][..., :S]
        if grade_weights(student, q, k, seen):
            weights = torch.softmax(q @ q.transpose(-2, -1) / math.sqrt(D), dim=-1)
            words = "it comes after the softmax; set scores to -infinity before it, so that the weights sum to 1"
            grade_mask(student, q, {words: (weights * CAUSAL) @ q})
            grade_output(student, inputs, seen)


def build(kind):
    """Make the module; UserError if it is not known what to give for its parameters."""
    names, required = parameters_of(kind)
    sizes = {name: SIZES[name] for name in names if name in SIZES}
    if not sizes or not set(required) <= set(sizes):
        if len(required) != 2:
            raise UserError(f"let the parameters of MultiHeadAttention({', '.join(names)}) be d_model and n_head")
        sizes = {required[0]: C, required[1]: H}
    return kind(**sizes).eval()


def grade_tokens(student, x, output):
    """What depends on what? And does the order of the tokens matter?"""
    changes = []
    for token in range(T):
        other = x.clone()
        other[0, token] += torch.randn(C)
        changes.append((student.attend(other) - output).abs().amax(dim=-1) > 1e-5)
    depends = torch.stack(changes, dim=-1)  # (B, output, token): does it depend on this token of example 0?
    student.check("examples", not depends[1].any(), "those of a batch are mixed up; x is (B, T, C), not (T, B, C)")
    if torch.equal(depends[0], CAUSAL):
        return student.note("tokens", "later ones are hidden even without a mask; fine if it is for decoders only")
    seen = depends[0, 0].nonzero().flatten().tolist()
    student.check("tokens", depends[0].all(), f"token 0 attends to {seen} only: is q (B, n_head, T, d) in q k^T?")
    same = close(student.attend(x.flip(1)), output.flip(1))
    student.check("order", same, "in reversed order tokens get other outputs: are heads cut by view(B, n_head, T, d) "
                                 "without transpose(1, 2), or joined without transposing back?")


def grade_module(kind, lines):
    """All checks of a MultiHeadAttention, as far as the ones before allow."""
    student = Student("MultiHeadAttention", lines, build(kind))
    x = torch.randn(B, T, C)
    output = student.attend(x)
    words = f"for x {tuple(x.shape)} it is {tuple(output.shape)}; it must be that of x"
    if not student.check("output shape", output.shape == x.shape, words):
        return
    if student.mask_name:
        grade_mask(student, x, {})
    grade_tokens(student, x, output)
    if output.requires_grad:
        output.square().sum().backward()
    missing = [name for name, p in student.function.named_parameters() if p.requires_grad and p.grad is None]
    student.check("gradients", not missing, f"none reaches {', '.join(missing)}: unused, or detached on the way?")


def grade(path):
    """Return a line per check of the student's file; UserError if it cannot be tested."""
    sys.path.append(str(Path(path).resolve().parent))  # it may import files beside it
    try:
        student = runpy.run_path(str(path), run_name="student")  # its main is not run
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be loaded: {told(error)}") from None
    torch.manual_seed(0)
    lines = []
    for name, grade_part in (("scaled_dot_product_attention", grade_function), ("MultiHeadAttention", grade_module)):
        if name in student and not inspect.isbuiltin(student[name]):  # a builtin is PyTorch's own, imported
            try:
                grade_part(student[name], lines)
            except UserError:
                raise
            except Exception as error:  # the student's code may raise anything
                lines.append(f"WRONG: {name}, run: {told(error)}")
    if not lines:
        raise UserError(f"{path} defines neither scaled_dot_product_attention nor MultiHeadAttention")
    return lines


def main():
    parser = common.ArgumentParser(prog="python -m tests.grade", description="Find faults in a student's attention.")
    parser.add_argument("file", help="the student's Python file")
    args = parser.parse_args()
    lines = grade(args.file)
    print("\n".join(lines))
    if any(line.startswith("WRONG") for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    common.run(main)
