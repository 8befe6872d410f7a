"""One spelling of every text, for the tokenizer, the scorer and the teacher alike."""

import re
import unicodedata

# Full-width digits and Latin letters (U+FF10...) are the half-width ones 0xFEE0 further
# up. Only these are folded, not all that NFKC would: AISHELL-1's held-out sets spell
# Latin letters full-width, which its training set never shows, while the punctuation
# of Chinese text is full-width in its own right and known to the teachers in that form.
_HALF_WIDTH = {ord(c) + 0xFEE0: c for c in "0123456789abcdefghijklmnopqrstuvwxyz"}
_HALF_WIDTH |= {ord(c) + 0xFEE0: c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}

# Typeset text writes the apostrophe of "don't" in four ways that sound the same.
_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u02bc\uff07"), "'")
_ENGLISH = _HALF_WIDTH | _APOSTROPHES

# What a reader does not see would be a token: control characters other than white space,
# soft hyphens, marks of direction, variation selectors, Unicode's other "default
# ignorables", halves of surrogate pairs.
_CONTROLS = "\\x00-\\x08\\x0e-\\x1b\\x7f-\\x84\\x86-\\x9f\\xad\\ud800-\\udfff"
_INVISIBLE = (
    "\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Persian and the scripts of India spell with these two, Chinese and English do not.
_JOINERS = "\u200c\u200d"
_REMOVED = re.compile(f"[{_CONTROLS}{_INVISIBLE}{_JOINERS}]")
_REMOVED_BUT_JOINERS = re.compile(f"[{_CONTROLS}{_INVISIBLE}]")

LANGUAGES = ("zh", "en", "none")


def normalize(text, language):
    """Fold the spellings of a transcript that sound the same; idempotent.

    All: Unicode's composed form (NFC), no control and no invisible characters.
    "zh": full-width digits and letters become half-width, lower case, no white space.
    "en": the same letters, curly apostrophes become straight, lower case (an uncased
    teacher sees no other), one space between words.
    "none": any other language; one space between words, case and widths as they are.
    Punctuation stays: what the training text holds is what the recogniser learns to
    write.

    Arguments
    ---------
    text : str
        A transcript.
    language : str
        "zh", "en" or "none".

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
    >>> normalize("Das  Cafe\u0301", "none")
    'Das Café'
    """
    if language == "zh":
        text = _REMOVED.sub("", text.translate(_HALF_WIDTH)).lower()
        return "".join(unicodedata.normalize("NFC", text).split())
    if language == "en":
        # Most English text is; looking for what it cannot hold takes three times as long.
        if not (text.isascii() and text.isprintable()):
            text = _REMOVED.sub("", text.translate(_ENGLISH))
        return " ".join(unicodedata.normalize("NFC", text.lower()).split())
    if language == "none":
        text = _REMOVED_BUT_JOINERS.sub("", text)
        return " ".join(unicodedata.normalize("NFC", text).split())
    raise ValueError(
        f"language is {language!r}, known are 'zh', 'en' and, for all others, 'none': "
        "correct `language`, or add its rules to cif_lobes/data/text.py"
    )
