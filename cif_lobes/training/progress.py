"""How far a training has come, in a checkpoint's brain.ckpt."""

import json

import yaml

# Attributes of a `TrainingBrain`.
PROGRESS = ("step", "updates_in_epoch", "avg_train_loss", "optimizer_step")


def write_progress(brain, path):
    """Write it down.

    Arguments
    ---------
    brain : cif_lobes.training.brain.TrainingBrain
    path : str
    """
    progress = {name: getattr(brain, name) for name in PROGRESS}
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
