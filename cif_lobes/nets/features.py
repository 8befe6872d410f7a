"""Waveforms to normalised log-mel features, with integer lengths throughout."""

import math

import torch
from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import (
    Filterbank,
    InputNormalization,
    make_padding_mask,
)
from torch import nn


class FixedFilterbank(Filterbank):
    """SpeechBrain's filter bank, whose filters move with the module.

    SpeechBrain makes them anew at each call, on the CPU, and waits until the GPU has
    them, which is when all that was queued before has been computed.
    """

    def __init__(self, **options):
        super().__init__(**options)
        # As in its forward, from [F] to [F, bins].
        f_central, band = (
            x[:, None].expand_as(self.all_freqs_mat)
            for x in (self.f_central, self.band)
        )
        filters = super()._create_fbank_matrix(f_central, band)
        self.register_buffer("filters", filters, persistent=False)

    def _create_fbank_matrix(self, f_central_mat, band_mat):
        return self.filters


class GlobalNormalization(nn.Module):
    """Removes mean and variance of each band over all training speech so far.

    What SpeechBrain's InputNormalization(norm_type="global") does, with the statistics
    as buffers: they are saved, averaged and exported with the parameters. The processes
    of torchrun count together what each of them hears.

    Arguments
    ---------
    n_mels : int
        Bands F.

    Example
    -------
    >>> normalize, x = GlobalNormalization(4), 3 + torch.randn(8, 1000, 4)
    >>> x = normalize(x, torch.ones(8))
    >>> bool(x.mean().abs() < 0.01), bool((x.std() - 1).abs() < 0.01)
    (True, True)
    """

    def __init__(self, n_mels):
        super().__init__()
        # Before any speech: one frame of mean 0 and variance 1. In float64, because
        # they are sums over days of speech.
        self.register_buffer("frames", torch.ones((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(n_mels, dtype=torch.float64))
        self.register_buffer("squares", torch.ones(n_mels, dtype=torch.float64))

    def forward(self, x, x_lens):
        """Normalise x [B, T, F]; in training, count it first."""
        if self.training:
            with torch.no_grad():
                valid_mask = make_padding_mask(x, x_lens)
                real = torch.where(valid_mask, x, 0.0).double()
                sums = real.sum((0, 1)), real.square().sum((0, 1))
                heard = torch.stack([valid_mask.sum().expand_as(sums[0]), *sums])
                if torch.distributed.is_initialized():
                    torch.distributed.all_reduce(heard)
                self.frames += heard[0, 0]
                self.total += heard[1]
                self.squares += heard[2]
        mean = self.total / self.frames
        std = (self.squares / self.frames - mean.square()).clamp(min=1e-10).sqrt()
        return (x - mean.to(x)) / std.to(x)


class SpeechNormalization(nn.Module):
    """Removes mean and variance of each band over the speech of an utterance.

    Speech is what is at most `SPEECH_DB` below the utterance's level, and the level is
    the mean power of its frames, weighted with that power: silence around speech moves
    neither. Mean and variance over all frames, as `InputNormalization` has them, give
    the same word other features with every second of silence. What is far below speech
    is cut off, so that digital zeros and faint noise look alike.

    Example
    -------
    >>> normalize, x, x_lengths = SpeechNormalization(), torch.zeros(1, 9, 4), [5, 9]
    >>> x[0, :5] = 10 * torch.randn(5, 4)
    >>> x[0, 5:] = -90  # silence
    >>> speech = [normalize(x[:, :n], torch.tensor([n]))[0, :5] for n in x_lengths]
    >>> torch.allclose(speech[0], speech[1])
    True
    """

    SPEECH_DB = 12.0  # dB below the level: vowels, not the noise of a room
    RANGE_DB = 80.0  # dB below the level at which a band is cut off
    FAINTEST_DB = -20.0  # lowest level: zeros are far below, too. RMS of 1 has about 45
    LOWEST = -4.0  # standard deviations below the mean at which features are cut off

    def forward(self, x, x_lengths):
        """Normalise x [B, T, F] in dB, of x_lengths [B] frames."""
        frames = torch.arange(x.shape[1], device=x.device)
        valid_mask = frames < x_lengths.to(x.device)[:, None]
        # Logarithms, and powers against the loudest frame: squares stay in range.
        to_db = 10 / math.log(10)
        power = torch.logsumexp(x / to_db, dim=2)
        power = power.masked_fill(~valid_mask, -math.inf)
        loudest = power.amax(dim=1, keepdim=True)
        relative = (power - loudest).exp()
        level = loudest + (relative.square().sum(1) / relative.sum(1)).log()[:, None]
        level = level.clamp(min=self.FAINTEST_DB / to_db)
        # Not ">": where the level is not finite, features are not either, and are seen.
        is_speech = ~(power <= level - self.SPEECH_DB / to_db)
        x = x.maximum((to_db * level - self.RANGE_DB)[:, :, None])
        weight = is_speech.to(x.dtype)[:, :, None]
        count = weight.sum(dim=1, keepdim=True)
        nothing = count == 0
        mean = (x * weight).sum(dim=1, keepdim=True) / count.clamp(min=1)
        variance = ((x - mean).square() * weight).sum(dim=1, keepdim=True)
        # Of a single frame, or of a tone: 1 dB.
        std = (variance / count.clamp(min=1)).sqrt().clamp(min=1.0)
        normal = torch.where(nothing, self.LOWEST, (x - mean) / std)
        return normal.clamp(min=self.LOWEST)


class LogMel(nn.Module):
    """Log-mel filterbank, normalised by band.

    Arguments
    ---------
    sample_rate : int
        Hz.
    n_mels : int
        Bands F.
    hop_ms, window_ms : float
        Step and length of the analysis window in milliseconds.
    normalization : str
        "speech": mean and variance of each utterance's speech are removed, silence
        around it counts for nothing. "global": those of all training speech, and no
        frame depends on a later one. "sentence", of runs made before there was
        "speech": those of all frames of each utterance, and what is 80 dB below its
        maximum is cut off.
    floor_db : float
        dB below which every band is cut off, white noise of an RMS of 1 having about
        20: with "global", that digital zeros and faint noise look alike.

    Attributes
    ----------
    hop, centre : int
        Samples from one frame to the next, and before the centre of the first.

    Example
    -------
    >>> import torch
    >>> x, x_lengths = LogMel()(torch.rand(2, 16000), torch.tensor([16000, 8000]))
    >>> x.shape, x_lengths
    (torch.Size([2, 101, 80]), tensor([101,  51]))
    """

    def __init__(
        self,
        sample_rate=16000,
        n_mels=80,
        hop_ms=10,
        window_ms=25,
        normalization="sentence",
        floor_db=-100.0,
    ):
        super().__init__()
        self.window = int(sample_rate * window_ms / 1000)
        self.hop = int(sample_rate * hop_ms / 1000)
        self.fbank = Fbank(
            sample_rate=sample_rate,
            n_fft=self.window,
            n_mels=n_mels,
            hop_length=hop_ms,
            win_length=window_ms,
        )
        self.fbank.compute_fbanks = FixedFilterbank(
            sample_rate=sample_rate,
            n_fft=self.window,
            n_mels=n_mels,
            f_max=sample_rate // 2,
        )
        # It, too, is sent to the GPU at each call otherwise.
        stft = self.fbank.compute_STFT
        window = stft.window
        del stft.window
        stft.register_buffer("window", window, persistent=False)
        self.centre = 0
        # `forward` pads instead, so that a stream can do without.
        stft.center = False
        self.normalization = normalization
        self.fbank.compute_fbanks.amin = 10 ** (floor_db / 10)
        if normalization == "sentence":
            self.normalize = InputNormalization(norm_type="sentence", epsilon=1e-5)
        elif normalization == "global":
            self.normalize = GlobalNormalization(n_mels)
        elif normalization == "speech":
            self.normalize = SpeechNormalization()
        else:
            raise ValueError(
                f'normalization is {normalization!r}, must be "speech", "global" or '
                '"sentence"'
            )
        if normalization != "sentence":
            # 80 dB below the loudest band of all frames, padding and later ones included.
            self.fbank.compute_fbanks.top_db = math.inf

    def output_lengths(self, lengths):
        """Number of frames of signals of `lengths` samples."""
        return lengths // self.hop + 1

    def forward(self, signal, lengths):
        """Features [B, T, F] of signals [B, samples], and their lengths [B].

        Frame i is centred at sample i * hop. See the contract in `cif_lobes.nets`.
        """
        x = self.fbank(nn.functional.pad(signal, (self.window // 2, self.window // 2)))
        x_lengths = self.output_lengths(lengths)
        if self.normalization == "speech":
            return self.normalize(x, x_lengths), x_lengths
        # Half a frame less: SpeechBrain multiplies by T again, and rounding must not add
        # a frame of padding to the statistics (51 / 101 * 101 is above 51).
        return self.normalize(x, (x_lengths - 0.5) / x.shape[1]), x_lengths
