"""The search over fires with SpeechBrain's scorers: against all hypotheses there are."""

import itertools
import math

import pytest
import torch
from speechbrain.decoders.scorer import (
    BaseScorerInterface,
    CTCScorer,
    LengthScorer,
    RNNLMScorer,
    ScorerBuilder,
    TransformerLMScorer,
)
from speechbrain.lobes.models.RNNLM import RNNLM
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from test_searcher import (  # noqa: F401
    ALL,
    BLANK,
    BOS,
    LENGTHS,
    A,
    B,
    D,
    V,
    all_hypotheses,
    assert_same,
    decoder,
    emitted,
    score_by_hand,
    search_table,
    vectors,
)

from cif_lobes.decoding.searcher import BeamSearcher, GreedySearcher


@pytest.mark.parametrize("beam_size", [2, ALL])
def test_scorer_turns_the_decision(beam_size):
    """And is paid once per token emitted, the end of sentence being one."""
    builder = ScorerBuilder(weights={"length": 1.0}, full_scorers=[LengthScorer(V)])
    probabilities = [0, 0, 0.6, 0.4, 0], [0, 0, 0.1, 0.1, 0.8]
    plain = search_table(*probabilities, beam_size=beam_size)
    assert plain[:2] == [([], 0.6), ([A, B], 0.32)]
    paid = search_table(*probabilities, beam_size=beam_size, scorer=builder)
    assert paid[:2] == [([A, B], 0.32 * math.e**2), ([], 0.6 * math.e)]


def make_transformer_lm():
    lm = TransformerLM(V, 8, 2, num_encoder_layers=1, d_ffn=16)
    return TransformerLMScorer(lm), lambda tokens: lm(tokens)


def make_rnn_lm():
    lm = RNNLM(V, 8, rnn_neurons=8, dnn_neurons=8, dropout=0.0, return_hidden=True)
    return RNNLMScorer(lm), lambda tokens: lm(tokens)[0]


@pytest.mark.parametrize("make", [make_transformer_lm, make_rnn_lm])
def test_language_model_adds_its_log_probabilities(decoder, vectors, make):  # noqa: F811
    """SpeechBrain's scorers as they are; the sums by hand."""
    torch.manual_seed(4)
    scorer, lm = make()
    name = type(scorer).__name__.lower().removesuffix("scorer")
    builder = ScorerBuilder(weights={name: 0.7}, full_scorers=[scorer])

    @torch.no_grad()
    def score(row, fires, tokens):
        targets = emitted(tokens, fires)
        log_probs = lm(torch.tensor([[BOS, *targets[:-1]]])).view(-1, V).log_softmax(-1)
        fused = 0.7 * log_probs[range(len(targets)), targets].sum().item()
        return fused + score_by_hand(decoder, row, fires, tokens)

    found = BeamSearcher(decoder, ALL, scorer=builder, eos_threshold=None).nbest(
        vectors, LENGTHS
    )
    for row, fires, pairs in zip(vectors, LENGTHS.tolist(), found, strict=True):
        expected = all_hypotheses(lambda h, r=row, n=fires: score(r, n, h), fires)
        assert_same(pairs, expected)


class KenLMScorer(BaseScorerInterface):
    """In place of SpeechBrain's (ScorerBuilder goes by names), and used as that one:

    scores candidates only, and finds its states again by candidate. The score of a
    token depends on all before it, read as digits of a number.
    """

    def score(self, inp_tokens, memory, candidates, attn):
        prefixes = torch.zeros_like(inp_tokens) if memory is None else memory
        numbers = prefixes[:, None] * V + torch.arange(V)
        scores = torch.full(numbers.shape, -1e20)
        scores.scatter_(1, candidates, numbers.sin().gather(1, candidates))
        return scores, numbers

    def permute_mem(self, memory, index):
        return memory.view(len(index), -1).gather(1, index).flatten()

    @staticmethod
    def by_hand(tokens):
        number, total = 0, 0.0
        for token in tokens:
            number = number * V + token
            total += math.sin(number)
        return total


def build_partial(scale):
    return ScorerBuilder(
        weights={"kenlm": 2.0}, partial_scorers=[KenLMScorer()], scorer_beam_scale=scale
    )


def test_partial_scorer(decoder, vectors):  # noqa: F811
    """Candidates are numbered beam * V + token, as SpeechBrain's scorers expect."""
    searcher = BeamSearcher(decoder, ALL, scorer=build_partial(1), eos_threshold=None)
    for row, fires, pairs in zip(
        vectors, LENGTHS.tolist(), searcher.nbest(vectors, LENGTHS), strict=True
    ):

        def score(h, row=row, fires=fires):
            fused = 2.0 * KenLMScorer.by_hand(emitted(h, fires))
            return fused + score_by_hand(decoder, row, fires, h)

        assert_same(pairs, all_hypotheses(score, fires))


def test_impossible_hypotheses_are_not_returned(decoder, vectors):  # noqa: F811
    """One candidate for each of 31 places: 30 hypotheses score -1e20, or less."""
    found = BeamSearcher(
        decoder, ALL, build_partial(1.5 / ALL), eos_threshold=None
    ).nbest(vectors, LENGTHS)
    hypotheses, _ = GreedySearcher(decoder)(vectors, LENGTHS)
    assert [[tokens for tokens, _ in pairs] for pairs in found] == [
        [tokens] for tokens in hypotheses
    ]


def ctc_prefixes(log_probs):
    """Probability of every prefix that CTC [T, V] can spell, from all its paths."""
    probabilities = dict.fromkeys([()], 0.0)
    for path in itertools.product(range(V), repeat=len(log_probs)):
        p = math.exp(log_probs[range(len(path)), path].sum())
        spelt = tuple(k for k, _ in itertools.groupby(path) if k != BLANK)
        for end in range(len(spelt) + 1):
            prefix = spelt[:end]
            probabilities[prefix] = probabilities.get(prefix, 0.0) + p
    return probabilities


def test_ctc_scorer_reads_the_encoder(decoder, vectors):  # noqa: F811
    """Prefix probabilities, the end of sentence a symbol like the others.

    "AAAA" cannot be spelt in five frames: it is not in the n-best list.
    """
    torch.manual_seed(5)
    x_lengths, ctc_head = torch.tensor([5, 1, 4, 2]), torch.nn.Linear(D, V)
    encoded = torch.randn(4, 5, D)
    scorer = CTCScorer(ctc_head.requires_grad_(False), BLANK, eos_index=BLANK)
    builder = ScorerBuilder(weights={"ctc": 0.4}, full_scorers=[scorer])
    searcher = BeamSearcher(decoder, ALL, scorer=builder, eos_threshold=None)
    found = searcher.nbest(vectors, LENGTHS, encoded, x_lengths)
    for b, (fires, pairs) in enumerate(zip(LENGTHS.tolist(), found, strict=True)):
        log_probs = ctc_head(encoded[b, : x_lengths[b]]).log_softmax(-1)
        prefixes = ctc_prefixes(log_probs)

        def score(h, b=b, fires=fires, prefixes=prefixes):
            probability = prefixes.get(tuple(emitted(h, fires)), 0.0)
            if not probability:
                return -math.inf
            fused = 0.4 * math.log(probability)
            return fused + score_by_hand(decoder, vectors[b], fires, h)

        every = all_hypotheses(score, fires)
        assert_same(pairs, [pair for pair in every if pair[1] > -math.inf])
        assert fires < 4 or [A, A, A, A] not in [h for h, _ in pairs]


def test_ctc_scorer_without_encoder_frames(decoder, vectors):  # noqa: F811
    scorer = CTCScorer(torch.nn.Linear(D, V), BLANK, eos_index=BLANK)
    builder = ScorerBuilder(weights={"ctc": 0.4}, full_scorers=[scorer])
    with pytest.raises(ValueError, match="encoder frames"):
        BeamSearcher(decoder, 2, scorer=builder)(vectors, LENGTHS)
