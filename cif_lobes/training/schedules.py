"""Learning rates over a whole training: what is set are shares of it, not updates.

How many updates a training has follows from the corpus, `batch_seconds` and
`number_of_epochs`; a schedule in updates would have to be computed anew for each.
"""

from speechbrain.nnet.schedulers import LinearWarmupScheduler


class TriStage:
    """Rises linearly from lr / 100, holds, falls exponentially to lr / 100
    (SpecAugment, arXiv 1904.08779, 4.2; as CIF-HieraDist, arXiv 2301.13003).

    Arguments
    ---------
    lr : float
        Peak learning rate.
    warmup, hold : float, in [0, 1]
        Share of all updates in which it rises, and in which it stays. In the rest it
        falls.
    scale : float
        First and last learning rate, as a share of the peak.

    Raises
    ------
    ValueError
        If the shares add up to more than 1, or one is below 0.

    Example
    -------
    >>> schedule = TriStage(1.0, 0.25, 0.25)
    >>> schedule.start(total=8)
    >>> [round(schedule.lr_at(update), 3) for update in (0, 1, 2, 4, 6, 8, 9)]
    [0.01, 0.505, 1.0, 1.0, 0.1, 0.01, 0.01]
    """

    def __init__(self, lr, warmup, hold, scale=0.01):
        _check_shares(warmup=warmup, hold=hold)
        self.lr, self.warmup, self.hold, self.scale = lr, warmup, hold, scale

    def start(self, total):
        """Say how many updates the whole training has."""
        self.total = total
        self.warmup_updates = round(self.warmup * total)
        self.hold_until = round((self.warmup + self.hold) * total)

    def lr_at(self, update):
        """Learning rate of an update, from 1."""
        if update < self.warmup_updates:
            rise = update / self.warmup_updates
            return self.lr * (self.scale + (1 - self.scale) * rise)
        # A run that goes on with fewer epochs than it began with may have passed its
        # end. SpeechBrain's TriStageLRSchedule goes on falling there.
        late = min(update, self.total) - self.hold_until
        decay = max(1, self.total - self.hold_until)
        return self.lr * self.scale ** max(0, late / decay)


class RiseAndFall:
    """Rises linearly from 0, then falls linearly to 0.

    Arguments
    ---------
    lr : float
        Peak learning rate.
    warmup : float, in [0, 1]
        Share of all updates in which it rises.

    Raises
    ------
    ValueError
        If the share is not one.

    Example
    -------
    >>> schedule = RiseAndFall(1.0, 0.2)
    >>> schedule.start(total=10)
    >>> [round(schedule.lr_at(update), 3) for update in (0, 1, 2, 6, 10, 11)]
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """

    def __init__(self, lr, warmup):
        _check_shares(warmup=warmup)
        self.lr, self.warmup = lr, warmup

    def start(self, total):
        """Say how many updates the whole training has."""
        self._schedule = LinearWarmupScheduler(
            self.lr, round(self.warmup * total), total
        )

    def lr_at(self, update):
        """Learning rate of an update, from 1."""
        return self._schedule.calculate_lr(update)


def _check_shares(**shares):
    """Refuse what is no share of a training."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(
                f"{name} is {share}: a share of all updates, from 0 to 1, is expected"
            )
    if sum(shares.values()) > 1:
        raise ValueError(
            f"{' + '.join(shares)} = {sum(shares.values()):g}: more than all updates. "
            "They are shares of the training, 1 at most together"
        )
