"""Joint CTC-attention networks: an encoder that is blind to padding, two outputs."""

from typing import NamedTuple

import torch
from speechbrain.dataio.dataio import length_to_mask
from speechbrain.lobes.models.CRDNN import CRDNN
from speechbrain.nnet.CNN import Conv2d
from speechbrain.nnet.RNN import GRU, LSTM, RNN
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cif_lobes.devices.lengths import Lengths

# Those whose utterances can be packed; LiGRU's cannot.
RNN_TYPES = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


class CRDNNEncoder(nn.Module):
    """`speechbrain.lobes.models.CRDNN.CRDNN` whose frames do not depend on the batch.

    Three differences. Convolutions pad with zeros, also where an utterance ends within
    a batch (SpeechBrain reflects the end of the batch's longest). Recurrent layers stop
    at the utterance's end. The linear layers have LayerNorm instead of BatchNorm, whose
    statistics would depend on the number of processes.

    Arguments
    ---------
    input_size : int
        Features F of a frame.
    cnn_channels : list of int
        Channels of each block of two convolutions, which halves the frequencies.
    time_pooling_size : int
        Feature frames that become one.
    rnn_type : str
        "lstm", "gru" or "rnn".
    rnn_layers, rnn_neurons : int
        Bidirectional layers, and their width in each direction.
    dnn_blocks, dnn_neurons : int
        Linear layers, and their width D.
    dropout : float

    Attributes
    ----------
    hop, centre : int, float
        Feature frames from one encoder frame to the next, and before the centre of the
        first.

    Raises
    ------
    ValueError
        If rnn_type is another word.

    Example
    -------
    >>> encoder = CRDNNEncoder(40, [4, 4], 4, "gru", 1, 8, 1, 16)
    >>> encoded, lengths = encoder(torch.rand(2, 101, 40), torch.tensor([101, 51]))
    >>> encoded.shape, lengths
    (torch.Size([2, 25, 16]), tensor([25, 12]))
    """

    def __init__(
        self,
        input_size,
        cnn_channels,
        time_pooling_size,
        rnn_type,
        rnn_layers,
        rnn_neurons,
        dnn_blocks,
        dnn_neurons,
        dropout=0.15,
    ):
        super().__init__()
        if rnn_type not in RNN_TYPES:
            raise ValueError(f"rnn_type is {rnn_type!r}, must be one of {[*RNN_TYPES]}")
        self.hop, self.centre = time_pooling_size, (time_pooling_size - 1) / 2
        self.crdnn = CRDNN(
            input_size,
            dropout=dropout,
            cnn_blocks=len(cnn_channels),
            cnn_channels=cnn_channels,
            inter_layer_pooling_size=[2] * len(cnn_channels),
            time_pooling=True,
            time_pooling_size=time_pooling_size,
            rnn_class=RNN_TYPES[rnn_type],
            rnn_layers=rnn_layers,
            rnn_neurons=rnn_neurons,
            rnn_bidirectional=True,
            rnn_re_init=True,
            dnn_blocks=0,
        )
        for module in self.crdnn.modules():
            if isinstance(module, Conv2d):
                module.padding_mode = "constant"
        widths = [2 * rnn_neurons, *[dnn_neurons] * dnn_blocks]
        self.linear = nn.Sequential()
        for before, after in zip(widths, widths[1:], strict=False):
            self.linear.extend(
                [
                    nn.Linear(before, after),
                    nn.LayerNorm(after),
                    nn.LeakyReLU(),
                    nn.Dropout(dropout),
                ]
            )

    def output_lengths(self, lengths):
        """Encoder frames of utterances of so many feature frames."""
        return (lengths // self.hop).clamp(min=1)

    def forward(self, x, x_lengths):
        """Encode a padded batch.

        Arguments
        ---------
        x : torch.Tensor, [B, S, F], float
            Features.
        x_lengths : torch.Tensor, [B], int64
            Feature frames of each utterance.

        Returns
        -------
        encoded : torch.Tensor, [B, T, D]
        lengths : torch.Tensor, [B], int64
            Encoder frames of each utterance.
        """
        # As many as one encoder frame is made of.
        x = nn.functional.pad(x, (0, 0, 0, max(0, self.hop - x.shape[1])))
        valid_mask = length_to_mask(x_lengths, x.shape[1], dtype=torch.bool)
        for block in self.crdnn.CNN.values():
            for layer in block.values():
                if isinstance(layer, Conv2d):
                    # Normalisation and bias have filled the padding meanwhile.
                    x = x * valid_mask.view(*valid_mask.shape, *[1] * (x.dim() - 2))
                x = layer(x)
        x = self.crdnn.time_pooling(x).flatten(2)
        lengths = self.output_lengths(x_lengths)
        packed = pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        x, _ = pad_packed_sequence(
            self.crdnn.RNN.rnn(packed)[0], batch_first=True, total_length=x.shape[1]
        )
        return self.linear(x), lengths


class Predictions(NamedTuple):
    """What a network says about a batch, given the true tokens."""

    encoded: Tensor  # [B, T, D] encoder frames
    x_lengths: Lengths  # [B] encoder frames of each utterance
    ctc_logits: Tensor  # [B, T, V], None without a CTC head
    logits: Tensor  # [B, U, V]
    tokens: Tensor  # [B, U] true tokens, end of sentence included
    token_lengths: Lengths  # [B]
    valid_mask: Tensor  # [B, U], True at real tokens


def predict(modules, encoded, x_lengths, tokens, token_lengths, bos_index):
    """Both outputs of a network, given the true tokens.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        `embedding`, `decoder` (`speechbrain.nnet.RNN.AttentionalRNNDecoder`),
        `seq_head`, and perhaps `ctc_head`.
    encoded : torch.Tensor, [B, T, D]
        Encoder frames.
    x_lengths : cif_lobes.devices.lengths.Lengths
        Of each utterance, in frames.
    tokens : torch.Tensor, [B, U], int64
        True tokens, end of sentence included.
    token_lengths : cif_lobes.devices.lengths.Lengths
    bos_index : int
        Begin of sentence.

    Returns
    -------
    Predictions
    """
    previous = tokens.roll(1, dims=1)
    previous[:, 0] = bos_index
    states, _ = modules["decoder"](
        modules["embedding"](previous),
        encoded,
        x_lengths.on_device / encoded.shape[1],
    )
    return Predictions(
        encoded,
        x_lengths,
        modules["ctc_head"](encoded) if "ctc_head" in modules else None,
        modules["seq_head"](states),
        tokens,
        token_lengths,
        length_to_mask(token_lengths.on_device, tokens.shape[1], dtype=torch.bool),
    )
