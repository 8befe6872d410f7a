"""Decoding: as many steps as CIF fired, cut at the first end of sentence."""

import torch


class GreedySearcher:
    """The most probable token at every fire.

    Arguments
    ---------
    decoder : cif_lobes.decoder.CIFDecoder
        In eval mode.
    bos_index, eos_index : int
        Token before the first step; token that ends a hypothesis.
    """

    def __init__(self, decoder, bos_index=1, eos_index=2):
        self.decoder = decoder
        self.bos_index = bos_index
        self.eos_index = eos_index

    @torch.inference_mode()
    def __call__(self, vectors, lengths):
        """Decode a batch.

        Arguments
        ---------
        vectors : torch.Tensor, [B, U, D]
            CIF vectors.
        lengths : torch.Tensor, [B], int64
            Fires of each utterance.

        Returns
        -------
        hypotheses : list of list of int
            Tokens of each utterance, end of sentence excluded.
        scores : torch.Tensor, [B], float32
            Log-probability of each hypothesis, the end of sentence included.
        """
        batch, steps, _ = vectors.shape
        tokens = vectors.new_full((batch, steps), self.eos_index, dtype=torch.long)
        scores = vectors.new_zeros(batch, dtype=torch.float32)
        alive = lengths > 0
        previous = tokens.new_full((batch,), self.bos_index)
        before, state = torch.zeros_like(vectors[:, :1]).squeeze(1), None
        for step in range(steps):
            logits, state = self.decoder.step(vectors[:, step], before, previous, state)
            best, previous = logits.float().log_softmax(-1).max(-1)
            tokens[:, step] = torch.where(alive, previous, self.eos_index)
            scores += best * alive
            alive = alive & (previous != self.eos_index) & (step + 1 < lengths)
            if not alive.any():
                break
            before = vectors[:, step]
        return cut_at_eos(tokens, self.eos_index), scores


def cut_at_eos(tokens, eos_index):
    """Rows of tokens [B, U] as lists, each up to its first end of sentence."""
    rows = tokens.tolist()
    return [row[: row.index(eos_index)] if eos_index in row else row for row in rows]
