"""The plan of a CIF pass: how many tokens fire, when, and from which frames.

A plan depends on the weights alone, never on the features, and is computed in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

# Weights are rounded to multiples of 2^-40 before they are summed. Such sums are exact
# in float64 (below 8192), so they do not depend on the order of summation: an utterance
# fires alike alone or in any batch, on a CPU or a GPU.
GRAIN = 2.0**-40

# Below this sum of weights there is nothing to scale to a target length.
MIN_MASS = 1e-6


class Plan(NamedTuple):
    """Positions of the frames of a batch on the axis of tokens.

    Frame t covers [c[t], c[t + 1]], token u covers [u, u + 1]; what they share is the
    weight of the frame in the token. Above `anchor` the positions were stretched to end
    at a whole number: c = anchor + (clock - anchor) / span * (lengths - anchor).
    """

    c: Tensor  # [B, T + 1] float64: edges of the frames, in tokens, from 0 to lengths
    clock: Tensor  # [B, T + 1] float64: the same before the tail is stretched
    lengths: Tensor  # [B, 1] int64: number of tokens
    quantity: Tensor  # [B, 1] float64: sum of the unscaled weights, in thresholds
    anchor: Tensor  # [B, 1] float64, in tokens
    span: Tensor  # [B, 1] float64, in thresholds; inf if the end does not count
    valid_mask: Tensor  # [B, T] bool
    is_paired: Tensor  # [B, T] bool: frames that begin before the last boundary
    is_negative: Tensor  # [B, 1] bool: utterances with a negative weight
    threshold: float


def make_plan(alpha, x_lengths, target_lengths, threshold, tail_threshold):
    """Place the frames on the axis of tokens; the arguments are those of `cif`."""
    x_lengths = x_lengths[:, None]
    valid_mask = torch.arange(alpha.shape[1], device=alpha.device) < x_lengths
    # `where`, not a product: padded frames may hold NaN.
    grains = torch.where(valid_mask, alpha, 0.0).double().div_(GRAIN).round_()
    if target_lengths is None:
        clock = pad(grains.cumsum(1), (1, 0)).div_(threshold / GRAIN)
        quantity = clock[:, -1:]
        anchor = quantity.floor()
        tail = quantity - anchor
        fires = tail > tail_threshold
        lengths = anchor.nan_to_num(nan=-1.0, posinf=-1.0).long() + fires
        # Dividing by inf drops the tail: its frames stay at the end of the last token.
        span = torch.where(fires, tail, torch.inf)
        above = (clock - anchor).clamp_(min=0.0)
        c = torch.minimum(clock, anchor).add_(above.div_(span))
    else:
        lengths = target_lengths[:, None]
        mass = grains.sum(1, keepdim=True)
        # False for NaN, too: the loss then shows it, through the quantity.
        is_scalable = (mass >= MIN_MASS / GRAIN) & (mass < torch.inf)
        grains = torch.where(is_scalable, grains, valid_mask)
        quantity = mass.div_(threshold / GRAIN)
        anchor = torch.zeros_like(quantity)
        span = torch.where(is_scalable, quantity, torch.inf)
        c = pad(grains.cumsum(1), (1, 0))
        # Dividing first makes the last position exactly the target.
        c = c.div_(c[:, -1:].clamp(min=1.0)).mul_(lengths)
        clock = c
    return Plan(
        c=c,
        clock=clock,
        lengths=lengths,
        quantity=quantity,
        anchor=anchor,
        span=span,
        valid_mask=valid_mask,
        is_paired=clock[:, :-1] < torch.minimum(lengths, clock[:, -1:]),
        is_negative=(grains < 0).any(1, keepdim=True),
        threshold=threshold,
    )


def token_of_edge(plan):
    """Token that receives what follows each edge of a frame: [B, T + 1] float64.

    At and behind the last boundary it is the last token: nothing follows.
    """
    last = (plan.lengths - 1).clamp_(min=0)
    return torch.minimum(plan.c.floor(), last)


def boundary_positions(plan, num_tokens):
    """Boundaries 0..U on the clock, repeating the last one: [B, U + 1] float64."""
    tokens = torch.arange(num_tokens + 1, device=plan.c.device)
    # A token fired by the tail ends where its weights do.
    return torch.minimum(torch.minimum(tokens, plan.lengths), plan.clock[:, -1:])


def boundary_times(plan, positions, edges):
    """Times of the boundaries within the frames, in frames: [B, U + 1] float32.

    `edges` is the first edge at or behind each position; the weight of a frame is
    taken to arrive at a constant rate.
    """
    after = plan.clock.gather(1, edges)
    before = plan.clock.gather(1, (edges - 1).clamp_(min=0))
    overshoot = (after - positions).div_((after - before).clamp_(min=GRAIN * GRAIN))
    return (edges - overshoot).float()
