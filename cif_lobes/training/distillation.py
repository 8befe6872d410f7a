"""What a training needs to learn from a teacher: its cache, and losses of the cache's size.

The losses stand in the yaml's list `distillation`; see `cif_lobes.losses`. The states come
from a cache, so no teacher is in memory, in a checkpoint, or needed at inference.
"""

from cif_lobes.cache.reader import TeacherCache
from cif_lobes.data.manifest import read_manifest
from cif_lobes.losses.distillation import DistillationLosses
from cif_lobes.storage.parameters import DISTILLATION


def add_teacher(hparams, manifest):
    """Open the teacher's cache and give the yaml's modules the losses that learn from it.

    They exist while a network is trained and in its checkpoints; the size of their heads
    is the cache's. Nothing else needs them, see `cif_lobes.storage.parameters.fill`.

    What it needs of the yaml is in `open_teacher_cache`, which gives the cache, and
    `add_losses`.
    """
    cache = open_teacher_cache(hparams, manifest)
    if cache is not None:
        add_losses(hparams, cache.shape, cache.mean)
    return cache


def add_losses(hparams, state_shape, mean):
    """Give the yaml's modules its distillation losses, made for a teacher.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: distillation, d_model, centre_teacher, modules.
    state_shape : tuple of int
        Of a teacher's state: (H,) or (L, H).
    mean : torch.Tensor, [H] or [L, H]
        Of all states.
    """
    centre = mean if hparams["centre_teacher"] else None
    hparams["modules"][DISTILLATION] = DistillationLosses(
        hparams["distillation"], hparams["d_model"], state_shape, centre
    )


def open_teacher_cache(hparams, manifest):
    """The teacher's states of a training set, checked against it.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: distillation, teacher_cache, teacher_layers, tokenizer.
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
    if not any(loss.weight for loss in hparams.get("distillation", [])):
        return None
    cache = TeacherCache(hparams["teacher_cache"])
    tokenizer = hparams["tokenizer"]
    texts = {u.id: tokenizer.normalize(u.wrd) for u in read_manifest(manifest)}
    cache.check(texts, tokenizer.fingerprint, tokenizer.language)
    if hparams.get("teacher_layers") is not None:
        cache.use_layers(hparams["teacher_layers"])
    return cache
