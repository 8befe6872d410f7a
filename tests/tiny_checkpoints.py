"""Checkpoints of a small model that can be told apart by its parameters."""

import torch
from speechbrain.utils.epoch_loop import EpochCounter

from cif_lobes.storage.checkpoints import SafeCheckpointer

FILES = {"CKPT.yaml", "counter.ckpt", "model.ckpt", "optimizer.ckpt", "sizes.json"}


def make(folder, kind=SafeCheckpointer, width=8):
    """A checkpointer of a model, its optimizer and a counter, as a run has them."""
    model = torch.nn.Linear(width, width)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(width)).sum().backward()
    optimizer.step()
    recoverables = {"counter": EpochCounter(9), "model": model, "optimizer": optimizer}
    return kind(folder, recoverables)


def set_weights(checkpointer, value):
    """So that a checkpoint can be told by its parameters."""
    torch.nn.init.constant_(checkpointer.recoverables["model"].weight, value)


def weight(checkpoint):
    """What `set_weights` has set."""
    return torch.load(checkpoint.path / "model.ckpt")["weight"][0, 0].item()


def names(folder):
    """Files and folders there, hidden ones included."""
    return sorted(path.name for path in folder.iterdir())


def save(checkpointer, value):
    """A checkpoint that can be told by `weight`, its error rate and its epoch."""
    set_weights(checkpointer, value)
    meta = {"error_rate": float(value), "epoch": value}
    return checkpointer.save_checkpoint(meta=meta)
