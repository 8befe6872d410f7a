"""Acoustic contrastive distillation: a loss over pairs of tokens and random others.

A sum over the anchors, like the losses of `cif_lobes.losses.recognition`.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from cif_lobes.losses.arguments import at_least_float32, check_same_states


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
        Draw from the teacher states of all ranks. Every rank must call, also with none.
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
    check_same_states(student, teacher)
    if exclude_same_token or exclude_eos_negatives:
        if token_ids is None or token_ids.shape != student.shape[:1]:
            given = None if token_ids is None else list(token_ids.shape)
            raise ValueError(
                f"token_ids {given} for {len(student)} student states: excluding "
                "negatives by token needs the token of every state"
            )
    if exclude_eos_negatives and eos_index is None:
        raise ValueError("exclude_eos_negatives=True needs eos_index, got None")

    if not (exclude_same_token or exclude_eos_negatives):
        token_ids = None
    candidates = teacher.detach()
    if gather_negatives:
        candidates, token_ids = _with_those_of_other_ranks(candidates, token_ids)
    num_candidates = len(candidates)
    if num_candidates <= num_negatives:
        num_negatives = int(0.8 * num_candidates)

    # bfloat16 cosines near 1 lie 0.004 apart, a fifth of the temperature.
    with torch.autocast(student.device.type, enabled=False):
        # States of one group are never negatives of each other: equal ones, which keeps the
        # anchor's own out of the draw, and those of the tokens to exclude.
        groups = _hash_rows(candidates)[None]
        if exclude_same_token:
            groups = torch.cat([groups, token_ids[None]])
        elif exclude_eos_negatives:
            groups = groups.masked_fill(token_ids == eos_index, -1)
        # eps of the authors' code.
        student = F.normalize(at_least_float32(student), dim=-1, eps=1e-6)
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


def _hash_rows(x):
    """[M] int64, equal for equal rows of `x` [M, H] and, by all odds, for no others.

    `torch.unique` would say the same, but wait for the GPU to know how many there are. A
    collision takes one negative away, no more.
    """
    x = x + 0.0  # -0.0 equals 0.0
    bits = x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
    # A polynomial modulo 2^64, with an odd base that spreads well (Knuth's MMIX).
    base = torch.full(x.shape[1:], 6364136223846793005, device=x.device)
    return (bits * base.cumprod(0)).sum(1)


def _with_those_of_other_ranks(*tensors):
    """Rows of each tensor, then those that the other ranks have of it, in their order.

    A tensor may be None. The CPU waits once for the GPU, to know how many rows there are.
    A rank that only repeats a batch at the end of an epoch lends its states as well: they
    are those of real tokens, and no anchor meets a state that equals its own.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensors
    length = torch.full((1,), len(tensors[0]), device=tensors[0].device)
    lengths = [torch.empty_like(length) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, length)
    lengths = torch.cat(lengths).tolist()

    def extend(x):
        # gloo gathers equal shapes only.
        padded = x.new_zeros(max(lengths), *x.shape[1:])
        padded[: len(x)] = x
        gathered = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(gathered, padded)
        rows = [r[:n] for r, n in zip(gathered, lengths, strict=True)]
        return torch.cat([x, *rows[: dist.get_rank()], *rows[dist.get_rank() + 1 :]])

    return [None if x is None else extend(x) for x in tensors]
