"""ColDec's network: masks, lists of any length, purification, FineCoS."""

import pytest
import torch

from cif_lobes.nets.coldec import MAX_PHRASE, ColDec, pad_phrases

V, C = 12, 8
PHRASES = [[4, 5, 6], [7, 8], [9], [4, 5], [10, 11, 4, 5], [6, 6], [8, 9, 10]]
LENGTHS = torch.tensor([5, 3, 1])


def make(kind=False, **changes):
    """`kind`: whether FineCoS, or "tokens"."""
    torch.manual_seed(0)
    fine = kind is True
    if kind == "tokens":
        changes |= {"over_tokens": True, "query_context": 3}
    sizes = {"d_model": 16, "phrase_layers": 1, "decoder_layers": 1, "nhead": 2}
    coldec = ColDec(V, C, **sizes, d_ffn=32, fine=fine, fine_phrases=3, **changes)
    # A fresh one attends nearly alike to all.
    coldec.query.weight.data.mul_(4)
    torch.nn.init.normal_(coldec.no_bias_key)
    torch.nn.init.normal_(coldec.no_bias_value)
    return coldec.eval()


def batch(fill=0.0):
    """Vectors [3, 5, C] with anything behind their ends, tokens before."""
    torch.manual_seed(1)
    vectors, previous = torch.randn(3, 5, C), torch.randint(4, V, (3, 5))
    for row, length in zip(vectors, LENGTHS, strict=True):
        row[length:] = fill
    return vectors, previous


def logits_of(coldec, vectors, lengths, previous, phrases, sees=None):
    if sees is None:
        sees = torch.ones(len(vectors), len(phrases), dtype=torch.bool)
    return coldec(vectors, lengths, previous, *pad_phrases(phrases), sees)[0]


IDS = ["coldec", "finecos", "tokens"]
KINDS = pytest.mark.parametrize("fine", [False, True, "tokens"], ids=IDS)


@KINDS
@pytest.mark.parametrize("fill", [0.0, 1e4, float("nan")])
@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_alone_equals_in_a_batch(fine, fill, count):
    """Whatever lies in padding, and however many phrases there are."""
    coldec, (vectors, previous) = make(fine), batch(fill)
    together = logits_of(coldec, vectors, LENGTHS, previous, PHRASES[:count])
    for i, n in enumerate(LENGTHS.tolist()):
        alone = logits_of(
            coldec,
            vectors[i : i + 1, :n],
            LENGTHS[i : i + 1],
            previous[i : i + 1, :n],
            PHRASES[:count],
        )
        torch.testing.assert_close(together[i, :n], alone[0])


@KINDS
def test_a_phrase_does_not_depend_on_the_others_lengths(fine):
    coldec = make(fine)
    together = coldec.encode(PHRASES)
    for i, tokens in enumerate(PHRASES):
        alone = coldec.encode([tokens])
        torch.testing.assert_close(together.vectors[i], alone.vectors[0])
        torch.testing.assert_close(together.states[i, : len(tokens)], alone.states[0])
        assert (together.states[i, len(tokens) :] == 0).all()


@KINDS
def test_a_phrase_that_is_not_on_the_list_is_not_there(fine):
    """`sees` is the same as a shorter list."""
    coldec, (vectors, previous) = make(fine), batch()
    sees = torch.zeros(3, len(PHRASES), dtype=torch.bool)
    sees[0, [1, 3]] = sees[1] = True  # the third utterance has an empty list
    masked = logits_of(coldec, vectors, LENGTHS, previous, PHRASES, sees)
    lists = ([PHRASES[1], PHRASES[3]], PHRASES, [])
    for i, phrases in enumerate(lists):
        own = logits_of(
            coldec,
            vectors[i : i + 1],
            LENGTHS[i : i + 1],
            previous[i : i + 1],
            phrases,
        )
        n = LENGTHS[i]
        torch.testing.assert_close(masked[i, :n], own[0, :n])


@KINDS
def test_scores_are_those_of_the_attention(fine):
    """Before any phrase is dropped; padding and other lists do not show in them."""
    coldec, (vectors, previous) = make(fine), batch(float("nan"))
    sees = torch.ones(3, len(PHRASES), dtype=torch.bool)
    sees[1, 2:] = False
    _, scores = coldec(vectors, LENGTHS, previous, *pad_phrases(PHRASES), sees)
    assert not scores.isnan().any()
    coldec.fine = False
    expected = coldec.attend(
        torch.nan_to_num(vectors), LENGTHS, coldec.encode(PHRASES), sees
    )
    shares, longest = scores.softmax(-1), max(map(len, PHRASES))
    if coldec.over_tokens:
        tokens = shares[..., 1:].unflatten(2, (len(PHRASES), longest))
        for p, phrase in enumerate(PHRASES):
            assert (tokens[:, :, p, len(phrase) :] == 0).all()
            assert (tokens[0, :, p, : len(phrase)] > 0).all()
        shares = torch.cat([shares[..., :1], tokens.sum(-1)], -1)
    torch.testing.assert_close(shares, expected)
    assert (shares[1, :, 3:] == 0).all() and (shares[0] > 0).all()


@KINDS
def test_the_order_of_a_list_does_not_matter(fine):
    coldec, (vectors, previous) = make(fine), batch()
    there = logits_of(coldec, vectors, LENGTHS, previous, PHRASES)
    back = logits_of(coldec, vectors, LENGTHS, previous, PHRASES[::-1])
    for i, n in enumerate(LENGTHS):
        torch.testing.assert_close(there[i, :n], back[i, :n])


@pytest.mark.parametrize("kind", [False, "tokens"])
@pytest.mark.parametrize("purify", [1, 2, 7, 20])
def test_purification_keeps_the_most_attended_and_renormalises(purify, kind):
    coldec, (vectors, _) = make(kind), batch()
    phrases = coldec.encode(PHRASES)
    everything = coldec.attend(vectors, LENGTHS, phrases)
    kept = coldec.attend(vectors, LENGTHS, phrases, purify=purify)
    torch.testing.assert_close(kept.sum(-1), torch.ones(3, 5))
    biased = everything[..., 1:]
    best = biased.topk(min(purify, 7), dim=-1).indices
    expected = torch.zeros_like(biased).scatter(-1, best, biased.gather(-1, best))
    expected = torch.cat([everything[..., :1], expected], -1)
    torch.testing.assert_close(kept, expected / expected.sum(-1, keepdim=True))


def test_what_is_read_is_the_token_that_is_attended_to():
    """With all attention on one token, m is its value."""
    coldec, (vectors, _) = make("tokens"), batch()
    phrases = coldec.encode(PHRASES)
    scores = torch.full((3, 5, 1 + 7 * 4), -torch.inf)
    scores[..., 1 + 4 * 4 + 2] = 0.0  # of the fifth phrase, the third token
    coldec.score_phrases = lambda *_: scores
    found = coldec._read_phrases(vectors, LENGTHS, phrases, None, 0)
    expected = coldec.value(phrases.states[4, 2]).expand(3, 5, -1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("context", [1, 2, 3, 8])
def test_a_query_sees_its_neighbours_and_no_further(context):
    coldec = make(query_context=context)
    vectors, lengths = torch.randn(1, 30, C), torch.tensor([30])
    phrases = coldec.encode(PHRASES)
    before = coldec.attend(vectors, lengths, phrases)
    vectors[0, 15] += 1.0
    changed = (coldec.attend(vectors, lengths, phrases) != before).any(-1)[0].nonzero()
    reach = 2 * ((context + 1) // 2)
    assert changed.min() == 15 - reach and changed.max() == 15 + reach


def test_two_attentions_over_tokens_are_refused():
    with pytest.raises(ValueError, match="leave one False"):
        make(True, over_tokens=True)


def test_finecos_keeps_the_same_phrases_at_all_fires():
    """Those with most attention over the real fires."""
    fine, (vectors, _) = make(True), batch(1e4)
    phrases = fine.encode(PHRASES)
    kept = fine.attend(vectors, LENGTHS, phrases)[..., 1:] > 0
    fine.fine = False
    everything = fine.attend(vectors, LENGTHS, phrases)[..., 1:]
    for i, n in enumerate(LENGTHS):
        expected = set(everything[i, :n].sum(0).topk(3).indices.tolist())
        assert {*kept[i, :n].any(0).nonzero().flatten().tolist()} <= expected


@KINDS
def test_every_parameter_learns(fine):
    """From a list with a phrase, and without."""
    coldec, (vectors, previous) = make(fine).train(), batch()
    logits = logits_of(coldec, vectors, LENGTHS, previous, PHRASES)
    logits.square().sum().backward()
    still = [n for n, p in coldec.named_parameters() if not p.grad.abs().sum()]
    # A bias common to all keys but one moves none of the others' shares.
    assert set(still) <= {"token_key.bias"}


def test_hidden_vectors_are_hidden_in_training_only():
    coldec, (vectors, previous) = make(vector_dropout=1.0), batch()
    others = torch.randn_like(vectors)
    coldec.query.weight.data.zero_()  # the attention still sees them
    plain = [
        logits_of(coldec, v, LENGTHS, previous, PHRASES) for v in (vectors, others)
    ]
    assert not torch.allclose(*plain)
    coldec.train()
    torch.manual_seed(0)
    first = logits_of(coldec, vectors, LENGTHS, previous, PHRASES)
    torch.manual_seed(0)
    torch.testing.assert_close(
        first, logits_of(coldec, others, LENGTHS, previous, PHRASES)
    )


def test_too_long_a_phrase_is_refused():
    with pytest.raises(ValueError, match="give shorter phrases"):
        make().encode([[4] * (MAX_PHRASE + 1)])
