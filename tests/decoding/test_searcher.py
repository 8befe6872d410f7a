"""The search over fires: against all hypotheses there are."""

import itertools
import math

import pytest
import torch
from conftest import spoil_padding

from cif_lobes.decoding.searcher import BeamSearcher, GreedySearcher, cut_at_eos
from cif_lobes.nets.decoder import CIFDecoder

V, D = 5, 8
BLANK, BOS, EOS, A, B = range(V)
ALL = 31  # hypotheses of at most four tokens out of two: a beam that drops none
LENGTHS = torch.tensor([4, 0, 3, 1])


def make_decoder(seed=0, vocab_size=V, **options):
    """A decoder with opinions: a fresh one finds all tokens about as probable."""
    torch.manual_seed(seed)
    decoder = CIFDecoder(vocab_size, D, 2, nhead=2, d_ffn=16, **options).eval()
    decoder.project_out.weight.data.mul_(3)
    return decoder.requires_grad_(False)


@pytest.fixture(scope="module")
def decoder():
    return make_decoder()


@pytest.fixture(scope="module")
def vectors():
    """Four utterances; nothing may be read beyond their fires."""
    torch.manual_seed(1)
    return spoil_padding(torch.randn(4, 4, D), LENGTHS)


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
    found = BeamSearcher(decoder, ALL, eos_threshold=None).nbest(vectors, LENGTHS)
    for row, fires, pairs in zip(vectors, LENGTHS.tolist(), found, strict=True):
        assert_same(
            pairs,
            all_hypotheses(
                lambda h, row=row, n=fires: score_by_hand(decoder, row, n, h), fires
            ),
        )


def test_narrow_beam_reports_true_scores():
    """Forty steps of reordered states against teacher forcing."""
    decoder = make_decoder(vocab_size=30)
    decoder.project_out.weight.data[EOS] = 0
    vectors, lengths = torch.randn(3, 40, D), torch.tensor([40, 7, 20])
    found = BeamSearcher(decoder, 4).nbest(vectors, lengths)
    for row, fires, pairs in zip(vectors, lengths, found, strict=True):
        assert len(pairs) == 4
        expected = [(h, score_by_hand(decoder, row, fires, h)) for h, _ in pairs]
        assert_same(pairs, expected)


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
    _, best = BeamSearcher(decoder, ALL, eos_threshold=None)(vectors, LENGTHS)
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


@pytest.mark.parametrize("beam_size", [1, ALL])
def test_without_tokens(vectors, beam_size):
    """Steps do not depend on each other, so the sums by hand are of one table."""
    decoder = make_decoder(autoregressive=False)
    found = BeamSearcher(decoder, beam_size, eos_threshold=None).nbest(vectors, LENGTHS)
    for row, fires, pairs in zip(vectors, LENGTHS.tolist(), found, strict=True):
        log_probs = decoder(row[None, :fires], None)[0][0].log_softmax(-1)

        def score(h, n=fires, log_probs=log_probs):
            targets = emitted(h, n)
            return log_probs[range(len(targets)), targets].sum().item()

        if beam_size == 1:
            best = log_probs[:, EOS:].argmax(-1) + EOS
            (tokens,) = cut_at_eos(best[None], EOS)
            assert_same(pairs, [(tokens, score(tokens))])
        else:
            assert_same(pairs, all_hypotheses(score, fires))


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1.5])
def test_where_a_hypothesis_may_end(vectors, threshold):
    """At its last fire, or where the end is about the best token, by hand; no other way."""
    decoder = make_decoder(autoregressive=False)
    found = BeamSearcher(decoder, ALL, eos_threshold=threshold).nbest(vectors, LENGTHS)
    kept = dropped = 0
    for row, fires, pairs in zip(vectors, LENGTHS.tolist(), found, strict=True):
        log_probs = decoder(row[None, :fires], None)[0][0].log_softmax(-1)

        def may_end(h, n=fires, log_probs=log_probs):
            if len(h) >= n - 1:
                return True
            at_end = log_probs[len(h), EOS:]
            return bool(at_end[0] >= threshold * at_end.max())

        expected = [h for h, _ in all_hypotheses(len, fires) if may_end(h)]
        assert sorted(h for h, _ in pairs) == sorted(expected)
        kept += sum(len(h) < fires - 1 for h in expected)
        dropped += len(all_hypotheses(len, fires)) - len(expected)
    assert dropped and bool(kept) == (threshold > 0)


def test_same_twice(decoder, vectors):
    searcher = BeamSearcher(decoder, 3)
    assert searcher.nbest(vectors, LENGTHS) == searcher.nbest(vectors, LENGTHS)


class Count:
    """The state of a decoder that only counts its steps."""

    past = 0

    def reorder(self, order):
        pass


class TableDecoder(torch.nn.Module):
    """Says what a table says: probabilities of BLANK, BOS, EOS, A, B at each step."""

    autoregressive = True

    def __init__(self, *probabilities):
        super().__init__()
        self.logits = torch.tensor(probabilities).log()

    def step(self, vector, vector_before, previous_token, state=None):
        state = state or Count()
        state.past += 1
        return self.logits[state.past - 1].expand(len(vector), -1), state


def search_table(*probabilities, fires=2, **options):
    """n-best of one utterance, with probabilities for scores."""
    searcher = BeamSearcher(TableDecoder(*probabilities), **options)
    (found,) = searcher.nbest(torch.zeros(1, fires, D), torch.tensor([fires]))
    return [(tokens, pytest.approx(math.exp(score))) for tokens, score in found]


def test_cut_at_end_of_sentence():
    """The end counts once and nothing after it; the last fire needs none."""
    found = search_table([0, 0, 0.5, 0.3, 0.2], [0, 0, 0.4, 0.35, 0.25], beam_size=9)
    assert found == [
        ([], 0.5),
        ([A], 0.12),
        ([A, A], 0.105),
        ([B], 0.08),
        ([A, B], 0.075),
        ([B, A], 0.07),
        ([B, B], 0.05),
    ]


def test_ended_hypothesis_can_be_overtaken():
    """Having ended early is no title to a place in the beam."""
    found = search_table([0, 0, 0.2, 0.8, 0], [0, 0, 0, 0.6, 0.4], beam_size=2)
    assert found == [([A, A], 0.48), ([A, B], 0.32)]


def test_blank_and_bos_are_never_emitted():
    """And keep their probability: scores are the network's own."""
    found = search_table([0.6, 0.2, 0.05, 0.1, 0.05], fires=1, beam_size=ALL)
    assert found[0] == ([A], 0.1)
    assert sorted(tokens for tokens, _ in found) == [[], [A], [B]]


def test_topk():
    found = search_table([0, 0, 0.5, 0.3, 0.2], fires=1, beam_size=3, topk=2)
    assert found == [([], 0.5), ([A], 0.3)]


def test_zero_fires(decoder):
    vectors, lengths = torch.zeros(2, 0, D), torch.tensor([0, 0])
    for searcher in (GreedySearcher(decoder), BeamSearcher(decoder, 3)):
        hypotheses, scores = searcher(vectors, lengths)
        assert hypotheses == [[], []]
        assert scores.tolist() == [0, 0]
        assert searcher.nbest(vectors, lengths) == [[([], 0)], [([], 0)]]
