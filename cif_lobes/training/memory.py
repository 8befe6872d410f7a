"""What is said when a device has no memory left: which pass it was, and what is smaller."""

import contextlib

import torch


@contextlib.contextmanager
def explain_memory(brain):
    """Name the pass of a training or the setting of a validation that did not fit.

    Arguments
    ---------
    brain : cif_lobes.training.brain.TrainingBrain
        Inside the block, it trains.

    Raises
    ------
    ValueError
        In place of `torch.OutOfMemoryError`.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        brief = str(error).split(". ")[0]
        raise ValueError(f"{_describe(brain)} ({brief})") from error


def _describe(brain):
    """What was computed, and the remedy."""
    again = "Run the same command again with a lower"
    goes_on = "it goes on from the last checkpoint"
    sampler, hp = brain.train_sampler, brain.hparams
    seconds = hasattr(hp, "device_batch_seconds")
    setting = "device_batch_seconds" if seconds else "device_batch_tokens"
    if brain.rounds_left:
        setting = "eval_batch_seconds" if seconds else setting
        return (
            f"out of memory in a batch of the validation. {again} --{setting}, which is "
            f"{getattr(hp, setting)}: {goes_on}, and the figures stay the same"
        )
    indices = sampler[brain.step - 1].indices
    longest = max(sampler.sizes[i] for i in indices)
    silence = getattr(hp, "insert_silence", None)
    more = (
        f", and as many times up to {silence.seconds:g} s of silence" if silence else ""
    )
    what = (
        f"out of memory in pass {brain.step} of epoch {brain.epoch}, of {len(indices)} x "
        f"{longest:.4g} {sampler.unit}, padding included{more}"
    )
    if len(indices) == 1:
        return f"{what}. It has no parts: leave the utterance out, or cut it"
    return (
        f"{what}. {again} --{setting}, which is {sampler.device_size:g} (the longest "
        f"utterance has {max(sampler.sizes):.4g}): {goes_on}, and updates stay what they "
        "are, in more passes"
    )
