"""Decoders over CIF vectors: one step per fire, no cross-attention.

Section 3 of CIF (https://arxiv.org/abs/1905.11235) as CIF-HieraDist configures it
(https://arxiv.org/abs/2301.13003): the previous token and the previous CIF vector
enter below a causal Transformer, the current CIF vector joins above it.
"""

import math

import torch
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding
from torch import nn


class DecoderLayer(nn.Module):
    """Pre-norm Transformer layer that can be run a step at a time.

    Arguments
    ---------
    d_model : int
        Width D.
    nhead : int
        Attention heads.
    d_ffn : int
        Width of the feed-forward layer.
    dropout : float
        Dropout probability of attention weights and of each branch.
    """

    def __init__(self, d_model, nhead, d_ffn, dropout=0.2):
        super().__init__()
        if d_model % nhead:
            raise ValueError(f"d_model {d_model} is not a multiple of nhead {nhead}")
        self.nhead = nhead
        self.norm1 = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.ffn = nn.Sequential(
            nn.Linear(d_model, d_ffn),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(d_ffn, d_model),
        )
        self.dropout = nn.Dropout(dropout)
        # One matrix for the three projections, each initialised as its own.
        for weight in self.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.qkv.bias)

    def forward(self, x, state=None, valid_mask=None):
        """Attend to the past (or to all real positions if valid_mask is given).

        Arguments
        ---------
        x : torch.Tensor, [B, U, D]
            U new positions.
        state : torch.Tensor, [B, 2, nhead, past, D / nhead], optional
            Keys and values of the positions before x. With a state, U must be 1.
        valid_mask : torch.Tensor, [B, U], bool, optional
            Real positions; given only when every position may see every other.

        Returns
        -------
        x : torch.Tensor, [B, U, D]
        state : torch.Tensor, [B, 2, nhead, past + U, D / nhead]
        """
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.nhead, -1)
        query, new_state = qkv.permute(0, 2, 3, 1, 4).split([1, 2], dim=1)
        state = new_state if state is None else torch.cat([state, new_state], dim=3)
        attended = nn.functional.scaled_dot_product_attention(
            query[:, 0],
            state[:, 0],
            state[:, 1],
            attn_mask=None if valid_mask is None else valid_mask[:, None, None],
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=valid_mask is None and length > 1,
        )
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.ffn(self.norm2(x))), state


class CIFDecoder(nn.Module):
    """Autoregressive decoder over CIF vectors.

    Step u reads token y_{u-1} and vectors c_{u-1}, c_u::

        x_u = W_in [16 E(y_{u-1}) ; c_{u-1}] + position        (c_0 = 0, y_0 = bos)
        h_u = LayerNorm(causal Transformer(x)_u)
        o_u = W_state [h_u ; c_u]
        logits_u = W_out o_u

    where 16 stands for the square root of d_model.

    Arguments
    ---------
    vocab_size : int
        Number V of output symbols.
    d_model : int
        Width D, also that of the CIF vectors.
    num_layers, nhead, d_ffn : int
        Transformer layers, attention heads, feed-forward width.
    dropout : float
        Dropout probability of the layers' input.
    layer_dropout : float
        Dropout probability inside the layers.

    Example
    -------
    >>> decoder = CIFDecoder(vocab_size=10, d_model=16, num_layers=1, nhead=2, d_ffn=32)
    >>> vectors, previous = torch.rand(2, 5, 16), torch.randint(10, (2, 5))
    >>> logits, states = decoder(vectors, previous)
    >>> logits.shape, states.shape
    (torch.Size([2, 5, 10]), torch.Size([2, 5, 16]))
    """

    def __init__(
        self,
        vocab_size,
        d_model=256,
        num_layers=2,
        nhead=4,
        d_ffn=2048,
        dropout=0.1,
        layer_dropout=0.2,
    ):
        super().__init__()
        self.vocab_size = vocab_size
        self.scale = math.sqrt(d_model)
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
        self.project_in = nn.Linear(2 * d_model, d_model, bias=False)
        self.positions = PositionalEncoding(d_model, max_len=2500)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(d_model, nhead, d_ffn, layer_dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.project_state = nn.Linear(2 * d_model, d_model, bias=False)
        self.project_out = nn.Linear(d_model, vocab_size, bias=False)
        nn.init.normal_(self.project_out.weight, std=d_model**-0.5)

    def forward(self, vectors, previous_tokens):
        """All steps at once, given the true previous tokens (teacher forcing).

        Arguments
        ---------
        vectors : torch.Tensor, [B, U, D]
            CIF vectors.
        previous_tokens : torch.Tensor, [B, U], int64
            Token before each step, bos first.

        Returns
        -------
        logits : torch.Tensor, [B, U, V]
            Unnormalised log-probabilities of each step's token.
        states : torch.Tensor, [B, U, D]
            o_u above, what linguistic distillation regresses.
        """
        before = nn.functional.pad(vectors, (0, 0, 1, 0))[:, :-1]
        logits, states, _ = self._run(vectors, before, previous_tokens, None, 0)
        return logits, states

    def step(self, vector, vector_before, previous_token, state=None):
        """One step of decoding.

        Arguments
        ---------
        vector, vector_before : torch.Tensor, [B, D]
            CIF vectors c_u and c_{u-1} (zeros at the first step).
        previous_token : torch.Tensor, [B], int64
            Token of the step before, bos at the first.
        state : torch.Tensor, [B, layers, 2, nhead, past, D / nhead], optional
            What the step before returned; row i belongs to hypothesis i, so a beam is
            reordered with state[order].

        Returns
        -------
        logits : torch.Tensor, [B, V]
        state : torch.Tensor, [B, layers, 2, nhead, past + 1, D / nhead]
        """
        past = 0 if state is None else state.shape[4]
        logits, _, state = self._run(
            vector[:, None],
            vector_before[:, None],
            previous_token[:, None],
            state,
            past,
        )
        return logits[:, 0], state

    def _run(self, vectors, before, tokens, state, past):
        """Steps past .. past + U - 1, from the layers' keys and values so far."""
        x = torch.cat([self.scale * self.embedding(tokens), before], dim=-1)
        x = self.project_in(x)
        x = self.dropout(x + self.positions.pe[:, past : past + x.shape[1]].to(x.dtype))
        states = []
        for number, layer in enumerate(self.layers):
            x, layer_state = layer(x, None if state is None else state[:, number])
            states.append(layer_state)
        hidden = self.project_state(torch.cat([self.norm(x), vectors], dim=-1))
        return self.project_out(hidden), hidden, torch.stack(states, dim=1)
