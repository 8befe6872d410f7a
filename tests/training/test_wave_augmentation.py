"""Silence put around training utterances, and their level."""

import pytest
import torch

from cif_lobes.training.wave_augment import InsertSilence, RandomGain

RATE = 1000


@pytest.fixture
def batch():
    """Utterances of 2, 3 and 4 s with a pause in the middle of each."""
    lengths = torch.tensor([4, 2, 3]) * RATE
    waves = torch.zeros(3, 4 * RATE)
    for wave, length in zip(waves, lengths.tolist(), strict=True):
        wave[:length] = torch.arange(1, length + 1) / length
        pause = round(0.5 * length)
        wave[pause - 60 : pause + 60] *= 1e-3
    return waves, lengths


def test_the_speech_is_all_there_in_order(batch):
    """Between zeros, and parted in the pause only."""
    waves, lengths = batch
    torch.manual_seed(0)
    silence = InsertSilence(RATE, 2.0, 1.0, lowest_db=-500, highest_db=-500)
    places = torch.zeros(3)
    for _ in range(20):
        longer, added = silence(waves, lengths)
        assert 0 < added <= 2 * RATE and longer.shape[1] == 4 * RATE + added
        for before, after, n in zip(waves, longer, lengths, strict=True):
            is_speech = after.abs() > 1e-9
            assert torch.equal(after[is_speech], before[:n])
            first, *_, last = is_speech.nonzero().flatten().tolist()
            places += torch.tensor([first, last + 1 - first - n, n + added - last])
            gaps = is_speech[first : last + 1].logical_not().nonzero().flatten()
            if len(gaps):
                assert abs(gaps[0] - round(0.5 * int(n))) < 60
    assert (places > RATE).all()


def test_noise_is_as_faint_as_it_should_be(batch):
    """20 to 40 dB below the speech, zeros in some, none beyond the end."""
    waves, lengths = batch
    torch.manual_seed(0)
    silence = InsertSilence(RATE, 2.0, 1.0, lowest_db=-40, highest_db=-20)
    levels = []
    for _ in range(20):
        longer, added = silence(torch.ones_like(waves), lengths)
        for wave, length in zip(longer, (lengths + added).tolist(), strict=True):
            assert not wave[length:].any()
            noise = wave[:length][wave[:length] != 1.0]
            levels.append(float(20 * noise.square().mean().sqrt().log10()))
    heard = torch.tensor([level for level in levels if level > -300])
    assert 0.5 < len(heard) / len(levels) < 0.85
    assert -45 < heard.min() < -32 and -28 < heard.max() < -15


@pytest.mark.parametrize("seconds, probability", [(0.0, 1.0), (2.0, 0.0)])
def test_nothing_is_put_in(batch, seconds, probability):
    waves, added = InsertSilence(RATE, seconds, probability)(*batch)
    assert torch.equal(waves, batch[0]) and added == 0


def test_a_share_of_batches(batch):
    torch.manual_seed(0)
    silence = InsertSilence(RATE, 2.0, 0.3)
    longer = sum(silence(*batch)[1] > 0 for _ in range(200))
    assert 40 < longer < 80


@pytest.mark.parametrize("probability, added", [(0.01, 2 * RATE), (0.0, 0)])
def test_the_longest_of_all(batch, probability, added):
    """By which a dry run measures memory."""
    silence = InsertSilence(RATE, 2.0, probability)
    silence.longest = True
    assert silence(*batch)[1] == added


def test_an_utterance_of_zeros_stays_finite():
    waves, lengths = torch.zeros(2, 30), torch.tensor([30, 1])
    for _ in range(5):
        longer, _ = InsertSilence(RATE, 1.0, 1.0)(waves, lengths)
        assert longer.isfinite().all()


def test_gain(batch):
    torch.manual_seed(0)
    waves = batch[0]
    louder = RandomGain(26)(waves)
    gains = louder.amax(1) / waves.amax(1)
    assert len(gains.unique()) == 3 and gains.max() <= 20 and gains.min() >= 0.05
    torch.testing.assert_close(louder, waves * gains[:, None])
