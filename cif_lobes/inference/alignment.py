"""When CIF fired each token: spans in seconds, and a line of them on the terminal."""

import math
import unicodedata
from typing import NamedTuple

from cif_lobes.data.tokens import SPACE

BLOCKS = " ▁▂▃▄▅▆▇█"


class FrameClock(NamedTuple):
    """Encoder frame t lasts from start + t * step to start + (t + 1) * step."""

    start: float  # beginning of the first encoder frame, in seconds
    step: float  # duration of an encoder frame, in seconds


class TokenSpan(NamedTuple):
    """A token or word and the time over which it was integrated."""

    token: str
    start: float  # seconds: the fire of the token before, or the first encoder frame
    end: float  # seconds: the fire of this token


def frame_clock(features, encoder, sample_rate):
    """Time of the encoder frames of a network.

    A frame lasts one hop around its centre. These are the frames that it stands for, not
    those that it knows.

    Arguments
    ---------
    features, encoder : torch.nn.Module
        With the clocks that `cif_lobes.nets` describes: `hop` and `centre`, of the features
        in samples, of the encoder in frames of the features.
    sample_rate : int
        Hz.

    Returns
    -------
    FrameClock

    Example
    -------
    >>> from types import SimpleNamespace as Clock
    >>> clock = frame_clock(Clock(hop=160, centre=0), Clock(hop=8, centre=5), 16000)
    >>> f"{clock.start:.2f} {clock.step:.2f}"
    '0.01 0.08'
    """
    hop, first = features.hop / sample_rate, features.centre / sample_rate
    start = first + (encoder.centre - encoder.hop / 2) * hop
    return FrameClock(start, encoder.hop * hop)


def token_spans(tokens, boundaries, clock):
    """Spans of the tokens of one utterance.

    They leave no gaps: a pause belongs to the token that is fired after it.

    Arguments
    ---------
    tokens : list of str
        What to call the U fires.
    boundaries : torch.Tensor, [U + 1], float32
        From `CIFOutput.boundaries`, in encoder frames.
    clock : FrameClock

    Returns
    -------
    list of TokenSpan

    Raises
    ------
    ValueError
        If there is not one token per fire.

    Example
    -------
    >>> import torch
    >>> token_spans(["你", "好"], torch.tensor([0.0, 2.5, 4.0]), FrameClock(0.0, 0.5))[1]
    TokenSpan(token='好', start=1.25, end=2.0)
    """
    times = [clock.start + clock.step * boundary for boundary in boundaries.tolist()]
    if len(times) != len(tokens) + 1:
        raise ValueError(
            f"{len(tokens)} tokens but {len(times)} boundaries: U fires have U + 1. "
            "Cut a padded utterance's to boundaries[: length + 1], and name the fires "
            "at and after the end of sentence, too"
        )
    return [
        TokenSpan(*span) for span in zip(tokens, times[:-1], times[1:], strict=True)
    ]


def word_spans(spans, text):
    """Spans of the words that tokens spell: any units, as long as their letters agree.

    Arguments
    ---------
    spans : list of TokenSpan
        Each token in its own letters, but for the `##` of WordPieces and the mark of a
        space. Tokens behind the text, such as an end of sentence, are left out.
    text : str
        Words between spaces.

    Returns
    -------
    list of TokenSpan

    Example
    -------
    >>> pieces = [TokenSpan("a", 0, 1), TokenSpan("cat", 1, 2), TokenSpan("s", 2, 3)]
    >>> word_spans(pieces, "a cats")[1]
    TokenSpan(token='cats', start=1, end=3)
    """
    words, rest = [], iter(spans)
    for word in text.split():
        letters, first = "", None
        while len(letters) < len(word):
            span = next(rest)
            letters += span.token.removeprefix("##").strip(f" {SPACE}")
            if letters and first is None:
                first = span
        words.append(TokenSpan(word, first.start, span.end))
    return words


def sparkline(alpha, spans, clock, width=80):
    """Weights as blocks for a terminal, each token below the frames that fire it.

    A column is an encoder frame; the frame in which a token fires is its last one.
    Where a token is wider than its frames, columns are left empty.

    Arguments
    ---------
    alpha : torch.Tensor, [T], float32
        CIF weights of one utterance.
    spans : list of TokenSpan
    clock : FrameClock
    width : int
        Columns of the terminal.

    Returns
    -------
    str
        Pairs of lines. The highest block is the highest weight.

    Example
    -------
    >>> import torch
    >>> clock = FrameClock(0.0, 0.08)
    >>> spans = token_spans(["hi", "you"], torch.tensor([0.0, 2.0, 4.0]), clock)
    >>> print(sparkline(torch.tensor([0.25, 1.0, 0.5, 0.75]), spans, clock))
    ▂█ ▄▆
    hi you
    """
    top = max(alpha.tolist(), default=0.0) or 1.0
    blocks = "".join(BLOCKS[math.ceil(8 * weight / top)] for weight in alpha.tolist())
    cells, first = [], 0
    for span in spans:
        # Rounded, because seconds are not exact multiples of the frame.
        last = math.ceil(round((span.end - clock.start) / clock.step, 6))
        cells.append((blocks[first:last], span.token))
        first = last
    cells.append((blocks[first:], ""))
    lines, above, below, column = [], "", "", 0
    for frames, token in cells:
        columns = max(len(frames), _columns(token) + 1)
        if column and column + columns > width:
            lines += [above, below]
            above, below, column = "", "", 0
        above += frames.ljust(columns)
        below += token + " " * (columns - _columns(token))
        column += columns
    return "\n".join(line.rstrip() for line in [*lines, above, below])


def _columns(text):
    """Terminal columns of a text: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
