"""What training does with a loss that is not finite: no step, and somebody's name.

One NaN in a recording or a teacher's state makes every gradient NaN, after one step every
parameter, and with the next checkpoint the run is lost.
"""

import logging

import torch

from cif_lobes.devices.processes import gather_objects
from cif_lobes.training.unusable import gather_unusable

logger = logging.getLogger(__name__)


class NonFinite:
    """Passes over updates whose loss or gradient is not finite.

    Arguments
    ---------
    modules : torch.nn.Module
        The network.
    patience : int
        Such updates in a row that end the training.
    """

    def __init__(self, modules, patience):
        self.modules, self.patience, self.skipped = modules, patience, 0
        # A forward pass changes them before the loss is known.
        state = modules.state_dict(keep_vars=True).values()
        self._statistics = [t for t in state if not isinstance(t, torch.nn.Parameter)]
        self._kept = [t.clone() for t in self._statistics]

    def keep(self):
        """The update was good."""
        self.skipped = 0
        if self._kept:
            torch._foreach_copy_(self._kept, self._statistics)

    def skip(self, update, ledger, unusable=()):
        """The update was not: as if it had not been.

        Arguments
        ---------
        update : list of (speechbrain.dataio.batch.PaddedBatch, torch.Tensor)
            This process's passes and the loss of each.
        ledger : cif_lobes.training.ledger.Ledger
            Their terms.
        unusable : list of str
            What this process could not read, see `unusable`. Training ends at
            once: unlike an overflow, it would come back in every epoch.

        Returns
        -------
        Exception or None
            Why training has to end, if it was the last one that `patience` allows.
        """
        self.skipped += 1
        if self._kept:
            torch._foreach_copy_(self._statistics, self._kept)
        error = gather_unusable(list(unusable), learning=True)
        if error:
            return error
        found = gather_objects(explain(update, ledger))
        causes = "; ".join(filter(None, found)) or "the gradient, of a finite loss"
        message = f"not finite: {causes}"
        if self.skipped < self.patience:
            logger.warning(f"{message}. This update is left out")
            return None
        return FloatingPointError(
            f"{message}. {self.skipped} updates in a row were left out, so training ends; "
            "what was learnt before them is saved. Mend or take out the utterances named, "
            "or lower lr if there are none, and run the same command again"
        )

    def check_parameters(self):
        """Refuse to save what cannot be trained on.

        Raises
        ------
        FloatingPointError
            Names the first parameter that is not finite.
        """
        parameters = dict(self.modules.named_parameters())
        finite = torch.stack([p.isfinite().all() for p in parameters.values()])
        if not finite.all():
            name = list(parameters)[int(finite.logical_not().nonzero()[0])]
            raise FloatingPointError(
                f"{name} is not finite, so nothing was saved: the checkpoints there are "
                "are good. Run the same command again to go on from the last one, with a "
                "lower lr"
            )


def explain(update, ledger):
    """Which loss terms and which utterances of an update are not finite, in words.

    Arguments
    ---------
    update, ledger
        See `NonFinite.skip`.

    Returns
    -------
    str
        Empty if all are finite.
    """
    terms = [name for name, total in ledger.sums.items() if not _finite(total)]
    batches = [batch for batch, loss in update if not loss.isfinite()]
    if not terms and not batches:
        return ""
    causes = [words for batch in batches for words in _broken_inputs(batch)]
    if not causes:
        ids = [i for batch in batches for i in getattr(batch, "id", [])]
        causes = [f"of the utterances {_first(ids)}"] if ids else []
    of = f" ({_first(causes)})" if causes else ""
    return f"loss {', '.join(terms)}{of}"


def _first(words, limit=3):
    """The first of many, and how many more."""
    more = f" and {len(words) - limit:,} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


def _broken_inputs(batch):
    """What a batch brought along that is not finite, each in words."""
    for name, value in vars(batch).items():
        data = getattr(value, "data", None)
        if isinstance(data, torch.Tensor) and data.is_floating_point():
            broken = ~data.flatten(1).isfinite().all(1)
            for row in broken.nonzero().flatten().tolist():
                yield f"{name} of utterance {batch.id[row]} has NaN or infinite values"


def _finite(total):
    return bool(torch.as_tensor(total).isfinite())
