"""A line now and then within an epoch, for logs, where there is no progress bar."""

import math
import time

MINUTES = 5  # between two lines


class ProgressLog:
    """Prints how far a training has come; reads nothing from the device.

    Arguments
    ---------
    sampler : cif_lobes.data.update_batches.UpdateBatches
        Of the epoch.
    epoch : int
        From 1.
    shown : bool
        False: nothing is printed.
    clock : callable
        Seconds since some moment.

    Example
    -------
    >>> from cif_lobes.data.update_batches import UpdateBatches
    >>> seconds = iter([0, 299, 301, 301])
    >>> updates = UpdateBatches([[0, 1], [2]], [90.0, 60.0, 451.0], 500.0)
    >>> log = ProgressLog(updates, 3, True, clock=lambda: next(seconds))
    >>> log.update(1, 4.0, 0.001)
    >>> log.update(2, 3.0, 0.001)
    epoch 3  update 2 of 2  lr 1.00e-03  train 3.500  2 s of audio per s
    """

    def __init__(self, sampler, epoch, shown, clock=time.monotonic):
        self.sampler, self.epoch, self.shown, self.clock = sampler, epoch, shown, clock
        self._begin()

    def _begin(self):
        self.begun, self.losses, self.size = self.clock(), [], 0.0

    def update(self, number, loss, lr):
        """Count an update; print a line if the last one is `MINUTES` old.

        Arguments
        ---------
        number : int
            Of the update in its epoch, from 1.
        loss : float
            Per token or frame, over all processes; NaN if the update was left out.
        lr : float
        """
        if not self.shown:
            return
        self.size += self.sampler.update_sizes[number - 1]
        if math.isfinite(loss):
            self.losses.append(loss)
        spent = self.clock() - self.begun
        if spent < 60 * MINUTES:
            return
        mean = sum(self.losses) / len(self.losses) if self.losses else math.nan
        print(
            f"epoch {self.epoch}  update {number:,} of {self.sampler.num_updates:,}  "
            f"lr {lr:.2e}  train {mean:.3f}  "
            f"{self.size / spent:,.0f} {self.sampler.unit} per s",
            flush=True,
        )
        self._begin()
