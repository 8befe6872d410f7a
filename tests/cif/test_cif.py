"""CIF against a loop in exact arithmetic, and its properties bit by bit."""

import random
from fractions import Fraction

import pytest
import torch
from torch.autograd import gradcheck

from cif_lobes.cif import cif, cif_dense
from cif_lobes.cif.plan import make_plan

D = 5


def integrate_and_fire(x, alpha, target=None, threshold=1.0, tail_threshold=0.5):
    """The loop of the paper for one utterance, in rational numbers.

    Returns the tokens, as lists of (frame, weight), and their boundaries in frames.
    """
    alpha = [Fraction(a) for a in alpha.tolist()]
    threshold = Fraction(threshold)
    if target is not None:
        if sum(alpha) < 1e-6:
            alpha = [Fraction(1)] * len(alpha)
        total = sum(alpha)
        alpha = [a * target * threshold / total for a in alpha]
    tokens, boundaries, token, accumulator, end = [], [0.0], [], Fraction(0), 0
    for t, left in enumerate(alpha):
        while left > 0 and accumulator + left >= threshold:
            used = threshold - accumulator
            left -= used
            tokens.append([*token, (t, used)])
            boundaries.append(t + 1 - float(left / alpha[t]))
            token, accumulator = [], Fraction(0)
        token.append((t, left))
        accumulator += left
        end = t + 1 if alpha[t] > 0 else end
    tail = accumulator / threshold
    if target is None and tail > tail_threshold:
        tokens.append([(t, weight / tail) for t, weight in token])
        boundaries.append(float(end))
    if target is not None and not alpha:
        tokens, boundaries = [[]] * target, [0.0] * (target + 1)
    rows = [sum((float(w) * x[t].double() for t, w in token), torch.zeros(D).double())
            for token in tokens]  # fmt: skip
    return rows, boundaries


def check(output, x, alpha, x_lengths, target_lengths=None, **settings):
    """Compare a padded batch with the loop over its utterances."""
    U = output.embeddings.shape[1]
    assert U == output.lengths.max() and output.lengths.dtype == torch.int64
    assert output.embeddings.dtype == x.dtype
    assert output.boundaries.shape == (len(x), U + 1)
    for b, n in enumerate(x_lengths.tolist()):
        target = None if target_lengths is None else int(target_lengths[b])
        rows, boundaries = integrate_and_fire(
            x[b, :n], alpha[b, :n], target, **settings
        )
        assert output.lengths[b] == len(rows)
        expected = torch.zeros(U, D, dtype=torch.float64)
        if rows:
            expected[: len(rows)] = torch.stack(rows)
        torch.testing.assert_close(
            output.embeddings[b].double(), expected, atol=1e-5, rtol=1e-5
        )
        assert not output.embeddings[b, len(rows) :].any()
        boundaries += boundaries[-1:] * (U + 1 - len(boundaries))
        torch.testing.assert_close(
            output.boundaries[b], torch.tensor(boundaries), atol=1e-4, rtol=1e-6
        )
    quantity = torch.stack(
        [a[:n].double().sum() for a, n in zip(alpha, x_lengths, strict=True)]
    )
    quantity = (quantity / settings.get("threshold", 1.0)).float()
    torch.testing.assert_close(output.quantity, quantity)


def batch(*lengths, high=1.0, dtype=torch.float32):
    """Random frames and weights; what lies behind an utterance is NaN."""
    torch.manual_seed(sum(lengths))
    x_lengths = torch.tensor(lengths)
    x = torch.randn(len(lengths), max(lengths), D, dtype=dtype)
    alpha = torch.rand(len(lengths), max(lengths), dtype=dtype) * high
    padding_mask = torch.arange(max(lengths)) >= x_lengths[:, None]
    x[padding_mask] = torch.nan
    alpha[padding_mask] = torch.nan
    return x, alpha, x_lengths


def weights(*rows):
    """Random frames under given weights, one row an utterance."""
    x, alpha, x_lengths = batch(*map(len, rows))
    for a, row in zip(alpha, rows, strict=True):
        a[: len(row)] = torch.tensor(row)
    return x, alpha, x_lengths


SILENCE = [1e-4] * 300 + [0.9, 0.4] + [1e-6] * 100
RAGGED = [0.4] * 9, [0.3, 0.9], [], [0.7]
INFERENCE = {
    "speech": batch(40, 23, 1, 0, 31, high=0.6),
    "several_fires_per_frame": batch(12, 9, high=3.5),
    "one_large_weight": weights([0.2, 0.3, 2.5, 0.1, 0.6], [0.2] * 9),
    "whole_sum": weights([0.5, 0.25, 0.25, 0.5, 0.5], [0.5] * 4),
    "one_each_frame": weights([1.0] * 6, [1.0] * 3),
    "tenths": weights([0.1] * 10, [0.1] * 25),
    "all_zero": weights([0.0] * 4, [0.0] * 7),
    "first_row_zero": weights([0.0] * 6, [0.4] * 9, [0.4] * 5),
    "last_row_zero": weights([0.4] * 9, [0.4] * 5, [0.0] * 6),
    "zero_at_both_ends": weights([0.0, 0.0, 0.6, 0.9, 0.0, 0.0], [0.5, 0.5, 0.0]),
    "all_lengths_zero": weights([], []),
    "one_frame": weights([0.7], [0.2], [3.4]),
    "ragged": weights(*RAGGED),
    "tail_at_its_threshold": weights([0.75, 0.75], [0.75, 0.7500001]),
    "long_silence": weights(SILENCE, [1e-6] * 50),
}
TRAINING = {
    "speech": (*batch(40, 23, 1, 5, 31), [9, 4, 1, 2, 7]),
    "more_tokens_than_frames": (*batch(3, 8, 1), [7, 19, 4]),
    "one_token": (*batch(9, 5), [1, 1]),
    "no_token": (*batch(9, 5, 4), [0, 2, 0]),
    "several_fires_per_frame": (*batch(12, 9, high=3.5), [20, 7]),
    "one_each_frame": (*weights([1.0] * 6, [0.3] * 3), [6, 3]),
    "all_zero": (*weights([0.0] * 4, [0.0] * 7), [3, 2]),
    "first_row_zero": (*weights([0.0] * 6, [0.4] * 9), [4, 3]),
    "last_row_zero": (*weights([0.4] * 9, [0.0] * 6), [4, 3]),
    "zero_at_both_ends": (*weights([0.0, 0.0, 0.6, 0.9, 0.0], [0.5, 0.5, 0.0]), [3, 2]),
    "ragged": (*weights(*RAGGED), [3, 2, 0, 1]),
    "long_silence": (*weights(SILENCE, [1e-6] * 50, [1e-9] * 50), [5, 3, 2]),
}  # fmt: skip


@pytest.mark.parametrize("operator", [cif, cif_dense])
@pytest.mark.parametrize("threshold, tail", [(1.0, 0.5), (0.7, 0.0), (2.0, 1.0)])
@pytest.mark.parametrize("case", INFERENCE)
def test_inference_equals_the_loop(case, threshold, tail, operator):
    arguments = INFERENCE[case]
    settings = {"threshold": threshold, "tail_threshold": tail}
    check(operator(*arguments, **settings), *arguments, **settings)


@pytest.mark.parametrize("operator", [cif, cif_dense])
@pytest.mark.parametrize("threshold", [1.0, 0.7])
@pytest.mark.parametrize("case", TRAINING)
def test_training_equals_the_loop(case, threshold, operator):
    x, alpha, x_lengths, targets = TRAINING[case]
    arguments = x.nan_to_num(), alpha.nan_to_num(), x_lengths, torch.tensor(targets)
    output = operator(*arguments, threshold=threshold)
    check(output, *arguments, threshold=threshold)


@pytest.mark.parametrize("num_frames", [50, 400, 1600, 6400])
def test_scaled_weights_fire_exactly_the_target(num_frames):
    torch.manual_seed(num_frames)
    alpha = torch.rand(20, num_frames).pow(4)
    targets = torch.randint(1, num_frames // 2, (20,))
    x = torch.ones(20, num_frames, 1)
    output = cif(x, alpha, torch.full((20,), num_frames), targets)
    assert torch.equal(output.lengths, targets)
    for tokens, length in zip(output.embeddings, targets, strict=True):
        # Each token is full: its weights sum to the threshold.
        torch.testing.assert_close(tokens[:length], torch.ones(length, 1))
        assert not tokens[length:].any()


def test_long_sums_are_not_off_by_one():
    alpha = torch.cat([torch.full((1, 6400), 0.1), torch.full((1, 6400), 0.25)])
    output = cif(torch.ones(2, 6400, 1), alpha, torch.tensor([6400, 6400]))
    assert output.lengths.tolist() == [640, 1600]


def test_sums_do_not_depend_on_the_order():
    torch.manual_seed(0)
    alpha, x_lengths = torch.rand(8, 1000).pow(16), torch.full((8,), 1000)
    there, back = (
        make_plan(a, x_lengths, None, 1.0, 0.5) for a in (alpha, alpha.flip(1))
    )
    assert torch.equal(there.quantity, back.quantity)


def test_frames_of_zeros_inside_speech_count():
    x, alpha, x_lengths = batch(20)
    x[0, 5:12] = 0.0
    check(cif(x, alpha, x_lengths), x, alpha, x_lengths)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_utterance_is_the_same_alone_and_in_any_batch(scaled, dtype):
    x, alpha, x_lengths = batch(200, 37, 1, 0, 120, 64, high=0.7)
    x = x.to(dtype)
    targets = torch.tensor([44, 50, 2, 0, 1, 20]) if scaled else None
    whole = cif(x, alpha, x_lengths, targets)
    order = torch.randperm(len(x))
    permuted = cif(
        x[order], alpha[order], x_lengths[order], targets[order] if scaled else None
    )
    exactly = {"rtol": 0, "atol": 0, "equal_nan": True}  # padding holds NaN
    for field, expected in zip(permuted, whole, strict=True):
        torch.testing.assert_close(field, expected[order], **exactly)
    for b, n in enumerate(x_lengths.tolist()):
        row = slice(b, b + 1)
        alone = cif(
            x[row, :n], alpha[row, :n], x_lengths[row], targets[row] if scaled else None
        )
        U = int(alone.lengths)
        assert torch.equal(alone.lengths, whole.lengths[row])
        assert torch.equal(alone.quantity, whole.quantity[row])
        assert torch.equal(alone.embeddings, whole.embeddings[row, :U])
        assert torch.equal(alone.boundaries, whole.boundaries[row, : U + 1])


def test_no_tokens_are_made_of_no_frames():
    x, alpha, x_lengths = batch(30, 0)
    with pytest.raises(
        ValueError, match="utterance 1 .* target_lengths is 2, but it has"
    ):
        cif(x, alpha, x_lengths, torch.tensor([2, 2]))
    assert cif(x, alpha, x_lengths, torch.tensor([2, 0])).lengths.tolist() == [2, 0]


@pytest.mark.parametrize("scaled", [True, False])
def test_padding_reaches_no_gradient(scaled):
    x, alpha, x_lengths = batch(30, 18, 0)
    targets = torch.tensor([7, 5, 0]) if scaled else None
    grads = []
    for values in (x, alpha), (x.nan_to_num(3.0), alpha.nan_to_num(0.5)):
        leaves = [value.clone().requires_grad_() for value in values]
        output = cif(*leaves, x_lengths, targets, tail_threshold=0.0)
        (output.embeddings.cos().sum() + output.quantity.sin().sum()).backward()
        grads.append([leaf.grad for leaf in leaves])
    for with_nan, without in zip(*grads, strict=True):
        assert torch.equal(with_nan, without)
        assert with_nan[0].abs().min() > 0
        assert not with_nan[1, 18:].any() and not with_nan[2].any()


@pytest.mark.parametrize("scaled", [True, False])
def test_nan_in_one_utterance_does_not_reach_its_neighbour(scaled):
    x, alpha, x_lengths = weights([0.3, 0.6, 0.7, 0.2], [0.4] * 4)
    x[1] = torch.nan
    targets = torch.tensor([3, 2]) if scaled else None
    grads = []
    for B in 2, 1:
        leaf = alpha[:B].clone().requires_grad_()
        output = cif(x[:B], leaf, x_lengths[:B], targets[:B] if scaled else None)
        output.embeddings.cos().sum().backward()
        grads.append(leaf.grad[0])
    assert grads[0].isfinite().all() and torch.equal(*grads)


GRADIENTS = {
    "scaled": {"target_lengths": torch.tensor([4, 7, 1])},
    "scaled_several_fires": {"target_lengths": torch.tensor([13, 9, 16])},
    "scaled_threshold": {"target_lengths": torch.tensor([3, 0, 9]), "threshold": 0.7},
    "tail": {"tail_threshold": 0.0},
    "dropped_tail": {"tail_threshold": 1.0},
    "tail_threshold": {"threshold": 1.7},
    "several_fires": {"threshold": 0.15, "tail_threshold": 0.0},
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradient_equals_finite_differences(case):
    x, alpha, x_lengths = batch(8, 6, 3, dtype=torch.float64)
    x, alpha = x[:, :, :2].nan_to_num(), alpha.nan_to_num() + 0.01
    settings = GRADIENTS[case]
    assert gradcheck(
        lambda x, alpha: cif(x, alpha, x_lengths, **settings).embeddings,
        (x.requires_grad_(), alpha.requires_grad_()),
    )


def alpha_gradient(x, alpha, grad, *lengths, **settings):
    """Gradient of <grad, embeddings>, and the function itself."""

    def loss(alpha):
        return (cif(x, alpha, *lengths, **settings).embeddings * grad).sum()

    leaf = alpha.clone().requires_grad_()
    loss(leaf).backward()
    return leaf.grad, loss


def test_gradient_at_a_whole_number_is_the_right_hand_one():
    x, alpha, x_lengths = batch(6, dtype=torch.float64)
    alpha = torch.tensor([[0.5, 0.5, 0.25, 0.75, 0.5, 0.25]], dtype=torch.float64)
    gradient, loss = alpha_gradient(x, alpha, torch.randn(1, 3, D), x_lengths)
    for t in range(6):
        moved = alpha.clone()
        moved[0, t] += 1e-6
        difference = (loss(moved) - loss(alpha)) / 1e-6
        torch.testing.assert_close(gradient[0, t], difference, atol=1e-4, rtol=1e-4)


def test_scaled_output_does_not_see_the_scale_of_alpha():
    x, alpha, x_lengths = batch(50, 30)
    x, alpha = x.nan_to_num(), alpha.nan_to_num()
    targets = torch.tensor([12, 40])
    gradient, _ = alpha_gradient(x, alpha, torch.randn(2, 40, D), x_lengths, targets)
    radial = (gradient * alpha).sum(1) / (gradient.norm(dim=1) * alpha.norm(dim=1))
    torch.testing.assert_close(radial, torch.zeros(2), atol=1e-5, rtol=0.0)


def test_dropped_tail_has_no_gradient():
    x, alpha, x_lengths = weights([0.6, 0.6, 0.1, 0.1, 0.0])
    x.requires_grad_(), alpha.requires_grad_()
    cif(x, alpha, x_lengths).embeddings.cos().sum().backward()
    assert x.grad[0, :2].all() and alpha.grad[0, 0].all()
    assert not x.grad[0, 2:].any() and not alpha.grad[0, 1:].any()


def test_nothing_to_scale_leaves_the_gradient_to_the_quantity():
    x, alpha, x_lengths = weights([1e-9] * 6)
    x.requires_grad_(), alpha.requires_grad_()
    output = cif(x, alpha, x_lengths, torch.tensor([3]))
    output.embeddings.cos().sum().backward(retain_graph=True)
    assert x.grad.all() and not alpha.grad.any()
    output.quantity.sum().backward()
    assert torch.equal(alpha.grad, torch.ones(1, 6))


@pytest.mark.parametrize("fires", [True, False])
def test_quantity_has_the_gradient_of_a_sum(fires):
    x, alpha, x_lengths = weights([0.3 * fires] * 6, [0.01] * 4)
    alpha.requires_grad_()
    cif(x, alpha, x_lengths, threshold=0.5).quantity.sum().backward()
    expected = torch.tensor([[2.0] * 6, [2.0] * 4 + [0.0] * 2])
    assert torch.equal(alpha.grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scaled", [True, False])
def test_half_precision_frames_fire_like_float32(dtype, scaled):
    torch.manual_seed(0)
    x = torch.randn(6, 1600, 8).to(dtype)
    alpha, x_lengths = torch.rand(6, 1600) * 0.5, torch.full((6,), 1600)
    targets = torch.arange(300, 306) if scaled else None
    grads = []
    for frames in x.clone(), x.float():
        frames.requires_grad_(), alpha.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = cif(frames, alpha, x_lengths, targets)
        assert output.embeddings.dtype == frames.dtype
        torch.manual_seed(1)
        grad = torch.randn(output.embeddings.shape).to(dtype).to(frames.dtype)
        grads.append(torch.autograd.grad(output.embeddings, (frames, alpha), grad))
        grads[-1] = [*grads[-1], output.embeddings, output.lengths, output.boundaries]
    for half, single in zip(*grads, strict=True):
        assert torch.equal(half, single.to(half.dtype))


def test_durations_add_up():
    x, alpha, x_lengths = batch(40, 23)
    output = cif(x, alpha, x_lengths, torch.tensor([9, 4]))
    assert output.durations.shape == (2, 9) and (output.durations >= 0).all()
    torch.testing.assert_close(output.durations.sum(1), torch.tensor([40.0, 23.0]))


def test_a_random_sweep_equals_the_loop():
    rng = random.Random(0)
    for _ in range(150):
        lengths = [rng.randint(0, 14) for _ in range(rng.randint(1, 4))]
        x, alpha, x_lengths = batch(*lengths, high=rng.choice([0.3, 1.0, 3.0]))
        x, alpha = x.nan_to_num(), alpha.nan_to_num()
        # Eighths meet the thresholds exactly.
        alpha = (alpha * 8).round() / 8 if rng.random() < 0.6 else alpha
        settings = {"threshold": rng.choice([1.0, 0.5, 1.25])}
        targets = None
        if rng.random() < 0.5:
            targets = torch.tensor([rng.randint(0, 9) if n else 0 for n in lengths])
        output = cif(x, alpha, x_lengths, targets, **settings)
        check(output, x, alpha, x_lengths, targets, **settings)


def test_nan_alpha_in_training_shows_in_the_quantity_only():
    x, alpha, x_lengths = weights([0.3] * 6, [0.4] * 4)
    alpha[0, 2] = torch.nan
    output = cif(x, alpha, x_lengths, torch.tensor([3, 2]))
    assert output.lengths.tolist() == [3, 2]
    assert output.quantity.isnan().tolist() == [True, False]
