"""Continuous integrate-and-fire (CIF): from encoder frames to one vector per token.

Dong and Xu, "CIF: Continuous Integrate-and-Fire for End-to-End Speech Recognition",
ICASSP 2020, https://arxiv.org/abs/1905.11235. Every frame has a weight, alpha. Weights
accumulate; each time the accumulator passes the threshold, a token fires: the sum of
its frames, weighted, with the frame at the boundary shared between two tokens.

Here the loop of the paper is a sum in closed form. With c[t] the cumulative weight in
thresholds, frame t covers [c[t - 1], c[t]] on the axis of tokens, token u covers
[u, u + 1], and the weight of the frame in the token is what they share. `plan`
places the frames on that axis, `operator` forms the sums.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cif_lobes.cif.checks import check_inputs, check_sizes
from cif_lobes.cif.operator import Integrate, make_staircase
from cif_lobes.cif.plan import boundary_positions, boundary_times, make_plan
from cif_lobes.devices.precision import full_float32


class CIFOutput(NamedTuple):
    """What a batch fires; U is the largest of `lengths` and may be 0."""

    embeddings: Tensor
    """torch.Tensor, [B, U, D], dtype of x: tokens; rows behind `lengths` are 0."""
    lengths: Tensor
    """torch.Tensor, [B], int64: number of tokens."""
    quantity: Tensor
    """torch.Tensor, [B], float32: sum of the unscaled weights, in tokens."""
    boundaries: Tensor
    """torch.Tensor, [B, U + 1], float32: token u lasts from boundary u to u + 1, in
    encoder frames; behind `lengths` the last one repeats. Not differentiable."""
    alpha: Tensor
    """torch.Tensor, [B, T], float: weights of the frames, unscaled, as they came."""

    @property
    def durations(self):
        """torch.Tensor, [B, U], float32: duration of each token in encoder frames."""
        return self.boundaries.diff(dim=1)


def cif(x, alpha, x_lengths, target_lengths=None, threshold=1.0, tail_threshold=0.5):
    """Integrates encoder frames and fires tokens.

    With `target_lengths` (training) the weights are scaled so that exactly that many
    tokens fire. If there is nothing to scale, a sum of weights below 1e-6, all frames
    weigh the same. Without it (inference) the weights are taken as they are, and a
    remainder above `tail_threshold` fires one more token, divided by the remainder.

    The plan is computed in float64 whatever the precision of `x` and does not depend on
    what else is in the batch; sums are formed in float32 at least. An utterance gives
    the same bits alone as in a batch.

    The gradient is exact, through the scaling and the division by the remainder, with
    these conventions: the right-hand derivative where a token fires exactly at the end
    of a frame (the left-hand one at the last boundary, which cannot be passed); none in
    a remainder that is dropped; none to `alpha`, except through the quantity, if there
    was nothing to scale. Padded frames reach neither the output nor a gradient,
    whatever they hold.

    Arguments
    ---------
    x : torch.Tensor, [B, T, D], float
        Encoder frames.
    alpha : torch.Tensor, [B, T], float32 or float64, >= 0
        Weight of each frame, after the sigmoid and before scaling. A frame above the
        threshold fires several tokens.
    x_lengths : torch.Tensor, [B], int
        Number of real frames of each utterance; 0 is allowed.
    target_lengths : torch.Tensor, [B], int, optional
        Number of tokens to fire, end-of-sentence included.
    threshold : float, > 0
        Sum of weights that fires a token.
    tail_threshold : float, >= 0
        Remainder that fires one more token, as a fraction of `threshold`; from 1 on
        every remainder is dropped.

    Returns
    -------
    output : CIFOutput
        Tokens, their number, the quantity and the boundaries, all from one plan.

    Raises
    ------
    TypeError
        If `alpha` is in half precision or a length is not an integer.
    ValueError
        If shapes disagree, a length is out of range, or weights are negative or, at
        inference, not finite.

    Example
    -------
    >>> x = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    >>> alpha = torch.tensor([[0.5, 0.75, 0.5, 1.0]])
    >>> output = cif(x, alpha, torch.tensor([4]))
    >>> output.embeddings.flatten().tolist()
    [1.5, 4.5, 8.0]
    >>> output.boundaries.tolist()
    [[0.0, 1.6666666269302368, 3.25, 4.0]]
    >>> cif(x, alpha, torch.tensor([4]), torch.tensor([1])).lengths.tolist()
    [1]
    """
    x_lengths, target_lengths = check_inputs(
        x, alpha, x_lengths, target_lengths, threshold, tail_threshold
    )
    plan = make_plan(
        alpha.detach(), x_lengths, target_lengths, threshold, tail_threshold
    )
    # The only wait for a GPU: the sizes of the output, with all that is to be checked.
    num_paired = plan.is_paired.sum(1, keepdim=True)
    sizes = [x_lengths[:, None], plan.lengths, num_paired, plan.is_negative]
    sizes = torch.cat(sizes, dim=1)
    num_tokens, num_pairs = check_sizes(sizes.tolist(), x.shape[1])

    positions = boundary_positions(plan, num_tokens)
    edges = torch.searchsorted(plan.clock, positions)
    boundaries = boundary_times(plan, positions, edges)
    if num_pairs > 0:
        dtype = torch.promote_types(x.dtype, torch.float32)
        stairs = make_staircase(plan, edges, num_pairs, dtype)
        embeddings, quantity = Integrate.apply(x, alpha, plan, stairs)
    else:
        embeddings = x.new_zeros(x.shape[0], num_tokens, x.shape[2])
        quantity = alpha.masked_fill(~plan.valid_mask, 0.0).sum(1) / threshold
    return CIFOutput(
        embeddings, plan.lengths.squeeze(1), quantity.float(), boundaries, alpha
    )


def cif_dense(
    x, alpha, x_lengths, target_lengths=None, threshold=1.0, tail_threshold=0.5
):
    """`cif` as one dense matrix product per utterance, for export.

    Same arguments and output as `cif`, but no gradient to `alpha`, no checks, and no
    search, scatter or ragged list: everything is elementwise, a cumulative sum, a gather
    or a product of matrices. Its cost grows as T * U instead of T + U: on a CPU it is
    the faster one only while B * T * U * D is below a million, by 0.1 ms. Hence `cif`
    never switches to it, which also keeps an utterance the same bits in any batch.

    Example
    -------
    >>> x = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    >>> alpha = torch.tensor([[0.5, 0.75, 0.5, 1.0]])
    >>> cif_dense(x, alpha, torch.tensor([4])).embeddings.flatten().tolist()
    [1.5, 4.5, 8.0]
    """
    plan = make_plan(
        alpha.detach(), x_lengths, target_lengths, threshold, tail_threshold
    )
    num_tokens = plan.lengths.max().item()
    positions = boundary_positions(plan, num_tokens)
    edges = (plan.clock[:, None] < positions[:, :, None]).sum(2)
    boundaries = boundary_times(plan, positions, edges)

    tokens = torch.arange(num_tokens, device=x.device)[:, None]
    overlap = (plan.c[:, None] - tokens).clamp(0.0, 1.0).diff(dim=2) * threshold
    dtype = torch.promote_types(x.dtype, torch.float32)
    # `where`, because NaN times a weight of 0 is NaN.
    frames = torch.where(plan.valid_mask[:, :, None], x, 0.0).to(dtype)
    embeddings = torch.bmm(overlap.to(dtype), frames).to(x.dtype)
    return CIFOutput(
        embeddings,
        plan.lengths.squeeze(1),
        plan.quantity.squeeze(1).float(),
        boundaries,
        alpha,
    )


class CIF(nn.Module):
    """Predicts a weight for every encoder frame, then integrates and fires.

    The weight is sigmoid(Linear(dropout(Conv1d(x)))), without an activation between
    (Han et al., arXiv 2301.13003). It is computed in float32, outside of autocast
    and without TF32.

    Arguments
    ---------
    input_size : int
        Width D of the encoder frames.
    kernel_size : int, odd
        Frames that a weight looks at.
    dropout : float, in [0, 1)
        Dropout between convolution and projection.
    threshold : float, > 0
        Sum of weights that fires a token.
    tail_threshold : float, >= 0
        Remainder that fires one more token at inference, as a fraction of `threshold`.
    causal : bool
        A weight looks at its own frame and those before it, not around it: for streams.

    Example
    -------
    >>> lobe = CIF(input_size=256)
    >>> sum(parameter.numel() for parameter in lobe.parameters())
    197121
    >>> x, x_lengths = torch.rand(2, 40, 256), torch.tensor([40, 25])
    >>> output = lobe(x, x_lengths, target_lengths=torch.tensor([7, 3]))
    >>> output.embeddings.shape
    torch.Size([2, 7, 256])
    >>> output.lengths
    tensor([7, 3])
    """

    def __init__(
        self,
        input_size,
        kernel_size=3,
        dropout=0.2,
        threshold=1.0,
        tail_threshold=0.5,
        causal=False,
    ):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.threshold = threshold
        self.tail_threshold = tail_threshold
        self.causal = causal
        padding = kernel_size - 1 if causal else kernel_size // 2
        self.conv = nn.Conv1d(input_size, input_size, kernel_size, padding=padding)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(input_size, 1)

    def weights(self, x, x_lengths):
        """Weight of each frame.

        Arguments
        ---------
        x : torch.Tensor, [B, T, D], float
            Encoder frames; padded ones may hold anything.
        x_lengths : torch.Tensor, [B], int
            Number of real frames of each utterance.

        Returns
        -------
        alpha : torch.Tensor, [B, T], float32, in [0, 1]
            Weights, 0 at padded frames.
        """
        frames = torch.arange(x.shape[1], device=x.device)
        padding_mask = frames >= x_lengths.to(x.device)[:, None]
        with torch.autocast(x.device.type, enabled=False), full_float32():
            # Masked first, or the kernel would look from the last frames into padding.
            h = x.masked_fill(padding_mask[:, :, None], 0.0).to(self.conv.weight.dtype)
            # Causal: as far to the left as is padded to the right, and cut there.
            h = self.conv(h.transpose(1, 2)).transpose(1, 2)[:, : x.shape[1]]
            alpha = self.linear(self.dropout(h)).squeeze(2).float().sigmoid()
        return alpha.masked_fill(padding_mask, 0.0)

    def forward(self, x, x_lengths, target_lengths=None, targets=None):
        """Integrates `x` with its own weights; arguments and output as in `cif`.

        `targets` [B, U], the true tokens, are for `cif_lobes.cif.guided.GuidedCIF`.
        """
        alpha = self.weights(x, x_lengths)
        return cif(
            x, alpha, x_lengths, target_lengths, self.threshold, self.tail_threshold
        )
