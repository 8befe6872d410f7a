"""Training of a Transformer language model, from its yaml to its perplexity."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cif_lobes.decoding.language_model import (
    BEST_KEY,
)
from cif_lobes.training.brain import TrainingBrain


class Predictions(NamedTuple):
    """What the language model says about a batch."""

    logits: Tensor  # [B, U, V]
    tokens: Tensor  # [B, U] true tokens, end of sentence included, padded with blank


class LanguageModelBrain(TrainingBrain):
    """Trains a language model to predict each token from those before it.

    Reads from the yaml, besides `modules` (`lm`): `tokenizer`, `lr_scheduler`,
    `number_of_epochs`, `num_checkpoints`, `seed`.
    """

    best_key = BEST_KEY

    def compute_forward(self, batch, stage):
        """Logits of every token; see `Predictions`."""
        tokens, _ = batch.to(self.device, non_blocking=True).tokens
        previous = tokens.roll(1, dims=1)
        previous[:, 0] = self.hparams.tokenizer.bos_index
        return Predictions(self.modules.lm(previous), tokens)

    def compute_objectives(self, predictions, batch, stage):
        """Cross-entropy in nats, summed over the batch; keeps the ledger."""
        loss = torch.nn.functional.cross_entropy(
            predictions.logits.float().transpose(1, 2),
            predictions.tokens,
            # PaddedBatch pads with 0, the blank: never a token of a text.
            ignore_index=self.hparams.tokenizer.blank_index,
            reduction="sum",
        )
        self.ledger.add({"ce": (1.0, loss)}, self.count_units(predictions))
        return loss

    def count_units(self, predictions):
        """Tokens of a batch, ends of sentences included."""
        return int((predictions.tokens != self.hparams.tokenizer.blank_index).sum())

    def scores(self):
        """Perplexity of a token, end of sentence included."""
        return {BEST_KEY: math.exp(self.ledger.summary()["loss"])}

    def describe(self, figures):
        """The perplexity in words."""
        return f"perplexity {figures[BEST_KEY]:.1f}"
