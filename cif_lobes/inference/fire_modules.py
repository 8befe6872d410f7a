"""The network as the two modules that SpeechBrain's EncoderDecoderASR calls."""

from typing import NamedTuple

import torch
from speechbrain.dataio.dataio import length_to_mask
from torch import Tensor

from cif_lobes.devices.precision import full_float32


class Fired(NamedTuple):
    """What a batch fires, as `cif_lobes.cif.CIFOutput`, and the frames it is made of."""

    embeddings: Tensor  # [B, U, D]
    lengths: Tensor  # [B] fires
    quantity: Tensor  # [B]
    boundaries: Tensor  # [B, U + 1] encoder frames
    alpha: Tensor  # [B, T]
    encoded: Tensor  # [B, T, D]
    x_lengths: Tensor  # [B] encoder frames of each utterance

    @property
    def searched(self):
        """What `cif_lobes.decoding.searcher.BeamSearcher` reads."""
        return self.embeddings, self.lengths, self.encoded, self.x_lengths


class FireEncoder(torch.nn.Module):
    """Waveforms to what CIF fires: the `encoder` that EncoderDecoderASR calls.

    Arguments
    ---------
    features : cif_lobes.nets.features.LogMel
    encoder : cif_lobes.nets.encoder.ConformerEncoder
    cif : cif_lobes.cif.CIF
    """

    def __init__(self, features, encoder, cif):
        super().__init__()
        self.features = features
        self.encoder = encoder
        self.cif = cif

    @full_float32()
    def forward(self, wavs, wav_lens):
        """Fire a padded batch.

        Arguments
        ---------
        wavs : torch.Tensor, [B, samples], float32
            Waveforms; what lies beyond the end of each is not read.
        wav_lens : torch.Tensor, [B], float32
            Relative lengths.

        Returns
        -------
        Fired
            Not a tensor: how many vectors an utterance has is decided here, and
            `wav_lens`, all that SpeechBrain hands on beside this, does not say it.
        """
        lengths = (wav_lens * wavs.shape[1]).round().long()
        padding_mask = ~length_to_mask(lengths, wavs.shape[1], dtype=torch.bool)
        x, x_lengths = self.features(wavs.masked_fill(padding_mask, 0.0), lengths)
        encoded, x_lengths = self.encoder(x, x_lengths)
        fired = self.cif(encoded, x_lengths)
        return Fired(*fired[:5], encoded, x_lengths)


class FireDecoder(torch.nn.Module):
    """What CIF fires to tokens: the `decoder` that EncoderDecoderASR calls.

    Arguments
    ---------
    searcher : cif_lobes.decoding.searcher.BeamSearcher
    """

    def __init__(self, searcher):
        super().__init__()
        self.searcher = searcher

    @full_float32()
    def forward(self, fired, wav_lens):
        """Best hypotheses.

        Arguments
        ---------
        fired : Fired
        wav_lens : torch.Tensor, [B]
            Of the audio, so not of use here.

        Returns
        -------
        hypotheses : list of list of int
        scores : torch.Tensor, [B], float32
        None, None
            EncoderDecoderASR unpacks four and uses the first.
        """
        hypotheses, scores = self.searcher(*fired.searched)
        return hypotheses, scores, None, None
