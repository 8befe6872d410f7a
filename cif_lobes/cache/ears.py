"""States of pretrained ears, computed once: no audio is read and no encoder run again.

The format is a teacher's. The states are those of `cif_lobes.nets.ears.PretrainedEars`'
`listen`, before anything that learns. They belong to whole recordings, unchanged or at
some other speeds; what else changes waveforms in training is refused together with a
cache (`cif_lobes.runs.ears`).
"""

import math
from typing import NamedTuple

import torch
from speechbrain.augment.time_domain import SpeedPerturb

from cif_lobes.cache.speech_states import (
    SpeechStates,
    open_for,
    options,
    problems_of,
    refuse,
)
from cif_lobes.data.batches import at_speed
from cif_lobes.data.manifest import Utterance, read_manifest


class Perturbed(NamedTuple):
    """An utterance at another speed."""

    of: Utterance
    speed: float  # % of the original one

    @property
    def id(self):
        """str: of the states."""
        return at_speed(self.of.id, self.speed)

    @property
    def duration(self):
        """float: seconds."""
        return self.of.duration * 100 / self.speed


class EarsStates(SpeechStates):
    """Pretrained ears hear the recordings.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: manifests, ears, ears_layers, ears_silence_seconds, sample_rate,
        batch_seconds, device; optionally speeds.

    Raises
    ------
    ValueError
        If 100 is none of the speeds.
    """

    tolerance = 0.02  # of a state's length: bfloat16 moves it by 0.4 %
    setting, name = "ears_layers", "ears"

    def __init__(self, hparams):
        super().__init__(hparams)
        speeds = hparams.get("speeds", [100])
        if 100 not in speeds:
            raise ValueError(
                f"speeds is {speeds}: 100 must be among them, which is what is validated "
                "and tested on"
            )
        rate = hparams["sample_rate"]
        self.perturb = {s: SpeedPerturb(rate, [s]) for s in speeds if s != 100}
        copies = {
            at_speed(key, speed): Perturbed(utterance, speed)
            for key, utterance in self.utterances.items()
            for speed in self.perturb
        }
        self.keys |= {
            at_speed(utt_id, speed): at_speed(key, speed)
            for utt_id, key in [*self.keys.items()]
            for speed in self.perturb
        }
        every = {**self.utterances, **copies}
        longest_first = sorted(every, key=lambda key: -every[key].duration)
        self.utterances = {key: every[key] for key in longest_first}

    def read(self, utterance):
        """The waveform [samples] that is heard."""
        if not isinstance(utterance, Perturbed):
            return super().read(utterance)
        signal = super().read(utterance.of)
        return self.perturb[utterance.speed](signal[None])[0]

    def count_samples(self, utterance):
        """Samples of `read`, from the file's header if that can be trusted."""
        if not isinstance(utterance, Perturbed):
            return super().count_samples(utterance)
        (resample,) = self.perturb[utterance.speed].resamplers
        common = math.gcd(resample.new_freq, resample.orig_freq)
        count = super().count_samples(utterance.of)
        count = count * (resample.new_freq // common) / (resample.orig_freq // common)
        return int(torch.ceil(torch.as_tensor(count)))  # in float32, as torchaudio does

    def load(self):
        """Read the encoder; refuse layers that it does not have."""
        super().load()
        self.notes["speeds"] = sorted({100, *self.perturb})

    def identify(self):
        """Attributes that decide the states."""
        return identity_of(self.teacher, self.layers)

    def check(self, cache):
        """A cache may have more layers than are asked for; all are computed again."""
        also = ["speeds"] if self.perturb else []
        _check(cache, self.teacher, self.keys, self.hparams, also)
        self.layers = cache.attributes["layer"]

    def describe_source(self, made):
        """Lines on the ears, of a cache's attributes."""
        return [
            f"  ears      {made['ears']}, weights {made['ears_weights']}",
            f"  layers    {', '.join(map(str, made['layer']))}",
            f"  silence   {made['silence_samples']:,} samples behind each utterance",
            f"  speeds    {', '.join(map(str, made.get('speeds', [100])))} %",
        ]


def identity_of(encoder, layers):
    """Attributes that decide the states."""
    return {
        "ears_weights": encoder.weights_hash,
        "layer": sorted(layers),
        "silence_samples": encoder.silence or 0,
    }


def open_ears_states(path, encoder, manifests, settings):
    """A cache that serves all that a run asks for.

    Arguments
    ---------
    path : str
        From `extract_teacher.py build`.
    encoder : cif_lobes.nets.speech_encoder.SpeechEncoder
        The ears that the states must be of.
    manifests : dict of str to str
        csv files of "train", validation and test; "train" is heard at all speeds.
    settings : dict
        What extract_teacher.py would be asked for: ears, ears_layers (in this order),
        ears_silence_seconds, manifests, speeds.

    Returns
    -------
    TeacherCache
        Of states [T, L, H] by utterance id.

    Raises
    ------
    ValueError
        If it is of other ears, layers, recordings or speeds.
    """
    cache, keys = open_for(path, [*manifests.values()])
    unheard, wanted = _unheard(cache, keys, manifests, settings["speeds"])
    _check(cache, encoder, keys, settings, ["speeds"] if unheard else [])
    if unheard:
        raise ValueError(
            f"ears cache {cache.path} has not heard {unheard[0]} ({len(unheard):,} of "
            f"{wanted:,} are missing). Train with --speeds '[100]', or run: "
            f"{cache.build_command} {options(settings, ['speeds'])} --overwrite True"
        )
    cache.use_layers(list(settings["ears_layers"]))
    return cache


def _unheard(cache, keys, manifests, speeds):
    """What a cache has not heard of the training set at other speeds, and of how many."""
    wanted = {
        at_speed(u.id, speed): at_speed(keys[u.id], speed)
        for speed in ({*speeds} - {100} if "train" in manifests else ())
        for u in read_manifest(manifests["train"])
    }
    unheard = [name for name, key in wanted.items() if not cache.has(name, key)]
    return unheard, len(wanted)


def _check(cache, encoder, keys, settings, also):
    """Refuse a cache of other ears, layers or recordings.

    The command that made it would make it again: it is offered with the settings that
    differ, and those named in `also`.
    """
    stored, identity = cache.attributes.get("layer", []), identity_of(encoder, [])
    lacking = sorted({*settings["ears_layers"]} - {*stored})
    silence = {"silence_samples": identity["silence_samples"]}
    found = {
        "ears": problems_of(cache, {}, ears_weights=identity["ears_weights"]),
        "ears_silence_seconds": problems_of(cache, {}, **silence),
        "ears_layers": [
            f"it has layers {stored}, ears_layers names {n}" for n in lacking[:1]
        ],
        "manifests": problems_of(cache, keys),
    }
    refuse(cache, "ears", found, settings, also)
