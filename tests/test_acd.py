"""Contrastive distillation against its formula: values, negatives, two processes."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cif_lobes.contrastive import _draw_negatives, contrastive_distillation


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
