"""Waveforms to normalised log-mel features, with integer lengths throughout."""

from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import InputNormalization
from torch import nn


class LogMel(nn.Module):
    """Log-mel filterbank with the mean and variance of each utterance removed.

    Arguments
    ---------
    sample_rate : int
        Hz.
    n_mels : int
        Bands F.
    hop_ms, window_ms : float
        Step and length of the analysis window in milliseconds.

    Example
    -------
    >>> import torch
    >>> x, x_lengths = LogMel()(torch.rand(2, 16000), torch.tensor([16000, 8000]))
    >>> x.shape, x_lengths
    (torch.Size([2, 101, 80]), tensor([101,  51]))
    """

    def __init__(self, sample_rate=16000, n_mels=80, hop_ms=10, window_ms=25):
        super().__init__()
        self.fbank = Fbank(
            sample_rate=sample_rate,
            n_fft=int(sample_rate * window_ms / 1000),
            n_mels=n_mels,
            hop_length=hop_ms,
            win_length=window_ms,
        )
        self.hop = int(sample_rate * hop_ms / 1000)
        self.normalize = InputNormalization(norm_type="sentence", epsilon=1e-5)

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
        x_lengths : torch.Tensor, [B], int64
            Frames of each utterance.
        """
        x = self.fbank(signal)
        x_lengths = self.output_lengths(lengths)
        # Half a frame less: SpeechBrain multiplies by T again, and rounding must not add
        # a frame of padding to the statistics (51 / 101 * 101 is above 51).
        return self.normalize(x, (x_lengths - 0.5) / x.shape[1]), x_lengths
