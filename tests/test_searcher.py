"""The search over fires: against all hypotheses there are, alone and with scorers."""

import itertools
import math

import pytest
import torch
from speechbrain.decoders.scorer import (
    BaseScorerInterface,
    CTCScorer,
    RNNLMScorer,
    ScorerBuilder,
    TransformerLMScorer,
)
from speechbrain.lobes.models.RNNLM import RNNLM
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM

from cif_lobes.decoder import CIFDecoder
from cif_lobes.searcher import BeamSearcher, GreedySearcher

V, D = 5, 8
BLANK, BOS, EOS, A, B = range(V)
ALL = 31  # hypotheses of at most four tokens out of two: a beam that drops none
LENGTHS = torch.tensor([4, 0, 3, 1])


def make_decoder(seed=0, vocab_size=V):
    """A decoder with opinions: a fresh one finds all tokens about as probable."""
    torch.manual_seed(seed)
    decoder = CIFDecoder(vocab_size, D, num_layers=2, nhead=2, d_ffn=16).eval()
    decoder.project_out.weight.data.mul_(3)
    return decoder.requires_grad_(False)


@pytest.fixture(scope="module")
def decoder():
    return make_decoder()


@pytest.fixture(scope="module")
def vectors():
    """Four utterances; nothing may be read beyond their fires."""
    torch.manual_seed(1)
    vectors = torch.randn(4, 4, D)
    for row, length in zip(vectors, LENGTHS, strict=True):
        row[length:] = float("nan")
    return vectors


def emitted(tokens, fires):
    """What a search chose to give these tokens: an early end is chosen too."""
    return [*tokens, EOS] if len(tokens) < fires else [*tokens]


def score_by_hand(decoder, vectors, fires, tokens):
    """Log-probability of a hypothesis [U] by teacher forcing, no state."""
    targets = emitted(tokens, fires)
    if not targets:
        return 0.0
    previous = torch.tensor([[BOS, *targets[:-1]]])
    logits, _ = decoder(vectors[None, : len(targets)], previous)
    return logits[0].log_softmax(-1)[range(len(targets)), targets].sum().item()


def all_hypotheses(score, fires, alphabet=(A, B)):
    """Every hypothesis with its score, best first."""
    lists = (itertools.product(alphabet, repeat=n) for n in range(fires + 1))
    scored = [(list(h), score(list(h))) for h in itertools.chain(*lists)]
    return sorted(scored, key=lambda pair: -pair[1])


def assert_same(found, expected):
    """Same hypotheses in the same order, same scores."""
    assert [h for h, _ in found] == [h for h, _ in expected]
    scores = [torch.tensor([s for _, s in pairs]) for pairs in (found, expected)]
    torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_wide_beam_is_exhaustive_search(vectors, seed):
    """Also: n-best sorted, distinct, complete; states follow their hypotheses."""
    decoder = make_decoder(seed)
    found = BeamSearcher(decoder, ALL).nbest(vectors, LENGTHS)
    for row, fires, pairs in zip(vectors, LENGTHS.tolist(), found, strict=True):
        assert_same(
            pairs,
            all_hypotheses(
                lambda h, row=row, n=fires: score_by_hand(decoder, row, n, h), fires
            ),
        )


def test_narrow_beam_reports_true_scores(decoder):
    """Reordered states: a wrong one gives another score than teacher forcing."""
    torch.manual_seed(2)
    decoder = make_decoder(vocab_size=30)
    vectors, lengths = torch.randn(3, 12, D), torch.tensor([12, 7, 10])
    crossed = False
    for row, fires, pairs in zip(
        vectors, lengths, BeamSearcher(decoder, 4).nbest(vectors, lengths), strict=True
    ):
        for tokens, score in pairs:
            assert score == pytest.approx(
                score_by_hand(decoder, row, fires, tokens), abs=1e-4
            )
        crossed |= len({tuple(tokens[:3]) for tokens, _ in pairs}) > 1
    assert crossed  # or there was nothing to reorder


def greedy_by_hand(decoder, vectors, fires):
    """One utterance [U, D], the whole prefix again at every step."""
    tokens, score = [], 0.0
    for u in range(fires):
        previous = torch.tensor([[BOS, *tokens]])
        logits, _ = decoder(vectors[None, : u + 1], previous)
        log_probs = logits[0, -1].log_softmax(-1)
        log_probs[[BLANK, BOS]] = -math.inf
        best, token = log_probs.max(-1)
        score += best.item()
        if token == EOS:
            break
        tokens.append(token.item())
    return tokens, score


@pytest.mark.parametrize("seed", range(5))
def test_greedy(vectors, seed):
    """A beam of one, and never better than the beam that has seen everything."""
    decoder = make_decoder(seed)
    hypotheses, scores = GreedySearcher(decoder)(vectors, LENGTHS)
    expected = [
        greedy_by_hand(decoder, row, fires)
        for row, fires in zip(vectors, LENGTHS.tolist(), strict=True)
    ]
    found = list(zip(hypotheses, scores.tolist(), strict=True))
    for pair, by_hand in zip(found, expected, strict=True):
        assert_same([pair], [by_hand])
    assert BeamSearcher(decoder, 1)(vectors, LENGTHS)[0] == hypotheses
    _, best = BeamSearcher(decoder, ALL)(vectors, LENGTHS)
    assert (best >= scores - 1e-5).all()


@pytest.mark.parametrize("beam_size", [1, 3])
def test_alone_equals_in_a_batch(vectors, beam_size):
    """Whatever the others' fires, and however wide the padding."""
    decoder = make_decoder(3)
    searcher = BeamSearcher(decoder, beam_size)
    together = searcher.nbest(vectors, LENGTHS)
    wide = torch.nn.functional.pad(vectors, (0, 0, 0, 3), value=float("nan"))
    padded = searcher.nbest(wide, LENGTHS)
    for b, fires in enumerate(LENGTHS):
        alone = searcher.nbest(vectors[b : b + 1, :fires], fires[None])[0]
        assert_same(together[b], alone)
        assert_same(padded[b], alone)


def test_same_twice(decoder, vectors):
    searcher = BeamSearcher(decoder, 3)
    assert searcher.nbest(vectors, LENGTHS) == searcher.nbest(vectors, LENGTHS)


class FixedDecoder(torch.nn.Module):
    """Says the same at every step: log-probabilities of EOS, A, B as given."""

    def __init__(self, eos, a, b, blank=0.0):
        super().__init__()
        self.logits = torch.tensor([blank, 0.0, eos, a, b]).log()

    def step(self, vector, vector_before, previous_token, state=None):
        n = len(vector)
        return self.logits.expand(n, -1), torch.zeros(n, 1)


def search_fixed(decoder, fires, **options):
    searcher = BeamSearcher(decoder, **options)
    return searcher.nbest(torch.zeros(1, fires, D), torch.tensor([fires]))[0]


def test_cut_at_end_of_sentence():
    """The end counts once, nothing after it does, and none is forced at the end."""
    found = search_fixed(FixedDecoder(0.5, 0.3, 0.2), 2, beam_size=ALL)
    probabilities = {"": 0.5, "A": 0.15, "B": 0.1}
    probabilities |= {"AA": 0.09, "AB": 0.06, "BA": 0.06, "BB": 0.04}
    names = {A: "A", B: "B"}
    assert {
        "".join(names[token] for token in tokens): pytest.approx(math.log(p), abs=1e-5)
        for (tokens, _), p in zip(found, sorted(probabilities.values())[::-1])  # noqa: B905
    }.keys() == probabilities.keys()
    for tokens, score in found:
        probability = probabilities["".join(names[token] for token in tokens)]
        assert math.exp(score) == pytest.approx(probability)


def test_ended_hypothesis_can_be_overtaken():
    """It keeps its place only while its score is among the best."""
    first = FixedDecoder(0.3, 0.4, 0.3)
    first.step_logits = torch.tensor([[0, 0, 0.30, 0.7, 0], [0, 0, 0.1, 0.9, 0]]).log()
    found = search_fixed(first, 2, beam_size=2)
    assert found[0][0] in ([], [A])


def test_blank_and_bos_are_never_emitted():
    """And keep their probability mass: scores are the network's own."""
    ((tokens, score),) = search_fixed(FixedDecoder(0.02, 0.1, 0.08, 0.8), 2, beam_size=1)
    assert tokens == [A, A]
    assert math.exp(score) == pytest.approx(0.01)


def test_zero_fires():
    decoder = make_decoder()
    for searcher in (GreedySearcher(decoder), BeamSearcher(decoder, 3)):
        hypotheses, scores = searcher(torch.zeros(2, 0, D), torch.tensor([0, 0]))
        assert hypotheses == [[], []]
        assert scores.tolist() == [0, 0]
    assert searcher.nbest(torch.zeros(1, 0, D), torch.tensor([0])) == [[([], 0.0)]]


def test_topk():
    found = search_fixed(FixedDecoder(0.5, 0.3, 0.2), 2, beam_size=5, topk=2)
    assert [tokens for tokens, _ in found] == [[], [A]]
