"""float32 on a GPU: TF32 or not, decided here alone.

TF32 rounds the factors of a float32 product to 10 bits of mantissa, which NVIDIA GPUs
since Ampere multiply faster. PyTorch allows it in convolutions, and SpeechBrain, as soon
as it is imported, in products of matrices as well. Here float32 means float32:

- scoring, recognition, export, teacher caches and the weights of CIF, whose sum decides
  how many tokens fire, never use TF32;
- training does with `tf32: True` in the yaml, then in the backward pass of CIF's weights,
  too. It matters with `precision: fp32` only: bf16 rounds to 7 bits anyway.

The settings hold for a process. CPUs do not have TF32.
"""

from contextlib import contextmanager

import torch


def set_tf32(matmul, conv=None):
    """Allow or forbid TF32 from here on.

    Arguments
    ---------
    matmul : bool
        In products of matrices.
    conv : bool, optional
        In convolutions and recurrent networks; by default the same.
    """
    conv = matmul if conv is None else conv
    # PyTorch has this in an older and a newer form, and where they disagree it refuses to
    # read the older one, which torch.compile does. So both are set; in the newer form by
    # operation, because an operation without an entry asks one that others may have set.
    torch.set_float32_matmul_precision("high" if matmul else "highest")
    torch.backends.cudnn.allow_tf32 = conv
    torch.backends.cuda.matmul.fp32_precision = "tf32" if matmul else "ieee"
    torch.backends.cudnn.conv.fp32_precision = "tf32" if conv else "ieee"
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if conv else "ieee"


def tf32_allowed():
    """Whether TF32 is allowed in products of matrices, and in convolutions.

    Returns
    -------
    matmul, conv : bool
    """
    operations = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    matmul, conv = (operation.fp32_precision == "tf32" for operation in operations)
    return matmul, conv


@contextmanager
def full_float32():
    """Forbid TF32 within a `with` or, as a decorator, within a function.

    What was allowed before is allowed again behind it: recognition may run in a process
    that belongs to others.

    Example
    -------
    >>> set_tf32(True)
    >>> with full_float32():
    ...     tf32_allowed()
    (False, False)
    >>> tf32_allowed()
    (True, True)
    >>> set_tf32(False)
    """
    before = tf32_allowed()
    if any(before):
        set_tf32(False)
    try:
        yield
    finally:
        if any(before):
            set_tf32(*before)
