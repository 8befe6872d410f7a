"""A trained CIF recogniser that only gives its CIF vectors: frozen, from a run folder."""

import torch

from cif_lobes.storage.parameters import FIRING
from cif_lobes.teachers.frozen_run import FrozenRun


class FrozenRecognizer(FrozenRun):
    """Features, encoder and CIF of a run: what its vectors depend on.

    See `FrozenRun` for its arguments and for what it raises.

    Attributes
    ----------
    sample_rate : int
        Hz.
    vector_size : int
        Width D of its vectors.
    """

    parts = FIRING
    others = ("sample_rate",)

    def __init__(self, path, device="cpu"):
        super().__init__(path, device)
        self.sample_rate = self.settings["sample_rate"]
        self.vector_size = self.network.cif.linear.in_features

    def check(self, parameters):
        """Refuse a run of anything but a CIF recogniser."""
        if not any(name.startswith("cif.") for name in parameters):
            raise ValueError(
                f"recognizer {self.path} is no run of a CIF recogniser: give the "
                "output_folder of train.py and a yaml whose name begins with cif"
            )

    @torch.no_grad()
    def hear(self, waves, lengths):
        """Features of a padded batch.

        Arguments
        ---------
        waves : torch.Tensor, [B, samples], float32
            Or cached states of its ears, see `cif_lobes.nets.ears.PretrainedEars`.
        lengths : torch.Tensor, [B], int64
            Samples of each, or frames of its states.

        Returns
        -------
        x : torch.Tensor, [B, T, F]
        x_lengths : torch.Tensor, [B], int64
            Frames of each.
        """
        return self.network.features(waves.to(self.device), lengths.to(self.device))

    @torch.no_grad()
    def fire(self, x, x_lengths, target_lengths=None, targets=None):
        """What CIF fires for features, or for such as masks have left.

        Arguments
        ---------
        x, x_lengths : torch.Tensor
            As `hear` returns them.
        target_lengths : torch.Tensor, [B], int64, optional
            True number of tokens, end of sentence included, to which weights are scaled.
        targets : torch.Tensor, [B, U], int64, optional
            And what they are.

        Returns
        -------
        cif_lobes.cif.CIFOutput
        """
        if target_lengths is not None:
            target_lengths = target_lengths.to(self.device)
        if targets is not None:
            targets = targets.to(self.device)
        x, x_lengths = self.network.encoder(x, x_lengths)
        return self.network.cif(x, x_lengths, target_lengths, targets)
