"""A trained CIF recogniser that only gives its CIF vectors: frozen, from a run folder."""

import torch

from cif_lobes.settings.safe_yaml import build, inside
from cif_lobes.storage.parameters import (
    hash_parameters,
    read_parameters,
    run_folder,
)

NETWORK = ("features", "encoder", "cif")  # what the vectors depend on


class FrozenRecognizer(torch.nn.Module):
    """Features, encoder and CIF of a run: eval mode, no gradients.

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
    sample_rate : int
        Hz.
    vector_size : int
        Width D of its vectors.
    weights_hash : str
        Of all weights that the vectors depend on.

    Raises
    ------
    FileNotFoundError
        If there is no such run or checkpoint.
    ValueError
        If the run is none of a CIF recogniser.
    """

    def __init__(self, path, device="cpu"):
        super().__init__()
        self.path = str(path)
        run = run_folder(path)
        parameters = read_parameters(path)
        if not any(name.startswith("cif.") for name in parameters):
            raise ValueError(
                f"recognizer {path} is no run of a CIF recogniser: give the "
                "output_folder of train.py and a yaml whose name begins with cif"
            )
        needed = ("tokenizer", "sample_rate", *NETWORK)
        loaded = build(run / "hyperparams.yaml", only=needed)
        self.tokenizer, self.sample_rate = loaded["tokenizer"], loaded["sample_rate"]
        self.tokenizer.path = inside(run, self.tokenizer.path)
        self.network = torch.nn.ModuleDict({name: loaded[name] for name in NETWORK})
        self.network.load_state_dict(_of_the_network(parameters))
        self.vector_size = self.network.cif.linear.in_features
        self.weights_hash = hash_weights(parameters)
        self.device = torch.device(device)
        self.requires_grad_(False).eval().to(self.device)

    def train(self, mode=True):
        """Stays in eval mode, whatever a Brain asks for."""
        return super().train(False)

    @torch.inference_mode()
    def forward(self, waves, lengths, target_lengths):
        """CIF vectors of a padded batch, scaled to the true number of tokens.

        Arguments
        ---------
        waves : torch.Tensor, [B, samples], float32
        lengths : torch.Tensor, [B], int64
            Samples of each.
        target_lengths : torch.Tensor, [B], int64
            Tokens of each, end of sentence included.

        Returns
        -------
        torch.Tensor, [B, U, D], float32
        """
        waves, lengths, target_lengths = (
            x.to(self.device) for x in (waves, lengths, target_lengths)
        )
        x, x_lengths = self.network.encoder(*self.network.features(waves, lengths))
        return self.network.cif(x, x_lengths, target_lengths).embeddings


def hash_weights(parameters):
    """16 hex digits of the weights that a recogniser's CIF vectors depend on.

    Arguments
    ---------
    parameters : dict of str to torch.Tensor
        Of the whole network.

    Returns
    -------
    str
    """
    return hash_parameters(_of_the_network(parameters))


def _of_the_network(parameters):
    return {k: v for k, v in parameters.items() if k.split(".")[0] in NETWORK}
