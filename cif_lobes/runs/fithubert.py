"""A distillation of a speech encoder, from its yaml to its checkpoints."""

from speechbrain.dataio.dataset import DynamicItemDataset

from cif_lobes.cache.speech_states import (
    check_durations,
    identity_of,
    open_speech_cache,
)
from cif_lobes.data.batches import dataset_rows, signal_item
from cif_lobes.data.manifest import read_manifest
from cif_lobes.nets.pretrained import load_encoder
from cif_lobes.runs.stages import assemble, finish, fit, start
from cif_lobes.runs.teacher import meet_teacher
from cif_lobes.training.fithubert import FitHuBERTBrain


def run(hparams_file, run_opts, overrides, prepare):
    """Prepare the data and distil; see `cif_lobes.runs`. There is nothing to score."""
    hparams, manifests = start(hparams_file, run_opts, overrides, prepare)
    teacher = load_encoder(
        hparams["teacher"], hparams["teacher_silence_seconds"], "teacher"
    )
    utterances = (u for path in manifests.values() for u in read_manifest(path))
    durations = {u.id: u.duration for u in utterances}
    check_durations(durations, teacher, hparams["sample_rate"], "teacher")
    meet_teacher(hparams, str(hparams["teacher"]), identity_of(teacher))
    cache = None
    brain = make_brain(hparams, run_opts, teacher)
    if hparams["teacher_cache"]:
        names = "teacher", "teacher_silence_seconds"
        settings = {name: hparams[name] for name in names} | {
            "layers": [int(layer) for layer in hparams["modules"]["student"].heads],
            "manifests": [*map(str, manifests.values())],
        }
        cache = open_speech_cache(hparams["teacher_cache"], teacher, settings)
        brain.hparams.cached_layers = cache.attributes["layers"]
        brain.teacher = None  # has been compared, and is not needed any more
    datasets = {
        name: make_audio_dataset(path, hparams["sample_rate"], cache)
        for name, path in manifests.items()
    }
    fit(brain, hparams_file, hparams, datasets)
    finish()


def make_brain(hparams, run_opts, teacher):
    """The Brain of a loaded yaml."""
    return assemble(
        FitHuBERTBrain, hparams, run_opts, hparams["modules"], teacher=teacher
    )


def make_audio_dataset(manifest, sample_rate, cache=None):
    """A dataset of `id`, `signal` [samples] and, with a cache, `teacher` [T, L, H].

    See `cif_lobes.data.batches.make_dataset`.
    """
    rows = dataset_rows(manifest)
    items = [signal_item(sample_rate)]
    if cache is not None:
        read = cache.__getitem__
        items.append({"func": read, "takes": ["id"], "provides": "teacher"})
    keys = ["id", *(item["provides"] for item in items)]
    return DynamicItemDataset(rows, dynamic_items=items, output_keys=keys)
