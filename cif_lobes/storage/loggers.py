"""TensorBoard for a yaml's `train_logger`; others are SpeechBrain's own."""

from speechbrain.utils import train_logger


class TensorboardLogger(train_logger.TensorboardLogger):
    """SpeechBrain's, with epochs on the axis.

    SpeechBrain's counts its own calls, so that a run which is stopped and goes on begins
    at 1 again, over what is there.
    """

    def log_stats(self, stats_meta, train_stats=None, valid_stats=None, **kwargs):
        """See `speechbrain.utils.train_logger.TrainLogger.log_stats`."""
        before = stats_meta["epoch"] - 1
        self.global_step["meta"] = before
        for stage, stats in (("train", train_stats), ("valid", valid_stats)):
            self.global_step[stage] = dict.fromkeys(stats or (), before)
        super().log_stats(stats_meta, train_stats, valid_stats, **kwargs)
