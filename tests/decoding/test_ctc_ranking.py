"""Ranking by CTC: against the sum over all paths, alone and in a batch."""

import itertools
import math

import pytest
import torch

from cif_lobes.decoding.ctc_ranking import CTCRanker
from cif_lobes.decoding.searcher import BeamSearcher
from cif_lobes.nets.decoder import CIFDecoder

BLANK, BOS, EOS, A, B = range(5)
V, D = 5, 8


def paths_of(log_probs):
    """Probability of every sequence that the paths over [T, V] spell."""
    found = {}
    for path in itertools.product(range(V), repeat=len(log_probs)):
        spelt = tuple(s for s, _ in itertools.groupby(path) if s != BLANK)
        p = math.exp(sum(log_probs[t, s].item() for t, s in enumerate(path)))
        found[spelt] = found.get(spelt, 0.0) + p
    return found


@pytest.fixture
def beams():
    """Four utterances: [B, K, U] tokens, scores, frames, lengths."""
    torch.manual_seed(3)
    tokens = torch.tensor(
        [
            [[A, B, A], [A, EOS, EOS], [B, B, EOS]],
            [[A, A, EOS], [B, EOS, EOS], [EOS, EOS, EOS]],
            [[A, B, B], [B, A, B], [A, A, A]],  # in two frames: none can be spelt
            [[EOS] * 3, [EOS] * 3, [EOS] * 3],
        ]
    )
    scores = torch.tensor([[-1.0, -1.5, -2.0]]).repeat(4, 1)
    scores[3, 1:] = -torch.inf
    return tokens, scores, torch.randn(4, 5, D), torch.tensor([5, 3, 2, 0])


def test_score_is_the_sum_over_paths(beams):
    """Weighted, added, sorted; the end of sentence is a symbol that is spelt as well."""
    tokens, scores, encoded, x_lengths = beams
    head = torch.nn.Linear(D, V)
    with torch.no_grad():
        every = head(encoded).log_softmax(-1)
    ranked, totals = CTCRanker(head, 0.7).rank(*beams)
    for b in range(2):
        spelt = paths_of(every[b, : x_lengths[b]])
        expected = []
        for hypothesis, score in zip(
            tokens[b].tolist(), scores[b].tolist(), strict=True
        ):
            text = [*itertools.takewhile(lambda s: s != EOS, hypothesis), EOS]
            p = spelt.get(tuple(text), 0.0)
            total = score + 0.7 * math.log(p) if p else -math.inf
            expected.append((total, hypothesis))
        expected.sort(key=lambda pair: -pair[0])
        assert totals[b].tolist() == pytest.approx([s for s, _ in expected], abs=1e-4)
        for found, (total, hypothesis) in zip(
            ranked[b].tolist(), expected, strict=True
        ):
            assert total == -math.inf or found == hypothesis
    assert totals[1].tolist().count(-math.inf) == 1  # "AA" takes 4 frames with its end


def test_what_no_path_spells_is_as_the_search_left_it(beams):
    tokens, scores, *_ = beams
    ranked, totals = CTCRanker(torch.nn.Linear(D, V), 0.7).rank(*beams)
    for b in (2, 3):
        assert torch.equal(ranked[b], tokens[b]) and torch.equal(totals[b], scores[b])


def test_no_weight_changes_nothing(beams):
    found = CTCRanker(torch.nn.Linear(D, V), 0).rank(*beams)
    assert all(torch.equal(a, b) for a, b in zip(found, beams[:2], strict=True))


def test_alone_as_in_a_batch(beams):
    ranker = CTCRanker(torch.nn.Linear(D, V), 0.7)
    together = ranker.rank(*beams)
    for b, length in enumerate(beams[3].tolist()):
        tokens, scores, encoded, x_lengths = (x[b : b + 1] for x in beams)
        alone = ranker.rank(tokens, scores, encoded[:, :length], x_lengths)
        assert torch.equal(alone[0][0], together[0][b])
        assert torch.allclose(alone[1][0], together[1][b], atol=1e-5)


def test_padding_is_not_heard(beams):
    tokens, scores, encoded, x_lengths = beams
    ranker = CTCRanker(torch.nn.Linear(D, V), 0.7)
    spoilt = encoded.clone()
    for b, length in enumerate(x_lengths.tolist()):
        spoilt[b, length:] = torch.nan
    expected = ranker.rank(*beams)
    found = ranker.rank(tokens, scores, spoilt, x_lengths)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_search_ranks_at_its_end():
    """The same hypotheses with and without, their scores apart by what CTC says."""
    torch.manual_seed(1)
    decoder = CIFDecoder(V, d_model=D, num_layers=1, nhead=2, d_ffn=16).eval()
    vectors, lengths = torch.randn(2, 3, D), torch.tensor([3, 2])
    encoded, x_lengths = torch.randn(2, 6, D), torch.tensor([6, 5])
    ranker = CTCRanker(torch.nn.Linear(D, V), 2.0)
    plain = BeamSearcher(decoder, 4).nbest(vectors, lengths)
    searcher = BeamSearcher(decoder, 4, ranker=ranker)
    ranked = searcher.nbest(vectors, lengths, encoded, x_lengths)
    assert [sorted(h for h, _ in n) for n in ranked] == [
        sorted(h for h, _ in n) for n in plain
    ]
    assert [[h for h, _ in n] for n in ranked] != [[h for h, _ in n] for n in plain]
    for nbest in ranked:
        assert [s for _, s in nbest] == sorted((s for _, s in nbest), reverse=True)
    with pytest.raises(ValueError, match="CTCRanker reads encoder frames"):
        searcher(vectors, lengths)
