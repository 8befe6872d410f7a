"""Contextual biasing at the fires: which phrase of a list is being said, and its spelling.

ColDec (https://arxiv.org/abs/2012.09466): every CIF vector attends over the phrases of a
list and over a no-bias option; what it finds enters, with the vector, a decoder of its own,
whose distribution is mixed with the recogniser's at every fire. The recogniser is finished
and frozen. Purification and FineCoS (https://arxiv.org/abs/2201.12806) keep the phrases
that have most of the attention. Their repository has no model code: what the papers leave
open is said where it is decided.
"""

from typing import NamedTuple

import torch
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cif_lobes.nets.decoder import CIFDecoder, DecoderLayer

MAX_PHRASE = 500  # tokens of a phrase: positions of the phrase encoder


class Phrases(NamedTuple):
    """An encoded list of P phrases, of at most L tokens."""

    vectors: Tensor  # [P, D] one for each phrase
    states: Tensor  # [P, L, D] one for each token
    valid_mask: Tensor  # [P, L] True at real tokens


class PhraseEncoder(nn.Module):
    """Self-attention over the tokens of each phrase; a phrase is the mean of its states.

    Arguments
    ---------
    vocab_size : int
        Number V of the recogniser's tokens.
    d_model, num_layers, nhead, d_ffn : int
        Transformer layers, of width D.
    dropout : float
        Dropout probability inside the layers and of their input.
    """

    def __init__(self, vocab_size, d_model, num_layers, nhead, d_ffn, dropout):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.positions = PositionalEncoding(d_model, max_len=MAX_PHRASE)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(d_model, nhead, d_ffn, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model)

    def forward(self, tokens, lengths):
        """Encode a padded list.

        Arguments
        ---------
        tokens : torch.Tensor, [P, L], int64
            P may be 0.
        lengths : torch.Tensor, [P], int64, at least 1
            Tokens of each phrase.

        Returns
        -------
        Phrases

        Raises
        ------
        ValueError
            If a phrase has more than MAX_PHRASE tokens.
        """
        if tokens.shape[1] > MAX_PHRASE:
            raise ValueError(
                f"a phrase has {tokens.shape[1]:,} tokens, ColDec has positions for "
                f"{MAX_PHRASE}: give shorter phrases"
            )
        places = torch.arange(tokens.shape[1], device=tokens.device)
        valid_mask = places < lengths[:, None]
        x = self.embedding(tokens)
        if len(tokens):
            x = self.dropout(x + self.positions.pe[:, : x.shape[1]])
            for layer in self.layers:
                x = layer(x, valid_mask=valid_mask)
        states = self.norm(x).masked_fill(~valid_mask[..., None], 0.0)
        return Phrases(states.sum(1) / lengths[:, None], states, valid_mask)


class ColDec(nn.Module):
    """Attention of the fires over phrases, and a decoder that reads what it finds.

    With keys and values k_p, v_p of the phrases, and learnt ones of the no-bias option,
    fire u attends with the query q_u = W c_u::

        a_u = softmax over {no-bias, phrases} of q_u k / sqrt(D)
        m_u = sum a_u v

    and the context decoder, a `CIFDecoder` that reads the tokens before, has
    W [c_u ; m_u] in the place of its CIF vectors. With `fine`, FineCoS: the phrases with most
    attention over the utterance are kept, and v_p is, at each fire, a sum over the
    phrase's tokens, by an attention of its own. (So attention over tokens teaches
    that over phrases as well. The paper attends over the tokens of all kept phrases at once.)

    Arguments
    ---------
    vocab_size : int
        Number V of the recogniser's tokens.
    vector_size : int
        Width of its CIF vectors.
    d_model : int
        Width D.
    phrase_layers, decoder_layers : int
        Transformer layers of phrase encoder and context decoder.
    nhead, d_ffn : int
        Of both.
    dropout : float
        Dropout probability inside both.
    fine : bool
        FineCoS instead of ColDec.
    fine_phrases : int
        Phrases that FineCoS keeps.
    over_tokens : bool
        One attention over the tokens of all phrases at once, instead of one over phrases:
        a phrase's share is the sum of its tokens', and m_u reads their values. Not with
        `fine`. The papers have none; letters of a word that was never seen are found, and
        read, by their like.
    query_context : int
        Fires on either side of one that its query sees, by two convolutions of half of
        them; 0 for none as in the papers. A letter alone does not tell the word it is in.
    vector_dropout : float
        Share of fires at which the context decoder is not shown the CIF vector in
        training, so that it must read the phrase. The papers have none.

    Example
    -------
    >>> coldec = ColDec(vocab_size=10, vector_size=8, d_model=16, nhead=2, d_ffn=32)
    >>> phrases = pad_phrases([[4, 5, 6], [7, 8]])
    >>> vectors, previous = torch.rand(2, 5, 8), torch.randint(10, (2, 5))
    >>> sees = torch.tensor([[True, True], [False, True]])
    >>> logits, scores = coldec(vectors, torch.tensor([5, 3]), previous, *phrases, sees)
    >>> logits.shape, scores.shape
    (torch.Size([2, 5, 10]), torch.Size([2, 5, 3]))
    """

    def __init__(
        self,
        vocab_size,
        vector_size,
        d_model=512,
        phrase_layers=4,
        decoder_layers=2,
        nhead=8,
        d_ffn=2048,
        dropout=0.1,
        fine=False,
        fine_phrases=5,
        vector_dropout=0.0,
        over_tokens=False,
        query_context=0,
    ):
        super().__init__()
        if fine and over_tokens:
            raise ValueError(
                "fine and over_tokens are two ways to attend over tokens: leave one False"
            )
        self.over_tokens, self.query_context = over_tokens, query_context
        self.vocab_size, self.vector_size = vocab_size, vector_size
        self.fine, self.fine_phrases = fine, fine_phrases
        self.vector_dropout = vector_dropout
        self.phrase_encoder = PhraseEncoder(
            vocab_size, d_model, phrase_layers, nhead, d_ffn, dropout
        )
        if query_context:
            size, reach = vector_size, (query_context + 1) // 2
            self.neighbours = nn.ModuleList(
                nn.Conv1d(size, size, 2 * reach + 1, padding=reach) for _ in range(2)
            )
        self.query = nn.Linear(vector_size, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.no_bias_key = nn.Parameter(torch.zeros(d_model))
        self.no_bias_value = nn.Parameter(torch.zeros(d_model))
        if fine:
            self.token_query = nn.Linear(vector_size, d_model)
            self.token_key = nn.Linear(d_model, d_model)
        self.join = nn.Linear(vector_size + d_model, d_model)
        self.decoder = CIFDecoder(
            vocab_size, d_model, decoder_layers, nhead, d_ffn, dropout, dropout
        )

    def encode(self, phrases):
        """A list of phrases as `Phrases`.

        Arguments
        ---------
        phrases : list of list of int
            Tokens of each; none is a list, too.
        """
        device = self.no_bias_key.device
        return self.phrase_encoder(*(x.to(device) for x in pad_phrases(phrases)))

    def score_phrases(self, vectors, lengths, phrases, sees=None):
        """What `attend` takes the softmax of, before it drops phrases.

        [B, U, 1 + P], or with `over_tokens` [B, U, 1 + P * L], token by token. Minus
        infinity for phrases that are not on an utterance's list, and for no token.
        """
        queries = (
            self._see_neighbours(vectors, lengths) if self.query_context else vectors
        )
        items = phrases.states.flatten(0, 1) if self.over_tokens else phrases.vectors
        keys = torch.cat([self.no_bias_key[None], self.key(items)])
        scores = self.query(queries) @ keys.T * keys.shape[1] ** -0.5
        if self.over_tokens:
            no_token = ~phrases.valid_mask.flatten()
            scores[..., 1:] = scores[..., 1:].masked_fill(no_token, -torch.inf)
        if sees is not None:
            unseen = ~sees
            if self.over_tokens:
                unseen = unseen.repeat_interleave(phrases.states.shape[1], dim=1)
            unseen = torch.nn.functional.pad(unseen, (1, 0))
            scores = scores.masked_fill(unseen[:, None], -torch.inf)
        return scores

    def _see_neighbours(self, vectors, lengths):
        """Vectors [B, U, C] that know of those before and after; 0 behind the ends."""
        padding_mask = _beyond(vectors, lengths)[..., None]
        first, second = self.neighbours
        x = vectors.masked_fill(padding_mask, 0.0)
        x = first(x.transpose(1, 2)).relu().transpose(1, 2)
        x = second(x.masked_fill(padding_mask, 0.0).transpose(1, 2)).transpose(1, 2)
        return (vectors + x).masked_fill(padding_mask, 0.0)

    def attend(self, vectors, lengths, phrases, sees=None, purify=0):
        """Attention of every fire over the phrases.

        Arguments
        ---------
        vectors : torch.Tensor, [B, U, C]
            CIF vectors.
        lengths : torch.Tensor, [B], int64
            Fires of each utterance.
        phrases : Phrases
        sees : torch.Tensor, [B, P], bool, optional
            Which phrases are on an utterance's list; all if not given.
        purify : int
            Phrases that a fire keeps, those with most attention; 0 for all.

        Returns
        -------
        torch.Tensor, [B, U, 1 + P]
            Shares that add up to 1, that of the no-bias option first.
        """
        if self.over_tokens:
            shares, tokens = self._attend_tokens(
                vectors, lengths, phrases, sees, purify
            )
            return torch.cat([shares, tokens.sum(-1)], -1)
        scores = self.score_phrases(vectors, lengths, phrases, sees)
        shares, biased = scores[..., :1], scores[..., 1:]
        if self.fine and phrases.vectors.shape[0] > self.fine_phrases:
            attention = scores.softmax(-1)[..., 1:]
            beyond = _beyond(vectors, lengths)[..., None]
            total = attention.detach().masked_fill(beyond, 0.0).sum(1)
            biased = _keep_best(biased, total[:, None], self.fine_phrases)
        if 0 < purify < phrases.vectors.shape[0]:
            biased = _keep_best(biased, biased.detach(), purify)
        return torch.cat([shares, biased], -1).softmax(-1)

    def _attend_tokens(self, vectors, lengths, phrases, sees, purify):
        """Shares [B, U, 1] of no-bias and [B, U, P, L] of all tokens."""
        scores = self.score_phrases(vectors, lengths, phrases, sees)
        sizes = phrases.valid_mask.shape
        shares, tokens = scores[..., :1], scores[..., 1:].unflatten(2, sizes)
        if 0 < purify < sizes[0]:
            biased = tokens.logsumexp(-1)
            kept = _keep_best(biased, biased.detach(), purify) > -torch.inf
            tokens = tokens.masked_fill(~kept[..., None], -torch.inf)
        shares = torch.cat([shares, tokens.flatten(2)], -1).softmax(-1)
        return shares[..., :1], shares[..., 1:].unflatten(2, sizes)

    def join_contexts(self, vectors, lengths, phrases, sees=None, purify=0, hide=None):
        """W [c ; m], what the context decoder reads at each fire: [B, U, D].

        Arguments
        ---------
        vectors, lengths, phrases, sees, purify
            As of `attend`.
        hide : torch.Tensor, [B, U], bool, optional
            Fires at which c is not shown.
        """
        # Behind the ends may be what is no number.
        padding_mask = _beyond(vectors, lengths)
        vectors = vectors.masked_fill(padding_mask[..., None], 0.0)
        found = self._read_phrases(vectors, lengths, phrases, sees, purify)
        if hide is not None:
            vectors = vectors.masked_fill(hide[..., None], 0.0)
        return self.join(torch.cat([vectors, found], -1))

    def _read_phrases(self, vectors, lengths, phrases, sees, purify):
        """m of `join_contexts`: [B, U, D]."""
        if self.over_tokens:
            shares, tokens = self._attend_tokens(
                vectors, lengths, phrases, sees, purify
            )
            read = tokens.flatten(2) @ self.value(phrases.states.flatten(0, 1))
            return shares * self.no_bias_value + read
        attention = self.attend(vectors, lengths, phrases, sees, purify)
        found, biased = attention[..., :1] * self.no_bias_value, attention[..., 1:]
        if self.fine and len(phrases.vectors):
            return found + self._read_tokens(vectors, phrases, biased)
        return found + biased @ self.value(phrases.vectors)

    def _read_tokens(self, vectors, phrases, biased):
        """Sum over the tokens of the few phrases that have attention: [B, U, D]."""
        count = min(self.fine_phrases, len(phrases.vectors))
        # The same for all fires of an utterance: the others have a share of 0 in all.
        total = biased.detach().sum(1)
        kept = total.topk(count, dim=1).indices
        shares = biased.gather(2, kept[:, None].expand(-1, vectors.shape[1], -1))
        keys = self.token_key(phrases.states)[kept]  # [B, K, L, D]
        scores = torch.einsum("bud,bkld->bukl", self.token_query(vectors), keys)
        scores = scores * keys.shape[-1] ** -0.5
        padding_mask = ~phrases.valid_mask[kept][:, None]
        attention = scores.masked_fill(padding_mask, -torch.inf).softmax(-1)
        attention = attention * shares[..., None]
        return torch.einsum(
            "bukl,bkld->bud", attention, self.value(phrases.states)[kept]
        )

    def forward(self, vectors, lengths, previous_tokens, tokens, token_lengths, sees):
        """The context decoder at every fire, given the true tokens before.

        Arguments
        ---------
        vectors, lengths, sees
            As of `attend`.
        previous_tokens : torch.Tensor, [B, U], int64
            Token before each fire, begin of sentence first.
        tokens, token_lengths : torch.Tensor, [P, L] and [P], int64
            The phrases, from `pad_phrases`.

        Returns
        -------
        logits : torch.Tensor, [B, U, V]
            Of its distribution.
        scores : torch.Tensor, [B, U, 1 + P] or [B, U, 1 + P * L]
            Of the attention, see `score_phrases`.
        """
        hide = None
        if self.training and self.vector_dropout:
            chances = torch.rand(vectors.shape[:2], device=vectors.device)
            hide = chances < self.vector_dropout
        phrases = self.phrase_encoder(tokens, token_lengths)
        joined = self.join_contexts(vectors, lengths, phrases, sees, hide=hide)
        vectors = vectors.masked_fill(_beyond(vectors, lengths)[..., None], 0.0)
        scores = self.score_phrases(vectors, lengths, phrases, sees)
        return self.decoder(joined, previous_tokens)[0], scores


def _beyond(vectors, lengths):
    """[B, U], True behind the ends of vectors [B, U, C]."""
    return torch.arange(vectors.shape[1], device=vectors.device) >= lengths[:, None]


def pad_phrases(phrases):
    """Token lists of P phrases as tokens [P, L] and lengths [P]; P may be 0."""
    lengths = torch.tensor([len(tokens) for tokens in phrases], dtype=torch.int64)
    rows = [torch.tensor(tokens) for tokens in phrases]
    tokens = pad_sequence(rows, batch_first=True) if rows else lengths.new_zeros(0, 1)
    return tokens, lengths


def _keep_best(scores, ranks, count):
    """Scores [B, U, P] but for those not among the `count` best by ranks [B, U or 1, P]."""
    best = ranks.topk(count, dim=-1).indices
    dropped = torch.ones_like(ranks, dtype=torch.bool).scatter(-1, best, False)
    return scores.masked_fill(dropped, -torch.inf)
