"""A stream at another rate is the whole recording at that rate."""

import numpy as np
import pytest
import torch

from cif_lobes.data.batches import resample
from cif_lobes.inference.stream_resampler import StreamResampler


@pytest.mark.parametrize("rate", [48000, 44100, 22050, 8000, 16000, 11025])
@pytest.mark.parametrize("chunk", [1, 777, 4800, 100_000])
def test_chunks_are_the_whole(rate, chunk):
    generator = np.random.default_rng(0)
    size = 3000 if chunk == 1 else 20_011
    sound = generator.standard_normal(size).astype(np.float32)
    resampler = StreamResampler(rate, 16000)
    parts = [resampler.push(sound[i : i + chunk]) for i in range(0, size, chunk)]
    found = np.concatenate([*parts, resampler.finish()])
    wanted = resample(torch.from_numpy(sound), rate, 16000).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert len(resampler.finish()) == 0  # and begins anew


def test_nothing_is_nothing():
    assert len(StreamResampler(48000, 16000).finish()) == 0
