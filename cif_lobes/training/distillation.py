"""Hierarchical distillation: what the teacher's states add to the training losses.

CIF-HieraDist (https://arxiv.org/abs/2301.13003) teaches at two points: a contrastive
loss draws each CIF vector to the teacher's state of its token (ACD), a regression loss
draws the decoder's state to it (LRD). Together they are HKD. The states come from a
cache, so no teacher is in memory, in a checkpoint, or needed at inference.

A cache of several layers has a head for each, and the losses are the mean over the
layers, so that a weight means the same for one layer as for three.
"""

import math

import torch

from cif_lobes.cache.reader import TeacherCache
from cif_lobes.data.manifest import read_manifest
from cif_lobes.losses.arguments import check_same_states
from cif_lobes.losses.contrastive import ContrastiveOutput, contrastive_distillation
from cif_lobes.losses.regression import regression_distillation
from cif_lobes.storage.parameters import TEACHERS

# Heads that exist only while their loss weighs something: an idle head would be saved,
# decayed, and make DistributedDataParallel wait for its gradient.
HEAD_WEIGHTS = {
    "ctc_head": "ctc_weight",
    "acd_head": "acd_weight",
    "lrd_head": "lrd_weight",
}


def used_modules(hparams):
    """The yaml's modules without the heads whose loss weight is 0.

    Arguments
    ---------
    hparams : dict
        The loaded yaml.

    Returns
    -------
    dict of str to torch.nn.Module
    """
    return {
        name: module
        for name, module in hparams["modules"].items()
        if name not in HEAD_WEIGHTS or hparams.get(HEAD_WEIGHTS[name], 0)
    }


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


def add_teacher(hparams, manifest):
    """Open the teacher's cache and give the yaml's modules the heads that learn from it.

    Heads exist while a network is trained and in its checkpoints; their size is the
    cache's. Nothing else needs them, see `cif_lobes.storage.parameters.fill`.

    Arguments
    ---------
    hparams : dict
        The loaded yaml, to which `teacher_mean` is added; see `open_cache`.
    manifest : str
        Training manifest.

    Returns
    -------
    TeacherCache or None
        None if no distillation loss weighs anything.
    """
    cache = open_cache(hparams, manifest)
    if cache is not None:
        hparams["teacher_mean"] = cache.mean
        for name in TEACHERS:
            head = TeacherHead(hparams["d_model"], cache.shape)
            hparams["modules"][name] = head
    return cache


def open_cache(hparams, manifest):
    """The teacher's states of a training set, checked against it.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: teacher_cache, teacher_layers, acd_weight, lrd_weight,
        tokenizer.
    manifest : str
        Training manifest.

    Returns
    -------
    TeacherCache or None
        None if no distillation loss weighs anything.

    Raises
    ------
    ValueError
        If the cache was built for other utterances, texts, units or normalisation, or
        lacks a layer.
    """
    if not hparams.get("acd_weight", 0) and not hparams.get("lrd_weight", 0):
        return None
    cache = TeacherCache(hparams["teacher_cache"])
    tokenizer = hparams["tokenizer"]
    texts = {u.id: tokenizer.normalize(u.wrd) for u in read_manifest(manifest)}
    cache.check(texts, tokenizer.fingerprint, tokenizer.language)
    if hparams.get("teacher_layers") is not None:
        cache.use_layers(hparams["teacher_layers"])
    return cache


def distillation_losses(
    hparams, modules, predictions, teacher, valid_mask, ledger, heads_only=False
):
    """ACD and LRD of a batch, those that weigh something.

    Arguments
    ---------
    hparams : SimpleNamespace
        acd_weight, acd_temperature, num_negatives, exclude_same_token,
        gather_negatives, lrd_weight, lrd_kind, centre_teacher, tokenizer.
    modules : dict of str to torch.nn.Module
        acd_head, lrd_head: D to H, or to [L, H].
    predictions : cif_lobes.training.cif.Predictions
        Of the batch.
    teacher : torch.Tensor, [B, U, H] or [B, U, L, H], float16
        Teacher states, one per token, end of sentence included.
    valid_mask : torch.Tensor, [B, U], bool
        True at real tokens.
    ledger : cif_lobes.training.ledger.Ledger
        Counts the contrastive accuracy.
    heads_only : bool
        Whether the gradient ends at the two heads.

    Returns
    -------
    dict of str to (float, torch.Tensor)
        Weight and sum over the batch of each loss, by name; of L layers, their mean.
    """
    losses = {}
    vectors, states = predictions.fired.embeddings, predictions.states
    if heads_only:
        vectors, states = vectors.detach(), states.detach()
    if hparams.centre_teacher:
        mean = hparams.teacher_mean.to(teacher.device, non_blocking=True)
        teacher = teacher.float() - mean
    if hparams.acd_weight:
        student = modules["acd_head"](vectors)
        check_same_states(student, teacher)  # laid flat, all would look alike
        rows = predictions.token_lengths.valid_rows(student.shape[1])
        acd = _contrast_layers(
            _rows(student, rows),
            _rows(teacher, rows),
            temperature=hparams.acd_temperature,
            num_negatives=hparams.num_negatives,
            token_ids=_rows(predictions.tokens, rows),
            exclude_same_token=hparams.exclude_same_token,
            # Runs from before it was a setting drew from their own process.
            gather_negatives=getattr(hparams, "gather_negatives", False),
        )
        losses["acd"] = hparams.acd_weight, acd.loss
        ledger.count("acd_accuracy", acd.correct, len(rows))
    if hparams.lrd_weight:
        student = modules["lrd_head"](states)
        lrd = regression_distillation(student, teacher, valid_mask, hparams.lrd_kind)
        num_layers = student.shape[2:-1].numel()  # 1 without such an axis
        losses["lrd"] = hparams.lrd_weight, lrd / num_layers
    return losses


def _contrast_layers(student, teacher, **options):
    """`contrastive_distillation` of [N, H], or the mean over the layers of [N, L, H]."""
    if student.dim() == 2:
        return contrastive_distillation(student, teacher, **options)
    layers = zip(student.unbind(1), teacher.unbind(1), strict=True)
    outputs = [contrastive_distillation(s, t, **options) for s, t in layers]
    return ContrastiveOutput(
        *(sum(o) / len(outputs) for o in zip(*outputs, strict=True))
    )


def _rows(x, rows):
    """Some tokens of [B, U, ...] laid flat."""
    return x.flatten(0, 1).index_select(0, rows)
