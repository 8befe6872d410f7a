"""Decoding: as many steps as CIF fired, cut at the first end of sentence.

A search of its own rather than a subclass of SpeechBrain's `S2SBeamSearcher`, whose
scorers it takes all the same. There, one number of steps serves the whole batch, the
first beam_size hypotheses to end are kept whatever their score, and the CTC head of
this recipe (trained with the end of sentence as a symbol) is refused. Overriding those
would leave nothing but names.
"""

import torch


class BeamSearcher(torch.nn.Module):
    """Beam search over the fires of a batch of utterances.

    The score of a hypothesis is the sum over its tokens, its end of sentence included::

        log p(y_u) + sum over scorers of weight * score(y_u)

    without length penalty: CIF has decided the length. A hypothesis ends with the end
    of sentence or at its utterance's last fire, whichever comes first, and keeps its
    place in the beam for as long as its score earns it.

    Arguments
    ---------
    decoder : cif_lobes.nets.decoder.CIFDecoder
        In eval mode. One that is not autoregressive runs once, before the first step.
    beam_size : int
        Hypotheses kept per utterance.
    scorer : speechbrain.decoders.scorer.ScorerBuilder, optional
        Language models and the like. No decoder here attends to the audio, so not
        `CoverageScorer`. For a `CTCScorer` whose head was trained with the end of
        sentence as a target, set its `eos_index` to the blank's: the end of sentence is
        then scored as the symbol it is.
    context : cif_lobes.decoding.context.Context, optional
        A ColDec, whose distribution is mixed with the decoder's at every fire, before
        any scorer.
    eos_threshold : float, optional
        A hypothesis may end before its last fire only where log p(end) is at least this
        many times that of the best token: 1 only where it is the best, 0 nowhere, None
        anywhere. A decoder trained with label smoothing gives every token some
        probability at every step, so that ending at once is cheaper than many steps
        more: letters have many. Greedy search without scorers takes the end only where it
        is the best, whatever this is, from 1 on.
    ranker : cif_lobes.decoding.ctc_ranking.CTCRanker, optional
        Sorts the beam again when the search is done, and adds to its scores.
    topk : int, optional
        Hypotheses that `nbest` returns at most; the whole beam if not given.
    blank_index, bos_index, eos_index : int
        CTC blank; token before the first step; token that ends a hypothesis.

    Example
    -------
    >>> from cif_lobes.nets.decoder import CIFDecoder
    >>> decoder = CIFDecoder(vocab_size=10, d_model=16, num_layers=1, nhead=2, d_ffn=32)
    >>> searcher = BeamSearcher(decoder.eval(), beam_size=3)
    >>> vectors, lengths = torch.rand(2, 5, 16), torch.tensor([5, 0])
    >>> hypotheses, scores = searcher(vectors, lengths)
    >>> len(hypotheses[0]) <= 5, hypotheses[1], scores.shape
    (True, [], torch.Size([2]))
    """

    def __init__(
        self,
        decoder,
        beam_size=10,
        scorer=None,
        topk=None,
        context=None,
        ranker=None,
        eos_threshold=1.5,
        blank_index=0,
        bos_index=1,
        eos_index=2,
    ):
        super().__init__()
        self.decoder = decoder
        self.beam_size = beam_size
        self.scorer = scorer
        self.topk = topk
        self.context = context
        self.ranker = ranker
        self.eos_threshold = eos_threshold
        self.blank_index = blank_index
        self.bos_index = bos_index
        self.eos_index = eos_index

    def forward(self, vectors, lengths, encoded=None, x_lengths=None):
        """The best hypothesis of each utterance.

        Arguments
        ---------
        vectors, lengths
            CIF vectors, as the decoder reads them, and fires of each utterance.
        encoded : torch.Tensor, [B, T, D], optional
            Encoder frames, for a `CTCScorer` or a ranker.
        x_lengths : torch.Tensor, [B], int64, optional
            Encoder frames of each utterance.

        Returns
        -------
        hypotheses : list of list of int
            Tokens of each utterance, end of sentence excluded.
        scores : torch.Tensor, [B], float32
            Score of each hypothesis, that of the end of sentence included.
        """
        tokens, scores = self._search(vectors, lengths, encoded, x_lengths)
        return cut_at_eos(tokens[:, 0], self.eos_index), scores[:, 0]

    def nbest(self, vectors, lengths, encoded=None, x_lengths=None):
        """The best hypotheses of each utterance, all different; see `forward`.

        Returns
        -------
        list of list of (list of int, float)
            Of each utterance, tokens and score, best first. Fewer than topk where there
            are no more: an utterance without fires has the empty hypothesis only.
        """
        tokens, scores = self._search(vectors, lengths, encoded, x_lengths)
        return [
            [
                (hypothesis, score)
                for hypothesis, score in zip(
                    cut_at_eos(beam, self.eos_index), beam_scores, strict=True
                )
                if score > -torch.inf
            ][: self.topk]
            for beam, beam_scores in zip(tokens, scores.tolist(), strict=True)
        ]

    # Not inference_mode: what a scorer keeps from here (a language model it has moved
    # to the device, a cache) could not take part in training any more.
    @torch.no_grad()
    def _search(self, vectors, lengths, encoded, x_lengths):
        """Beams [B, K, U], padded with end of sentence, and scores [B, K], sorted."""
        batch, width = len(vectors), self.beam_size
        first = torch.arange(batch, device=vectors.device)[:, None] * width
        tokens = lengths.new_full((batch * width, vectors.shape[1]), self.eos_index)
        # K equal hypotheses to begin with: all but one are impossible.
        scores = vectors.new_full((batch, width), -torch.inf, dtype=torch.float32)
        scores[:, 0] = 0
        scores = scores.flatten()
        ended = (lengths == 0).repeat_interleave(width)
        previous = lengths.new_full((batch * width,), self.bos_index)
        before = vectors.new_zeros(batch * width, vectors.shape[2])
        state = order = None
        memory = self._reset_scorer(vectors, lengths, encoded, x_lengths)
        steps = self.context and self.context.start(vectors, lengths, width)
        if not self.decoder.autoregressive:
            every_step, _ = self.decoder(vectors, None, lengths)
        for u in range(int(lengths.max())):
            vector = vectors[:, u].repeat_interleave(width, dim=0)
            # The dearest copy of the search: left out of a beam of one and after the
            # last step.
            if state is not None and width > 1:
                state.reorder(order)
            if self.decoder.autoregressive:
                logits, state = self.decoder.step(vector, before, previous, state)
            else:
                logits = every_step[:, u].repeat_interleave(width, dim=0)
            log_probs = logits.float().log_softmax(-1)
            if steps:
                log_probs = steps.mix(log_probs, u, previous, order)
            # Never a target, so never wanted; masked after the softmax, so that scores
            # stay the network's own log-probabilities.
            log_probs[:, self.blank_index] = -torch.inf
            log_probs[:, self.bos_index] = -torch.inf
            if self.eos_threshold is not None:
                best = log_probs.max(-1).values
                early = log_probs[:, self.eos_index] < self.eos_threshold * best
                early &= (lengths > u + 1).repeat_interleave(width)
                log_probs[early, self.eos_index] = -torch.inf
            if self.scorer is not None:
                log_probs, memory = self.scorer.score(
                    previous, memory, None, log_probs, width
                )
            total = scores[:, None] + log_probs
            # What has ended goes on in one way, at no cost, whatever lies in padding.
            total.masked_fill_(ended[:, None], -torch.inf)
            total[:, self.eos_index] = scores.where(ended, total[:, self.eos_index])
            best, candidates = total.view(batch, -1).topk(width)
            # SpeechBrain's scorers say "impossible" with -1e20, and the CTC scorer
            # takes it back at the next step; infinity cannot be taken back.
            scores = best.masked_fill(best < -1e10, -torch.inf).flatten()
            order = (candidates // total.shape[1] + first).flatten()
            previous = (candidates % total.shape[1]).flatten()
            tokens = tokens[order]
            tokens[:, u] = previous
            ended = ended[order] | (previous == self.eos_index)
            ended |= (lengths == u + 1).repeat_interleave(width)
            before = vector
            if self.scorer is not None:
                memory = self.scorer.permute_scorer_mem(memory, order, candidates)
        tokens, scores = tokens.view(batch, width, -1), scores.view(batch, width)
        if self.ranker is not None:
            return self.ranker.rank(tokens, scores, encoded, x_lengths)
        return tokens, scores

    def _reset_scorer(self, vectors, lengths, encoded, x_lengths):
        """Memory of the scorers before the first step."""
        of_ctc = self.scorer and self.scorer.weights["ctc"]
        if (of_ctc or self.ranker) and encoded is None:
            raise ValueError(
                "a CTCScorer or CTCRanker reads encoder frames, but the search was given "
                "CIF vectors only: call searcher(vectors, lengths, encoded, x_lengths)"
            )
        if self.scorer is None:
            return None
        if not of_ctc:
            # Hotwords ask for the fires, language models for the batch size.
            encoded, x_lengths = vectors, lengths
        return self.scorer.reset_scorer_mem(encoded, x_lengths)


class GreedySearcher(BeamSearcher):
    """The most probable token at every fire: a beam of one.

    Arguments
    ---------
    decoder : cif_lobes.nets.decoder.CIFDecoder
        In eval mode.
    **options
        scorer, context, eos_threshold and indices of `BeamSearcher`.
    """

    def __init__(self, decoder, **options):
        super().__init__(decoder, beam_size=1, **options)


def cut_at_eos(tokens, eos_index):
    """Rows of tokens [B, U] as lists, each up to its first end of sentence."""
    rows = tokens.tolist()
    return [row[: row.index(eos_index)] if eos_index in row else row for row in rows]
