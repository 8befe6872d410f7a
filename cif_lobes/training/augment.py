"""Augmentation of training speech: its speed, and masks over its features."""

import torch
from speechbrain.augment import time_domain
from torch import nn


class SpeedPerturb(time_domain.SpeedPerturb):
    """SpeechBrain's, on the device of the waveforms.

    Without a device it takes them to the CPU and back, even at 100 %.

    Attributes
    ----------
    longest : bool
        The lowest of `speeds` in every batch, of which none can be longer.
    """

    longest = False

    def forward(self, waveform):
        """Resample waveforms [B, samples] at one of `speeds`, drawn for all of them."""
        return self.resamplers[self.speeds.index(self.draw())](waveform)

    def draw(self):
        """One of `speeds`, for a batch."""
        drawn = self.speeds[int(torch.randint(0, len(self.speeds), (1,)))]
        return min(self.speeds) if self.longest else drawn


class SpecAugment(nn.Module):
    """Masks over frequency and time (https://arxiv.org/abs/1904.08779), without warping.

    Each utterance draws its own. A mask over frequency is f bands wide, uniform over
    0..freq_mask_width, and begins at one of 0..F - f, equally likely; a mask over time
    likewise, within the utterance's own frames, so that it does not depend on padding.
    SpeechBrain's SpectrogramDrop begins anywhere up to the last band, which cuts masks
    short, and reads the sizes it has drawn from the GPU. What is masked becomes 0, the
    mean of normalised features.

    Arguments
    ---------
    freq_masks, time_masks : int
        Number of masks, which may overlap.
    freq_mask_width, time_mask_width : int
        Bands and frames that a mask covers at most; also at most those there are.

    Example
    -------
    >>> augment = SpecAugment(freq_masks=0, time_masks=2, time_mask_width=5)
    >>> x = augment(torch.ones(2, 30, 80), torch.tensor([30, 12]))
    >>> x.shape, bool((x == 0).all(2).sum(1).max() <= 10)
    (torch.Size([2, 30, 80]), True)
    """

    def __init__(
        self, freq_masks=2, freq_mask_width=27, time_masks=2, time_mask_width=50
    ):
        super().__init__()
        self.freq_masks, self.freq_mask_width = freq_masks, freq_mask_width
        self.time_masks, self.time_mask_width = time_masks, time_mask_width

    def forward(self, x, x_lengths):
        """Mask a batch of features.

        Arguments
        ---------
        x : torch.Tensor, [B, T, F]
            Normalised features.
        x_lengths : torch.Tensor, [B], int64
            Frames of each utterance.

        Returns
        -------
        torch.Tensor, [B, T, F]
        """
        bands = torch.full_like(x_lengths, x.shape[2])
        in_freq = draw_masks(bands, x.shape[2], self.freq_masks, self.freq_mask_width)
        in_time = draw_masks(
            x_lengths, x.shape[1], self.time_masks, self.time_mask_width
        )
        return x.masked_fill(in_freq[:, None, :] | in_time[:, :, None], 0.0)


def draw_masks(sizes, length, num_masks, max_width):
    """Masks of random widths and places along an axis.

    Arguments
    ---------
    sizes : torch.Tensor, [B], int64
        Places of each utterance that may be masked, from 0 on.
    length : int
        All places of the axis.
    num_masks, max_width : int
        Masks of an utterance, and the widest.

    Returns
    -------
    torch.Tensor, [B, length], bool
        True where masked.
    """
    sizes = sizes[:, None]
    # Numbers for the width and for the place of each mask, in [0, 1).
    for_width, for_start = torch.rand(2, len(sizes), num_masks, device=sizes.device)
    width = (for_width * (sizes.clamp(max=max_width) + 1)).long()
    start = (for_start * (sizes - width + 1)).long()
    places = torch.arange(length, device=sizes.device)
    start, end = start[..., None], (start + width)[..., None]
    return ((start <= places) & (places < end)).any(1)
