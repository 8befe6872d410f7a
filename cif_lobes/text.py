"""One spelling of every text, for the tokenizer, the scorer and the teacher alike."""

# Full-width digits and Latin letters (U+FF10...) are the half-width ones 0xFEE0 further
# up. Only these are folded, not all that NFKC would: AISHELL-1's held-out sets spell
# Latin letters full-width, which its training set never shows, while the punctuation
# of Chinese text is full-width in its own right and known to the teachers in that form.
_HALF_WIDTH = {ord(c) + 0xFEE0: c for c in "0123456789abcdefghijklmnopqrstuvwxyz"}
_HALF_WIDTH |= {ord(c) + 0xFEE0: c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}

# Typeset text writes the apostrophe of "don't" in three ways that sound the same.
_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u02bc"), "'")


def normalize(text, language):
    """Fold the spellings of a transcript that sound the same; idempotent.

    "zh": full-width digits and letters become half-width, lower case, no white space.
    "en": curly apostrophes become straight, lower case (an uncased teacher sees no
    other), one space between words. Punctuation stays: what the training text holds is
    what the recogniser learns to write.

    Arguments
    ---------
    text : str
        A transcript.
    language : str
        "zh" or "en".

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the language is another one.

    Example
    -------
    >>> normalize("购买 Ａ股 iPhone", "zh")
    '购买a股iphone'
    >>> normalize(" IT  DOESN’T ", "en")
    "it doesn't"
    """
    if language == "zh":
        return "".join(text.translate(_HALF_WIDTH).lower().split())
    if language == "en":
        return " ".join(text.translate(_APOSTROPHES).lower().split())
    raise ValueError(
        f"language is {language!r}, known are 'zh' and 'en': correct `language`, or "
        "add its rules to cif_lobes/text.py"
    )
