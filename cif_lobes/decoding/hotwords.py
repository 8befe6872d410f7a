"""Words that the user knows beforehand, found in token sequences as they grow.

A prefix tree over the tokens of the phrases with links from every prefix to the longest of
its ends that is a prefix, too (Aho and Corasick, 1975). Each token of a match earns its
phrase's weight at once, so that a beam keeps it; what was earned is taken back as soon as
the match fails, as in WeNet's and icefall's context graphs, and stays where a phrase is
complete. Complete is a phrase only before the begin of a word: "ann" is not in "planning"
and not in "annual". Needs no PyTorch.
"""

import logging
import os
import pathlib
import time

import numpy as np

from cif_lobes.data.tokens import SPACE

logger = logging.getLogger(__name__)

MANY = 20_000  # phrases, from which on a note says what they cost


def read_hotwords(source):
    """The phrases of a file, or of a list.

    Arguments
    ---------
    source : str, os.PathLike, or list of str or (str, float)
        UTF-8 text, a phrase a line; behind a tab its weight, 1 if there is none. A list
        has phrases, or phrases and weights.

    Returns
    -------
    list of (str, float)
        Phrase and weight. Of a phrase that comes twice, the first.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If there is no phrase in it, or a weight is no positive number.
    """
    if not isinstance(source, (str, os.PathLike)):
        rows = ((row, "") if isinstance(row, str) else row for row in source)
        return _unique(
            ((phrase.strip(), weight) for phrase, weight in rows), name_of(source)
        )
    path = pathlib.Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"hotwords {path}: no such file. Give a text file with a phrase a line"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"hotwords {path} is not UTF-8 (byte {error.start}): convert it, for "
            f"instance with iconv -f GBK -t UTF-8"
        ) from None
    parts = (line.partition("\t") for line in lines)
    return _unique(
        ((phrase.strip(), weight.strip()) for phrase, _, weight in parts), path
    )


def name_of(source):
    """What messages call a file or a list of phrases."""
    return source if isinstance(source, (str, os.PathLike)) else "(a list)"


def _unique(rows, name):
    """Phrases and weights, those before that come twice."""
    phrases = {}
    for number, (phrase, weight) in enumerate(rows, start=1):
        if phrase:
            phrases.setdefault(phrase, _read_weight(weight, f"{name}, line {number}"))
    if not phrases:
        raise ValueError(f"hotwords {name}: no phrase in it. Write one a line")
    return list(phrases.items())


def _read_weight(text, place):
    try:
        weight = float(1 if text == "" else text)
    except (TypeError, ValueError):
        weight = np.nan
    if not 0 < weight < np.inf:
        raise ValueError(
            f"hotwords {place}: weight {text!r} is no positive number. Write the phrase, "
            "a tab, and for instance 1.5, or the phrase alone"
        )
    return weight


def load_hotwords(source, tokenizer):
    """The tree of some phrases; what is skipped, and what many cost, is logged.

    Arguments
    ---------
    source : str, os.PathLike or list
        See `read_hotwords`.
    tokenizer : cif_lobes.data.tokens.Tokenizer

    Returns
    -------
    HotwordTree
    """
    phrases, start = read_hotwords(source), time.monotonic()
    tree = HotwordTree(phrases, tokenizer)
    warn_skipped(source, phrases, tree.skipped, tokenizer)
    if len(phrases) >= MANY:
        seconds = time.monotonic() - start
        logger.warning(
            f"hotwords {name_of(source)}: {len(phrases):,} phrases, of {len(tree):,} "
            f"prefixes, read in {seconds:.1f} s; the more there are, the more text that "
            "was right do they replace: give those of the recording"
        )
    return tree


def write_with(tokenizer, phrases):
    """Phrases as tokens.

    Arguments
    ---------
    tokenizer : cif_lobes.data.tokens.Tokenizer
        The recogniser's. Phrases are normalised as transcripts are.
    phrases : list of (str, float)
        Phrase and weight, see `read_hotwords`.

    Returns
    -------
    written : list of (list of int, float)
        Tokens and weight.
    skipped : list of str
        Phrases with a token that the vocabulary does not have.

    Raises
    ------
    ValueError
        If none can be written.
    """
    written, skipped = [], []
    for phrase, weight in phrases:
        tokens = tokenizer.encode(phrase)
        if not tokens or tokenizer.unk_index in tokens:
            skipped.append(phrase)
        else:
            written.append((tokens, weight))
    if not written:
        raise ValueError(
            f"hotwords: none of {len(phrases):,} phrases can be written with "
            f"{tokenizer.path}, first {skipped[0]!r}: it was made for another "
            "language or spelling"
        )
    return written, skipped


def warn_skipped(source, phrases, skipped, tokenizer):
    """Log the phrases of a file or list that were skipped, if there are any."""
    if skipped:
        logger.warning(
            f"hotwords {name_of(source)}: {len(skipped):,} of {len(phrases):,} phrases "
            f"cannot be written with {tokenizer.path} and are skipped, first {skipped[0]!r}"
        )


class HotwordTree:
    """What every next token adds to the score of a sequence, and where it leads.

    A state is a number: what of the phrases the sequence ends with.

    Arguments
    ---------
    phrases : list of (str, float)
        Phrase and weight, see `read_hotwords`.
    tokenizer : cif_lobes.data.tokens.Tokenizer
        The recogniser's. Phrases are normalised as transcripts are.

    Attributes
    ----------
    start : int
        State of a sequence without tokens.
    skipped : list of str
        Phrases that the vocabulary cannot write.

    Raises
    ------
    ValueError
        If it can write none of them.

    Example
    -------
    >>> import tempfile
    >>> from cif_lobes.data.tokens import CharTokenizer
    >>> path = tempfile.mkdtemp() + "/chars.txt"
    >>> tokenizer = CharTokenizer(path, vocab_size=9, language="zh").fit(["北京上海"])
    >>> tree, total = HotwordTree([("北京", 1.5)], tokenizer), 0.0
    >>> state = tree.start
    >>> for token in tokenizer.encode("上北海北京"):
    ...     total += float(tree.gains([state])[0, token])
    ...     state = tree.next(state, token)
    >>> total
    3.0
    """

    def __init__(self, phrases, tokenizer):
        self.vocab_size = tokenizer.vocab_size
        self._begins_word, space = _word_begins(tokenizer)
        # Nodes: 0 is the root. A value is what the tokens up to a node earn.
        self._children, self._parent, self._fail = [{}], [0], [0]
        self._depth, self._value, self._is_end = [0], [0.0], [False]
        written, self.skipped = write_with(tokenizer, phrases)
        for tokens, weight in written:
            # A space that is a token of its own stands before the first word, too.
            self._add([space] * (space is not None) + tokens, weight, space)
        self.start = self._children[0].get(space, 0)
        self._kept = self._link()
        self._ways = {}
        self._losses = self._kept - np.array(self._value, dtype=np.float32)
        self._begin_gains = np.zeros(self.vocab_size, dtype=np.float32)
        # What is taken back if the sequence ends behind a phrase's first token.
        self._begin_ends = np.zeros(self.vocab_size, dtype=np.float32)
        for token, child in self._children[0].items():
            self._begin_gains[token] = self._value[child]
            self._begin_ends[token] = self._losses[1, child]

    def __len__(self):
        return len(self._children)

    def gains(self, states, last=None):
        """What each token would add to the scores of sequences.

        Arguments
        ---------
        states : sequence of int, [N]
        last : sequence of bool, [N], optional
            Which sequences end with this token, whatever it is: what they have earned for
            a phrase that is not complete is taken back. None of them, if not given.

        Returns
        -------
        numpy.ndarray, [N, V], float32
            Weights earned less weights taken back.
        """
        losses = self._losses[:, np.asarray(states, dtype=np.int64)]
        gains = np.where(self._begins_word, losses[1][:, None], losses[0][:, None])
        gains += self._begin_gains
        ends = [False] * len(states) if last is None else last
        for row, state, is_last in zip(gains, states, ends, strict=True):
            tokens, values, nodes, _ = self._ways_on(state)
            row[tokens] = values
            if is_last:
                taken_back = self._begin_ends.copy()
                taken_back[tokens] = self._losses[1, nodes]
                row += taken_back
        return gains

    def next(self, state, token):
        """State of a sequence that goes on with a token."""
        return self._ways_on(state)[3].get(token, self._children[0].get(token, 0))

    def _add(self, tokens, weight, space):
        node = 0
        for place, token in enumerate(tokens):
            child = self._children[node].get(token)
            earns = 0.0 if place == 0 and token == space else weight
            if child is None:
                child = self._children[node][token] = len(self._children)
                self._children.append({})
                self._parent.append(node)
                self._fail.append(0)
                self._depth.append(self._depth[node] + 1)
                self._value.append(0.0)
                self._is_end.append(False)
            # Phrases that begin alike: the larger weight.
            self._value[child] = max(self._value[child], self._value[node] + earns)
            node = child
        self._is_end[node] = True

    def _link(self):
        """Set the links, from short prefixes to long ones.

        Returns
        -------
        numpy.ndarray, [2, nodes], float32
            What stays of a node's value if its match fails: the weight of the phrases
            in it, as many as do not overlap. Row 1: before the begin of a word, which
            completes what ends here; row 0: before another token.
        """
        kept = np.zeros((2, len(self)), dtype=np.float32)
        queue, shorter = [0], [0] * len(self)  # the longest of a node's ends: a phrase
        for node in queue:
            kept[1, node] = kept[0, node]
            phrase = node if self._is_end[node] else shorter[node]
            while phrase:
                first = node
                for _ in range(self._depth[phrase] - 1):
                    first = self._parent[first]
                stays = kept[0, first] + self._value[phrase]
                kept[1, node] = max(kept[1, node], stays)
                phrase = shorter[phrase]
            for token, child in self._children[node].items():
                kept[0, child] = kept[int(self._begins_word[token]), node]
                end = self._fail[node]
                while end and token not in self._children[end]:
                    end = self._fail[end]
                if node:
                    self._fail[child] = end = self._children[end].get(token, 0)
                    shorter[child] = end if self._is_end[end] else shorter[end]
                queue.append(child)
        return kept

    def _ways_on(self, state):
        """Tokens with which a match goes on, what they add, and the states by token."""
        if state not in self._ways:
            ways, node = {}, state
            while node:
                for token, child in self._children[node].items():
                    begins = int(self._begins_word[token])
                    # What both keep is the same phrases.
                    lost = self._losses[begins, state] - self._kept[begins, node]
                    if node == state:
                        lost = -self._value[state]
                    ways.setdefault(token, (lost + self._value[child], child))
                node = self._fail[node]
            tokens = np.fromiter(ways, dtype=np.int64, count=len(ways))
            values = np.array([gain for gain, _ in ways.values()], dtype=np.float32)
            states = {token: child for token, (_, child) in ways.items()}
            nodes = np.array([*states.values()], dtype=np.int64)
            self._ways[state] = tokens, values, nodes, states
        return self._ways[state]


def _word_begins(tokenizer):
    """Whether each token begins a word [V], and the token that is a space, or None.

    The end of a sentence is as good as a word's begin. Where no token has a space, as in
    Chinese, every token begins one.
    """
    pieces = tokenizer.pieces()
    space = pieces.index(" ") if " " in pieces else None
    begins = np.array([piece[:1] in (" ", SPACE) for piece in pieces])
    if not begins.any():
        begins[:] = True
    begins[tokenizer.eos_index] = True
    return begins, space
