"""Continuous integrate-and-fire (CIF): acoustic frames in, one vector per token out.

Dong & Xu, "CIF: Continuous Integrate-and-Fire for End-to-End Speech Recognition",
ICASSP 2020, https://arxiv.org/abs/1905.11235, in closed form: with c the cumulative
weight in tokens, frame t gives token u the overlap of [c[t-1], c[t]] with [u, u+1].
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cif_lobes.cif_operator import Integrate, make_plan, make_staircase


class CIFOutput(NamedTuple):
    """What CIF fires for a batch; see :func:`cif` for shapes and units."""

    embeddings: Tensor
    lengths: Tensor
    quantity: Tensor
    boundaries: Tensor

    @property
    def durations(self):
        """Length of each token in encoder frames: Tensor, [B, U], float32."""
        return self.boundaries.diff(dim=1)


def cif(
    x, alpha, x_lengths, target_lengths=None, threshold=1.0, tail_threshold=0.5
):
    """Integrate and fire."""
    plan = make_plan(alpha.detach(), x_lengths, target_lengths, threshold, tail_threshold)
    stairs = make_staircase(plan, x_lengths)
    embeddings, quantity = Integrate.apply(x, alpha, plan, stairs)
    return CIFOutput(embeddings, plan.lengths, quantity, stairs.boundaries)


class CIF(nn.Module):
    """Predict the weights of the encoder frames, then integrate and fire."""

    def __init__(
        self,
        input_size,
        kernel_size=3,
        dropout=0.2,
        threshold=1.0,
        tail_threshold=0.5,
    ):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.threshold = threshold
        self.tail_threshold = tail_threshold
        self.conv = nn.Conv1d(
            input_size, input_size, kernel_size, padding=kernel_size // 2
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(input_size, 1)

    def weights(self, x, x_lengths):
        """Weight of each frame, [B, T], float32, 0 in padded frames."""
        frames = torch.arange(x.shape[1], device=x.device)
        padding_mask = frames >= x_lengths.to(x.device).unsqueeze(1)
        with torch.autocast(x.device.type, enabled=False):
            h = x.to(self.conv.weight.dtype)
            h = h.masked_fill(padding_mask.unsqueeze(2), 0.0)
            h = self.dropout(self.conv(h.transpose(1, 2)).transpose(1, 2))
            alpha = self.linear(h).squeeze(2).float().sigmoid()
        return alpha.masked_fill(padding_mask, 0.0)

    def forward(self, x, x_lengths, target_lengths=None):
        """Integrate ``x`` with its own weights."""
        alpha = self.weights(x, x_lengths)
        return cif(
            x, alpha, x_lengths, target_lengths, self.threshold, self.tail_threshold
        )
