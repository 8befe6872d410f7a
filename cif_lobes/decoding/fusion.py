"""What is added to the recogniser's own score: language models, the user's hotwords."""

import torch
from speechbrain.decoders import scorer as sb_scorer

from cif_lobes.decoding.language_model import KenLMScorer


class HotwordScorer(sb_scorer.BaseScorerInterface):
    """Prefers the phrases of a `cif_lobes.decoding.hotwords.HotwordTree`.

    At an utterance's last fire, what is earned for a phrase that is not complete is taken
    back. Of another recogniser, whose hypotheses end with the end of sentence only, the
    lengths are encoder frames, which no hypothesis reaches.

    Arguments
    ---------
    tree : HotwordTree
    """

    def __init__(self, tree):
        self.tree = tree

    def reset_mem(self, x, enc_lens):
        """Steps done, fires of each utterance, and no states before the first token."""
        return 0, enc_lens.tolist(), None

    def permute_mem(self, memory, index):
        """Memory with the states [N] of the hypotheses that went on."""
        step, fires, states = memory
        return step, fires, [states[i] for i in index.tolist()]

    def score(self, inp_tokens, memory, candidates, attn):
        """Gains [N, V] after the previous tokens [N], and the memory before the next."""
        step, fires, states = memory
        if states is None:
            states = [self.tree.start] * len(inp_tokens)
        else:
            pairs = zip(states, inp_tokens.tolist(), strict=True)
            states = [self.tree.next(state, token) for state, token in pairs]
        width = len(inp_tokens) // len(fires)
        last = [fires[n // width] == step + 1 for n in range(len(states))]
        gains = torch.from_numpy(self.tree.gains(states, last))
        return gains.to(inp_tokens.device), (step + 1, fires, states)


class _Scorers(sb_scorer.ScorerBuilder):
    """SpeechBrain's, which refuses scorers that it does not bring along."""

    def _validate_scorer(self, scorer_names):
        pass


def fuse(lm=None, lm_weight=0.0, hotwords=None, hotword_weight=0.0):
    """Shallow fusion: log p + lm_weight * log p_LM + hotword_weight * gain.

    Arguments
    ---------
    lm : speechbrain.decoders.scorer.BaseScorerInterface, optional
        From `cif_lobes.decoding.language_model.load_scorer`.
    hotwords : cif_lobes.decoding.hotwords.HotwordTree, optional
    lm_weight, hotword_weight : float
        0 for none.

    Returns
    -------
    speechbrain.decoders.scorer.ScorerBuilder or None
        For `cif_lobes.decoding.searcher.BeamSearcher`.
    """
    weights, full, partial = {}, [], []
    if hotwords is not None and hotword_weight:
        weights["hotword"] = hotword_weight
        full.append(HotwordScorer(hotwords))
    if lm is not None and lm_weight:
        # As ScorerBuilder finds it.
        weights[type(lm).__name__.lower().split("scorer")[0]] = lm_weight
        # KenLM is asked in Python, token by token: only for those the recogniser
        # thinks of.
        (partial if isinstance(lm, KenLMScorer) else full).append(lm)
    if not weights:
        return None
    return _Scorers(weights, full_scorers=full, partial_scorers=partial)
