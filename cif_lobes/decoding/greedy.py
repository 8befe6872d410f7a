"""Greedy search along one utterance, a fire at a time: for streams, and without PyTorch.

`cif_lobes.decoding.searcher.GreedySearcher` does the same for a batch whose fires are all
known; tests hold them together.
"""

from typing import NamedTuple

import numpy as np


class Choice(NamedTuple):
    """The token of a fire."""

    token: int
    """int: token id; the end of sentence is one, too."""
    log_prob: float
    """float: its log-probability."""
    score: float
    """float: the same, and what the hotwords add."""


class GreedyPath:
    """At every fire the best token, hotwords counted: argmax of log p + weight * gain.

    Arguments
    ---------
    blank_index, bos_index, eos_index : int
        CTC blank; token before the first fire; token that ends the utterance.
    eos_threshold : float, optional
        As of `cif_lobes.decoding.searcher.BeamSearcher`.
    hotwords : cif_lobes.decoding.hotwords.HotwordTree, optional
    hotword_weight : float

    Attributes
    ----------
    previous : int
        Token before the next fire.

    Example
    -------
    >>> path = GreedyPath(0, 1, 2)
    >>> choice = path.choose(np.array([0.0, 0.0, 1.0, 3.0]), last=False)
    >>> path.follow(choice.token)
    >>> path.previous, path.ended
    (3, False)
    """

    def __init__(
        self,
        blank_index,
        bos_index,
        eos_index,
        eos_threshold=1.5,
        hotwords=None,
        hotword_weight=0.0,
    ):
        self.blank_index, self.eos_index = blank_index, eos_index
        self.bos_index = self.previous = bos_index
        self.eos_threshold = eos_threshold
        self.hotwords, self.hotword_weight = hotwords, hotword_weight
        self.state = None if hotwords is None else hotwords.start

    @property
    def ended(self):
        """bool: whether the end of sentence has come."""
        return self.previous == self.eos_index

    def choose(self, logits, last):
        """The best token of a fire; the path does not go there yet.

        Arguments
        ---------
        logits : numpy.ndarray, [V], float
            The decoder's, after the token `previous`.
        last : bool
            Whether no fire follows.

        Returns
        -------
        Choice
        """
        logits = np.asarray(logits, dtype=np.float32)
        log_probs = logits - logits.max()
        log_probs -= np.log(np.exp(log_probs).sum())
        scores = log_probs.copy()
        # Never a target, so never wanted.
        scores[[self.blank_index, self.bos_index]] = -np.inf
        if self.eos_threshold is not None and not last:
            if scores[self.eos_index] < self.eos_threshold * scores.max():
                scores[self.eos_index] = -np.inf
        if self.hotwords is not None:
            gains = self.hotwords.gains([self.state], [last])[0]
            scores += self.hotword_weight * gains
        token = int(scores.argmax())
        return Choice(token, float(log_probs[token]), float(scores[token]))

    def follow(self, token):
        """Go on with a token."""
        if self.hotwords is not None:
            self.state = self.hotwords.next(self.state, token)
        self.previous = token
