"""Tokenizers: round trips, spans, and vocabularies that do not fit."""

import pickle

import pytest

from cif_lobes.data.tokens import (
    SPACE,
    CharTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
)
from cif_lobes.inference.alignment import TokenSpan, word_spans

ENGLISH = ["The cat sat on the mat", "don't the dogs sit", "a cat ran to the doge"]
CHINESE = ["今天 天气 很 好", "今天 买 Ａ股", "天 上"]
PIECES = "[PAD] [UNK] [CLS] [SEP] the cat sat on mat don ' t dog ##s ##e sit a ran to"


@pytest.fixture(params=["char", "sentencepiece", "wordpiece"])
def tokenizer(request, tmp_path):
    """Each kind, fitted on the English text."""
    if request.param == "char":
        made = CharTokenizer(tmp_path / "chars.txt", 40, "en")
    elif request.param == "sentencepiece":
        made = SentencePieceTokenizer(tmp_path / "pieces.model", 40, "en")
    else:
        vocab = tmp_path / "vocab.txt"
        vocab.write_text("\n".join(PIECES.split()) + "\n")
        made = WordPieceTokenizer(tmp_path / "words.txt", 40, "en", str(vocab))
    return made.fit(ENGLISH)


def test_round_trip(tokenizer):
    for text in ENGLISH:
        ids = tokenizer.encode(text)
        assert all(4 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.decode(ids) == text.lower()


@pytest.mark.parametrize(
    "text", ["the boys' room", "'tis so", "mother-in-law", "rock 'n' roll", "a-b c"]
)
def test_wordpieces_keep_what_stands_between_spaces(tmp_path, text):
    """BERT cuts at punctuation, too; a hypothesis can also begin within a word."""
    vocab = tmp_path / "vocab.txt"
    words = "the boys room tis so mother in law rock n roll a b c ' -".split()
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]))
    made = WordPieceTokenizer(tmp_path / "words.txt", 40, "en", vocab).fit([text])
    ids = made.encode(text)
    assert made.decode(ids) == text
    spelt = "".join(made.pieces()[i] for i in ids).replace(SPACE, " ").strip()
    assert spelt == text
    for i, start in enumerate(made.offsets(text)):
        rest = made.decode(ids[i:])
        assert not rest.startswith("#") and rest == text[start[0] :]
        names = [made.decode([token]) for token in ids[i:]]
        spans = [TokenSpan(name, n, n + 1) for n, name in enumerate(names)]
        assert [w.token for w in word_spans(spans, rest)] == rest.split()


def test_specials_are_not_text(tokenizer):
    ids = tokenizer.encode("the cat")
    assert tokenizer.decode([0, 1, *ids, 2]) == "the cat"


def test_spans_are_the_tokens_text(tokenizer):
    """One span per token, in order, together all characters but the spaces."""
    text = "The dogs sat, zebra don't"
    ids, spans = tokenizer.encode(text), tokenizer.offsets(text)
    assert len(ids) == len(spans)
    normal = tokenizer.normalize(text)
    assert "".join(normal[a:b] for a, b in spans).replace(" ", "") == normal.replace(
        " ", ""
    )
    assert spans == sorted(spans)


def test_empty_text(tokenizer):
    assert tokenizer.encode("") == tokenizer.offsets("") == []
    assert tokenizer.decode([]) == ""


def test_unknown_symbols_keep_their_place(tokenizer):
    text = "the # cat"
    ids = tokenizer.encode(text)
    assert tokenizer.unk_index in ids
    assert "<unk>" in tokenizer.decode(ids)


def test_unused_outputs_decode_as_unknown(tokenizer):
    assert "<unk>" in tokenizer.decode([tokenizer.vocab_size - 1, 39, 1000])


def test_survives_a_worker_process(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(ENGLISH[0]) == tokenizer.encode(ENGLISH[0])


def test_fingerprint_follows_the_vocabulary(tmp_path):
    a = CharTokenizer(tmp_path / "a", 40, "en").fit(["abc"])
    b = CharTokenizer(tmp_path / "b", 40, "en").fit(["abd"])
    again = CharTokenizer(tmp_path / "a", 50, "en").fit([])
    assert a.fingerprint == again.fingerprint != b.fingerprint


def test_an_existing_file_is_kept(tmp_path):
    CharTokenizer(tmp_path / "a", 40, "en").fit(["abc"])
    again = CharTokenizer(tmp_path / "a", 40, "en").fit(["xyz"])
    assert again.decode(again.encode("abx")) == "ab<unk>"


def test_chinese_characters_most_frequent_first(tmp_path):
    tokenizer = CharTokenizer(tmp_path / "chars", 7, "zh").fit(CHINESE)
    assert (tmp_path / "chars").read_text(encoding="utf-8") == "天\n今\na\n"
    assert tokenizer.encode("今天A股") == [5, 4, 6, tokenizer.unk_index]
    assert tokenizer.offsets("今天 Ａ股") == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_a_larger_vocabulary_than_the_network(tmp_path):
    CharTokenizer(tmp_path / "a", 40, "en").fit(["abcdef"])
    with pytest.raises(ValueError, match="has 10 symbols.*--vocab_size 10"):
        CharTokenizer(tmp_path / "a", 8, "en").fit([])


def test_not_fitted(tmp_path):
    with pytest.raises(FileNotFoundError, match="train.py makes it"):
        CharTokenizer(tmp_path / "none", 8, "zh").encode("好")
