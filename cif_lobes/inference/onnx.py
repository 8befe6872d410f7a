"""Recognise recordings with an ONNX export: onnxruntime, numpy, soundfile, no PyTorch.

python evaluate.py export results/AISHELL-1/cif/1986 my_onnx --format onnx
python -m cif_lobes.inference.onnx my_onnx *.wav

Other sample rates need scipy. Greedy, one recording at a time, as long as the network can
take; for beams, batches and long files there is `cif_lobes.inference.recognizer`.
"""

import argparse
import json
import math
import pathlib
import sys

import numpy as np
import onnxruntime
import soundfile

from cif_lobes.data.tokens import SPACE
from cif_lobes.inference.alignment import FrameClock
from cif_lobes.inference.recordings import is_steady, read_mono
from cif_lobes.inference.transcript import (
    FORMATS,
    Token,
    Transcript,
    check_format,
    skip_message,
    words_of,
)
from cif_lobes.settings.checks import option_type
from cif_lobes.settings.program import run_program


class OnnxRecognizer:
    """Waveforms to transcripts.

    Arguments
    ---------
    folder : str
        Written by `cif_lobes.inference.onnx_export.export_onnx`.
    threads : int
        CPU threads within an operator.

    Example
    -------
    >>> recognizer = OnnxRecognizer("my_onnx")  # doctest: +SKIP
    >>> recognizer.transcribe_file("speech.wav").text  # doctest: +SKIP
    '你好'
    """

    def __init__(self, folder, threads=1):
        folder = pathlib.Path(folder)
        if not (folder / "recognizer.json").exists():
            raise FileNotFoundError(
                f"{folder} is not an ONNX export: no recognizer.json. Make one with: "
                f"python evaluate.py export RUN {folder} --format onnx"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(
                folder / name, options, providers=["CPUExecutionProvider"]
            )
            for name in ("encoder.onnx", "decoder.onnx")
        )
        text = (folder / "recognizer.json").read_text(encoding="utf-8")
        self.settings = json.loads(text)
        self.sample_rate = self.settings["sample_rate"]

    def transcribe_file(self, path, channel=None):
        """Recognise any file that libsndfile reads, or one channel of it, from 1."""
        audio, rate = read_mono(path, channel)
        if rate != self.sample_rate:
            from scipy.signal import resample_poly

            divisor = math.gcd(rate, self.sample_rate)
            audio = resample_poly(audio, self.sample_rate // divisor, rate // divisor)
        return self.transcribe(audio)

    def transcribe(self, signal):
        """Recognise one utterance.

        Arguments
        ---------
        signal : numpy.ndarray, [samples], float32
            At `sample_rate`; at least one sample.

        Returns
        -------
        cif_lobes.inference.transcript.Transcript
            Empty for silence, steady noise and less than an encoder frame.
        """
        frame = self.settings["frame_step"] * self.sample_rate
        if len(signal) < frame or is_steady(signal, self.sample_rate):
            return Transcript("", 0.0, [], [])
        vectors, boundaries = self.encoder.run(None, {"signal": signal[None]})
        ids, log_probs = self._search(vectors)
        settings = self.settings
        clock = FrameClock(settings["frame_start"], settings["frame_step"])
        times = clock.start + clock.step * boundaries[0].astype(float)
        times = np.minimum(times, len(signal) / self.sample_rate).tolist()
        tokens = [
            Token(self._text([token]), times[u], times[u + 1], math.exp(log_probs[u]))
            for u, token in enumerate(ids)
        ]
        text = self._text(ids)
        words = tokens if settings["language"] == "zh" else words_of(tokens, text)
        return Transcript(text, sum(log_probs), tokens, words)

    def _search(self, vectors):
        """Greedy tokens, end of sentence excluded, and log-probabilities with it."""
        settings = self.settings
        layers, pair, heads, head_width = settings["state_shape"]
        state = np.zeros((1, layers, pair, heads, 0, head_width), np.float32)
        before = np.zeros_like(vectors[:, 0]) if vectors.shape[1] else None
        previous, ids, log_probs = settings["bos_index"], [], []
        for u in range(vectors.shape[1]):
            inputs = {
                "vector": vectors[:, u],
                "vector_before": before,
                "previous_token": np.array([previous]),
                "state": state,
            }
            logits, state = self.decoder.run(None, inputs)
            logits = logits[0].astype(float)
            log_total = logits.max() + np.log(np.exp(logits - logits.max()).sum())
            # Never a target, so never wanted.
            logits[[settings["blank_index"], settings["bos_index"]]] = -np.inf
            previous, before = int(logits.argmax()), vectors[:, u]
            log_probs.append(float(logits[previous] - log_total))
            if previous == settings["eos_index"]:
                break
            ids.append(previous)
        return ids, log_probs

    def _text(self, ids):
        """What tokens spell; a mark stands before the first piece of a word."""
        pieces = (self.settings["tokens"][token] for token in ids)
        return "".join(pieces).replace(SPACE, " ").strip(" ")


def main(argv=None):
    """Recognise files and print."""
    parser = argparse.ArgumentParser(
        "python -m cif_lobes.inference.onnx", description="Recognise recordings."
    )
    parser.add_argument("model", help="folder of an ONNX export")
    parser.add_argument("files", nargs="+", help="audio files")
    parser.add_argument(
        "--format", choices=FORMATS, default="text", help="default: text"
    )
    parser.add_argument(
        "--channel",
        type=option_type(1, "how many"),
        help="of files with several, from 1 (default: mixed)",
    )
    parser.add_argument(
        "--threads", type=option_type(1, "how many"), default=1, help="CPU threads"
    )
    given = parser.parse_args(argv)
    check_format(parser, given)
    try:
        recognizer = OnnxRecognizer(given.model, given.threads)
    except FileNotFoundError as error:
        parser.error(error)
    skipped = []
    for file in given.files:
        try:
            transcript = recognizer.transcribe_file(file, given.channel)
        except (OSError, ValueError, soundfile.SoundFileError) as error:
            skipped.append(file)
            print(skip_message(file, error), file=sys.stderr)
        else:
            print(FORMATS[given.format](file, transcript), end="")
    if skipped:
        sys.exit(f"{len(skipped)} of {len(given.files)} files could not be read")


if __name__ == "__main__":
    run_program(main)
