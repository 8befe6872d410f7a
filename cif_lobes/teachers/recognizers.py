"""Trained CTC-attention recognisers as teachers: frozen, and read from run folders."""

import pathlib

import torch

from cif_lobes.devices.lengths import Lengths
from cif_lobes.nets.ctc_attention import predict
from cif_lobes.teachers.frozen_run import FrozenRun


class ASRTeacher(FrozenRun):
    """A trained recogniser that only ever gives posteriors.

    See `FrozenRun` for its arguments and for what it raises.

    Attributes
    ----------
    vocab_size : int
        Classes V.
    """

    parts = ("features", "encoder", "ctc_head", "embedding", "decoder", "seq_head")
    others = ("vocab_size",)

    def __init__(self, path, device="cpu"):
        super().__init__(path, device)
        self.vocab_size = self.settings["vocab_size"]

    def check(self, parameters):
        """Refuse a run without a CTC head."""
        if "ctc_head.weight" not in parameters:
            raise ValueError(
                f"teacher {self.path} has no CTC head: it was trained with ctc_weight 0. "
                "Take it off the list, or train it with another ctc_weight"
            )

    def output_lengths(self, lengths):
        """Encoder frames of utterances of so many samples."""
        network = self.network
        return network.encoder.output_lengths(network.features.output_lengths(lengths))

    @torch.inference_mode()
    def forward(self, waves, lengths, tokens, token_lengths):
        """Posteriors of a padded batch.

        Arguments
        ---------
        waves : torch.Tensor, [B, samples], float32
        lengths : torch.Tensor, [B], int64
            Samples of each.
        tokens : torch.Tensor, [B, U], int64
            True tokens, end of sentence included.
        token_lengths : torch.Tensor, [B], int64

        Returns
        -------
        ctc : torch.Tensor, [B, T, V], float32
            Log-posteriors of each frame.
        x_lengths : torch.Tensor, [B], int64
            Frames of each utterance.
        seq : torch.Tensor, [B, U, V], float32
            Log-posteriors of each token, given the true ones before it.
        """
        waves, lengths, tokens, token_lengths = (
            x.to(self.device) for x in (waves, lengths, tokens, token_lengths)
        )
        encoded, x_lengths = self.network.encoder(
            *self.network.features(waves, lengths)
        )
        p = predict(
            self.network,
            encoded,
            Lengths(x_lengths.cpu(), x_lengths),
            tokens,
            Lengths(token_lengths.cpu(), token_lengths),
            self.tokenizer.bos_index,
        )
        return p.ctc_logits.log_softmax(-1), x_lengths, p.logits.log_softmax(-1)


def read_teachers(path, device="cpu"):
    """The teachers that a text file lists, one run folder or checkpoint a line.

    Arguments
    ---------
    path : str
        The file; empty lines and what follows a # are skipped. Paths are relative to
        the working directory.
    device : str

    Returns
    -------
    list of ASRTeacher

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it lists no teacher.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"list of teachers {path} does not exist: write one run folder a line into "
            "it, for instance results/TIMIT/ctc_attention/1986"
        )
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    teachers = [ASRTeacher(line, device) for line in lines if line]
    if not teachers:
        raise ValueError(f"{path} lists no teacher: one run folder a line is expected")
    return teachers
