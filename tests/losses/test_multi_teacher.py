"""Multi-teacher distillation: every strategy against figures worked out by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from cif_lobes.losses.multi_teacher import (
    STRATEGIES,
    attention_distillation,
    ctc_distillation,
    greedy_labels,
    teacher_weights,
)

# One utterance per row: three teachers' error rates in %.
ERRORS = torch.tensor([[20.0, 10.0, 10.0], [0.0, 1.0, 100.0]])
E1 = math.exp(-1)
WEIGHTS = {
    "average": [[1 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3]],
    "best": [[0, 1, 0], [1, 0, 0]],
    "top-k": [[0, 0.5, 0.5], [1, 0, 0]],
    "weighted": [
        [math.exp(-10) / (2 + math.exp(-10))] + 2 * [1 / (2 + math.exp(-10))],
        [1 / (1 + E1), E1 / (1 + E1), 0],
    ],
}
# Token posteriors of the three teachers over two classes, for one token.
TEACHERS = torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]])
STUDENT = [0.25, 0.75]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_by_hand(strategy):
    weights = teacher_weights(ERRORS, strategy)
    assert_close(weights, torch.tensor(WEIGHTS[strategy]).float())


def test_other_strategies_are_refused():
    with pytest.raises(ValueError, match="top-1.*average.*weighted"):
        teacher_weights(ERRORS, "top-1")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_attention_by_hand(strategy):
    """One utterance, one token: the weighted mean of three cross-entropies."""
    expected = 0
    for weight, (p, q) in zip(WEIGHTS[strategy][0], TEACHERS.tolist(), strict=True):
        expected -= weight * (p * math.log(STUDENT[0]) + q * math.log(STUDENT[1]))
    loss = attention_distillation(
        torch.tensor([[STUDENT]]).log(),
        TEACHERS.log()[None, None],
        teacher_weights(ERRORS[:1], strategy),
        torch.tensor([[True]]),
    )
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ctc_by_hand(strategy):
    """One frame: teachers 1 to 3 hear class 1, class 2 and nothing."""
    student = [0.2, 0.5, 0.3]
    costs = [-math.log(0.5), -math.log(0.3), -math.log(0.2)]
    weights = WEIGHTS[strategy][0]
    expected = sum(w * cost for w, cost in zip(weights, costs, strict=True))
    loss = ctc_distillation(
        torch.tensor([[student]]).log(),
        torch.tensor([1]),
        torch.tensor([[[1, 2, 0]]]),
        torch.tensor([[1, 1, 0]]),
        teacher_weights(ERRORS[:1], strategy),
        blank_index=0,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_temperature_by_hand():
    """T = 2 takes square roots; the student's own, if asked for."""
    teacher = torch.tensor([[[[0.8, 0.2]]]])
    p = 2 / 3  # sqrt(0.8) / (sqrt(0.8) + sqrt(0.2))
    arguments = (teacher.log(), torch.ones(1, 1), torch.tensor([[True]]), 2.0)
    logits = torch.tensor([[STUDENT]]).log()
    s = math.sqrt(0.25) / (math.sqrt(0.25) + math.sqrt(0.75))
    for temper, q in ((True, s), (False, 0.25)):
        loss = attention_distillation(logits, *arguments, temper_student=temper)
        expected = -p * math.log(q) - (1 - p) * math.log(1 - q)
        assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("strategy", ["best", "top-k"])
def test_a_perfect_student_has_the_minimum(strategy, temperature):
    """Its gradient is zero and any other student's loss is higher."""
    torch.manual_seed(0)
    teacher = torch.randn(2, 5, 3, 7).log_softmax(-1)
    teacher[0, :, 2] = teacher[0, :, 1]  # tied, so they agree
    mask = torch.tensor([5 * [True], [True, False, False, False, False]])
    weights = teacher_weights(ERRORS, strategy)
    chosen = weights.argmax(-1)
    logits = teacher[torch.arange(2), :, chosen].clone().requires_grad_()

    def loss(logits):
        return attention_distillation(logits, teacher, weights, mask, temperature)

    (gradient,) = torch.autograd.grad(loss(logits), logits)
    assert gradient.abs().max() < 1e-6
    for _ in range(5):
        assert loss(logits + 0.1 * torch.randn_like(logits)) > loss(logits)


def test_a_perfect_student_of_ctc():
    """One that is sure of what the teachers hear loses nothing."""
    path = torch.tensor([[1, 0, 2, 2, 0]])
    logits = 100 * torch.eye(3)[path]
    labels = greedy_labels(logits[0], 0)[None, :, None].expand(1, 2, 3)
    weights = teacher_weights(ERRORS[:1], "weighted")
    arguments = torch.tensor([5]), labels, torch.full((1, 3), 2), weights, 0
    assert ctc_distillation(logits, *arguments).item() == pytest.approx(0, abs=1e-5)
    assert ctc_distillation(torch.zeros(1, 5, 3), *arguments) > 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_padding_changes_nothing(strategy):
    """Two utterances together, garbage behind the shorter: the sum of both alone."""
    torch.manual_seed(1)
    lengths, frames = [4, 1], torch.tensor([6, 3])
    logits, ctc = torch.randn(2, 4, 5), torch.randn(2, 6, 5)
    teacher = torch.randn(2, 4, 3, 5).log_softmax(-1)
    labels = torch.randint(1, 5, (2, 3, 3))
    label_lengths = torch.tensor([[3, 2, 0], [1, 0, 1]])
    weights = teacher_weights(ERRORS, strategy)
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    logits[1, 1:], teacher[1, 1:], ctc[1, 3:] = torch.nan, torch.nan, 1e4
    together = attention_distillation(logits, teacher, weights, mask)
    ctc_together = ctc_distillation(ctc, frames, labels, label_lengths, weights, 0)
    alone = ctc_alone = 0
    for b, (u, t) in enumerate(zip(lengths, frames, strict=True)):
        row = slice(b, b + 1)
        alone += attention_distillation(
            logits[row, :u], teacher[row, :u], weights[row], mask[row, :u]
        )
        longest = label_lengths[b].max()
        ctc_alone += ctc_distillation(
            ctc[row, :t],
            frames[row],
            labels[row, :longest],
            label_lengths[row],
            weights[row],
            0,
        )
    assert_close(together, alone)
    assert_close(ctc_together, ctc_alone)


def test_gradients_stay_out_of_the_padding():
    logits = torch.zeros(1, 3, 2, requires_grad=True)
    teacher = torch.full((1, 3, 1, 2), torch.nan)
    teacher[:, 0] = math.log(0.5)
    mask = torch.tensor([[True, False, False]])
    attention_distillation(logits, teacher, torch.ones(1, 1), mask).backward()
    assert logits.grad.isfinite().all()


def test_nothing_at_all():
    """No real token, no label: 0 from the one, a student that hears nothing from both."""
    empty = torch.zeros(1, 2, dtype=torch.bool)
    teacher = torch.zeros(1, 2, 3, 4)
    weights = teacher_weights(ERRORS[:1], "average")
    assert attention_distillation(torch.zeros(1, 2, 4), teacher, weights, empty) == 0
    labels = torch.zeros(1, 0, 3, dtype=torch.long)
    silent = torch.zeros(1, 2, 4)
    silent[..., 0] = 50
    lengths = torch.zeros(1, 3, dtype=torch.long)
    loss = ctc_distillation(silent, torch.tensor([2]), labels, lengths, weights, 0)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert len(greedy_labels(silent[0], 0)) == 0


def test_labels_longer_than_the_student_count_as_nothing():
    labels = torch.tensor([[[1], [1]]])  # repeated: needs three frames
    arguments = torch.tensor([2]), labels, torch.tensor([[2]]), torch.ones(1, 1), 0
    assert ctc_distillation(torch.zeros(1, 2, 3), *arguments) == 0


def test_truncated_classes():
    """-inf log-posteriors are no mass, not NaN, at any temperature."""
    teacher = torch.tensor([[[[0.0, 0.0, -torch.inf]]]])
    for temperature in (0.5, 1.0, 4.0):
        loss = attention_distillation(
            torch.zeros(1, 1, 3),
            teacher,
            torch.ones(1, 1),
            torch.tensor([[True]]),
            temperature,
        )
        assert loss.item() == pytest.approx(math.log(3))
