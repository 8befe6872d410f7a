"""Contrastive distillation against its formula: values, negatives, two processes."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cif_lobes.losses.contrastive import (
    _draw_negatives,
    _hash_rows,
    contrastive_distillation,
)


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


# --- which negatives ---


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rows_are_hashed_alike_where_they_are_equal(dtype):
    """Also 0 and -0; rows that differ by one bit, or by their order, are not."""
    rows = randn(300, 768).to(dtype)
    rows[7], rows[:, 5] = rows[3], 0.0
    rows[7, 5] = -0.0
    rows[8] = rows[3]
    rows[8, 700] = torch.nextafter(rows[8, 700].float(), torch.tensor(9.0)).to(dtype)
    if dtype == torch.float16:
        rows[8, 700] = rows[3, 700] + 0.01
    rows[9] = rows[3].flip(0)
    equal = torch.unique(rows, dim=0, return_inverse=True)[1]
    hashes = _hash_rows(rows)
    pairs = hashes[:, None] == hashes
    assert torch.equal(pairs, equal[:, None] == equal)
    assert pairs.sum() == 300 + 2


def test_exclusion_without_tokens_is_refused():
    states = torch.ones(3, 2)
    with pytest.raises(ValueError, match="token_ids None for 3 student states"):
        contrastive_distillation(states, states, exclude_same_token=True)
    with pytest.raises(ValueError, match="needs eos_index"):
        contrastive_distillation(
            states, states, token_ids=torch.arange(3), exclude_eos_negatives=True
        )


TOKENS = torch.tensor([3, 4, 5, 3, 6, 4, 7, 8, 9, 3, 5])


def whole_batch(**options):
    """Loss, accuracy and student's gradient of 11 tokens in one process.

    Each anchor draws all others, so nothing is random.
    """
    student, teacher = randn(11, 6, seed=2).requires_grad_(), randn(11, 6, seed=1)
    teacher[4] = teacher[8]  # a text said twice
    outcome = contrastive_distillation(
        student, teacher, num_negatives=10, token_ids=TOKENS, **options
    )
    outcome.loss.backward()
    return student, teacher, outcome


def _gather_on_rank(rank, address):
    """Sums over two ranks against one process with the tokens of both."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for lengths in ([4, 7], [6, 5], [0, 11], [11, 0]):
        for exclude_same_token in (False, True):
            options = {"exclude_same_token": exclude_same_token}
            student, teacher, whole = whole_batch(**options)
            teacher, tokens, gradient = (
                x.split(lengths)[rank] for x in (teacher, TOKENS, student.grad)
            )
            student = student.detach().split(lengths)[rank].clone().requires_grad_()
            part = contrastive_distillation(
                student,
                teacher,
                num_negatives=10,
                token_ids=tokens,
                gather_negatives=True,
                **options,
            )
            part.loss.backward()
            sums = torch.stack([part.loss.detach(), part.correct])
            dist.all_reduce(sums)
            expected = torch.stack([whole.loss.detach(), whole.correct])
            torch.testing.assert_close(sums, expected)
            torch.testing.assert_close(student.grad, gradient)
    _draw_enough(rank)
    dist.destroy_process_group()


def _draw_enough(rank):
    """Five negatives from the eight tokens of both; alone, a process would draw three."""
    states = parallel_states(4) * (1 + rank / 8)  # all of one direction, none equal
    loss, _ = contrastive_distillation(
        states, states, num_negatives=5, gather_negatives=True
    )
    torch.testing.assert_close(loss.item(), 4 * math.log(1 + 5))


@pytest.mark.slow
def test_two_processes_with_gathered_negatives_equal_one(tmp_path):
    mp.spawn(_gather_on_rank, args=(f"file://{tmp_path}/rendezvous",), nprocs=2)


def test_gathering_alone_changes_nothing():
    student, teacher = randn(5, 6), randn(5, 6, seed=1)
    alone = contrastive_distillation(student, teacher)
    gathered = contrastive_distillation(student, teacher, gather_negatives=True)
    torch.testing.assert_close(tuple(alone), tuple(gathered))
