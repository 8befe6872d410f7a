"""A stream at another sample rate, as if it had been resampled as a whole."""

import math

import numpy as np
import torch

from cif_lobes.data.batches import resample

WIDTH = 0.02  # seconds to either side that a sample is made of, and more


class StreamResampler:
    """Chunks at one rate to chunks at another.

    Their sum is what `cif_lobes.data.batches.resample` makes of the whole.

    Arguments
    ---------
    rate, new_rate : int
        Hz.

    Example
    -------
    >>> resampler, sound = StreamResampler(48000, 16000), np.zeros(48000, np.float32)
    >>> first, rest = resampler.push(sound), resampler.finish()
    >>> len(first) + len(rest)
    16000
    """

    def __init__(self, rate, new_rate):
        self.rate, self.new_rate = rate, new_rate
        # In so many samples both have a whole number, so that a cut moves nothing.
        self.step = rate // math.gcd(rate, new_rate)
        self.margin = math.ceil(WIDTH * rate / self.step) * self.step
        self.waiting = np.zeros(0, np.float32)
        self.before = 0  # samples of it that are known already

    def push(self, samples):
        """Samples [n], float32, at `rate` to those [m] at `new_rate` that are complete."""
        if self.rate == self.new_rate:
            return samples
        self.waiting = np.concatenate([self.waiting, samples.astype(np.float32)])
        ready = (len(self.waiting) - self.margin) // self.step * self.step
        if ready <= self.before:
            return np.zeros(0, np.float32)
        made = self._resample(self.waiting)[
            self._count(self.before) : self._count(ready)
        ]
        kept = max(0, ready - self.margin)
        self.waiting, self.before = self.waiting[kept:], ready - kept
        return made

    def finish(self):
        """The rest; the next samples begin another stream."""
        rest = self._resample(self.waiting)[self._count(self.before) :]
        self.waiting, self.before = np.zeros(0, np.float32), 0
        return rest

    def _count(self, samples):
        return samples * self.new_rate // self.rate

    def _resample(self, samples):
        if not len(samples):  # of which torchaudio cannot make a batch
            return samples
        return resample(torch.from_numpy(samples), self.rate, self.new_rate).numpy()
