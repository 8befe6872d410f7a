"""Chosen layers of a speech teacher in a teacher cache, one state per frame and layer.

Running the teacher in every epoch takes more time, keeping its states more disk: all
twelve layers of 100 hours take 332 GB in float16, three take 83 GB. What is cached
belongs to whole, unchanged waveforms, which are what `training.fithubert` trains on.
"""

import json
import os
import shlex

import soundfile
import torch
from speechbrain.utils.distributed import run_on_main
from torch.nn.utils.rnn import pad_sequence

from cif_lobes.cache.audio_keys import audio_keys, decoded_of, memory_of
from cif_lobes.cache.build import TeacherStates, count_rows
from cif_lobes.cache.reader import TeacherCache
from cif_lobes.data.batches import read_utterance
from cif_lobes.data.manifest import read_manifest, read_rows
from cif_lobes.data.validation import take_usable
from cif_lobes.nets.pretrained import load_encoder

EXACT = (
    "WAV",
    "WAVEX",
    "FLAC",
)  # formats whose headers count samples; an mp3's guesses


class SpeechStates(TeacherStates):
    """A speech encoder hears the recordings; a key is a recording's hash.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: manifests, max_rejected, teacher, layers, teacher_silence_seconds,
        sample_rate, batch_seconds, device; optionally `listing`, where rejected
        recordings are listed, None for nowhere: by default beside the cache.

    Raises
    ------
    ValueError
        If more recordings than max_rejected allows cannot be decoded.
    """

    setting = "layers"
    name = "teacher"  # the setting that names the encoder, and what it is in messages

    def __init__(self, hparams):
        super().__init__(hparams)
        self.layers = sorted(hparams[self.setting])
        # As training rejects them: one broken clip in a thousand must not stop it.
        heard = take_usable(
            [u for m in hparams["manifests"] for u in read_rows(m)],
            "manifests",
            hparams.get("listing", f"{hparams['cache']}.rejected.csv"),
            hparams["max_rejected"],
            decoded_of(hparams["cache"]),
        )
        # Those of like durations side by side, for batches with little padding.
        utterances = sorted(heard, key=lambda u: (-u.duration, u.id))
        self.keys = audio_keys(utterances, memory_of(hparams["cache"]))
        self.utterances = {self.keys[u.id]: u for u in utterances}

    def load(self):
        """Read the encoder; refuse layers that it does not have."""
        hparams, name = self.hparams, self.name
        silence = hparams[f"{name}_silence_seconds"]
        encoder = self.teacher = load_encoder(hparams[name], silence, name)
        outside = [n for n in self.layers if not 1 <= n <= encoder.num_layers]
        if outside:
            raise ValueError(
                f"{self.setting}: {outside[0]} is none of the layers 1 to "
                f"{encoder.num_layers} of the {name}"
            )
        self.shape = (len(self.layers), encoder.width)
        self.identity = {**self.identify(), "dtype": hparams["dtype"]}
        self.notes = {name: str(hparams[name])}

    def identify(self):
        """Attributes that decide the states."""
        return {**identity_of(self.teacher), "layers": self.layers}

    def plan(self, utterance_of):
        """Utterances, the longest first: frames of each; refuses those too long."""
        encoder, rate = self.teacher, self.hparams["sample_rate"]
        found = {key: u for key, u in self.utterances.items() if key in utterance_of}
        counts = {key: self.count_samples(u) for key, u in found.items()}
        seconds = {found[key].id: count / rate for key, count in counts.items()}
        check_durations(seconds, encoder, rate, self.name)
        return {
            key: int(encoder.output_lengths(torch.tensor(count)))
            for key, count in counts.items()
        }

    def announce(self, rows):
        """How large the file will be."""
        print(
            f"{self.hparams['cache']}: {count_rows(rows):,} frames, layers {self.layers}: "
            f"{self.gigabytes(rows):.2f} GB",
            flush=True,
        )

    def answers(self, keys):
        """Batches of utterances: states [T, L, H] of each."""
        device = self.hparams["device"]
        teacher, left = self.teacher.to(device), [self.utterances[key] for key in keys]
        while left:
            # The longest comes first, so this many fit, padding included.
            count = max(1, int(self.hparams["batch_seconds"] / left[0].duration))
            batch, left = left[:count], left[count:]
            signals = [self.read(utterance) for utterance in batch]
            states, x_lengths = teacher(
                pad_sequence(signals, batch_first=True).to(device),
                torch.tensor([len(s) for s in signals], device=device),
            )
            chosen = torch.stack([states[n] for n in self.layers], dim=2).cpu()
            yield [x[:T] for x, T in zip(chosen, x_lengths.tolist(), strict=True)]

    def read(self, utterance):
        """The waveform [samples] that is heard."""
        return read_utterance(utterance, self.hparams["sample_rate"])

    def count_samples(self, utterance):
        """Samples of `read`, from the file's header if that can be trusted."""
        rate, info = self.hparams["sample_rate"], soundfile.info(utterance.wav)
        if info.format not in EXACT:
            return len(read_utterance(utterance, rate))
        count = info.frames
        if utterance.offset is not None:
            count -= round(utterance.offset * info.samplerate)
            count = min(count, round(utterance.duration * info.samplerate))
        return -(-count * rate // info.samplerate)  # as resampling rounds

    def check(self, cache):
        """A cache may have more layers than are asked for; all are computed again."""
        _check(cache, self.teacher, self.keys, self.hparams)
        self.layers = cache.attributes["layers"]

    def describe(self, cache):
        """Whose states, of which layers, how much, and what does not fit."""
        made, keys = cache.attributes, self.keys
        covered = sum(utt_id in cache for utt_id in keys)
        size = os.path.getsize(cache.path)
        return [
            cache.path,
            *self.describe_source(made),
            f"  states    {cache.total_states:,} frames x "
            f"{' x '.join(map(str, cache.shape))} {made['dtype']}",
            f"  coverage  {covered:,} of {len(keys):,} utterances of the manifests; "
            f"{len(cache):,} in the cache",
            f"  size      {size:,} bytes, {size / len(cache) / 1000:.1f} kB per utterance",
            f"  made by   {made['command']}",
            *(f"  PROBLEM   {p}" for p in self.problems(cache)),
        ]

    def describe_source(self, made):
        """Lines on the teacher, of a cache's attributes."""
        return [
            f"  teacher   {made['teacher']}, weights {made['teacher_weights']}",
            f"  layers    {', '.join(map(str, made['layers']))}",
        ]

    def problems(self, cache):
        """What of a cache does not fit the manifests."""
        return problems_of(cache, self.keys)


def open_for(path, manifests):
    """A cache, and the keys that the recordings of some manifests have; as a pair.

    Of several processes, one reads the recordings.
    """
    utterances = [u for m in manifests for u in read_manifest(m)]
    keys = run_on_main(audio_keys, args=[utterances, memory_of(path)])
    return TeacherCache(path), keys


def identity_of(teacher):
    """Attributes of a cache that say whose states it holds."""
    identity = {"teacher_weights": teacher.weights_hash}
    # Caches of others, made before, do not name it.
    if teacher.silence is not None:
        identity["silence_samples"] = teacher.silence
    return identity


def check_durations(durations, encoder, sample_rate, name):
    """Refuse utterances that are too long for an encoder, before any is heard.

    Arguments
    ---------
    durations : dict of str to float
        Seconds of each utterance.
    encoder : cif_lobes.nets.speech_encoder.SpeechEncoder
    sample_rate : int
        Hz.
    name : str
        What it is to who asks: ears or teacher.

    Raises
    ------
    ValueError
        Names the longest.
    """
    if encoder.max_samples is None or not durations:
        return
    most = encoder.max_samples / sample_rate
    longest = max(durations, key=durations.get)
    if durations[longest] > most:
        raise ValueError(
            f"utterance {longest} of {durations[longest]:.1f} s is too long for the {name}: "
            f"{most:.1f} s at most, Whisper's 30 s without {name}_silence_seconds. Cut it at "
            "pauses, or leave it out"
        )


def check_present(path, settings, name, yaml):
    """Refuse to go on without a finished cache, before any recording is read.

    Arguments
    ---------
    path : str
    settings : dict
        What extract_teacher.py would be asked for.
    name : str
        What it is a cache of: ears or teacher.
    yaml : str
        Which extract_*.yaml makes it.

    Raises
    ------
    FileNotFoundError
        With the command that makes it.
    """
    if os.path.exists(path):
        return
    command = (
        f"python extract_teacher.py <hparams/extract_{yaml}*.yaml> {options(settings)} "
        f"--cache {shlex.quote(str(path))}"
    )
    if os.path.exists(f"{path}.partial"):
        raise FileNotFoundError(
            f"{name} cache {path} is not finished, {path}.partial is there: its build was "
            "interrupted or still runs. Run its command again, and it goes on where it "
            f"stopped: {command}, or train with --{name}_cache null"
        )
    raise FileNotFoundError(
        f"{name} cache {path} does not exist. Run: {command}, or train with "
        f"--{name}_cache null"
    )


def open_speech_cache(path, teacher, settings):
    """A cache that serves all that a training asks for.

    Arguments
    ---------
    path : str
        From `extract_teacher.py build`.
    teacher : cif_lobes.nets.speech_encoder.SpeechEncoder
        The one that the states must be of.
    settings : dict
        What extract_teacher.py would be asked for: teacher, layers (that the student
        learns), teacher_silence_seconds, manifests (of training and validation).

    Returns
    -------
    TeacherCache
        Of states [T, L, H] by utterance id; `attributes["layers"]` names the L layers.

    Raises
    ------
    FileNotFoundError
        If there is none; see `check_present`.
    ValueError
        If it is of other weights, layers or recordings.
    """
    check_present(path, settings, "teacher", "hubert")
    cache, keys = open_for(path, settings["manifests"])
    _check(cache, teacher, keys, settings)
    return cache


def _check(cache, teacher, keys, settings):
    """Refuse a cache of other weights, layers or recordings."""
    stored, silence = cache.attributes.get("layers", []), teacher.silence
    missing = sorted({*settings["layers"]} - {*stored})
    found = {
        "teacher": problems_of(cache, {}, teacher_weights=teacher.weights_hash),
        "teacher_silence_seconds": problems_of(cache, {}, silence_samples=silence),
        "layers": [
            f"it has layers {stored}, layer {n} is taught as well" for n in missing[:1]
        ],
        "manifests": problems_of(cache, keys),
    }
    refuse(cache, "teacher", found, settings)


def problems_of(cache, keys, **expected):
    """`TeacherCache.problems`, of a cache of speech: what it calls transcripts is audio."""
    found = cache.problems(keys, **expected)
    return [
        p.replace("transcripts differ", "recordings differ").partition(": the manif")[0]
        for p in found
    ]


def refuse(cache, name, found, settings, also=()):
    """Refuse a cache for what was found of it, if anything was.

    The command that made it would make it again: it is offered with what differs.

    Arguments
    ---------
    cache : TeacherCache
    name : str
        What it is a cache of: ears or teacher.
    found : dict of str to list of str
        Problems, by the setting that each is of.
    settings : dict
        Values that those settings are to have.
    also : list of str
        Settings that are to be said besides.

    Raises
    ------
    ValueError
    """
    problems = [problem for problems in found.values() for problem in problems]
    if problems:
        names = [*(setting for setting in found if found[setting]), *also]
        raise ValueError(
            f"{name} cache {cache.path}: {'; '.join(problems)}. Run: {cache.build_command} "
            f"{options(settings, names)} --overwrite True"
        )


def options(settings, names=None):
    """Settings of a yaml as a command line has them; by default all."""
    words = []
    for name in settings if names is None else names:
        value = settings[name]
        is_text = isinstance(value, str | os.PathLike)
        # JSON is YAML, too.
        value = str(value) if is_text else json.dumps(value, separators=(",", ":"))
        words += [f"--{name}", value]
    return shlex.join(words)
