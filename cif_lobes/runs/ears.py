"""Pretrained ears in a run: which, where they are kept, and what goes with a cache."""

import logging
import pathlib

from speechbrain.utils.distributed import run_on_main

from cif_lobes.cache.ears import Perturbed, open_ears_states
from cif_lobes.cache.speech_states import check_durations, check_present
from cif_lobes.data.manifest import read_manifest
from cif_lobes.nets.ears import PretrainedEars
from cif_lobes.nets.kept_ears import HELD, find_ears, keep_ears, read_note

logger = logging.getLogger(__name__)


def load_ears(hparams):
    """Let a loaded yaml's `features` hear, if they are pretrained ears.

    A run that goes on has those it began with, wherever they are by now.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: ears, output_folder.

    Raises
    ------
    FileNotFoundError, ValueError
        If they are missing, are others than the run began with, or do not go with other
        settings.
    """
    features, folder = hparams.get("features"), pathlib.Path(hparams["output_folder"])
    if not isinstance(features, PretrainedEars):
        return
    check_settings(hparams)
    note = read_note(folder)
    if note is None or str(hparams["ears"]) != note["source"]:
        features.load(hparams["ears"])
    else:
        features.load(find_ears(folder))
    if note is not None and note["hash"] != features.weights_hash:
        raise ValueError(
            f"{folder} is a run with the ears {note['source']} (weights {note['hash']}), "
            f"{hparams['ears']} are others (weights {features.weights_hash}). Go on with "
            "those, or train into another --output_folder"
        )


def note_ears(hparams):
    """Keep the ears of a run that begins, by the first process."""
    features = hparams.get("features")
    if isinstance(features, PretrainedEars):
        source, folder = hparams["ears"], hparams["output_folder"]
        if read_note(folder) is None:
            run_on_main(
                keep_ears, args=[features, source, hparams["ears_folder"], folder]
            )


def open_ears_cache(hparams, manifests):
    """The cached states of a run's ears, checked against all that it will ask for.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: ears_cache.
    manifests : dict of str to str
        csv files.

    Returns
    -------
    TeacherCache or None
        None if what is heard is computed.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If the cache is another's, an utterance is too long for the ears, or there is a
        cache and nothing that could have heard it, or no frozen ears.
    """
    features, path = hparams.get("features"), hparams.get("ears_cache")
    whose = hparams.get("recognizer", "this yaml")
    if not isinstance(features, PretrainedEars):
        if path:
            raise ValueError(
                f"ears_cache is set, and {whose} has no pretrained ears: --ears_cache null"
            )
        return None
    if path is not None and features.trained:
        raise ValueError(
            f"ears_cache is set, and layers of the ears of {whose} were trained: cached "
            "states are those of frozen ears. Run with --ears_cache null"
        )
    utterances = [u for m in manifests.values() for u in read_manifest(m)]
    rate = hparams["sample_rate"]
    speeds = hparams.get("speeds", [100]) if "train" in manifests else []
    slow = [Perturbed(u, s) for s in speeds for u in read_manifest(manifests["train"])]
    durations = {u.id: u.duration for u in [*utterances, *slow]}
    check_durations(durations, features.encoder, rate, "ears")
    if path is None:
        return None
    settings = _to_extract(hparams, manifests)
    check_present(path, settings, "ears", "ears")
    return open_ears_states(path, features.encoder, manifests, settings)


def _to_extract(hparams, manifests):
    """What extract_teacher.py is to be asked for, so that its cache serves a run."""
    features, ears = hparams["features"], hparams.get("ears")
    if ears is None:  # those of the recogniser of a train_llm.py
        folder = pathlib.Path(hparams["recognizer"])
        ears = (read_note(folder) or {}).get("source", str(folder / HELD))
    if "train" not in manifests:  # scored: what was trained on is kept in the cache
        own = hparams["train_csv"], hparams["valid_csv"], *hparams["test_csv"]
    else:
        own = ()
    return {
        "ears": ears,
        "ears_layers": features.layers,
        "ears_silence_seconds": features.silence_seconds,
        "manifests": list(dict.fromkeys(map(str, [*own, *manifests.values()]))),
        "speeds": sorted({100, *hparams.get("speeds", [])}),
    }


def open_ears_cache_if_it_serves(hparams, manifests):
    """`open_ears_cache` for scoring: states that it does not have are computed.

    A run outlives its cache, and is scored on other recordings than those in it.
    """
    try:
        return open_ears_cache(hparams, manifests)
    except (OSError, ValueError) as error:
        found = open_ears_cache({**hparams, "ears_cache": None}, manifests)
        logger.warning(f"the cache is not read, recordings are heard again: {error}")
        return found


def with_ears(parameters, features, folder, run):
    """A run's parameters, for a network that begins with them and has pretrained ears.

    Layers that are trained from now on, and were not there, begin as they were kept.

    Arguments
    ---------
    parameters : dict of str to torch.Tensor
        Of the run.
    features : torch.nn.Module
        Of the network that begins.
    folder, run : str
        The run's folder, and init_from.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    ValueError
        If the run heard with others, or trained layers that are not trained here.
    """
    note = read_note(folder)
    if note is None or not isinstance(features, PretrainedEars):
        return parameters
    if note["hash"] != features.weights_hash:
        raise ValueError(
            f"init_from {run}: it has the ears {note['source']} (weights {note['hash']}), "
            f"this run has others (weights {features.weights_hash}). Give the same --ears"
        )
    ours = {f"features.{k}": v for k, v in features.state_dict().items() if "top." in k}
    theirs = [k for k in parameters if k.startswith("features.top.")]
    if theirs and {*theirs} != {*ours}:
        raise ValueError(
            f"init_from {run}: layers of its ears were trained, others than here. Give "
            "the ears_trained of its hyperparams.yaml"
        )
    return {**ours, **parameters}


def check_settings(hparams):
    """Refuse what pretrained ears, or cached states of them, cannot go with.

    Raises
    ------
    ValueError
        Names the setting and what to do.
    """
    if getattr(hparams.get("encoder"), "chunk_size", None):
        raise ValueError(
            "chunk_size is set: it is for streams, and pretrained ears hear whole "
            "utterances. Leave it out, or use log-mel features"
        )
    if not hparams.get("ears_cache"):
        return
    loud = hparams.get("silence_seconds") and hparams.get("silence_probability")
    changed = {
        f"silence_seconds is {hparams.get('silence_seconds')}": loud
        and "--silence_seconds 0",
        "random_gain is there": hparams.get("random_gain") is not None
        and "a yaml without it",
        f"ears_trained is {hparams.get('ears_trained')}": hparams.get("ears_trained")
        and "--ears_trained 0",
    }
    for fault, remedy in changed.items():
        if remedy:
            raise ValueError(
                f"ears_cache is set and {fault}: cached states are those of whole, "
                f"unchanged recordings and of frozen ears. Run with {remedy}, or with "
                "--ears_cache null"
            )
