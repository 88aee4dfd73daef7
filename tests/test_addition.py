"""The adder against things we did not write: PyTorch's attention, integer arithmetic, brute force."""
import contextlib
import doctest
import hashlib
import io
import itertools
import math
import tempfile
import unittest
from pathlib import Path

import torch
import torch.nn.functional as F

import attention_addition as add
import common
from common import UserError
from tests.reference import TorchAdder, torch_attention


def flags(*typed):
    return add.command_line().parse(typed)[0]


def small_model(dtype=torch.float64, num_digits=3):
    torch.manual_seed(0)
    return add.Adder(num_digits, n_layer=2, n_head=4, d_model=32, d_ff=48).to(dtype).eval()


def random_problems(n, num_digits=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10 ** (num_digits - 1), 10 ** num_digits, (n, 2), generator=generator)


class Attention(unittest.TestCase):
    def assert_close(self, ours, theirs):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)

    def test_worked_example(self):
        self.assertEqual(doctest.testmod(add).failed, 0)
        self.assertGreater(doctest.testmod(add).attempted, 0)

    def test_softmax_is_pytorchs(self):
        scores = 300 * torch.randn(50, 7, dtype=torch.float64)  # large enough to overflow a careless exp
        scores[::3, 2:4] = -torch.inf
        ours, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
        grad = torch.randn_like(scores)
        add.softmax(ours).backward(grad)
        theirs.softmax(-1).backward(grad)
        self.assert_close(add.softmax(scores), scores.softmax(-1))
        self.assert_close(ours.grad, theirs.grad)

    def test_scaled_dot_product_is_pytorchs(self):
        torch.manual_seed(0)
        causal = torch.ones(5, 5, dtype=torch.bool).tril()
        padding = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)[:, None, None]
        for mask in (None, causal, padding, causal & padding):
            inputs = [torch.randn(3, 2, 5, 8, dtype=torch.float64) for _ in range(3)]
            ours, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
            output, weights = add.scaled_dot_product_attention(*ours, mask)
            expected = F.scaled_dot_product_attention(*theirs, attn_mask=mask)
            grad = torch.randn_like(output)
            output.backward(grad)
            expected.backward(grad)
            self.assert_close(output, expected)
            self.assert_close(weights.sum(-1), torch.ones(3, 2, 5, dtype=torch.float64))
            for x, y in zip(ours, theirs):
                self.assert_close(x.grad, y.grad)

    def test_a_query_that_may_look_nowhere_gets_zeros(self):
        q, k, v = (torch.randn(1, 3, 4, requires_grad=True) for _ in range(3))
        mask = torch.tensor([[True, True, False], [False] * 3, [True] * 3])
        output, weights = add.scaled_dot_product_attention(q, k, v, mask)
        output.sum().backward()
        self.assertTrue(torch.equal(output[0, 1], torch.zeros(4)) and torch.equal(weights[0, 1], torch.zeros(3)))
        self.assertTrue(all(x.grad.isfinite().all() for x in (q, k, v)))

    def test_multi_head_attention_is_pytorchs(self):
        torch.manual_seed(0)
        ours = add.MultiHeadAttention(d_model=24, n_head=3).double()
        theirs = torch_attention(ours)
        seen = []
        ours.weights.register_forward_hook(lambda module, inputs, output: seen.append(output))
        x, memory = torch.randn(2, 5, 24, dtype=torch.float64), torch.randn(2, 7, 24, dtype=torch.float64)
        causal = torch.ones(5, 5, dtype=torch.bool).tril()
        present = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
        cases = {"self": (x, x, None, {}),
                 "causal": (x, x, causal, {"attn_mask": ~causal}),
                 "cross": (x, memory, None, {}),
                 "padded": (x, memory, present[:, None, None], {"key_padding_mask": ~present})}
        for name, (query, source, mask, theirs_mask) in cases.items():
            with self.subTest(name):
                output = ours(query, source, mask)
                expected, weights = theirs(query, source, source, average_attn_weights=False, **theirs_mask)
                self.assert_close(output, expected)
                self.assert_close(seen[-1], weights)
                grads = torch.autograd.grad(output.square().sum(), list(ours.parameters()))
                for p in theirs.parameters():
                    p.grad = None
                expected.square().sum().backward()
                self.assert_close(torch.cat(grads[:2]), theirs.in_proj_weight.grad)
                self.assert_close(grads[2], theirs.out_proj.weight.grad)


class Model(unittest.TestCase):
    def setUp(self):
        self.model = small_model()
        self.source, self.target = add.tokenize(*random_problems(64).T, 3)

    def test_whole_model_is_pytorchs_transformer(self):
        expected = TorchAdder(self.model)(self.source, self.target)
        torch.testing.assert_close(self.model(self.source, self.target), expected, rtol=1e-9, atol=1e-11)

    def test_no_look_ahead(self):
        memory, answer = self.model.encode(self.source), torch.cat([self.target, self.target], 1)[:, :4]
        logits = self.model.decode(answer, memory)
        for t in range(1, 4):
            changed = answer.clone()
            changed[:, t:] = (changed[:, t:] + 3) % 10
            after = self.model.decode(changed, memory)
            self.assertTrue(torch.equal(after[:, :t], logits[:, :t]))
            self.assertFalse(torch.equal(after[:, t:], logits[:, t:]))

    def test_every_digit_of_the_answer_has_a_label(self):
        self.assertEqual(self.model(self.source, self.target).shape, (64, 4, 10))

    def test_decoding_agrees_with_teacher_forcing_on_its_own_output(self):
        answer = add.greedy_decode(self.model, self.source)
        self.assertTrue(torch.equal(self.model(self.source, answer).argmax(-1), answer))

    def test_units_first(self):
        """With reverse the same weights are another model: what it wrote earlier now stands further right."""
        source, target = self.source, self.target
        reverse = small_model()
        reverse.reverse = True
        answer = add.greedy_decode(reverse, source)
        logits = reverse(source, answer)
        self.assertTrue(torch.equal(logits.argmax(-1), answer))
        start = torch.full((64, 1), add.START)
        by_hand = reverse.decode(torch.cat([start, target.flip(1)[:, :3]], 1), reverse.encode(source)).flip(1)
        self.assertTrue(torch.equal(reverse(source, target), by_hand))
        for digit in range(4):  # from the left: it may depend on the digits to its right, on none to its left
            changed = target.clone()
            changed[:, :digit + 1] = (changed[:, :digit + 1] + 3) % 10
            after = reverse(source, changed)
            self.assertTrue(torch.equal(after[:, digit:], reverse(source, target)[:, digit:]))
        changed = target.clone()
        changed[:, 3] = (changed[:, 3] + 3) % 10
        self.assertFalse(torch.equal(reverse(source, changed)[:, 0], reverse(source, target)[:, 0]))

    def test_shortcut_gives_what_greedy_decoding_gives(self):
        model = small_model(torch.float32)
        answer = add.greedy_decode(model, self.source)
        half_right = torch.where(torch.arange(64)[:, None] % 2 == 0, answer, self.target)
        self.assertTrue(torch.equal(add.answers(model, self.source, half_right)[0], answer))

    def test_solve_recounts(self):
        model, problems = small_model(torch.float32), random_problems(1100)
        loss = torch.full((1100,), math.nan)
        answer, right = add.solve(model, problems, 3, loss=loss)
        source, target = add.tokenize(*problems.T, 3)
        self.assertTrue(torch.equal(answer, add.greedy_decode(model, source)))
        self.assertEqual(right.tolist(), [a == b for a, b in zip(answer.tolist(), target.tolist())])
        expected = F.cross_entropy(model(source, target).flatten(0, 1), target.flatten())
        torch.testing.assert_close(loss.mean(), expected.detach())


class Arithmetic(unittest.TestCase):
    def test_tokens_are_those_of_the_assignment(self):
        source, target = add.tokenize(torch.tensor([507, 155]), torch.tensor([159, 491]), 3)
        self.assertEqual(source.tolist(), [[5, 0, 7, 10, 1, 5, 9], [1, 5, 5, 10, 4, 9, 1]])
        self.assertEqual(target.tolist(), [[0, 6, 6, 6], [0, 6, 4, 6]])

    def test_digits_of_ten_digit_numbers(self):
        for number in (0, 7, 9_999_999_999, 1_234_567_890):
            digits = add.to_digits(torch.tensor([number]), 11)
            self.assertEqual("".join(map(str, digits[0].tolist())), f"{number:011}")
            self.assertEqual(add.to_numbers(digits).item(), number)

    def test_carries_of_all_problems(self):
        problems = add.all_problems(3, False)
        self.assertEqual(problems.shape, (810_000, 2))
        a, b = problems.numpy().T
        carry, expected = 0, []
        for place in (1, 10, 100):  # the schoolbook, column by column
            carry = (a // place % 10 + b // place % 10 + carry) // 10
            expected.append(carry == 1)
        self.assertTrue((add.carries(*problems.T, 3).numpy().T == expected).all())

    def test_longest_chain(self):
        rows = list(itertools.product([False, True], repeat=5))
        expected = [max(map(len, "".join("01"[x] for x in row).split("0"))) for row in rows]
        self.assertEqual(add.longest_chain(torch.tensor(rows)).tolist(), expected)

    def test_difficulty_table_adds_up(self):
        problems = random_problems(5000)
        right = torch.arange(5000) % 7 > 0
        for table in add.by_difficulty(problems, right, 3).values():
            self.assertEqual(sum(row["n"] for row in table.values()), 5000)
            self.assertEqual(sum(row["errors"] for row in table.values()), int((~right).sum()))


class Data(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name) / "addition"
        self.args = flags("--data-dir", folder.name)

    def test_default_files(self):
        add.generate_data(self.args)
        data = add.load_data(self.args)
        self.assertEqual({split: len(problems) for split, problems in data.items()},
                         {"train": 10_000, "val": 2_000, "test": 2_000})
        pairs = {split: [tuple(sorted(pair)) for pair in problems.tolist()] for split, problems in data.items()}
        self.assertEqual(len({pair for split in pairs.values() for pair in split}), 14_000)  # none twice, no mirror
        self.assertTrue(all(100 <= x <= 999 for split in pairs.values() for pair in split for x in pair))
        digest = hashlib.sha256()
        for split in add.SPLITS:
            digest.update((self.folder / f"{split}.jsonl").read_bytes())
        self.assertEqual(digest.hexdigest(), "1c5ef7ea645fb8dae2e7b0f3ba4f318791a79956c43631aefcf9e01f5ddf3056")

    def test_first_line_is_the_assignments_format(self):
        add.generate_data(self.args)
        self.assertRegex((self.folder / "test.jsonl").read_text().splitlines()[0],
                         r'^\{"input": \[(\d, ){3}10(, \d){3}\], "target": \[(\d, ){3}\d\]\}$')

    def test_cascades_enrich_training_only(self):
        """Of random problems 1% have two neighbouring columns that both sum to nine; of the changed half, many more."""
        add.generate_data(self.args)
        shares = {}
        for split, problems in add.load_data(self.args).items():
            a, b = (add.to_digits(x, 3) for x in problems.T)
            nines = (a + b == 9)
            shares[split] = (nines[:, 1] & nines[:, 2]).double().mean().item()
        self.assertGreater(shares["train"], 0.05)
        self.assertLess(max(shares["val"], shares["test"]), 0.02)

    def test_seed_decides(self):
        sizes = dict(zip(add.SPLITS, (50, 20, 20)))
        first = add.draw_problems(3, False, sizes, 0.5, seed=1)
        self.assertEqual(first, add.draw_problems(3, False, sizes, 0.5, seed=1))
        self.assertNotEqual(first, add.draw_problems(3, False, sizes, 0.5, seed=2))

    def test_sizes_from_one_digit_to_ten(self):
        for num_digits in (1, 2, 3, 10):
            for leading_zeros in (False, True):
                args = flags("--num-digits", str(num_digits), *["--leading-zeros"][:leading_zeros])
                sizes = dict(zip(add.SPLITS, add.split_sizes(args)))
                problems = add.draw_problems(num_digits, leading_zeros, sizes, 0.5, 0)
                self.assertEqual({split: len(pairs) for split, pairs in problems.items()}, sizes)
                low, count = add.operand_range(num_digits, leading_zeros)
                self.assertTrue(all(low <= x < low + count for pairs in problems.values() for p in pairs for x in p))

    def test_all_problems_can_be_asked_for_but_no_more(self):
        def sizes(n_train):
            return add.split_sizes(flags("--num-digits", "1", "--n-train", n_train, "--n-val", "10", "--n-test", "10"))

        self.assertEqual(sizes("25"), [25, 10, 10])
        with self.assertRaisesRegex(UserError, "only 45 of 1 digits"):
            sizes("26")

    def test_settings_are_never_mistaken(self):
        add.generate_data(self.args)
        for other in (["--seed", "1"], ["--num-digits", "2"], ["--n-train", "99"], ["--cascades", "0"]):
            with self.assertRaisesRegex(UserError, "gendata"):
                add.load_data(flags("--data-dir", self.args.data_dir, *other))

    def test_an_unfinished_folder_is_finished(self):
        add.generate_data(self.args)
        whole = (self.folder / "train.jsonl").read_bytes()
        (self.folder / "settings.json").write_text('"unfinished"\n')
        (self.folder / "train.jsonl").unlink()
        add.load_data(self.args)
        self.assertEqual((self.folder / "train.jsonl").read_bytes(), whole)

    def test_a_bad_line_is_named(self):
        add.generate_data(self.args)
        path = self.folder / "val.jsonl"
        lines = path.read_text().splitlines()
        bad = ['{"input": [5, 0, 7, 10, 1, 5, 9], "target": [0, 6, 6, 7]}', "{", "7", "", "null", "[" * 100_000,
               '{"input": [5, 0, 7], "target": [0, 6, 6, 6]}', "\ud800x",
               '{"input": [5, 0, 7, 11, 1, 5, 9], "target": [0, 6, 6, 6]}',
               '{"input": [5, 0, 7.0, 10, 1, 5, 9], "target": [0, 6, 6, 6]}', '{"input": "507+159", "target": "0666"}']
        for line in bad:
            with self.subTest(line[:60]):
                path.write_bytes("\n".join(lines[:6] + [line] + lines[7:]).encode(errors="surrogatepass"))
                with self.assertRaisesRegex(UserError, r"val\.jsonl, line 7: "):
                    add.load_data(self.args)

    def test_cut_short_and_foreign_files_are_refused(self):
        add.generate_data(self.args)
        path = self.folder / "train.jsonl"
        text = path.read_text()
        path.write_text(text[:-59])
        with self.assertRaisesRegex(UserError, "9,999 problems, expected 10,000"):
            add.load_data(self.args)
        (self.folder / "settings.json").unlink()
        with self.assertRaisesRegex(UserError, "settings.json"):
            add.load_data(self.args)
        self.assertEqual(path.read_text(), text[:-59])  # somebody else's file, perhaps: not overwritten


class LookingInside(unittest.TestCase):
    def setUp(self):
        self.model = small_model()
        self.problems = random_problems(200)
        self.source, self.target = add.tokenize(*self.problems.T, 3)
        self.heads = add.head_names(self.model)

    def test_names(self):
        self.assertEqual(len(self.heads), 24)
        self.assertEqual((self.heads[0], self.heads[15], self.heads[-1]), ("enc.L0.H0", "dec.L1.H3", "cross.L1.H3"))

    def test_zeroing_a_head_is_zeroing_its_slice_of_the_output_projection(self):
        before = self.model(self.source, self.target)
        for head in self.heads:
            name, h = head.rsplit(".H", 1)
            output = add.attention_blocks(self.model)[name].output
            kept = output.weight.detach().clone()
            with torch.no_grad():
                output.weight[:, 8 * int(h):8 * int(h) + 8] = 0
            expected = self.model(self.source, self.target)
            with torch.no_grad():
                output.weight.copy_(kept)
            with add.replacing(self.model, {head}):
                self.assertTrue(torch.equal(self.model(self.source, self.target), expected))
            self.assertFalse(torch.equal(before, expected))

    def test_hooks_leave_no_trace(self):
        before = self.model(self.source, self.target)
        add.ablate(self.model, self.problems[:20], self.problems[:20], 3)
        add.importance(self.model, self.problems[:20], 3)
        add.trace_carry(self.model, 3, False, n_pairs=20)
        with self.assertRaises(ZeroDivisionError), add.replacing(self.model, set(self.heads)):
            1 / 0
        self.assertTrue(torch.equal(self.model(self.source, self.target), before))
        self.assertFalse(any(module._forward_hooks for module in self.model.modules()))

    def test_attention_rows_sum_to_one(self):
        with add.recording(self.model, "weights") as weights:
            self.model(self.source, self.target)
        self.assertEqual(set(weights), set(add.attention_blocks(self.model)))
        for block in weights.values():
            torch.testing.assert_close(block.sum(-1), torch.ones_like(block[..., 0]))
        rows = add.attention_mass(weights, self.problems, 3)
        places = ("same_column", "next_lower", "lower", "higher", "plus_or_start")
        for head in self.heads:
            for row in rows[head].values():
                self.assertAlmostEqual(sum(row[place] for place in places), 1)

    def test_attention_mass_by_brute_force(self):
        with add.recording(self.model, "weights") as weights:
            self.model(self.source, self.target)
        row = add.attention_mass(weights, self.problems, 3)["cross.L1.H2"]["tens"]
        mass = weights["cross.L1.H2"[:8]][:, 2, 2]  # the third digit written is the tens
        self.assertAlmostEqual(row["same_column"], (mass[:, 1] + mass[:, 5]).mean().item())
        units = mass[:, 2] + mass[:, 6]
        carry = torch.tensor([a % 10 + b % 10 >= 10 for a, b in self.problems.tolist()])
        self.assertAlmostEqual(row["carry_effect"][0], (units[carry].mean() - units[~carry].mean()).item())

    def test_patching_a_run_with_itself_changes_nothing(self):
        with add.recording(self.model, "heads") as heads:
            before = self.model(self.source, self.target)
        with add.replacing(self.model, set(self.heads), heads):
            self.assertTrue(torch.equal(self.model(self.source, self.target), before))

    def test_patching_all_heads_that_feed_a_position_reproduces_the_other_run(self):
        """Given the same digits so far, the decoder knows the problem through cross-attention alone."""
        other = random_problems(200, seed=1)
        with add.recording(self.model, "heads") as heads:
            expected = self.model(add.tokenize(*other.T, 3)[0], self.target)
        with add.replacing(self.model, set(add.head_names(self.model, ("cross",))), heads):
            self.assertTrue(torch.equal(self.model(self.source, self.target), expected))

    def test_examples_are_what_they_say(self):
        """Columns of each example that carry, and that sum to nine and so pass a carry on: by ordinary arithmetic."""
        expected = {"no carry": (0, 0), "one carry": (1, 0), "a carry through a nine": (2, 1),
                    "a carry through two nines": (3, 2), "three carries": (3, 0)}
        for name, pair in add.EXAMPLES.items():
            columns = [sum(number // 10 ** k % 10 for number in pair) for k in range(3)]
            carry = [sum(number % 10 ** (k + 1) for number in pair) >= 10 ** (k + 1) for k in range(3)]
            passed = [total == 9 and arrives for total, arrives in zip(columns[1:], carry)]
            self.assertEqual((sum(carry), sum(passed)), expected.pop(name), name)
        self.assertFalse(expected)

    def test_carry_pairs_are_what_they_say(self):
        for column in (1, 2, 3):
            for origin in range(column):
                pair = add.carry_pairs(column, origin, 500, 3)
                without, with_ = ([add.to_digits(x, 4).flip(1) for x in (*p.T, p.sum(1))] for p in pair)
                self.assertTrue(all((100 <= p).all() and (p <= 999).all() for p in pair))
                for k in range(3):
                    same = all(torch.equal(without[i][:, k], with_[i][:, k]) for i in (0, 1))
                    self.assertEqual(same, k != origin)
                carry = [add.carries(*p.T, 3)[:, column - 1] for p in pair]
                self.assertTrue((~carry[0]).all() and carry[1].all())  # what arrives in the column flips
                self.assertTrue(((without[2][:, column] + 1) % 10 == with_[2][:, column]).all())
                self.assertTrue(torch.equal(without[2][:, column + 1:], with_[2][:, column + 1:]))

    def test_sufficient_set(self):
        heads = ["a", "b", "c", "d"], dict.fromkeys("abcd", 0.0)
        together = lambda heads: 1.0 if {"b", "d"} <= heads else 0.05 * len(heads)
        self.assertEqual(add.sufficient_set(together, *heads), ["b", "d"])
        self.assertEqual(add.sufficient_set(lambda heads: float("c" in heads), *heads), ["c"])
        in_series = lambda heads: float(bool(heads & {"a", "c"}))  # either is enough, so neither may be left out
        self.assertEqual(add.sufficient_set(in_series, *heads), ["a", "c"])

    def test_gradient_importance_is_the_derivative_by_a_heads_volume(self):
        """Michel et al. define it as |dL/dx| where x = 1 multiplies a head's output: check by finite differences."""
        problems = self.problems[:6]
        scores, step = add.gradient_importance(self.model, problems, 3), 1e-5
        source, target = add.tokenize(*problems.T, 3)
        with add.recording(self.model, "heads") as heads:
            self.model(source, target)
        raw = {}
        for head in ("enc.L1.H0", "enc.L1.H1", "enc.L1.H2", "enc.L1.H3"):
            losses = []
            for volume in (1 + step, 1 - step):
                with add.replacing(self.model, {head}, {name: volume * x for name, x in heads.items()}):
                    logits = self.model(source, target)
                losses.append(F.cross_entropy(logits.transpose(1, 2), target, reduction="none").sum(1))
            raw[head] = ((losses[0] - losses[1]) / (2 * step)).abs().mean().item()
        norm = sum(value ** 2 for value in raw.values()) ** 0.5
        for head, value in raw.items():
            self.assertAlmostEqual(scores[head], value / norm, places=5)

    def test_rank_correlation(self):
        self.assertAlmostEqual(add.rank_correlation([1, 2, 3, 4], [10, 20, 30, 400]), 1)
        self.assertAlmostEqual(add.rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]), -1)
        self.assertAlmostEqual(add.rank_correlation([1, 2, 2, 4, 5], [5, 6, 7, 8, 7]), 7.25 / 9.5)  # by hand

    def test_pruning_adds_up(self):
        model, problems = small_model(torch.float32), self.problems[:50]
        with torch.no_grad():  # a model that is right on half the problems, for something to lose
            answer = add.greedy_decode(model, add.tokenize(*problems.T, 3)[0])
        table = add.prune(model, problems, problems, 3, n_random=2)
        self.assertEqual(sorted(table["order"]), sorted(add.head_names(model)))
        recount = (answer == add.tokenize(*problems.T, 3)[1]).all(1).double().mean().item()
        self.assertEqual(table["curves"]["greedy"][0], recount)
        for curve in (*table["curves"]["random"], table["curves"]["ranked_once"]):
            self.assertEqual((len(curve), curve[0], curve[-1]), (25, recount, table["curves"]["greedy"][-1]))

    def test_patcher_recounts(self):
        pair = add.carry_pairs(1, 0, 40, 3)
        effect = add.patcher(self.model, pair, 1, 3)
        digits = [self.model(*add.tokenize(*p.T, 3)).argmax(-1)[:, 2] for p in pair]
        targets = [add.tokenize(*p.T, 3)[1][:, 2] for p in pair]
        known = (digits[0] == targets[0]) & (digits[1] == targets[1])
        self.assertEqual(effect(set()), 0.0)
        self.assertEqual(effect(set(add.head_names(self.model, ("cross",)))), float(known.any()))


class Training(unittest.TestCase):
    def test_batches_are_epochs(self):
        seen = torch.cat(list(itertools.islice(common.batches(10, 5, seed=0), 4)))
        self.assertEqual(sorted(seen[:10].tolist()), list(range(10)))
        self.assertEqual(sorted(seen[10:].tolist()), list(range(10)))
        self.assertNotEqual(seen[:10].tolist(), seen[10:].tolist())
        self.assertEqual(len(next(common.batches(3, 5, seed=0))), 3)

    def test_learning_rate(self):
        config = flags("--steps", "1000", "--warmup", "100", "--lr", "1")
        rates = [add.learning_rate(step, config) for step in (0, 49, 99, 250, 400, 700, 999)]
        torch.testing.assert_close(rates, [0.01, 0.5, 1.0, 1.0, 1.0, 0.5, 1 / 600])

    def test_without_the_start_the_first_digit_is_not_learnt(self):
        problems = add.all_problems(1, leading_zeros=True)
        for typed, learnt in (([], [True, True]), (["--no-start"], [False, True])):
            config = flags(*typed, "--num-digits", "1", "--leading-zeros", "--n-layer", "1", "--d-model", "32",
                           "--steps", "150", "--eval-every", "150", "--warmup", "10")
            with contextlib.redirect_stderr(io.StringIO()):
                model, _, _ = add.fit(config, {"train": problems, "val": problems}, torch.device("cpu"))
            source, target = add.tokenize(*problems.T, 1)
            forced = (model(source, target).argmax(-1) == target).double().mean(0)
            self.assertEqual((forced > 0.9).tolist(), learnt)


if __name__ == "__main__":
    unittest.main()
