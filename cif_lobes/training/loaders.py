"""What a Brain changes of a DataLoader before SpeechBrain makes it."""

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch

from cif_lobes.devices.processes import check_share, rank_and_processes, share_batches
from cif_lobes.training.unusable import note_unusable


def share_loader(brain, dataset, stage, options):
    """The dataset and the options of a DataLoader for one of several processes.

    Arguments
    ---------
    brain : cif_lobes.training.brain.TrainingBrain
    dataset : Dataset
    stage : speechbrain.Stage
    options : dict
        Of the DataLoader; its `batch_sampler` is the same on every process.

    Returns
    -------
    dataset : Dataset
        Recordings that cannot be read are noted.
    options : dict

    Raises
    ------
    ValueError
        If there are fewer training utterances than processes.
    """
    # Pinned, so that the copy of a batch to the GPU need not be waited for.
    options["pin_memory"] = torch.device(brain.device).type == "cuda"
    if brain.distributed_launch:
        rank, processes = rank_and_processes()
        if stage != sb.Stage.TRAIN:
            options["batch_sampler"] = share_batches(
                options["batch_sampler"], rank, processes
            )
        else:
            check_share(len(dataset), processes)
    # Language models have no sample rate.
    noting = note_unusable(dataset, getattr(brain.hparams, "sample_rate", None))
    if noting is not dataset:
        options.setdefault("collate_fn", PaddedBatch)
    return noting, options
