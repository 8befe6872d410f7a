"""Bad data, for docs/errors.md."""

import numpy as np
import soundfile

from cif_lobes.data.batches import read_utterance
from cif_lobes.data.formats import read_transcripts
from cif_lobes.data.manifest import Utterance, read_manifest
from cif_lobes.data.validation import Limits, prepare_own_data

TITLE = "Data"


def _csv(folder, *lines, encoding="utf-8"):
    """A csv beside one good recording, a.wav, of a second."""
    soundfile.write(folder / "a.wav", np.full(16000, 0.1), 16000)
    path = folder / "train.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def _case(*lines, **kwargs):
    return lambda folder: read_manifest(_csv(folder, *lines, **kwargs))


def _own(folder, row, language="en"):
    """Half of the rows of one's own data cannot be used."""
    path = _csv(folder, "ID,wav,wrd", "u1,a.wav,hello", row)
    (folder / "broken.wav").write_bytes(b"RIFF, but no more")
    (folder / "empty.wav").touch()
    whole = (folder / "a.wav").read_bytes()
    (folder / "half.wav").write_bytes(whole[: len(whole) // 2])
    samples = np.full(16000, 0.1, "float32")
    soundfile.write(folder / "half.flac", samples * np.linspace(-1, 1, 16000), 16000)
    whole = (folder / "half.flac").read_bytes()
    (folder / "half.flac").write_bytes(whole[: len(whole) // 2])
    samples[8000] = np.nan
    soundfile.write(folder / "nan.wav", samples, 16000, "FLOAT")
    prepare_own_data({"train": path}, folder / "save", language)


def _read_nan(folder):
    samples = np.full(16000, np.inf, "float32")
    soundfile.write(folder / "nan.wav", samples, 16000, "FLOAT")
    read_utterance(Utterance("u2", 1.0, str(folder / "nan.wav"), "", "hello"), 16000)


def _transcripts(folder):
    path = folder / "transcript.txt"
    path.write_text("u1 hello\nu2 你好\n", encoding="gbk")
    read_transcripts(path)


def _json(folder):
    (folder / "m.json").write_text('{"u1": {"wav": "a.wav", "length": 1.0}}')
    read_manifest(folder / "m.json")


def _reject(row):
    return lambda folder: _own(folder, row)


def _header_only(folder):
    path = _csv(folder, "ID,duration,wav,spk_id,wrd")
    prepare_own_data({"train": path}, folder / "save", "en")


CASES = {
    "no `manifests/train.csv`": lambda f: read_manifest(f / "manifests" / "train.csv"),
    "a csv of a header only": _header_only,
    "a csv without the column `wrd`": _case("ID,wav", "u1,a.wav"),
    "a text with a comma and no quotes": _case("ID,wav,wrd", "u1,a.wav,well, no"),
    "a csv in GBK": _case("ID,wav,wrd", "u1,a.wav,你好", encoding="gbk"),
    "transcripts of a corpus in GBK": _transcripts,
    "a json without texts": _json,
    "start and stop in seconds": _case("ID,wav,wrd,start,stop", "u1,a.wav,hi,0.5,1.0"),
    "a stretch beyond the end": _case("ID,wav,wrd,offset", "u1,a.wav,hi,7.5"),
    "two rows of one id": _case("ID,wav,wrd", "u1,a.wav,yes", "u1,a.wav,no"),
    "a recording that is not there": _reject("u2,lost.wav,hello"),
    "a recording of 0 bytes": _reject("u2,empty.wav,hello"),
    "a file that is no audio": _reject("u2,broken.wav,hello"),
    "a wav that breaks off": _reject("u2,half.wav,hello"),
    "a flac that breaks off": _reject("u2,half.flac,hello"),
    "a recording with a NaN": _reject("u2,nan.wav,hello"),
    "the same, where it is read": _read_nan,
    "a row without text": _reject("u2,a.wav,"),
    "more words than can be spoken": _reject(f"u2,a.wav,{'a ' * 20}"),
    "`check_audio: some`": lambda folder: Limits("en", check_audio="some"),
    "`language: fr`": lambda folder: _own(folder, "u2,a.wav,oui", language="fr"),
}
