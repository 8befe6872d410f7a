"""Pretrained ears that do not hear, or do not teach, for docs/errors.md."""

import json
from types import SimpleNamespace
from unittest import mock

import numpy as np
import soundfile
from tiny_ears import FAMILIES, make_folder

from cif_lobes.cache.build import build
from cif_lobes.cache.ears import EarsStates, open_ears_states
from cif_lobes.cache.speech_states import (
    SpeechStates,
    check_present,
    open_speech_cache,
)
from cif_lobes.nets.ears import PretrainedEars
from cif_lobes.nets.kept_ears import find_ears
from cif_lobes.nets.pretrained import load_encoder
from cif_lobes.runs.ears import check_settings, load_ears, open_ears_cache


def _settings(**changes):
    return lambda folder: check_settings({"ears_cache": "ears.h5", **changes})


def _load(width=32, layers=(3,)):
    def load(folder):
        make_folder("hubert", folder / "hubert")
        PretrainedEars(width, list(layers)).load(str(folder / "hubert"))

    return load


def _missing(folder):
    note = {"hash": "b6a0e0e5a1d1c0f2", "source": "openai/whisper-base"}
    note["folder"] = str(folder / "results/ears" / note["hash"])
    (folder / "ears.json").write_text(json.dumps(note))
    find_ears(folder)


def _others(folder):
    (folder / "ears.json").write_text('{"hash": "00", "source": "a", "folder": "b"}')
    features = PretrainedEars(32, [3])
    make_folder("hubert", folder / "hubert")
    ears, out = str(folder / "hubert"), str(folder)
    load_ears({"features": features, "ears": ears, "output_folder": out})


def _states(folder, family="whisper", seconds=1.0, kind=EarsStates, **changes):
    """A cache of one recording, about to be built."""
    soundfile.write(
        folder / "a.wav", np.linspace(-0.1, 0.1, int(seconds * 16000)), 16000
    )
    csv = folder / "a.csv"
    csv.write_text(f"ID,duration,wav,spk_id,wrd\nu1,{seconds},a.wav,s,hi\n")
    settings = {
        "ears": FAMILIES[family],
        "ears_layers": [3],
        "ears_silence_seconds": 1.0,
        "teacher": FAMILIES[family],
        "layers": [3],
        "teacher_silence_seconds": 1.0,
        "max_rejected": 0.01,
        "cache": str(folder / "ears.h5"),
        "manifests": [str(csv)],
        "sample_rate": 16000,
        "batch_seconds": 60,
        "dtype": "float16",
        "overwrite": False,
        "device": "cpu",
        **changes,
    }
    return kind(settings)


def _cached(folder, change=lambda folder: None, **other):
    """Open the cache of one recording after something has changed."""
    states = _states(folder)
    _build(states, "recipes/AISHELL-1/hparams/extract_ears.yaml")
    change(folder)
    settings = _wanted(folder, **other)
    encoder = load_encoder(FAMILIES["whisper"], settings["ears_silence_seconds"])
    manifests = {"train": settings["manifests"][0]}
    open_ears_states(states.hparams["cache"], encoder, manifests, settings)


def _build(states, yaml):
    with mock.patch("sys.argv", ["extract_teacher.py", "build", yaml]):
        build(states)


def _taught(folder, **other):
    """Open a teacher's cache of one recording with other settings."""
    states = _states(folder, kind=SpeechStates)
    _build(states, "recipes/LibriSpeech/hparams/extract_hubert.yaml")
    settings = {**states.hparams, "teacher": "openai/whisper-base", **other}
    teacher = load_encoder(FAMILIES["whisper"], settings["teacher_silence_seconds"])
    open_speech_cache(states.hparams["cache"], teacher, settings)


def _lost(folder):
    """Extract from a csv that names a recording which is not there."""
    hparams = _states(folder, kind=SpeechStates).hparams
    with open(folder / "a.csv", "a", encoding="utf-8") as file:
        file.write("u2,1.0,b.wav,s,hi\n")
    SpeechStates(hparams)


def _wanted(folder, **changes):
    """What a run would ask extract_teacher.py for."""
    return {
        "ears": "openai/whisper-base",
        "ears_layers": [3],
        "ears_silence_seconds": 1.0,
        "manifests": [str(folder / "a.csv")],
        "speeds": [100],
        **changes,
    }


def _trained(folder):
    """What ColDec or a language model would read, of a run that trained its ears."""
    hparams = {"ears_cache": "ears.h5", "recognizer": "results/cif/1986"}
    open_ears_cache({**hparams, "features": PretrainedEars(32, [3], trained=1)}, {})


def _absent(folder, *there):
    """Look for a cache of which there are other files."""
    for name in there:
        (folder / name).touch()
    check_present(folder / "ears.h5", _wanted(folder), "ears", "ears")


def _record_again(folder):
    soundfile.write(folder / "a.wav", np.linspace(0.1, -0.1, 16000), 16000)


EARS = {
    "`--ears /models/none`": lambda folder: load_encoder(str(folder / "none")),
    "`--ears` names a text model": lambda folder: load_encoder({"model_type": "bert"}),
    "`--ears_width 768` with a narrow model": _load(width=768),
    "`--ears_layers '[12]'` with three layers": _load(layers=[12]),
    "a run whose ears are gone": _missing,
    "a run that goes on with others": _others,
    "`--ears_cache` with silence put in": _settings(
        silence_seconds=4.0, silence_probability=0.3
    ),
    "`--ears_cache` with random_gain": _settings(random_gain=1),
    "`--ears_cache` with `--ears_trained 4`": _settings(ears_trained=4),
    "`--ears_cache` for a recogniser without": lambda folder: open_ears_cache(
        {"ears_cache": "ears.h5", "recognizer": "results/cif/1986"}, {}
    ),
    "`--ears_cache` for a recogniser whose ears were trained": _trained,
    "pretrained ears with chunk_size": _settings(encoder=SimpleNamespace(chunk_size=8)),
    "40 s of speech for a Whisper": lambda f: build(_states(f, seconds=40.0)),
    "no ears cache": _absent,
    "an ears cache that is not finished": lambda f: _absent(f, "ears.h5.partial"),
    "a cache of the same id, recorded again": lambda f: _cached(f, _record_again),
    "a cache with other silence behind": lambda f: _cached(f, ears_silence_seconds=0.3),
    "a cache of other speeds": lambda f: _cached(f, speeds=[90, 100]),
    "a cache without speed 100": lambda f: _states(f, speeds=[90, 110]),
    "a cache without the layer": lambda f: _cached(f, ears_layers=[2]),
}

TEACHERS = {
    "no cache of a teacher": lambda folder: open_speech_cache(
        folder / "none.h5", None, {"teacher": "openai/whisper-base", "layers": [2, 3]}
    ),
    "a recording that is not there": _lost,
    "a cache of a Whisper that heard other silence": lambda f: _taught(
        f, teacher_silence_seconds=0.3
    ),
    "a cache without a layer that is taught": lambda f: _taught(f, layers=[2, 3]),
}

SECTIONS = {"Pretrained ears": EARS, "Speech encoders as teachers": TEACHERS}
