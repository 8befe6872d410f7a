"""Integration of frames into tokens, forward and backward, in closed form.

With r[t] the token at the end c[t] of frame t, W[u, t] the weight of frame t in token u
and g[u] the gradient of token u:

    out[u]   = threshold * sum_t W[u, t] x[t]
    dL/dx[t] = threshold * sum_u W[u, t] g[u]
    dL/dc[t] = threshold * (<g[r[t]], x[t]> - <g[r[t]], x[t + 1]>)

The last one is the right-hand derivative where c[t] is a whole number.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from cif_lobes.cif.plan import token_of_edge


class Staircase(NamedTuple):
    """The N pairs (frame, token) that can overlap, sorted by frame and token at once.

    From one pair to the next either the frame or the token advances by one. So the
    pairs of a frame are neighbours, and so are those of a token, and U tokens that end
    in the T-th frame have T + U - 1 pairs. One list serves all three products of the
    operator as sums over neighbours: no atomics, no copy of the frames.
    """

    frames: Tensor  # [N] int64: rows of x laid flat
    tokens: Tensor  # [N] int64: rows of the output laid flat
    weights: Tensor  # [N]: threshold times the overlap
    frame_offsets: Tensor  # [B * T + 1] int64: first pair of each frame, then N
    token_offsets: Tensor  # [B * U + 1] int64: first pair of each token, then N


def make_staircase(plan, edges, num_pairs, dtype):
    """List the pairs of a plan; `edges` are the first ones at or behind 0..U."""
    B, T = plan.is_paired.shape
    U = edges.shape[1] - 1
    device = edges.device
    token = token_of_edge(plan)
    at_start, row = token[:, :-1], token.long()

    # From the token at the start of a frame to the one at its end, which are the same
    # behind the last boundary.
    counts = (row[:, 1:] - row[:, :-1]).add_(plan.is_paired).flatten()
    frame_offsets = pad(counts.cumsum(0), (1, 0))
    frames = torch.repeat_interleave(counts, output_size=num_pairs)

    def by_pair(per_frame):
        return per_frame.flatten().index_select(0, frames)

    # The n-th pair of a frame is with the n-th token after the one at its start; from
    # there, the frame covers [start, end] and this token [n, n + 1].
    n = torch.arange(num_pairs, device=device).sub_(by_pair(frame_offsets[:-1]))
    row += torch.arange(B, device=device).mul_(U)[:, None]
    tokens = by_pair(row[:, :-1]).add_(n)
    start = by_pair(plan.c[:, :-1] - at_start)
    end = by_pair(plan.c[:, 1:] - at_start)
    n = n.double()
    overlap = torch.minimum(end, n + 1.0).sub_(torch.maximum(start, n))

    # The pair of frame t and token u is number t + u of its utterance; a token behind
    # the last one begins where the next utterance does.
    bounds = frame_offsets[::T]
    first = (edges[:, :-1] - 1).clamp_(min=0).add_(torch.arange(U, device=device))
    first = torch.minimum(first.add_(bounds[:-1, None]), bounds[1:, None]).flatten()
    return Staircase(
        frames=frames,
        tokens=tokens,
        weights=overlap.mul_(plan.threshold).to(dtype),
        frame_offsets=frame_offsets,
        token_offsets=torch.cat([first, bounds[-1:]]),
    )


class Integrate(torch.autograd.Function):
    """(x [B, T, D], alpha [B, T]) -> (embeddings [B, U, D], quantity [B]), N > 0."""

    @staticmethod
    def forward(ctx, x, alpha, plan, stairs):
        ctx.save_for_backward(x)
        ctx.plan, ctx.stairs, ctx.alpha_dtype = plan, stairs, alpha.dtype
        out = _bag_sums(_rows(x), stairs.frames, stairs.token_offsets, stairs.weights)
        out = out.view(x.shape[0], -1, x.shape[2]).to(x.dtype)
        return out, plan.quantity.squeeze(1).float()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_quantity):
        (x,) = ctx.saved_tensors
        s = ctx.stairs
        g = _rows(grad)
        grad_x = grad_alpha = None
        if ctx.needs_input_grad[0]:
            grad_x = _bag_sums(g, s.tokens, s.frame_offsets, s.weights)
            grad_x = grad_x.view(x.shape).to(x.dtype)
        if ctx.needs_input_grad[1]:
            dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                g, _rows(x), s.frames, s.token_offsets, s.tokens, 0
            )
            # The last pair of a frame less the first one of the next frame.
            last = (s.frame_offsets[1:] - 1).clamp_(min=0)
            fall = (dots - dots.roll(-1)).index_select(0, last).view(x.shape[:2])
            grad_alpha = _alpha_gradient(ctx.plan, fall, grad_quantity)
            grad_alpha = grad_alpha.to(ctx.alpha_dtype)
        return grad_x, grad_alpha, None, None


def _rows(x):
    """[B, L, D] laid flat, in a precision fit for weights and their gradient."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).contiguous().flatten(0, 1)


def _bag_sums(table, rows, offsets, weights):
    """Weighted sum of the rows in each bag."""
    return torch.embedding_bag(table, rows, offsets, False, 0, False, weights, True)[0]


def _alpha_gradient(plan, fall, grad_quantity):
    """Through c, the scaling and the cumulative sum: [B, T] float64.

    `threshold` cancels out of all but the quantity: out has it as a factor, c as a
    divisor.
    """
    # The end of the last frame never moves: it is scaled back or its tail is dropped.
    fall = torch.where(pad(plan.valid_mask[:, 1:], (0, 1)), fall, 0.0).double()
    above = plan.c[:, 1:] - plan.anchor
    gain = (plan.lengths - plan.anchor).div_(plan.span)
    # Everything above the anchor is pulled back when the end moves on.
    pull = (fall * above.clamp(min=0.0)).sum(1, keepdim=True).div_(plan.span)
    rate = fall.mul_(torch.where(above >= 0.0, gain, 1.0))
    total = grad_quantity.double()[:, None].div(plan.threshold).sub_(pull)
    return rate.flip(1).cumsum(1).flip(1).add_(total).mul_(plan.valid_mask)
