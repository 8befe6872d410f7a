"""CIF over a stream: frames in as they come, tokens out as soon as they fire.

The decisions are those of `cif` over the whole utterance, bit by bit and whatever the
chunks: weights are summed as multiples of 2^-40, exactly, so where a chunk ends leaves
no trace. This is the unscaled mode of inference; scaling to a number of tokens takes
the sum of all weights and stays in training.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from cif_lobes.cif.checks import check_inputs
from cif_lobes.cif.plan import GRAIN


class Fires(NamedTuple):
    """What a chunk fires; U may be 0."""

    embeddings: Tensor
    """torch.Tensor, [U, D], dtype of x: tokens."""
    boundaries: Tensor
    """torch.Tensor, [U + 1], float32: token u lasts from boundary u to u + 1, in
    encoder frames since the beginning of the utterance."""


class CIFStream:
    """Integrates the chunks of one utterance.

    Carries the sum of all weights, and of the token that has not fired yet the sum of
    its frames so far: no more than that, however long the utterance. Tokens and
    boundaries have the bits of `cif`, but for the token that `finish` may fire: it is
    divided by the remainder as a whole, not frame by frame, and equals that of `cif` up
    to rounding.

    Arguments
    ---------
    threshold : float, > 0
        Sum of weights that fires a token.
    tail_threshold : float, >= 0
        Remainder that fires one more token at the end, as a fraction of `threshold`.

    Example
    -------
    >>> x = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    >>> alpha = torch.tensor([0.5, 0.75, 0.5, 1.0])
    >>> stream = CIFStream()
    >>> stream.push(x[:2], alpha[:2]).embeddings.tolist()
    [[1.5]]
    >>> stream.push(x[2:], alpha[2:]).embeddings.tolist()
    [[4.5]]
    >>> stream.finish()
    Fires(embeddings=tensor([[8.]]), boundaries=tensor([3.2500, 4.0000]))
    """

    def __init__(self, threshold=1.0, tail_threshold=0.5):
        self.threshold = threshold
        self.tail_threshold = tail_threshold
        self.grains = 0.0  # sum of all weights, in grains: a whole number
        self.frames = 0  # encoder frames so far
        self.last_rise = 0  # how many of them it took to reach this sum
        self.boundary = torch.zeros(1)  # last boundary, in frames
        self.partial = None  # [1, D]: the token that has not fired, so far
        self.dtype = None  # of x

    def push(self, x, alpha):
        """Integrate the next frames.

        Arguments
        ---------
        x : torch.Tensor, [T, D], float
            Encoder frames; T may be 0.
        alpha : torch.Tensor, [T], float32 or float64, >= 0
            Weight of each frame.

        Returns
        -------
        Fires

        Raises
        ------
        TypeError
            If `alpha` is in half precision.
        ValueError
            If shapes disagree, or weights are negative or not finite.
        """
        lengths = torch.tensor([len(x)])
        check_inputs(
            x[None], alpha[None], lengths, None, self.threshold, self.tail_threshold
        )
        grains = alpha.detach().double().div(GRAIN).round_()
        if not ((grains >= 0) & (grains < torch.inf)).all():
            raise ValueError(
                f"chunk after encoder frame {self.frames}: alpha is negative or not "
                "finite. No sigmoid? Or look for NaN in the encoder's output"
            )
        sums = pad(grains.cumsum(0), (1, 0)).add_(self.grains)
        clock = sums.div(self.threshold / GRAIN)
        base = clock[0].floor()
        num_fires = int(clock[-1].floor() - base)
        ends = self._end_times(clock, base + 1 + torch.arange(num_fires).to(clock))
        boundaries = torch.cat([self.boundary.to(ends), ends])
        sums_of_tokens = self._integrate(x, clock - base, num_fires)

        rise = int(torch.searchsorted(clock, clock[-1:]))
        self.last_rise = self.frames + rise if rise else self.last_rise
        self.grains = sums[-1].item()
        self.frames += len(x)
        self.boundary, self.partial = boundaries[-1:], sums_of_tokens[-1:]
        self.dtype = x.dtype
        return Fires(sums_of_tokens[:-1].to(x.dtype), boundaries)

    def finish(self):
        """Fire what remains if it is above `tail_threshold`; the utterance has ended.

        There must have been a chunk, if only an empty one.

        Returns
        -------
        Fires
            One token or none. The stream is used up: the next utterance takes another.
        """
        clock = self.grains / (self.threshold / GRAIN)
        tail = clock % 1.0
        if tail <= self.tail_threshold:
            return Fires(self.partial[:0].to(self.dtype), self.boundary)
        end = torch.full_like(self.boundary, self.last_rise)
        embeddings = (self.partial / tail).to(self.dtype)
        return Fires(embeddings, torch.cat([self.boundary, end]))

    def _end_times(self, clock, positions):
        """When the clock passes the positions, in frames: [U] float32."""
        edges = torch.searchsorted(clock, positions)
        after, before = clock[edges], clock[edges - 1]
        overshoot = (after - positions) / (after - before)
        return (edges + self.frames - overshoot).float()

    def _integrate(self, x, c, num_fires):
        """Sums of the tokens that fire and of the next one, so far: [U + 1, D].

        Frame t covers [c[t], c[t + 1]], token u covers [u, u + 1]. Pairs that overlap
        are sorted by frame and token, and the pair of t and u is number t + u. What was
        integrated before is frame 0, of weight 1: so it is summed first, as in `cif`.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        before = x.new_zeros(1, x.shape[1]) if self.partial is None else self.partial
        x = torch.cat([before.to(x.device, dtype), x.to(dtype)])
        c = pad(c, (1, 0))
        frames = torch.repeat_interleave(c.floor().long().diff() + 1)
        tokens = torch.arange(len(frames), device=x.device) - frames
        overlap = torch.minimum(c[frames + 1], tokens + 1.0)
        overlap -= torch.maximum(c[frames], tokens)
        weights = overlap.mul_(self.threshold).to(dtype)
        weights[0] = 1.0
        offsets = torch.searchsorted(
            tokens, torch.arange(num_fires + 1, device=x.device)
        )
        return torch.nn.functional.embedding_bag(
            frames, x, offsets, mode="sum", per_sample_weights=weights
        )
