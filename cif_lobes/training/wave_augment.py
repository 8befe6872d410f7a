"""Training utterances with silence around them, and of other levels.

A network trained on speech alone writes text where nobody speaks.
"""

import torch
from torch import nn

QUIET = 0.05  # seconds that are quietest where an utterance is parted


class RandomGain(nn.Module):
    """Makes each utterance louder or fainter.

    For features that keep the level, those of "global" normalisation.

    Arguments
    ---------
    gain_db : float
        dB up or down, at most.

    Example
    -------
    >>> waves = RandomGain(gain_db=20)(torch.ones(100, 8))
    >>> bool(waves.min() >= 0.1) and bool(waves.max() <= 10)
    True
    """

    def __init__(self, gain_db):
        super().__init__()
        self.gain_db = gain_db

    def forward(self, waves):
        """Waves [B, samples], each at another level."""
        gain = self.gain_db * (2 * torch.rand(len(waves), 1, device=waves.device) - 1)
        return waves * 10 ** (gain / 20)


class InsertSilence(nn.Module):
    """Puts digital zeros or faint noise before, into and behind utterances.

    Drawn per batch: whether, and how many seconds, so that nothing is padded more than
    it was. Drawn per utterance: how much of it goes before, into and behind it, and
    whether it is zeros or noise, of which level and colour. An utterance is parted
    where it is quietest, somewhere in its middle.

    Arguments
    ---------
    sample_rate : int
        Hz.
    seconds : float
        At most this much is put into every utterance of a batch. Durations of a
        manifest, by which batches are formed, do not count it.
    probability : float
        Share of batches, 0 to 1.
    lowest_db, highest_db : float
        Level of the noise in dB, relative to the RMS of the utterance.

    Example
    -------
    >>> waves, lengths = torch.rand(2, 16000), torch.tensor([16000, 8000])
    >>> silence = InsertSilence(16000, seconds=1.0, probability=1.0)
    >>> longer, added = silence(waves, lengths)
    >>> longer.shape == (2, 16000 + added)
    True
    """

    def __init__(
        self, sample_rate, seconds, probability, lowest_db=-60.0, highest_db=-10.0
    ):
        super().__init__()
        self.sample_rate = sample_rate
        self.seconds = seconds
        self.probability = probability
        self.lowest_db, self.highest_db = lowest_db, highest_db
        self.longest = False  # True: as much as may be, in every batch

    def forward(self, waves, lengths):
        """Lengthen a padded batch.

        Arguments
        ---------
        waves, lengths
            As of `cif_lobes.nets.speech_encoder.SpeechEncoder.forward`.

        Returns
        -------
        waves : torch.Tensor, [B, samples + S], float32
        added : int
            S, by which each utterance is longer; 0 where the batch is left as it is.
        """
        # What decides the size is drawn on the CPU: nothing waits for a GPU.
        draw = (0.0, 1.0) if self.longest else torch.rand(2).tolist()
        added = round(draw[1] * self.seconds * self.sample_rate)
        if draw[0] >= self.probability or added == 0:
            return waves, 0
        shares = torch.rand(len(waves), 3, device=waves.device) ** 3  # mostly one place
        shares = shares / shares.sum(dim=1, keepdim=True)
        before, within = (added * shares[:, :2]).long().unbind(1)
        cuts = self._quiet_samples(waves, lengths)
        places = torch.arange(waves.shape[1] + added, device=waves.device)
        source = places - before[:, None]
        is_speech = (source >= 0) & (source < cuts[:, None])
        behind = source - within[:, None]
        is_second = (behind >= cuts[:, None]) & (behind < lengths[:, None])
        source = torch.where(is_second, behind, source)
        is_speech |= is_second
        source = source.clamp(0, waves.shape[1] - 1)
        longer = torch.where(is_speech, waves.gather(1, source), 0.0)
        is_silence = ~is_speech & (places < (lengths + added)[:, None])
        return longer + self._noise(waves, longer) * is_silence, added

    def _quiet_samples(self, waves, lengths):
        """Where to part each utterance [B]: the quietest place near a random one."""
        width = min(round(QUIET * self.sample_rate), waves.shape[1])
        hop = max(1, width // 4)
        energy = waves.square().unfold(1, width, hop).sum(2)
        centres = torch.arange(energy.shape[1], device=waves.device) * hop + width // 2
        middle = 0.3 + 0.4 * torch.rand(len(waves), 1, device=waves.device)
        distance = (centres / lengths[:, None] - middle).abs()
        quietest = energy.masked_fill(distance > 0.2, torch.inf).argmin(dim=1)
        return torch.minimum(centres[quietest], lengths)

    def _noise(self, waves, longer):
        """Noise of the shape of longer, zeros in every third utterance."""
        count, size = longer.shape
        spread = torch.rand(3, count, 1, device=waves.device)
        rms = waves.square().sum(1, keepdim=True) / (waves != 0).sum(1, keepdim=True)
        level = self.lowest_db + (self.highest_db - self.lowest_db) * spread[0]
        gain = rms.nan_to_num().sqrt() * 10 ** (level / 20) * (spread[1] > 1 / 3)
        spectrum = torch.fft.rfft(torch.randn(count, size, device=waves.device))
        # From white to pink, to brown.
        hertz = torch.fft.rfftfreq(size, 1 / self.sample_rate, device=waves.device)
        spectrum = spectrum * hertz.clamp(min=50) ** -spread[2]
        noise = torch.fft.irfft(spectrum, size)
        return gain * noise / noise.std(dim=1, keepdim=True)
