"""SpecAugment against its published definition, and the speed of waveforms."""

import pytest
import torch

from cif_lobes.training.augment import SpecAugment, SpeedPerturb, draw_masks

DRAWS = 40_000


def draw(size, length, num_masks, max_width, seed=0):
    """Masks of DRAWS utterances of one size."""
    torch.manual_seed(seed)
    return draw_masks(torch.full((DRAWS,), size), length, num_masks, max_width)


def probability_of_a_mask(size, max_width):
    """[size], by the definition: width f ~ U{0..F}, start ~ U{0..size - f}."""
    share = torch.zeros(size, dtype=torch.float64)
    for width in range(max_width + 1):
        starts = size - width + 1
        for start in range(starts):
            share[start : start + width] += 1 / (max_width + 1) / starts
    return share


@pytest.mark.parametrize("size, max_width", [(80, 27), (80, 1), (12, 12)])
def test_a_mask_covers_each_band_as_often_as_published(size, max_width):
    masks = draw(size, size, 1, max_width)
    expected = probability_of_a_mask(size, max_width)
    # Five standard deviations of a share of DRAWS utterances.
    bound = 5 * (expected * (1 - expected) / DRAWS).sqrt()
    assert ((masks.double().mean(0) - expected).abs() < bound).all()


def test_two_masks_cover_as_many_bands_as_published():
    """24.4 of 80 on average with the paper's widths; 22.1 with SpectrogramDrop."""
    expected = (1 - (1 - probability_of_a_mask(80, 27)).square()).sum()
    covered = draw(80, 80, 2, 27).sum(1).double()
    assert abs(covered.mean() - expected) < 5 * covered.std() / DRAWS**0.5


def test_widths_are_uniform_and_a_mask_is_one_piece():
    masks = draw(80, 80, 1, 27)
    counts = torch.bincount(masks.sum(1), minlength=28)
    assert len(counts) == 28
    expected = DRAWS / 28
    assert (counts - expected).abs().max() < 5 * expected**0.5
    # From masked to not, or from not to masked: at most twice.
    edges = torch.nn.functional.pad(masks.int(), (1, 1)).diff(dim=1).abs().sum(1)
    assert edges.max() == 2


def test_starts_are_uniform():
    masks = draw(20, 20, 1, 5)
    wide = masks[masks.sum(1) == 5]
    counts = torch.bincount(wide.int().argmax(1), minlength=16)
    assert len(counts) == 16
    expected = len(wide) / 16
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_masks_depend_on_no_padding_and_stay_within_the_utterance():
    augment = SpecAugment(freq_masks=0, time_masks=2, time_mask_width=50)
    x_lengths = torch.tensor([200, 30, 1])
    masked = []
    for frames in (200, 300):
        torch.manual_seed(0)
        masked.append(augment(torch.ones(3, frames, 4), x_lengths))
    assert torch.equal(masked[0], masked[1][:, :200])
    assert masked[1][0, 200:].all()
    for seed in range(50):
        torch.manual_seed(seed)
        x = augment(torch.ones(3, 300, 4), x_lengths)
        for row, length in zip(x, x_lengths, strict=True):
            assert row[length:].all()


def test_utterances_draw_apart_and_the_input_stays():
    torch.manual_seed(0)
    x = torch.ones(8, 100, 80)
    masked = SpecAugment()(x, torch.full((8,), 100))
    assert (x == 1).all()
    assert len(torch.unique(masked.flatten(1), dim=0)) == 8


def test_without_masks_nothing_changes():
    x = torch.rand(2, 9, 5)
    assert torch.equal(SpecAugment(0, 27, 0, 50)(x, torch.tensor([9, 4])), x)


@pytest.mark.parametrize("speed, samples", [(100, 9000), (90, 10000)])
def test_speed(speed, samples):
    wave = torch.rand(2, 9000)
    assert SpeedPerturb(16000, speeds=[speed])(wave).shape == (2, samples)


def test_the_slowest_speed_is_the_longest_and_draws_as_ever():
    wave, perturb = torch.rand(1, 9000), SpeedPerturb(16000, speeds=[110, 90, 100])
    torch.manual_seed(0)
    sizes = {perturb(wave).shape[1] for _ in range(30)}
    assert sizes == {8182, 10000, 9000}
    after = torch.rand(1)
    perturb.longest = True
    torch.manual_seed(0)
    assert {perturb(wave).shape[1] for _ in range(30)} == {10000}
    assert perturb.draw() == 90
    torch.manual_seed(0)
    assert all(perturb(wave) is not None for _ in range(30)) and torch.rand(1) == after
