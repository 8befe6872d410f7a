"""A pretrained BERT as decoder: CIF vectors stand where its token embeddings stood.

w2v-cif-bert (https://arxiv.org/abs/2101.06699): the vectors, one per token, are projected
to BERT's width and read in one pass, so nothing is autoregressive. The logits are those of
a head on the vectors and those of BERT's own head, added. How it differs from the paper is
said in docs/w2v_cif_bert.md.

BERT's layers are PyTorch's, which compute the same, so recognition needs no transformers.
The weights are trained here and lie in the checkpoint like all others;
`cif_lobes.nets.bert_weights` brings them along before the first update.
"""

import torch
from torch import nn

MAX_POSITIONS = 512  # of a BERT; its first is that of [CLS]
INIT_STD = 0.02  # of BERT's random weights
EPSILON = 1e-12  # of BERT's LayerNorms


class BERTDecoder(nn.Module):
    """Decoder over CIF vectors c_u, all steps at once::

        a_u = W c_u
        x_u = E(y_u) at some steps, a_u at the others
        h = BERT([CLS], x_1 ... x_U)
        logits_u = (1 - share) * acoustic(a_u) + share * language(h_u)

    In training y_u is the true token, and the share of steps that show it falls; see
    `true_share`. At inference it is the best token of acoustic(a_u), shown where that is
    more probable than `confidence`. End of sentence, which fires as a token does, is
    BERT's [SEP]. `language` is BERT's masked-LM head, whose output layer is E; `acoustic`
    begins as a copy of it.

    Arguments
    ---------
    vocab_size : int
        Number V of output symbols.
    d_model : int
        Width D of the CIF vectors.
    source : str or None
        BERT's folder, or its name on the hub: what is to be loaded before training. None:
        random weights.
    width, num_layers, nhead, d_ffn : int
        BERT's sizes. Of a BERT with more layers the first `num_layers` are used.
    has_head : bool
        Whether its masked-LM head has a layer before the output, as BERTs that were saved
        with their head do. Without, logits are those of the tied embeddings alone.
    language_share : float, in [0, 1]
        Share of BERT's logits; 0 builds no BERT, and the acoustic head is left.
    true_share : tuple of float
        Share of steps that show the true token at first, and at last.
    falls : tuple of float
        Shares of all updates between which it falls, linearly.
    confidence : float, in [0, 1]
        Acoustic probability above which a token is shown at inference; 1 for never.
    trained : bool
        Whether BERT learns. The embeddings of a pretrained one never do.
    bos_index, eos_index : int
        Tokens whose embeddings are those of [CLS] and [SEP].

    Attributes
    ----------
    progress : float, in [0, 1]
        Updates so far, as a share of all; the Brain says it.
    learning : bool
        Whether gradients reach BERT, and through it what is below; the Brain says it.

    Example
    -------
    >>> sizes = {"width": 8, "num_layers": 1, "nhead": 2, "d_ffn": 16}
    >>> decoder = BERTDecoder(vocab_size=10, d_model=4, source=None, **sizes).eval()
    >>> logits, states = decoder(torch.rand(2, 5, 4), None, torch.tensor([5, 0]))
    >>> logits.shape, states.shape
    (torch.Size([2, 5, 10]), torch.Size([2, 5, 8]))
    """

    autoregressive = False

    def __init__(
        self,
        vocab_size,
        d_model,
        source,
        width=768,
        num_layers=12,
        nhead=12,
        d_ffn=3072,
        has_head=True,
        language_share=0.2,
        true_share=(0.9, 0.2),
        falls=(0.0, 1.0),
        confidence=0.8,
        trained=True,
        dropout=0.1,
        bos_index=1,
        eos_index=2,
    ):
        super().__init__()
        if width % nhead:
            raise ValueError(
                f"bert_width {width} is not a multiple of bert_heads {nhead}"
            )
        if not 0 <= falls[0] < falls[1]:
            raise ValueError(
                f"true_share_falls is {list(falls)}: two shares of the training are "
                "expected, the smaller one first"
            )
        self.vocab_size, self.source = vocab_size, source
        self.language_share, self.confidence = language_share, confidence
        self.true_share, self.falls = tuple(true_share), tuple(falls)
        self.bos_index, self.eos_index = bos_index, eos_index
        self.progress, self.learning = 0.0, True
        self.project = nn.Linear(d_model, width)
        self.acoustic = Head(width, has_head)
        self.acoustic_out = nn.Linear(width, vocab_size)
        nn.init.normal_(self.acoustic_out.weight, std=width**-0.5)
        self.bert = None
        if language_share:
            layers = (num_layers, nhead, d_ffn, dropout)
            self.bert = BERT(vocab_size, width, layers, has_head)
            self.bert.requires_grad_(trained)
            if source is not None:
                self.bert.embeddings.requires_grad_(False)

    def bert_parameters(self):
        """Those of BERT that learn, at a rate of their own; a list."""
        parameters = [] if self.bert is None else self.bert.parameters()
        return [p for p in parameters if p.requires_grad]

    def forward(self, vectors, previous_tokens, lengths=None):
        """All steps at once, as `cif_lobes.nets.decoder.CIFDecoder.forward`.

        Arguments
        ---------
        vectors, previous_tokens, lengths
            As there, of utterances that end with eos. Previous tokens are read in train
            mode only, and None shows no true token there either; lengths always.

        Returns
        -------
        logits : torch.Tensor, [B, U, V]
        states : torch.Tensor, [B, U, H]
            h_u above.

        Raises
        ------
        ValueError
            If there are more steps than BERT has positions.
        """
        batch, steps = vectors.shape[:2]
        if steps >= MAX_POSITIONS:
            raise ValueError(
                f"{steps:,} tokens in an utterance, BERT reads {MAX_POSITIONS - 1:,}: cut "
                "the audio at pauses"
            )
        places = torch.arange(steps, device=vectors.device)
        ends = steps if lengths is None else lengths[:, None]
        padding_mask = (places >= ends).expand(batch, steps)
        # Behind the ends may be what is no number.
        vectors = vectors.masked_fill(padding_mask[..., None], 0.0)
        vectors = self.project(vectors)
        acoustic = self.acoustic_out(self.acoustic(vectors))
        if self.bert is None:
            return acoustic, vectors
        shown, tokens = self._shown(acoustic.detach(), previous_tokens)
        words = self.bert.embeddings.words(tokens)
        x = torch.where(shown[..., None], words.to(vectors.dtype), vectors)
        begin = torch.full((batch, 1), self.bos_index, device=vectors.device)
        x = torch.cat([self.bert.embeddings.words(begin).to(x.dtype), x], dim=1)
        padding_mask = nn.functional.pad(padding_mask, (1, 0), value=False)
        states, language = (y[:, 1:] for y in self.bert(x, padding_mask))
        if not self.learning:
            # A gradient of zero: DistributedDataParallel waits for one.
            language = language.detach() + 0.0 * (language - language.detach())
        share = self.language_share
        return (1 - share) * acoustic + share * language, states

    def share_now(self):
        """Share of steps that show the true token at this point of the training."""
        (first, last), (begin, end) = self.true_share, self.falls
        fallen = min(max((self.progress - begin) / (end - begin), 0.0), 1.0)
        return first + (last - first) * fallen

    def _shown(self, acoustic, previous_tokens):
        """Steps that show a token [B, U], bool, and the tokens [B, U]."""
        if not self.training:
            probable, tokens = acoustic.float().softmax(-1).max(-1)
            return probable > self.confidence, tokens
        if previous_tokens is None:
            nothing = torch.zeros_like(acoustic[..., 0], dtype=torch.bool)
            return nothing, nothing.long()
        # What the next step calls previous; of the last one the end of sentence.
        tokens = nn.functional.pad(previous_tokens, (0, 1), value=self.eos_index)[:, 1:]
        chances = torch.rand(tokens.shape, device=tokens.device)
        return chances < self.share_now(), tokens


class Head(nn.Module):
    """The layer of BERT's masked-LM head before its output, or none of it.

    Arguments
    ---------
    width : int
    built : bool
        Without, states pass as they are.
    """

    def __init__(self, width, built):
        super().__init__()
        self.built = built
        if built:
            self.dense = nn.Linear(width, width)
            self.norm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, x):
        """[B, U, H] to [B, U, H]."""
        return self.norm(nn.functional.gelu(self.dense(x))) if self.built else x


class Embeddings(nn.Module):
    """BERT's embeddings: the recogniser's tokens, positions, LayerNorm."""

    def __init__(self, vocab_size, width, dropout):
        super().__init__()
        self.words = nn.Embedding(vocab_size, width)
        # Those of the first sentence are added in: there is no second one.
        self.positions = nn.Parameter(torch.empty(MAX_POSITIONS, width))
        nn.init.normal_(self.words.weight, std=INIT_STD)
        nn.init.normal_(self.positions, std=INIT_STD)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        """What the first layer reads, from embeddings of tokens [B, S, H]."""
        return self.dropout(self.norm(x + self.positions[: x.shape[1]]))


class BERT(nn.Module):
    """A BERT that reads embeddings, with its masked-LM head over the recogniser's tokens.

    Arguments
    ---------
    vocab_size, width : int
    layers : tuple
        num_layers, nhead, d_ffn, dropout.
    has_head : bool
    """

    def __init__(self, vocab_size, width, layers, has_head):
        super().__init__()
        num_layers, nhead, d_ffn, dropout = layers
        self.embeddings = Embeddings(vocab_size, width, dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, nhead, d_ffn, dropout, "gelu", EPSILON, batch_first=True
            )
            for _ in range(num_layers)
        )
        self.head = Head(width, has_head)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, x, padding_mask):
        """States [B, S, H] and logits [B, S, V] of embeddings [B, S, H].

        padding_mask [B, S], bool, is True at padding.
        """
        x = self.embeddings(x)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding_mask)
        logits = nn.functional.linear(
            self.head(x), self.embeddings.words.weight, self.bias
        )
        return x, logits
