"""The network of a trained run that is only ever asked: frozen, and read from its folder."""

import torch

from cif_lobes.nets.kept_ears import open_ears
from cif_lobes.settings.safe_yaml import build, inside
from cif_lobes.storage.parameters import (
    hash_modules,
    read_parameters,
    run_folder,
)


class FrozenRun(torch.nn.Module):
    """Parts of a run's network: eval mode, no gradients.

    A subclass says which parts, what else of the yaml it reads, and what it refuses.

    Arguments
    ---------
    path : str
        Output folder of a run, whose checkpoints are averaged as its yaml says, or one
        checkpoint of it (`.../save/CKPT+...`, or the `model.ckpt` in it).
    device : str
        Where it runs.

    Attributes
    ----------
    network : torch.nn.ModuleDict
        The parts.
    settings : dict
        The others of the yaml that were asked for.
    tokenizer : cif_lobes.data.tokens.Tokenizer
        The run's own.
    weights_hash : str
        Of the parts' weights.

    Raises
    ------
    FileNotFoundError
        If there is no such run or checkpoint.
    ValueError
        As `check`.
    """

    parts = ()
    others = ()

    def __init__(self, path, device="cpu"):
        super().__init__()
        self.path = str(path)
        run = run_folder(path)
        parameters = read_parameters(path)
        self.check(parameters)
        wanted = ("tokenizer", *self.others, *self.parts)
        loaded = build(run / "hyperparams.yaml", only=wanted)
        self.tokenizer = loaded["tokenizer"]
        self.tokenizer.path = inside(run, self.tokenizer.path)
        self.settings = {name: loaded[name] for name in self.others}
        if "features" in self.parts:
            open_ears(loaded["features"], run)
        self.network = torch.nn.ModuleDict({name: loaded[name] for name in self.parts})
        self.network.load_state_dict(self.of_the_parts(parameters))
        self.weights_hash = self.hash_weights(parameters)
        self.device = torch.device(device)
        self.requires_grad_(False).eval().to(self.device)

    def check(self, parameters):
        """Refuse the parameters of a run that is of another kind.

        Arguments
        ---------
        parameters : dict of str to torch.Tensor
            Of the whole network.
        """

    @classmethod
    def of_the_parts(cls, parameters):
        """Those parameters of a whole network that are of the parts."""
        return {k: v for k, v in parameters.items() if k.split(".")[0] in cls.parts}

    @classmethod
    def hash_weights(cls, parameters):
        """16 hex digits of the parts' weights, from those of the whole network."""
        return hash_modules(parameters, cls.parts)

    def train(self, mode=True):
        """Stays in eval mode, whatever a Brain asks for."""
        return super().train(False)
