"""Training losses: pure functions, one paper each, every one a sum.

Each loss is the sum over the tokens (or utterances) it is given, never a mean. The
training step divides by the number of target tokens over all ranks, so that the
gradient does not depend on how the tokens are spread over utterances and GPUs.
Inputs of any precision are computed in float32; float64 stays float64.

CTC is not here: `speechbrain.nnet.losses.ctc_loss(..., reduction="sum")` is such a sum.
It counts as 0 an utterance with fewer frames than tokens plus repeated tokens.
"""

from math import exp, log1p
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


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
    logits, targets = _flatten(logits, valid_mask), _flatten(targets, valid_mask)
    num_classes = logits.shape[-1]
    return F.cross_entropy(
        _at_least_float32(logits),
        targets,
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
    return (_at_least_float32(quantity) - target_lengths).abs().sum()


class ContrastiveOutput(NamedTuple):
    """What `contrastive_distillation` returns. Both fields are sums over the anchors,
    so one division by the number of tokens serves the loss and the accuracy."""

    loss: torch.Tensor
    correct: torch.Tensor


def contrastive_distillation(
    student,
    teacher,
    temperature=0.02,
    num_negatives=700,
    token_ids=None,
    exclude_same_token=False,
    exclude_eos_negatives=False,
    eos_index=None,
    gather_negatives=False,
    generator=None,
    chunk_size=2048,
):
    """Acoustic contrastive distillation: each student state must be closer to its own
    teacher state than to random teacher states of other tokens.

    InfoNCE (arXiv 1807.03748, eq. 4) from student to teacher, as HieraDist uses it
    (arXiv 2301.13003): with c_ij = cosine(s_i, e_j) / temperature and K_i the
    negatives drawn for token i, the loss is

        sum_i -log( exp(c_ii) / (exp(c_ii) + sum_{j in K_i} exp(c_ij)) )

    All cosines come from one matrix product, of which each row keeps its own random
    columns. Gathering the negatives instead, as the authors' code does, copies
    N x K x H numbers. Their code also draws from all N states and masks the anchor
    when it meets it; here the anchor is never drawn, and K is exact. Nor are states
    that equal it (transcripts said twice, letters that share the state of their word):
    no student can be closer to one than to the other.

    Arguments
    ---------
    student : torch.Tensor, [N, H], float
        Projected CIF vectors of the batch's real tokens, laid flat.
    teacher : torch.Tensor, [N, H], float
        Teacher states of the same tokens. They get no gradient.
    temperature : float
        Divides the cosines.
    num_negatives : int
        Negatives of each anchor, drawn without replacement. When there are no more
        teacher states than this, 80 % of their number is drawn instead.
    token_ids : torch.Tensor, [N], int64, optional
        Token of each row, needed by the two exclusions.
    exclude_same_token : bool
        Never draw a state of the anchor's own token (other ends of sentence included):
        such false negatives push apart states that mean nearly the same.
    exclude_eos_negatives : bool
        The same for anchors that are ends of sentence only.
    eos_index : int, optional
        End-of-sentence token, needed by `exclude_eos_negatives`.
    gather_negatives : bool
        Draw from the teacher states of all ranks. Every rank must call.
    generator : torch.Generator, optional
        Source of the draw, on the device of `student`. None: PyTorch's default one.
    chunk_size : int
        Anchors compared at a time. A batch of more is computed in several chunks,
        whose cosines are computed a second time in the backward pass, not stored.

    Returns
    -------
    loss : torch.Tensor, [], float32
        Sum over the anchors, in nats.
    correct : torch.Tensor, [], int64
        Number of anchors to which no negative is closer than the own teacher state:
        divided by N, the contrastive accuracy.

    Raises
    ------
    ValueError
        If the shapes disagree, or an exclusion lacks the tokens it compares.

    Example
    -------
    >>> teacher = torch.eye(4)
    >>> loss, correct = contrastive_distillation(teacher.clone(), teacher)
    >>> f"{loss:.4f}", correct.item()
    ('0.0000', 4)
    """
    _check_same_states(student, teacher)
    if exclude_same_token or exclude_eos_negatives:
        if token_ids is None or token_ids.shape != student.shape[:1]:
            given = None if token_ids is None else list(token_ids.shape)
            raise ValueError(
                f"token_ids {given} for {len(student)} student states: excluding "
                "negatives by token needs the token of every state"
            )
    if exclude_eos_negatives and eos_index is None:
        raise ValueError("exclude_eos_negatives=True needs eos_index, got None")

    candidates = teacher.detach()
    if gather_negatives:
        candidates = torch.cat([candidates, _rows_of_other_ranks(candidates)])
        if token_ids is not None:
            token_ids = torch.cat([token_ids, _rows_of_other_ranks(token_ids)])
    num_candidates = len(candidates)
    if num_candidates <= num_negatives:
        num_negatives = int(0.8 * num_candidates)

    # bfloat16 cosines near 1 lie 0.004 apart, a fifth of the temperature.
    with torch.autocast(student.device.type, enabled=False):
        # States of one group are never negatives of each other: equal ones, which keeps the
        # anchor's own out of the draw, and those of the tokens to exclude.
        groups = torch.unique(candidates, dim=0, return_inverse=True)[1][None]
        if exclude_same_token:
            groups = torch.cat([groups, token_ids[None]])
        elif exclude_eos_negatives:
            groups = groups.masked_fill(token_ids == eos_index, -1)
        # eps of the authors' code.
        student = F.normalize(_at_least_float32(student), dim=-1, eps=1e-6)
        candidates = F.normalize(candidates.to(student.dtype), dim=-1, eps=1e-6)
        own = torch.arange(len(student), device=student.device)
        loss, correct = 0, 0
        for anchors, columns in zip(
            student.split(chunk_size), own.split(chunk_size), strict=True
        ):
            negatives = _draw_negatives(groups, columns, num_negatives, generator)
            chunk = (anchors / temperature, candidates, columns, negatives)
            if len(student) > chunk_size:
                outcome = checkpoint(_info_nce, *chunk, use_reentrant=False)
            else:
                outcome = _info_nce(*chunk)
            loss, correct = loss + outcome.loss, correct + outcome.correct
    return ContrastiveOutput(loss, correct)


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
    _check_same_states(student, teacher)
    student = _at_least_float32(_flatten(student, valid_mask))
    teacher = _flatten(teacher, valid_mask).detach().to(student.dtype)
    if kind == "l2":
        return F.mse_loss(student, teacher, reduction="sum")
    if kind == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=-1)).sum()
    if kind == "l1_cosine":
        absolute_error = (student - teacher).abs().mean(-1)
        cosine = F.cosine_similarity(student, teacher, dim=-1)
        minimum = log1p(exp(-1))
        return (absolute_error - F.logsigmoid(cosine) - minimum).sum()
    raise ValueError(f"kind {kind!r}: expected 'l2', 'cosine' or 'l1_cosine'")


def _at_least_float32(x):
    """float64 stays, for gradcheck; everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def _flatten(x, valid_mask):
    """Real tokens of [B, U, ...], laid flat: [N, ...]. Selecting, not multiplying by
    the mask, keeps a NaN in the padding out of values and gradients."""
    if valid_mask.dtype != torch.bool or valid_mask.shape != x.shape[:2]:
        raise ValueError(
            f"valid_mask {list(valid_mask.shape)} {valid_mask.dtype} for a tensor "
            f"{list(x.shape)}: expected {list(x.shape[:2])} torch.bool"
        )
    return x[valid_mask]


def _check_same_states(student, teacher):
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


def _draw_negatives(groups, own, num_negatives, generator):
    """[len(own), M] bool, True at `num_negatives` random columns of each row, none in a
    group of its column `own` by any row of `groups` [G, M]; at all others where they
    are fewer."""
    same_group = (groups[:, own, None] == groups[:, None]).any(0)
    scores = torch.rand(
        same_group.shape, generator=generator, device=groups.device
    ).masked_fill_(same_group, -1)
    # Exact without sorting the rows: equal scores cannot add a negative, as they would
    # to a threshold on the scores.
    drawn = scores.topk(num_negatives, sorted=False).indices
    return torch.zeros_like(same_group).scatter_(1, drawn, True) & ~same_group


def _info_nce(anchors, candidates, own, negatives):
    """InfoNCE over rows: column `own` against the columns where `negatives` is True."""
    keep = negatives.scatter(1, own[:, None], True)
    logits = (anchors @ candidates.T).masked_fill(~keep, float("-inf"))
    loss = F.cross_entropy(logits, own, reduction="sum")
    with torch.no_grad():
        correct = (logits.gather(1, own[:, None]) >= logits).all(1).sum()
    return ContrastiveOutput(loss, correct)


def _rows_of_other_ranks(x):
    """Rows of `x` on all other ranks, in the order of the ranks; none when alone."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x[:0]
    length = torch.tensor([len(x)], device=x.device)
    lengths = [torch.empty_like(length) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, length)
    lengths = torch.cat(lengths).tolist()
    # gloo gathers equal shapes only.
    padded = x.new_zeros(max(lengths), *x.shape[1:])
    padded[: len(x)] = x
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded)
    return torch.cat(
        [
            rows[:length]
            for rank, (rows, length) in enumerate(zip(gathered, lengths, strict=True))
            if rank != dist.get_rank()
        ]
    )
