"""Losses that draw a network to a teacher's states, each a module with its own head.

CIF-HieraDist (https://arxiv.org/abs/2301.13003) teaches at two points: `ACD` draws each CIF
vector to the teacher's state of its token, `LRD` the decoder's state. The package says
what a loss promises; docs/extending.md has a third one.
"""

import math
from typing import NamedTuple

import torch

from cif_lobes.losses.arguments import check_same_states
from cif_lobes.losses.contrastive import contrastive_distillation
from cif_lobes.losses.regression import regression_distillation


class TokenStates(NamedTuple):
    """What a network says of the tokens of a batch.

    Example
    -------
    >>> x, tokens, mask = torch.zeros(1, 2, 8), torch.zeros(1, 2), torch.ones(1, 2) > 0
    >>> TokenStates(x, x, tokens, mask, torch.tensor([0, 1])).flat(x).shape
    torch.Size([2, 8])
    """

    vectors: torch.Tensor  # [B, U, D] what CIF fired
    states: torch.Tensor  # [B, U, D] of the decoder
    tokens: torch.Tensor  # [B, U] int64, end of sentence included
    valid_mask: torch.Tensor  # [B, U] bool, True at real tokens
    rows: torch.Tensor  # [N] int64, the real ones of B * U tokens

    def flat(self, x):
        """The real tokens of [B, U, ...]: [N, ...]."""
        return x.flatten(0, 1).index_select(0, self.rows)


class DistillationOutput(NamedTuple):
    """What a loss says of a batch."""

    weight: float
    loss: torch.Tensor  # [] sum over real tokens, mean over the teacher's layers
    ratios: dict  # of str to (amount, out of how much), numbers or tensors []


class TeacherHead(torch.nn.Linear):
    """From a student's vectors to their like of a teacher's states, layer by layer.

    Arguments
    ---------
    input_size : int
        Width D of the vectors.
    state_shape : tuple of int
        Of a teacher's state: (H,), or (L, H) for L layers, each with its own weights.

    Example
    -------
    >>> TeacherHead(8, (3, 16))(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 3, 16])
    """

    def __init__(self, input_size, state_shape):
        super().__init__(input_size, math.prod(state_shape))
        self.state_shape = tuple(state_shape)

    def forward(self, x):
        """[..., D] to [..., H] or [..., L, H]."""
        return super().forward(x).unflatten(-1, self.state_shape)


class DistillationLoss(torch.nn.Module):
    """A loss against a teacher's states; a subclass says `compare`.

    Arguments
    ---------
    weight : float
        In the sum of all losses; with 0 no head is made.
    name : str
        Under which it is logged, and its parameters are saved.
    of : str
        What is drawn to the teacher, "vectors" or "states" of `TokenStates`.
    """

    def __init__(self, weight, name, of):
        super().__init__()
        self.weight, self.name, self.of = weight, name, of

    def build(self, input_size, state_shape):
        """Make the parameters, which are of the teacher's size; see `TeacherHead`."""
        self.head = TeacherHead(input_size, state_shape)

    def compare(self, student, teacher, batch):
        """The cost of one teacher layer.

        Arguments
        ---------
        student : torch.Tensor, [B, U, H], float
            What the head makes of the network's vectors.
        teacher : torch.Tensor, [B, U, H], float
        batch : TokenStates
            For its tokens, mask and rows.

        Returns
        -------
        loss : torch.Tensor, [], float32
            Sum over real tokens.
        ratios : dict of str to (amount, out of how much)
            Logged under the loss's name and theirs.
        """
        raise NotImplementedError

    def forward(self, batch, teacher, heads_only=False):
        """The loss of a batch, the mean over the layers of the teacher.

        So a weight means the same for one layer as for three.

        Arguments
        ---------
        batch : TokenStates
        teacher : torch.Tensor, [B, U, H] or [B, U, L, H], float
            States of the same tokens.
        heads_only : bool
            Whether the gradient ends at the head.

        Returns
        -------
        DistillationOutput

        Raises
        ------
        ValueError
            If the teacher's states are of other tokens, or of another width.
        """
        vectors = getattr(batch, self.of)
        student = self.head(vectors.detach() if heads_only else vectors)
        check_same_states(student, teacher)  # laid flat, all would look alike
        layers = [(student, teacher.detach())]
        if student.dim() == 4:
            layers = list(
                zip(student.unbind(2), teacher.detach().unbind(2), strict=True)
            )
        costs, ratios = zip(
            *(self.compare(s, t, batch) for s, t in layers), strict=True
        )
        means = {
            name: [
                sum(x) / len(layers)
                for x in zip(*(r[name] for r in ratios), strict=True)
            ]
            for name in ratios[0]
        }
        return DistillationOutput(self.weight, sum(costs) / len(layers), means)


class ACD(DistillationLoss):
    """Acoustic contrastive distillation: each vector is nearest to the state of its token.

    Logs the contrastive accuracy.

    Arguments
    ---------
    weight : float
    temperature, num_negatives, exclude_same_token, gather_negatives
        See `cif_lobes.losses.contrastive.contrastive_distillation`.
    name, of : str
        See `DistillationLoss`.
    """

    def __init__(
        self,
        weight,
        temperature=0.02,
        num_negatives=700,
        exclude_same_token=False,
        gather_negatives=False,
        name="acd",
        of="vectors",
    ):
        super().__init__(weight, name, of)
        self.options = {
            "temperature": temperature,
            "num_negatives": num_negatives,
            "exclude_same_token": exclude_same_token,
            "gather_negatives": gather_negatives,
        }

    def compare(self, student, teacher, batch):
        """See `DistillationLoss`."""
        flat = batch.flat
        loss, correct = contrastive_distillation(
            flat(student), flat(teacher), token_ids=flat(batch.tokens), **self.options
        )
        return loss, {"accuracy": (correct, len(batch.rows))}


class LRD(DistillationLoss):
    """Linguistic regression distillation: each state equals the teacher's of its token.

    Arguments
    ---------
    weight : float
    kind : str
        "l2", "cosine" or "l1_cosine", see
        `cif_lobes.losses.regression.regression_distillation`.
    name, of : str
        See `DistillationLoss`.
    """

    def __init__(self, weight, kind="l2", name="lrd", of="states"):
        super().__init__(weight, name, of)
        self.kind = kind

    def compare(self, student, teacher, batch):
        """See `DistillationLoss`."""
        loss = regression_distillation(student, teacher, batch.valid_mask, self.kind)
        return loss, {}


class DistillationLosses(torch.nn.ModuleDict):
    """All losses of a training that weigh something, by name, with their heads.

    One module, so that DistributedDataParallel sees one forward pass.

    Arguments
    ---------
    losses : list of DistillationLoss
        Of the yaml.
    input_size : int
        Width D of the network's vectors.
    state_shape : tuple of int
        See `TeacherHead`.
    centre : torch.Tensor, [H] or [L, H], optional
        Subtracted from the teacher's states. Not saved: it is the cache's.

    Raises
    ------
    ValueError
        If two losses have one name.
    """

    def __init__(self, losses, input_size, state_shape, centre=None):
        super().__init__()
        for loss in losses:
            if loss.name in self:
                raise ValueError(
                    f"two losses of `distillation` are named {loss.name!r}, under which "
                    "they are logged and saved: give one another name"
                )
            if loss.weight:
                loss.build(input_size, state_shape)
                self[loss.name] = loss
        self.register_buffer("centre", centre, persistent=False)

    def forward(self, batch, teacher, heads_only=False):
        """`DistillationOutput` of each loss, by name; see `DistillationLoss.forward`."""
        if self.centre is not None:
            teacher = teacher.float() - self.centre
        return {name: loss(batch, teacher, heads_only) for name, loss in self.items()}
