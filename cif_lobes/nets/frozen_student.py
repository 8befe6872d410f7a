"""A trained FitHuBERT student in place of log-mel features.

The student says what speech sounds like, a recogniser learns from its states what was
said. It is frozen, but a part of the recogniser: its parameters are in every checkpoint
and export, so recognition needs the folder of the distillation no more.
"""

import json
import pathlib

import torch
from torch import nn

from cif_lobes.nets.fithubert import FitHuBERT, HintedStudent
from cif_lobes.settings.safe_yaml import read_settings
from cif_lobes.storage.checkpoints import SafeCheckpointer, load_parameters


def read_student(folder):
    """The student of a run folder, as plain data.

    Arguments
    ---------
    folder : str
        Output folder of a train_fithubert.py.

    Returns
    -------
    settings : dict
        `student`, the arguments of its `FitHuBERT`, and the other arguments of its
        `HintedStudent`.
    parameters : dict of str to torch.Tensor
        Of the checkpoint with the lowest loss on the validation set.

    Raises
    ------
    FileNotFoundError
        If the folder holds no run, or no epoch of it has been finished yet.
    ValueError
        If it is a run of something else.
    """
    folder = pathlib.Path(folder)
    example = "the output_folder of train_fithubert.py, for instance " + (
        "results/LibriSpeech/fithubert_100h/1986"
    )
    if not (folder / "hyperparams.yaml").exists():
        raise FileNotFoundError(
            f"student {folder} is not a run folder: no hyperparams.yaml. Give {example}"
        )
    modules = read_settings(folder / "hyperparams.yaml", "modules")["modules"]
    if "student" not in modules:
        raise ValueError(
            f"student {folder} is not a FitHuBERT run: its modules are "
            f"{', '.join(modules)}. Give {example}"
        )
    checkpoint = SafeCheckpointer(folder / "save").find_checkpoint(min_key="loss")
    if checkpoint is None:
        raise FileNotFoundError(
            f"student {folder}: no checkpoint of a whole epoch in its save folder: "
            "distil it first, or let its training go on"
        )
    parameters = load_parameters(checkpoint.path / "model.ckpt")
    # What checkpoints hold is all modules, of which there is one.
    parameters = {k.removeprefix("student."): v for k, v in parameters.items()}
    return json.loads(json.dumps(modules["student"])), parameters


class FrozenStudent(nn.Module):
    """States of a frozen student, in place of `cif_lobes.nets.features.LogMel`.

    Always in eval mode and without gradients. Random until `load_run`, or until a
    checkpoint of the recogniser is loaded.

    Arguments
    ---------
    student : FitHuBERT
        Of the size of the one that `load_run` reads.
    weighted_sum : bool
        True: a learnt average of all layers, as SUPERB does
        (https://arxiv.org/abs/2105.01051, 2.3). False: the last layer.

    Example
    -------
    >>> student = FitHuBERT(d_model=48, num_layers=2, d_ffn=64)
    >>> features = FrozenStudent(student, weighted_sum=True)
    >>> x, x_lengths = features(torch.rand(2, 16000), torch.tensor([16000, 8000]))
    >>> x.shape, x_lengths
    (torch.Size([2, 25, 48]), tensor([25, 12]))
    """

    def __init__(self, student, weighted_sum=False):
        super().__init__()
        self.student = student.requires_grad_(False).eval()
        self.hop = student.hop
        # Its frames are of two frames of the front-end.
        self.centre = (student.frontend.reach + student.frontend.hop) // 2
        self.layer_logits = (
            nn.Parameter(torch.zeros(len(student.layers))) if weighted_sum else None
        )

    def train(self, mode=True):
        """The student stays in eval mode: Brain.fit switches all that it trains."""
        super().train(mode)
        self.student.eval()
        return self

    def load_run(self, folder):
        """Take over a trained student.

        Arguments
        ---------
        folder : str
            Output folder of a train_fithubert.py.

        Raises
        ------
        FileNotFoundError, ValueError
            As `read_student`, and if the student there is of another size.
        """
        settings, parameters = read_student(folder)
        trained = HintedStudent(FitHuBERT(**settings.pop("student")), **settings)
        trained.load_state_dict(parameters)
        there, here = _sizes(trained.student), _sizes(self.student)
        differing = [k for k in {**here, **there} if here.get(k) != there.get(k)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"student {folder} is of another size: {name} is {there.get(name)} "
                f"there, {here.get(name)} here. Copy its network from "
                f"{folder}/hyperparams.yaml into `student` of this yaml's features"
            )
        self.student.load_state_dict(trained.student.state_dict())

    def output_lengths(self, lengths):
        """Number of frames of signals of `lengths` samples."""
        return self.student.output_lengths(lengths)

    def forward(self, signal, lengths):
        """States [B, T, D] of signals [B, samples], and their lengths [B].

        Frames of 40 ms; anything beyond the end of an utterance. See the contract in
        `cif_lobes.nets`.
        """
        with torch.no_grad():
            x = self.student.layer_outputs(signal, lengths)
        if self.layer_logits is None:
            return x[-1], self.output_lengths(lengths)
        weights = self.layer_logits.softmax(0)
        return torch.einsum("l,lbtd->btd", weights, torch.stack(x)), (
            self.output_lengths(lengths)
        )


def _sizes(student):
    """What two students must share, by name; the shapes do not tell all of it."""
    return {
        "nhead": student.layers[0].self_attn.num_heads,
        "conv_strides": [conv.stride[0] for conv in student.frontend.convs],
        **{name: list(value.shape) for name, value in student.state_dict().items()},
    }
