"""Hierarchical distillation: what the teacher's states add to the training losses.

CIF-HieraDist (https://arxiv.org/abs/2301.13003) teaches at two points: a contrastive
loss draws each CIF vector to the teacher's state of its token (ACD), a regression loss
draws the decoder's state to it (LRD). Together they are HKD. The states come from a
cache, so no teacher is in memory, in a checkpoint, or needed at inference.
"""

from cif_lobes.contrastive import contrastive_distillation
from cif_lobes.losses import check_same_states, regression_distillation
from cif_lobes.manifest import read_manifest
from cif_lobes.teacher_cache import TeacherCache

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


def open_cache(hparams, manifest):
    """The teacher's states of a training set, checked against it.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: teacher_cache, acd_weight, lrd_weight, tokenizer.
    manifest : str
        Training manifest.

    Returns
    -------
    TeacherCache or None
        None if no distillation loss weighs anything.

    Raises
    ------
    ValueError
        If the cache was built for other utterances, texts, units or normalisation.
    """
    if not hparams.get("acd_weight", 0) and not hparams.get("lrd_weight", 0):
        return None
    cache = TeacherCache(hparams["teacher_cache"])
    tokenizer = hparams["tokenizer"]
    texts = {u.id: tokenizer.normalize(u.wrd) for u in read_manifest(manifest)}
    cache.check(texts, tokenizer.fingerprint, tokenizer.language)
    width = hparams["teacher_width"]
    if cache.shape[-1] != width:
        raise ValueError(
            f"teacher cache {cache.path} holds states of width {cache.shape[-1]}, "
            f"teacher_width is {width}: run with --teacher_width {cache.shape[-1]}"
        )
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
        acd_head, lrd_head: D to H.
    predictions : cif_lobes.brain.Predictions
        Of the batch.
    teacher : torch.Tensor, [B, U, H], float16
        Teacher states, one per token, end of sentence included.
    valid_mask : torch.Tensor, [B, U], bool
        True at real tokens.
    ledger : cif_lobes.ledger.Ledger
        Counts the contrastive accuracy.
    heads_only : bool
        Whether the gradient ends at the two heads.

    Returns
    -------
    dict of str to (float, torch.Tensor)
        Weight and sum over the batch of each loss, by name.
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
        acd = contrastive_distillation(
            _rows(student, rows),
            _rows(teacher, rows),
            temperature=hparams.acd_temperature,
            num_negatives=hparams.num_negatives,
            token_ids=_rows(predictions.tokens, rows),
            exclude_same_token=hparams.exclude_same_token,
            gather_negatives=hparams.gather_negatives,
        )
        losses["acd"] = hparams.acd_weight, acd.loss
        ledger.count("acd_accuracy", acd.correct, len(rows))
    if hparams.lrd_weight:
        student = modules["lrd_head"](states)
        lrd = regression_distillation(student, teacher, valid_mask, hparams.lrd_kind)
        losses["lrd"] = hparams.lrd_weight, lrd
    return losses


def _rows(x, rows):
    """Some tokens of [B, U, ...] laid flat."""
    return x.flatten(0, 1).index_select(0, rows)
