"""Trained CTC-attention recognisers as teachers: frozen, and read from run folders."""

import pathlib

import torch

from cif_lobes.devices.lengths import Lengths
from cif_lobes.nets.ctc_attention import predict
from cif_lobes.settings.safe_yaml import build, inside
from cif_lobes.storage.parameters import (
    hash_parameters,
    read_parameters,
    run_folder,
)

NETWORK = ("features", "encoder", "ctc_head", "embedding", "decoder", "seq_head")


class ASRTeacher(torch.nn.Module):
    """A trained recogniser that only ever gives posteriors: eval mode, no gradients.

    Arguments
    ---------
    path : str
        Output folder of a run, whose checkpoints are averaged as its yaml says, or one
        checkpoint of it (`.../save/CKPT+...`, or the `model.ckpt` in it).
    device : str
        Where it runs.

    Attributes
    ----------
    tokenizer : cif_lobes.data.tokens.Tokenizer
        The run's own.
    vocab_size : int
        Classes V.
    weights_hash : str
        Of all weights.

    Raises
    ------
    FileNotFoundError
        If there is no such run or checkpoint.
    ValueError
        If the run has no CTC head.
    """

    def __init__(self, path, device="cpu"):
        super().__init__()
        self.path = str(path)
        run = run_folder(path)
        parameters = read_parameters(path)
        if "ctc_head.weight" not in parameters:
            raise ValueError(
                f"teacher {path} has no CTC head: it was trained with ctc_weight 0. "
                "Take it off the list, or train it with another ctc_weight"
            )
        needed = ("tokenizer", "vocab_size", *NETWORK)
        loaded = build(run / "hyperparams.yaml", only=needed)
        self.tokenizer = loaded["tokenizer"]
        self.tokenizer.path = inside(run, self.tokenizer.path)
        self.vocab_size = loaded["vocab_size"]
        self.network = torch.nn.ModuleDict({name: loaded[name] for name in NETWORK})
        self.network.load_state_dict(parameters)
        self.weights_hash = hash_parameters(parameters)
        self.device = torch.device(device)
        self.requires_grad_(False).eval().to(self.device)

    def train(self, mode=True):
        """Stays in eval mode, whatever a Brain asks for."""
        return super().train(False)

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
