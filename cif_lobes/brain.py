"""Losses and scores of a CIF recogniser, once for all recipes."""

import logging
from typing import NamedTuple

import speechbrain as sb
import torch
from speechbrain.dataio.dataio import length_to_mask
from speechbrain.nnet.losses import ctc_loss
from speechbrain.utils.distributed import ddp_barrier
from torch import Tensor

from cif_lobes.distillation import distillation_losses
from cif_lobes.export import average_parameters
from cif_lobes.losses import label_smoothed_ce, quantity_loss
from cif_lobes.scoring import ErrorRate
from cif_lobes.training_brain import TrainingBrain

logger = logging.getLogger(__name__)


class Predictions(NamedTuple):
    """What the network says about a batch, given the true tokens."""

    encoded: Tensor  # [B, T, D] encoder frames
    x_lengths: Tensor  # [B] encoder frames of each utterance
    fired: tuple  # CIFOutput, scaled to the true number of tokens
    logits: Tensor  # [B, U, V]
    states: Tensor  # [B, U, D] decoder states
    tokens: Tensor  # [B, U] true tokens, end of sentence included
    token_lengths: Tensor  # [B]


class CIFBrain(TrainingBrain):
    """Trains and scores features -> encoder -> CIF -> decoder.

    Reads from the yaml, besides `modules` and what `TrainingBrain` reads: `tokenizer`,
    `ctc_weight`, `quantity_weight`, `label_smoothing`, `searcher`, `error_unit`,
    `average`; optionally `speed_perturb` and `augment`.
    """

    best_key = "error_rate"

    def compute_forward(self, batch, stage):
        """Encode, fire and decode with the true tokens; see `Predictions`."""
        batch = batch.to(self.device)
        encoded, x_lengths = self.encode(batch, stage)
        tokens, relative = batch.tokens
        token_lengths = (relative * tokens.shape[1]).round().long()
        fired = self.modules.cif(encoded, x_lengths, token_lengths)
        previous = tokens.roll(1, dims=1)
        previous[:, 0] = self.hparams.tokenizer.bos_index
        logits, states = self.modules.decoder(fired.embeddings, previous)
        return Predictions(
            encoded, x_lengths, fired, logits, states, tokens, token_lengths
        )

    def encode(self, batch, stage):
        """Encoder frames [B, T, D] of a batch's audio, and their number [B]."""
        waves, relative = batch.signal
        training = stage == sb.Stage.TRAIN
        if training and self.option("speed_perturb"):
            waves = self.hparams.speed_perturb(waves)
        lengths = (relative * waves.shape[1]).round().long()
        x, x_lengths = self.modules.features(waves, lengths)
        if training and self.option("augment"):
            x = self.hparams.augment(x)
        return self.modules.encoder(x, x_lengths)

    def compute_objectives(self, predictions, batch, stage):
        """Weighted sum of the losses over the batch; keeps the ledger."""
        losses = self.losses(predictions)
        if stage == sb.Stage.TRAIN and hasattr(batch, "teacher"):
            losses |= distillation_losses(
                self.hparams,
                self.modules,
                predictions,
                batch.teacher.data,
                _valid_mask(predictions),
                self.ledger,
                # A gradient through heads that know nothing yet is noise, and larger
                # than that of all other losses.
                heads_only=self.optimizer_step < self.hparams.distil_after,
            )
        self.ledger.add(losses, int(predictions.token_lengths.sum()))
        if stage != sb.Stage.TRAIN:
            self._score(predictions, batch, stage)
        return sum(weight * loss for weight, loss in losses.values())

    def losses(self, p):
        """Each term that needs no teacher as (weight, sum over the batch), by name."""
        valid_mask = _valid_mask(p)
        hp = self.hparams
        losses = {
            "ce": (
                1.0,
                label_smoothed_ce(p.logits, p.tokens, valid_mask, hp.label_smoothing),
            ),
            "quantity": (
                hp.quantity_weight,
                quantity_loss(p.fired.quantity, p.token_lengths),
            ),
        }
        if hp.ctc_weight:
            log_probs = self.modules.ctc_head(p.encoded).float().log_softmax(-1)
            losses["ctc"] = (
                hp.ctc_weight,
                ctc_loss(
                    log_probs,
                    p.tokens,
                    p.x_lengths / p.encoded.shape[1],
                    p.token_lengths / p.tokens.shape[1],
                    hp.tokenizer.blank_index,
                    reduction="sum",
                ),
            )
        return losses

    def transcribe(self, encoded, x_lengths):
        """Free-running hypotheses: tokens and fires decided from the audio alone.

        Returns
        -------
        hypotheses : list of list of int
        fired : CIFOutput
        """
        fired = self.hparams.cif(encoded, x_lengths)
        hypotheses, _ = self.hparams.searcher(fired.embeddings, fired.lengths)
        return hypotheses, fired

    def _score(self, p, batch, stage):
        """Error rate, teacher-forced accuracy and quantity error of a batch."""
        hypotheses, fired = self.transcribe(p.encoded, p.x_lengths)
        decode = self.hparams.tokenizer.decode
        self.error_rate.append(batch.id, [decode(h) for h in hypotheses], batch.text)
        valid_mask = _valid_mask(p)
        correct = (p.logits.argmax(-1) == p.tokens) & valid_mask
        self.ledger.count("accuracy", int(correct.sum()), int(valid_mask.sum()))
        quantity_error = (p.fired.quantity - p.token_lengths).abs().sum()
        self.ledger.count("quantity_error", float(quantity_error), len(batch.id))
        length_error = (fired.lengths - p.token_lengths).abs().sum()
        self.ledger.count("length_error", int(length_error), len(batch.id))

    # --- figures ---

    def count_units(self, predictions):
        """Target tokens of a batch."""
        return int(predictions.token_lengths.sum())

    def start_scoring(self):
        """No utterance has been scored."""
        self.error_rate = ErrorRate(self.hparams.error_unit)

    def scores(self):
        """Error rate and its counts."""
        return self.error_rate.summary()

    def describe(self, figures):
        """Error rate, accuracy and quantity error."""
        return (
            f"{ErrorRate.describe(figures)}  accuracy {figures['accuracy']:.3f}  "
            f"quantity error {figures['quantity_error']:.2f} tokens"
        )

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Average checkpoints in memory; nothing on disk changes."""
        # The first process may still be saving or deleting what the others look for.
        ddp_barrier()
        parameters, epochs = average_parameters(
            self.checkpointer.checkpoints_dir,
            self.hparams.average,
            self.hparams.num_checkpoints,
        )
        self.hparams.model.load_state_dict(parameters)
        logger.info(f"average of {len(epochs)} checkpoints, epochs {epochs}")

    def count_frames(self, seconds):
        """Encoder frames of an utterance of this many seconds."""
        samples = torch.tensor(int(seconds * self.hparams.sample_rate))
        frames = self.hparams.features.output_lengths(samples)
        return int(self.hparams.encoder.output_lengths(frames))

    def option(self, name):
        """A setting of the yaml that may be absent or null."""
        return getattr(self.hparams, name, None)


def _valid_mask(predictions):
    """[B, U], True at real tokens."""
    lengths, tokens = predictions.token_lengths, predictions.tokens
    return length_to_mask(lengths, tokens.shape[1], dtype=torch.bool)
