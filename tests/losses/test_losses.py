"""Losses against closed forms and plain loops; N = 0 and 1; padding; gradients."""

import pytest
import torch
from torch.autograd import gradcheck

from cif_lobes.losses.contrastive import contrastive_distillation
from cif_lobes.losses.recognition import label_smoothed_ce, quantity_loss
from cif_lobes.losses.regression import regression_distillation

KINDS = ["l2", "cosine", "l1_cosine"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


# --- label-smoothed cross-entropy ---


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ce_is_the_cross_entropy_against_the_smoothed_target(smoothing):
    logits = randn(2, 3, 7)
    targets = torch.tensor([[0, 6, 3], [2, 2, 5]])
    valid_mask = torch.tensor([[True, True, False], [True, True, True]])
    smoothed = torch.full((2, 3, 7), smoothing / 6)
    smoothed.scatter_(2, targets[..., None], 1 - smoothing)
    expected = -(smoothed * logits.log_softmax(-1)).sum(-1)[valid_mask].sum()
    loss = label_smoothed_ce(logits, targets, valid_mask, smoothing)
    torch.testing.assert_close(loss, expected)


def test_ce_is_least_where_the_model_predicts_the_smoothed_target():
    smoothed = torch.tensor([0.9, 0.05, 0.05])
    logits = smoothed.log().reshape(1, 1, 3).requires_grad_()
    loss = label_smoothed_ce(logits, torch.tensor([[0]]), torch.tensor([[True]]))
    loss.backward()
    torch.testing.assert_close(loss.detach(), -(smoothed * smoothed.log()).sum())
    torch.testing.assert_close(logits.grad, torch.zeros(1, 1, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "valid_mask", [torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 3)]
)
def test_a_mask_of_another_shape_or_dtype_is_refused(valid_mask):
    targets = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"expected \[2, 3\] torch.bool"):
        label_smoothed_ce(randn(2, 3, 7), targets, valid_mask)


# --- quantity ---


def test_quantity_loss_sums_the_distances_in_tokens():
    quantity = torch.tensor([2.5, 4.0, 7.0], requires_grad=True)
    loss = quantity_loss(quantity, torch.tensor([3, 4, 5]))
    loss.backward()
    assert loss == 2.5
    assert quantity.grad.tolist() == [-1, 0, 1]


@pytest.mark.parametrize("shape, target_shape", [((2, 1), (2,)), ((2,), (2, 1))])
def test_quantity_that_would_broadcast_is_refused(shape, target_shape):
    with pytest.raises(ValueError, match=r"quantity \[2.* and target_lengths \[2"):
        quantity_loss(torch.ones(shape), torch.ones(target_shape, dtype=torch.long))


# --- regression distillation ---


def regression_formula(kind, student, teacher):
    """One token."""
    cosine = (student @ teacher) / (student.norm() * teacher.norm())
    if kind == "l2":
        return ((student - teacher) ** 2).sum()
    if kind == "cosine":
        return 1 - cosine
    published = (student - teacher).abs().mean() - cosine.sigmoid().log()
    return published + torch.tensor(1.0).sigmoid().log()


@pytest.mark.parametrize("kind", KINDS)
def test_lrd_sums_the_formula_over_real_tokens_and_layers(kind):
    student, teacher = randn(2, 3, 4, 6), randn(2, 3, 4, 6, seed=1)
    valid_mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = sum(
        regression_formula(kind, student[b, u, layer], teacher[b, u, layer])
        for b, u in [(0, 0), (0, 1), (1, 0)]
        for layer in range(4)
    )
    loss = regression_distillation(student, teacher, valid_mask, kind)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_lrd_of_a_perfect_student_is_zero_with_zero_gradient(kind):
    teacher = randn(2, 3, 6)
    student = teacher.clone().requires_grad_()
    valid_mask = torch.ones(2, 3, dtype=torch.bool)
    loss = regression_distillation(student, teacher, valid_mask, kind)
    loss.backward()
    torch.testing.assert_close(loss.item(), 0.0, atol=1e-5, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros(2, 3, 6), atol=1e-6, rtol=0)


def test_an_unknown_kind_is_refused():
    valid_mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="kind 'mse': expected 'l2'"):
        regression_distillation(randn(1, 2, 3), randn(1, 2, 3), valid_mask, "mse")


# --- all of them ---

VALID_MASK = torch.tensor([[True, True, True], [True, True, False]])
TARGETS = torch.tensor([[1, 0, 2], [3, 1, 0]])


def acd(student, teacher, valid_mask, chunk_size=2048):
    student, teacher = student[valid_mask], teacher[valid_mask]
    return contrastive_distillation(
        student, teacher, 0.3, generator=seeded(), chunk_size=chunk_size
    ).loss


# Each takes a student [2, 3, 4], a teacher of the same shape, and a mask.
LOSSES = {
    "ce": lambda s, t, m=VALID_MASK: label_smoothed_ce(s, TARGETS, m),
    "quantity": lambda s, t: quantity_loss(s[:, 0, 0], torch.tensor([3, 2])),
    "acd": lambda s, t, m=VALID_MASK: acd(s, t, m),
    "acd in chunks": lambda s, t, m=VALID_MASK: acd(s, t, m, chunk_size=2),
} | {
    kind: lambda s, t, m=VALID_MASK, kind=kind: regression_distillation(s, t, m, kind)
    for kind in KINDS
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@every_loss
def test_gradients_in_float64(loss):
    student = randn(2, 3, 4, dtype=torch.float64).requires_grad_()
    teacher = randn(2, 3, 4, seed=1, dtype=torch.float64)
    assert loss(student, teacher).dtype == torch.float64
    assert gradcheck(lambda s: loss(s, teacher), student)


@every_loss
def test_half_precision_and_autocast_are_computed_in_float32(loss):
    student, teacher = randn(2, 3, 4).bfloat16(), randn(2, 3, 4, seed=1).half()
    expected = loss(student.float(), teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher)
    assert value.dtype == torch.float32 and value.shape == ()
    torch.testing.assert_close(value, expected)


@every_loss
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_padding_reaches_neither_value_nor_gradient(loss, garbage):
    clean, teacher = randn(2, 3, 4), randn(2, 3, 4, seed=1)
    expected = loss(clean, teacher)
    padding = ~VALID_MASK[..., None]
    student = clean.masked_fill(padding, garbage).requires_grad_()
    value = loss(student, teacher.masked_fill(padding, garbage))
    value.backward()
    torch.testing.assert_close(value.detach(), expected)
    assert student.grad.isfinite().all()
    assert torch.equal(student.grad[~VALID_MASK], torch.zeros(1, 4))


@pytest.mark.parametrize("name", ["ce", "acd", *KINDS])
def test_no_token_costs_nothing(name):
    student = randn(2, 3, 4).requires_grad_()
    no_token = torch.zeros_like(VALID_MASK)
    loss = LOSSES[name](student, randn(2, 3, 4, seed=1), no_token)
    loss.backward()
    assert loss == 0 and torch.equal(student.grad, torch.zeros(2, 3, 4))


@pytest.mark.parametrize("name", ["acd", *KINDS])
def test_the_teacher_gets_no_gradient(name):
    student = randn(2, 3, 4).requires_grad_()
    teacher = randn(2, 3, 4, seed=1).requires_grad_()
    LOSSES[name](student, teacher).backward()
    assert teacher.grad is None and student.grad.any()


def test_another_tokenizer_is_refused_with_both_lengths():
    message = "13 teacher states for 12 tokens.*another tokenizer.*verify"
    with pytest.raises(ValueError, match=message):
        contrastive_distillation(randn(12, 4), randn(13, 4))
    valid_mask = torch.ones(2, 12, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        regression_distillation(randn(2, 12, 4), randn(2, 13, 4), valid_mask)


def test_a_head_of_another_width_is_refused():
    valid_mask = torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\[2, 5, 4\], teacher \[2, 5, 3, 4\].*layer"):
        regression_distillation(randn(2, 5, 4), randn(2, 5, 3, 4), valid_mask)
