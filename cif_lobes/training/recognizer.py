"""What the Brains of all speech recognisers share: audio to frames, and scoring."""

import logging

import speechbrain as sb
import torch
from speechbrain.utils.distributed import ddp_barrier

from cif_lobes.data.batches import at_speed
from cif_lobes.decoding.scoring import ErrorRate
from cif_lobes.devices.lengths import Lengths
from cif_lobes.storage.parameters import average_parameters, fill
from cif_lobes.training.brain import TrainingBrain

logger = logging.getLogger(__name__)

# What is asked of features and encoder besides `forward`; see `cif_lobes.nets`.
CONTRACT = ("output_lengths", "hop", "centre")


class RecognizerBrain(TrainingBrain):
    """A `TrainingBrain` whose modules begin with `features` and `encoder`.

    Reads from the yaml, besides what `TrainingBrain` reads: `tokenizer`, `error_unit`,
    `average`; optionally `speed_perturb`, `insert_silence`, `random_gain`, `augment`, and
    of pretrained ears `ears_lr`, `ears_trained_from`. A subclass's predictions have
    `token_lengths`, which are `Lengths`.
    """

    best_key = "error_rate"
    averaged = False  # whether the parameters are an average of checkpoints

    def __init__(self, modules=None, opt_class=None, hparams=None, run_opts=None, **kw):
        super().__init__(modules, opt_class, hparams, run_opts, **kw)
        for name in ("features", "encoder"):
            module = getattr(self.hparams, name)
            missing = [m for m in CONTRACT if not hasattr(module, m)]
            if missing:
                raise ValueError(
                    f"{name}, a {type(module).__name__}, has no {' and no '.join(missing)}: "
                    "it would train, and fail where it is used. The docstring of cif_lobes/"
                    "nets/__init__.py says what these are"
                )

    def encode(self, batch, stage):
        """Encoder frames [B, T, D] of a batch's audio, and their `Lengths`.

        Moves the batch to the device; `Lengths` of its other items are asked for before.
        """
        x, lengths = self.listen(batch, stage)
        training, heard = stage == sb.Stage.TRAIN, hasattr(batch, "heard")
        if training and not heard and self.option("insert_silence"):
            x, added = self.hparams.insert_silence(x, lengths.on_device)
            lengths = lengths.map(lambda n: n + added)
        if training and not heard and self.option("random_gain"):
            x = self.hparams.random_gain(x)
        self._wake_ears()
        x, x_lengths = self.modules.features(x, lengths.on_device)
        if training and self.option("augment"):
            x = self.hparams.augment(x, x_lengths)
        x, x_lengths = self.modules.encoder(x, x_lengths)
        if not heard:
            return x, Lengths(self.output_lengths(lengths.on_host), x_lengths)
        frames = self.hparams.features.pooled_lengths(lengths.on_host)
        return x, Lengths(self.hparams.encoder.output_lengths(frames), x_lengths)

    def listen(self, batch, stage):
        """Waveforms [B, samples] of a batch, in training at a speed that is drawn.

        Or what pretrained ears have heard of them before, [B, T, L, H]; and `Lengths`.
        Moves the batch to the device.
        """
        perturb = self.option("speed_perturb") if stage == sb.Stage.TRAIN else None
        name = "heard" if hasattr(batch, "heard") else "signal"
        if name == "heard" and perturb and perturb.speeds != [100]:
            name = at_speed(name, perturb.draw())
        lengths = Lengths.of(getattr(batch, name), self.device)
        x = getattr(batch.to(self.device, non_blocking=True), name).data
        if name == "signal" and perturb:
            before = x.shape[1]
            x = perturb(x)
            change = x.shape[1] / before
            lengths = lengths.map(lambda n: (n.double() * change).round().long())
        return x, lengths

    def _wake_ears(self):
        """Layers of pretrained ears that are trained learn from an update on."""
        if getattr(self.hparams.features, "top", None) is not None:
            awake = self.optimizer_step >= self.hparams.ears_trained_from
            self.hparams.features.learning = awake

    def init_optimizers(self):
        """Layers of pretrained ears that are trained have a learning rate of their own."""
        super().init_optimizers()
        top = getattr(self.hparams.features, "top", None)
        if top is not None:
            hp = self.hparams
            self.learn_apart([*top.parameters()], hp.ears_lr, hp.ears_trained_from)

    def learn_apart(self, parameters, lr, begin):
        """Give some parameters a peak learning rate of their own, from an update on."""
        theirs, first = {id(p) for p in parameters}, self.optimizer.param_groups[0]
        first["params"] = [p for p in first["params"] if id(p) not in theirs]
        share = lr / self.hparams.lr
        self.optimizer.add_param_group(
            {"params": parameters, "lr_share": share, "begin": begin}
        )

    def output_lengths(self, samples):
        """Encoder frames of signals of `samples` samples, an integer tensor."""
        frames = self.hparams.features.output_lengths(samples)
        return self.hparams.encoder.output_lengths(frames)

    def append_scores(self, batch, hypotheses):
        """Error rate of a batch's hypotheses, lists of token ids."""
        decode = self.hparams.tokenizer.decode
        self.error_rate.append(batch.id, [decode(h) for h in hypotheses], batch.text)

    def count_units(self, predictions):
        """Target tokens of a batch."""
        return predictions.token_lengths.total()

    def start_scoring(self):
        """No utterance has been scored."""
        self.error_rate = ErrorRate(self.hparams.error_unit)

    def scores(self):
        """Error rate of all processes' utterances, and its counts."""
        self.error_rate.gather()
        return self.error_rate.summary()

    def on_fit_start(self):
        """Training moves the parameters away from the average of checkpoints."""
        self.averaged = False
        super().on_fit_start()

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Average checkpoints in memory, once for all sets; nothing on disk changes."""
        if self.averaged:
            return
        # The first process may still be saving or deleting what the others look for.
        ddp_barrier()
        parameters, epochs = average_parameters(
            self.checkpointer.checkpoints_dir,
            self.hparams.average,
            self.hparams.num_checkpoints,
        )
        fill(self.hparams.model, parameters)
        self.averaged = True
        logger.info(f"average of {len(epochs)} checkpoints, epochs {epochs}")

    def count_frames(self, seconds):
        """Encoder frames of utterances of so many seconds, both lists."""
        samples = torch.tensor(seconds, dtype=torch.float64) * self.hparams.sample_rate
        return self.output_lengths(samples.long()).tolist()

    def option(self, name):
        """A setting of the yaml that may be absent or null."""
        return getattr(self.hparams, name, None)
