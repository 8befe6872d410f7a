"""What the processes of a distributed run tell each other, and how they share work."""

import torch
import torch.distributed as dist
from speechbrain.utils.distributed import get_local_rank, infer_device


def check_device(device):
    """See that this machine has a device, before anything is made for it.

    Arguments
    ---------
    device : str or None
        cpu, cuda or cuda:N; None: whatever SpeechBrain takes.

    Raises
    ------
    ValueError
        With the devices that there are.
    """
    name, _, index = str(device).partition(":")
    count = torch.cuda.device_count()
    if name != "cuda" or int(index or 0) < count:
        return
    there = ["cpu", *(f"cuda:{i}" for i in range(count))]
    raise ValueError(
        f"--device {device}: this machine has {', '.join(there)}. Choose one of them; "
        "if it has such a GPU, see what python -c 'import torch; torch.zeros(1).cuda()' "
        "says"
    )


def own_device(device):
    """The device of this process: everything that it trains or asks is on it.

    Arguments
    ---------
    device : str or None
        As typed. None: the process's own GPU if there is one, as SpeechBrain chooses.

    Returns
    -------
    str
        In a distributed run "cuda" is that of the process, cuda:LOCAL_RANK.

    Raises
    ------
    ValueError
        As `check_device`.
    """
    check_device(device)
    if device is None:
        return infer_device()
    rank = get_local_rank()
    return f"cuda:{rank}" if device == "cuda" and rank is not None else device


def rank_and_processes():
    """Number of this process, from 0, and how many train together."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def check_share(utterances, processes):
    """See that none of the processes of a training has nothing to do.

    Raises
    ------
    ValueError
        If there are more of them than utterances.
    """
    if utterances < processes:
        raise ValueError(
            f"{processes} processes cannot share {utterances} training utterances: some "
            f"would have nothing to do. Start fewer: torchrun --nproc_per_node={utterances}"
            ", or give more data"
        )


def gather_objects(value):
    """What every process has, in the order of their ranks.

    Arguments
    ---------
    value : object
        That of this process; on the CPU, as it is pickled.

    Returns
    -------
    list
        [value] if there is one process.
    """
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def in_any_process(flag, device):
    """Whether a flag is set in one of the processes at least.

    Arguments
    ---------
    flag : bool
        That of this process.
    device : str
        Its own, by which they communicate.

    Returns
    -------
    bool
        The same in all.
    """
    if not dist.is_initialized():
        return flag
    flags = torch.full((1,), float(flag), device=device)
    dist.all_reduce(flags)
    return flags.item() > 0


def share_batches(batches, rank, num_ranks):
    """The batches of an evaluation that one process scores.

    Each batch is scored by one process, as it would be if there were no other, so the
    figures do not depend on how many there are. The next batch, the largest first, goes
    to the process that has least to do.

    Arguments
    ---------
    batches : speechbrain.dataio.sampler.DynamicBatchSampler
        The same on every process.
    rank, num_ranks : int
        Number of this process, from 0, and how many there are.

    Returns
    -------
    list of list of int
        None, if there are fewer batches than processes.
    """
    # Padding included: it is computed on.
    sizes = [(len(b) * max(batches.get_durations(b)), b) for b in batches]
    loads, share = [0.0] * num_ranks, []
    for size, batch in sorted(sizes, key=lambda pair: pair[0], reverse=True):
        owner = loads.index(min(loads))
        loads[owner] += size
        if owner == rank:
            share.append(batch)
    return share
