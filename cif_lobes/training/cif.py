"""Losses and scores of a CIF recogniser, once for all recipes."""

from typing import NamedTuple

import speechbrain as sb
import torch
from speechbrain.dataio.dataio import length_to_mask
from torch import Tensor

from cif_lobes.cif import cif
from cif_lobes.cif.guided import GuidedCIF
from cif_lobes.decoding.scoring import ErrorRate
from cif_lobes.devices.lengths import Lengths
from cif_lobes.losses.distillation import TokenStates
from cif_lobes.losses.recognition import ctc_loss, label_smoothed_ce, quantity_loss
from cif_lobes.nets.bert_decoder import BERTDecoder
from cif_lobes.training.recognizer import RecognizerBrain


class Predictions(NamedTuple):
    """What the network says about a batch, given the true tokens."""

    encoded: Tensor  # [B, T, D] encoder frames
    x_lengths: Lengths  # [B] encoder frames of each utterance
    fired: tuple  # CIFOutput, scaled to the true number of tokens
    logits: Tensor  # [B, U, V]
    states: Tensor  # [B, U, D] decoder states
    taught: tuple  # what a teacher draws to its own: (vectors, states), both [B, U, D]
    tokens: Tensor  # [B, U] true tokens, end of sentence included
    token_lengths: Lengths  # [B]


class CIFBrain(RecognizerBrain):
    """Trains and scores features -> encoder -> CIF -> decoder.

    Reads from the yaml, besides `modules` and what `RecognizerBrain` reads: `ctc_weight`,
    `quantity_weight`, `label_smoothing`, `searcher` for validation; optionally
    `test_searcher`, `distil_detach_weights`, and of a `BERTDecoder` `bert_lr`,
    `bert_trained_from`.
    """

    def __init__(self, modules=None, opt_class=None, hparams=None, run_opts=None, **kw):
        super().__init__(modules, opt_class, hparams, run_opts, **kw)
        self.is_guided = isinstance(self.hparams.cif, GuidedCIF)
        if self.is_guided and not self.hparams.ctc_weight:
            raise ValueError(
                "ctc_weight is 0, and cif is a GuidedCIF, which follows the spikes of the "
                "CTC head: train it with --ctc_weight 1, or use CIF"
            )

    def init_optimizers(self):
        """A decoder's BERT, if it learns, has a learning rate of its own."""
        super().init_optimizers()
        hp, decoder = self.hparams, self.option("decoder")
        if isinstance(decoder, BERTDecoder) and decoder.bert_parameters():
            parameters = decoder.bert_parameters()
            self.learn_apart(parameters, hp.bert_lr, hp.bert_trained_from)

    def compute_forward(self, batch, stage):
        """Encode, fire and decode with the true tokens; see `Predictions`."""
        token_lengths = Lengths.of(batch.tokens, self.device)
        encoded, x_lengths = self.encode(batch, stage)
        tokens = batch.tokens.data
        lengths = token_lengths.on_device
        fired = self.modules.cif(encoded, x_lengths.on_device, lengths, tokens)
        previous = tokens.roll(1, dims=1)
        previous[:, 0] = self.hparams.tokenizer.bos_index
        if stage == sb.Stage.TRAIN:
            self._pace_bert()
        vectors = fired.embeddings
        if hasattr(batch, "teacher") and self.option("distil_detach_weights"):
            logits, states, taught = self._decode_twice(
                encoded, x_lengths, fired, previous, lengths
            )
        else:
            logits, states = self.modules.decoder(vectors, previous, lengths)
            taught = vectors, states
        return Predictions(
            encoded, x_lengths, fired, logits, states, taught, tokens, token_lengths
        )

    def _decode_twice(self, encoded, x_lengths, fired, previous, lengths):
        """As usual, and for the teacher: from vectors whose weights have no gradient.

        So a teacher moves what is fired, not how much: on good ears its losses otherwise
        cost deletions and insertions. One pass over a batch of twice the size, since a
        distributed module is called once an update.

        Returns
        -------
        logits : torch.Tensor, [B, U, V]
        states : torch.Tensor, [B, U, D]
        taught : (torch.Tensor, torch.Tensor), both [B, U, D]
            Vectors and states that the teacher's losses see; their values are those
            of the others, but for dropout.
        """
        module = self.hparams.cif
        thresholds = module.threshold, module.tail_threshold
        frames = x_lengths.on_device
        alpha = fired.alpha.detach()
        vectors = cif(encoded, alpha, frames, lengths, *thresholds).embeddings
        logits, states = self.modules.decoder(
            torch.cat([fired.embeddings, vectors]),
            previous.repeat(2, 1),
            lengths.repeat(2),
        )
        num_rows = len(previous)
        return logits[:num_rows], states[:num_rows], (vectors, states[num_rows:])

    def _pace_bert(self):
        """How far the training is decides what a decoder's BERT is shown, and whether it
        learns."""
        decoder = self.option("decoder")
        if isinstance(decoder, BERTDecoder):
            updates = self.train_sampler.num_updates * self.hparams.number_of_epochs
            decoder.progress = self.optimizer_step / updates
            decoder.learning = self.optimizer_step >= self.hparams.bert_trained_from

    def compute_objectives(self, predictions, batch, stage):
        """Weighted sum of the losses over the batch; keeps the ledger."""
        losses = self.losses(predictions, batch, stage)
        self.ledger.add(losses, self.count_units(predictions))
        if stage != sb.Stage.TRAIN:
            self._score(predictions, batch, stage)
        return sum(weight * loss for weight, loss in losses.values())

    def losses(self, predictions, batch, stage):
        """Each term as (weight, sum over the batch), by name."""
        losses = self._recognition_losses(predictions)
        if stage == sb.Stage.TRAIN and hasattr(batch, "teacher"):
            losses |= self._distillation_losses(predictions, batch.teacher.data)
        return losses

    def _distillation_losses(self, p, teacher):
        """The terms against the teacher's states [B, U, ...], one per token."""
        outputs = self.modules.distillation(
            TokenStates(
                *p.taught,
                p.tokens,
                _valid_mask(p),
                p.token_lengths.valid_rows(p.tokens.shape[1]),
            ),
            teacher,
            # A gradient through heads that know nothing yet is noise, and larger than
            # that of all other losses.
            heads_only=self.optimizer_step < self.hparams.distil_after,
        )
        for name, output in outputs.items():
            for ratio, counts in output.ratios.items():
                self.ledger.count(f"{name}_{ratio}", *counts)
        return {name: (o.weight, o.loss) for name, o in outputs.items()}

    def _recognition_losses(self, p):
        """The terms that need no teacher."""
        valid_mask = _valid_mask(p)
        hp = self.hparams
        losses = {
            "ce": (
                1.0,
                label_smoothed_ce(p.logits, p.tokens, valid_mask, hp.label_smoothing),
            ),
            "quantity": (
                hp.quantity_weight,
                quantity_loss(p.fired.quantity, p.token_lengths.on_device),
            ),
        }
        if hp.ctc_weight:
            if self.is_guided:
                log_probs = p.fired.log_probs
            else:
                log_probs = self.modules.ctc_head(p.encoded).float().log_softmax(-1)
            losses["ctc"] = (
                hp.ctc_weight,
                ctc_loss(
                    log_probs,
                    p.tokens,
                    p.x_lengths.on_host,
                    p.token_lengths.on_host,
                    hp.tokenizer.blank_index,
                ),
            )
        return losses

    def transcribe(self, encoded, x_lengths, stage):
        """Free-running hypotheses: tokens and fires decided from the audio alone.

        Validation, after every epoch, is greedy; a test has the recipe's beam.

        Arguments
        ---------
        encoded : torch.Tensor, [B, T, D]
        x_lengths : cif_lobes.devices.lengths.Lengths
        stage : speechbrain.Stage

        Returns
        -------
        hypotheses : list of list of int
        fired : CIFOutput
        """
        frames = x_lengths.on_device
        fired = self.hparams.cif(encoded, frames)
        searcher = self.hparams.searcher
        if stage == sb.Stage.TEST:
            # Runs made before there was one are scored as they were.
            searcher = self.option("test_searcher") or searcher
        hypotheses, _ = searcher(fired.embeddings, fired.lengths, encoded, frames)
        return hypotheses, fired

    def _score(self, p, batch, stage):
        """Error rate, teacher-forced accuracy and quantity error of a batch."""
        hypotheses, fired = self.transcribe(p.encoded, p.x_lengths, stage)
        self.append_scores(batch, hypotheses)
        correct = (p.logits.argmax(-1) == p.tokens) & _valid_mask(p)
        self.ledger.count("accuracy", correct.sum(), self.count_units(p))
        lengths = p.token_lengths.on_device
        quantity_error = (p.fired.quantity - lengths).abs().sum()
        self.ledger.count("quantity_error", quantity_error, len(batch.id))
        length_error = (fired.lengths - lengths).abs().sum()
        self.ledger.count("length_error", length_error, len(batch.id))

    # --- figures ---

    def describe(self, figures):
        """Error rate, accuracy and quantity error."""
        return (
            f"{ErrorRate.describe(figures)}  accuracy {figures['accuracy']:.3f}  "
            f"quantity error {figures['quantity_error']:.2f} tokens"
        )


def _valid_mask(predictions):
    """[B, U], True at real tokens."""
    lengths, tokens = predictions.token_lengths.on_device, predictions.tokens
    return length_to_mask(lengths, tokens.shape[1], dtype=torch.bool)
