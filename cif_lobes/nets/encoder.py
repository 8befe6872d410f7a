"""Acoustic encoder: convolutional front-end and Conformer with time pooling.

The encoder of CIF-HieraDist (https://arxiv.org/abs/2301.13003): one or more strided
2-D convolutions, then Conformer layers (https://arxiv.org/abs/2005.08100) with a max
pooling over time after some of them, so that one output frame spans about as much
speech as a token (80 ms in the paper).

No output frame depends on how far its utterance was padded: the convolutions of the
front-end read real frames only, and the Conformer's depthwise convolutions see zeros
beyond the end, as they do when the utterance is alone.

With `chunk_size` attention and convolution see no frame beyond their own chunk, as in
https://arxiv.org/abs/2012.05481 and "Dynamic Chunk Convolution" (ICASSP 2023,
https://arxiv.org/abs/2304.09325), here with chunks of one size: the network can then run
on a stream (`cif_lobes.nets.stream`).
"""

import math

import torch
from speechbrain.lobes.models.transformer.Conformer import (
    ConformerEncoderLayer,
    ConvolutionModule,
)
from speechbrain.nnet.activations import Swish
from speechbrain.nnet.attention import RelPosEncXL
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch import nn

from cif_lobes.nets.padding import padding_mask_of


class ConvFrontEnd(nn.Module):
    """Strided 3x3 convolutions over time and frequency, then a projection.

    Arguments
    ---------
    input_size : int
        Number of features of a frame.
    output_size : int
        Width of an output frame.
    channels : int
        Channels of every convolution.
    strides : list of int
        Stride of each convolution, in time and frequency alike.
    dropout : float
        Dropout probability of the output.

    Attributes
    ----------
    hop, centre : int
        Input frames from one output frame to the next, and before the centre of the first.
    shortest : int
        Input frames that one output frame reads.

    Example
    -------
    >>> frontend = ConvFrontEnd(input_size=80, output_size=16)
    >>> x, x_lengths = frontend(torch.rand(2, 101, 80), torch.tensor([101, 60]))
    >>> x.shape, x_lengths
    (torch.Size([2, 50, 16]), tensor([50, 29]))
    """

    def __init__(
        self, input_size, output_size, channels=128, strides=(2,), dropout=0.1
    ):
        super().__init__()
        self.input_size = input_size
        self.strides = list(strides)
        self.convs = nn.ModuleList(
            nn.Conv2d(1 if i == 0 else channels, channels, 3, stride)
            for i, stride in enumerate(self.strides)
        )
        self.shortest = 1
        for stride in reversed(self.strides):
            self.shortest = (self.shortest - 1) * stride + 3
        self.hop = math.prod(self.strides)
        self.centre = (self.shortest - 1) // 2
        bands = int(self._shorten(torch.tensor(input_size)))
        self.project = nn.Linear(channels * bands, output_size)
        self.scale = math.sqrt(output_size)
        self.linear = nn.Linear(output_size, output_size)
        self.dropout = nn.Dropout(dropout)

    def _shorten(self, size):
        """Size along time or frequency after all convolutions."""
        for stride in self.strides:
            size = torch.div(size - 3, stride, rounding_mode="floor") + 1
        return size

    def output_lengths(self, x_lengths):
        """Number of output frames of inputs of x_lengths frames (at least 1)."""
        return self._shorten(x_lengths).clamp(min=1)

    def forward(self, x, x_lengths):
        """Frames [B, T', D] of features x [B, T, F], and their lengths [B]."""
        # Zeros beyond the end, and enough of them for one output frame: an utterance
        # shorter than the receptive field reads the same padding alone and in a batch.
        x = x.masked_fill(padding_mask_of(x, x_lengths).unsqueeze(-1), 0.0)
        x = nn.functional.pad(x, (0, 0, 0, max(0, self.shortest - x.shape[1])))
        x = x.unsqueeze(1)
        for conv in self.convs:
            x = torch.relu(conv(x))
        x = self.project(x.transpose(1, 2).flatten(2)) * self.scale
        return self.dropout(self.linear(x)), self.output_lengths(x_lengths)


class MaskedConvolutionModule(ConvolutionModule):
    """SpeechBrain's Conformer convolution, with padding zeroed before it is mixed.

    SpeechBrain masks the module's output only. Its depthwise convolution therefore
    reads LayerNorm's bias in padded frames where an utterance alone reads zeros, and
    the last kernel_size // 2 real frames depend on the batch.
    """

    def forward(self, x, mask=None, dynchunktrain_config=None):
        """See SpeechBrain; mask [B, T, 1] is True in padded frames."""
        if mask is None:
            return super().forward(x, mask, dynchunktrain_config)
        out = self.bottleneck(self.layer_norm(x).transpose(1, 2))
        out = out.masked_fill(mask.transpose(1, 2), 0.0)
        if dynchunktrain_config is None:
            out = self.conv(out)
        else:
            out = self._convolve_chunks(out, dynchunktrain_config.chunk_size)
        if self.causal:
            out = out[..., : -self.padding]
        return self.after_conv(out.transpose(1, 2)).masked_fill(mask, 0.0)

    def _convolve_chunks(self, x, chunk_size):
        """Depthwise convolution of x [B, D, T] with zeros beyond the end of a chunk."""
        batch, _, length = x.shape
        x = nn.functional.pad(x, (self.padding, -length % chunk_size))
        # [B, D, chunks, padding + chunk_size]: each with what comes before it.
        x = x.unfold(2, self.padding + chunk_size, chunk_size)
        x = nn.functional.pad(x, (0, self.padding)).transpose(1, 2).flatten(0, 1)
        x = nn.functional.conv1d(
            x, self.conv.weight, self.conv.bias, groups=self.conv.groups
        )
        x = x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)
        return x[..., :length]


class ConformerEncoder(nn.Module):
    """Front-end and Conformer layers with max pooling over time between them.

    Arguments
    ---------
    input_size : int
        Number of features of a frame.
    d_model : int
        Width D of the Conformer.
    num_layers : int
        Number of Conformer layers.
    nhead : int
        Attention heads.
    d_ffn : int
        Width of the feed-forward layers.
    kernel_size : int
        Frames of the depthwise convolution, odd.
    pool_after : list of int
        Halve the frame rate after these layers, counted from 1.
    conv_channels : int
        Channels of the front-end.
    conv_strides : list of int
        Strides of the front-end's convolutions.
    dropout : float
        Dropout probability, throughout.
    chunk_size : int, optional
        Encoder frames of a chunk, beyond which nothing is seen; without it, every frame
        sees the whole utterance.
    left_chunks : int
        Chunks before its own that a frame attends to, in each layer.

    Attributes
    ----------
    hop, centre : int, float
        Feature frames from one encoder frame to the next, and before the centre of the
        first: the middle of what it is made of, not of what it knows. Attention sees the
        whole utterance, so a network may fire a token before or after its sound.

    Example
    -------
    >>> encoder = ConformerEncoder(80, d_model=16, num_layers=2, nhead=2, d_ffn=32,
    ...     kernel_size=3, pool_after=[1], conv_channels=4)
    >>> x, x_lengths = encoder(torch.rand(2, 101, 80), torch.tensor([101, 60]))
    >>> x.shape, x_lengths
    (torch.Size([2, 25, 16]), tensor([25, 15]))
    """

    def __init__(
        self,
        input_size,
        d_model=256,
        num_layers=15,
        nhead=4,
        d_ffn=2048,
        kernel_size=15,
        pool_after=(5, 10),
        conv_channels=128,
        conv_strides=(2,),
        dropout=0.1,
        chunk_size=None,
        left_chunks=8,
    ):
        super().__init__()
        outside = [n for n in pool_after if not 1 <= n <= num_layers]
        if outside:
            raise ValueError(
                f"pool_after: layer {outside[0]} does not exist, the encoder has "
                f"layers 1 to {num_layers}"
            )
        self.pool_after = set(pool_after)
        self.chunk_size = chunk_size
        self.left_chunks = left_chunks
        self.frontend = ConvFrontEnd(
            input_size, d_model, conv_channels, conv_strides, dropout
        )
        # Pooling pairs of frames puts each in the middle of two.
        self.hop = self.frontend.hop * 2 ** len(self.pool_after)
        self.centre = self.frontend.centre + (self.hop - self.frontend.hop) / 2
        self.positions = RelPosEncXL(d_model)
        self.layers = nn.ModuleList()
        for _ in range(num_layers):
            layer = ConformerEncoderLayer(
                d_model,
                d_ffn,
                nhead,
                kernel_size,
                activation=Swish,
                bias=False,
                dropout=dropout,
                attention_type="RelPosMHAXL",
            )
            layer.convolution_module = MaskedConvolutionModule(
                d_model, kernel_size, False, Swish, dropout
            )
            self.layers.append(layer)

    def output_lengths(self, x_lengths):
        """Number of encoder frames of inputs of x_lengths frames.

        Arguments
        ---------
        x_lengths : torch.Tensor, [B], int64
            Feature frames of each utterance.

        Returns
        -------
        torch.Tensor, [B], int64
        """
        x_lengths = self.frontend.output_lengths(x_lengths)
        for _ in self.pool_after:
            x_lengths = (x_lengths + 1) // 2
        return x_lengths

    def chunk_config(self, number):
        """SpeechBrain's description of the chunks of a layer, counted from 1, or None."""
        if self.chunk_size is None:
            return None
        num_pools = sum(n >= number for n in self.pool_after)
        return DynChunkTrainConfig(self.chunk_size * 2**num_pools, self.left_chunks)

    def forward(self, x, x_lengths):
        """Encode a padded batch of features.

        Arguments
        ---------
        x : torch.Tensor, [B, T, F]
            Features.
        x_lengths : torch.Tensor, [B], int64
            Frames of each utterance.

        Returns
        -------
        x : torch.Tensor, [B, T', D]
            Encoder frames, zero beyond the end of each utterance.
        x_lengths : torch.Tensor, [B], int64
            Encoder frames of each utterance.
        """
        x, x_lengths = self.frontend(x, x_lengths)
        padding_mask, positions = self._context(x, x_lengths)
        for number, layer in enumerate(self.layers, start=1):
            chunks = self.chunk_config(number)
            x, _ = layer(
                x,
                src_mask=_chunk_mask(x, chunks),
                src_key_padding_mask=padding_mask,
                pos_embs=positions,
                dynchunktrain_config=chunks,
            )
            if number in self.pool_after:
                x = max_pool(x, padding_mask)
                x_lengths = (x_lengths + 1) // 2
                padding_mask, positions = self._context(x, x_lengths)
        return x.masked_fill(padding_mask.unsqueeze(-1), 0.0), x_lengths

    def _context(self, x, x_lengths):
        """Padding mask [B, T] and relative positions for the current frame rate."""
        return padding_mask_of(x, x_lengths), self.positions(x)


def _chunk_mask(x, chunks):
    """[T, T], True where the frame of a column is not seen by that of a row.

    SpeechBrain's `make_transformer_src_mask`, whose sum of booleans ONNX does not have.
    """
    if chunks is None:
        return None
    chunk = torch.arange(x.shape[1], device=x.device) // chunks.chunk_size
    ahead = chunk - chunk[:, None]
    return (ahead > 0) | (ahead < -chunks.left_context_size)


def max_pool(x, padding_mask):
    """Max of x [B, T, D] over pairs of frames, of which padding never wins.

    An odd last frame stands alone.
    """
    lowest = torch.finfo(x.dtype).min
    x = x.masked_fill(padding_mask.unsqueeze(-1), lowest)
    x = nn.functional.max_pool1d(x.transpose(1, 2), 2, ceil_mode=True).transpose(1, 2)
    # A pair of padded frames gave the lowest number: later layers want finite ones.
    return x.masked_fill(x == lowest, 0.0)
