"""The optimizer's step, the stages and the resume of every recipe's Brain.

Every loss is a sum over the batch. The gradient is divided by the number of units
(target tokens, or frames) of all micro-batches and processes just before the optimizer's
step, so gradient accumulation, torchrun and a single process take the same step over the
same utterances. What the host has to know of a step (whether its loss is finite, whether
somebody has pressed Ctrl-C) it reads once, from the sum over all processes.
"""

import logging
import math
import signal
import time

import speechbrain as sb
import torch
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.checkpoints import (
    ckpt_recency,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import get_rank, if_main_process
from torch.nn.parallel import DistributedDataParallel

from cif_lobes.devices.precision import set_tf32
from cif_lobes.devices.processes import gather_objects, in_any_process
from cif_lobes.training.compiled import check_options, compile_layers, use_compiled
from cif_lobes.training.ledger import Ledger
from cif_lobes.training.loaders import share_loader
from cif_lobes.training.nonfinite import NonFinite
from cif_lobes.training.progress import load_optimizer, read_progress, write_progress
from cif_lobes.training.progress_log import ProgressLog
from cif_lobes.training.unusable import gather_unusable

logger = logging.getLogger(__name__)


@register_checkpoint_hooks
class TrainingBrain(sb.Brain):
    """A `speechbrain.Brain` whose runs can be stopped, split and repeated.

    Reads from the yaml: `lr_scheduler` (one of `schedules`), `number_of_epochs`,
    `num_checkpoints`, `seed`, `tf32`, `record` (a `cif_lobes.storage.record.RunRecord`). A
    subclass computes `compute_forward` and `compute_objectives`, which adds its losses to
    `self.ledger`, and says:

    best_key : str
        Figure of the validation by which the best checkpoint is kept, lower is better.
    count_units(predictions) : int
        What a batch's loss is a sum over.
    start_scoring(), scores() : dict
        Figures of a validation or test besides the losses.
    describe(figures) : str
        Those of the validation, for a line of progress.
    """

    best_key = "loss"
    updates_of_an_epoch = None  # as the checkpoint says that is resumed

    def __init__(self, modules=None, opt_class=None, hparams=None, run_opts=None, **kw):
        # SpeechBrain's default of 3 is for batches of an epoch, not for updates in a row.
        hparams = {"nonfinite_patience": 5, **(hparams or {})}
        super().__init__(modules, opt_class, hparams, run_opts, **kw)
        self.updates_in_epoch = self.rounds_left = 0
        check_options(self)

    def count_units(self, predictions):
        """Tokens or frames of a batch, by which its gradient is divided."""
        raise NotImplementedError

    def on_recovered(self):
        """Called once a training has its checkpoint's parameters, if there is one."""

    def start_scoring(self):
        """Called before a validation or test."""

    def scores(self):
        """Called after it."""
        return {}

    def describe(self, figures):
        """Figures of a validation besides the losses, in words."""
        return ""

    # --- one optimizer step ---

    def fit_batch(self, batch):
        """Forward and backward of one pass, and the step if it ends an update."""
        this = self.train_sampler[self.step - 1]
        # Random numbers follow from (seed, epoch, step, rank) alone: a resumed run
        # draws what the uninterrupted one would have drawn.
        torch.manual_seed(
            hash((self.hparams.seed, self.epoch, self.step, get_rank() or 0)) % 2**63
        )
        # A process without utterances computes a stand-in, for nothing: all must take
        # part when gradients are summed.
        self.ledger = self.update_ledger if this.counts else Ledger()
        self._note_unusable(batch)
        with self.no_sync(not this.ends_update):
            with self.training_ctx:
                predictions = self.compute_forward(batch, sb.Stage.TRAIN)
                loss = self.compute_objectives(predictions, batch, sb.Stage.TRAIN)
            self.scaler.scale(loss * this.counts).backward()
        if this.counts:
            self.update.append((batch, loss.detach()))
            self.update_units += self.count_units(predictions)
        if this.ends_update:
            self.optimizers_step()
        return self.update_loss

    def optimizers_step(self):
        """Divide the summed gradients by the units behind them, then step."""
        for group in self.optimizer.param_groups:
            begun = self.optimizer_step >= group.get("begin", 0)
            share = group.get("lr_share", 1.0) if begun else 0.0
            lr = self.hparams.lr_scheduler.lr_at(self.optimizer_step + 1)
            group["lr"] = share * lr
        totals = self._totals()
        self.scaler.unscale_(self.optimizer)
        trained = [
            parameter
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        gradients = [parameter.grad for parameter in trained]
        # DistributedDataParallel has averaged over processes; the sum is wanted.
        processes = torch.distributed.get_world_size() if self.distributed_launch else 1
        torch._foreach_mul_(gradients, processes / totals[0])
        norm = torch.nn.utils.get_total_norm(gradients)
        # The only place at which the host waits for the device.
        units, loss, broken, interrupted, due, norm_value = torch.cat(
            [totals, norm[None]]
        ).tolist()
        self.stopping, self.saving = interrupted > 0, due > 0
        # fp16 overflows now and then; its scaler passes over such steps by itself.
        if broken or not (math.isfinite(norm_value) or self.scaler.is_enabled()):
            mean = math.nan
            self.failure = self.nonfinite.skip(
                self.update, self.update_ledger, self.unusable
            )
        else:
            torch.nn.utils.clip_grads_with_norm_(trained, self.max_grad_norm, norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.train_ledger.merge(self.update_ledger)
            self.update_loss = mean = loss / units
            self.nonfinite.keep()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
        self.updates_in_epoch += 1
        self.progress.update(self.updates_in_epoch, mean, lr)
        self._begin_update()

    def _totals(self):
        """Units, loss, whether it or a recording is no good, whether somebody wants to
        stop, or to save: [5], summed over the processes, on the device."""
        losses = [loss.float() for _, loss in self.update]
        # Filled where it is: a copy from the host would wait for the device.
        totals = torch.zeros(5, device=self.device)
        totals[0].fill_(self.update_units)
        if losses:
            losses = torch.stack(losses)
            totals[1] = losses.sum()
            totals[2] = (~losses.isfinite()).sum()
        totals[2] += len(self.unusable)
        totals[3].fill_(self.interrupted)
        totals[4].fill_(self._checkpoint_is_due() and if_main_process())
        if self.distributed_launch:
            torch.distributed.all_reduce(totals)
        return totals

    def _begin_update(self):
        """Nothing has been computed of the next update."""
        self.update, self.update_units, self.update_ledger = [], 0, Ledger()

    def update_average(self, loss, avg_loss):
        """Mean loss of the epoch's updates so far, for the progress bar.

        SpeechBrain's reads the loss of every pass from the device.
        """
        if not self.updates_in_epoch or not math.isfinite(loss):
            return avg_loss
        return avg_loss + (loss - avg_loss) / self.updates_in_epoch

    # --- stages ---

    def _compile(self):
        """--compile, in place of SpeechBrain's way, which does not work for these."""
        if self.compile:
            compile_layers(self.modules, self.compile_module_keys, self.compile_mode)

    def on_stage_start(self, stage, epoch=None):
        """Fresh figures; TF32 and compiled layers in training only."""
        set_tf32(stage == sb.Stage.TRAIN and self.hparams.tf32)
        if self.compile:
            use_compiled(stage == sb.Stage.TRAIN)
        self.epoch, self.unusable = epoch, []
        if stage == sb.Stage.TRAIN:
            self.train_sampler.set_epoch(epoch)
            # The same place in the epoch, whatever number of processes has got there;
            # its end, if utterances have been taken out of the manifest.
            begin = min(self.updates_in_epoch, self.train_sampler.num_updates)
            self.train_sampler.start = begin
            self.step = self.train_sampler.first_pass(begin)
            self.update_loss, self.saved_at = math.nan, (time.monotonic(), self.step)
            self._begin_update()
            shown = self.noprogressbar and if_main_process()
            self.progress = ProgressLog(self.train_sampler, epoch, shown)
            if self.updates_in_epoch == 0:  # not resumed within the epoch
                self.train_ledger.clear()
            return
        self.ledger = Ledger()
        self.start_scoring()

    def on_stage_end(self, stage, stage_loss, epoch):
        """Log a stage; after validation, save and set old checkpoints aside."""
        while self.rounds_left:  # other processes have more batches
            self._stop_if_interrupted()
        if stage == sb.Stage.TRAIN:
            self.ledger = self.train_ledger
        self.ledger.reduce()
        figures = self.ledger.summary()
        figures["seconds"] = self.ledger.seconds()
        if stage == sb.Stage.TRAIN:
            self.train_figures = figures
            self.updates_in_epoch = 0
            return
        unusable = gather_unusable(self.unusable, stage == sb.Stage.VALID)
        if unusable and stage == sb.Stage.VALID:
            self.failure = unusable
            self._stop_before_validation()
        if unusable:
            raise unusable
        figures |= self.scores()
        if stage == sb.Stage.TEST:
            self.test_figures = figures
            return
        self.hparams.record.epoch(
            epoch,
            self.hparams.number_of_epochs,
            self.optimizer.param_groups[0]["lr"],
            self.optimizer_step,
            self.train_figures,
            figures,
            self.describe(figures),
        )
        self.nonfinite.check_parameters()
        self.checkpointer.save_and_keep_only(
            meta={self.best_key: figures[self.best_key], "epoch": epoch},
            num_to_keep=self.hparams.num_checkpoints,
            importance_keys=[ckpt_recency],
            min_keys=[self.best_key],
            # One from within an epoch must not take the place of an epoch's.
            ckpt_predicate=lambda c: self.best_key in c.meta,
        )
        self.checkpointer.delete_checkpoints(
            num_to_keep=0, ckpt_predicate=lambda c: INTRA_EPOCH_CKPT_FLAG in c.meta
        )

    # --- validations that end before their time ---

    def _fit_valid(self, valid_set, epoch, enable):
        """As SpeechBrain's; a signal is heard after each round of batches."""
        # Processes have shares of other lengths, and stop together.
        self.rounds_left = max(gather_objects(len(valid_set)))
        super()._fit_valid(valid_set, epoch, enable)

    def evaluate_batch(self, batch, stage):
        """As SpeechBrain's; what cannot be read is noted."""
        self._note_unusable(batch)
        loss = super().evaluate_batch(batch, stage)
        if self.rounds_left:
            self._stop_if_interrupted()
        return loss

    def _stop_if_interrupted(self):
        """Between two rounds of a validation: in all processes, or in none."""
        self.rounds_left -= 1
        self.stopping = in_any_process(self.interrupted, self.device)
        if self.stopping:
            self._stop_before_validation()

    def _note_unusable(self, batch):
        self.unusable += filter(None, getattr(batch, "unusable", []))

    def _stop_before_validation(self):
        """Save an epoch of which only the validation is left to do, then raise."""
        self.updates_in_epoch = self.train_sampler.num_updates
        # Its figures have been added up over the processes: each has the sum.
        self.train_ledger.leave_to_the_first()
        self._save_intra_epoch_ckpt()

    # --- processes, data order, interruption, checkpoints ---

    def _wrap_distributed(self):
        """No process is sent the buffers of the first one before every forward.

        They are the same in all: positions (2.6 MB of a decoder) never change, and what
        a module counts, it counts over all processes.
        """
        super()._wrap_distributed()
        for module in self.modules.values():
            if isinstance(module, DistributedDataParallel):
                module.broadcast_buffers = False

    def make_dataloader(self, dataset, stage, ckpt_prefix=None, **loader_kwargs):
        """See `share_loader`; no checkpoint holds the place in the training set.

        SpeechBrain saves a number of passes, which are more with fewer processes;
        `updates_in_epoch` is the same for any.
        """
        dataset, options = share_loader(self, dataset, stage, loader_kwargs)
        return super().make_dataloader(dataset, stage, None, **options)

    def _train_loader_specifics(self, dataset, loader_kwargs):
        """The batches as they are: SpeechBrain would deal them a second time."""
        self.train_sampler = loader_kwargs["batch_sampler"]
        return loader_kwargs

    def fit(self, *args, **kwargs):
        """Train; a signal stops training only, and only while it lasts."""
        handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        self.interrupted = self.stopping = self.stopped = self.saving = False
        self.failure = None
        try:
            super().fit(*args, **kwargs)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.interrupted:  # during the last validation, which has been saved
            self.stopped = True
            raise KeyboardInterrupt

    def init_optimizers(self):
        """As SpeechBrain's; see `load_optimizer`."""
        super().init_optimizers()
        if self.checkpointer is not None:
            self.checkpointer.custom_load_hooks["optimizer"] = load_optimizer

    def on_fit_start(self):
        """Resume if there is something to resume; catch interruptions from here on."""
        self.train_ledger = Ledger()
        self.hparams.lr_scheduler.start(
            self.train_sampler.num_updates * self.hparams.number_of_epochs
        )
        self.checkpointer.add_recoverable("ledger", self.train_ledger)
        super().on_fit_start()
        self.on_recovered()
        self.nonfinite = NonFinite(self.modules, self.nonfinite_patience)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def _interrupt(self, number, frame):
        """First Ctrl-C: stop after this step. Second: stop now."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        logger.info("saving after this step, then stopping (again: stop at once)")

    def _checkpoint_is_due(self):
        """Whether the time or the steps between two checkpoints have passed."""
        then, step = self.saved_at
        minutes = (time.monotonic() - then) / 60
        return (
            0 < self.ckpt_interval_minutes < minutes
            or 0 < self.ckpt_interval_steps <= self.step - step
        )

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        """Only between updates: half a gradient is not in a checkpoint.

        SpeechBrain's broadcasts the first process's answer in every step; ours was
        summed with the units.
        """
        between = self.train_sampler[self.step - 1].ends_update
        return between and bool(self.saving or self.stopping or self.failure)

    def _save_intra_epoch_ckpt(self):
        self.nonfinite.check_parameters()
        self.train_ledger.gather()
        # Before: a second Ctrl-C waits until it is saved, and is raised there.
        self.stopped = self.stopping
        super()._save_intra_epoch_ckpt()
        self.saved_at = time.monotonic(), self.step
        if self.failure:
            raise self.failure
        if self.stopping:
            raise KeyboardInterrupt

    @mark_as_saver
    def _save(self, path):
        write_progress(self, path)

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        read_progress(self, path)
