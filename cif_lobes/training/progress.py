"""What a training takes from its checkpoint besides parameters, and what it does not."""

import json

import yaml
from speechbrain.utils.checkpoints import torch_recovery

# Attributes of a `TrainingBrain`.
PROGRESS = ("step", "updates_in_epoch", "avg_train_loss", "optimizer_step")


def write_progress(brain, path):
    """Write down how far a training has come.

    Arguments
    ---------
    brain : cif_lobes.training.brain.TrainingBrain
    path : str
    """
    progress = {name: getattr(brain, name) for name in PROGRESS}
    if brain.train_sampler is not None:  # else nothing has been trained in this process
        progress["updates_of_an_epoch"] = brain.train_sampler.num_updates
    with open(path, "w", encoding="utf-8") as file:
        json.dump(progress, file)


def read_progress(brain, path):
    """Give it back to a Brain; see `write_progress`."""
    with open(path, encoding="utf-8") as file:
        saved = yaml.safe_load(file)
    # Before there was such a number, checkpoints were of one process and pass.
    saved.setdefault("updates_in_epoch", saved["step"])
    # Nor did they say how many updates an epoch had.
    brain.updates_of_an_epoch = saved.get("updates_of_an_epoch")
    for name in PROGRESS:
        setattr(brain, name, saved[name])


def load_optimizer(optimizer, path, end_of_epoch):
    """Take an optimizer's state from a checkpoint, and no settings: those of now count.

    PyTorch takes weight_decay, betas and the like from there as well, and shares of the
    learning rate, so that whoever changes one in a run that goes on changes nothing.

    Arguments
    ---------
    optimizer : torch.optim.Optimizer
        As it is made from the settings of now; changed in place.
    path : str
    end_of_epoch : bool
        As SpeechBrain asks for; the same for both.

    Raises
    ------
    ValueError
        If the checkpoint's has other groups of parameters.
    """
    # The learning rate is the schedule's: that of the last update is told with an epoch.
    kept = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in optimizer.param_groups
    ]
    try:
        torch_recovery(optimizer, path, end_of_epoch)
    except ValueError as error:
        raise ValueError(
            f"{path}: other parameters are learnt together than before ({error}). Go on "
            "with the settings and options that the run was begun with, or train into "
            "another --output_folder"
        ) from None
    for group, settings in zip(optimizer.param_groups, kept, strict=True):
        group.update(settings)
