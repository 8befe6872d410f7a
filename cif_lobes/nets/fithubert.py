"""FitHuBERT: a student as deep as its teacher, narrow, and at half the frame rate.

FitHuBERT (https://arxiv.org/abs/2207.00555) learns every layer of HuBERT-base or
wav2vec 2.0-base: convolutions bring raw audio to the teacher's 50 frames a second, one
more halves them, twelve Transformer layers of width 480 follow, and a hint head for each
goes back to the teacher's frames and width.

No frame depends on how far its utterance was padded, and there are as many frames as the
teacher has, whatever the length (a Whisper may have one more). Both differ from the authors'
code: there the first normalisation counts padding in, and an odd last frame is dropped. It
also multiplies the front-end's gradient by 0.1, which changes nothing under AdamW without
clipping.

Needs torch only: `s3prl_export` copies this file to people who have nothing else of it.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm


def frame_grid(kernels, strides):
    """When frames are, after convolutions without padding.

    Arguments
    ---------
    kernels, strides : list of int
        Of each convolution.

    Returns
    -------
    reach : int
        Samples that a frame reads.
    hop : int
        Samples from one frame to the next.

    Example
    -------
    >>> frame_grid([10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2])
    (400, 320)
    """
    reach = 1
    for kernel, stride in zip(kernels[::-1], strides[::-1], strict=True):
        reach = (reach - 1) * stride + kernel
    return reach, math.prod(strides)


def num_frames(lengths, reach, hop):
    """Frames [B] of `lengths` [B] samples; a signal shorter than one frame has one."""
    return (lengths.clamp(min=reach) - reach) // hop + 1


class TimeNorm(nn.Module):
    """GroupNorm with one group per channel, over the real frames of an utterance only.

    `torch.nn.GroupNorm` counts padded frames in, so that an utterance changes with the
    length of its neighbours in the batch.

    Arguments
    ---------
    channels : int
    eps : float
        Added to the variance.

    Example
    -------
    >>> x = torch.cat([torch.randn(1, 4, 30), torch.zeros(1, 4, 20)], dim=2)
    >>> expected = nn.GroupNorm(4, 4)(x[:, :, :30])
    >>> torch.allclose(TimeNorm(4)(x, torch.tensor([30]))[:, :, :30], expected, atol=1e-6)
    True
    """

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x, x_lengths):
        """Normalise each channel of each utterance over time.

        Arguments
        ---------
        x : torch.Tensor, [B, D, T]
        x_lengths : torch.Tensor, [B], int64
            Frames of each utterance.

        Returns
        -------
        torch.Tensor, [B, D, T], float32
        """
        x, frames = x.float(), x_lengths.view(-1, 1, 1)
        padding_mask = _padding_mask(x_lengths, x.shape[2]).unsqueeze(1)
        x = x - x.masked_fill(padding_mask, 0.0).sum(2, keepdim=True) / frames
        real = x.masked_fill(padding_mask, 0.0)
        variance = torch.linalg.vector_norm(real, dim=2, keepdim=True).square() / frames
        scale = self.weight.view(-1, 1) * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias.view(-1, 1), x, scale)


class WaveformFrontEnd(nn.Module):
    """Raw audio to frames: convolutions without padding and bias, each with a GELU.

    Arguments
    ---------
    dims, kernels, strides : list of int
        Channels, kernel and stride of each convolution.

    Attributes
    ----------
    reach, hop : int
        Samples that a frame reads, and from one frame to the next: 400 and 320.
    """

    def __init__(self, dims, kernels, strides):
        super().__init__()
        self.reach, self.hop = frame_grid(kernels, strides)
        self.convs = nn.ModuleList(
            nn.Conv1d(*channels, kernel, stride, bias=False)
            for channels, kernel, stride in zip(
                pairwise([1, *dims]), kernels, strides, strict=True
            )
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)
        self.norm = TimeNorm(dims[0])

    def output_lengths(self, lengths):
        """Number of frames of signals of `lengths` samples."""
        return num_frames(lengths, self.reach, self.hop)

    def forward(self, signal, lengths):
        """Frames [B, T, D] of a padded batch [B, samples], and their number [B]."""
        x = F.pad(signal, (0, max(0, self.reach - signal.shape[1]))).unsqueeze(1)
        first, *others = self.convs
        reach, hop = first.kernel_size[0], first.stride[0]
        # A signal shorter than one frame is padded with zeros up to it.
        x_lengths = num_frames(lengths.clamp(min=self.reach), reach, hop)
        x = F.gelu(self.norm(first(x), x_lengths))
        for conv in others:
            x = F.gelu(conv(x))
        return x.transpose(1, 2), self.output_lengths(lengths)


class FitHuBERT(nn.Module):
    """The student without its hint heads: 21,200,096 parameters as published.

    Used like `cif_lobes.nets.features.LogMel`: its frames are features of a recogniser.

    Arguments
    ---------
    conv_dims, conv_kernels, conv_strides : list of int
        Channels, kernel and stride of each convolution of the front-end.
    d_model : int
        Width D of the Transformer.
    num_layers : int
        Number L of layers.
    nhead : int
        Attention heads.
    d_ffn : int
        Width of the feed-forward layers.
    position_kernel : int
        Frames of the convolution that tells positions, even.
    position_groups : int
        Its groups.
    dropout : float
        Dropout probability in and before the Transformer.
    input_dropout : float
        Dropout probability after the front-end.

    Attributes
    ----------
    hop : int
        Samples from one output frame to the next: 640, or 40 ms.

    Example
    -------
    >>> student = FitHuBERT(d_model=48, num_layers=2, d_ffn=64).eval()
    >>> x, x_lengths = student(torch.rand(2, 16000), torch.tensor([16000, 8000]))
    >>> x.shape, x_lengths
    (torch.Size([2, 25, 48]), tensor([25, 12]))
    """

    def __init__(
        self,
        conv_dims=(128, 256, 256, 256, 256, 256, 512, 512, 512),
        conv_kernels=(10, 1, 3, 3, 3, 3, 1, 2, 2),
        conv_strides=(5, 1, 2, 2, 2, 2, 1, 2, 2),
        d_model=480,
        num_layers=12,
        nhead=12,
        d_ffn=480,
        position_kernel=128,
        position_groups=16,
        dropout=0.1,
        input_dropout=0.05,
    ):
        super().__init__()
        self.d_model = d_model
        self.frontend = WaveformFrontEnd(conv_dims, conv_kernels, conv_strides)
        self.hop = 2 * self.frontend.hop
        self.input_norm = nn.LayerNorm(conv_dims[-1])
        self.project = nn.Linear(conv_dims[-1], d_model)
        self.input_dropout = nn.Dropout(input_dropout)
        positions = nn.Conv1d(
            d_model,
            d_model,
            position_kernel,
            padding=position_kernel // 2,
            groups=position_groups,
        )
        nn.init.normal_(
            positions.weight, std=math.sqrt(4 / (position_kernel * d_model))
        )
        nn.init.zeros_(positions.bias)
        self.positions = weight_norm(positions, dim=2)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.reduce = nn.Conv1d(d_model, d_model, 2, stride=2)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                d_model, nhead, d_ffn, dropout, activation="gelu", batch_first=True
            )
            for _ in range(num_layers)
        )
        self.layers.apply(_init_like_bert)

    def output_lengths(self, lengths):
        """Number of output frames of signals of `lengths` samples."""
        return (self.frontend.output_lengths(lengths) + 1) // 2

    def forward(self, signal, lengths):
        """States [B, T, D] of the last layer, of signals [B, samples], and their lengths [B].

        Frames of 40 ms, zero beyond the end of each utterance. See the contract in
        `cif_lobes.nets`.
        """
        x_lengths = self.output_lengths(lengths)
        return _zero_padding(
            self.layer_outputs(signal, lengths)[-1], x_lengths
        ), x_lengths

    def layer_outputs(self, signal, lengths):
        """States of every layer, the first layer's first: a list of L times [B, T, D]."""
        x, x_lengths = self.frontend(signal, lengths)
        x = self.input_dropout(self.project(self.input_norm(x)))
        # Zeros beyond the end, as the convolutions see them when an utterance is alone.
        x = _zero_padding(x, x_lengths)
        # An even kernel gives one frame more than there were.
        positions = self.positions(x.transpose(1, 2))[:, :, : x.shape[1]]
        x = self.dropout(self.norm(x + F.gelu(positions).transpose(1, 2)))

        x = F.pad(_zero_padding(x, x_lengths), (0, 0, 0, x.shape[1] % 2))
        x = self.reduce(x.transpose(1, 2)).transpose(1, 2)
        padding_mask = _padding_mask((x_lengths + 1) // 2, x.shape[1])
        outputs = []
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding_mask)
            outputs.append(x)
        return outputs


class HintHead(nn.Module):
    """A layer's states to the teacher's frame rate and width H (FitHuBERT, 2.3)."""

    def __init__(self, d_model, teacher_width):
        super().__init__()
        self.expand = nn.ConvTranspose1d(d_model, d_model, 2, stride=2)
        self.project = nn.Linear(d_model, teacher_width)

    def forward(self, x):
        """From [B, T, D] to [B, 2 T, H]."""
        return self.project(self.expand(x.transpose(1, 2)).transpose(1, 2))


class HintedStudent(nn.Module):
    """A student with a hint head for each layer that is taught.

    Arguments
    ---------
    student : FitHuBERT
    teacher_width : int
        Width H of the teacher's states.
    hint_layers : list of int
        Layers taught besides the last, counted from 1. Others get no head.

    Example
    -------
    >>> student = FitHuBERT(d_model=48, num_layers=2, d_ffn=64).eval()
    >>> hinted = HintedStudent(student, teacher_width=32, hint_layers=[1])
    >>> states, x_lengths = hinted(torch.rand(2, 16000), torch.tensor([16000, 8000]))
    >>> {n: s.shape for n, s in states.items()}, x_lengths
    ({1: torch.Size([2, 49, 32]), 2: torch.Size([2, 49, 32])}, tensor([49, 24]))
    """

    def __init__(self, student, teacher_width=768, hint_layers=range(1, 12)):
        super().__init__()
        self.last = len(student.layers)
        outside = [n for n in hint_layers if not 1 <= n < self.last]
        if outside:
            raise ValueError(
                f"hint_layers: {outside[0]} is none of the layers 1 to {self.last - 1} "
                f"of a student that has {self.last}; the last is always taught"
            )
        self.student = student
        self.teacher_width = teacher_width
        self.heads = nn.ModuleDict(
            {
                str(n): HintHead(student.d_model, teacher_width)
                for n in [*hint_layers, self.last]
            }
        )

    def forward(self, signal, lengths):
        """What the student thinks that the teacher's layers say of waveforms.

        The arguments are those of `cif_lobes.nets.speech_encoder.SpeechEncoder.forward`.

        Returns
        -------
        states : dict of int to torch.Tensor, [B, T, H]
            By layer, at the teacher's frames of 20 ms.
        x_lengths : torch.Tensor, [B], int64
            Frames of each utterance.
        """
        frontend = self.student.frontend
        T = int(frontend.output_lengths(torch.tensor(signal.shape[1])))
        outputs = self.student.layer_outputs(signal, lengths)
        # The head of an odd last frame gives a frame that the teacher does not have.
        states = {
            int(n): head(outputs[int(n) - 1])[:, :T] for n, head in self.heads.items()
        }
        return states, frontend.output_lengths(lengths)


def _padding_mask(x_lengths, max_length):
    """[B, T], True beyond the end of each utterance."""
    return torch.arange(max_length, device=x_lengths.device) >= x_lengths.unsqueeze(1)


def _zero_padding(x, x_lengths):
    """[B, T, D] with zeros beyond the end of each utterance."""
    return x.masked_fill(_padding_mask(x_lengths, x.shape[1]).unsqueeze(-1), 0.0)


def _init_like_bert(module):
    """Weights of linear and attention layers drawn from N(0, 0.02), as fairseq does."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=0.02)
