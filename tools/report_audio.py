"""Recordings and fires of utterances, for the page of tools/report.py."""

import base64
import io
import os
import pathlib
import urllib.parse

import soundfile

from cif_lobes.data.audio_files import UnusableAudio, read
from cif_lobes.data.batches import read_utterance
from cif_lobes.data.manifest import measure
from cif_lobes.inference.export import open_run
from cif_lobes.inference.fires import find_fires
from cif_lobes.inference.recognizer import CIFRecognizer

LONGEST = 60  # seconds of a recording that is embedded, or whose fires are drawn


class Recordings:
    """Audio of the page: embedded up to a total size, the rest linked.

    What a manifest names is embedded as decoded and encoded again: a manifest of someone
    else may name any file, and nothing but sound gets from it into the page.

    Arguments
    ---------
    page : str
        The page's file, for links from it.
    megabytes : float
        Of audio in the page at most, MB (10^6 bytes).

    Attributes
    ----------
    embedded : list of str
        Encoded recordings, in base64.
    missing : dict of str to str
        By utterance, why it has no audio.
    """

    def __init__(self, page, megabytes):
        self.folder = pathlib.Path(page).resolve().parent
        self.left = megabytes * 1e6
        # MP3 is a quarter of FLAC's size, and every browser plays it.
        self.format = "MP3" if "MP3" in soundfile.available_formats() else "FLAC"
        self.embedded, self.missing, self.known = [], {}, {}

    def add(self, u):
        """Where the page finds an utterance.

        Arguments
        ---------
        u : cif_lobes.data.manifest.Utterance

        Returns
        -------
        int, str or None
            Its place in `embedded`, a link, or None if there is no such file.
        """
        key = (u.wav, u.offset, u.duration)
        if key not in self.known:
            self.known[key] = self._find(u)
        if self.known[key] is None:
            self.missing.setdefault(u.id, f"{u.wav} is gone or cannot be decoded")
        return self.known[key]

    def _find(self, u):
        if not os.path.isfile(u.wav):
            return None
        if self.left > 0 and (u.duration or 0) <= LONGEST:
            try:
                encoded = self._encode(u)
            except UnusableAudio:
                return None
            if encoded and len(encoded) <= self.left:
                self.left -= len(encoded)
                self.embedded.append(encoded)
                return len(self.embedded) - 1
            self.left = 0 if encoded else self.left
        link = urllib.parse.quote(os.path.relpath(u.wav, self.folder))
        if u.offset is not None:
            end = "" if u.duration is None else f",{u.offset + u.duration:g}"
            link += f"#t={u.offset:g}{end}"
        return link

    def _encode(self, u):
        """A recording in base64; None if it can only be linked."""
        stretch = () if u.offset is None else (u.offset, u.duration)
        if not stretch and (measure(u)[0].duration or 0) > LONGEST:
            return None  # longer than its manifest says
        samples, rate = read(u.wav, *stretch)
        file = io.BytesIO()
        try:
            soundfile.write(file, samples, rate, format=self.format)
        except soundfile.SoundFileError:
            return None  # a sample rate that the format has not
        return base64.b64encode(file.getvalue()).decode()


def open_recognizer(folder, figures, device):
    """The recogniser of a run, decoding as a set of it was scored.

    Arguments
    ---------
    folder : pathlib.Path
        Run folder.
    figures : dict
        What run.json says of the set.
    device : str

    Returns
    -------
    CIFRecognizer
    """

    def setting(name, *kinds):
        value = figures.get(name)
        return value if isinstance(value, kinds) else None

    changes = {"beam_size": setting("beam", int)}
    changes["ctc_weight_decode"] = setting("ctc_weight_decode", int, float)
    changes["tail_threshold"] = setting("tail_threshold", int, float)
    changes = {name: value for name, value in changes.items() if value is not None}
    average = figures.get("average")
    hparams = open_run(
        folder,
        changes,
        average if average in ("last", "best") else None,
        setting("num_checkpoints", int),
    )
    return CIFRecognizer(hparams, device)


def compute_fires(recognizer, utterances):
    """Weights and fires of utterances.

    Arguments
    ---------
    recognizer : CIFRecognizer
    utterances : iterable of cif_lobes.data.manifest.Utterance

    Returns
    -------
    dict
        The clock of the encoder frames, the threshold, and by utterance its text,
        weights in thousandths, and fires as token and end in seconds. Utterances that
        cannot be read, or are too long to draw, are left out.
    """
    found = {}
    for u in utterances:
        if (u.duration or 0) > LONGEST:
            continue
        try:
            signal = read_utterance(u, recognizer.sample_rate)
            if len(signal) > LONGEST * recognizer.sample_rate:
                continue
            fires = find_fires(recognizer, signal)
        except (ValueError, OSError):
            continue  # as its recording, of which the page says so
        found[u.id] = {
            "text": fires.text,
            "alpha": [round(1000 * weight) for weight in fires.alpha],
            "fires": [[span.token, round(span.end, 3)] for span in fires.spans],
        }
    start, step = recognizer.clock
    return {
        "start": start,
        "step": step,
        "threshold": float(recognizer.fire.cif.threshold),
        "utterances": found,
    }
