"""The hypotheses of a beam, ranked again by the CTC head.

The joint score of hybrid CTC/attention decoding (Watanabe et al., "Hybrid CTC/Attention
Architecture for End-to-End Speech Recognition", IEEE JSTSP 2017, equation 20 on whole
hypotheses): the head knows nothing of what CIF fired, and hears what a fire in the wrong
place has lost. Whole hypotheses, not prefixes as SpeechBrain's `CTCScorer`, which walks
through all frames for every token of every hypothesis.
"""

import torch
import torch.nn.functional as F

CTC_HEAD = "ctc_head"  # of a yaml's modules


def check_head(settings, folder):
    """Refuse a run that trained no CTC head.

    Arguments
    ---------
    settings : dict
        Of its yaml.
    folder : str
    """
    if not settings.get("ctc_weight"):
        raise ValueError(
            f"{folder} has no CTC head to rank hypotheses: it was trained with ctc_weight "
            "0. Leave out --ctc_weight_decode"
        )


class CTCRanker(torch.nn.Module):
    """Adds weight * log p_CTC(hypothesis, end of sentence | frames) to scores.

    Arguments
    ---------
    head : torch.nn.Module
        From encoder frames [B, T, D] to logits [B, T, V]. Trained with the end of sentence
        as a symbol, as `cif_lobes.training.cif.CIFBrain` does. Or a
        `cif_lobes.cif.guided.GuidedCIF`, which has one.
    weight : float
    blank_index, eos_index : int

    Example
    -------
    >>> head = torch.nn.Linear(4, 5)
    >>> tokens = torch.tensor([[[3, 4], [3, 2]]])  # the second one ends early
    >>> scores, frames = torch.tensor([[-1.0, -2.0]]), torch.rand(1, 6, 4)
    >>> tokens, scores = CTCRanker(head, 0.5).rank(
    ...     tokens, scores, frames, torch.tensor([6])
    ... )
    >>> tokens.shape, scores.shape
    (torch.Size([1, 2, 2]), torch.Size([1, 2]))
    """

    def __init__(self, head, weight, blank_index=0, eos_index=2):
        super().__init__()
        self.head = getattr(head, CTC_HEAD, head)
        self.weight = weight
        self.blank_index = blank_index
        self.eos_index = eos_index

    @classmethod
    def of(cls, hparams, weight):
        """The ranker of a training run.

        Arguments
        ---------
        hparams : dict
            Its loaded yaml.
        weight : float

        Raises
        ------
        ValueError
            If it trained no CTC head.
        """
        check_head(hparams, hparams["output_folder"])
        tokenizer = hparams["tokenizer"]
        indices = tokenizer.blank_index, tokenizer.eos_index
        return cls(hparams.get(CTC_HEAD, hparams["cif"]), weight, *indices)

    @torch.no_grad()
    def rank(self, tokens, scores, encoded, x_lengths):
        """Sort beams by their scores with those of CTC.

        Arguments
        ---------
        tokens : torch.Tensor, [B, K, U], int64
            Padded with the end of sentence.
        scores : torch.Tensor, [B, K], float32
            Minus infinity where there is no hypothesis.
        encoded : torch.Tensor, [B, T, D]
        x_lengths : torch.Tensor, [B], int64
            Encoder frames of each utterance.

        Returns
        -------
        tokens, scores
            Best first. Of what has more tokens than frames can spell, the score is minus
            infinity, unless that is all of a beam, which is then as it was.
        """
        if not self.weight:
            return tokens, scores
        log_probs = self.head(encoded).float().log_softmax(-1)
        gains = [
            self._log_probabilities(beam, rows[:length])
            for beam, rows, length in zip(
                tokens, log_probs, x_lengths.tolist(), strict=True
            )
        ]
        gains = torch.stack(gains).where(scores > -torch.inf, -torch.inf)
        hopeless = (gains == -torch.inf).all(1, keepdim=True)
        ranked = scores + self.weight * gains.masked_fill(hopeless, 0.0)
        scores, order = ranked.sort(dim=1, descending=True, stable=True)
        return tokens.gather(1, order[:, :, None].expand_as(tokens)), scores

    def _log_probabilities(self, beam, log_probs):
        """[K]: log p of the hypotheses [K, U] of one utterance, given [T, V]."""
        if not len(log_probs):
            return beam.new_full((len(beam),), -torch.inf, dtype=torch.float32)
        ends = F.pad(beam, (0, 1), value=self.eos_index)
        lengths = (ends == self.eos_index).long().argmax(1) + 1
        # Few of the vocabulary are in a beam, and a copy for each hypothesis is made.
        blank = beam.new_full((1,), self.blank_index)
        classes, places = torch.cat([blank, ends.flatten()]).unique(return_inverse=True)
        few = log_probs[:, None, classes].expand(-1, len(beam), -1)
        return -F.ctc_loss(
            few,
            places[1:].view_as(ends),
            lengths.new_full((len(beam),), len(log_probs)).cpu(),
            lengths.cpu(),
            int(places[0]),
            reduction="none",
        )
