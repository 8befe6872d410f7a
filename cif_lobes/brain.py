"""The training step of a CIF recogniser, once for all recipes.

Every loss is a sum over the batch. The gradient is divided by the number of target
tokens of all micro-batches and processes just before the optimizer's step, so gradient
accumulation, torchrun and a single process take the same step over the same utterances.
"""

import logging
import signal
import time
from typing import NamedTuple

import speechbrain as sb
import torch
from speechbrain.dataio.dataio import length_to_mask
from speechbrain.nnet.losses import ctc_loss
from speechbrain.utils.checkpoints import ckpt_recency
from speechbrain.utils.distributed import ddp_barrier, get_rank
from torch import Tensor

from cif_lobes.dataio import RankBatches
from cif_lobes.distillation import distillation_losses
from cif_lobes.export import average_parameters
from cif_lobes.ledger import Ledger
from cif_lobes.losses import label_smoothed_ce, quantity_loss
from cif_lobes.scoring import ErrorRate

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


class CIFBrain(sb.Brain):
    """Trains and scores features -> encoder -> CIF -> decoder.

    Reads from the yaml, besides `modules`: `tokenizer`, `ctc_weight`,
    `quantity_weight`, `label_smoothing`, `lr_scheduler`, `searcher`, `error_unit`,
    `num_checkpoints`, `average`, `seed`; optionally `speed_perturb` and `augment`.
    """

    def compute_forward(self, batch, stage):
        """Encode, fire and decode with the true tokens; see `Predictions`."""
        batch = batch.to(self.device)
        encoded, x_lengths = self.encode(batch, stage)
        tokens, relative = batch.tokens
        token_lengths = (relative * tokens.shape[1]).round().long()
        fired = self.modules.cif(encoded, x_lengths, token_lengths)
        previous = tokens.roll(1, dims=1)
        previous[:, 0] = self.hparams.tokenizer.bos_index
        logits, states = self.modules.decoder(fired.embeddings, previous, token_lengths)
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

    # --- one optimizer step ---

    def fit_batch(self, batch):
        """Forward and backward of a micro-batch, and the step that ends its group."""
        last = self.step == len(self.train_sampler)
        should_step = last or self.step % self.grad_accumulation_factor == 0
        # Random numbers follow from (seed, epoch, step, rank) alone: a resumed run
        # draws what the uninterrupted one would have drawn.
        torch.manual_seed(
            hash((self.hparams.seed, self.epoch, self.step, get_rank() or 0)) % 2**63
        )
        # In the last round some processes may have no batch left. They compute one
        # again, for nothing: all must take part when gradients are summed.
        counts = self.train_sampler.counts(self.step)
        self.ledger = self.train_ledger if counts else Ledger()
        with self.no_sync(not should_step):
            with self.training_ctx:
                predictions = self.compute_forward(batch, sb.Stage.TRAIN)
                loss = self.compute_objectives(predictions, batch, sb.Stage.TRAIN)
            self.check_loss_isfinite(loss)
            self.scaler.scale(loss * counts).backward()
        tokens = int(predictions.token_lengths.sum())
        self.group_tokens += tokens * counts
        if should_step:
            self.optimizers_step()
        return loss.detach().cpu() / tokens

    def optimizers_step(self):
        """Divide the summed gradients by the tokens behind them, then step."""
        self.hparams.lr_scheduler(self.optimizer, self.optimizer_step + 1)
        tokens, processes = torch.tensor(float(self.group_tokens)), 1
        if self.distributed_launch:
            tokens = tokens.to(self.device)
            torch.distributed.all_reduce(tokens)
            # DistributedDataParallel has averaged over processes; the sum is wanted.
            processes = torch.distributed.get_world_size()
        for parameter in self.modules.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(processes / tokens.to(parameter.device))
        self.group_tokens = 0
        super().optimizers_step()

    # --- stages ---

    def on_stage_start(self, stage, epoch=None):
        """Fresh figures for a stage."""
        self.epoch, self.started, self.group_tokens = epoch, time.time(), 0
        if stage == sb.Stage.TRAIN:
            self.ledger = self.train_ledger
            if self.step == 0:  # not resumed within the epoch
                self.ledger.clear()
            return
        self.ledger = Ledger()
        self.error_rate = ErrorRate(self.hparams.error_unit)

    def on_stage_end(self, stage, stage_loss, epoch):
        """Log a stage; after validation, save and set old checkpoints aside."""
        if stage == sb.Stage.TRAIN:
            self.ledger = self.train_ledger
        self.ledger.reduce(self.device)
        summary = self.ledger.summary()
        summary["seconds"] = round(time.time() - self.started, 1)
        if stage == sb.Stage.TRAIN:
            self.train_summary = summary
            return
        summary |= self.error_rate.summary()
        if stage == sb.Stage.TEST:
            self.test_summary = summary
            return
        self.hparams.record.epoch(
            epoch,
            self.hparams.number_of_epochs,
            self.optimizer.param_groups[0]["lr"],
            self.optimizer_step,
            self.train_summary,
            summary,
        )
        self.checkpointer.save_and_keep_only(
            meta={"error_rate": summary["error_rate"], "epoch": epoch},
            num_to_keep=self.hparams.num_checkpoints,
            importance_keys=[ckpt_recency],
            min_keys=["error_rate"],
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

    # --- data order, interruption, checkpoints ---

    def _train_loader_specifics(self, dataset, loader_kwargs):
        """Batches in turn, reshuffled by set_epoch.

        SpeechBrain calls set_epoch on its own distributed sampler only.
        """
        processes = torch.distributed.get_world_size() if self.distributed_launch else 1
        self.train_sampler = RankBatches(
            loader_kwargs["batch_sampler"], get_rank() or 0, processes
        )
        return {**loader_kwargs, "batch_sampler": self.train_sampler}

    def on_fit_start(self):
        """Resume if there is something to resume; catch interruptions from here on."""
        self.interrupted = False
        self.train_ledger = Ledger()
        self.checkpointer.add_recoverable("ledger", self.train_ledger)
        super().on_fit_start()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def _interrupt(self, number, frame):
        """First Ctrl-C: stop after this step. Second: stop now."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        logger.info("saving after this step, then stopping (again: stop at once)")

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        """Only between optimizer steps: half a gradient is not in a checkpoint."""
        save = super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)
        return (save or self.interrupted) and self.group_tokens == 0

    def _save_intra_epoch_ckpt(self):
        super()._save_intra_epoch_ckpt()
        if self.interrupted:
            raise KeyboardInterrupt

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
