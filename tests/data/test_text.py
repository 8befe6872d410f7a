"""Text folding: what sounds the same is written the same, for everybody who reads it."""

import sys
import unicodedata

import pytest

from cif_lobes.data.text import LANGUAGES, normalize

# The signs of Arabic, Syriac and Kaithi numbers: "format" characters that are seen.
VISIBLE = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
VISIBLE |= {*range(0x13430, 0x13440)}  # Egyptian hieroglyphs in groups


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("ＡＢ股 １２ \u3000涨\tiPhone", "zh", "ab股12涨iphone"),
        ("他说，好！", "zh", "他说，好！"),
        ("  IT’S  THE\nDOGS‘ ", "en", "it's the dogs'"),
        ("ｈｅｌｌｏ\u3000ＷＯＲＬＤ＇ｓ", "en", "hello world's"),
        ("hel\u200blo wor\u00adld", "en", "hello world"),
        ("\ufeffhello \u202eworld\u202c th\x00e\x1fcat", "en", "hello world the cat"),
        ("cafe\u0301 nai\u0308ve", "en", "caf\u00e9 na\u00efve"),
        ("cafe\u200b\u0301", "en", "caf\u00e9"),
        ("\u200b你\ufe0f好\u00ad \x00", "zh", "你好"),
        (" Ein  Ma\u0308dchen\u00ad,  Ｔ ", "none", "Ein M\u00e4dchen, Ｔ"),
        ("か\u3099き", "none", "がき"),
        ("می\u200cخواهم", "none", "می\u200cخواهم"),  # another word without the joiner
    ],
)
def test_normalize(text, language, expected):
    assert normalize(text, language) == expected


@pytest.mark.parametrize("language", LANGUAGES)
def test_normalize_is_idempotent_on_every_character(language):
    for code in range(0x20000):  # all characters that have cases or widths
        once = normalize(f"a{chr(code)}B", language)
        assert normalize(once, language) == once, hex(code)


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_invisible_is_left(language):
    kept = {0x200C, 0x200D} if language == "none" else set()
    for code in range(sys.maxunicode + 1):
        if (
            unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs")
            and code not in VISIBLE
        ):
            text = normalize(f"a{chr(code)}b", language)
            assert code in kept or text in ("ab", "a b"), hex(code)


def test_normalize_refuses_unknown_language():
    with pytest.raises(ValueError, match="'fr'.*'none'"):
        normalize("bonjour", "fr")
