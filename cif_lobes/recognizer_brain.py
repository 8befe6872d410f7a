"""What the Brains of all speech recognisers share: audio to frames, and scoring."""

import logging

import speechbrain as sb
import torch
from speechbrain.utils.distributed import ddp_barrier

from cif_lobes.export import average_parameters
from cif_lobes.pretrained import load_parameters
from cif_lobes.scoring import ErrorRate
from cif_lobes.training_brain import TrainingBrain

logger = logging.getLogger(__name__)


class RecognizerBrain(TrainingBrain):
    """A `TrainingBrain` whose modules begin with `features` and `encoder`.

    Reads from the yaml, besides what `TrainingBrain` reads: `tokenizer`, `error_unit`,
    `average`; optionally `speed_perturb`, `insert_silence`, `random_gain`, `augment`. A
    subclass's predictions have `token_lengths` [B].
    """

    best_key = "error_rate"
    averaged = False  # whether the parameters are an average of checkpoints

    def encode(self, batch, stage):
        """Encoder frames [B, T, D] of a batch's audio, and their number [B]."""
        waves, relative = batch.signal
        training = stage == sb.Stage.TRAIN
        if training and self.option("speed_perturb"):
            waves = self.hparams.speed_perturb(waves)
        lengths = (relative * waves.shape[1]).round().long()
        if training and self.option("insert_silence"):
            waves, lengths = self.hparams.insert_silence(waves, lengths)
        if training and self.option("random_gain"):
            waves = self.hparams.random_gain(waves)
        x, x_lengths = self.modules.features(waves, lengths)
        if training and self.option("augment"):
            x = self.hparams.augment(x)
        return self.modules.encoder(x, x_lengths)

    def append_scores(self, batch, hypotheses):
        """Error rate of a batch's hypotheses, lists of token ids."""
        decode = self.hparams.tokenizer.decode
        self.error_rate.append(batch.id, [decode(h) for h in hypotheses], batch.text)

    def count_units(self, predictions):
        """Target tokens of a batch."""
        return int(predictions.token_lengths.sum())

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
        load_parameters(self.hparams.model, parameters)
        self.averaged = True
        logger.info(f"average of {len(epochs)} checkpoints, epochs {epochs}")

    def count_frames(self, seconds):
        """Encoder frames of an utterance of this many seconds."""
        samples = torch.tensor(int(seconds * self.hparams.sample_rate))
        frames = self.hparams.features.output_lengths(samples)
        return int(self.hparams.encoder.output_lengths(frames))

    def option(self, name):
        """A setting of the yaml that may be absent or null."""
        return getattr(self.hparams, name, None)
