"""Files that break off, or whose samples are no numbers, are found and named."""

import pickle

import numpy as np
import pytest
import soundfile

from cif_lobes.data import audio_files, manifest
from cif_lobes.data.audio_files import UnusableAudio, examine, read
from cif_lobes.data.batches import read_utterance
from cif_lobes.data.manifest import Utterance


def noise(path, seconds=4.0, **kwargs):
    rng = np.random.default_rng(0)
    samples = 0.1 * rng.standard_normal(round(seconds * 16000))
    soundfile.write(path, samples, 16000, **kwargs)
    return path


def halve(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "aiff", "ogg", "opus"])
def test_a_file_that_breaks_off(tmp_path, suffix):
    format = {"opus": {"format": "OGG", "subtype": "OPUS"}}.get(suffix, {})
    path = noise(tmp_path / f"a.{suffix}", **format)
    assert examine(path) == (4.0, "")
    assert len(read(path)[0]) == 64000
    halve(path)
    seconds, fault = examine(path)
    assert seconds < 3 and ("breaks off after" in fault or "cannot be decoded" in fault)
    with pytest.raises(UnusableAudio, match=f"utterance u1 .*a.{suffix}: it .*ffmpeg"):
        read_utterance(Utterance("u1", 4.0, str(path), "", "hi"), 16000)


@pytest.mark.parametrize("lost", [1, 500, 2000])
def test_an_ogg_that_lacks_the_end_of_its_last_page(tmp_path, lost):
    path = noise(tmp_path / "a.ogg", seconds=0.5)
    data = path.read_bytes()
    assert len(data) < audio_files.OGG_PAGE and examine(path) == (0.5, "")
    path.write_bytes(data[:-lost])
    assert "is not the end" in examine(path)[1]
    # What stands behind the last page, such as a tag, is not its part.
    path.write_bytes(data + b"TAG")
    assert examine(path)[1] == ""


def test_headers_tell_of_a_wav_that_breaks_off(tmp_path):
    path = halve(noise(tmp_path / "a.wav"))
    u, _, problem = manifest.measure(Utterance("u1", None, str(path), "", "hi"))
    assert problem == ("broken audio", "it breaks off after 2.0 of 4.0 s")


def test_a_wav_out_of_a_pipe_is_whole(tmp_path):
    """Its header promises all the bytes that there can be."""
    path = noise(tmp_path / "a.wav")
    data = bytearray(path.read_bytes())
    at = data.index(b"data")
    data[at + 4 : at + 8] = b"\xff" * 4
    path.write_bytes(data)
    assert examine(path) == (4.0, "")


@pytest.mark.parametrize("bitrate_mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_without_its_length_is_whole(tmp_path, bitrate_mode):
    """libsndfile guesses its length from the first frame, which here is of silence."""
    rng = np.random.default_rng(0)
    samples = np.append(np.zeros(32000), 0.1 * rng.standard_normal(32000))
    path = tmp_path / "a.mp3"
    soundfile.write(
        path, samples, 16000, bitrate_mode=bitrate_mode, compression_level=0.5
    )
    data = path.read_bytes()
    path.write_bytes(data[data.index(b"\xff\xf3", 4) :])
    if bitrate_mode == "VARIABLE":
        assert soundfile.info(path).duration > 6
    seconds, fault = examine(path)
    assert fault == "" and seconds == pytest.approx(4, abs=0.2)
    assert len(read(path)[0]) == round(seconds * 16000)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(tmp_path, value, monkeypatch):
    samples = np.zeros((48000, 2), "float32")
    samples[40000, 1] = value
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 16000, "FLOAT")
    monkeypatch.setattr(audio_files, "BLOCK", 30000)
    said = r"sample 40,000 \(2.50 s\) is NaN or infinite"
    assert examine(path)[1] == said.replace("\\", "")
    with pytest.raises(UnusableAudio, match=f"a.wav: {said}"):
        read(path)
    with pytest.raises(UnusableAudio, match=said):
        read(path, offset=2.0, duration=1.0)
    assert len(read(path, offset=0.0, duration=2.0)[0]) == 32000


def test_a_stretch_beyond_the_end(tmp_path):
    path = noise(tmp_path / "a.wav")
    with pytest.raises(UnusableAudio, match="a.wav: it ends before 5.0 s"):
        read(path, offset=3.0, duration=2.0)


def test_the_message_survives_a_worker():
    """What torch makes of an exception in a worker, and pickling."""
    error = UnusableAudio("utterance u1 cannot be read: a.wav: no")
    name = f"{UnusableAudio.__module__}.UnusableAudio"
    again = UnusableAudio(f"Caught it.\nTraceback:\n  ...\n{name}: {error}\n")
    assert str(again) == str(pickle.loads(pickle.dumps(error))) == str(error)
