"""Recognition units: characters, words or phones, SentencePiece pieces, WordPieces.

All sit behind one small interface (`Tokenizer`): text to ids and back, the
character span of every token, one file that defines the vocabulary. Ids 0 to 3 are the
CTC blank, the begin and the end of a sentence, and the unknown token.
"""

import collections
import hashlib
import io
import pathlib
import re

from cif_lobes.data.formats import not_utf8
from cif_lobes.data.text import normalize
from cif_lobes.data.vocabulary_texts import compare_texts, note_texts
from cif_lobes.storage.atomic_files import atomic_open

BLANK, BOS, EOS, UNK = range(4)
SPACE = "\u2581"  # SentencePiece's mark of a space before a word
SPECIALS = ["<blank>", "<bos>", "<eos>", "<unk>"]


class Tokenizer:
    """What every kind of unit shares: the vocabulary file and its identity.

    Arguments
    ---------
    path : str
        The vocabulary file. Made from training text by `fit` if it does not exist.
    vocab_size : int
        Output symbols V, the four specials included. A vocabulary may have fewer
        (the remaining outputs are never a target), not more.
    language : str
        "zh", "en" or "none": which text normalisation is applied before splitting.
    """

    blank_index, bos_index, eos_index, unk_index = BLANK, BOS, EOS, UNK

    def __init__(self, path, vocab_size, language):
        self.path = pathlib.Path(path)
        self.vocab_size = vocab_size
        self.language = language
        self._loaded = False
        self._model = None

    def fit(self, texts):
        """Make the vocabulary from training text unless its file exists; load it.

        A hash beside the file says which texts it was made from; a warning, if these are
        others.

        Arguments
        ---------
        texts : iterable of str
            Transcripts of the training set.

        Raises
        ------
        ValueError
            If the vocabulary in the file has more than vocab_size symbols.
        """
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            texts = [self.normalize(t) for t in texts]
            vocabulary = self._train(texts)
            with atomic_open(self.path, "wb") as file:
                file.write(vocabulary)
            note_texts(self.path, texts)
        else:
            compare_texts(self.path, map(self.normalize, texts))
        self._load_once()
        return self

    def normalize(self, text):
        """The text that is recognised and scored."""
        return normalize(text, self.language)

    def encode(self, text):
        """Token ids of a text, without end of sentence."""
        self._load_once()
        return [token for token, _ in self._split(self.normalize(text))]

    def offsets(self, text):
        """Character span (start, end) in the normalised text of each encoded token."""
        self._load_once()
        return [span for _, span in self._split(self.normalize(text))]

    def decode(self, ids):
        """Text of token ids; specials are dropped, the unknown token stays visible."""
        self._load_once()
        # An output that no symbol uses is never a target, but may win early in training.
        ids = [i if i < self._size else UNK for i in map(int, ids) if i >= UNK]
        return self._join(ids)

    # The name SpeechBrain's pretrained interfaces call.
    decode_ids = decode

    def pieces(self):
        """Symbols by id, as list of str; `SPACE` stands before a word's first piece.

        As many as the network has outputs: those that no symbol uses are unknown.
        """
        self._load_once()
        unused = self.vocab_size - self._size
        return [self._piece(i) for i in range(self._size)] + [SPECIALS[UNK]] * unused

    def _piece(self, index):
        return self._symbols[index]

    @property
    def symbols(self):
        """Spelling of every token, as a list by id."""
        self._load_once()
        return self._symbols

    @property
    def fingerprint(self):
        """Hash of the vocabulary and the normalisation, to recognise a stale cache."""
        self._load_once()
        digest = hashlib.sha256(self.path.read_bytes())
        digest.update(f"{type(self).__name__} {self.language}".encode())
        return digest.hexdigest()[:16]

    def _load_once(self):
        if self._loaded:
            return
        if not self.path.exists():
            raise FileNotFoundError(
                f"tokenizer {self.path} does not exist: train.py makes it from the "
                "training transcripts before anything else runs"
            )
        self._size = self._load(self.path.read_bytes())
        if self._size > self.vocab_size:
            raise ValueError(
                f"tokenizer {self.path} has {self._size} symbols, the network has "
                f"vocab_size {self.vocab_size}: it was made with another setting. "
                f"Run with --vocab_size {self._size}, or delete the file to make it again"
            )
        self._loaded = True

    def _lines(self, data):
        """Specials and the symbols of a vocabulary file of one a line."""
        try:
            return SPECIALS + data.decode().split("\n")[:-1]
        except UnicodeDecodeError:
            raise ValueError(f"tokenizer {not_utf8(self.path)}") from None

    def __getstate__(self):
        # DataLoader workers reload from the file: a SentencePiece model is not picklable
        # under every start method, and the file is small.
        return {**self.__dict__, "_loaded": False, "_model": None}


class CharTokenizer(Tokenizer):
    """One token per character; the unit of the Mandarin recipes.

    The vocabulary file has one character a line, most frequent first.

    Example
    -------
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/chars.txt"
    >>> tokenizer = CharTokenizer(path, vocab_size=8, language="zh").fit(["你好 ＡＢ"])
    >>> tokenizer.decode(tokenizer.encode("好你a龙"))
    '好你a<unk>'
    """

    def _train(self, texts):
        return _most_frequent((c for text in texts for c in text), self.vocab_size)

    def _load(self, data):
        self._symbols = self._lines(data)
        self._ids = {c: i for i, c in enumerate(self._symbols)}
        return len(self._symbols)

    def _split(self, text):
        return [(self._ids.get(c, UNK), (i, i + 1)) for i, c in enumerate(text)]

    def _join(self, ids):
        return "".join(self._symbols[i] for i in ids)


class WordTokenizer(Tokenizer):
    """One token per word, or per phone of a phonetic transcript.

    The vocabulary file has one word a line, most frequent first.

    Example
    -------
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/phones.txt"
    >>> tokenizer = WordTokenizer(path, vocab_size=8, language="en").fit(["sil sh iy sil"])
    >>> tokenizer.encode("sil iy")
    [4, 5]
    >>> tokenizer.decode([6, 5])
    'sh iy'
    """

    def _train(self, texts):
        return _most_frequent((w for t in texts for w in t.split()), self.vocab_size)

    def _load(self, data):
        self._symbols = self._lines(data)
        self._ids = {w: i for i, w in enumerate(self._symbols)}
        return len(self._symbols)

    def _split(self, text):
        words = re.finditer(r"\S+", text)
        return [(self._ids.get(w.group(), UNK), w.span()) for w in words]

    def _join(self, ids):
        return " ".join(self._symbols[i] for i in ids)

    def _piece(self, index):
        return SPACE + self._symbols[index]


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece units (https://arxiv.org/abs/1808.06226).

    The vocabulary file is the SentencePiece model. A piece's span covers its
    characters without the space before the word.

    Arguments
    ---------
    path : str
        The vocabulary file, a SentencePiece model.
    vocab_size : int
        Output symbols V, specials included.
    language : str
        "zh", "en" or "none".
    model_type : str
        "unigram", or "bpe", whose pieces grow to whole words with vocab_size.

    Example
    -------
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/pieces.model"
    >>> texts = ["the cat sat", "the dog sat", "a cat ran to the dog"]
    >>> tokenizer = SentencePieceTokenizer(path, vocab_size=24, language="en").fit(texts)
    >>> tokenizer.decode(tokenizer.encode("The dog ran"))
    'the dog ran'
    """

    def __init__(self, path, vocab_size, language, model_type="unigram"):
        super().__init__(path, vocab_size, language)
        self.model_type = model_type

    def _train(self, texts):
        import sentencepiece

        letters = {c for text in texts for c in text} | {SPACE}
        letters -= {" "}
        if not letters - {SPACE}:
            raise ValueError(
                f"tokenizer {self.path}: the training texts are empty. See the column "
                "wrd of the training csv"
            )
        if self.vocab_size < len(letters) + len(SPECIALS):
            raise ValueError(
                f"tokenizer {self.path}: vocab_size {self.vocab_size} is too small, the "
                f"training texts have {len(letters)} different characters, and "
                f"{len(SPECIALS)} specials come on top. Run with --vocab_size "
                f"{len(letters) + len(SPECIALS)} or more, or see whether the texts are clean"
            )
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=self.vocab_size,
            model_type=self.model_type,
            character_coverage=1.0,
            normalization_rule_name="identity",
            pad_id=BLANK,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNK,
            pad_piece=SPECIALS[BLANK],
            bos_piece=SPECIALS[BOS],
            eos_piece=SPECIALS[EOS],
            unk_piece=SPECIALS[UNK],
            unk_surface=SPECIALS[UNK],
            # A small corpus may not have as many distinct pieces as asked for.
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=1,
        )
        return model.getvalue()

    def _load(self, data):
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise ValueError(
                f"tokenizer {self.path} is no SentencePiece model, or a damaged one. Copy "
                "it again from the run, or delete it to make it from this training set"
            ) from error
        ids = range(self._model.get_piece_size())
        self._symbols = [self._model.id_to_piece(i) for i in ids]
        return len(self._symbols)

    def _split(self, text):
        ids = self._model.encode(text)
        surfaces = self._model.encode(text, out_type=str)
        # Together the pieces spell the text with a mark before every word, the first
        # included: one character more than the text has.
        pieces, end = [], -1
        for token, surface in zip(ids, surfaces, strict=True):
            start, end = end, end + len(surface)
            if surface.startswith(SPACE):
                start += 1
            pieces.append((token, (start, end)))
        return pieces

    def _join(self, ids):
        return self._model.decode(ids)

    def _piece(self, index):
        return self._model.id_to_piece(index)


class WordPieceTokenizer(Tokenizer):
    """WordPieces of an uncased BERT (https://arxiv.org/abs/1810.04805) as units.

    The recogniser's tokens are the teacher's own, so its states match them one to one.
    Only pieces that occur in the training text become outputs: the network predicts
    hundreds or thousands of symbols, not the teacher's 30,522. BERT splits "don't" into
    three words; here all pieces but the first of what stands between spaces have the ##
    of a continuation, so that decoding gives the text back. Decoding needs the vocabulary
    file alone; the teacher's is read when text is split.

    Arguments
    ---------
    path : str
        The vocabulary file, one piece a line.
    vocab_size : int
        Output symbols V, specials included; the most frequent pieces are kept.
    language : str
        "zh", "en" or "none".
    teacher_vocab : str
        The teacher's vocab.txt.
    """

    def __init__(self, path, vocab_size, language, teacher_vocab):
        super().__init__(path, vocab_size, language)
        self.teacher_vocab = pathlib.Path(teacher_vocab)

    def _train(self, texts):
        pieces = (piece for text in texts for piece, _ in self._wordpieces(text))
        return _most_frequent((p for p in pieces if p != "[UNK]"), self.vocab_size)

    def _load(self, data):
        self._symbols = self._lines(data)
        self._ids = {c: i for i, c in enumerate(self._symbols)}
        return len(self._symbols)

    def _split(self, text):
        return [(self._ids.get(p, UNK), span) for p, span in self._wordpieces(text)]

    def _wordpieces(self, text):
        """(piece, (start, end)) in text, as the teacher splits it."""
        if self._model is None:
            from tokenizers.implementations import BertWordPieceTokenizer

            if not self.teacher_vocab.is_file():
                raise FileNotFoundError(
                    f"teacher_vocab {self.teacher_vocab} does not exist: give the "
                    "vocab.txt in the teacher's folder"
                )
            self._model = BertWordPieceTokenizer(str(self.teacher_vocab))
        encoded = self._model.encode(text, add_special_tokens=False)
        pieces, before = [], None
        for piece, (start, end) in zip(encoded.tokens, encoded.offsets, strict=True):
            # Chinese has no spaces, and needs none to be read.
            inside = start == before and self.language != "zh"
            if inside and piece != "[UNK]" and not piece.startswith("##"):
                piece = f"##{piece}"
            pieces.append((piece, (start, end)))
            before = end
        return pieces

    def _join(self, ids):
        text = " ".join(self._symbols[i] for i in ids)
        return text.replace(" ##", "").removeprefix("##")

    def _piece(self, index):
        piece = self._symbols[index]
        return piece[2:] if piece.startswith("##") else SPACE + piece


def _most_frequent(symbols, vocab_size):
    """A vocabulary file with room for the specials; ties in the symbols' own order."""
    counts = collections.Counter(symbols)
    ranked = sorted(counts, key=lambda s: (-counts[s], s))
    return "".join(f"{s}\n" for s in ranked[: vocab_size - len(SPECIALS)]).encode()
