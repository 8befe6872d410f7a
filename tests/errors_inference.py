"""Recordings that cannot be recognised, for docs/errors.md."""

import io
import sys
from unittest import mock

import numpy as np
import soundfile
from safetensors.numpy import save_file

from cif_lobes.data.batches import read_audio
from cif_lobes.decoding.hotwords import read_hotwords
from cif_lobes.inference.export import use_parameters
from cif_lobes.inference.folders import check_installed
from cif_lobes.inference.inputs import Input, check_names, find_inputs
from cif_lobes.inference.live import microphone, raw_samples
from cif_lobes.inference.onnx import OnnxRecognizer, open_tokenizer
from cif_lobes.inference.recordings import read_blocks, waveform_blocks
from cif_lobes.inference.vad import WebRtcVad
from cif_lobes.inference.windows import check_longest

TITLE = "Recognition"


def _wave(*shape, dtype="float32"):
    return lambda folder: list(waveform_blocks(np.zeros(shape, dtype), 16000))


def _nan(folder):
    list(waveform_blocks(np.full(16000, np.nan), 16000))


def _file(samples, channel=None):
    def read(folder):
        soundfile.write(folder / "a.wav", samples, 16000)
        list(read_blocks(folder / "a.wav", channel))

    return read


def _cut_ogg(folder):
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    soundfile.write(folder / "a.ogg", noise, 16000)
    data = (folder / "a.ogg").read_bytes()
    (folder / "a.ogg").write_bytes(data[:-1])
    read_audio(folder / "a.ogg", 16000)


def _cut_parameters(folder):
    path = folder / "model.safetensors"
    save_file({"a": np.zeros(9)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    use_parameters(None, path)


def _no_detector(folder):
    with mock.patch.dict(sys.modules, {"webrtcvad": None}):
        WebRtcVad()


def _no_sounddevice(folder):
    with mock.patch.dict(sys.modules, {"sounddevice": None}):
        next(microphone(16000))


def _no_onnx(folder):
    with mock.patch("importlib.util.find_spec", lambda name: None):
        check_installed("--format onnx", "onnx", "onnxscript", "onnxruntime")


def _same_names(folder):
    inputs = [Input("monday/talk.wav", "talk"), Input("friday/talk.wav", "talk")]
    check_names(inputs, "texts")


def _empty_folder(folder):
    (folder / "talks").mkdir()
    find_inputs([str(folder / "talks")])


OPPOSITE = np.stack([np.sin(np.arange(16000)), -np.sin(np.arange(16000))], axis=1)

CASES = {
    "a waveform of 16-bit samples": _wave(16000, dtype="int16"),
    "several waveforms in one array": _wave(2, 16000),
    "a waveform without samples": _wave(0),
    "a waveform of NaN": _nan,
    "a file without samples": _file(np.zeros(0)),
    "`--channel 3` of two": _file(OPPOSITE, 3),
    "channels in opposite phase": _file(OPPOSITE),
    "an ogg that breaks off": _cut_ogg,
    "`max_seconds=0.5`": lambda folder: check_longest(0.5),
    "`--vad` without the package": _no_detector,
    "`--microphone` without the package": _no_sounddevice,
    "a wav file for `--stream` as raw samples": lambda f: next(
        raw_samples(io.BytesIO(b"RIFF"), 16000)
    ),
    "a folder without audio": _empty_folder,
    "transcripts that would overwrite each other": _same_names,
    "an export to ONNX without the packages": _no_onnx,
    "no ONNX export": OnnxRecognizer,
    "hotwords for an ONNX export of before": lambda f: open_tokenizer(
        f / "my_onnx", {}
    ),
    "an empty list of hotwords": lambda f: read_hotwords([]),
    "parameters of an export that break off": _cut_parameters,
}
