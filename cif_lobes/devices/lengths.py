"""Lengths of a batch's sequences, where the CPU plans with them and where data is."""

from typing import NamedTuple

import torch
from torch import Tensor


class Lengths(NamedTuple):
    """Lengths of the B sequences of a batch, in two places.

    To read a number from a GPU, the CPU waits until all that was queued before has been
    computed, and the GPU then waits for new work. So whatever decides the size of a tensor
    is computed from what the CPU knew before the batch was moved.

    Example
    -------
    >>> from speechbrain.dataio.batch import PaddedBatch
    >>> batch = PaddedBatch([{"x": torch.ones(3)}, {"x": torch.ones(2)}])
    >>> lengths = Lengths.of(batch.x, "cpu")
    >>> lengths.on_host, lengths.valid_rows(3)
    (tensor([3, 2]), tensor([0, 1, 2, 3, 4]))
    """

    on_host: Tensor
    """torch.Tensor, [B], int64: on the CPU, for sizes."""
    on_device: Tensor
    """torch.Tensor, [B], int64: the same beside the data, for masks."""

    @classmethod
    def of(cls, padded, device):
        """Lengths of a padded item of a batch that has not been moved yet.

        Arguments
        ---------
        padded : speechbrain.dataio.batch.PaddedData
            Data [B, L, ...] and relative lengths.
        device : str or torch.device
            Where the batch is moved.

        Returns
        -------
        Lengths
        """
        on_host = (padded.lengths.cpu() * padded.data.shape[1]).round().long()
        return cls(on_host, on_host.to(device, non_blocking=True))

    def map(self, function):
        """Apply a function of integer tensors, such as `output_lengths`, to both."""
        return Lengths(function(self.on_host), function(self.on_device))

    def total(self):
        """Sum of the lengths, an int."""
        return int(self.on_host.sum())

    def valid_rows(self, max_length):
        """Rows of the real elements of a tensor [B, max_length, ...] laid flat.

        Indexing by a mask would count its elements on the GPU first.

        Returns
        -------
        torch.Tensor, [N], int64
            Beside the data; N is `total()`.
        """
        mask = torch.arange(max_length) < self.on_host[:, None]
        rows = mask.flatten().nonzero().squeeze(1)
        return rows.to(self.on_device.device, non_blocking=True)
