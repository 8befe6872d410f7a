"""What ColDec is told of a batch: which phrases, where they are said, and how spelled."""

import math
from types import SimpleNamespace

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch

from cif_lobes.data.tokens import CharTokenizer
from cif_lobes.devices.lengths import Lengths
from cif_lobes.nets.coldec import ColDec
from cif_lobes.training.coldec import (
    ColDecBrain,
    Predictions,
    draw_phrases,
    locate_phrases,
    respell_phrases,
)
from cif_lobes.training.ledger import Ledger


def words(tmp_path):
    texts = ["the cat sat", "a dog"]
    return CharTokenizer(tmp_path / "chars", 24, "en").fit(texts), texts


def test_phrases_are_n_grams_of_the_references(tmp_path):
    tokenizer, texts = words(tmp_path)
    torch.manual_seed(0)
    seen = set()
    for _ in range(200):
        phrases, sees = draw_phrases(texts, tokenizer, 1.0, 1, max_words=3)
        assert sees.all() and sees.shape == (2, len(phrases))
        seen |= {tokenizer.decode(tokens) for tokens in phrases}
    expected = {"the", "cat", "sat", "the cat", "cat sat", "the cat sat"}
    assert seen == expected | {"a", "dog", "a dog"}
    for _ in range(20):
        phrases, _ = draw_phrases(texts, tokenizer, 1.0, 1, max_words=1)
        assert not any(" " in tokenizer.decode(tokens) for tokens in phrases)


def test_stretches_of_letters_are_cut_anywhere(tmp_path):
    """And are found where they are said, which need not be a word."""
    tokenizer, texts = words(tmp_path)
    torch.manual_seed(0)
    seen = set()
    for _ in range(300):
        phrases, sees = draw_phrases(texts, tokenizer, 1.0, 1, max_letters=6)
        spelled = [tokenizer.decode(tokens) for tokens in phrases]
        assert all(any(s in text for text in texts) for s in spelled)
        places, _ = locate_phrases(texts, phrases, sees, tokenizer, whole_words=False)
        assert set(places.flatten().tolist()) == {*range(len(phrases) + 1)}
        seen |= {*spelled}
    assert max(map(len, seen)) == 6 and {len(s) for s in seen} >= {3, 4, 5}
    assert "e ca" in seen and "og" not in seen
    # A text shorter than three letters is a stretch of its own.
    (phrase,), _ = draw_phrases(["at"], tokenizer, 1.0, 1, max_letters=6)
    assert tokenizer.decode(phrase) == "at"


def test_where_phrases_are_said(tmp_path):
    """Whole words, the longest phrase of those on the list; the end is in none."""
    tokenizer, _ = words(tmp_path)
    texts = ["the cat sat", "a cat cat", "sat"]
    phrases = [tokenizer.encode(p) for p in ("cat", "the cat", "at", "sat", "a")]
    sees = torch.ones(3, 5, dtype=torch.bool)
    sees[2] = False
    places, offsets = locate_phrases(texts, phrases, sees, tokenizer)
    assert places.tolist() == [
        [2, 2, 2, 2, 2, 2, 2, 0, 4, 4, 4, 0],
        [5, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0],
        [0] * 12,
    ]
    assert offsets.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 0, 0, 1, 2, 0],
        [0, 0, 0, 1, 2, 0, 0, 1, 2, 0, 0, 0],
        [0] * 12,
    ]
    assert locate_phrases(texts, [], sees[:, :0], tokenizer)[0].shape == (3, 12)
    chinese = CharTokenizer(tmp_path / "zh", 12, "zh").fit(["北京上海"])
    phrases = [chinese.encode(p) for p in ("京上", "海")]
    places, offsets = locate_phrases(["北京上海"], phrases, sees[:1, :2], chinese)
    assert places.tolist() == [[0, 1, 1, 2, 0]]
    assert offsets.tolist() == [[0, 0, 1, 0, 0]]


def test_a_phrase_and_the_texts_that_say_it_are_respelled_alike(tmp_path):
    """What is on nobody's list, and what lies outside, stays as it is."""
    tokenizer, _ = words(tmp_path)
    texts = ["the cat sat", "a cat cat", "cat"]
    phrases = [tokenizer.encode(p) for p in ("sat", "cat")]
    sees = torch.tensor([[True, True], [True, True], [True, False]])
    places, offsets = locate_phrases(texts, phrases, sees, tokenizer)
    rows = [torch.tensor([*tokenizer.encode(t), tokenizer.eos_index]) for t in texts]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    torch.manual_seed(0)
    found = set()
    for _ in range(20):
        respelled, said = respell_phrases(phrases, places, offsets, tokens, 0.5)
        sat, cat = (tokenizer.decode(phrase) for phrase in respelled)
        assert len(sat) == len(cat) == 3 and {*sat, *cat} <= set("satc")
        found |= {sat, cat}
        read = [tokenizer.decode(row) for row in said]
        assert read == [f"the {cat} {sat}", f"a {cat} {cat}", "cat"]
    assert len(found) > 10
    same = respell_phrases(phrases, places, offsets, tokens, 0.0)
    assert same[0] == phrases and torch.equal(same[1], tokens)
    none = torch.zeros_like(places)
    assert torch.equal(respell_phrases([], none, none, tokens, 0.5)[1], tokens)


def test_the_loss_is_the_cross_entropy_of_the_attention():
    """By hand over the real fires; with a weight of 0 it is not there."""
    scores = torch.tensor([[[0.0, 1.0, -torch.inf], [2.0, 0.0, 1.0]], [[0.0] * 3] * 2])
    wanted = torch.tensor([[1, 0], [0, 0]])
    tokens, logits = torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2, 5)
    lengths = Lengths(torch.tensor([2, 1]), torch.tensor([2, 1]))
    p = Predictions(logits, scores, wanted, 1, tokens, lengths)
    brain = ColDecBrain.__new__(ColDecBrain)
    by_weight = {}
    for weight in (0.0, 1.0, 2.0):
        brain.hparams = SimpleNamespace(label_smoothing=0.1, attention_weight=weight)
        brain.ledger = Ledger()
        by_weight[weight] = brain.compute_objectives(p, None, sb.Stage.VALID).item()
        assert brain.ledger.counts["found"] == (1, 1)
    attention = -sum(
        math.log(math.exp(row[k]) / sum(map(math.exp, row)))
        for row, k in [([0, 1, -1e9], 1), ([2, 0, 1], 0), ([0, 0, 0], 0)]
    )
    assert by_weight[0.0] == pytest.approx(3 * math.log(5), rel=1e-5)
    for weight in (1.0, 2.0):
        expected = by_weight[0.0] + weight * attention
        assert by_weight[weight] == pytest.approx(expected, rel=1e-5)


def test_the_target_is_the_token_of_the_phrase(tmp_path):
    """Of all tokens of all phrases, of which some are padding."""
    tokenizer, _ = words(tmp_path)
    coldec = ColDec(24, 8, 16, 1, 1, nhead=2, d_ffn=16, over_tokens=True)
    rows = [
        {"id": t, "text": t, "vectors": torch.randn(len(t) + 1, 1, 8)}
        | {"tokens": torch.tensor([*tokenizer.encode(t), tokenizer.eos_index])}
        for t in ("the cat sat", "a dog")
    ]
    brain = ColDecBrain.__new__(ColDecBrain)
    brain.device, brain.modules = "cpu", SimpleNamespace(coldec=coldec)
    settings = {"keep_phrase": 1.0, "num_lists": 1, "max_words": 1, "max_letters": 0}
    brain.hparams = SimpleNamespace(tokenizer=tokenizer, coldec=coldec, **settings)
    brain.start_scoring()
    p = brain.compute_forward(PaddedBatch(rows), sb.Stage.VALID)
    brain.start_scoring()
    phrases, _ = draw_phrases(
        [row["text"] for row in rows], tokenizer, 1.0, 1, brain.generator, 1
    )
    assert p.width == max(map(len, phrases))
    assert p.scores.shape[2] == 1 + len(phrases) * p.width
    spelled = [tokenizer.decode(phrase) for phrase in phrases]
    for row, wanted in zip(rows, p.wanted.tolist(), strict=True):
        inside = [k for k in wanted if k]
        assert inside and (p.scores > -torch.inf)[0, 0, inside].all()
        said = "".join(spelled[(k - 1) // p.width][(k - 1) % p.width] for k in inside)
        assert said in row["text"].split()


def test_keep_is_a_probability_and_lists_are_apart(tmp_path):
    tokenizer, texts = words(tmp_path)
    torch.manual_seed(0)
    counts = [
        len(draw_phrases(["the cat", "a dog"], tokenizer, 0.7, 2)[0])
        for _ in range(500)
    ]
    assert 1.3 < sum(counts) / 500 < 1.5
    phrases, sees = draw_phrases(["the cat", "a dog", "sat"], tokenizer, 1.0, 2)
    assert sees.tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]
    assert draw_phrases(texts, tokenizer, 0.0, 2)[1].shape == (2, 0)


def test_the_same_generator_draws_the_same(tmp_path):
    tokenizer, texts = words(tmp_path)
    drawn = [
        draw_phrases(texts * 5, tokenizer, 0.7, 3, torch.Generator().manual_seed(4))
        for _ in range(2)
    ]
    assert drawn[0][0] == drawn[1][0] and torch.equal(drawn[0][1], drawn[1][1])
    assert drawn[0][0] != draw_phrases(texts * 5, tokenizer, 0.7, 3)[0]
