"""A pretrained speech encoder in place of log-mel features: ears that have heard speech.

The encoder itself is no part of the module: neither `state_dict` nor `parameters` knows
it, so no checkpoint holds it. It is kept once, by the hash of its weights, where
`cif_lobes.nets.kept_ears` finds it again. Layers of it that are trained are parts.
"""

import torch
from torch import nn

from cif_lobes.nets.pretrained import load_encoder


class PretrainedEars(nn.Module):
    """States of a speech encoder, in place of `cif_lobes.nets.features.LogMel`.

    Chosen layers, averaged with learnt weights if there are several; LayerNorm; the mean
    of every `pool` frames, before anything on top computes at 50 frames a second; `stack`
    of these side by side. Nothing is heard before `load`.

    Arguments
    ---------
    width : int
        Width H of the encoder's states.
    layers : list of int
        Which of its layers, counted from 1. With several, a learnt average of them, as
        SUPERB has it (https://arxiv.org/abs/2105.01051, 2.3).
    silence_seconds : float
        Silence behind an utterance that a Whisper hears as well, see
        `cif_lobes.nets.speech_encoder.WhisperEars`.
    pool : int
        Frames averaged.
    stack : int
        Of those, how many make a frame of width `stack` * H.
    trained : int
        How many of the top layers learn. They have no dropout, as the rest of it.

    Attributes
    ----------
    hop, centre : int
        Samples from one frame to the next, and before the centre of the first.
    learning : bool
        Whether gradients reach the layers that are trained; the Brain says it.

    Example
    -------
    >>> tiny = {"model_type": "hubert", "hidden_size": 32, "num_hidden_layers": 2,
    ...     "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [8] * 7}
    >>> features = PretrainedEars(width=32, layers=[1, 2])
    >>> features.load(tiny)
    >>> x, x_lengths = features(torch.rand(2, 16000), torch.tensor([16000, 8000]))
    >>> x.shape, x_lengths, len(features.state_dict())
    (torch.Size([2, 25, 32]), tensor([25, 12]), 3)
    """

    def __init__(self, width, layers, silence_seconds=1.0, pool=2, stack=1, trained=0):
        super().__init__()
        if not layers:
            raise ValueError("ears_layers is empty: name at least one layer")
        self.width, self.layers = width, list(layers)
        self.silence_seconds = silence_seconds
        self.pool, self.stack, self.trained = pool, stack, trained
        self.norm = nn.LayerNorm(width)
        self.layer_logits = (
            nn.Parameter(torch.zeros(len(layers))) if len(layers) > 1 else None
        )
        self.top = None
        self.learning = True
        self.weights_hash = None
        self._held = ()  # in a tuple, so that it is not one of this module's own

    # --- the encoder ---

    @property
    def encoder(self):
        """The `cif_lobes.nets.speech_encoder.SpeechEncoder`."""
        if not self._held:
            raise ValueError("the ears have not been loaded: features.load(source)")
        return self._held[0]

    def load(self, source):
        """Hear with the encoder of a folder, the hub, or a train_fithubert.py's run.

        Arguments
        ---------
        source : str or dict
            See `cif_lobes.nets.pretrained.load_encoder`.

        Raises
        ------
        FileNotFoundError, ValueError
            As that, and if it lacks a layer or is of another width.
        """
        encoder = load_encoder(source, self.silence_seconds)
        if encoder.width != self.width:
            raise ValueError(
                f"ears {source} have states of width {encoder.width}, ears_width is "
                f"{self.width}. Run with --ears_width {encoder.width}"
            )
        outside = [n for n in self.layers if not 1 <= n <= encoder.num_layers]
        if outside:
            raise ValueError(
                f"ears {source} have layers 1 to {encoder.num_layers}, ears_layers names "
                f"{outside[0]}. Run with --ears_layers '[{encoder.num_layers}]'"
            )
        # Before any of it is trained.
        self.weights_hash = encoder.weights_hash
        self._held = (encoder,)
        self.hop = encoder.hop * self.pool * self.stack
        self.centre = encoder.centre + (self.hop - encoder.hop) // 2
        if self.trained:
            self.top = nn.ModuleList(encoder.top_layers(self.trained)).requires_grad_()

    def frozen_parameters(self):
        """Number of parameters of the encoder that no checkpoint holds."""
        learnt = {id(p) for p in self.parameters()}
        of_encoder = self.encoder.parameters()
        return sum(p.numel() for p in of_encoder if id(p) not in learnt)

    def _apply(self, fn, *args, **kwargs):
        """Move the encoder along."""
        for encoder in self._held:
            encoder._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

    def train(self, mode=True):
        """The encoder stays in eval mode, layers that are trained included."""
        super().train(mode)
        if self.top is not None:
            self.top.eval()
        return self

    # --- what is heard ---

    def output_lengths(self, lengths):
        """Number of frames of signals of `lengths` samples."""
        return self.pooled_lengths(self.encoder.output_lengths(lengths))

    def pooled_lengths(self, x_lengths):
        """Number of frames of `x_lengths` frames of the encoder."""
        x_lengths = (x_lengths + self.pool - 1) // self.pool
        return (x_lengths + self.stack - 1) // self.stack

    def listen(self, signal, lengths):
        """States [B, T, L, H] of the chosen layers, and frames of each utterance [B]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.top is not None):
            states, x_lengths = self.encoder(signal, lengths)
            x = torch.stack([states[n] for n in self.layers], dim=2)
        if self.top is not None and not self.learning:
            # A gradient of zero: DistributedDataParallel waits for one.
            x = x.detach() + 0.0 * (x - x.detach())
        return x, x_lengths

    def forward(self, signal, lengths):
        """Frames of a padded batch.

        Arguments
        ---------
        signal : torch.Tensor, [B, samples], float32, or [B, T, L, H]
            Waveforms, zero beyond the end of each; or states as `listen` gives them, from
            a cache.
        lengths : torch.Tensor, [B], int64
            Samples of each waveform, or frames of its states.

        Returns
        -------
        x : torch.Tensor, [B, T', stack * H]
            Zero beyond the end of an utterance.
        x_lengths : torch.Tensor, [B], int64
            Frames of each utterance.
        """
        if signal.dim() == 2:
            signal, lengths = self.listen(signal, lengths)
        x = signal.float()
        if self.layer_logits is None:
            x = x.squeeze(2)
        else:
            x = torch.einsum("l,btlh->bth", self.layer_logits.softmax(0), x)
        x = _mean_of_frames(self.norm(x), lengths, self.pool)
        x = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % self.stack))
        x = x.unflatten(1, (-1, self.stack)).flatten(2)
        return x, self.pooled_lengths(lengths)


def _mean_of_frames(x, x_lengths, count):
    """Mean of every `count` frames of x [B, T, D] that are real; zero where none is."""
    frames = torch.arange(x.shape[1], device=x.device)
    x = x.masked_fill((frames >= x_lengths[:, None])[..., None], 0.0)
    x = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % count))
    x = x.unflatten(1, (-1, count)).sum(2)
    firsts = count * torch.arange(x.shape[1], device=x.device)
    real = (x_lengths[:, None] - firsts).clamp(1, count)
    return x / real[..., None]
