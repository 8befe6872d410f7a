"""Training losses: pure functions, one paper each, every one a sum.

Each loss is the sum over the tokens (or utterances) it is given, never a mean. The
training step divides by the number of target tokens over all ranks, so that the
gradient does not depend on how the tokens are spread over utterances and GPUs.
Inputs of any precision are computed in float32; float64 stays float64.

None reads a number from a GPU, so that the CPU need not wait for it; CTC is PyTorch's,
which waits once in each direction.
"""

from math import exp, log1p

import torch
import torch.nn.functional as F


def label_smoothed_ce(logits, targets, valid_mask, smoothing=0.1):
    """Cross-entropy against a target that keeps 1 - smoothing of the probability
    and spreads the rest evenly over the V - 1 other classes.

    Arguments
    ---------
    logits : torch.Tensor, [B, U, V], float
        Scores before the softmax.
    targets : torch.Tensor, [B, U], int64
        Class of each token; any value where it is padding.
    valid_mask : torch.Tensor, [B, U], bool
        True at real tokens.
    smoothing : float, in [0, 1)
        Probability taken from the target (arXiv 1512.00567, section 7).

    Returns
    -------
    loss : torch.Tensor, [], float32
        Sum over the real tokens, in nats.

    Raises
    ------
    ValueError
        If the shapes of `logits`, `targets` and `valid_mask` disagree.

    Example
    -------
    >>> logits = torch.tensor([[[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]]])
    >>> mask = torch.tensor([[True, False]])
    >>> label_smoothed_ce(logits, torch.tensor([[2, 0]]), mask)
    tensor(1.0986)
    """
    logits = _without_padding(logits, valid_mask)
    num_classes = logits.shape[-1]
    ignored = -100
    return F.cross_entropy(
        at_least_float32(logits).flatten(0, 1),
        _without_padding(targets, valid_mask, ignored).flatten(),
        ignore_index=ignored,
        reduction="sum",
        # PyTorch spreads the mass over all V classes, the target among them.
        label_smoothing=smoothing * num_classes / (num_classes - 1),
    )


def quantity_loss(quantity, target_lengths):
    """Distance between the sum of the CIF weights and the number of tokens
    (arXiv 1905.11235, quantity loss).

    Arguments
    ---------
    quantity : torch.Tensor, [B], float
        Sum of the unscaled weights of each utterance, in tokens.
    target_lengths : torch.Tensor, [B], int64
        Target length in tokens, end of sentence included.

    Returns
    -------
    loss : torch.Tensor, [], float32
        Sum over the utterances of |quantity - target length|, in tokens.

    Raises
    ------
    ValueError
        If the two do not hold one number per utterance.

    Example
    -------
    >>> quantity_loss(torch.tensor([2.5, 4.0]), torch.tensor([3, 4]))
    tensor(0.5000)
    """
    if quantity.shape != target_lengths.shape:
        raise ValueError(
            f"quantity {list(quantity.shape)} and target_lengths "
            f"{list(target_lengths.shape)}: expected [B] for both"
        )
    return (at_least_float32(quantity) - target_lengths).abs().sum()


def ctc_loss(log_probs, targets, x_lengths, target_lengths, blank_index):
    """Connectionist temporal classification (Graves et al., ICML 2006).

    Arguments
    ---------
    log_probs : torch.Tensor, [B, T, V], float
        Log-posteriors of each frame.
    targets : torch.Tensor, [B, U], int64
        Padded as you like.
    x_lengths, target_lengths : torch.Tensor, [B], int64
        Of each utterance, on the CPU: elsewhere PyTorch copies them there and waits.
    blank_index : int
        Class of the blank.

    Returns
    -------
    loss : torch.Tensor, []
        Sum over the utterances, in nats. One with fewer frames than tokens plus repeated
        tokens counts as 0: no path spells it.

    Example
    -------
    >>> log_probs = torch.zeros(1, 3, 4).log_softmax(-1)
    >>> targets, length = torch.tensor([[1, 2]]), torch.tensor
    >>> ctc_loss(log_probs, targets, length([3]), length([2]), 0)  # 5 of 64 paths
    tensor(2.5494)
    """
    return F.ctc_loss(
        log_probs.transpose(0, 1),
        targets,
        x_lengths,
        target_lengths,
        blank_index,
        reduction="sum",
        zero_infinity=True,
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
    >>> student, teacher = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    >>> regression_distillation(student, teacher, torch.tensor([[True, False]]))
    tensor(3.)
    """
    check_same_states(student, teacher)
    student = at_least_float32(_without_padding(student, valid_mask))
    teacher = _without_padding(teacher, valid_mask).detach().to(student.dtype)
    if kind == "l2":
        return F.mse_loss(student, teacher, reduction="sum")
    cosine = F.cosine_similarity(student, teacher, dim=-1)
    if kind == "cosine":
        return _without_padding(1 - cosine, valid_mask).sum()
    if kind == "l1_cosine":
        absolute_error = (student - teacher).abs().mean(-1)
        minimum = log1p(exp(-1))
        loss = absolute_error - F.logsigmoid(cosine) - minimum
        return _without_padding(loss, valid_mask).sum()
    raise ValueError(f"kind {kind!r}: expected 'l2', 'cosine' or 'l1_cosine'")


def at_least_float32(x):
    """float64 stays, for gradcheck; everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def _without_padding(x, valid_mask, value=0):
    """[B, U, ...] with `value` at padded tokens. Replacing, not multiplying by the mask,
    keeps a NaN there out of values and gradients."""
    if valid_mask.dtype != torch.bool or valid_mask.shape != x.shape[:2]:
        raise ValueError(
            f"valid_mask {list(valid_mask.shape)} {valid_mask.dtype} for a tensor "
            f"{list(x.shape)}: expected {list(x.shape[:2])} torch.bool"
        )
    valid_mask = valid_mask.view(*valid_mask.shape, *[1] * (x.dim() - 2))
    return x.masked_fill(~valid_mask, value)


def check_same_states(student, teacher):
    """Refuse a teacher whose states cannot be paired one to one with the student's."""
    if student.shape == teacher.shape:
        return
    message = f"student states {list(student.shape)}, teacher {list(teacher.shape)}: "
    token_axis = 0 if student.dim() == 2 else 1
    num_tokens, num_states = student.shape[token_axis], teacher.shape[token_axis]
    if num_tokens != num_states:
        raise ValueError(
            f"{message}{num_states} teacher states for {num_tokens} tokens. The "
            "teacher cache was built with another tokenizer or from other transcripts. "
            "Run: python extract_teacher.py verify"
        )
    raise ValueError(
        f"{message}expected equal shapes. Give the distillation head the width of the "
        "teacher and one output per teacher layer"
    )
