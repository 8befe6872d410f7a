"""From CIF vectors into the embeddings of a language model: X-LLM's adapters.

Chen et al., https://arxiv.org/abs/2305.04160, 3.2.
"""

import torch
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding
from torch import nn

from cif_lobes.nets.decoder import MAX_TOKENS


def start_small(layer, spread):
    """Let a last layer's outputs begin with the standard deviation of embeddings.

    As PyTorch begins them they are several times as large (four times SmolLM2's), and a
    language model's layers, which add to them, hardly move them.

    Arguments
    ---------
    layer : torch.nn.Linear
        Changed in place. Its inputs have a mean square of about 1.
    spread : float
        Of the language model's own embeddings.
    """
    nn.init.normal_(layer.weight, std=spread * layer.in_features**-0.5)
    nn.init.zeros_(layer.bias)


class LinearAdapter(nn.Module):
    """One linear layer from CIF vectors to embeddings.

    Arguments
    ---------
    input_size, output_size : int
        Widths of a CIF vector and of the language model.
    """

    def __init__(self, input_size, output_size):
        super().__init__()
        self.linear = nn.Linear(input_size, output_size)

    def start_like(self, embeddings):
        """Begin with outputs as large as a language model's embeddings [V, H]."""
        start_small(self.linear, float(embeddings.std()))

    def forward(self, vectors, lengths):
        """[B, U, D] to [B, U, H]."""
        return self.linear(vectors)


class TransformerAdapter(nn.Module):
    """A small Transformer encoder between two linear layers, as X-LLM has a BERT.

    The last layer reads the CIF vectors beside the encoder's states, so that what a linear
    map can do need not pass through an encoder that knows nothing yet.

    Arguments
    ---------
    input_size, output_size : int
        Widths of a CIF vector and of the language model.
    d_model, num_layers, nhead, d_ffn : int
        Sizes of the encoder.
    dropout : float

    Example
    -------
    >>> adapter = TransformerAdapter(8, 12, d_model=16, num_layers=1, nhead=2, d_ffn=32)
    >>> adapter(torch.rand(2, 3, 8), torch.tensor([3, 0])).shape
    torch.Size([2, 3, 12])
    """

    def __init__(
        self,
        input_size,
        output_size,
        d_model=256,
        num_layers=2,
        nhead=4,
        d_ffn=1024,
        dropout=0.1,
    ):
        super().__init__()
        self.enter = nn.Linear(input_size, d_model)
        self.positions = PositionalEncoding(d_model, max_len=MAX_TOKENS)
        layer = nn.TransformerEncoderLayer(
            d_model, nhead, d_ffn, dropout, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, num_layers, nn.LayerNorm(d_model), enable_nested_tensor=False
        )
        self.leave = nn.Linear(input_size + d_model, output_size)

    def start_like(self, embeddings):
        """Begin with outputs as large as a language model's embeddings [V, H]."""
        start_small(self.leave, float(embeddings.std()))

    def forward(self, vectors, lengths):
        """[B, U, D] to [B, U, H]; no vector sees padding.

        Raises
        ------
        ValueError
            If there are more vectors than positions.
        """
        steps = vectors.shape[1]
        if steps > MAX_TOKENS:
            raise ValueError(
                f"{steps:,} tokens in an utterance, the adapter has {MAX_TOKENS:,} "
                "positions: cut the audio at pauses"
            )
        # Attention over nothing fails. With one vector where nothing fired all parameters
        # are used, as DistributedDataParallel needs them.
        vectors = nn.functional.pad(vectors, (0, 0, 0, int(steps == 0)))
        places = torch.arange(vectors.shape[1], device=vectors.device)
        # One vector always is seen, or an utterance of none would be NaN.
        padding_mask = places >= lengths[:, None].clamp(min=1)
        x = self.enter(vectors) + self.positions.pe[:, : vectors.shape[1]]
        x = self.layers(x, src_key_padding_mask=padding_mask)
        return self.leave(torch.cat([vectors, x], dim=-1))[:, :steps]
