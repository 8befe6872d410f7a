"""Which teacher pieces stand behind each recognition token.

The recogniser and the teacher split the same text differently. Both know which
characters each of their units covers, so characters are the common ground: no
assumption about vocabularies, and no way for the two sequences to shift silently.
"""


def align(token_spans, piece_spans):
    """Range of teacher pieces for each recognition token and for end of sentence.

    A token is given every piece that shares a character with it. A token whose
    characters the teacher drops (a control character, a bare space) takes the nearest
    piece, the following one at equal distance; if the teacher keeps nothing at all, its
    end-of-sentence piece. Equal segmentations are matched one to one, also where
    several pieces stand for one character ("㎏" split into two).

    Arguments
    ---------
    token_spans : list of (int, int)
        Start and end of each recognition token, in characters, in text order.
    piece_spans : list of (int, int)
        The same for the teacher's pieces, special pieces left out.

    Returns
    -------
    list of (int, int)
        First piece and one past the last for each of the U tokens, and then for end of
        sentence, which is piece number `len(piece_spans)`. Always U + 1 ranges, none
        empty.

    Example
    -------
    >>> characters = [(0, 1), (1, 2), (2, 3), (3, 4)]  # 买 t v 吗
    >>> align(characters, [(0, 1), (1, 3), (3, 4)])  # 买 tv 吗
    [(0, 1), (1, 2), (1, 2), (2, 3), (3, 4)]
    >>> align([(0, 3)], [(0, 1), (1, 3)])
    [(0, 2), (2, 3)]
    """
    num_pieces = len(piece_spans)
    end_of_sentence = (num_pieces, num_pieces + 1)
    if token_spans == piece_spans:
        return [(i, i + 1) for i in range(num_pieces)] + [end_of_sentence]
    ranges = []
    first = 0
    for start, end in token_spans:
        while first < num_pieces and piece_spans[first][1] <= start:
            first += 1
        last = first
        while last < num_pieces and piece_spans[last][0] < end:
            last += 1
        if first < last:
            ranges.append((first, last))
        else:
            nearest = _nearest(start, end, first, piece_spans)
            ranges.append((nearest, nearest + 1))
    return [*ranges, end_of_sentence]


def _nearest(start, end, following, piece_spans):
    """The closer of piece `following`, which may not exist, and the one before it."""
    if following == 0 or not piece_spans:
        return following
    if following == len(piece_spans):
        return following - 1
    gap_before = start - piece_spans[following - 1][1]
    gap_after = piece_spans[following][0] - end
    return following if gap_after <= gap_before else following - 1


def token_spans(tokenizer, text, utt_id):
    """Character spans of a text's recognition tokens, checked against its token ids.

    Arguments
    ---------
    tokenizer : object
        With `encode(text)` and `offsets(text)`, as in `cif_lobes.data.tokens`.
    text : str
        Normalised transcript.
    utt_id : str
        Utterance named in the error.

    Returns
    -------
    list of (int, int)
        Start and end of each of the U tokens, in characters.

    Raises
    ------
    ValueError
        If there is not exactly one span per token, or the spans are not in text order.
    """
    spans = [tuple(span) for span in tokenizer.offsets(text)]
    num_tokens = len(tokenizer.encode(text))
    if len(spans) != num_tokens:
        raise ValueError(
            f"utterance {utt_id}: {num_tokens} tokens but {len(spans)} character spans "
            f"for {text!r}: encode() and offsets() of {type(tokenizer).__name__} "
            "disagree, so teacher states cannot be matched to its tokens"
        )
    ends = [0, *(end for _, end in spans)]
    starts = [start for start, _ in spans] + [len(text)]
    in_order = all(start >= 0 for start in starts) and sorted(starts) == starts
    if not in_order or sorted(ends) != ends or ends[-1] > len(text):
        raise ValueError(
            f"utterance {utt_id}: character spans {spans} do not run in order through "
            f"the {len(text)} characters of {text!r}: "
            f"{type(tokenizer).__name__}.offsets() must refer to the normalised text"
        )
    return spans
