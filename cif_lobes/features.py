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
        "sentence": mean and variance of each utterance are removed, and what is 80 dB
        below its maximum is cut off. "global": those of all training speech, and no
        frame depends on a later one.

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
        if normalization == "sentence":
            self.normalize = InputNormalization(norm_type="sentence", epsilon=1e-5)
        elif normalization == "global":
            self.normalize = GlobalNormalization(n_mels)
            self.fbank.compute_fbanks.top_db = math.inf
        else:
            raise ValueError(
                f'normalization is {normalization!r}, must be "sentence" or "global"'
            )

    def output_lengths(self, lengths):
        """Number of frames of signals of `lengths` samples."""
        return lengths // self.hop + 1

    def forward(self, signal, lengths):
        """Features of a padded batch.

        Arguments
        ---------
        signal : torch.Tensor, [B, samples], float32
            Waveforms, zero beyond the end of each.
        lengths : torch.Tensor, [B], int64
            Samples of each waveform.

        Returns
        -------
        x : torch.Tensor, [B, T, F]
            Frame i is centred at sample i * hop.
        x_lengths : torch.Tensor, [B], int64
            Frames of each utterance.
        """
        x = self.fbank(nn.functional.pad(signal, (self.window // 2, self.window // 2)))
        x_lengths = self.output_lengths(lengths)
        # Half a frame less: SpeechBrain multiplies by T again, and rounding must not add
        # a frame of padding to the statistics (51 / 101 * 101 is above 51).
        return self.normalize(x, (x_lengths - 0.5) / x.shape[1]), x_lengths
