"""Where an utterance ends within a batch, and convolutions that do not look beyond."""

import contextlib

import torch
from speechbrain.dataio.dataio import length_to_mask
from speechbrain.nnet.CNN import Conv1d


def padding_mask_of(x, x_lengths):
    """Padding of a batch.

    Arguments
    ---------
    x : torch.Tensor, [B, T, ...]
    x_lengths : torch.Tensor, [B], int64
        Frames of each utterance.

    Returns
    -------
    torch.Tensor, [B, T], bool
        True beyond the end of each utterance.
    """
    return ~length_to_mask(x_lengths, x.shape[1], dtype=torch.bool)


@contextlib.contextmanager
def zeros_beyond_the_end(network, padding_mask):
    """While this lasts, SpeechBrain's convolutions over time read zeros in padding.

    By themselves they read what is there, and reflect the end of the batch's longest
    utterance: the last frames of an utterance then depend on its neighbours. Attention
    has a mask for it, convolutions such as the Branchformer's have none.

    Arguments
    ---------
    network : torch.nn.Module
        All of its `speechbrain.nnet.CNN.Conv1d` of [B, T, D] are meant. They pad with
        zeros from now on.
    padding_mask : torch.Tensor, [B, T], bool
        True in padding, at the frame rate of all of them.

    Example
    -------
    >>> conv, x = Conv1d(4, 3, input_shape=(2, 9, 4)), torch.randn(2, 9, 4)
    >>> with zeros_beyond_the_end(conv, padding_mask_of(x, torch.tensor([9, 5]))):
    ...     together = conv(x)
    >>> with zeros_beyond_the_end(conv, torch.zeros(1, 5, dtype=torch.bool)):
    ...     alone = conv(x[1:, :5])
    >>> torch.allclose(together[1, :5], alone[0], atol=1e-6)
    True
    """

    def hide(conv, inputs):
        return inputs[0].masked_fill(padding_mask.unsqueeze(-1), 0.0)

    hooks = []
    for conv in network.modules():
        if isinstance(conv, Conv1d):
            conv.padding_mode = "constant"
            hooks.append(conv.register_forward_pre_hook(hide))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
