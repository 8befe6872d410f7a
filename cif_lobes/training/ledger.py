"""What the losses of a stage add up to, each with its weight and its share."""

import time

import torch
import torch.distributed as dist
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from cif_lobes.devices.processes import gather_objects


@register_checkpoint_hooks
class Ledger:
    """Sums of losses per token and of counts, over a stage and all its processes.

    Example
    -------
    >>> ledger = Ledger()
    >>> ledger.add({"ce": (1.0, torch.tensor(6.0)), "ctc": (0.5, torch.tensor(4.0))}, 4)
    >>> ledger.count("accuracy", 3, 4)
    >>> ledger.summary()["loss"], ledger.summary()["losses"]["ctc"]
    (2.0, {'value': 1.0, 'weight': 0.5, 'share': 0.25})
    >>> ledger.summary()["accuracy"]
    0.75
    """

    def __init__(self):
        self.clear()

    def clear(self):
        """Forget everything; the clock starts again."""
        self.weights, self.sums, self.counts = {}, {}, {}
        self.tokens = 0
        self.started = time.monotonic()

    def add(self, losses, tokens):
        """Add the losses of a batch.

        Arguments
        ---------
        losses : dict of str to (float, torch.Tensor)
            Weight and sum over the batch of each term.
        tokens : int or torch.Tensor, []
            Target tokens of the batch.
        """
        self.tokens += _number(tokens)
        for name, (weight, loss) in losses.items():
            self.weights[name] = weight
            self.sums[name] = self.sums.get(name, 0.0) + _number(loss)

    def count(self, name, amount, out_of):
        """Add to a ratio such as correct tokens out of all, numbers or tensors []."""
        a, b = self.counts.get(name, (0, 0))
        self.counts[name] = a + _number(amount), b + _number(out_of)

    def merge(self, other):
        """Add what another ledger has counted."""
        self.tokens += other.tokens
        self.weights |= other.weights
        for name, total in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + total
        for name, (amount, out_of) in other.counts.items():
            self.count(name, amount, out_of)

    def seconds(self):
        """Wall-clock time of the stage, without that between a stop and its resume."""
        return round(time.monotonic() - self.started, 1)

    def reduce(self):
        """Add up over the processes of a distributed run.

        By name: a process that had nothing to validate has no names.
        """
        if not dist.is_initialized():
            return
        mine = Ledger()
        mine.merge(self)
        mine.sums = {name: float(total) for name, total in self.sums.items()}
        mine.counts = {n: (float(a), float(b)) for n, (a, b) in self.counts.items()}
        self.weights, self.sums, self.counts, self.tokens = {}, {}, {}, 0
        for share in gather_objects(mine):
            self.merge(share)

    def gather(self):
        """Move what all processes have counted to the first, whose ledger is saved."""
        self.reduce()
        self.leave_to_the_first()

    def leave_to_the_first(self):
        """Count nothing twice: in the other processes all sums are 0."""
        if dist.is_initialized() and dist.get_rank():
            self.sums = dict.fromkeys(self.sums, 0.0)
            self.counts = dict.fromkeys(self.counts, (0, 0))
            self.tokens = 0

    def summary(self):
        """Loss per token, its terms (value, weight, share) and the ratios, as floats."""
        tokens = max(1, float(self.tokens))
        values = {name: float(total) / tokens for name, total in self.sums.items()}
        loss = sum(self.weights[name] * value for name, value in values.items())
        losses = {
            name: {
                "value": value,
                "weight": self.weights[name],
                "share": self.weights[name] * value / loss if loss else 0.0,
            }
            for name, value in values.items()
        }
        ratios = {
            name: float(a) / max(1, float(b)) for name, (a, b) in self.counts.items()
        }
        return {"loss": loss, "losses": losses, **ratios}

    @mark_as_saver
    def _save(self, path):
        sums = {name: float(total) for name, total in self.sums.items()}
        counts = {name: (float(a), float(b)) for name, (a, b) in self.counts.items()}
        tokens = float(self.tokens)
        saved = [self.weights, sums, counts, tokens, self.seconds()]
        torch.save(saved, path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        if end_of_epoch:
            return
        saved = torch.load(path, weights_only=True)
        self.weights, self.sums, self.counts, self.tokens, seconds = saved
        self.started = time.monotonic() - seconds
        self.leave_to_the_first()


def _number(x):
    """A tensor stays on its device: reading it would wait for the GPU."""
    return x.detach().double() if torch.is_tensor(x) else x
