"""Distillation of a speech encoder, and a run of it from its yaml to its checkpoints.

The loss of FitHuBERT (https://arxiv.org/abs/2207.00555, 2.3): the mean squared error of
the last layer, plus `hint_weight` times the sum of those of the other layers, over real
frames only. The authors' code averages over padding, too.
"""

from typing import NamedTuple

import speechbrain as sb
import torch
from speechbrain.dataio.dataio import length_to_mask
from torch import Tensor

from cif_lobes.devices.processes import gather_objects
from cif_lobes.losses.regression import regression_distillation
from cif_lobes.training.brain import TrainingBrain


class Predictions(NamedTuple):
    """What student and teacher say about a batch."""

    student: dict  # layer to [B, T, H]
    teacher: dict  # layer to [B, T, H]
    x_lengths: Tensor  # [B] frames of each utterance


class FitHuBERTBrain(TrainingBrain):
    """Trains a student to say what the layers of a frozen teacher say.

    Reads from the yaml, besides `modules`: `lr_scheduler`, `number_of_epochs`,
    `hint_weight`, `num_checkpoints`, `seed`, and, if batches bring the teacher's states
    along, `cached_layers`.

    Arguments
    ---------
    teacher : cif_lobes.nets.speech_encoder.SpeechEncoder
        Beside `modules`, so it is never trained, switched to train mode or saved.
    **kwargs
        Those of `speechbrain.Brain`; modules has `student`, a `HintedStudent`.

    Raises
    ------
    ValueError
        If the states of student and teacher cannot be paired.
    """

    def __init__(self, teacher, **kwargs):
        check_teacher(kwargs["modules"]["student"], teacher)
        super().__init__(**kwargs)
        self.teacher = teacher.to(self.device)

    def compute_forward(self, batch, stage):
        """States of both; see `Predictions`."""
        batch = batch.to(self.device, non_blocking=True)
        waves, relative = batch.signal
        lengths = (relative * waves.shape[1]).round().long()
        student, x_lengths = self.modules.student(waves, lengths)
        if hasattr(batch, "teacher"):
            states = batch.teacher.data.unbind(2)
            teacher = dict(zip(self.hparams.cached_layers, states, strict=True))
        else:
            teacher = dict(enumerate(self.teacher(waves, lengths)[0]))
        # A Whisper may say one frame more, of samples that fill none of the student's.
        T = student[max(student)].shape[1]
        teacher = {n: states[:, :T] for n, states in teacher.items()}
        return Predictions(student, teacher, x_lengths)

    def compute_objectives(self, predictions, batch, stage):
        """Weighted sum of the losses over the batch's frames; keeps the ledger."""
        student, teacher, x_lengths = predictions
        last = max(student)
        valid_mask = length_to_mask(x_lengths, teacher[last].shape[1], dtype=torch.bool)
        losses = {
            f"layer_{n}": (
                1.0 if n == last else self.hparams.hint_weight,
                regression_distillation(states, teacher[n], valid_mask)
                / states.shape[-1],
            )
            for n, states in student.items()
        }
        self.ledger.add(losses, int(x_lengths.sum()))
        if stage != sb.Stage.TRAIN:
            self._count_unexplained(student[last], teacher[last], valid_mask)
        return sum(weight * loss for weight, loss in losses.values())

    def _count_unexplained(self, student, teacher, valid_mask):
        """Squared error, and what the spread of the teacher's states is made of."""
        student = student[valid_mask].double()
        teacher = teacher[valid_mask].double()
        numbers = (student - teacher).square().sum(), teacher.square().sum()
        frames = torch.full_like(numbers[0], len(teacher))
        moments = torch.cat([torch.stack([*numbers, frames]), teacher.sum(0)])
        self.moments = self.moments.to(moments) + moments

    def start_scoring(self):
        """Nothing has been seen of the teacher."""
        # Of no width: a process that has nothing to validate adds nothing.
        self.moments = torch.zeros(())

    def scores(self):
        """Error, as a share of that of a student that knows the teacher's mean only."""
        moments = sum(gather_objects(self.moments.cpu()))
        error, squares, frames = moments[:3]
        spread = squares - moments[3:].square().sum() / frames
        return {"unexplained": float(error / spread)}

    def count_units(self, predictions):
        """Frames of a batch."""
        return int(predictions.x_lengths.sum())

    def describe(self, figures):
        """What of the teacher's last layer the student does not know."""
        return f"{figures['unexplained']:.1%} of the last layer unexplained"


def check_teacher(student, teacher):
    """See that every taught layer has a teacher of its width, frame by frame.

    Arguments
    ---------
    student : cif_lobes.nets.fithubert.HintedStudent
    teacher : cif_lobes.nets.speech_encoder.SpeechEncoder

    Raises
    ------
    ValueError
        If not.
    """
    if student.last != teacher.num_layers:
        raise ValueError(
            f"the student has {student.last} layers, the teacher {teacher.num_layers}: "
            f"layer n learns from layer n. Run with --num_layers {teacher.num_layers}"
        )
    if student.teacher_width != teacher.width:
        raise ValueError(
            f"teacher_width is {student.teacher_width}, the teacher's states have "
            f"{teacher.width}. Run with --teacher_width {teacher.width}"
        )
    frontend = student.student.frontend
    if (frontend.reach, frontend.hop) != (teacher.reach, teacher.hop):
        raise ValueError(
            f"a frame of the student reads {frontend.reach} samples, every "
            f"{frontend.hop}, one of the teacher {teacher.reach}, every {teacher.hop}: "
            "frame t of one is not frame t of the other. Change conv_kernels and "
            "conv_strides"
        )
