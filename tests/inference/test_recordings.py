"""Recordings that can be read, and are not what they seem."""

import numpy as np
import pytest
import soundfile
from conftest import ROOT, load_module, speak

from cif_lobes.inference.recordings import (
    RHYTHM,
    is_steady,
    mix_down,
    read_blocks,
    rhythm,
)

no_speech = load_module(ROOT / "benchmarks/no_speech.py")
RATE = 16000
TIME = np.arange(3 * RATE) / RATE


def coloured(slope):
    """Noise whose power falls with frequency ** slope."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(3 * RATE))
    hertz = np.maximum(np.arange(len(spectrum)) / 3, 20)
    return np.fft.irfft(spectrum / hertz ** (slope / 2)).astype("float32")


def read(path, channel=None):
    return np.concatenate(list(read_blocks(path, channel)))


def test_what_is_left_of_a_file_is_read(tmp_path, caplog):
    path = tmp_path / "broken.wav"
    soundfile.write(path, speak("abcd"), RATE)
    read(path)
    assert not caplog.text
    path.write_bytes(path.read_bytes()[: -RATE * 2 // 4])  # 16 bit, a quarter second
    signal = read(path)
    assert len(signal) == len(speak("abcd")) - RATE // 4
    assert f"{path}: it breaks off after 0.9 of 1.2 s" in caplog.text
    soundfile.write(path, np.zeros(0), RATE)
    with pytest.raises(ValueError, match="no samples"):
        read(path)


def test_channels():
    speech, other = speak("abcd"), speak("dcba")
    both = np.stack([speech, other], axis=1)
    assert np.array_equal(mix_down(both), both.mean(axis=1))
    assert np.array_equal(mix_down(both, 2), other)
    for channel in 0, 3:
        with pytest.raises(ValueError, match=f"channel is {channel}, it has 2"):
            mix_down(both, channel)


def test_channels_in_opposite_phase(tmp_path):
    path, speech = tmp_path / "a.wav", speak("abcd")
    soundfile.write(path, np.stack([speech, -speech], axis=1), RATE, "FLOAT")
    with pytest.raises(ValueError, match="2 channels cancel each other"):
        read(path)
    assert np.array_equal(read(path, 1), speech)
    # Silence, one channel of many, and unrelated noise are no opposite phases.
    noise = np.random.default_rng(0).standard_normal((RATE, 16))
    for both in np.zeros((100, 2)), np.pad(speech[:, None], [(0, 0), (0, 7)]), noise:
        soundfile.write(path, both, RATE, "FLOAT")
        assert read(path).any() == both.any()


def test_blocks_are_the_file(tmp_path):
    signal = np.random.default_rng(0).standard_normal(25 * 1000).astype("float32") / 9
    soundfile.write(tmp_path / "a.wav", signal, 1000, "FLOAT")
    blocks = list(read_blocks(tmp_path / "a.wav"))
    assert [len(block) for block in blocks] == [10000, 10000, 5000]
    assert np.array_equal(np.concatenate(blocks), signal)


@pytest.mark.parametrize("gain", [1e-4, 1.0])
@pytest.mark.parametrize(
    "sound",
    [
        coloured(0),
        coloured(1),
        coloured(2),
        no_speech.chord(np.random.default_rng(0)),
        np.sin(2 * np.pi * 440 * TIME),
        np.ones(RATE),
    ],
    ids=["white", "pink", "brown", "chord", "tone", "offset"],
)
def test_what_is_steady(sound, gain):
    assert is_steady(gain * sound, RATE)


@pytest.mark.parametrize("gain", [1e-4, 1.0])
@pytest.mark.parametrize("sound", [coloured(0), coloured(1), np.ones(RATE)])
def test_what_is_steady_may_end(sound, gain):
    assert is_steady(np.concatenate([gain * sound, np.zeros(RATE)]), RATE)


def test_nothing_is_steady():
    for samples in 0, 1, 300, RATE:
        assert is_steady(np.zeros(samples, "float32"), RATE)
    assert is_steady(np.ones(1, "float32"), RATE)


@pytest.mark.parametrize("hertz, has", [(0.5, False), (4, True), (16, False)])
def test_rhythm_is_of_syllables(hertz, has):
    """White noise that gets louder and fainter, as fast as that."""
    sound = coloured(0) * (1 + 0.9 * np.sin(2 * np.pi * hertz * TIME))
    assert (rhythm(sound, RATE) > RHYTHM) == has


@pytest.mark.parametrize("text", ["ab", "abcdabcd"])
def test_speech_is_not_steady(text):
    speech = speak(text)
    assert not is_steady(speech, RATE)
    noise = 0.01 * coloured(0)
    assert not is_steady(np.concatenate([noise, speech, noise]), RATE)
