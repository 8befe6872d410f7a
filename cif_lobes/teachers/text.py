"""Frozen language models from HuggingFace, one state per recognition token."""

import hashlib
import os
from dataclasses import dataclass

import torch
import transformers

from cif_lobes.storage.parameters import hash_weights
from cif_lobes.teachers.alignment import align, token_spans
from cif_lobes.teachers.probe import check_padding, is_causal

POOLINGS = ("mean", "last", "before")


@dataclass(frozen=True)
class AlignedText:
    """A text as the teacher reads it, and which of its pieces each token gets.

    Arguments
    ---------
    text : str
        Normalised transcript.
    utt_id : str
        First utterance that has it, for messages.
    piece_ids : torch.Tensor, [S], int32
        Teacher input, special pieces included.
    ranges : torch.Tensor, [U + 1, 2], int32
        First piece and one past the last, in piece_ids, for each of the U tokens and
        for end of sentence.
    """

    text: str
    utt_id: str
    piece_ids: torch.Tensor
    ranges: torch.Tensor


class TextTeacher(torch.nn.Module):
    """A pre-trained language model that only ever gives states.

    Always in eval mode and without gradients, float32 whatever the checkpoint's dtype.
    The encoder half is used of an encoder-decoder. A causal model (GPT-2, Qwen, SmolLM2)
    reads a text between its begin and its end of sentence, and the end's state, or the
    one before it, is that of the recogniser's end of sentence.

    Arguments
    ---------
    source : str
        Folder with a HuggingFace model and its fast tokenizer (read with the hub off),
        or a name on the hub.
    layer : int or list of int
        Which hidden states: 0 the embeddings, n the output of layer n, -1 that of the
        last one. A list gives every state an axis of layers.
    device : str
        Where it runs.
    pooling : str, optional
        Which states of a token's pieces are its own: their "mean", that of the "last",
        or that of the piece "before" them, with which a causal model predicts the
        token. By default the mean, and of a causal model the last, which alone has read
        the whole token.

    Attributes
    ----------
    layer : int or list of int
        The same, negative numbers resolved.
    state_shape : tuple of int
        (H,), or (L, H) for a list of layers.
    weights_hash : str
        Of all weights that a hidden state depends on.
    tokenizer_hash : str
        Of the tokenizer with all its rules.
    pooling : str
        The same, never None.

    Raises
    ------
    FileNotFoundError
        If source looks like a path and is no folder, or a folder without tokenizer.
    ValueError
        If the checkpoint lacks weights, a layer or pooling does not exist, states depend
        on padding, or the tokenizer gives no character offsets or no end of sentence.

    Example
    -------
    >>> teacher = TextTeacher("bert-base-chinese", layer=-1)  # doctest: +SKIP
    >>> texts = teacher.align({"你好": "utt1"}, tokenizer)  # doctest: +SKIP
    >>> teacher(texts).shape  # doctest: +SKIP
    torch.Size([3, 768])
    """

    def __init__(self, source, layer=-1, device="cpu", pooling=None):
        super().__init__()
        source = os.fspath(source)
        if not os.path.isdir(source) and source.startswith((".", "/", "~")):
            raise FileNotFoundError(
                f"teacher folder {source} does not exist: correct --teacher"
            )
        self.source = source
        self.tokenizer, self.tokenizer_hash = _load_tokenizer(source)
        self.encoder = _load_encoder(source).eval()
        check_padding(self.encoder, source)
        causal = is_causal(self.encoder)
        self.pooling = pooling or ("last" if causal else "mean")
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"pooling is {pooling!r}, must be one of {', '.join(POOLINGS)}"
            )
        # Without the pooler: no hidden state depends on it, and it may be random.
        self.weights_hash = hash_weights(self.encoder, without="pooler")
        self.layer = _resolve_layer(
            layer, self.encoder.config.num_hidden_layers, source
        )
        width = self.encoder.config.hidden_size
        one_layer = isinstance(self.layer, int)
        self.state_shape = (width,) if one_layer else (len(self.layer), width)
        self._around = _special_pieces(self.tokenizer, source, causal)
        self._num_before, self._num_after = map(len, self._around)
        if self.pooling == "before" and not self._num_before:
            raise ValueError(
                f"teacher {source}: its tokenizer puts no piece before a text, so nothing "
                "is before the first token. Use --pooling last or mean"
            )
        self._special = set(self.tokenizer.all_special_ids)
        self._unknown = self.tokenizer.unk_token_id
        self._max_pieces = _max_pieces(self.encoder, self.tokenizer)
        self.device = torch.device(device)
        self.requires_grad_(False).eval().to(self.device)

    def train(self, mode=True):
        """Stays in eval mode: Brain.fit switches all of its modules to train mode."""
        return super().train(False)

    def align(self, texts, tokenizer):
        """Split texts and find the teacher pieces of every recognition token.

        All errors that any text can cause come from here, before the first state is
        computed.

        Arguments
        ---------
        texts : dict of str to str
            Distinct normalised transcripts, with an utterance id each for messages.
        tokenizer : object
            The recogniser's, with `encode(text)` and `offsets(text)`.

        Returns
        -------
        list of AlignedText
            Longest first, in an order that depends on nothing but the texts.

        Raises
        ------
        ValueError
            If a text is longer than the teacher can read, cannot be aligned, or spells
            a special piece of the teacher. Names the utterance.
        """
        # A tokenizer in Rust is fastest on lists, which are bounded to bound memory.
        aligned, block, names = [], 1024, list(texts)
        for start in range(0, len(names), block):
            some = names[start : start + block]
            # "[MASK]" in a transcript is six characters, not the mask.
            pieces = self.tokenizer(
                some,
                return_offsets_mapping=True,
                split_special_tokens=True,
                add_special_tokens=False,
            )
            for text, ids, spans in zip(
                some, pieces["input_ids"], pieces["offset_mapping"], strict=True
            ):
                aligned.append(self._align(text, texts[text], ids, spans, tokenizer))
        return sorted(aligned, key=lambda a: (-len(a.piece_ids), a.text))

    def _align(self, text, utt_id, ids, spans, tokenizer):
        begin, end = self._around
        self._check_special(text, utt_id, ids, spans)
        ids = [*begin, *ids, *end]
        if len(ids) > self._max_pieces:
            raise ValueError(
                f"utterance {utt_id}: {len(ids):,} teacher pieces, {self.source} reads "
                f"{self._max_pieces:,} at most: {text[:40]!r}... Cut the utterance, or "
                "use another teacher"
            )
        ranges = align(token_spans(tokenizer, text, utt_id), spans)
        return AlignedText(
            text,
            utt_id,
            torch.tensor(ids, dtype=torch.int32),
            torch.tensor(ranges, dtype=torch.int32) + self._num_before,
        )

    def _check_special(self, text, utt_id, ids, spans):
        """Some vocabularies find their special pieces in split text as well."""
        for piece, (start, end) in zip(ids, spans, strict=True):
            if piece not in self._special:
                continue
            spelt = text[start:end].strip()
            if piece == self._unknown and spelt != self.tokenizer.unk_token:
                continue
            raise ValueError(
                f"utterance {utt_id}: {spelt!r} in {text[:40]!r} is a special piece of "
                f"the teacher {self.source}, whose states would mean something else. "
                "Take it out of the transcript"
            )

    def count_unknown(self, texts):
        """Pieces of texts from `align` of which the teacher knows nothing.

        Returns
        -------
        unknown, total : int
            Pieces that are its unknown token, and all but those around a text.
        example : AlignedText or None
            The shortest text that has one.
        """
        unknown, total, example = 0, 0, None
        for a in texts:  # longest first
            pieces = a.piece_ids.tolist()[self._num_before :]
            found = pieces.count(self._unknown)
            unknown, total = unknown + found, total + len(pieces) - self._num_after
            example = a if found else example
        return unknown, total, example

    @torch.inference_mode()
    def forward(self, texts):
        """States of a batch of texts, by `pooling` over the pieces of each token.

        Arguments
        ---------
        texts : list of AlignedText
            From `align`.

        Returns
        -------
        torch.Tensor, [N, H] or [N, L, H], float32
            N = sum of U + 1, one text after another.
        """
        pieces = torch.nn.utils.rnn.pad_sequence(
            [a.piece_ids.long() for a in texts],
            batch_first=True,
            padding_value=self.tokenizer.pad_token_id or 0,
        )
        num_pieces = torch.tensor([len(a.piece_ids) for a in texts])
        valid_mask = torch.arange(pieces.shape[1]) < num_pieces[:, None]
        outputs = self.encoder(
            input_ids=pieces.to(self.device),
            attention_mask=valid_mask.long().to(self.device),
            output_hidden_states=True,
        )
        if isinstance(self.layer, int):
            states = outputs.hidden_states[self.layer]
        else:
            states = torch.stack([outputs.hidden_states[n] for n in self.layer], dim=2)

        # [B, S, ...] laid flat: text number b begins at piece b * S.
        ranges = torch.cat(
            [a.ranges.long() + b * pieces.shape[1] for b, a in enumerate(texts)]
        ).to(self.device)
        if self.pooling != "mean":
            places = {"last": ranges[:, 1] - 1, "before": ranges[:, 0] - 1}
            return states.flatten(0, 1)[places[self.pooling]]
        counts = ranges[:, 1] - ranges[:, 0]
        owner = torch.repeat_interleave(counts)
        within = torch.arange(len(owner), device=self.device)
        within -= (counts.cumsum(0) - counts)[owner]
        states = states.flatten(0, 1)[ranges[owner, 0] + within]
        pooled = states.new_zeros(len(ranges), *states.shape[1:])
        pooled.index_add_(0, owner, states)
        return pooled / counts.view(-1, *[1] * (states.dim() - 1))


def token_batches(texts, batch_tokens):
    """Cut a list of texts, longest first, into batches of bounded size.

    Arguments
    ---------
    texts : list of AlignedText
        Sorted, so that little is padded.
    batch_tokens : int
        Teacher pieces in a batch, padding included. A single longer text is a batch.

    Yields
    ------
    list of AlignedText
    """
    start = 0
    while start < len(texts):
        size = max(1, batch_tokens // len(texts[start].piece_ids))
        yield texts[start : start + size]
        start += size


def _load_tokenizer(source):
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        source, local_files_only=os.path.isdir(source)
    )
    if not tokenizer.is_fast:
        raise ValueError(
            f"teacher {source}: {type(tokenizer).__name__} is a Python tokenizer, "
            "which gives no character offsets. Use a teacher with a fast tokenizer, or "
            "convert it to a tokenizer.json"
        )
    # Before the first call, which writes padding into the rules.
    rules = tokenizer.backend_tokenizer.to_str()
    # Without its files, transformers makes one of the special pieces alone.
    files = sorted(set(tokenizer.vocab_files_names.values()))
    if os.path.isdir(source) and not {*files} & {*os.listdir(source)}:
        raise FileNotFoundError(
            f"teacher folder {source} has no tokenizer ({', '.join(files)}), so every "
            "word would be unknown: copy the files of the model's tokenizer into it"
        )
    return tokenizer, hashlib.sha256(rules.encode()).hexdigest()[:16]


def _load_encoder(source):
    # Its report of missing weights is replaced by the check below.
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model, report = transformers.AutoModel.from_pretrained(
            source,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=os.path.isdir(source),
        )
    finally:
        transformers.logging.set_verbosity(verbosity)
    random = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if random:
        raise ValueError(
            f"teacher {source}: {len(random):,} weights are not in the checkpoint and "
            f"would be random, first {random[0]}: the files do not belong together, or "
            "config.json names another architecture"
        )
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _resolve_layer(layer, num_layers, source):
    if isinstance(layer, int):
        if not -num_layers - 1 <= layer <= num_layers:
            raise ValueError(
                f"teacher {source} has layers 0 (embeddings) to {num_layers}, layer is "
                f"{layer}: correct --layer"
            )
        return layer % (num_layers + 1)
    return [_resolve_layer(number, num_layers, source) for number in layer]


def _special_pieces(tokenizer, source, causal):
    """Ids of the special pieces before and after every text, as two lists."""
    pieces = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = pieces["input_ids"], pieces["special_tokens_mask"]
    begin, end = ids[: mask.index(0)], ids[len(ids) - mask[::-1].index(0) :]
    if causal and not end and tokenizer.eos_token_id is not None:
        end = [tokenizer.eos_token_id]
    if causal and not begin:
        # GPT-2 and Qwen begin a text behind the end of another.
        first = tokenizer.bos_token_id
        begin = end[-1:] if first is None else [first]
    if not end:
        raise ValueError(
            f"teacher {source}: its tokenizer has no piece for the end of a text, so "
            "there is no state for end of sentence. Use a BERT, RoBERTa, T5 or GPT kind "
            "of model, with the tokenizer it was trained with"
        )
    return begin, end


def _max_pieces(encoder, tokenizer):
    """Pieces a text may have, special ones included."""
    limits = [tokenizer.model_max_length]
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings"):
            # RoBERTa counts positions from behind the padding index.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - unused)
    if len(limits) == 1:
        limit = getattr(encoder.config, "max_position_embeddings", 0)
        limits.append(limit if limit > 0 else limits[0])
    return min(limits)
