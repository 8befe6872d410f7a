"""The utterances of each optimizer update, dealt among processes and passes.

An update is one batch of a sampler, whatever runs it: `batch_seconds` of audio of like
durations. Each of P processes computes its share in A passes, so that no pass is larger
than what fits on a device. Which utterances an update has, and how many updates an epoch
has, depends neither on P nor on A: learning rates, losses and the place at which a
stopped run goes on are the same on any machine.
"""

import math
from typing import NamedTuple


class Pass(NamedTuple):
    """One forward and backward pass of one process."""

    indices: list  # of the utterances
    counts: bool  # False: a stand-in, computed because the other processes compute
    ends_update: bool  # the optimizer steps after it


class UpdateBatches:
    """The batches of one process, for a DataLoader's `batch_sampler`.

    SpeechBrain's distributed sampler deals whole batches, so that an update is of as
    many batches as there are processes; shuffles a second time; and fails when the number
    of batches changes between epochs.

    Arguments
    ---------
    updates : speechbrain.dataio.sampler.DynamicBatchSampler
        Its batches are the updates; the same on every process.
    sizes : list of float
        Size of each utterance: seconds, or tokens of a text.
    device_size : float
        What a pass may hold, padding included, in the same unit.
    rank, num_ranks : int
        Number of this process, from 0, and how many there are.
    unit : str
        Of the sizes, in words.

    Attributes
    ----------
    update_sizes : list of float
        Of each update of the epoch, over all processes, without padding.
    start : int
        The update, counted from 0, with which the next iteration begins.

    Example
    -------
    >>> updates = [[0, 1, 2, 3], [4]]
    >>> for rank in (0, 1):
    ...     print(list(UpdateBatches(updates, [1.0] * 5, 4.0, rank, 2)))
    [[0, 1], [4]]
    [[2, 3], [4]]
    >>> list(UpdateBatches(updates, [1.0] * 5, 2.0))
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self, updates, sizes, device_size, rank=0, num_ranks=1, unit="s of audio"
    ):
        self.updates, self.sizes, self.device_size = updates, sizes, device_size
        self.rank, self.num_ranks, self.unit = rank, num_ranks, unit
        self.start, self._epoch = 0, None
        self._plan()

    def set_epoch(self, epoch):
        """Choose the order of an epoch."""
        if epoch != self._epoch:
            self._epoch = epoch
            self.updates.set_epoch(epoch)
            self._plan()

    def first_pass(self, update):
        """Number of passes of this process before an update, both counted from 0."""
        return self._first[update]

    @property
    def num_updates(self):
        """Updates of an epoch."""
        return len(self._first) - 1

    def __getitem__(self, number):
        """A `Pass` by its number in the epoch, from 0."""
        return self.passes[number]

    def __len__(self):
        return len(self.passes)

    def __iter__(self):
        # As a list: iterating the plan must not see what set_epoch makes of it later.
        passes, self.start = self.passes[self._first[self.start] :], 0
        return iter([p.indices for p in passes])

    def _plan(self):
        self.passes, self._first, self.update_sizes = [], [0], []
        for utterances in self.updates:
            self.update_sizes.append(sum(self.sizes[i] for i in utterances))
            self.passes += self._passes(utterances)
            self._first.append(len(self.passes))

    def _passes(self, utterances):
        """This process's passes of an update."""
        size = sum(self.sizes[i] for i in utterances)
        fewest = math.ceil(size / (self.device_size * self.num_ranks))
        for num_passes in range(min(fewest, len(utterances)), len(utterances) + 1):
            parts = split(
                utterances, lambda i: self.sizes[i], num_passes * self.num_ranks
            )
            largest = max(
                len(part) * max(self.sizes[i] for i in part) for part in parts
            )
            if largest <= self.device_size:
                break
        # Those computed at the same time are of like size: the processes wait for the
        # slowest.
        mine = parts[self.rank :: self.num_ranks]
        passes = []
        for number in range(num_passes):
            counts = number < len(mine)
            indices = mine[number] if counts else [utterances[-1]]
            passes.append(Pass(indices, counts, number == num_passes - 1))
        return passes


def split(utterances, size, num_parts):
    """Cut an update into parts of like padded size.

    Arguments
    ---------
    utterances : list
    size : callable
        Size of an utterance.
    num_parts : int
        How many parts at most; fewer if there are fewer utterances.

    Returns
    -------
    list of list
        Each utterance once, the longest first; as given if one part is wanted. The
        largest part, padding included, is as small as it can be.

    Example
    -------
    >>> split([5, 1, 1, 1, 1, 1], lambda seconds: seconds, 2)
    [[5], [1, 1, 1, 1, 1]]
    """
    if num_parts == 1:
        return [list(utterances)]
    ordered = sorted(utterances, key=size, reverse=True)
    if len(ordered) <= num_parts:
        return [[u] for u in ordered]
    low, high = size(ordered[0]), size(ordered[0]) * len(ordered)
    while high - low > 1e-3 * high:
        limit = (low + high) / 2
        if len(_cut(ordered, size, limit)) <= num_parts:
            high = limit
        else:
            low = limit
    parts = _cut(ordered, size, high)
    while len(parts) < num_parts:  # nobody is idle while somebody has two
        largest = max(range(len(parts)), key=lambda n: len(parts[n]))
        part = parts[largest]
        middle = math.ceil(len(part) / 2)
        parts[largest : largest + 1] = [part[:middle], part[middle:]]
    return parts


def _cut(ordered, size, limit):
    """Consecutive parts, each as full as the limit allows."""
    parts, room = [], 0
    for utterance in ordered:
        if room < 1:
            parts.append([])
            # Its first is its longest, to whose size all are padded.
            room = int(limit / size(utterance) + 1e-9) or 1
        parts[-1].append(utterance)
        room -= 1
    return parts
