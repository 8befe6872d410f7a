"""Distillation from several teachers of joint CTC-attention recognition
(Gao et al., https://arxiv.org/abs/2005.09310): pure functions, every loss a sum.

Each sentence chooses its teachers by their error rates on it, from which follow weights
that add up to 1. Both losses are then weighted means over the teachers:

    attention   - sum_u sum_v p_teacher(v | u) log p_student(v | u)
    CTC         - log P_student(what the teacher's CTC recognises)

The weights are those of the sentence, not of its batch as in the authors' code, so that
the loss of an utterance does not depend on what it is batched with.
"""

import torch
import torch.nn.functional as F

STRATEGIES = ("average", "best", "top-k", "weighted")


def teacher_weights(error_rates, strategy):
    """How much each teacher counts for each utterance.

    Arguments
    ---------
    error_rates : torch.Tensor, [B, K], float
        Of K teachers on each utterance, in %, 100 at most.
    strategy : str
        "average": all alike. "best": the teacher of the lowest error rate alone, the
        first of several (top-1). "top-k": all that share the lowest error rate.
        "weighted": softmax over the teachers of 100 - error rate.

    Returns
    -------
    torch.Tensor, [B, K], float32
        Each row adds up to 1.

    Raises
    ------
    ValueError
        If the strategy is another word.

    Example
    -------
    >>> error_rates = torch.tensor([[20.0, 10.0, 10.0]])
    >>> teacher_weights(error_rates, "best")
    tensor([[0., 1., 0.]])
    >>> teacher_weights(error_rates, "top-k")
    tensor([[0.0000, 0.5000, 0.5000]])
    """
    error_rates = error_rates.float()
    if strategy == "average":
        return torch.full_like(error_rates, 1 / error_rates.shape[-1])
    if strategy == "best":
        return F.one_hot(error_rates.argmin(-1), error_rates.shape[-1]).float()
    if strategy == "top-k":
        lowest = error_rates == error_rates.amin(-1, keepdim=True)
        return lowest / lowest.sum(-1, keepdim=True)
    if strategy == "weighted":
        return (100 - error_rates).softmax(-1)
    raise ValueError(f"strategy is {strategy!r}, must be one of {STRATEGIES}")


def attention_distillation(
    logits, teacher, weights, valid_mask, temperature=1.0, temper_student=True
):
    """Cross-entropy between the teachers' token posteriors and the student's.

    Its minimum over the student is the entropy of the teachers' mixture, at a student
    that equals the mixture.

    Arguments
    ---------
    logits : torch.Tensor, [B, U, V], float
        The student's, before the softmax.
    teacher : torch.Tensor, [B, U, K, V], float
        Log-posteriors of K teachers, given the true tokens before. -inf for a class
        that was truncated. They get no gradient.
    weights : torch.Tensor, [B, K], float
        From `teacher_weights`.
    valid_mask : torch.Tensor, [B, U], bool
        True at real tokens.
    temperature : float
        Divides the teachers' log-posteriors, which are normalised again.
    temper_student : bool
        Whether it divides the student's logits, too (not in the authors' code).

    Returns
    -------
    torch.Tensor, [], float32
        Sum over the real tokens, in nats.

    Example
    -------
    >>> teacher = torch.tensor([[[[0.5, 0.5], [0.9, 0.1]]]]).log()
    >>> weights, mask = torch.tensor([[0.5, 0.5]]), torch.tensor([[True]])
    >>> attention_distillation(torch.zeros(1, 1, 2), teacher, weights, mask)
    tensor(0.6931)
    """
    teacher = (teacher[valid_mask].detach().float() / temperature).softmax(-1)
    owner = valid_mask.nonzero()[:, 0]
    mixture = torch.einsum("nk,nkv->nv", weights[owner], teacher)
    student = _log_softmax(logits[valid_mask], temperature, temper_student)
    return -(mixture * student).sum()


def ctc_distillation(
    logits,
    x_lengths,
    labels,
    label_lengths,
    weights,
    blank_index,
    temperature=1.0,
    temper_student=True,
):
    """CTC loss of the student against what the teachers' CTC outputs recognise.

    What needs more frames than the student has counts as 0.

    Arguments
    ---------
    logits : torch.Tensor, [B, T, V], float
        The student's, before the softmax.
    x_lengths : torch.Tensor, [B], int64
        Frames of each utterance.
    labels : torch.Tensor, [B, L, K], int64
        What each teacher recognises (`greedy_labels`), padded with anything.
    label_lengths : torch.Tensor, [B, K], int64
        Labels of each; 0 for a teacher that hears nothing but silence.
    weights : torch.Tensor, [B, K], float
        From `teacher_weights`. A teacher of weight 0 costs nothing.
    blank_index : int
        Class of the blank.
    temperature : float
        Divides the student's logits if `temper_student`. The labels do not depend
        on it.
    temper_student : bool
        False as in the authors' code.

    Returns
    -------
    torch.Tensor, [], float32
        Sum over the utterances, in nats.
    """
    utterance, teacher = weights.nonzero(as_tuple=True)
    log_probs = _log_softmax(logits, temperature, temper_student)
    losses = F.ctc_loss(
        log_probs[utterance].transpose(0, 1),
        labels[utterance, :, teacher],
        x_lengths[utterance],
        label_lengths[utterance, teacher],
        blank=blank_index,
        reduction="none",
        zero_infinity=True,
    )
    return (weights[utterance, teacher] * losses).sum()


def greedy_labels(log_posteriors, blank_index):
    """What CTC posteriors say: the best class of each frame, repetitions and blanks out.

    Arguments
    ---------
    log_posteriors : torch.Tensor, [T, V], float
    blank_index : int

    Returns
    -------
    torch.Tensor, [L], int64
        L at most T, may be 0.

    Example
    -------
    >>> greedy_labels(torch.eye(3)[[1, 1, 0, 1, 2]], blank_index=0)
    tensor([1, 1, 2])
    """
    best = log_posteriors.argmax(-1).unique_consecutive()
    return best[best != blank_index]


def _log_softmax(logits, temperature, temper_student):
    """The student's log-posteriors in float32."""
    return (logits.float() / (temperature if temper_student else 1)).log_softmax(-1)
