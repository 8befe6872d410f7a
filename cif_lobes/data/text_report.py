"""What is rare or odd in transcripts, said before anything is trained on them."""

import re

# [noise], <unk>, (laughs), {cough}: words of annotators, that nobody speaks.
MARKUP = re.compile(
    r"\[[^\[\]]*\]|<[^<>]*>|\([^()]*\)|\{[^{}]*\}|（[^（）]*）|【[^【】]*】"
)
OPENING = frozenset("[<({（【")
ENOUGH = 3  # utterances that a character has to be in


def report_texts(utterances, shown=8):
    """Characters too rare to be learnt, digits, markup; each with an utterance.

    Arguments
    ---------
    utterances : iterable of cif_lobes.data.manifest.Utterance
        With normalised text.
    shown : int
        Examples of each kind.

    Returns
    -------
    list of str
        Lines to print; none if there is nothing to say.

    Example
    -------
    >>> from cif_lobes.data.manifest import Utterance
    >>> texts = ["ab"] * 3 + ["ab7", "ba[noise]"]
    >>> rows = [Utterance(f"u{i}", 1.0, "", "", t) for i, t in enumerate(texts)]
    >>> print(*report_texts(rows, shown=2), sep="\\n")
    8 characters in fewer than 3 utterances, too few to be learnt: 7 (u3), [ (u4), ...
    1 digits, which may be read in several ways: 7 (u3)
    1 kinds of markup, which nobody speaks: [noise] (u4)
    """
    count, first, markup = {}, {}, {}
    for u in utterances:
        characters = set(u.wrd)
        for c in characters:
            if c in count:
                count[c] += 1
            else:
                count[c], first[c] = 1, u.id
        if not OPENING.isdisjoint(characters):
            for word in MARKUP.findall(u.wrd):
                markup.setdefault(word, u.id)
    ordered = sorted(first)
    rare = {c: first[c] for c in ordered if count[c] < ENOUGH and not c.isspace()}
    digits = {c: first[c] for c in ordered if c.isdigit()}
    few = f"characters in fewer than {ENOUGH} utterances, too few to be learnt"
    kinds = {few: rare, "digits, which may be read in several ways": digits}
    kinds["kinds of markup, which nobody speaks"] = markup
    return [
        f"{len(found):,} {name}: "
        + ", ".join(f"{c} ({utt_id})" for c, utt_id in [*found.items()][:shown])
        + (", ..." if len(found) > shown else "")
        for name, found in kinds.items()
        if found
    ]
