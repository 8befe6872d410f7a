"""States of pretrained ears, computed once: no audio is read and no encoder run again.

The format is a teacher's. The states are those of `cif_lobes.nets.ears.PretrainedEars`'
`listen`, before anything that learns. They belong to whole, unchanged recordings: what
changes waveforms in training is refused together with a cache (`cif_lobes.runs.ears`).
"""

from cif_lobes.cache.speech_states import SpeechStates, open_for
from cif_lobes.nets.pretrained import load_encoder
from cif_lobes.nets.speech_encoder import WhisperEars


class EarsStates(SpeechStates):
    """Pretrained ears hear the recordings.

    Arguments
    ---------
    hparams : dict
        The loaded yaml: manifests, ears, ears_layers, ears_silence_seconds, sample_rate,
        batch_seconds, device.
    """

    tolerance = 0.02  # of a state's length: bfloat16 moves it by 0.4 %
    setting = "ears_layers"

    def load(self):
        """Read the encoder; refuse layers that it does not have, and long utterances."""
        hparams, layers = self.hparams, self.layers
        encoder = load_encoder(hparams["ears"], hparams["ears_silence_seconds"])
        self.teacher = encoder
        outside = [n for n in layers if not 1 <= n <= encoder.num_layers]
        if outside:
            raise ValueError(
                f"ears_layers: {outside[0]} is none of the ears', 1 to "
                f"{encoder.num_layers}"
            )
        utterances = self.utterances.values()
        check_durations(utterances, encoder.max_samples, hparams["sample_rate"])
        self.shape = (len(layers), encoder.width)
        self.identity = {**identity_of(encoder, layers), "dtype": hparams["dtype"]}
        self.notes = {"ears": str(hparams["ears"])}

    def check(self, cache):
        """A cache may have more layers than are asked for; all are computed again."""
        _check(cache, self.teacher, self.layers, self.keys)
        self.layers = cache.attributes["layer"]

    def describe_source(self, made):
        """Lines on the ears, of a cache's attributes."""
        return [
            f"  ears      {made['ears']}, weights {made['ears_weights']}",
            f"  layers    {', '.join(map(str, made['layer']))}",
            f"  silence   {made['silence_samples']:,} samples behind each utterance",
        ]

    def problems(self, cache):
        """What of a cache does not fit the manifests."""
        return _problems(cache, self.keys)


def identity_of(encoder, layers):
    """Attributes that decide the states."""
    silence = encoder.silence if isinstance(encoder, WhisperEars) else 0
    return {
        "ears_weights": encoder.weights_hash,
        "layer": sorted(layers),
        "silence_samples": silence,
    }


def open_ears_cache(path, encoder, layers, manifests):
    """A cache that serves all that a run asks for.

    Arguments
    ---------
    path : str
        From `extract_teacher.py build`.
    encoder : cif_lobes.nets.speech_encoder.SpeechEncoder
        The ears that the states must be of.
    layers : list of int
        Those wanted, in this order.
    manifests : iterable of str
        csv files of training, validation and test.

    Returns
    -------
    TeacherCache
        Of states [T, L, H] by utterance id.

    Raises
    ------
    ValueError
        If it is of other ears, layers or recordings.
    """
    cache, keys = open_for(path, manifests)
    _check(cache, encoder, layers, keys)
    cache.use_layers(list(layers))
    return cache


def check_durations(utterances, max_samples, sample_rate):
    """Refuse utterances that are too long for the ears, before any is heard.

    Arguments
    ---------
    utterances : iterable of cif_lobes.data.manifest.Utterance
    max_samples : int or None
    sample_rate : int
        Hz.

    Raises
    ------
    ValueError
        Names the longest.
    """
    longest = max(utterances, key=lambda u: u.duration)
    most = max_samples and max_samples / sample_rate
    if most and longest.duration > most:
        raise ValueError(
            f"utterance {longest.id} of {longest.duration:.1f} s is longer than these "
            f"ears hear: {most:.1f} s, Whisper's 30 s without ears_silence_seconds. Cut "
            "it at pauses, or leave it out"
        )


def _check(cache, encoder, layers, keys):
    """Refuse a cache of other ears, layers or recordings."""
    expected, stored = identity_of(encoder, layers), cache.attributes.get("layer", [])
    del expected["layer"]  # more than those will do
    problems = _problems(cache, keys, **expected)
    missing = sorted({*layers} - {*stored})
    if missing:
        problems.append(f"it has layers {stored}, ears_layers names {missing[0]}")
    if problems:
        raise ValueError(
            f"ears cache {cache.path}: {'; '.join(problems)}. With the ears and manifests "
            f"of now, run: {cache.build_command} --overwrite True"
        )


def _problems(cache, keys, **expected):
    """Those of the cache, which speaks of transcripts."""
    found = cache.problems(keys, **expected)
    return [
        p.replace("transcripts differ", "recordings differ").partition(": the manif")[0]
        for p in found
    ]
