"""The optimizer's step, the stages and the resume of every recipe's Brain.

Every loss is a sum over the batch. The gradient is divided by the number of units
(target tokens, or frames) of all micro-batches and processes just before the optimizer's
step, so gradient accumulation, torchrun and a single process take the same step over the
same utterances.
"""

import logging
import math
import signal

import speechbrain as sb
import torch
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.nnet.schedulers import LinearWarmupScheduler
from speechbrain.utils.checkpoints import ckpt_recency
from speechbrain.utils.distributed import get_rank
from torch.nn.parallel import DistributedDataParallel

from cif_lobes.dataio import RankBatches
from cif_lobes.ledger import Ledger
from cif_lobes.processes import share_batches

logger = logging.getLogger(__name__)


class TrainingBrain(sb.Brain):
    """A `speechbrain.Brain` whose runs can be stopped, split and repeated.

    Reads from the yaml: `lr_scheduler`, `number_of_epochs`, `num_checkpoints`, `seed`,
    `record` (a `cif_lobes.run_record.RunRecord`). A subclass computes `compute_forward`
    and `compute_objectives`, which adds its losses to `self.ledger`, and says:

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

    def count_units(self, predictions):
        """Tokens or frames of a batch, by which its gradient is divided."""
        raise NotImplementedError

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
        units = self.count_units(predictions)
        self.group_units += units * counts
        if should_step:
            self.optimizers_step()
        return loss.detach().cpu() / units

    def optimizers_step(self):
        """Divide the summed gradients by the units behind them, then step."""
        self.hparams.lr_scheduler(self.optimizer, self.optimizer_step + 1)
        units, processes = torch.tensor(float(self.group_units)), 1
        self.stopping = self.interrupted
        if self.distributed_launch:
            # Not all processes hear a signal within the same step; they stop together.
            totals = units.new_tensor([units, self.interrupted]).to(self.device)
            torch.distributed.all_reduce(totals)
            units, self.stopping = totals[0], bool(totals[1])
            # DistributedDataParallel has averaged over processes; the sum is wanted.
            processes = torch.distributed.get_world_size()
        for parameter in self.modules.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(processes / units.to(parameter.device))
        self.group_units = 0
        super().optimizers_step()

    def rise_and_fall(self):
        """A learning rate that rises to `lr` in the share `warmup` of all updates.

        Then it falls to 0, both linearly. For a subclass's `on_fit_start`: only then is
        the number of updates known.
        """
        batches = len(self.train_sampler) / self.grad_accumulation_factor
        updates = math.ceil(batches) * self.hparams.number_of_epochs
        schedule = LinearWarmupScheduler(
            self.hparams.lr, round(self.hparams.warmup * updates), updates
        )

        def set_lr(optimizer, update):
            for group in optimizer.param_groups:
                group["lr"] = schedule.calculate_lr(update)

        return set_lr

    # --- stages ---

    def on_stage_start(self, stage, epoch=None):
        """Fresh figures for a stage."""
        self.epoch, self.group_units = epoch, 0
        if stage == sb.Stage.TRAIN:
            self.ledger = self.train_ledger
            if self.step == 0:  # not resumed within the epoch
                self.ledger.clear()
            return
        self.ledger = Ledger()
        self.start_scoring()

    def on_stage_end(self, stage, stage_loss, epoch):
        """Log a stage; after validation, save and set old checkpoints aside."""
        if stage == sb.Stage.TRAIN:
            self.ledger = self.train_ledger
        self.ledger.reduce()
        figures = self.ledger.summary()
        figures["seconds"] = self.ledger.seconds()
        if stage == sb.Stage.TRAIN:
            self.train_figures = figures
            return
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

    # --- data order, interruption, checkpoints ---

    def make_dataloader(self, dataset, stage, **loader_kwargs):
        """Validation and test sets are shared among the processes.

        SpeechBrain lets every process score all of them.
        """
        # Pinned, so that the copy of a batch to the GPU need not be waited for.
        loader_kwargs["pin_memory"] = torch.device(self.device).type == "cuda"
        if self.distributed_launch:
            processes = torch.distributed.get_world_size()
            if stage != sb.Stage.TRAIN:
                loader_kwargs["batch_sampler"] = share_batches(
                    loader_kwargs["batch_sampler"], get_rank(), processes
                )
            elif len(dataset) < processes:
                raise ValueError(
                    f"{processes} processes cannot share {len(dataset)} training "
                    "utterances: an update takes one at least for each. Start fewer: "
                    f"torchrun --nproc_per_node={len(dataset)}, or give more data"
                )
        return super().make_dataloader(dataset, stage, **loader_kwargs)

    def _train_loader_specifics(self, dataset, loader_kwargs):
        """Batches in turn, reshuffled by set_epoch.

        SpeechBrain calls set_epoch on its own distributed sampler only.
        """
        processes = torch.distributed.get_world_size() if self.distributed_launch else 1
        self.train_sampler = RankBatches(
            loader_kwargs["batch_sampler"], get_rank() or 0, processes
        )
        return {**loader_kwargs, "batch_sampler": self.train_sampler}

    def _wrap_distributed(self):
        """Buffers, constants all of them, are not sent around.

        Torch sends them before the first batch after a stage, and waits for ever for a
        process that has no batch to validate.
        """
        super()._wrap_distributed()
        for module in self.modules.values():
            if isinstance(module, DistributedDataParallel):
                module.broadcast_buffers = False

    def fit(self, *args, **kwargs):
        """Train; a signal stops training only, and only while it lasts."""
        handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        self.interrupted = self.stopping = self.stopped = False
        try:
            super().fit(*args, **kwargs)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.interrupted:  # during the last validation, which has been saved
            self.stopped = True
            raise KeyboardInterrupt

    def on_fit_start(self):
        """Resume if there is something to resume; catch interruptions from here on."""
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
        return (save or self.stopping) and self.group_units == 0

    def _save_intra_epoch_ckpt(self):
        self.train_ledger.gather()
        super()._save_intra_epoch_ckpt()
        if self.stopping:
            self.stopped = True
            raise KeyboardInterrupt
