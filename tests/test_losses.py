"""Losses against closed forms and plain loops; N = 0 and 1; padding; gradients."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.autograd import gradcheck

from cif_lobes.losses import (
    _draw_negatives,
    contrastive_distillation,
    label_smoothed_ce,
    quantity_loss,
    regression_distillation,
)

KINDS = ["l2", "cosine", "l1_cosine"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def info_nce(student, teacher, negatives, temperature=0.02):
    """The formula, one exponential at a time; `negatives` lists columns per anchor."""
    total = 0.0
    for i, columns in enumerate(negatives):
        logits = [
            torch.cosine_similarity(student[i], teacher[j], dim=0) / temperature
            for j in [i, *columns]
        ]
        total = total - logits[0] + torch.stack(logits).logsumexp(0)
    return total


def parallel_states(num_tokens):
    """Uniform softmax over the own state and K negatives: log(1 + K) per anchor."""
    lengths = torch.arange(1, num_tokens + 1, dtype=torch.float64)
    return lengths[:, None] * torch.tensor([1.0, 0.0], dtype=torch.float64)


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


# --- contrastive distillation: values ---


def test_acd_equals_the_formula_over_the_columns_drawn():
    student, teacher = randn(40, 6, dtype=torch.float64), randn(40, 6, seed=1).double()
    rows = torch.arange(40)
    negatives = _draw_negatives(rows[None], rows, 7, seeded(3))
    expected = info_nce(
        student, teacher, [row.nonzero().flatten().tolist() for row in negatives]
    )
    loss, _ = contrastive_distillation(
        student, teacher, num_negatives=7, generator=seeded(3)
    )
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    "num_tokens, num_negatives, drawn", [(11, 10, 10), (10, 10, 8), (10, 700, 8)]
)
def test_acd_draws_all_that_is_asked_or_80_percent(num_tokens, num_negatives, drawn):
    loss, correct = contrastive_distillation(
        parallel_states(num_tokens),
        parallel_states(num_tokens),
        num_negatives=num_negatives,
    )
    torch.testing.assert_close(loss.item(), num_tokens * math.log(1 + drawn))
    assert correct == num_tokens


def test_acd_minimum_at_the_teacher_when_the_teacher_is_centred():
    teacher = torch.eye(5, dtype=torch.float64) - 0.2
    student = teacher.clone().requires_grad_()
    loss, correct = contrastive_distillation(student, teacher, temperature=0.5)
    loss.backward()
    # Corners of a regular simplex: every other cosine is -1/4.
    expected = 5 * math.log(1 + 4 * math.exp((-0.25 - 1) / 0.5))
    torch.testing.assert_close(loss.item(), expected)
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher))
    assert correct == 5
    for seed in range(10):
        moved = teacher + 0.1 * randn(5, 5, seed=seed, dtype=torch.float64)
        assert contrastive_distillation(moved, teacher, temperature=0.5).loss > loss


def test_acd_counts_the_anchors_whose_own_state_is_nearest():
    teacher = torch.eye(5)
    student = teacher[[0, 1, 2, 4, 3]]  # two swapped
    assert contrastive_distillation(student, teacher).correct == 3


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_acd_without_a_negative_is_zero_and_can_be_differentiated(num_tokens):
    student = randn(num_tokens, 4).requires_grad_()
    loss, correct = contrastive_distillation(student, randn(num_tokens, 4, seed=1))
    loss.backward()
    assert loss == 0 and loss.shape == () and correct == num_tokens
    assert torch.equal(student.grad, torch.zeros(num_tokens, 4))


def test_acd_in_chunks_equals_acd_at_once():
    student, teacher = randn(50, 8).requires_grad_(), randn(50, 8, seed=1)
    outcomes = []
    for chunk_size in (50, 16):
        student.grad = None
        options = {"num_negatives": 20, "chunk_size": chunk_size}
        outcome = contrastive_distillation(
            student, teacher, generator=seeded(), **options
        )
        outcome.loss.backward()
        outcomes.append((*outcome, student.grad))
    torch.testing.assert_close(*outcomes)


def test_acd_in_chunks_keeps_no_cosines_for_the_backward_pass():
    student, teacher = randn(50, 8).requires_grad_(), randn(50, 8, seed=1)
    widest = {}
    for chunk_size in (50, 16):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
            contrastive_distillation(student, teacher, chunk_size=chunk_size)
        widths = [x.shape[-1] for x in kept if x.dim() and x.is_floating_point()]
        widest[chunk_size] = max(widths)
    assert widest == {50: 50, 16: 8}


def test_acd_repeats_with_the_generator_only():
    student, teacher = randn(50, 8), randn(50, 8, seed=1)
    losses = [
        contrastive_distillation(
            student, teacher, num_negatives=5, generator=seeded(seed)
        ).loss
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


# --- contrastive distillation: which negatives ---


def test_every_row_draws_its_own_exact_uniform_subset():
    rows = torch.arange(400)
    negatives = _draw_negatives(rows[None], rows, 100, seeded())
    assert (negatives.sum(1) == 100).all()
    assert not negatives.diagonal().any()
    assert len(negatives.unique(dim=0)) == 400
    # A column is drawn by 100 rows on average, standard deviation 8.7.
    assert (negatives.sum(0) - 100).abs().max() < 5 * 8.7


@pytest.mark.parametrize(
    "options, available",
    [
        ({}, [8, 8, 8, 8, 8, 8, 8, 8, 8, 8]),
        ({"exclude_same_token": True}, [8, 8, 7, 7, 7, 6, 6, 6, 6, 8]),
        ({"exclude_eos_negatives": True, "eos_index": 2}, [8] * 5 + [6] * 4 + [8]),
    ],
)
def test_excluded_tokens_are_never_negatives(options, available):
    # Once, once, thrice, four ends of sentence, once; 8 of 10 are drawn if there are.
    token_ids = torch.tensor([5, 6, 7, 7, 7, 2, 2, 2, 2, 9])
    states = parallel_states(10)
    loss, _ = contrastive_distillation(states, states, token_ids=token_ids, **options)
    expected = sum(math.log(1 + number) for number in available)
    torch.testing.assert_close(loss.item(), expected)


def test_equal_states_are_no_negatives_of_each_other():
    """Three letters of a word, two of another: 2 and 3 negatives."""
    teacher = torch.eye(2)[[0, 0, 0, 1, 1]]
    loss, correct = contrastive_distillation(torch.zeros(5, 2), teacher)
    torch.testing.assert_close(loss.item(), 3 * math.log(1 + 2) + 2 * math.log(1 + 3))
    assert correct == 5
    assert contrastive_distillation(teacher, teacher).loss < 1e-6


def test_exclusion_without_tokens_is_refused():
    states = torch.ones(3, 2)
    with pytest.raises(ValueError, match="token_ids None for 3 student states"):
        contrastive_distillation(states, states, exclude_same_token=True)
    with pytest.raises(ValueError, match="needs eos_index"):
        contrastive_distillation(
            states, states, token_ids=torch.arange(3), exclude_eos_negatives=True
        )


def _gather_on_rank(rank, address):
    """Losses of one rank against the formula over the states of both."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    # Five states in all, so each anchor draws all four others: nothing is random.
    teacher, token_ids = randn(5, 6, seed=1), torch.tensor([3, 4, 5, 3, 6])
    for lengths in ([2, 3], [0, 5]):
        teachers, tokens = teacher.split(lengths), token_ids.split(lengths)
        student = randn(lengths[rank], 6, seed=2 + rank)
        loss, _ = contrastive_distillation(
            student,
            teachers[rank],
            token_ids=tokens[rank],
            exclude_same_token=True,
            gather_negatives=True,
        )
        own, every = tokens[rank], torch.cat([tokens[rank], tokens[1 - rank]])
        negatives = [(every != token).nonzero().flatten().tolist() for token in own]
        candidates = torch.cat([teachers[rank], teachers[1 - rank]])
        expected = torch.as_tensor(info_nce(student, candidates, negatives))
        torch.testing.assert_close(loss, expected)
    dist.destroy_process_group()


@pytest.mark.slow
def test_gathered_negatives_come_from_both_ranks(tmp_path):
    mp.spawn(_gather_on_rank, args=(f"file://{tmp_path}/rendezvous",), nprocs=2)


def test_gathering_alone_changes_nothing():
    student, teacher = randn(5, 6), randn(5, 6, seed=1)
    alone = contrastive_distillation(student, teacher)
    gathered = contrastive_distillation(student, teacher, gather_negatives=True)
    torch.testing.assert_close(tuple(alone), tuple(gathered))


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
