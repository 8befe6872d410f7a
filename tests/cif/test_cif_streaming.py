"""CIF over chunks against `cif` over the whole utterance, bit by bit."""

import random

import pytest
import torch

from cif_lobes.cif import cif
from cif_lobes.cif.stream import CIFStream

D = 6


def stream(x, alpha, chunks, **settings):
    """Tokens and boundaries of all chunks; the last token apart if finish fired it."""
    cif_stream, start, pushed = CIFStream(**settings), 0, []
    for size in chunks:
        pushed.append(
            cif_stream.push(x[start : start + size], alpha[start : start + size])
        )
        start += size
    assert start == len(x)
    tail = cif_stream.finish()
    for one, after in zip(pushed, [*pushed[1:], tail], strict=True):
        assert torch.equal(one.boundaries[-1:], after.boundaries[:1])
    boundaries = [pushed[0].boundaries[:1]]
    boundaries += [fires.boundaries[1:] for fires in (*pushed, tail)]
    embeddings = torch.cat([fires.embeddings for fires in pushed])
    return embeddings, tail.embeddings, torch.cat(boundaries)


def check(x, alpha, chunks, **settings):
    """Every bit of `cif`, but for the tail token: that one up to rounding."""
    whole = cif(x[None], alpha[None], torch.tensor([len(x)]), **settings)
    embeddings, tail, boundaries = stream(x, alpha, chunks, **settings)
    fired = len(embeddings)
    assert fired + len(tail) == whole.lengths
    assert embeddings.dtype == tail.dtype == x.dtype
    assert torch.equal(boundaries, whole.boundaries[0])
    assert torch.equal(embeddings, whole.embeddings[0, :fired])
    torch.testing.assert_close(tail, whole.embeddings[0, fired:])
    return fired, len(tail)


def cut(length, size):
    """Chunks of one size, and what remains."""
    return [size] * (length // size) + [length % size]


@pytest.mark.parametrize("threshold", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 2, 7, 16, 100, 200])
def test_chunks_equal_the_whole(size, dtype, threshold):
    torch.manual_seed(size)
    x, alpha = torch.randn(150, D).to(dtype), torch.rand(150) * 0.6
    fired, _ = check(x, alpha, cut(150, size), threshold=threshold)
    assert fired > 30


def test_chunks_of_any_sizes():
    """Several fires in a frame, silence, empty chunks, and tails that do not fire."""
    rng, tails = random.Random(0), set()
    for seed in range(40):
        torch.manual_seed(seed)
        length = rng.randint(1, 60)
        x, alpha = torch.randn(length, D), torch.rand(length) * rng.choice([0.3, 3.5])
        alpha[torch.rand(length) < 0.3] = 0.0
        cuts = sorted(rng.randint(0, length) for _ in range(rng.randint(0, 9)))
        chunks = [b - a for a, b in zip([0, *cuts], [*cuts, length], strict=True)]
        tail_threshold = rng.choice([0.0, 0.4, 1.0])
        tails.add(check(x, alpha, chunks, tail_threshold=tail_threshold)[1])
    assert tails == {0, 1}


@pytest.mark.parametrize("size", [1, 3, 10])
@pytest.mark.parametrize(
    "alpha",
    [
        [1.0] * 12,  # every frame fires, exactly at its end
        [0.5, 0.25, 0.25] * 5,  # exactly at the threshold
        [0.1] * 30,  # ten times 0.1: above 1 in float32 grains, below in others
        [0.0] * 12,
        [2.5, 0.0, 0.5, 0.0, 0.0, 0.3, 0.0],
        [1e-4] * 40,
        [0.6, 0.0, 0.0, 0.0],  # the tail ends with the first frame
        [0.5, 0.0],  # a remainder equal to tail_threshold does not fire
    ],
    ids=str,
)
def test_at_the_threshold(alpha, size):
    alpha = torch.tensor(alpha)
    check(torch.randn(len(alpha), D), alpha, cut(len(alpha), size))


def test_six_thousand_tenths():
    """Rounding would add up to a token."""
    alpha = torch.full((6400,), 0.1)
    fired, _ = check(torch.randn(6400, D), alpha, cut(6400, 130))
    assert fired == 640


def test_nothing_was_said():
    """An empty chunk fires nothing, and there is no tail."""
    empty = CIFStream(tail_threshold=0.0)
    fires = empty.push(torch.randn(0, D), torch.rand(0))
    assert fires.embeddings.shape == (0, D) and fires.boundaries.tolist() == [0.0]
    assert len(empty.finish().embeddings) == 0


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_bad_weights_are_named(bad):
    cif_stream = CIFStream()
    cif_stream.push(torch.randn(5, D), torch.rand(5))
    with pytest.raises(ValueError, match="after encoder frame 5: alpha is negative"):
        cif_stream.push(torch.randn(2, D), torch.tensor([0.2, bad]))
    with pytest.raises(TypeError, match="half"):
        cif_stream.push(torch.randn(2, D), torch.rand(2).half())
    with pytest.raises(ValueError, match="alpha"):
        cif_stream.push(torch.randn(2, D), torch.rand(3))
