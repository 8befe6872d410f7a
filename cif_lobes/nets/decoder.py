"""Decoders over CIF vectors: one step per fire, no cross-attention.

Section 3 of CIF (https://arxiv.org/abs/1905.11235) as CIF-HieraDist configures it
(https://arxiv.org/abs/2301.13003): the previous token and the previous CIF vector
enter below a causal Transformer, the current CIF vector joins above it. Or without
tokens, all steps at once.
"""

import math
from functools import partial

import torch
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding
from torch import nn

MAX_TOKENS = 2500  # of an utterance: positions of a decoder
FIRST_ROOM = 16  # steps that a state can hold before its memory is doubled


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

    def forward(self, x, remember=None, valid_mask=None):
        """Attend to the past (or to all real positions if valid_mask is given).

        Arguments
        ---------
        x : torch.Tensor, [B, U, D]
            U new positions.
        remember : callable, optional
            From keys and values of the new positions [2, B, nhead, U, D / nhead] to
            those of all so far. With it, U must be 1.
        valid_mask : torch.Tensor, [B, U], bool, optional
            Real positions; given only when every position may see every other.

        Returns
        -------
        torch.Tensor, [B, U, D]
        """
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.nhead, -1))
        qkv = qkv.permute(2, 0, 3, 1, 4)
        query, keys_values = qkv[0], qkv[1:]
        attended = nn.functional.scaled_dot_product_attention(
            query,
            *(remember(keys_values) if remember else keys_values),
            attn_mask=None if valid_mask is None else valid_mask[:, None, None],
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=valid_mask is None and x.shape[1] > 1,
        )
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.ffn(self.norm2(x)))


class DecoderState:
    """Keys and values of the steps so far, in memory that has room for more.

    A step writes behind them in place, so that it need not copy them, and what was
    returned by an earlier step is not to be used again.
    """

    def __init__(self):
        self.past = 0  # steps so far
        self.memory = {}  # layer -> [2, B, nhead, room, D / nhead]
        self.spare = {}

    def append(self, layer, keys_values):
        """Write a step's keys and values; return those of all steps so far.

        Arguments
        ---------
        layer : int
        keys_values : torch.Tensor, [2, B, nhead, 1, D / nhead]

        Returns
        -------
        torch.Tensor, [2, B, nhead, past + 1, D / nhead]
            Part of the memory.
        """
        room = self.memory[layer].shape[3] if self.past else 0
        if self.past == room:
            _, batch, nhead, _, width = keys_values.shape
            # Twice as much as before.
            more = keys_values.new_empty(2, batch, nhead, room or FIRST_ROOM, width)
            known = [self.memory[layer]] if room else []
            self.memory[layer] = torch.cat([*known, more], dim=3)
            self.spare[layer] = None
        self.memory[layer][:, :, :, self.past] = keys_values[:, :, :, 0]
        return self.memory[layer][:, :, :, : self.past + 1]

    def reorder(self, order):
        """Let row i continue what was row order[i].

        Arguments
        ---------
        order : torch.Tensor, [B], int64
        """
        for layer, memory in self.memory.items():
            spare = self.spare[layer]
            spare = torch.empty_like(memory) if spare is None else spare
            kept, moved = memory[:, :, :, : self.past], spare[:, :, :, : self.past]
            torch.index_select(kept, 1, order, out=moved)
            self.memory[layer], self.spare[layer] = spare, memory


class CIFDecoder(nn.Module):
    """Decoder over CIF vectors.

    Autoregressive, step u reads token y_{u-1} and vectors c_{u-1}, c_u::

        x_u = W_in [16 E(y_{u-1}) ; c_{u-1}] + position        (c_0 = 0, y_0 = bos)
        h_u = LayerNorm(causal Transformer(x)_u)
        o_u = W_state [h_u ; c_u]
        logits_u = W_out o_u

    where 16 stands for the square root of d_model. Otherwise no step reads a token and
    each sees all vectors, so that all are computed at once: x_u = c_u + position, and a
    Transformer that is not causal. To train such a recogniser, write
    `autoregressive: False` under `decoder` in a yaml; nothing else changes.

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
    autoregressive : bool
        Whether a step reads the token before it.

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
        autoregressive=True,
    ):
        super().__init__()
        self.vocab_size = vocab_size
        self.autoregressive = autoregressive
        if autoregressive:
            self.scale = math.sqrt(d_model)
            self.embedding = nn.Embedding(vocab_size, d_model)
            nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
            self.project_in = nn.Linear(2 * d_model, d_model, bias=False)
        self.positions = PositionalEncoding(d_model, max_len=MAX_TOKENS)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(d_model, nhead, d_ffn, layer_dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.project_state = nn.Linear(2 * d_model, d_model, bias=False)
        self.project_out = nn.Linear(d_model, vocab_size, bias=False)
        nn.init.normal_(self.project_out.weight, std=d_model**-0.5)

    def forward(self, vectors, previous_tokens, lengths=None):
        """All steps at once, given the true previous tokens (teacher forcing).

        Arguments
        ---------
        vectors : torch.Tensor, [B, U, D]
            CIF vectors.
        previous_tokens : torch.Tensor, [B, U], int64
            Token before each step, bos first; not read if not autoregressive.
        lengths : torch.Tensor, [B], int64, optional
            Vectors of each utterance, all U if not given; not read if autoregressive,
            where padding can only come after what is real.

        Returns
        -------
        logits : torch.Tensor, [B, U, V]
            Unnormalised log-probabilities of each step's token.
        states : torch.Tensor, [B, U, D]
            o_u above, what linguistic distillation regresses.
        """
        if self.autoregressive:
            before = nn.functional.pad(vectors, (0, 0, 1, 0))[:, :-1]
            return self._run(vectors, self._join(previous_tokens, before))
        places = torch.arange(vectors.shape[1], device=vectors.device)
        ends = len(places) if lengths is None else lengths[:, None]
        valid_mask = (places < ends).expand(vectors.shape[:2])
        vectors = vectors.masked_fill(~valid_mask[..., None], 0.0)
        return self._run(vectors, vectors, valid_mask=valid_mask)

    @torch.no_grad()
    def step(self, vector, vector_before, previous_token, state=None):
        """One step of autoregressive decoding.

        Arguments
        ---------
        vector, vector_before : torch.Tensor, [B, D]
            CIF vectors c_u and c_{u-1} (zeros at the first step).
        previous_token : torch.Tensor, [B], int64
            Token of the step before, bos at the first.
        state : DecoderState, optional
            What the step before returned; row i belongs to hypothesis i, so a beam is
            reordered with state.reorder(order).

        Returns
        -------
        logits : torch.Tensor, [B, V]
        state : DecoderState
            The same one, a step longer.
        """
        state = state or DecoderState()
        x = self._join(previous_token[:, None], vector_before[:, None])
        logits, _ = self._run(vector[:, None], x, state)
        state.past += 1
        return logits[:, 0], state

    def _join(self, tokens, vectors):
        """What goes in below: the tokens and vectors of the steps before."""
        x = torch.cat([self.scale * self.embedding(tokens), vectors], dim=-1)
        return self.project_in(x)

    def _run(self, vectors, x, state=None, valid_mask=None):
        """U steps, after those of the state if there is one."""
        past = state.past if state else 0
        if past + x.shape[1] > MAX_TOKENS:
            raise ValueError(
                f"{past + x.shape[1]:,} tokens in an utterance, the decoder has "
                f"{MAX_TOKENS:,} positions: cut the audio at pauses (a stream: finish())"
            )
        x = self.dropout(x + self.positions.pe[:, past : past + x.shape[1]].to(x.dtype))
        for number, layer in enumerate(self.layers):
            remember = partial(state.append, number) if state else None
            x = layer(x, remember, valid_mask)
        hidden = self.project_state(torch.cat([self.norm(x), vectors], dim=-1))
        return self.project_out(hidden), hidden
