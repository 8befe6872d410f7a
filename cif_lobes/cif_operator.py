"""The plan of a CIF pass and the operator that executes it."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

_GRAIN = 2.0**-40
_MIN_SUM = 1e-6


class Plan(NamedTuple):
    valid: Tensor
    c: Tensor
    lengths: Tensor
    quantity: Tensor
    anchor: Tensor
    goal: Tensor
    gain: Tensor
    token: Tensor
    threshold: float


def make_plan(alpha, x_lengths, target_lengths, threshold, tail_threshold):
    valid = torch.arange(alpha.shape[1], device=alpha.device) < x_lengths[:, None]
    grains = torch.where(valid, alpha, 0.0).double().div_(_GRAIN).round_()
    quantity = grains.sum(1).mul_(_GRAIN)
    if target_lengths is None:
        c = grains.cumsum(1).mul_(_GRAIN / threshold)
        total = quantity / threshold
        whole = total.floor()
        rest = total - whole
        fires = rest > tail_threshold
        lengths = whole.nan_to_num(nan=-1.0, posinf=-1.0).long() + fires
        anchor = torch.where(fires, whole, torch.inf)
        goal = torch.ones_like(total)
        gain = 1.0 / torch.where(fires, rest, 1.0)
        above = whole[:, None]
        c = torch.where((c >= anchor[:, None]), above + (c - above) / torch.where(fires, rest, 1.0)[:, None], c)
        cap = lengths - fires.long()
    else:
        lengths = target_lengths
        usable = (quantity >= _MIN_SUM) & quantity.isfinite()
        grains = torch.where(usable[:, None], grains, valid)
        c = grains.cumsum(1)
        total = c[:, -1:].clamp(min=1.0)
        goal = lengths.double()
        c = c.div_(total).mul_(goal[:, None])
        anchor = torch.zeros_like(goal)
        gain = torch.where(usable, goal / (quantity/threshold), 0.0)
        cap = (lengths - 1).clamp(min=0)
    token = torch.minimum(c.floor(), cap[:, None]).long()
    return Plan(valid, c, lengths, quantity, anchor, goal, gain, token, threshold)


class Staircase(NamedTuple):
    frames: Tensor
    tokens: Tensor
    weights: Tensor
    frame_offsets: Tensor
    token_offsets: Tensor
    boundaries: Tensor


def make_staircase(plan, x_lengths):
    valid, c, lengths, token = plan.valid, plan.c, plan.lengths, plan.token
    B, T = c.shape
    device = c.device
    before = pad(token[:, :-1], (1, 0))
    counts = torch.minimum(token, lengths[:, None] - 1).sub_(before).add_(1).mul_(valid)
    frame_offsets = pad(counts.flatten().cumsum(0), (1, 0))
    host = torch.cat([x_lengths, lengths, frame_offsets[-1:]]).tolist()
    N = host[-1]
    U = max(host[B:-1])

    frames = torch.repeat_interleave(counts.flatten(), output_size=N)
    starts = frame_offsets[:-1]
    step = torch.arange(N, device=device) - starts.index_select(0, frames)
    rows = torch.arange(0, B * U, U, device=device) if U else torch.zeros(B, dtype=torch.long, device=device)
    tokens = step + (before + rows[:, None]).flatten().index_select(0, frames)
    low = pad((c - token)[:, :-1], (1, 0)).flatten().index_select(0, frames)
    high = (c - before).flatten().index_select(0, frames)
    step = step.double()
    weights = torch.minimum(high, step + 1.0).sub_(torch.maximum(low, step))

    u = torch.arange(U + 1, device=device)
    level = torch.minimum(u, lengths[:, None]).double()
    reach = torch.searchsorted(c, level)
    at = reach.clamp(max=T - 1)
    end = c.gather(1, at)
    start = pad(c[:, :-1], (1,0)).gather(1, at)
    boundaries = at + (level - start).div_((end - start).clamp_(min=1e-300))
    boundaries = torch.minimum(boundaries, x_lengths[:, None]).float()
    edges = frame_offsets[::T]
    live = torch.where(x_lengths > 0, lengths, 0)
    token_offsets = torch.where(
        u < live[:, None], edges[:-1, None] + reach + u, edges[1:, None]
    )[:, :U]
    token_offsets = torch.cat([token_offsets.flatten(), frame_offsets[-1:]])
    return Staircase(frames, tokens, weights, frame_offsets, token_offsets, boundaries)


def _bag(table, rows, offsets, weights):
    return torch.embedding_bag(table, rows, offsets, False, 0, False, weights, True)[0]


class Integrate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, alpha, plan, stairs):
        B, T, D = x.shape
        U = stairs.boundaries.shape[1] - 1
        ctx.save_for_backward(x)
        ctx.plan = plan
        ctx.stairs = stairs
        ctx.alpha_dtype = alpha.dtype
        work = x.flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))
        weights = stairs.weights
        if plan.threshold != 1.0:
            weights = weights * plan.threshold
        ctx.weights = weights.to(work.dtype)
        out = _bag(work, stairs.frames, stairs.token_offsets, ctx.weights)
        return out.view(B, U, D).to(x.dtype), (plan.quantity / plan.threshold).float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_quantity):
        plan, stairs = ctx.plan, ctx.stairs
        (x,) = ctx.saved_tensors
        B, T, D = x.shape
        work = x.flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))
        g = grad.to(work.dtype).contiguous().flatten(0, 1)
        grad_x = grad_alpha = None
        if ctx.needs_input_grad[0]:
            grad_x = _bag(g, stairs.tokens, stairs.frame_offsets, ctx.weights)
            grad_x = grad_x.view(B, T, D).to(x.dtype)
        if ctx.needs_input_grad[1]:
            dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                g, work, stairs.frames, stairs.token_offsets, stairs.tokens, 0
            )
            drop = dots - dots.roll(-1)
            last = (stairs.frame_offsets[1:] - 1).clamp_(min=0)
            live = (plan.token < plan.lengths[:, None])
            live[:, :-1] &= plan.valid[:, 1:]
            live[:, -1] = False
            dc = drop.index_select(0, last).view(B, T).double()
            dc = torch.where(live, dc, 0.0)
            above = plan.c - plan.anchor[:, None]
            slope = torch.where(above >= 0, plan.gain[:, None], 1.0)
            pull = (dc * above.clamp_(min=0)).sum(1) * (plan.gain / plan.goal.clamp(min=1))
            rest = grad_quantity / plan.threshold - pull
            grad_alpha = (dc * slope).flip(1).cumsum(1).flip(1).add_(rest[:, None])
            grad_alpha = grad_alpha.mul_(plan.valid).to(ctx.alpha_dtype)
        return grad_x, grad_alpha, None, None
