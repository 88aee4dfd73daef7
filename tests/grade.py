"""Is an attention written by a student right, and if not, what is wrong?     python -m tests.grade student.py

Loads any Python file. Its scaled_dot_product_attention(q, k, v, mask=None) is compared with PyTorch's. The matrices
inside its MultiHeadAttention are laid out differently by everyone, so that is tested by what must hold for any of
them. Whether it scales its scores, and how many heads it has, cannot be seen from outside.

Prints a line per check: ok, note (no fault, but worth knowing) or WRONG with what to mend. How masks are written and
whether weights are returned is up to the student. Exit code 0: nothing is wrong, 1: something is, 2: the file cannot
be tested. The student's code is run as it is: grade only files that you would run yourself.
"""
import contextlib
import importlib.util
import inspect
import math
import os
import sys
from pathlib import Path

import common
from common import UserError

import torch
import torch.nn as nn
import torch.nn.functional as F

B, H, T, S, D = 2, 3, 5, 6, 8  # examples, heads, queries, keys, channels of a head: if two are mixed up, it shows
C = H * D                      # d_model

# How students write masks, made from a mask that is True where a query may attend. The first that fits counts.
MASKS = {
    "is True where a query may attend": lambda allowed: allowed,
    "is 1 where a query may attend, else 0": lambda allowed: allowed.float(),
    "hides where it is True": lambda allowed: ~allowed,
    "hides where it is 1": lambda allowed: (~allowed).float(),
    "is added to the scores, 0 or -infinity": lambda allowed: (~allowed).float().masked_fill(~allowed, -math.inf),
}
FORMS = [(meaning, lead) for meaning in MASKS for lead in [(), (B,), (B, 1), (B, H)]]  # lead: sizes before (T, S)
CAUSAL = torch.ones(T, S, dtype=torch.bool).tril()


def write_mask(allowed, form):
    """Write the mask `allowed` (T, S) in the form that the student wants."""
    meaning, lead = form
    return MASKS[meaning](allowed).expand(*lead, *allowed.shape).clone()


def draw(seed, *shape):
    return 0.7 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def parts(result):
    """What was returned, as a list; the output comes first."""
    return list(result) if isinstance(result, (tuple, list)) else [result]


def told(error):
    return f"it raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def parameters_of(function):
    """All parameters by name, without *args and **kwargs, and those that have no default."""
    found = inspect.signature(function).parameters.values()
    found = [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [p.name for p in found], [p.name for p in found if p.default is p.empty]


def masks_among(names):
    return [name for name in names if "mask" in name.lower() and "pad" not in name.lower()]


class Report:
    """The lines to print."""

    def __init__(self, title):
        self.title = title
        self.lines = []

    def check(self, name, passed, words):
        """Add the line of a check; the words say what to mend."""
        self.lines.append(f"ok     {self.title}, {name}" if passed else f"WRONG: {self.title}, {name}: {words}")
        return passed

    def note(self, name, words):
        self.lines.append(f"note   {self.title}, {name}: {words}")

    def run(self, grade, *what):
        """Call grade(self, ...); the student's code may raise anything, anywhere."""
        try:
            grade(self, *what)
        except UserError as error:
            self.note("not tested", error)
        except Exception as error:
            self.check("run", False, told(error))

    def mask_works(self, form):
        """Say how the student writes masks; to hide where it is True is no fault."""
        meaning, lead = form
        words = f"your mask {meaning}" + (f", and must have {2 + len(lead)} dimensions" if lead else "")
        if "may attend" in meaning:
            self.check(f"mask: {words}", True, "")
        else:
            self.note("mask", f"{words}. In F.scaled_dot_product_attention True is where a query may attend; callers "
                              f"of yours must do as you do")


# ------------------------------------------------------------------------------------------------
# The function. If the values are unit vectors, the output is the weights: no function can hide them.


class Function:
    """The student's scaled_dot_product_attention."""

    def __init__(self, function):
        self.function = function
        names, self.required = parameters_of(function)
        masks = masks_among(names) + names[3:4]
        self.mask_name = masks[0] if masks else None
        self.form = None
        self.changed = set()

    def __call__(self, q, k, v, allowed=None):
        """All that it returns. It gets copies, so that we can see whether it changes them."""
        given = {"q": q.clone(), "k": k.clone(), "v": v.clone()}
        more = {self.mask_name: None} if self.mask_name in self.required else {}
        if allowed is not None:
            given["mask"] = more[self.mask_name] = write_mask(allowed, self.form)
        before = {name: x.detach().clone() for name, x in given.items()}
        result = self.function(given["q"], given["k"], given["v"], **more)
        self.changed |= {name for name, x in given.items() if not torch.equal(x, before[name])}
        return parts(result)

    def weights(self, allowed=None):
        """The weights (..., T, S)."""
        return self(self.q, self.k, torch.eye(S, D).expand(self.k.shape), allowed)[0].detach()[..., :S]


def grade_shapes(report, attend):
    """Find out whether it takes q as (B, n_head, T, d), (B, T, d) or (T, d). Return whether it takes any."""
    problem = None
    for lead in [(B, H), (B,), ()]:
        attend.q = draw(1, *lead, T, D)
        attend.k = draw(2, *lead, S, D)
        attend.v = draw(3, *lead, S, D)
        given = f"for q {tuple(attend.q.shape)} and k, v {tuple(attend.k.shape)}"
        try:
            found = attend(attend.q, attend.k, attend.v)
        except Exception as error:  # the student's code may raise anything
            problem = problem or f"{given} {told(error)}"
            continue
        shapes = [getattr(part, "shape", None) for part in found]
        if shapes[0] == attend.q.shape and problem:
            report.note("shapes", f"{given} it works; {problem}")
        if shapes[0] == attend.q.shape:
            dtype = found[0].dtype
            return report.check("output type", dtype == torch.float32, f"float32 inputs give {dtype}; keep their type")
        if attend.q.shape in shapes:
            return report.check("output", False, "it must come first: return output, weights")
        problem = problem or f"{given} the output has the shape {shapes[0]}; it must have that of q"
    return report.check("output shape", False, problem)


def grade_softmax(report, attend):
    """Is it softmax(q k^T / sqrt(d)), over the keys? Return whether it is, but for the scale."""
    seen = attend.weights()
    fault = "the weights of a query do not sum to 1;"
    names = ["keys", "queries", "heads" if seen.dim() == 4 else "examples", "examples"]
    for i in range(1, seen.dim()):
        if close(seen.sum(-1 - i), torch.ones_like(seen.sum(-1 - i))):
            fault = f"it runs over the wrong axis, the {names[i]};"
    right = close(seen.sum(-1), torch.ones_like(seen.sum(-1)))
    if not report.check("softmax", right, f"{fault} the softmax must run over the keys, dim=-1"):
        return False
    # The logarithms of the weights of a query are its scores, up to a constant.
    scores = seen.log()
    dots = attend.q @ attend.k.transpose(-2, -1)
    scores = scores - scores.mean(-1, keepdim=True)
    dots = dots - dots.mean(-1, keepdim=True)
    scale = ((scores * dots).sum() / dots.square().sum()).item()
    if not close(scores, scale * dots):
        return report.check("scores", False, "without a mask, the weights are not softmax(c q k^T) for any number c")
    fault = f"multiplied by {scale:.3f} where d = {D}"
    known = {1: "not scaled", 1 / D: "divided by d, not by sqrt(d)",
             1 / math.sqrt(C): "divided by sqrt(d_model), not by sqrt(d) of one head"}
    for value, words in known.items():
        if math.isclose(scale, value, rel_tol=1e-3):
            fault = words
    report.check("scale", math.isclose(scale, 1 / math.sqrt(D), rel_tol=1e-3),
                 f"the scores are {fault}; divide q k^T by sqrt(d), where d = q.shape[-1]")
    return True


def grade_mask(report, attend):
    """Right are the weights without a mask, set to 0 where hidden and divided by their new sum. Return if they are."""
    plain = attend.weights()
    allowed = draw(4, T, S) > 0
    allowed[:, 0] = True
    right = plain * allowed / (plain * allowed).sum(-1, keepdim=True)
    problem = "there is no parameter for it; add mask=None"
    tried = {}
    for attend.form in FORMS if attend.mask_name else []:
        try:
            tried[attend.form] = attend.weights(allowed)
        except Exception as error:
            problem = f"whatever mask it is given, {told(error)}"
            continue
        if close(tried[attend.form], right):
            report.mask_works(attend.form)
            return True
    if not tried:
        attend.mask_name = None
    elif all(close(seen, plain) for seen in tried.values()):
        problem = "it is ignored: the output with a mask is that without"
    else:
        attend.form = min(tried, key=lambda form: (tried[form].nan_to_num(9) - right).abs().mean())
        seen = tried[attend.form]
        largest = seen[..., ~allowed].max()
        problem = f"hidden keys have weights of up to {largest:.2f}; set their scores to -infinity, not to 0"
        if close(seen, plain * allowed):
            problem = "it comes after the softmax; set scores to -infinity before it, so that the weights sum to 1"
    return report.check("mask", False, problem)


def grade_later(report, attend):
    """What a causal mask hides must not matter."""
    later = 3 * (torch.arange(S) > 2)[:, None]
    before = attend(attend.q, attend.k, attend.v, CAUSAL)[0][..., :3, :]
    after = attend(attend.q, attend.k + later, attend.v - later, CAUSAL)[0][..., :3, :]
    report.check("causal mask", close(before, after), "it leaks: other later tokens change the outputs of earlier ones")


def grade_no_key(report, attend):
    """What does a query get that may attend to no key?"""
    allowed = torch.ones(T, S, dtype=torch.bool)
    allowed[-1] = False
    seen = attend.weights(allowed)
    if seen.isfinite().all() and seen[..., -1, :].abs().max() < 1e-6:
        report.check("no key", True, "")
    else:
        gets = "attends to hidden ones" if seen.isfinite().all() else "gets NaN, as from torch.softmax, and NaN spreads"
        report.note("no key", f"a query that may attend to no key {gets}. This matters only if all keys of a query can "
                              f"be hidden, as in an example that is nothing but padding")


def grade_output(report, attend):
    """Output and gradients, against PyTorch's; the weights returned; did the inputs change?"""
    inputs = [x.clone().requires_grad_() for x in (attend.q, attend.k, attend.v)]
    output, *more = attend(*inputs)
    right = F.scaled_dot_product_attention(*inputs)
    same = report.check("output", close(output, right), f"it is off by up to {(output - right).abs().max():.2g}")
    if more:
        seen = torch.is_tensor(more[0]) and close(more[0].detach(), attend.weights())
        report.check("returned weights", seen, "the second value is not the weights that the values are averaged with")
    else:
        report.note("returned weights", "there are none; to look at attention patterns, return output, weights")
    expected = torch.autograd.grad(right.square().sum(), inputs)
    found = 3 * [None]
    if output.requires_grad:
        found = torch.autograd.grad(output.square().sum(), inputs, allow_unused=True)
    missing = ", ".join(name for name, gradient in zip("qkv", found) if gradient is None)
    if missing or not same:
        report.check("gradients", not missing, f"none reaches {missing}: is something detached (detach, data, numpy)?")
    else:
        report.check("gradients", all(map(close, found, expected)), "they are wrong: is a part of the way detached?")
    changed = ", ".join(sorted(attend.changed))
    report.check("inputs", not changed, f"{changed} changed in place (by /= or a name that ends in _)")


def grade_function(report, attend):
    """All checks of the function, as far as the ones before allow."""
    if grade_shapes(report, attend):
        if grade_softmax(report, attend):
            works = grade_mask(report, attend)
            if attend.mask_name:
                grade_later(report, attend)
            if works:
                grade_no_key(report, attend)
        grade_output(report, attend)


# ------------------------------------------------------------------------------------------------
# The module. The names of its parameters tell what to give for them.

SIZES = {C: "d_model embed_dim embed_size emb_dim embedding_dim n_embd dim model_dim hidden_dim hidden_size d_in d_out",
         H: "n_head n_heads num_heads num_head nhead nheads heads h",
         D: "d_head head_dim head_size dim_head d_k d_q d_v",
         T: "block_size context_length context_size max_len max_seq_len seq_len",
         0.0: "dropout dropout_p dropout_rate p_dropout"}
TOKENS = "y q k v query key value queries keys values memory context kv encoder_output".split()  # after the first


class Module:
    """The student's MultiHeadAttention."""

    def __init__(self, kind, form):
        names, required = parameters_of(kind)
        sizes = {name: size for size, known in SIZES.items() for name in known.split() if name in names}
        if not set(required) <= set(sizes):
            sizes = {names[0]: C, names[1]: H} if len(required) == 2 else {}
        if not sizes:
            raise UserError(f"not all parameters of MultiHeadAttention({', '.join(names)}) are known here, as d_model "
                            f"and n_head are; nor are there just two, which would be taken for these")
        torch.manual_seed(0)
        self.module = kind(**sizes).eval()
        names, required = parameters_of(self.module.forward)
        masks = masks_among(names)
        self.mask_name = masks[0] if masks else None
        self.must_mask = self.mask_name in required
        self.inputs = [name for name in required if name not in masks]
        if not self.inputs or not set(self.inputs[1:]) <= set(TOKENS):
            raise UserError(f"not all parameters of forward({', '.join(names)}) are known here, as x, query, memory "
                            f"and mask are; all but a mask would get the same tokens (B, T, C)")
        self.forms = ([form] if form else []) + FORMS
        self.form = self.forms[0]
        self.x = draw(5, B, T, C)

    def __call__(self, x, allowed=None):
        """The output (B, T, C) of self-attention."""
        if allowed is None and self.must_mask:
            allowed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
        mask = {}
        if allowed is not None:
            mask = {self.mask_name: write_mask(allowed, self.form)}
        return parts(self.module(**{name: x for name in self.inputs}, **mask))[0]

    def reached(self, example, token):
        """Which outputs (B, T) change if one token of one example does?"""
        x = self.x.clone()
        x[example, token] += draw(6, C)
        return (self(x) - self(self.x)).detach().abs().amax(dim=-1) > 1e-5


def grade_causal(report, module):
    """With a causal mask, a token must get what it gets as the last of a shorter text without a mask."""
    problems = []
    for module.form in module.forms:
        try:
            masked = module(module.x, CAUSAL[:, :T])
            alone = torch.stack([module(module.x[:, :i + 1])[:, -1] for i in range(T)], dim=1)
            if close(masked, alone):
                return report.mask_works(module.form)
            if close(masked, module(module.x)):
                problems.insert(0, "it is ignored: the output with a mask is that without")
            else:
                problems.insert(0, "with a causal mask it leaks: outputs are not those without the later tokens. Are "
                                   "hidden scores -infinity, and is the softmax over the keys, dim=-1?")
        except Exception as error:
            problems.append(f"whatever mask it is given, {told(error)}")
    module.form = module.forms[0]
    report.check("mask", False, problems[0])


def grade_tokens(report, module):
    """What depends on what? And does the order of the tokens matter?"""
    depends = torch.stack([module.reached(0, token)[0] for token in range(T)], dim=1)  # (output, token)
    report.check("examples", not module.reached(1, 0)[0].any(), "those of a batch are mixed up")
    first = 0  # the first output that must see all tokens
    if torch.equal(depends, CAUSAL[:, :T]):
        first = T - 1
        report.note("tokens", "later ones are hidden even without a mask; fine if it is meant for decoders only")
    else:
        seen = depends[0].nonzero().flatten().tolist()
        report.check("tokens", depends.all(), f"without a mask token 0 must attend to all, or to itself only (if later "
                                              f"ones are always hidden); it attends to {seen}. Is q (B, n_head, T, d) "
                                              f"when you compute q k^T?")
    order = torch.tensor([2, 0, 3, 1, 4])
    same = close(module(module.x[:, order])[:, first:], module(module.x)[:, order][:, first:])
    report.check("order", same, "in another order the tokens get other outputs: are heads cut by view(B, n_head, T, d) "
                                "without transpose(1, 2), or joined without transposing back?")


def grade_gradients(report, module):
    """They must reach all parameters."""
    for name, value in vars(module.module).items():
        if isinstance(value, list) and any(isinstance(part, nn.Module) for part in value):
            report.check("parameters", False, f"self.{name} is a list, whose layers are not trained; use nn.ModuleList")
    output = module(module.x)
    if output.requires_grad:
        output.square().sum().backward()
    missing = [name for name, p in module.module.named_parameters() if p.requires_grad and p.grad is None]
    report.check("gradients", output.requires_grad and not missing,
                 f"none reaches {', '.join(missing) or 'any parameter'}: unused, or detached on the way?")


def grade_module(report, kind, form):
    """All checks of the module; form is how the function wants its mask, if that is known."""
    module = Module(kind, form)
    if module.must_mask:
        grade_causal(report, module)  # first of all, since it finds out what mask hides nothing
    if module.reached(1, 0)[0, 0] and not module.reached(0, 0)[0, 1:].any():
        return report.note("not tested", "it takes (T, B, C), not (B, T, C); or it mixes up examples instead of tokens")
    shape = tuple(module(module.x).shape)
    if report.check("output shape", shape == (B, T, C), f"for x {(B, T, C)} it is {shape}; it must be that of x"):
        if module.mask_name and not module.must_mask:
            grade_causal(report, module)
        grade_tokens(report, module)
        grade_gradients(report, module)


# ------------------------------------------------------------------------------------------------
# The file


def load(path):
    """Import a Python file by its path, without running its main; UserError if that fails."""
    spec = importlib.util.spec_from_file_location("student", path)
    if spec is None or not Path(path).is_file():
        raise UserError(f"{path} is not a Python file; name the student's .py file")
    student = importlib.util.module_from_spec(spec)
    sys.modules["student"] = student  # dataclasses look themselves up there
    sys.path.insert(0, str(Path(path).resolve().parent))  # it may import files beside it,
    ours = sys.modules.pop("common")                      # also a common.py of its own
    sys.dont_write_bytecode = True
    try:
        spec.loader.exec_module(student)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be loaded: {told(error)}") from None
    finally:
        sys.modules["common"] = ours
        sys.path.pop(0)
    return student


def grade(path):
    """Return a line per check of the student's file; UserError if it cannot be tested."""
    student = load(path)
    function = getattr(student, "scaled_dot_product_attention", None)
    kind = getattr(student, "MultiHeadAttention", None)
    lines = []
    form = None
    if inspect.isfunction(function):
        report = Report("scaled_dot_product_attention")
        attend = Function(function)
        report.run(grade_function, attend)
        lines += report.lines
        form = attend.form
    if inspect.isclass(kind) and issubclass(kind, nn.Module):
        report = Report("MultiHeadAttention")
        report.run(grade_module, kind, form)
        lines += report.lines
    if not lines:
        raise UserError(f"{path} defines neither scaled_dot_product_attention nor MultiHeadAttention (an nn.Module)")
    if all("not tested: " in line for line in lines):
        raise UserError(f"{path}: {lines[0][7:]}")
    return lines


def main():
    parser = common.ArgumentParser(prog="python -m tests.grade", description="Find faults in a student's attention.")
    parser.add_argument("file", help="the student's Python file")
    path = parser.parse_args().file
    torch.set_num_threads(1)  # such small tensors are faster so
    os.environ["MPLBACKEND"] = "Agg"  # a figure of the student's opens no window
    with contextlib.redirect_stdout(sys.stderr):  # what the student's code prints is no result
        lines = grade(path)
    print("\n".join(lines))
    if any(line.startswith("WRONG") for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    common.run(main)
