"""What CIF asks of its arguments, and what it says when it does not get it."""

import torch


def check_inputs(x, alpha, x_lengths, target_lengths, threshold, tail_threshold):
    """Check what needs no values, and return the lengths as int64 beside `x`."""
    if x.dim() != 3 or alpha.shape != x.shape[:2]:
        raise ValueError(
            "cif takes x [B, T, D] and alpha [B, T], got "
            f"{list(x.shape)} and {list(alpha.shape)}"
        )
    if alpha.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"alpha is {alpha.dtype}: weights in half precision fire wrong numbers of "
            "tokens. Compute the sigmoid in float32, outside of autocast"
        )
    if not (threshold > 0 and tail_threshold >= 0):
        raise ValueError(
            "threshold must be positive and tail_threshold not negative, got "
            f"{threshold} and {tail_threshold}"
        )
    lengths = {"x_lengths": x_lengths, "target_lengths": target_lengths}
    for name, length in lengths.items():
        if length is None:
            continue
        if length.is_floating_point():
            raise TypeError(
                f"{name} is {length.dtype}: numbers of frames and tokens are integers. "
                "Relative lengths? Use (x_lens * T).round().long()"
            )
        if length.shape != x.shape[:1]:
            raise ValueError(
                f"{name} has shape {list(length.shape)}, but x has {len(x)} utterances"
            )
        lengths[name] = length.to(x.device, torch.int64)
    return lengths.values()


def check_sizes(sizes, max_frames):
    """Check the numbers of frames and tokens, and return the sizes U and N.

    `sizes` lists, of each utterance, the number of frames, of tokens, of frames that
    are paired with tokens, and whether a weight is negative.
    """
    num_tokens = num_pairs = 0
    for index, (frames, tokens, paired, is_negative) in enumerate(sizes):
        if not 0 <= frames <= max_frames:
            raise ValueError(
                f"utterance {index} of the batch: x_lengths is {frames}, but x has "
                f"{max_frames} frames. Are they lengths after the encoder's reduction?"
            )
        if is_negative:
            raise ValueError(
                f"utterance {index} of the batch: negative alpha. No sigmoid?"
            )
        if tokens < 0:
            raise ValueError(
                f"utterance {index} of the batch: target_lengths is negative, or alpha "
                "is not finite. Look for NaN in the encoder's output"
            )
        if frames == 0 and tokens > 0:
            raise ValueError(
                f"utterance {index} of the batch: target_lengths is {tokens}, but it has "
                "no frames to make tokens of. Take it out of the batch"
            )
        num_tokens = max(num_tokens, tokens)
        num_pairs += paired + tokens - 1 if paired else 0
    return num_tokens, num_pairs
