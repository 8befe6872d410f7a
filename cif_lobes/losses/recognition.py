"""Losses of recognition: pure functions, one paper each, every one a sum.

Each loss is the sum over the tokens (or utterances) it is given, never a mean. The
training step divides by the number of target tokens over all ranks, so that the
gradient does not depend on how the tokens are spread over utterances and GPUs.
Inputs of any precision are computed in float32; float64 stays float64.

None reads a number from a GPU, so that the CPU need not wait for it; CTC is PyTorch's,
which waits once in each direction.
"""

import torch.nn.functional as F

from cif_lobes.losses.arguments import at_least_float32, without_padding


def label_smoothed_ce(logits, targets, valid_mask, smoothing=0.1):
    """Cross-entropy against a target that keeps 1 - smoothing of the probability
    and spreads the rest evenly over the V - 1 other classes.

    Arguments
    ---------
    logits : torch.Tensor, [B, U, V], float
        Scores before the softmax.
    targets : torch.Tensor, [B, U], int64
        Class of each token; any value where it is padding.
    valid_mask : torch.Tensor, [B, U], bool
        True at real tokens.
    smoothing : float, in [0, 1)
        Probability taken from the target (arXiv 1512.00567, section 7).

    Returns
    -------
    loss : torch.Tensor, [], float32
        Sum over the real tokens, in nats.

    Raises
    ------
    ValueError
        If the shapes of `logits`, `targets` and `valid_mask` disagree.

    Example
    -------
    >>> import torch
    >>> logits = torch.tensor([[[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]]])
    >>> mask = torch.tensor([[True, False]])
    >>> label_smoothed_ce(logits, torch.tensor([[2, 0]]), mask)
    tensor(1.0986)
    """
    logits = without_padding(logits, valid_mask)
    num_classes = logits.shape[-1]
    ignored = -100
    return F.cross_entropy(
        at_least_float32(logits).flatten(0, 1),
        without_padding(targets, valid_mask, ignored).flatten(),
        ignore_index=ignored,
        reduction="sum",
        # PyTorch spreads the mass over all V classes, the target among them.
        label_smoothing=smoothing * num_classes / (num_classes - 1),
    )


def quantity_loss(quantity, target_lengths):
    """Distance between the sum of the CIF weights and the number of tokens
    (arXiv 1905.11235, quantity loss).

    Arguments
    ---------
    quantity : torch.Tensor, [B], float
        Sum of the unscaled weights of each utterance, in tokens.
    target_lengths : torch.Tensor, [B], int64
        Target length in tokens, end of sentence included.

    Returns
    -------
    loss : torch.Tensor, [], float32
        Sum over the utterances of |quantity - target length|, in tokens.

    Raises
    ------
    ValueError
        If the two do not hold one number per utterance.

    Example
    -------
    >>> import torch
    >>> quantity_loss(torch.tensor([2.5, 4.0]), torch.tensor([3, 4]))
    tensor(0.5000)
    """
    if quantity.shape != target_lengths.shape:
        raise ValueError(
            f"quantity {list(quantity.shape)} and target_lengths "
            f"{list(target_lengths.shape)}: expected [B] for both"
        )
    return (at_least_float32(quantity) - target_lengths).abs().sum()


def ctc_loss(log_probs, targets, x_lengths, target_lengths, blank_index):
    """Connectionist temporal classification (Graves et al., ICML 2006).

    Arguments
    ---------
    log_probs : torch.Tensor, [B, T, V], float
        Log-posteriors of each frame.
    targets : torch.Tensor, [B, U], int64
        Padded as you like.
    x_lengths, target_lengths : torch.Tensor, [B], int64
        Of each utterance, on the CPU: elsewhere PyTorch copies them there and waits.
    blank_index : int
        Class of the blank.

    Returns
    -------
    loss : torch.Tensor, []
        Sum over the utterances, in nats. One with fewer frames than tokens plus repeated
        tokens counts as 0: no path spells it.

    Example
    -------
    >>> import torch
    >>> log_probs = torch.zeros(1, 3, 4).log_softmax(-1)
    >>> targets, length = torch.tensor([[1, 2]]), torch.tensor
    >>> ctc_loss(log_probs, targets, length([3]), length([2]), 0)  # 5 of 64 paths
    tensor(2.5494)
    """
    return F.ctc_loss(
        log_probs.transpose(0, 1),
        targets,
        x_lengths,
        target_lengths,
        blank_index,
        reduction="sum",
        zero_infinity=True,
    )
