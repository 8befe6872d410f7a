"""Linguistic regression distillation: student states drawn to those of a teacher."""

from math import exp, log1p

import torch.nn.functional as F

from cif_lobes.losses.arguments import (
    at_least_float32,
    check_same_states,
    without_padding,
)


def regression_distillation(student, teacher, valid_mask, kind="l2"):
    """Linguistic regression distillation: student states must equal teacher states.

    Arguments
    ---------
    student : torch.Tensor, [B, U, H] or [B, U, L, H], float
        Student states projected to the teacher's width; L teacher layers, a head each.
    teacher : torch.Tensor, same shape as `student`, float
        Teacher states. They get no gradient.
    valid_mask : torch.Tensor, [B, U], bool
        True at real tokens.
    kind : str
        "l2": squared error summed over H (arXiv 2301.13003).
        "cosine": 1 - cosine.
        "l1_cosine": absolute error averaged over H, minus the log sigmoid of the cosine
        (DistilHuBERT, arXiv 2110.01900, eq. 1), plus a constant that makes the minimum
        0 and leaves the gradient as published.

    Returns
    -------
    loss : torch.Tensor, [], float32
        Sum over real tokens and layers; 0 when the student equals the teacher.

    Raises
    ------
    ValueError
        If the shapes disagree or `kind` is unknown.

    Example
    -------
    >>> import torch
    >>> student, teacher = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    >>> regression_distillation(student, teacher, torch.tensor([[True, False]]))
    tensor(3.)
    """
    check_same_states(student, teacher)
    student = at_least_float32(without_padding(student, valid_mask))
    teacher = without_padding(teacher, valid_mask).detach().to(student.dtype)
    if kind == "l2":
        return F.mse_loss(student, teacher, reduction="sum")
    cosine = F.cosine_similarity(student, teacher, dim=-1)
    if kind == "cosine":
        return without_padding(1 - cosine, valid_mask).sum()
    if kind == "l1_cosine":
        absolute_error = (student - teacher).abs().mean(-1)
        minimum = log1p(exp(-1))
        loss = absolute_error - F.logsigmoid(cosine) - minimum
        return without_padding(loss, valid_mask).sum()
    raise ValueError(f"kind {kind!r}: expected 'l2', 'cosine' or 'l1_cosine'")
